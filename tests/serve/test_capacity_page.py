"""The page on capacity has the tables that its program prints, and its figures are those of the program."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "explanation" / "capacity.md").read_text("utf-8")


@pytest.fixture(scope="module")
def capacity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("capacity", ROOT / "benchmarks" / "capacity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_the_page_has_the_tables_that_the_program_prints(capacity: ModuleType) -> None:
    for table in (capacity.table, capacity.people_table):
        assert "\n".join(table()) in PAGE


def test_the_measured_figures_of_the_page_are_those_of_the_program(capacity: ModuleType) -> None:
    measured = capacity.UnitFigures()
    for text in (
        f"{measured.observe_s * 1000:.2f} ms of one core",
        f"{measured.request_bytes / 1e6:.1f} MB",
        f"{measured.decisions_s:.0f} by 16",
        f"{measured.cases_s:.0f} by 16",
        f"{measured.decision_bytes / 1000:.1f} KB a decision",
        f"{measured.case_bytes / 1000:.1f} KB a case",
        f"a factor of {measured.overhead}",
    ):
        assert text in PAGE, text


def test_more_answers_never_need_less(capacity: ModuleType) -> None:
    small, large = capacity.needs(10**6), capacity.needs(2 * 10**6)
    assert all(getattr(small, name) <= getattr(large, name) for name in capacity.ROWS.values())
    assert large.hours == pytest.approx(2 * small.hours)


def test_half_of_the_escalations_are_half_of_the_hours(capacity: ModuleType) -> None:
    whole, half = (capacity.needs(10**6, capacity.Assumed(escalated=share, audited=0.0)) for share in (0.02, 0.01))
    assert half.hours == pytest.approx(whole.hours / 2)
