"""Rejected answers stay in no conversation history, checkpoint or memory, and retries do not read them."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_fixtures import policy
from langgraph.cache.memory import InMemoryCache
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_store
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.store.memory import InMemoryStore
from langgraph.types import CachePolicy, Command, interrupt
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.errors import InputError
from guard.langchain import ChatGuard, guarded, once
from guard.records import Prompt

pytestmark = pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")

SECRET = "Lyon, surely"
POLICY = policy("[{accept: {below: 0.5}}, {retry: {below: 0.97, times: 1}}, {abstain: {text: I cannot say.}}]")
PROMPT = ChatPromptTemplate.from_messages([MessagesPlaceholder("past"), ("human", "{q}")])
SESSION = {"configurable": {"session_id": "s"}}

Histories = dict[str, InMemoryChatMessageHistory]


class KeepingEngine(AnsweringEngine):
    """Keeps each prompt with all its messages."""

    def encode(self, prompt: Prompt) -> list[int]:
        self.prompts = [*getattr(self, "prompts", ()), prompt]
        return super().encode(prompt)


def model(p_wrong: float = 0.96, text: str = SECRET) -> ChatGuard:
    engine = KeepingEngine(lambda prompt, number: (text, p_wrong))
    return ChatGuard(engine=engine, scorer=confidence_scorer(engine.model), system="", max_tokens=32)


def with_history(chain: Any, store: Histories) -> Any:
    return RunnableWithMessageHistory(
        chain,
        lambda session_id: store.setdefault(session_id, InMemoryChatMessageHistory()),
        input_messages_key="q",
        history_messages_key="past",
    )


def prompts(chat: BaseChatModel) -> list[Prompt]:
    assert isinstance(chat, ChatGuard)
    return getattr(chat.engine, "prompts", [])


# -- a history inside of a guarded chain -------------------------------------------------------------


def _invoked(chain: Any, asked: Any) -> Any:
    return chain.invoke(asked)


def _wrapped(chain: Any) -> dict[str, Any]:
    def by_closure(asked: Any) -> Any:
        return chain.invoke(asked)

    alternatives = RunnablePassthrough().configurable_alternatives(ConfigurableField(id="which"), other=chain)
    return {
        "alone": chain,
        "in a sequence": RunnablePassthrough() | chain | StrOutputParser(),
        "in a parallel": RunnableParallel(answer=chain),
        "in an assignment": RunnablePassthrough.assign(answer=chain),
        "in a mapping": {"answer": chain},
        "bound": chain.with_config(tags=["x"]).bind(stop=["x"]),
        "with retries": chain.with_retry(),
        "as a fallback": RunnableLambda(str).with_fallbacks([chain]),
        "in a branch": RunnableBranch((lambda _: True, chain), RunnablePassthrough()),
        "mapped": chain.map(),
        "an alternative": alternatives,
        "once": once(chain),
        "in a function": by_closure,
        "in a partial function": partial(_invoked, chain),
        "in a node": StateGraph(dict).add_node("answer", by_closure).add_edge(START, "answer").compile(),
        "as a node": StateGraph(dict).add_node("answer", chain).add_edge(START, "answer").compile(),
    }


@pytest.mark.parametrize("where", _wrapped(with_history(PROMPT | model(), {})))
def test_a_history_inside_of_a_chain_is_refused_when_it_is_guarded_or_before_the_model_is_asked(where: str) -> None:
    store: Histories = {}
    chat = model()
    with pytest.raises(InputError, match=r"cannot contain a conversation history.*Put the history around"):
        guarded(_wrapped(with_history(PROMPT | chat, store))[where], policy=POLICY).invoke({"q": "?"}, SESSION)
    assert prompts(chat) == []
    assert [message for history in store.values() for message in history.messages] == []


def test_what_is_seen_in_a_chain_is_refused_when_it_is_guarded() -> None:
    chains = _wrapped(with_history(PROMPT | model(), {}))
    for chain in chains.values():
        with pytest.raises(InputError, match="cannot contain a conversation history"):
            guarded(chain, policy=POLICY)


def test_a_history_inside_of_a_fallback_is_refused() -> None:
    with pytest.raises(InputError, match="cannot contain a conversation history"):
        guarded(PROMPT | model(), policy=POLICY, fallbacks={"other": with_history(PROMPT | model(), {})})


class Holder:
    """Hides a chain where nothing can see it."""

    def __init__(self, chain: Any) -> None:
        self.chain = chain

    def __call__(self, asked: Any) -> Any:
        return self.chain.invoke(asked)


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_a_history_that_nothing_can_see_is_refused_before_the_model_is_asked(how: str) -> None:
    store: Histories = {}
    chat = model()
    holder = Holder(with_history(PROMPT | chat, store))
    safe = guarded(RunnableLambda(lambda asked: holder(asked)), policy=POLICY)
    with pytest.raises(InputError, match="cannot contain a conversation history"):
        _run(safe, how)
    assert prompts(chat) == []
    assert all(not history.messages for history in store.values())


def _run(safe: Runnable[Any, Any], how: str) -> Any:
    return _run_with(safe, how, {"q": "?"})


def _run_with(safe: Runnable[Any, Any], how: str, given: dict[str, Any]) -> Any:
    match how:
        case "invoke":
            return safe.invoke(given, SESSION)
        case "ainvoke":
            return asyncio.run(safe.ainvoke(given, SESSION))
        case "stream":
            return list(safe.stream(given, SESSION))

    async def collected() -> list[Any]:
        return [chunk async for chunk in safe.astream(given, SESSION)]

    return asyncio.run(collected())


# -- a history around a guarded chain ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_a_history_around_a_guarded_chain_keeps_what_the_caller_got(how: str) -> None:
    for answer, p_wrong, kept in (("Paris", 0.1, "Paris"), (SECRET, 0.96, "I cannot say.")):
        store: Histories = {}
        chat = model(p_wrong, answer)
        conversation = with_history(guarded(PROMPT | chat, policy=POLICY), store)
        for _ in range(2):
            _run(conversation, how)
        assert [message.text for message in store["s"].messages] == ["?", kept] * 2
        read = [turn["content"] for prompt in prompts(chat) for turn in prompt.messages or ()]
        assert kept in read, "the second question comes with the first and what was answered to it"
        assert SECRET not in "".join(map(str, read))


# -- graphs and older chains -------------------------------------------------------------------------


def graph(answer: Any, **options: Any) -> Any:
    return StateGraph(MessagesState).add_node("answer", answer).add_edge(START, "answer").compile(**options)


def answering(chat: Any) -> Any:
    return lambda state: {"messages": [chat.invoke(state["messages"])]}


SAVING = [
    {"checkpointer": InMemorySaver()}, {"checkpointer": True}, {"store": InMemoryStore()}, {"cache": InMemoryCache()}
]  # fmt: skip


@pytest.mark.parametrize("options", SAVING, ids=["checkpointer", "inherited checkpointer", "store", "cache"])
def test_a_graph_that_saves_itself_is_refused_at_any_depth(options: dict[str, Any]) -> None:
    saving = graph(answering(model()), **options)
    for chain in (saving, RunnablePassthrough() | saving, graph(saving), graph(lambda state: saving.invoke(state))):
        with pytest.raises(InputError, match=r"A graph with a (checkpointer|store|cache) cannot be guarded"):
            guarded(chain, policy=POLICY)
    guarded(graph(answering(model())), policy=POLICY)


def test_a_chain_with_a_memory_is_refused() -> None:
    class Memory:
        def save_context(self, inputs: Any, outputs: Any) -> None: ...

    class Conversation(Runnable[Any, Any]):
        memory = Memory()

        def invoke(self, input: Any, config: Any = None, **_: Any) -> Any:
            return input

    with pytest.raises(InputError, match="Conversation with a memory"):
        guarded(RunnablePassthrough() | Conversation(), policy=POLICY)


class KeepingSaver(InMemorySaver):
    """Keeps all that was ever saved, as text."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: list[str] = []

    def put(self, *given: Any, **named: Any) -> Any:
        self.saved.append(repr(given))
        return super().put(*given, **named)

    def put_writes(self, *given: Any, **named: Any) -> None:
        self.saved.append(repr(given))
        super().put_writes(*given, **named)


