"""Ctrl-C, and what other signals' handlers raise where a caller waits: it ends the request, and is not a failure."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("pyarrow")

from alarm import AlarmError, raising_handler  # noqa: F401 - a fixture
from recording_observer import Recording
from scripted import AnsweringEngine, confidence_scorer, tiny_artefact
from tiny_gguf import write_tiny_gguf

from guard import Guard, parse_policy
from guard.engines.callback_errors import KeptError, is_from_signal_handler
from guard.engines.llama_cpp import LlamaCppEngine
from guard.records import Limits, Prompt
from guard.review.store import Store
from guard.scoring.scorer import Scorer

pytestmark = pytest.mark.no_cover

QUESTION = Prompt.chat("Where?")
CONTEXT = 4096


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("interrupts") / "tiny.gguf", context=CONTEXT)


@pytest.fixture
def engine(path: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine.load(path, threads=1) as engine:
        yield engine  # type: ignore[misc]


def ask_until_interrupted(engine: LlamaCppEngine, seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)
    while signal.getitimer(signal.ITIMER_REAL)[0] > 0:
        engine.generate(Prompt.raw("word " * 600), limits=Limits(max_tokens=1))


@pytest.mark.usefixtures("raising_handler")
def test_what_a_signal_handler_raises_comes_out_of_generate(engine: LlamaCppEngine) -> None:
    before = engine.generate(QUESTION, limits=Limits(max_tokens=8)).token_ids
    hook = sys.unraisablehook
    for step in range(20):
        with pytest.raises(AlarmError, match="time is up"):
            ask_until_interrupted(engine, 0.002 + step / 5000)
    assert sys.unraisablehook is hook
    again = engine.generate(QUESTION, limits=Limits(max_tokens=8), observer=Recording())
    assert (again.token_ids, again.capture_error) == (before, None), "the engine is as it was"


@pytest.mark.usefixtures("raising_handler")
def test_a_signal_while_a_layer_is_copied_is_not_a_failed_capture(engine: LlamaCppEngine) -> None:
    copy, sent = engine._context.tap._copy, threading.Event()

    def interrupted(tensor: int) -> None:
        copy(tensor)
        if not sent.is_set():  # a second signal would reach the next test
            sent.set()
            os.kill(os.getpid(), signal.SIGALRM)

    engine._context.tap._copy = interrupted  # type: ignore[method-assign]
    with pytest.raises(AlarmError):
        engine.generate(QUESTION, limits=Limits(max_tokens=8), observer=Recording())


@pytest.mark.usefixtures("raising_handler")
@pytest.mark.parametrize("place", ["pass", "layers", "score"])
def test_what_a_signal_handler_raises_ends_a_guarded_call_and_the_policy_decides_nothing(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            if state["armed"]:
                os.kill(os.getpid(), signal.SIGALRM)
            return function(*arguments)

        return run

    state = {"armed": True}
    engine = AnsweringEngine(lambda _prompt, _number: ("yes", 0.1))
    scorer = confidence_scorer(engine.model)
    owner, name = {"pass": (engine, "on_feed"), "layers": (engine, "activations_at"), "score": (scorer, "score")}[place]
    monkeypatch.setattr(owner, name, interrupted(getattr(owner, name)))
    rules = "rules: [{accept: {below: 0.5}}, abstain]\non_error: {abstain: {text: dunno}}\n"
    guard = Guard(engine, scorer, parse_policy(f"version: 1\nname: t\n{rules}"))
    with pytest.raises(AlarmError, match="time is up"):
        guard.ask("Where?")
    state["armed"] = False
    assert guard.ask("Where?").answer == "yes", "the engine is as it was"


class Raising:
    """Handlers of every kind."""

    def method(self, *_: Any) -> None:
        raise AlarmError

    __call__ = method


@pytest.mark.parametrize(
    "handler", [Raising().method, Raising(), functools.partial(Raising().method, 1), lambda *_: Raising().method()]
)
def test_a_handler_of_any_kind_is_recognized_and_other_errors_are_not(handler: Any) -> None:
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(AlarmError) as caught:
            signal.raise_signal(signal.SIGALRM)
        assert is_from_signal_handler(caught.value)
        assert not is_from_signal_handler(AlarmError())
        with pytest.raises(ZeroDivisionError) as other:
            _ = 1 / 0
        assert not is_from_signal_handler(other.value)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_first_exception_is_kept_and_raised_once() -> None:
    kept = KeptError()

    def call() -> None:
        with kept.raised_after():
            kept.keep(AlarmError("first"))
            kept.keep(AlarmError("second"))

    with pytest.raises(AlarmError, match="first"):
        call()
    with kept.raised_after():
        pass


#: Sends this process a real SIGINT in the middle of the n-th evaluation after so many recorded rows.
INTERRUPTED = """
    import os, signal, sys
    os.environ["LLAMA_GRAPH_REUSE_DISABLE"] = "1"  # each evaluation asks for the names of all nodes
    from guard.data.recording import Journal
    from guard.engines.llama_tap import Tap
    from guard.cli import main

    on_node, append, left = Tap._wanted, Journal.append, [int(sys.argv.pop(1))]
    rows = [int(sys.argv.pop(1))]
    def appended(journal, record):
        append(journal, record)
        rows[0] -= 1
    Journal.append = appended
    def wanted(tap, name):
        left[0] -= name == b"l_out-1" and rows[0] <= 0
        if left[0] == 0:
            left[0] -= 1
            os.kill(os.getpid(), signal.SIGINT)
        return on_node(tap, name)
    Tap._wanted = wanted
    main()
