"""Checks that the suite notices when guard fails open.

``list.toml`` names small changes of the code that let a wrong answer out, and for each the tests that must
then fail. Every change is made in a temporary copy of the package, and those tests run on the copy. The
run fails where a mutant survives, where its code is no longer there, or where a test fails without it.

    python -m tests.mutants                 all of them
    python -m tests.mutants tool-rules      those whose name begins so
    python -m tests.mutants --list          names and reasons

The list has no paths, so that files can move: code is found by its text, which must be unique, and tests by
their name, in every file that has one of that name.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import re
import shutil
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_name("list.toml")

#: What the tests need of the repository.
COPIED = ("guard", "policies", "tests", "docs", "pyproject.toml")

#: pytest's exit codes: all tests passed, and some failed. Any other is a mistake in the list or the machine.
PASSED, FAILED = 0, 1
#: The tests have run on another guard than the copy.
WRONG_CODE = 99

#: Libraries that the tests import, and that take long.
PRELOADED = (
    *(
        "pytest",
        "pytest_asyncio.plugin",
        "hypothesis",
        "numpy",
        "pydantic",
        "sqlalchemy",
        "alembic.command",
        "typer.main",
    ),
    *("jinja2", "tenacity", "scipy.stats", "langchain.agents", "langchain_core.tracers.log_stream"),
    *("langgraph.checkpoint.memory", "langgraph.checkpoint.sqlite", "psycopg"),
)

TIMEOUT_S = 120


class ListError(Exception):
    """The list does not fit the code."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of the code.

    Attributes:
        name: of the mutant, unique.
        why: what goes wrong with it.
        before: text of the code, exactly once in the package.
        after: what takes its place.
        tests: names of the tests of which at least one must fail, with a parameter's id where one matters.
        needs: an optional server that the tests need; the mutant is skipped where it cannot be started.
    """

    name: str
    why: str
    before: str
    after: str
    tests: tuple[str, ...]
    needs: str | None = None


@dataclass(frozen=True, slots=True)
class MutantResult:
    """What became of a mutant; ``problem`` is None where it was killed."""

    mutant: Mutant
    problem: str | None
    seconds: float


def read_list(path: Path = LIST) -> list[Mutant]:
    """Read the mutants of a list.

    Raises:
        ListError: a key is missing or unknown, or two mutants have one name.
    """
    mutants = []
    for entry in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
        try:
            mutants.append(Mutant(**{**entry, "tests": tuple(entry["tests"])}))
        except (KeyError, TypeError) as error:
            raise ListError(f"{entry.get('name', entry)}: {error}") from error
    names = [mutant.name for mutant in mutants]
    for name in names:
        if names.count(name) > 1:
            raise ListError(f"Two mutants are called '{name}'")
    return mutants


def find_code(mutant: Mutant, root: Path) -> Path:
    """Return the file that has the mutant's code.

    Raises:
        ListError: the code is nowhere, or in more than one place, or the change changes nothing.
    """
    if mutant.before == mutant.after:
        raise ListError(f"{mutant.name}: before and after are the same")
    counts = {path: path.read_text(encoding="utf-8").count(mutant.before) for path in root.glob("guard/**/*.py")}
    places = [path for path, count in counts.items() for _ in range(count)]
    if len(places) != 1:
        raise ListError(f"{mutant.name}: its code is in {len(places)} places. Update 'before' in {LIST.name}")
    return places[0]


def find_tests(mutant: Mutant, root: Path) -> list[str]:
    """Return pytest's ids of the mutant's tests.

    Raises:
        ListError: there is no test of a name.
    """
    return [node for name in mutant.tests for node in _nodes(mutant, name, root)]


def _nodes(mutant: Mutant, name: str, root: Path) -> list[str]:
    function = re.compile(rf"^(async )?def {re.escape(name.partition('[')[0])}\(", re.MULTILINE)
    files = [path for path in root.glob("tests/**/test_*.py") if function.search(path.read_text(encoding="utf-8"))]
    if not files:
        raise ListError(f"{mutant.name}: there is no test {name}. Update 'tests' in {LIST.name}")
    return [f"{path.relative_to(root).as_posix()}::{name}" for path in sorted(files)]


# -- running -----------------------------------------------------------------------------------


def copy_repository(target: Path, root: Path = ROOT) -> Path:
    """Copy what the tests need; gives the copy's root."""
    for name in COPIED:
        source, ignored = root / name, shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copy(source, target / name)
    return target


@contextmanager
def applied(mutant: Mutant, copy: Path) -> Iterator[None]:
    """Make the change in a copy, for the length of a block."""
    file = find_code(mutant, copy)
    original = file.read_text(encoding="utf-8")
    _write(file, original.replace(mutant.before, mutant.after))
    try:
        yield
    finally:
        _write(file, original)


