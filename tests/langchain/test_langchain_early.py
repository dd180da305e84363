"""Early decisions in LangChain: by a chat model with a policy of its own; chains and agents refuse them."""

from __future__ import annotations

import asyncio

import pytest
from langchain_core.output_parsers import StrOutputParser
from scripted import AnsweringEngine, confidence_scorer, with_early

from guard.errors import PolicyError, ScorerError
from guard.langchain import ChatGuard, GuardMiddleware, guarded, read_score
from guard.policy.policy import parse_policy
from guard.scoring.scorer import Scorer

LONG = "It is Lyon, as everybody knows"
POLICY = parse_policy(
    "version: 1\nname: mine\nrules: [{accept: {below: 0.99}}, {abstain: {text: No.}}]\n"
    "early: {above: 0.8, then: {abstain: {text: Stopped.}}}\n"
)


def chat(scorer: Scorer | None = None, *, decides: bool = True) -> ChatGuard:
    engine = AnsweringEngine(lambda prompt, number: (LONG, 0.9))
    chosen = {"policy": POLICY} if decides else {}
    return ChatGuard(
        model="scripted", engine=engine, scorer=scorer or with_early(confidence_scorer()), max_tokens=60, **chosen
    )


@pytest.mark.parametrize("in_a_loop", [False, True])
def test_a_chat_model_with_its_own_policy_stops_early(in_a_loop: bool) -> None:
    message = asyncio.run(chat().ainvoke("Why?")) if in_a_loop else chat().invoke("Why?")
    scored = read_score(message)
    assert scored is not None
    assert (message.content, scored.finish_reason, scored.tokens) == ("Stopped.", "early", 2)
    assert scored.p_wrong == pytest.approx(0.9, abs=1e-3)
    assert scored.decision is not None
    assert (scored.decision["action"], scored.decision["rule"]) == ("abstain", "early")


def test_its_stream_shows_nothing_of_the_stopped_answer() -> None:
    assert "".join(str(chunk.content) for chunk in chat().stream("Why?")) == "Stopped."


def test_it_refuses_a_scorer_without_stages() -> None:
    with pytest.raises(ScorerError, match="has no stages"):
        chat(confidence_scorer()).invoke("Why?")


def test_a_chain_refuses_the_policy_when_it_is_built() -> None:
    with pytest.raises(PolicyError, match="stops answers early, which a chain cannot"):
        guarded(chat(decides=False) | StrOutputParser(), policy=POLICY)


def test_an_agent_refuses_the_policy_when_it_is_built() -> None:
    with pytest.raises(PolicyError, match="stops answers early, which an agent cannot"):
        GuardMiddleware(POLICY)
