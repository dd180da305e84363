"""An engine in a process that was forked after it was loaded: a clear error at once, and no hang."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.engines.base import BaseEngine
from guard.errors import EngineError
from guard.records import Limits, Prompt

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

QUESTION = Prompt.chat("Where?")
SHORT = Limits(max_tokens=2, timeout_s=5)


def in_a_fork(run: Callable[[], object]) -> str:
    """What a function raises in a forked child, which must end by itself."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        try:
            run()
            theirs.send("nothing was raised")
        except EngineError as error:
            theirs.send(str(error))
        except BaseException:  # noqa: BLE001 - it is shown by the test
            theirs.send(traceback.format_exc())

    process = context.Process(target=child)
    process.start()
    try:
        assert ours.poll(60), "the child hangs"
        return str(ours.recv())
    finally:
        process.join(60)
        assert process.exitcode is not None, "the child does not end"
        process.kill()


def check(engine: BaseEngine) -> None:
    import asyncio

    def stream() -> object:
        return list(engine.stream(QUESTION, limits=SHORT))

    def task() -> object:
        return asyncio.run(engine.agenerate(QUESTION, limits=SHORT))

    def close() -> object:
        engine.close()
        raise EngineError("closed")

    answer = engine.generate(QUESTION, limits=SHORT)
    for ask in (lambda: engine.generate(QUESTION, limits=SHORT), stream, task):
        said = in_a_fork(ask)
        assert "loaded before this process was forked" in said
        assert "after the fork" in said
        assert "spawn" in said
    assert in_a_fork(close) == "closed."
    assert engine.generate(QUESTION, limits=SHORT).token_ids == answer.token_ids, "the parent still answers"


def test_a_llama_cpp_engine_in_a_fork(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    pytest.importorskip("gguf")
    from tiny_gguf import write_tiny_gguf

    from guard.engines.llama_cpp import LlamaCppEngine

    with LlamaCppEngine.load(write_tiny_gguf(tmp_path / "tiny.gguf"), threads=2) as engine:
        check(engine)


def test_a_transformers_engine_in_a_fork() -> None:
    pytest.importorskip("torch")
    from tiny_models import tiny_model, wrap

    with wrap(tiny_model("llama")) as engine:
        check(engine)


def test_a_guard_in_a_fork_raises_whatever_its_policy_says_of_errors() -> None:
    """Before, the policy's `on_error` answered in each worker of a server, so that nobody learnt of the mistake."""
    import asyncio

    from scripted import AnsweringEngine, confidence_scorer

    from guard import Guard, parse_policy
    from guard.langchain import ChatGuard, guarded

    rules = "rules:\n  - accept: {below: 0.5}\n  - abstain: {text: dunno}\non_error: abstain\n"
    policy = parse_policy(f"version: 1\nname: closed\n{rules}")
    engine = AnsweringEngine(lambda _prompt, _number: ("yes", 0.1))
    guard = Guard(engine, confidence_scorer(engine.model), policy)
    chain = guarded(ChatGuard(engine=engine, scorer=confidence_scorer(engine.model)), policy=policy)
    asks = (lambda: guard.ask("Where?"), lambda: asyncio.run(guard.aask("Where?")), lambda: chain.invoke("Where?"))
    for ask in asks:
        assert "loaded before this process was forked" in in_a_fork(ask)