def _write(file: Path, text: str) -> None:
    """Write a module, and forget its bytecode: within one second Python could take the old one for the new."""
    file.write_text(text, encoding="utf-8")
    Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)


def run_tests(nodes: Sequence[str], copy: Path, *, timeout_s: float = TIMEOUT_S) -> tuple[int | None, str]:
    """Run tests on a copy, in a process of its own; gives pytest's exit code (None where late) and its output."""
    output = copy / "output.txt"
    process = _processes().Process(target=_run_pytest, args=(str(copy), list(nodes), str(output)))
    process.start()
    process.join(timeout_s)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    return None if late else process.exitcode, output.read_text(encoding="utf-8", errors="replace")


def _processes() -> ForkServerContext:
    """Processes that begin with the libraries imported: importing takes longer than the tests of a mutant."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in PRELOADED if importlib.util.find_spec(name.partition(".")[0])])
    return context


def _run_pytest(copy: str, nodes: list[str], output: str) -> None:
    """Run pytest in a fresh process and exit with its code; only the copy's guard may be imported."""
    os.chdir(copy)
    sys.path[:] = [copy, *(entry for entry in sys.path if entry not in ("", str(ROOT)))]
    os.environ |= {"PYTHONPATH": copy, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with open(output, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import pytest

    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider"]
    code = pytest.main([*options, *nodes])
    sys.stdout.flush()
    imported = getattr(sys.modules.get("guard"), "__file__", "") or ""
    os._exit(int(code) if imported.startswith(copy) or code != PASSED else WRONG_CODE)


def kill(mutant: Mutant, copy: Path) -> MutantResult:
    """Make the change and run its tests."""
    started = time.monotonic()
    with applied(mutant, copy):
        code, output = run_tests(find_tests(mutant, copy), copy)
    problem = None
    if code == PASSED:
        problem = "survived"
    elif code is None:
        problem = f"its tests took more than {TIMEOUT_S} s"
    elif code != FAILED:
        problem = f"its tests could not run (pytest gave {code}):\n{output[-1500:]}"
    return MutantResult(mutant, problem, time.monotonic() - started)


def check_baseline(mutants: Sequence[Mutant], copy: Path) -> str | None:
    """What is wrong with the tests on the code as it is: each must run and pass."""
    nodes = list(dict.fromkeys(node for mutant in mutants for node in find_tests(mutant, copy)))
    code, output = run_tests(nodes, copy, timeout_s=10 * TIMEOUT_S)
    if code != PASSED:
        return f"The tests do not pass without a mutant:\n{output[-3000:]}"
    skipped = re.search(r"\d+ skipped", output)
    return f"Tests were skipped, so they can kill nothing:\n{output[-3000:]}" if skipped else None


def run_all(mutants: Sequence[Mutant], jobs: int) -> Iterator[MutantResult]:
    """Kill mutants, several at a time, each in a copy of its own."""
    with TemporaryDirectory(prefix="guard-mutants-") as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copies.put(copy_repository(Path(folder) / str(number)))

        def work(mutant: Mutant) -> MutantResult:
            copy = copies.get()
            try:
                return kill(mutant, copy)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(work, mutants)


# -- the command -------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the list; 0 where every mutant was killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Check that tests notice fail-open.")
    parser.add_argument("names", nargs="*", help="run the mutants whose names begin so; by default all")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (2)")
    parser.add_argument("--list", action="store_true", help="print names and reasons, run nothing")
    options = parser.parse_args(arguments)
    mutants = [each for each in read_list() if not options.names or each.name.startswith(tuple(options.names))]
    if not mutants:
        parser.error("no mutant has such a name")
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name}: {mutant.why}")
        return 0
    return _run(_possible(mutants), options.jobs)


def _possible(mutants: Sequence[Mutant]) -> list[Mutant]:
    """The mutants whose servers can be started here."""
    from tests.support.postgresql_server import is_available

    return [mutant for mutant in mutants if mutant.needs != "postgresql" or is_available()]


def _run(mutants: Sequence[Mutant], jobs: int) -> int:
    started = time.monotonic()
    for mutant in mutants:
        find_code(mutant, ROOT), find_tests(mutant, ROOT)
    with TemporaryDirectory(prefix="guard-mutants-") as folder:
        problem = check_baseline(mutants, copy_repository(Path(folder) / "copy"))
    if problem:
        print(problem)
        return 1
    alive = 0
    for result in run_all(mutants, jobs):
        print(f"{result.mutant.name}: {result.problem or 'killed'} ({result.seconds:.1f} s)", flush=True)
        if result.problem:
            alive += 1
            print(f"    {result.mutant.why}", flush=True)
    print(f"{len(mutants) - alive} of {len(mutants)} killed in {time.monotonic() - started:.0f} s")
    return 1 if alive else 0
