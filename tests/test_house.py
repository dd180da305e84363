"""The house stays in order: short functions, short modules, packages with faces, tests where their code is."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from statistics import median, quantiles

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "guard", ROOT / "tests"

#: Everything at the top of the package, in the order of the data; a new room needs a reason and a line here.
MODULES = {
    "__main__",
    "_faces",
    "checked",
    "content",
    "errors",
    "hidden_characters",
    "outcome_export",
    "records",
    "response_format",
    "review_terms",
    "scores",
}
PACKAGES = {
    *("files", "engines", "scoring", "policy", "audit", "review", "monitoring", "access", "runtime", "replay"),
    *("data", "calibration", "certification", "evaluation", "recalibration"),
    *("langchain", "serve", "console", "cli"),
}

#: Folders of tests that mirror no package: shared code, and programs that pytest does not collect.
OTHER_FOLDERS = {"support", "mutants", "fuzz"}
#: What names of other tests begin with: those of several packages, of the repository, of a module at the top.
TOP_TESTS = {
    *("test_checked", "test_docs", "test_doctests", "test_errors", "test_examples", "test_house", "test_imports"),
    *("test_mutants", "test_outcome_export"),
    *("test_packaging", "test_skip_gate"),
}

#: Longest body, in statements, that a function and its asynchronous twin may both have.
LONGEST_TWIN = 6
#: Twins that are the drivers of all others.
DRIVERS = {"guard/runtime/steps.py: drive", "guard/runtime/steps.py: drive_stream"}

#: The detokenizer of transformers is private, and one of guard's `Detokenizer`.
ONE_MEANING = {"Detokenizer"}
#: Classes of several tests with one name and one meaning: what a signal handler raises, and what a model is to fill.
TEST_DOUBLES = {"City"}

MEDIAN, NINTH_DECILE, LONGEST_MODULE = 6, 17, 500

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def body_lines(function: Function) -> int:
    """The lines of a function after its signature and its docstring; 0 where it has nothing else."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def lengths() -> list[int]:
    functions = (node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, Function))
    return [lines for function in functions if (lines := body_lines(function))]


def folders(parent: Path) -> set[str]:
    """The folders that have a module in them, at any depth."""
    return {path.name for path in parent.iterdir() if path.is_dir() and any(path.rglob("*.py"))}


def modules(parent: Path) -> set[str]:
    return {path.stem for path in parent.glob("*.py")}


def test_functions_are_short() -> None:
    found = lengths()
    assert len(found) > 1000
    assert median(found) <= MEDIAN
    assert quantiles(found, n=10)[-1] <= NINTH_DECILE


def test_modules_are_short() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in trees()}
    long = {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > LONGEST_MODULE}
    assert not long, "split them by meaning"


def defined(node: ast.AST) -> Iterator[str]:
    """The classes and aliases of types that a statement defines, without leading underscores."""
    if isinstance(node, ast.ClassDef):
        yield node.name.lstrip("_")
    elif isinstance(node, ast.Assign | ast.AnnAssign) and not is_type_variable(node.value):
        yield from (name.lstrip("_") for name in assigned(node) if re.fullmatch(r"_?([A-Z][a-z]+)+", name))


