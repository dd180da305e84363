"""llama.cpp gets as many threads as there are cores for them: one too many spins in the way of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from guard.engines import cores
from guard.engines.cores import usable_cores


@pytest.fixture(autouse=True)
def many_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with sixteen cores, whose control groups lie in a folder of the test."""
    own = tmp_path / "own"
    monkeypatch.setattr(cores, "_OWN_CGROUP", own)
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "_physical_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    group = tmp_path / "groups" / "pod" / "container"
    group.mkdir(parents=True)
    own.write_text("4:cpu:/elsewhere\n0::/pod/container\n")
    return group


def test_without_limits_every_core_counts(tmp_path: Path) -> None:
    assert usable_cores() == 16
    (tmp_path / "own").unlink()
    assert usable_cores() == 16


@pytest.mark.parametrize(
    ("container", "pod", "expected"),
    [
        ("400000 100000", "max 100000", 4),
        ("max 100000", "300000 100000", 3),
        ("400000 100000", "300000 100000", 3),
        ("250000 100000", "max 100000", 2),
        ("50000 100000", "max 100000", 1),
        ("max 100000", "max 100000", 16),
        ("9900000 100000", "max 100000", 16),
    ],
)
def test_the_quota_of_a_container_and_of_the_groups_above_it_limits_them(
    many_cores: Path, container: str, pod: str, expected: int
) -> None:
    (many_cores / "cpu.max").write_text(f"{container}\n")
    (many_cores.parent / "cpu.max").write_text(f"{pod}\n")
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3", 3), (" 3 ", 3), ("2,4", 2), ("99", 16), ("", 16), ("0", 16), ("-1", 16), ("all", 16), ("4x", 16)],
)
def test_openmps_own_variable_limits_them(monkeypatch: pytest.MonkeyPatch, value: str, expected: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert usable_cores() == expected


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to cores here")
def test_a_process_that_is_bound_to_one_core_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    allowed = os.sched_getaffinity(0)
    assert 1 <= usable_cores() <= len(allowed)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)