def around(inner: Any) -> tuple[Any, KeepingSaver]:
    """A graph with a checkpointer, whose node is a guarded graph."""
    saver = KeepingSaver()
    safe = guarded(inner, policy=POLICY, output=lambda outcome: {"messages": [("ai", outcome.answer)]})
    return graph(safe, checkpointer=saver), saver


THREAD: Any = {"configurable": {"thread_id": "1"}}


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_the_checkpointer_of_the_graph_around_saves_nothing_of_a_rejected_answer(how: str) -> None:
    model = ScriptedChat(script=lambda _: said(SECRET, 0.96))
    outer, saver = around(graph(answering(model)))
    given = {"messages": [("user", "?")]}
    result = outer.invoke(given, THREAD) if how == "invoke" else asyncio.run(outer.ainvoke(given, THREAD))
    assert result["messages"][-1].text == "I cannot say."
    assert saver.saved
    assert SECRET not in "".join(saver.saved)
    assert [len(asked) for asked, _ in model.asked] == [1, 1], "the retry begins from the question"


def test_an_interrupt_in_a_guarded_graph_is_resumed_by_the_graph_around_it() -> None:
    def answer(state: Any) -> Any:
        return {"messages": [ScriptedChat(script=[said(f"Paris, {interrupt('sure?')}", 0.1)]).invoke("?")]}

    outer, _ = around(graph(answer))
    (asked,) = outer.invoke({"messages": [("user", "?")]}, THREAD)["__interrupt__"]
    assert asked.value == "sure?"
    assert outer.invoke(Command(resume="yes"), THREAD)["messages"][-1].text == "Paris, yes"


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_a_chain_that_appends_to_its_input_leaves_nothing_there_and_retries_do_not_read_it(how: str) -> None:
    chat = model()

    def remembering(asked: dict[str, Any]) -> Any:
        answer = chat.invoke([*asked["past"], ("human", asked["q"])])
        asked["past"].append(("ai", answer.text))
        return answer

    given: dict[str, Any] = {"q": "?", "past": []}
    safe = guarded(RunnableLambda(remembering), policy=POLICY)
    _run_with(safe, how, given)
    assert given == {"q": "?", "past": []}
    assert [len(prompt.messages or ()) for prompt in prompts(chat)] == [1, 1]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_guarded_graph_reads_the_store_of_the_graph_around_it_and_cannot_write_there(how: str) -> None:
    store = InMemoryStore()
    store.put(("facts",), "city", {"name": "Paris"})

    def node(p_wrong: float, *, writes: bool) -> Any:
        def answer(state: Any) -> Any:
            known = get_store().get(("facts",), "city")
            said_by = ScriptedChat(script=lambda _: said(SECRET, p_wrong)).invoke(state["messages"])
            if writes:
                get_store().put(("facts",), "answer", {"text": said_by.text})
            return {"messages": [said_by, ("ai", known.value["name"] if known else "?")]}

        return answer

    def asked(p_wrong: float, *, writes: bool) -> Any:
        safe = guarded(
            graph(node(p_wrong, writes=writes)), policy=POLICY, output=lambda _: {"messages": [("ai", "No.")]}
        )
        outer = graph(safe, store=store)
        given = {"messages": [("user", "?")]}
        return outer.invoke(given) if how == "invoke" else asyncio.run(outer.ainvoke(given))

    assert asked(0.1, writes=False)["messages"][-1].text == "Paris"
    with pytest.raises(InputError, match="cannot write to the graph's store"):
        asked(0.1, writes=True)
    assert asked(0.96, writes=True)["messages"][-1].text == "No."
    assert [item.key for item in store.search(("facts",))] == ["city"]


def test_the_cache_of_the_graph_around_keeps_nothing_of_a_rejected_answer() -> None:
    cache = InMemoryCache()
    chat = ScriptedChat(script=lambda _: said(SECRET, 0.96))
    inner = StateGraph(MessagesState).add_node("answer", answering(chat), cache_policy=CachePolicy())
    safe = guarded(inner.add_edge(START, "answer").compile(), policy=POLICY, output=lambda _: {"messages": []})
    graph(safe, cache=cache).invoke({"messages": [("user", "?")]})
    assert len(chat.asked) == 2, "the retry asks the model again"
    assert SECRET not in repr(cache._cache)
