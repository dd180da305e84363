"""Thoughts in LangChain: beside the answer where it is let out, nowhere where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from scripted import AnsweringEngine, confidence_scorer, scripted_model

from guard.langchain import ChatGuard, guarded
from guard.langchain.messages import chat_turns
from guard.policy.policy import Policy, parse_policy
from guard.records import Limits
from guard.review.store import Store
from guard.runtime.guard import Guard

TEXT = "<think>SECRET thought: Lyon? No.</think>\n\nParis"
RULES = "[{accept: {below: 0.5}}, {abstain: {text: I cannot say.}}]"


def policy(rules: str = RULES, more: str = "") -> Policy:
    return parse_policy(f"version: 1\nname: test\nrules: {rules}\non_error: {{abstain: {{text: failed}}}}\n{more}")


def model(p_wrong: float = 0.05, text: str = TEXT, **settings: Any) -> ChatGuard:
    engine = AnsweringEngine(lambda prompt, number: (text, p_wrong), model=scripted_model(context_tokens=4000))
    return ChatGuard(engine=engine, scorer=confidence_scorer(engine.model), max_tokens=300, **settings)


def joined(chunks: Any) -> AIMessageChunk:
    whole = AIMessageChunk("")
    for chunk in chunks:
        whole += chunk
    return whole


@pytest.mark.parametrize("settings", [{}, {"policy": policy()}], ids=["scores", "decides"])
def test_the_thought_is_beside_the_content_invoked_and_streamed(settings: dict[str, Any]) -> None:
    for message in (model(**settings).invoke("q"), joined(model(**settings).stream("q"))):
        assert message.content == "Paris"
        assert message.additional_kwargs["reasoning_content"] == "SECRET thought: Lyon? No."


def test_no_piece_of_a_stream_shows_the_thought() -> None:
    assert all("SECRET" not in str(chunk.content) for chunk in model().stream("q"))
    assert "".join((model() | StrOutputParser()).stream("q")) == "Paris"


@pytest.mark.parametrize("how", ["inside", "around"])
@pytest.mark.parametrize("streamed", [False, True])
def test_the_thought_of_a_rejected_answer_goes_nowhere(how: str, streamed: bool) -> None:
    chain: Any = model(0.9, policy=policy()) if how == "inside" else guarded(model(0.9), policy=policy())
    given = joined(chain.stream("q")) if streamed else chain.invoke("q")
    assert given.content == "I cannot say."
    assert "SECRET" not in given.model_dump_json()


async def test_no_event_of_a_held_stream_has_the_thought_of_a_rejected_answer() -> None:
    events = [event async for event in guarded(model(0.9), policy=policy()).astream_events("q", version="v2")]
    assert events
    assert all("SECRET" not in repr(event) for event in events)


def test_a_live_stream_is_watched_over_the_answer_alone() -> None:
    text = f"<think>{'x' * 40}</think>{'y' * 40}"
    chain = guarded(model(0.05, text), policy=policy(more="streaming: live\n"))
    assert joined(chain.stream("q")).content == "y" * 40


def test_the_review_queue_keeps_thoughts(tmp_path: Path) -> None:
    engine = AnsweringEngine(lambda prompt, number: (TEXT, 0.9), model=scripted_model(context_tokens=4000))
    with Store.open(tmp_path / "reviews.db") as store:
        rules = policy("[{accept: {below: 0.5}}, {escalate: {to: [review]}}]")
        guard = Guard(engine, confidence_scorer(engine.model), rules, store=store)
        guard.ask("Capital?", limits=Limits(max_tokens=300))
        (review,) = store.reviews()
    assert (review.answer, review.attempts[0]["reasoning"]) == ("Paris", "SECRET thought: Lyon? No.")


def test_a_models_own_thought_goes_back_to_its_template() -> None:
    turns = chat_turns(
        [
            HumanMessage("1+1?"),
            AIMessage("", additional_kwargs={"reasoning_content": "I add."}),
            ToolMessage("2", tool_call_id="1"),
        ]
    )
    assert turns[1] == {"role": "assistant", "content": "", "reasoning_content": "I add."}
