"""Spans in LangChain: in metadata, decided on by chains and agents, and never those of a rejected answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from langchain_agents import agent, last, thread
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from scripted import AnsweringEngine, confidence_scorer, with_spans

from guard.errors import PolicyError
from guard.langchain import ChatGuard, GuardMiddleware, RetractedError, guarded, read_score
from guard.langchain.metadata import score_metadata
from guard.langchain.testing import assert_nothing_leaks
from guard.policy.policy import Policy, parse_policy
from guard.records import Action, Escalation
from guard.scores import Score, Span

RULES = "version: 1\nname: mine\nrules: [{accept: {below: 0.99}}, {abstain: {text: No.}}]\n"
TEXT = "Norway:\n- Capital: Bergen\n- Founded: 1040"
RIGHT = TEXT.replace("Bergen", "Oslo")


def policy(then: str, more: str = "") -> Policy:
    return parse_policy(f"{RULES}spans: {{above: 0.6, then: {then}}}\n{more}")


def chat(*answers: str, unsure: str = "Bergen", **settings: Any) -> ChatGuard:
    texts = answers or (TEXT,)
    engine = AnsweringEngine(lambda prompt, number: (texts[min(number, len(texts) - 1)], 0.1))
    engine.unsure = (unsure,)
    scorer = settings.pop("scorer", with_spans(confidence_scorer()))
    return ChatGuard(model="scripted", engine=engine, scorer=scorer, max_tokens=200, **settings)


def spans_of(message: Any) -> tuple[Span, ...] | None:
    scored = read_score(message)
    assert scored is not None
    return scored.spans


@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_a_message_carries_the_spans_of_its_answer(how: str) -> None:
    model = chat()
    message = model.invoke("Facts?") if how == "invoke" else sum_of(model.stream("Facts?"))
    spans = spans_of(message)
    assert spans is not None
    assert [TEXT[span.start : span.end] for span in spans] == ["Norway:", "Capital: Bergen", "Founded: 1040"]
    assert [span.p_wrong > 0.6 for span in spans] == [False, True, False]
    json.dumps(message.response_metadata)  # as traces and checkpoints keep it


def sum_of(chunks: Any) -> Any:
    whole, *rest = chunks
    for chunk in rest:
        whole += chunk
    return whole


@pytest.mark.parametrize("spans", ["x", [{"p_wrong": 2}], [{"start": 0, "end": 1, "text": "a", "p_wrong": 0.1}, None]])
def test_spans_that_cannot_be_read_are_unknown_and_never_fewer(spans: Any) -> None:
    metadata = {**score_metadata(model="tiny", score=Score(0.1, True, 0.0)), "spans": spans}
    assert spans_of(AIMessage("a", response_metadata={"guard": metadata})) is None


# -- a chat model with a policy of its own -----------------------------------------------------


def test_a_model_cuts_and_its_metadata_has_the_spans_that_are_left() -> None:
    message = chat(policy=policy("cut")).invoke("Facts?")
    assert message.text == "Norway:\n- Founded: 1040"
    spans = spans_of(message)
    assert spans is not None
    assert [message.text[span.start : span.end] for span in spans] == ["Norway:", "Founded: 1040"]
    assert "Bergen" not in message.model_dump_json()


def test_a_rejected_answers_spans_are_in_no_metadata() -> None:
    message = chat(policy=policy("{escalate: {to: mine, reply: Wait.}}"), handlers={"mine": lambda case: None}).invoke(
        "?"
    )
    assert message.text == "Wait."
    assert spans_of(message) is None
    assert "Bergen" not in message.model_dump_json()


# -- chains ------------------------------------------------------------------------------------


def test_a_chain_marks_and_its_outcome_says_which() -> None:
    found = guarded(chat() | StrOutputParser(), policy=policy("mark"), return_outcome=True).invoke("Facts?")
    assert found.output == TEXT
    assert [span.text for span in found.outcome.attempts[0].decision.spans] == ["Capital: Bergen"]


def test_a_chain_is_run_again_and_judged_by_the_new_spans() -> None:
    assert guarded(chat(TEXT, RIGHT) | StrOutputParser(), policy=policy("retry")).invoke("Facts?") == RIGHT


def test_a_chain_whose_model_gives_no_spans_goes_to_on_error() -> None:
    model = chat(scorer=confidence_scorer())
    found = guarded(model | StrOutputParser(), policy=policy("mark"), return_outcome=True).invoke("?")
    assert found.outcome.action is Action.ABSTAIN
    assert "spans, which are not known" in found.outcome.reason


def test_nothing_of_a_rejected_answers_spans_leaves_a_chain() -> None:
    cases: list[Escalation] = []
    chosen = policy("{escalate: {to: mine, reply: Wait.}}")
    chain = guarded(chat() | StrOutputParser(), policy=chosen, handlers={"mine": cases.append})
    assert_nothing_leaks(chain, "Facts?", secrets=[TEXT], allowed=["Wait."])
    whole = guarded(chat(), policy=chosen, handlers={"mine": cases.append}, return_outcome=True).invoke("Facts?")
    assert "Bergen" not in f"{whole.output!r}{whole.outcome!r}"
    assert all("Bergen" in str(case.attempts[0].decision.spans) for case in cases)


def test_a_live_stream_is_retracted_at_its_end() -> None:
    chosen = policy("{escalate: {to: mine}}", "streaming: live")
    chain = guarded(chat() | StrOutputParser(), policy=chosen, handlers={"mine": lambda case: None})
    with pytest.raises(RetractedError, match="1 of 3 spans are above"):
        list(chain.stream("Facts?"))
    kept = guarded(chat(unsure="-") | StrOutputParser(), policy=chosen, handlers={"mine": lambda case: None})
    assert "".join(kept.stream("Facts?")) == TEXT


def test_a_chain_refuses_to_cut_when_it_is_built() -> None:
    with pytest.raises(PolicyError, match="cuts spans, which a chain cannot"):
        guarded(chat() | StrOutputParser(), policy=policy("cut"))
    guarded(chat() | StrOutputParser(), policy=policy("cut", "mode: shadow"))


# -- agents ------------------------------------------------------------------------------------


def test_an_agent_refuses_to_cut_when_it_is_built() -> None:
    with pytest.raises(PolicyError, match="cuts spans, which an agent cannot"):
        GuardMiddleware(policy("cut"))


def test_an_agent_retries_by_spans() -> None:
    graph = agent(chat(TEXT, RIGHT), policy("retry"))
    assert last(asyncio.run(graph.ainvoke({"messages": [("user", "?")]}, thread()))).content == RIGHT


def test_an_agents_reviewer_gets_the_spans_and_nobody_else() -> None:
    graph = agent(chat(), policy("{escalate: {to: interrupt, reply: Wait.}}"))
    shown = graph.invoke({"messages": [("user", "?")]}, thread())
    (pause,) = shown.pop("__interrupt__")
    assert [span["text"] for span in pause.value["guard"]["spans"]][1] == "Capital: Bergen"
    assert "Bergen" not in repr(shown)