def is_type_variable(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "TypeVar"


def modules_by_class(*folders: str) -> dict[str, set[str]]:
    """The modules that define each class or alias at their top."""
    found = defaultdict(set)
    for path in (path for folder in folders for path in (ROOT / folder).rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            for name in defined(node):
                found[name].add(str(path.relative_to(ROOT)))
    return found


def test_a_class_name_has_one_meaning() -> None:
    found = modules_by_class("guard", "examples", "benchmarks")
    several = {name: places for name, places in found.items() if len(places) > 1}
    assert not {name: places for name, places in several.items() if name not in ONE_MEANING}
    assert several.keys() >= ONE_MEANING, "shorten the list"


def test_no_test_gives_a_class_the_name_of_another() -> None:
    found, guards = modules_by_class("tests"), modules_by_class("guard", "examples", "benchmarks")
    several = {name: places for name, places in found.items() if len(places) > 1 or name in guards}
    assert not {name: places for name, places in several.items() if name not in TEST_DOUBLES}
    assert several.keys() >= TEST_DOUBLES, "shorten the list"


def test_names_use_standard_words() -> None:
    """A reader looks for "reported", "resumes" and "again"."""
    archaic = re.compile(r"def (\w*(?:_told|_heard|unheard|_hears|_anew|_befell|_goes_on)(?:_\w*)?)\(")
    files = [path for folder in ("guard", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    assert not [name for path in files for name in archaic.findall(path.read_text(encoding="utf-8"))]


def test_the_top_of_the_package_is_listed() -> None:
    assert modules(PACKAGE) - {"__init__"} == MODULES
    assert folders(PACKAGE) == PACKAGES


def test_tests_mirror_the_packages() -> None:
    assert folders(TESTS) - OTHER_FOLDERS == PACKAGES
    assert not {name for name in modules(TESTS) - {"conftest"} if not re.match(rf"({'|'.join(TOP_TESTS)})(_|$)", name)}
    deeper = [path for package in PACKAGES for path in (TESTS / package).glob("*/**/test_*.py")]
    assert all((PACKAGE / path.parent.relative_to(TESTS)).is_dir() for path in deeper), deeper


def test_a_tests_name_is_unique_so_that_no_folder_hides_another() -> None:
    names = [path.stem for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def test_tests_import_no_other_tests() -> None:
    """What several need is in tests/support."""
    imports = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in imported(node)
        if name.split(".")[-1].startswith("test_") or name == "conftest"
    ]
    assert not imports


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def packages() -> list[str]:
    """Every package, with dots."""
    return [".".join(path.parent.relative_to(ROOT).parts) for path in trees() if path.name == "__init__.py"]


@pytest.mark.parametrize("name", packages())
def test_a_package_says_what_lives_there(name: str) -> None:
    docstring = ast.get_docstring(trees()[ROOT / Path(*name.split("."), "__init__.py")])
    assert docstring
    assert len(docstring.split()) >= 4


@pytest.mark.parametrize("name", packages())
def test_a_package_has_a_face(name: str) -> None:
    """Each public name is listed once (ruff keeps the order); what is not on the list is internal."""
    tree = trees()[ROOT / Path(*name.split("."), "__init__.py")]
    values = [
        node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for node in tree.body
        if "__all__" in assigned(node)
    ]
    assert len(values) == 1, f"{name} has no __all__"
    assert values[0] is not None
    listed = ast.literal_eval(values[0])
    assert len(listed) == len(set(listed))


def assigned(node: ast.stmt) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def functions(node: ast.AST, prefix: str = "") -> Iterator[tuple[str, Function]]:
    """Every function below a node, with the names of what it is in."""
    for child in ast.iter_child_nodes(node):
        name = prefix + child.name if isinstance(child, Function | ast.ClassDef) else prefix
        if isinstance(child, Function):
            yield name, child
        yield from functions(child, f"{name}." if name != prefix else prefix)


def twins() -> Iterator[tuple[str, Function, Function]]:
    """Every function that has an asynchronous twin beside it: ``ask`` and ``aask``, ``_run`` and ``_arun``."""
    for path, tree in trees().items():
        known = dict(functions(tree))
        for name, function in known.items():
            scope, _, own = name.rpartition(".")
            twin = re.sub(r"^(_*)", r"\1a", own)
            other = known.get(f"{scope}.{twin}" if scope else twin)
            if other is not None:
                yield f"{path.relative_to(ROOT)}: {name}", function, other


def statements(function: Function) -> list[ast.stmt]:
    """Every statement of a body, inner ones included, without the docstring."""
    body = function.body[1:] if ast.get_docstring(function, clean=False) is not None else function.body
    return [node for statement in body for node in ast.walk(statement) if isinstance(node, ast.stmt)]


def written_out(function: Function) -> str:
    """A body without what makes it asynchronous."""
    text = "\n".join(ast.unparse(statement) for statement in statements(function))
    text = re.sub(r"\bawait |\basync ", "", text)
    return re.sub(r"\b(_*)a(?=[a-z_]+\b)|Async", r"\1", text)


def test_asynchronous_code_repeats_no_choreography() -> None:
    """What both do is described once, in steps (`guard.runtime.steps`), and run by two drivers."""
    found = list(twins())
    assert len(found) > 20
    repeated = [
        name
        for name, function, twin in found
        if len(statements(function)) > LONGEST_TWIN
        and SequenceMatcher(None, written_out(function), written_out(twin)).ratio() > 0.8
    ]
    assert {name for name in repeated if "guard/engines/" not in name} == DRIVERS


def test_guarded_calls_decide_in_one_place() -> None:
    """Loop, chain and agent decide through `CallState`; its face, laboratory, replays and commands do not."""
    importing = {
        path.relative_to(PACKAGE).as_posix()
        for path, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("guard.policy")
        if {alias.name for alias in node.names} & {"decide", "decide_error"}
    }
    elsewhere = ("__init__.py", "policy/", "certification/", "replay/", "cli/")
    assert {name for name in importing if not name.startswith(elsewhere)} == {"runtime/call_state.py"}


@pytest.mark.parametrize("file", ["Makefile", "noxfile.py", ".ci/run", "CONTRIBUTING.md"])
def test_paths_that_tools_and_contributors_are_given_exist(file: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    paths = re.findall(r"(?<![\w/-])(?:tests|guard|docs|benchmarks|policies)/[\w./-]*\w", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_tests_whose_signal_handlers_raise_pause_coverage() -> None:
    """Such an exception can leave coverage's lock taken, and the whole run hangs at the next thread."""
    raising = re.compile(r"\b(?:signal\.raise_signal|signal\.setitimer|signal\.pthread_kill)\b")
    files = {file.name: file.read_text(encoding="utf-8") for file in TESTS.rglob("test_*.py") if file != Path(__file__)}
    users = {name for name, text in files.items() if raising.search(text)}
    assert len(users) >= 3
    assert {name for name in users if "mark.no_cover" not in files[name]} == set()
