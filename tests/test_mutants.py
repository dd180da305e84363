"""The list of mutants fits the code, and its runner tells a killed one from a survivor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # `python -m tests.mutants` runs from there

from tests.mutants.runner import (
    ROOT,
    ListError,
    Mutant,
    applied,
    find_code,
    find_tests,
    kill,
    read_list,
)


def problem_of(mutant: Mutant) -> str | None:
    try:
        file = find_code(mutant, ROOT)
        find_tests(mutant, ROOT)
        compile(file.read_text(encoding="utf-8").replace(mutant.before, mutant.after), mutant.name, "exec")
    except (ListError, SyntaxError) as error:
        return str(error)
    return None


def test_the_code_and_the_tests_of_each_mutant_are_there_and_each_is_python() -> None:
    """One that is no Python would fail every test, and say nothing of them."""
    mutants = read_list()
    assert len(mutants) >= 60
    assert [problem for mutant in mutants if (problem := problem_of(mutant))] == []


# -- the runner, on a package of two lines -----------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "__init__.py").write_text("def accepts(p_wrong):\n    return p_wrong < 0.5\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import guard, pytest\n"
        "def test_it():\n    assert guard.accepts(0.1)\n"
        "def test_boundary():\n    assert not guard.accepts(0.5)\n"
        "def test_skipped():\n    pytest.skip('no server')\n"
    )
    return tmp_path


def mutant(before: str, after: str, *tests: str) -> Mutant:
    return Mutant("name", "Why.", before, after, tests)


def test_a_mutant_that_its_tests_notice_is_killed_and_the_code_is_as_before(copy: Path) -> None:
    source = (copy / "guard" / "__init__.py").read_text()
    assert kill(mutant("p_wrong < 0.5", "p_wrong <= 0.5", "test_it", "test_boundary"), copy).problem is None
    assert (copy / "guard" / "__init__.py").read_text() == source


@pytest.mark.parametrize("tests", [("test_it",), ("test_skipped",)])
def test_a_mutant_that_they_do_not_notice_survives(copy: Path, tests: tuple[str, ...]) -> None:
    assert kill(mutant("p_wrong < 0.5", "p_wrong <= 0.5", *tests), copy).problem == "survived"


def test_tests_that_cannot_run_kill_nothing(copy: Path) -> None:
    problem = kill(mutant("0.5", "0.4", "test_it[x]"), copy).problem
    assert problem is not None
    assert "could not run" in problem


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (mutant("p_wrong > 0.5", "x", "test_it"), "in 0 places"),
        (mutant("p_wrong", "x", "test_it"), "in 2 places"),
        (mutant("0.5", "0.5", "test_it"), "are the same"),
        (mutant("0.5", "0.4", "test_other"), "there is no test test_other"),
    ],
)
def test_a_list_that_does_not_fit_is_an_error(copy: Path, bad: Mutant, words: str) -> None:
    with pytest.raises(ListError, match=words):
        kill(bad, copy)


def fail_within(change: Mutant, copy: Path) -> None:
    with applied(change, copy):
        assert "0.4" in (copy / "guard" / "__init__.py").read_text()
        raise ZeroDivisionError


def test_the_code_is_restored_after_an_error(copy: Path) -> None:
    source = (copy / "guard" / "__init__.py").read_text()
    with pytest.raises(ZeroDivisionError):
        fail_within(mutant("0.5", "0.4", "test_it"), copy)
    assert (copy / "guard" / "__init__.py").read_text() == source


def test_a_bad_list_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "list.toml"
    entry = '[[mutant]]\nname = "a"\nwhy = "W."\nbefore = "x"\nafter = "y"\ntests = ["t"]\n'
    file.write_text(entry + entry)
    with pytest.raises(ListError, match="Two mutants are called 'a'"):
        read_list(file)
    file.write_text(entry.replace("why", "reason"))
    with pytest.raises(ListError, match="a: "):
        read_list(file)
