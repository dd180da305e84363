"""With ``--strict-skips`` a run whose tests were skipped is not green, unless the reason is listed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).with_name("support")


def run(folder: Path, code: str, *options: str, postgresql: str = "no") -> tuple[int, str]:
    """The exit code and output of pytest on one file of tests, in a process of its own."""
    (folder / "test_it.py").write_text(f"import pytest\n{code}")
    command = [sys.executable, "-m", "pytest", "-p", "strict_skips", "-p", "no:cacheprovider", *options, "test_it.py"]
    settings = {
        "PYTHONPATH": f"{SUPPORT}{os.pathsep}{folder}",
        "GUARD_TEST_POSTGRESQL": postgresql,
        "PYTEST_ADDOPTS": "",
    }
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


SKIPPED = "def test_one(): pass\ndef test_two(): pytest.skip('{reason}')\n"


def test_a_missing_library_fails_a_strict_run_only(tmp_path: Path) -> None:
    code = "pytest.importorskip('no_such_library')\n"
    strict, output = run(tmp_path, code, "--strict-skips")
    assert (strict, run(tmp_path, code)[0]) != (0, 0)
    assert "a reason that --strict-skips does not allow" in output
    assert "no_such_library" in output


@pytest.mark.parametrize(
    ("reason", "code"), [("root may read everything", 0), ("no PostgreSQL server: see there", 0), ("no time", 1)]
)
def test_listed_reasons_are_allowed(tmp_path: Path, reason: str, code: int) -> None:
    assert run(tmp_path, SKIPPED.format(reason=reason), "--strict-skips")[0] == code


def test_a_required_server_that_is_missing_ends_the_run_before_its_first_test(tmp_path: Path) -> None:
    (tmp_path / "without_psycopg.py").write_text(
        "import importlib.util\nfind_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'psycopg' else find_spec(name, *more)\n"
    )
    options = ("--strict-skips", "-p", "without_psycopg")
    code, output = run(tmp_path, "def test_one(): pass\n", *options, postgresql="required")
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "GUARD_TEST_POSTGRESQL is 'required', but psycopg is not installed" in output
    assert "passed" not in output
