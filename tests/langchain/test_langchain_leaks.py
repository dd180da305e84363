"""Nothing of a rejected answer leaves a guarded chain: real generations of the embedded model, every channel."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.callbacks import BaseCallbackHandler, get_usage_metadata_callback
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tracers.context import collect_runs, tracing_v2_enabled
from langchain_fixtures import ABSTAIN, RAISE, SILENT, chat, policy

from guard.errors import InputError
from guard.langchain import guarded
from guard.langchain.testing import CHANNELS, assert_nothing_leaks, available_channels

pytestmark = pytest.mark.model

QUESTION = {"question": "What is the capital of France, and why?"}
PROMPT = ChatPromptTemplate.from_messages([("human", "{question}")])

RETRIES = "[{retry: {below: 1, times: 2, temperature: 1.5, seed: 7}}, {abstain: {text: No.}}]"
FALLBACK = "[{fallback: {below: 1, to: other}}, abstain]"
TEXT = "[{fallback: {below: 1, text: Look it up.}}, abstain]"
ESCALATE = "[{escalate: {to: desk, reply: Somebody will look.}}]"


@lru_cache(maxsize=1)
def model() -> Any:
    return chat()


def answers_of(chain: Runnable[Any, Any]) -> list[str]:
    """What the models in a chain say, unguarded."""
    said = []

    class LeakListener(BaseCallbackHandler):
        def on_llm_end(self, response: Any, **_: Any) -> None:
            said.append(response.generations[0][0].text)

    chain.invoke(QUESTION, {"callbacks": [LeakListener()]})
    return said


def shapes() -> dict[str, Runnable[Any, Any]]:
    """Chains of the usual shapes."""
    twice = RunnableLambda(lambda asked: model().invoke(f"Shorten: {model().invoke(asked['question']).content}"))
    return {
        "model": PROMPT | model(),
        "text": PROMPT | model() | StrOutputParser(),
        "lambda": twice,
        "parallel": RunnableParallel(a=PROMPT | model(), b=PROMPT | model().bind(seed=3, temperature=1.0)),
        "assign": RunnablePassthrough.assign(answer=PROMPT | model() | StrOutputParser()),
        "tagged": (PROMPT | model().with_config(tags=["answer"]) | StrOutputParser()).with_config(run_name="named"),
    }


def secrets_of(chain: Runnable[Any, Any]) -> list[str]:
    secrets = answers_of(chain)
    assert all(len(secret) >= 12 for secret in secrets)
    return secrets


@pytest.mark.parametrize("shape", ["text", "lambda", "parallel"])
def test_nothing_leaks_from_any_shape_by_any_channel(shape: str) -> None:
    chain = shapes()[shape]
    # A sampled model's answer differs from run to run; its seed keeps it the same here.
    assert_nothing_leaks(guarded(chain, policy=policy(ABSTAIN)), QUESTION, secrets=secrets_of(chain))


@settings(max_examples=30, deadline=None)
@given(
    rules=st.sampled_from([ABSTAIN, SILENT, RAISE, TEXT, ESCALATE, RETRIES, FALLBACK]),
    shape=st.sampled_from(["model", "text", "assign", "tagged"]),
    channel=st.sampled_from(sorted(CHANNELS)),
    outcome=st.booleans(),
)
def test_nothing_leaks_whatever_the_policy_does(rules: str, shape: str, channel: str, outcome: bool) -> None:
    if channel not in available_channels():
        return
    chain = shapes()[shape]
    heard: list[str] = []

    safe: Any = guarded(
        chain,
        policy=policy(rules),
        fallbacks={"other": PROMPT | model()},
        handlers={"desk": lambda case: heard.append(case.answer)},
    )
    safe = safe.with_outcome() if outcome else safe
    secrets = [*_secrets(shape), *_resampled(shape)] if rules == RETRIES else _secrets(shape)
    assert_nothing_leaks(safe, QUESTION, secrets=secrets, channels=[channel])
    if rules == ESCALATE:
        assert heard, "the person must get the answer, which nobody else gets"


@lru_cache(maxsize=8)
def _secrets(shape: str) -> list[str]:
    return secrets_of(shapes()[shape])


@lru_cache(maxsize=1)
def _resampled(shape: str) -> list[str]:
    """What the two retries of `RETRIES` say."""
    samplings = [{"temperature": 1.5, "top_p": 0.95, "seed": seed} for seed in (7, 8)]
    return [(PROMPT | model().bind(**sampling)).invoke(QUESTION).content for sampling in samplings]


# -- the proof itself can fail -------------------------------------------------------------------


@pytest.mark.parametrize("channel", sorted(CHANNELS))
def test_an_unguarded_chain_is_caught_by_every_channel(channel: str) -> None:
    if channel not in available_channels():
        pytest.skip("needs langgraph")
    chain = shapes()["text"]
    with pytest.raises(AssertionError, match="Rejected text left"):
        assert_nothing_leaks(chain, QUESTION, secrets=_secrets("text"), channels=[channel])


@pytest.mark.parametrize("channel", ["invoke", "stream", "callbacks"])
def test_an_exception_that_tells_the_answer_is_caught(channel: str) -> None:
    def fail(answer: str) -> str:
        raise ValueError(f"cannot use {answer}")

    chain = shapes()["text"] | RunnableLambda(fail)
    with pytest.raises(AssertionError):
        assert_nothing_leaks(chain, QUESTION, secrets=_secrets("text"), channels=[channel])
    assert_nothing_leaks(guarded(chain, policy=policy(ABSTAIN)), QUESTION, secrets=_secrets("text"), channels=[channel])
    assert_nothing_leaks(guarded(chain, policy=policy(RAISE)), QUESTION, secrets=_secrets("text"), channels=[channel])


def test_what_could_not_be_found_is_refused() -> None:
    safe = guarded(shapes()["text"], policy=policy(ABSTAIN))
    for secrets in ([], [""], [QUESTION["question"]]):
        with pytest.raises(InputError, match="no secret"):
            assert_nothing_leaks(safe, QUESTION, secrets=secrets, channels=["invoke"])
    with pytest.raises(InputError, match="Did you mean 'stream'"):
        assert_nothing_leaks(safe, QUESTION, secrets=["x"], channels=["strem"])


# -- channels that LangChain opens by itself -----------------------------------------------------


def test_a_parser_that_quotes_the_answer_reports_nothing() -> None:
    chain = PROMPT | model() | JsonOutputParser()
    safe = guarded(chain, policy=policy(ABSTAIN))
    assert_nothing_leaks(safe, QUESTION, secrets=_secrets("text"))


@contextmanager
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """LangSmith's tracing switched on by environment; its client's posts are kept, not sent."""
    from langsmith import Client

    sent: list[str] = []
    for name in ("create_run", "update_run"):
        monkeypatch.setattr(Client, name, lambda _, *args, **kwargs: sent.append(repr((args, kwargs))))
    monkeypatch.setenv("LANGSMITH_TRACING", "true")
    monkeypatch.setenv("LANGSMITH_API_KEY", "none")
    _forget_environment()
    yield sent
    monkeypatch.delenv("LANGSMITH_TRACING")
    _forget_environment()


def _forget_environment() -> None:
    from langsmith import utils

    utils.get_env_var.cache_clear()


@pytest.mark.parametrize("mode", ["invoke", "ainvoke", "stream"])
def test_tracing_by_environment_receives_nothing(monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    chain = shapes()["text"]
    (secret,) = _secrets("text")
    with traced(monkeypatch) as sent:
        _run(chain, mode)
        assert secret in "".join(sent), "tracing must be on, or this proves nothing"
        sent.clear()
        _run(guarded(chain, policy=policy(ABSTAIN)), mode)
        assert sent
        assert secret not in "".join(sent)
        assert "I cannot say." in "".join(sent)


def test_tracing_for_a_block_of_code_receives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    safe = guarded(shapes()["text"], policy=policy(ABSTAIN))
    (secret,) = _secrets("text")
    with traced(monkeypatch) as sent:
        os.environ.pop("LANGSMITH_TRACING")
        _forget_environment()
        with tracing_v2_enabled():
            safe.invoke(QUESTION)
        assert sent
        assert secret not in "".join(sent)
        monkeypatch.setenv("LANGSMITH_TRACING", "true")


def test_listeners_for_a_block_of_code_hear_what_was_accepted_once() -> None:
    chain = shapes()["text"]
    with get_usage_metadata_callback() as plain:
        chain.invoke(QUESTION)
    with get_usage_metadata_callback() as accepted:
        guarded(chain, policy=policy("[accept]")).invoke(QUESTION)
    with get_usage_metadata_callback() as rejected:
        guarded(chain, policy=policy(ABSTAIN)).invoke(QUESTION)
    assert accepted.usage_metadata == plain.usage_metadata != {}
    assert rejected.usage_metadata == {}
    (secret,) = _secrets("text")
    with collect_runs() as runs:
        guarded(chain, policy=policy(ABSTAIN)).invoke(QUESTION)
    assert len(runs.traced_runs) == 1
    assert secret not in repr(runs.traced_runs[0].__dict__)


def _run(chain: Runnable[Any, Any], mode: str) -> None:
    if mode == "invoke":
        chain.invoke(QUESTION)
    elif mode == "stream":
        list(itertools.islice(chain.stream(QUESTION), 100))
    else:
        asyncio.run(chain.ainvoke(QUESTION))


# -- graphs ----------------------------------------------------------------------------------------

IN_MESSAGES = {"messages": [("user", QUESTION["question"])]}


def answering_graph() -> Any:
    """A graph whose node writes its answer to the stream, besides giving it."""
    graphs = pytest.importorskip("langgraph.graph")

    def answer(state: Any) -> Any:
        message = model().invoke(state["messages"])
        _writer()({"said": message.content})
        return {"messages": [message]}

    graph = graphs.StateGraph(graphs.MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(graphs.START, "answer")
    return graph.compile()


def _writer() -> Any:
    from langgraph.config import get_stream_writer

    return get_stream_writer()


def writing_lambda() -> Any:
    """A step that writes its answer to the stream of the graph around it."""

    def answer(asked: Any) -> Any:
        message = model().invoke(asked["messages"])
        with contextlib.suppress(RuntimeError, KeyError):  # outside of a graph there is no stream
            _writer()({"said": message.content})
        return message

    return RunnableLambda(answer)


@pytest.mark.parametrize("make", [answering_graph, writing_lambda])
def test_a_guarded_graph_keeps_its_answer_from_the_graph_around_it(make: Any) -> None:
    pytest.importorskip("langgraph")
    secrets = [model().invoke(QUESTION["question"]).content]
    channels = ["graph", "async graph", "astream_events v2"]
    assert_nothing_leaks(guarded(make(), policy=policy(ABSTAIN)), IN_MESSAGES, secrets=secrets, channels=channels)
    with pytest.raises(AssertionError, match="said"):
        assert_nothing_leaks(make(), IN_MESSAGES, secrets=secrets, channels=["graph"])


@pytest.mark.parametrize("make", [answering_graph, writing_lambda])
def test_what_was_accepted_reaches_the_stream_of_the_graph_around_it(make: Any) -> None:
    graphs = pytest.importorskip("langgraph.graph")

    def streamed(step: Any) -> list[Any]:
        graph = graphs.StateGraph(dict)
        graph.add_node("step", RunnableLambda(lambda _: IN_MESSAGES) | step | RunnableLambda(lambda _: {}))
        graph.add_edge(graphs.START, "step")
        stream = graph.compile().stream({}, stream_mode=["custom", "updates", "messages"], subgraphs=True)
        chunks = [(mode, chunk[0].content if mode == "messages" else chunk) for _, mode, chunk in stream]
        return [one for one in chunks if one[0] != "updates" or "answer" not in one[1]]

    plain, safe = streamed(make()), streamed(guarded(make(), policy=policy("[accept]")))
    assert {"custom", "messages"} <= dict(plain).keys()
    assert safe == plain
