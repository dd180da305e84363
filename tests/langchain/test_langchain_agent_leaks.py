"""Nothing of a rejected answer leaves a guarded agent: every channel, scripted answers and real ones."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain.agents import create_agent
from langchain_agents import (
    ABSTAIN,
    APPROVE,
    CHANNELS,
    PAUSE,
    RETRY,
    SECRET,
    Everything,
    agent,
    ask,
    look_up,
    policy,
    shown,
    thread,
)
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage, BaseMessage, BaseMessageChunk
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from langchain_fixtures import chat
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from langsmith import Client
from langsmith.run_helpers import tracing_context
from scripted_chat import ScriptedChat, said

from guard.errors import AbstainedError, EngineError
from guard.langchain import GuardMiddleware
from guard.langchain.testing import assert_nothing_leaks
from guard.langchain.tracing import DECISION_EVENT
from guard.policy.policy import Policy

REJECTED: dict[str, tuple[Policy, list[Any]]] = {
    "abstained": (ABSTAIN, [said(f"It is {SECRET} .", 0.9)]),
    "retried": (RETRY, [said(f"It is {SECRET} .", 0.3), said("Fine.", 0.1)]),
    "tool call": (ABSTAIN, [said("", 0.9, ("look_up", {"word": SECRET}))]),
    "fallback text": (policy("[fallback: {below: 0.95, text: See.}, abstain]"), [said(SECRET, 0.9)]),
    "not scored": (ABSTAIN, [said(f"It is {SECRET} .", None)]),
    "paused": (PAUSE, [said(f"It is {SECRET} .", 0.9)]),
    "paused tool call": (PAUSE, [said("", 0.9, ("look_up", {"word": SECRET}))]),
}


@pytest.mark.filterwarnings("ignore:astream_events version='v1'", "ignore:The v3 streaming protocol")
@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize("case", REJECTED)
def test_nothing_rejected_leaves_by_any_channel(case: str, channel: str) -> None:
    chosen, script = REJECTED[case]
    listener, collector, attached = Everything(), RunCollectorCallbackHandler(), Everything()
    model = ScriptedChat(script=script, callbacks=[attached])
    graph = agent(model, chosen, [look_up])
    config = thread(callbacks=[listener, collector])
    with get_usage_metadata_callback() as usage:
        parts = CHANNELS[channel](graph, {"messages": [("user", "hi")]}, config)
    assert model.callbacks == [attached]
    pauses = graph.get_state(thread()).interrupts
    traces = [run.model_dump() for run in collector.traced_runs]
    assert SECRET not in shown([*parts, *listener.heard, *attached.heard, *traces, *pauses], pauses=pauses)
    assert listener.heard
    assert len(usage.usage_metadata) == (case == "retried")  # of the answer that was released in the end
    if case == "paused":
        rejected = Command(resume={"decisions": [{"type": "reject"}]})
        after = CHANNELS[channel](graph, rejected, thread(callbacks=[listener]))
        assert SECRET not in shown([*after, *listener.heard, *pauses], pauses=pauses)


def streamed(parts: list[Any]) -> list[str]:
    """The texts of a message stream, by message."""
    texts: dict[Any, str] = {}
    for part in parts:
        message = part[-1][0] if isinstance(part[-1], tuple) else part[0]
        texts[message.id] = texts.get(message.id, "") + message.text
    return [text.strip() for text in texts.values()]


@pytest.mark.parametrize("channel", ["stream messages", "astream messages", "astream_events v2"])
def test_accepted_and_reviewed_answers_are_shown_once(channel: str) -> None:
    step = CHANNELS[channel]
    graph = agent(ScriptedChat(script=[said("All is well.", 0.1)]), ABSTAIN)
    accepted = step(graph, {"messages": [("user", "hi")]}, thread())
    graph = agent(ScriptedChat(script=[said("All is well.", 0.9)]), PAUSE)
    paused = step(graph, {"messages": [("user", "hi")]}, thread())
    pauses = graph.get_state(thread()).interrupts
    assert "All is well." not in shown([*paused, *pauses], pauses=pauses)
    approved = step(graph, Command(resume={"decisions": [APPROVE]}), thread())
    for parts in (accepted, approved):
        if channel == "astream_events v2":
            ends = [part for part in parts if part["event"] == "on_chat_model_end"]
            assert [part["data"]["output"].text.strip() for part in ends] == ["All is well."]
        else:
            assert streamed(parts) == ["All is well."]


@pytest.mark.parametrize("channel", ["stream messages", "astream messages"])
@pytest.mark.parametrize(("case", "text"), [("abstained", "No idea."), ("retried", "Fine."), ("fallback text", "See.")])
def test_message_streams_show_what_takes_an_answers_place(case: str, text: str, channel: str) -> None:
    chosen, script = REJECTED[case]
    parts = CHANNELS[channel](agent(ScriptedChat(script=script), chosen), {"messages": [("user", "hi")]}, thread())
    assert streamed(parts) == [text]


class Wire(requests.Session):
    """Takes down what a LangSmith client sends, and sends nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def request(self, method: str | bytes, url: str | bytes, *_: Any, **keywords: Any) -> requests.Response:
        self.sent.append(str(keywords.get("data") or keywords.get("json")))
        response = requests.Response()
        response.status_code, response._content = 200, b"{}"
        return response