"""


def run(evaluations: int, *arguments: str | Path, rows: int = 0) -> subprocess.CompletedProcess[str]:
    """The command line, interrupted in an evaluation after these rows; the first is the engine's own when it is built.

    Rows are asked together, so that the number of evaluations alone says nothing of the rows that are recorded.
    """
    command = [sys.executable, "-c", textwrap.dedent(INTERRUPTED), str(evaluations), str(rows), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_ask_ends_with_130_and_leaves_nothing_to_review(path: Path, engine: LlamaCppEngine, tmp_path: Path) -> None:
    scorer = tmp_path / "scorer.json"
    Scorer(tiny_artefact(engine.model)).save(scorer)
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nname: t\nrules: [escalate: {to: [review]}]\non_error: {escalate: {to: [review]}}\n")
    store = tmp_path / "reviews.db"
    done = run(7, "ask", "Where?", "--model", path, "--scorer", scorer, "--policy", policy, "--store", store)
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert "Traceback" not in done.stderr
    assert "ignored" not in done.stderr
    with Store.open(store) as reviews:
        assert reviews.count() == 0


@pytest.mark.parametrize(("command", "out"), [("record", "out.parquet"), ("calibrate", "scorer.json")])
def test_long_commands_end_with_130_and_keep_the_rows_before(
    path: Path, tmp_path: Path, command: str, out: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("".join(f'{{"id": "{n}", "question": "q{n}?", "answers": ["a"]}}\n' for n in range(160)))
    done = run(1, command, "--model", path, "--data", data, "--out", tmp_path / out, "--max-tokens", "4", rows=3)
    assert done.returncode == 130, done.stderr
    (journal,) = tmp_path.glob("*journal*")
    with contextlib.closing(sqlite3.connect(journal)) as database:
        rows = database.execute("SELECT key, skipped FROM answers").fetchall()
    assert 0 < len(rows) < 160
    assert {skipped for _, skipped in rows} == {None}, "nothing is skipped for ever"


def test_a_row_that_was_interrupted_is_asked_again(path: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "out.parquet"
    data.write_text("".join(f'{{"id": "{n}", "question": "q{n}?", "answers": ["a"]}}\n' for n in range(40)))
    arguments = ("record", "--model", path, "--data", data, "--out", out, "--max-tokens", "4")
    assert run(1, *arguments, rows=3).returncode == 130
    done = run(10**6, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    from pyarrow import parquet

    assert parquet.read_table(out).num_rows == 40
