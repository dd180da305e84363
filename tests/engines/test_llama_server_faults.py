"""The engine for served models against llama.cpp's own server over a wire that fails, and a server that changes.

Every answer is either the one that the server gives without a fault or an error: never a part of it, never another's.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from endpoint import scorer_for
from faulty_wire import FaultyWire, WireFault, faulty_wire
from llama_program import llama_server
from served_child import free_port
from tiny_gguf import write_tiny_gguf

from guard import Guard, load_engine
from guard.engines.asked import RequestEngine
from guard.errors import EngineError, EngineTimeoutError, ScorerMismatchError
from guard.policy.policy import parse_policy
from guard.records import Action, Limits, Outcome, Prompt

pytestmark = pytest.mark.model

OPTIONS = ("-t", "1", "-c", "2048", "-np", "4", "--alias", "small")
QUESTION = Prompt.chat("What is the capital of France?")
SUM = Prompt.chat("What is 2 plus 1?")
LIMITS = Limits(max_tokens=40)
POLICY = parse_policy("{version: 1, name: a, rules: [accept], on_error: {abstain: {text: It could not be checked.}}}")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with llama_server(*OPTIONS) as found:
        yield found


@pytest.fixture
def wire(address: str) -> Iterator[FaultyWire]:
    with faulty_wire(int(address.rpartition(":")[2])) as found:
        yield found


@pytest.fixture
def engine(wire: FaultyWire) -> Iterator[RequestEngine]:
    with load_engine(wire.url, attempts=3) as found:
        yield found


def until_idle(address: str) -> None:
    """Wait until no slot of the server generates: an answer that nobody reads is given up."""
    deadline = time.monotonic() + 60
    while any(slot["is_processing"] for slot in httpx.get(f"{address}/slots", trust_env=False).json()):
        assert time.monotonic() < deadline, "a slot is still at work"
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["reset", "end"])
def test_a_request_that_got_no_answer_is_asked_again(kind: str, wire: FaultyWire, engine: RequestEngine) -> None:
    whole = engine.generate(QUESTION, limits=LIMITS).text
    wire.faults = [WireFault(kind), WireFault(kind)]  # type: ignore[arg-type]
    assert engine.generate(QUESTION, limits=LIMITS).text == whole
    assert not wire.faults
    wire.faults = [WireFault(kind)] * 3  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="connection to the server failed"):
        engine.generate(QUESTION, limits=LIMITS)


@pytest.mark.parametrize("kind", ["reset", "end"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_an_answer_that_breaks_off_is_no_answer(
    kind: str, share: float, address: str, wire: FaultyWire, engine: RequestEngine
) -> None:
    whole = engine.generate(QUESTION, limits=LIMITS).text
    fault = WireFault(kind, round(share * wire.bytes_of_last))  # type: ignore[arg-type]
    wire.faults = [fault]
    with pytest.raises(EngineError):
        engine.generate(QUESTION, limits=LIMITS)
    wire.faults = [fault]
    outcome = Guard(engine, scorer_for(engine), POLICY).ask(QUESTION, limits=LIMITS)
    assert (outcome.action, outcome.answer) == (Action.ABSTAIN, "It could not be checked.")
    assert engine.generate(QUESTION, limits=LIMITS).text == whole
    until_idle(address)


@pytest.mark.parametrize("after", [0, 2000])
def test_a_server_that_falls_silent_is_late_and_gives_its_slot_up(
    after: int, address: str, wire: FaultyWire, engine: RequestEngine
) -> None:
    wire.faults = [WireFault("stall", after)]
    with pytest.raises(EngineTimeoutError):
        engine.generate(QUESTION, limits=Limits(max_tokens=1000, timeout_s=3.0))
    until_idle(address)
    assert engine.generate(QUESTION, limits=LIMITS).capture_error is None


def test_an_answer_in_pieces_of_a_few_bytes_is_the_whole_one(wire: FaultyWire, engine: RequestEngine) -> None:
    whole = engine.generate(QUESTION, limits=LIMITS)
    wire.faults = [WireFault("drip")]
    pieces = engine.generate(QUESTION, limits=LIMITS)
    assert (pieces.text, pieces.capture_error) == (whole.text, None)
    assert pieces.logprobs == pytest.approx(whole.logprobs, abs=1e-3)


def test_under_faults_each_caller_gets_its_own_whole_answer_or_an_error(address: str, wire: FaultyWire) -> None:
    prompts = [Prompt.chat(f"What is {number} plus 1?") for number in range(8)]
    draw = random.Random(0)
    with load_engine(wire.url, attempts=2, slots=8) as engine:
        guard = Guard(engine, scorer_for(engine), POLICY)
        right = [engine.generate(prompt, limits=LIMITS).text for prompt in prompts]
        kinds = (None, "reset", "end", "drip")
        wire.faults = [
            kind and WireFault(kind, draw.randrange(wire.bytes_of_last))  # type: ignore[arg-type, misc]
            for kind in draw.choices(kinds, k=96)
        ]

        def ask(number: int) -> tuple[int, Outcome]:
            return number % 8, guard.ask(prompts[number % 8], limits=LIMITS)

        with ThreadPoolExecutor(8) as pool:
            found = [*pool.map(ask, range(64))]
        counts = Counter(outcome.action for _, outcome in found)
        assert min(counts[Action.ACCEPT], counts[Action.ABSTAIN]) >= 5, counts
        for number, outcome in found:
            said = right[number] if outcome.accepted else "It could not be checked."
            assert outcome.answer == said
        until_idle(address)
        wire.faults = []
        assert [engine.generate(prompt, limits=LIMITS).text for prompt in prompts] == right


def test_a_server_that_ends_in_mid_answer_and_one_that_comes_back_with_another_model(tmp_path: Path) -> None:
    port = free_port()
    with llama_server(*OPTIONS, port=port) as found:
        engine = load_engine(f"{found}/v1", attempts=1)
        guard = Guard(engine, scorer_for(engine), POLICY)
        stream = engine.stream(QUESTION, limits=Limits(max_tokens=1500))
        next(stream)
    with pytest.raises(EngineError):
        list(stream)
    assert guard.ask(SUM, limits=Limits(max_tokens=200)).action is Action.ABSTAIN  # nobody is there
    with llama_server(*OPTIONS, port=port):
        assert guard.ask(SUM, limits=Limits(max_tokens=200)).accepted
    with llama_server(*OPTIONS[:-1], "other", port=port):
        outcome = guard.ask(SUM, limits=Limits(max_tokens=200))
        assert (outcome.action, outcome.answer) == (Action.ABSTAIN, "It could not be checked.")
        assert "another model" in str(outcome.attempts[-1].error)
    scorer = guard.scorer
    with (
        llama_server(*OPTIONS, model=write_tiny_gguf(tmp_path / "tiny.gguf"), port=port) as found,
        load_engine(f"{found}/v1") as other,
        pytest.raises(ScorerMismatchError, match="served: fitted on"),
    ):
        Guard(other, scorer, POLICY)
    engine.close()