@pytest.mark.parametrize("case", REJECTED)
def test_traces_that_are_switched_on_from_outside_are_sent_nothing_rejected(case: str) -> None:
    wire, (chosen, script) = Wire(), REJECTED[case]
    client = Client(api_url="http://localhost:1", api_key="x", session=wire, auto_batch_tracing=False)
    answers = iter(script)  # unlike a list it is not sent as one of the model's settings
    graph = agent(ScriptedChat(script=lambda _: next(answers)), chosen, [look_up])
    with tracing_context(enabled=True, client=client):
        ask(graph)
    assert wire.sent
    assert any("Fine." in text for text in wire.sent) == (case == "retried")
    for text in wire.sent:  # the request to the reviewer is an error of the step that pauses, to LangSmith
        assert SECRET not in text or "Interrupt(" in text


@pytest.mark.filterwarnings("ignore:astream_events version='v1'", "ignore:The v3 streaming protocol")
@pytest.mark.parametrize("streaming", [False, True])
def test_guards_own_leak_test_finds_nothing_in_an_agent(streaming: bool) -> None:
    def wrong(_: list[BaseMessage]) -> AIMessage:
        return said("The treasure lies under the old oak.", 0.9)

    graph = agent(ScriptedChat(script=wrong, disable_streaming=not streaming), ABSTAIN, checkpointer=None)
    seen = assert_nothing_leaks(graph, {"messages": [("user", "hi")]}, secrets=["The treasure lies under the old oak."])
    assert any("No idea." in text for texts in seen.texts.values() for text in texts)
    unguarded = create_agent(ScriptedChat(script=wrong), [])
    with pytest.raises(AssertionError, match="Rejected text left"):
        assert_nothing_leaks(
            unguarded, {"messages": [("user", "hi")]}, secrets=["The treasure lies under the old oak."]
        )


def test_shadow_mode_streams_as_without_a_guard() -> None:
    chosen, heard = policy("[abstain]", "mode: shadow"), Everything()
    model = ScriptedChat(script=[said("All is well.", 0.9)], callbacks=[heard])
    stream = agent(model, chosen, checkpointer=None).stream({"messages": [("user", "hi")]}, stream_mode="messages")
    assert [message.text for message, _ in stream if message.text] == ["All ", "is ", "well. "]
    assert sum("on_llm_new_token" in line for line in heard.heard) == 4  # the last has the score and no text


def test_listeners_hear_the_whole_of_an_accepted_call_and_nothing_of_a_failed_one() -> None:
    listener = Everything()
    answers = [said(SECRET, 0.3), said("Fine.", 0.1)]
    ask(agent(ScriptedChat(script=answers, callbacks=[listener]), RETRY))
    names = [line.split()[0] for line in listener.heard if re.match("on_(llm|chat)", line)]
    assert names == ["on_chat_model_start", "on_llm_end"]
    assert "Fine." in next(line for line in listener.heard if line.startswith("on_llm_end"))
    listener = Everything()
    ask(agent(ScriptedChat(script=[EngineError(SECRET)]), ABSTAIN), config=thread(callbacks=[listener]))
    assert not any(re.match("on_(llm|chat)", line) for line in listener.heard)


def test_the_decision_is_an_event_without_the_answer() -> None:
    async def collect() -> list[Any]:
        graph = agent(ScriptedChat(script=[said(SECRET, 0.3), said("Fine.", 0.1)]), RETRY)
        stream = graph.astream_events({"messages": [("user", "hi")]}, thread(), version="v2")
        return [event async for event in stream if event["event"] == "on_custom_event"]

    (event,) = asyncio.run(collect())
    assert event["name"] == DECISION_EVENT
    assert {key: event["data"][key] for key in ("action", "p_wrong", "attempts", "tokens", "source")} == {
        "action": "accept",
        "p_wrong": 0.1,
        "attempts": 2,
        "tokens": 24,
        "source": "model",
    }
    assert {"guard", "guard:accept"} <= set(event["tags"])


# -- with the embedded model -------------------------------------------------------------------

QUESTION = "Name the capital of France."


@pytest.fixture(scope="module")
def answer() -> str:
    """What the embedded model says when nobody guards it."""
    text = str(chat(max_tokens=8).invoke(QUESTION).text)
    assert len(text) > 10
    return text


