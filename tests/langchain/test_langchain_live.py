"""Live streams: shown as they come, scored as they grow, and taken back when they do not hold."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_fixtures import ABSTAIN, ACCEPT, chat, embedded, policy, scorer_for
from scripted_chat import ScriptedChat, said

from guard.errors import AbstainedError
from guard.langchain import RetractedError, guarded
from guard.records import Action, Limits, Prompt
from guard.runtime.sources import score_generation
from guard.runtime.stream_monitor import TOKENS_BETWEEN, StreamMonitor
from guard.scores import Score
from guard.scoring.signature import SignatureObserver

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
ASKED = {"q": "Write about the sea."}
LIVE = "streaming: live"
HALF = "[{accept: {below: 0.5}}, {abstain: {text: No.}}]"


@lru_cache(maxsize=1)
def chain() -> Runnable[Any, Any]:
    return PROMPT | chat(max_tokens=3 * TOKENS_BETWEEN) | StrOutputParser()


class LiveListener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.events: list[str] = []
        self.tokens = 0

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append(f"{name} {data['action']}")

    def on_llm_new_token(self, *_: Any, **__: Any) -> None:
        self.tokens += 1


def streamed(safe: Runnable[Any, Any], how: str, config: Any = None) -> tuple[list[Any], Exception | None]:
    """The chunks that came, and the error that ended them."""
    chunks: list[Any] = []

    async def collect() -> None:
        async for chunk in safe.astream(ASKED, config):
            chunks.append(chunk)  # noqa: PERF401 - what came before an error counts

    try:
        if how == "astream":
            asyncio.run(collect())
        else:
            for chunk in safe.stream(ASKED, config):
                chunks.append(chunk)  # noqa: PERF402
    except (AbstainedError, ValueError) as error:
        return chunks, error
    return chunks, None


HOW = pytest.mark.parametrize("how", ["stream", "astream"])


@HOW
@pytest.mark.model
def test_an_answer_that_holds_streams_as_the_chain_does(how: str) -> None:
    listener = LiveListener()
    chunks, error = streamed(guarded(chain(), policy=policy(ACCEPT, LIVE)), how, {"callbacks": [listener]})
    assert error is None
    assert chunks == list(chain().stream(ASKED))
    assert listener.events == ["guard_decision accept"]
    assert listener.tokens == len(chunks)


@HOW
@pytest.mark.model
def test_an_answer_over_the_line_is_stopped_while_it_grows(how: str) -> None:
    listener = LiveListener()
    safe = guarded(chain(), policy=policy(ABSTAIN, LIVE))
    chunks, error = streamed(safe, how, {"callbacks": [listener]})
    assert isinstance(error, RetractedError)
    assert isinstance(error, AbstainedError)
    assert error.outcome is not None
    assert error.outcome.action is Action.ABSTAIN
    assert 0 < len(chunks) <= TOKENS_BETWEEN < len(list(chain().stream(ASKED)))
    assert listener.events == ["guard_decision abstain", "guard_retracted abstain"]
    # It was judged by what its first tokens are worth, as a whole answer of that length would be.
    observer = SignatureObserver()
    prompt = Prompt.chat(ASKED["q"])
    start = embedded().generate(prompt, limits=Limits(TOKENS_BETWEEN), observer=observer)
    expected = score_generation(start, observer, scorer_for(embedded()), prompt).p_wrong
    assert error.outcome.p_wrong == pytest.approx(expected, rel=1e-6)
    assert "".join(chunks) == start.text[: len("".join(chunks))]


@HOW
@pytest.mark.model
def test_the_engine_is_free_after_a_retraction(how: str) -> None:
    streamed(guarded(chain(), policy=policy(ABSTAIN, LIVE)), how)
    assert list(chain().stream(ASKED))
    assert embedded().generate(Prompt.chat("Hi"), limits=Limits(2, timeout_s=30)).text


@HOW
def test_what_turns_out_bad_at_its_end_is_taken_back(how: str) -> None:
    bad = PROMPT | ScriptedChat(script=[said("Rome is it", 0.9)]) | StrOutputParser()
    chunks, error = streamed(guarded(bad, policy=policy(HALF, LIVE)), how)
    assert "".join(chunks).strip() == "Rome is it"
    assert isinstance(error, RetractedError)
    assert error.outcome is not None
    assert (error.outcome.answer, error.outcome.p_wrong) == ("No.", 0.9)
    assert error.__cause__ is error.__context__ is None


@HOW
def test_nothing_is_tried_again_once_text_was_shown(how: str) -> None:
    rules = "[{accept: {below: 0.5}}, {retry: {below: 1}}, {abstain: {text: No.}}]"
    scripted = ScriptedChat(script=[said("Rome", 0.9), said("Paris", 0.1)])
    _, error = streamed(guarded(PROMPT | scripted, policy=policy(rules, LIVE)), how)
    assert isinstance(error, RetractedError)
    assert error.outcome is not None
    assert error.outcome.action is Action.ABSTAIN
    assert len(scripted.asked) == 1


@HOW
def test_a_person_gets_the_case_before_the_stream_ends(how: str) -> None:
    cases: list[Any] = []
    safe = guarded(
        PROMPT | ScriptedChat(script=[said("Rome", 0.9)]) | StrOutputParser(),
        policy=policy("[{escalate: {to: desk, reply: Wait.}}]", LIVE),
        handlers={"desk": cases.append},
    )
    _, error = streamed(safe, how)
    assert isinstance(error, RetractedError)
    assert error.outcome is not None
    assert (cases[0].answer.strip(), error.outcome.escalated_to) == ("Rome", ("desk",))


@HOW
def test_a_stream_that_fails_is_an_error_as_ever(how: str) -> None:
    def fail(text: str) -> str:
        raise ValueError("no use")

    good = PROMPT | ScriptedChat(script=[said("Paris", 0.1)]) | StrOutputParser() | fail
    _, error = streamed(guarded(good, policy=policy(HALF, LIVE)), how)
    assert isinstance(error, ValueError)


def test_other_ways_of_asking_hold_the_answer() -> None:
    listener = LiveListener()
    scripted = ScriptedChat(script=[said("Rome", 0.9)])
    safe = guarded(PROMPT | scripted | StrOutputParser(), policy=policy(HALF, LIVE))
    assert safe.invoke(ASKED, {"callbacks": [listener]}) == "No."
    assert listener.events == ["guard_decision abstain"]


@pytest.mark.parametrize("line", ["calls: last", "calls: {tag: answer}"])
@pytest.mark.model
def test_a_call_that_may_not_count_is_not_stopped(line: str) -> None:
    """Which call is the last, or has the tag, is known at the end; until then nothing is stopped."""
    chunks, error = streamed(guarded(chain(), policy=policy(ABSTAIN, LIVE, line)), "stream")
    assert len(chunks) == len(list(chain().stream(ASKED)))
    assert isinstance(error, RetractedError)


@pytest.mark.model
def test_running_scores_are_those_of_answers_that_end_there() -> None:
    engine, seen = embedded(), []
    scorer, observer = scorer_for(engine), SignatureObserver()

    def accepts(score: Score) -> bool:
        seen.append(score.p_wrong)
        return True

    on_token = StreamMonitor(accepts, every=3).for_answer(scorer, observer)
    prompt = Prompt.chat("Write about the sea.")
    list(engine.stream(prompt, limits=Limits(10), observer=observer, on_token=on_token))
    wanted = []
    for tokens in (3, 6, 9):
        own = SignatureObserver()
        answer = engine.generate(prompt, limits=Limits(tokens), observer=own)
        wanted.append(score_generation(answer, own, scorer, prompt).p_wrong)
    assert np.allclose(seen, wanted, rtol=1e-6)