@pytest.mark.model
@pytest.mark.filterwarnings("ignore:astream_events version='v1'", "ignore:The v3 streaming protocol")
@pytest.mark.parametrize("channel", ["invoke", "stream messages", "astream debug", "astream_events v2"])
@pytest.mark.parametrize("streaming", [False, True])
def test_a_real_answer_is_withheld_reviewed_and_shown(channel: str, streaming: bool, answer: str) -> None:
    listener = Everything()
    graph = agent(chat(max_tokens=8, streaming=streaming), policy("[escalate: {to: interrupt}]"))
    given = {"messages": [("user", QUESTION)]}
    parts = CHANNELS[channel](graph, given, thread(callbacks=[listener]))
    pauses = graph.get_state(thread()).interrupts
    assert pauses[0].value["action_requests"][0]["args"] == {"text": answer}
    for piece in (answer, answer[:10], answer[-10:]):
        assert piece not in shown([*parts, *listener.heard, *pauses], pauses=pauses)
    approved = CHANNELS[channel](graph, Command(resume={"decisions": [APPROVE]}), thread())
    assert answer in shown(approved)
    assert graph.get_state(thread()).values["messages"][-1].text == answer


#: What a policy can do with an answer that it does not accept.
UNACCEPTED = {
    "abstained": "[abstain: {text: No idea.}]",
    "raised": "[abstain: {raise: true}]",
    "another text": "[fallback: {below: 1, text: See the manual.}, abstain]",
    "another model": "[fallback: {below: 1, to: other}, abstain]",
    "retried": "[retry: {below: 1, times: 1, temperature: 1.5, seed: 7}, abstain: {text: No idea.}]",
    "handed over": "[escalate: {to: [desk], reply: Somebody will look.}]",
    "paused": "[escalate: {to: [interrupt], reply: Wait.}]",
}
PIECE = 12


@lru_cache(maxsize=1)
def secrets() -> frozenset[str]:
    """All pieces of what the embedded model says, at first and when it is asked again."""
    again = chat(max_tokens=8).bind(temperature=1.5, top_p=0.95, seed=7)
    answers = [str(model.invoke(QUESTION).content) for model in (chat(max_tokens=8), again)]
    assert len(set(answers)) == 2
    assert all(len(text) >= PIECE for text in answers)
    pieces = (text[at : at + PIECE] for text in answers for at in range(len(text) - PIECE + 1))
    return frozenset(piece for piece in pieces if piece not in QUESTION)


def said_by(graph: Any, channel: str, config: dict[str, Any]) -> list[Any]:
    """What comes out by a channel; an exception with all that it carries."""
    try:
        return CHANNELS[channel](graph, {"messages": [("user", QUESTION)]}, config)
    except AbstainedError as error:
        return [repr(error), vars(error), error.__cause__, error.__context__]


def tokens(value: Any) -> Iterator[str]:
    """The texts of all pieces of messages, which may hold a word in several."""
    if isinstance(value, BaseMessageChunk):
        yield str(value.text)
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from tokens(part)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:astream_events version='v1'", "ignore:The v3 streaming protocol")
@settings(max_examples=20, deadline=None)
@given(
    case=st.sampled_from(sorted(UNACCEPTED)),
    channel=st.sampled_from(sorted(CHANNELS)),
    streaming=st.booleans(),
    attached=st.booleans(),
)
def test_nothing_of_a_real_answer_leaves_whatever_the_policy_does(
    case: str, channel: str, streaming: bool, attached: bool
) -> None:
    cases: list[str] = []
    guarded = GuardMiddleware(
        policy(UNACCEPTED[case]),
        fallbacks={"other": chat(max_tokens=8)},
        handlers={"desk": lambda escalation: cases.append(escalation.answer)},
    )
    listener, own, collector = Everything(), Everything(), RunCollectorCallbackHandler()
    model = chat(max_tokens=8, streaming=streaming, callbacks=[own] if attached else None)
    graph = agent(model, guarded)
    parts = said_by(graph, channel, thread(callbacks=[listener, collector]))
    state = graph.get_state(thread())
    traces = [run.model_dump() for run in collector.traced_runs]
    everything = [*parts, *listener.heard, *own.heard, *traces, state.values["messages"], *state.interrupts]
    text = shown(everything, pauses=state.interrupts) + "".join(tokens(parts))
    assert [piece for piece in secrets() if piece in text] == []
    assert not any(line.startswith("on_llm_new_token") for line in (*listener.heard, *own.heard))
    assert any(line.startswith("on_custom_event") for line in listener.heard)
    assert (len(cases), len(state.interrupts)) == (case == "handed over", case == "paused")


@pytest.mark.model
@pytest.mark.filterwarnings("ignore:astream_events version='v1'", "ignore:The v3 streaming protocol")
@pytest.mark.parametrize("channel", [name for name in CHANNELS if "custom" not in name])  # it writes nothing itself
def test_the_same_search_finds_an_unguarded_answer_by_every_channel(channel: str) -> None:
    graph = create_agent(chat(max_tokens=8), [], checkpointer=InMemorySaver())
    parts = said_by(graph, channel, thread())
    text = shown(parts) + "".join(tokens(parts))
    assert any(piece in text for piece in secrets())
