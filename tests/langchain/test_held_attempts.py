"""What a held attempt's listeners hear, and what its answer counts for, where something after the model fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.tools import tool
from langchain_fixtures import policy
from scripted_chat import ScriptedChat, said

from guard.errors import AbstainedError, InputError, PromptTooLongError
from guard.langchain import guarded
from guard.records import Action, Escalation
from guard.review.handlers import ReviewQueue
from guard.review.store import Store

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
ASKED = {"q": "?"}
SECRET = "BADWORD"
HALF = "[{accept: {below: 0.5}}, {abstain: {text: I cannot say.}}]"
HOW = pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])


def run(safe: Runnable[Any, Any], how: str, config: Any = None) -> list[Any]:
    """The output in the chunks in which it comes."""
    if how == "invoke":
        return [safe.invoke(ASKED, config)]
    if how == "ainvoke":
        return [asyncio.run(safe.ainvoke(ASKED, config))]
    if how == "stream":
        return list(safe.stream(ASKED, config))

    async def collected() -> list[Any]:
        return [chunk async for chunk in safe.astream(ASKED, config)]

    return asyncio.run(collected())


class Inside(BaseCallbackHandler):
    """Keeps what is heard of the runs inside the guarded one: answers, errors and inputs of steps."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def _keep(self, parent: Any, *told: Any) -> None:
        if parent is not None:
            self.heard += map(str, told)

    def on_llm_end(self, response: Any, **keywords: Any) -> None:
        self._keep(keywords["parent_run_id"], response)

    def on_chain_start(self, serialized: Any, inputs: Any, **keywords: Any) -> None:
        self._keep(keywords["parent_run_id"], inputs)

    def on_chain_error(self, error: BaseException, **keywords: Any) -> None:
        self._keep(keywords["parent_run_id"], error)


def failing(error: Callable[[str], Exception], p_wrong: float) -> Runnable[Any, Any]:
    """A chain whose last step fails and quotes the answer."""

    def fail(answer: Any) -> Any:
        raise error(f"cannot use {answer}")

    return PROMPT | ScriptedChat(script=[said(SECRET, p_wrong)]) | StrOutputParser() | RunnableLambda(fail)


CALLERS = pytest.mark.parametrize("error", [InputError, PromptTooLongError])


@HOW
@CALLERS
def test_a_callers_error_after_an_answer_is_reported_only_where_the_answer_is(how: str, error: Any) -> None:
    listener = Inside()
    given = run(guarded(failing(error, 0.9), policy=policy(HALF)), how, {"callbacks": [listener]})
    assert given == ["I cannot say."]
    assert listener.heard == []
    with pytest.raises(error, match=SECRET):
        run(guarded(failing(error, 0.1), policy=policy(HALF)), how, {"callbacks": [listener]})
    assert any(SECRET in told for told in listener.heard), "what was accepted is heard, its error too"


@HOW
def test_events_and_outcome_do_not_quote_an_error_after_the_answer(how: str) -> None:
    events: list[Any] = []

    class Events(BaseCallbackHandler):
        def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
            events.append(data)

    safe = guarded(failing(InputError, 0.9), policy=policy(HALF), return_outcome=True)
    (given,) = run(safe, how, {"callbacks": [Events()]})
    assert given.outcome.action is Action.ABSTAIN
    assert SECRET not in f"{events} {given}"
    assert len(events) == 1


def nested() -> Runnable[Any, Any]:
    """A chain whose inner guard raises after the model in front of it has answered."""
    inner = guarded(
        RunnableLambda(lambda text: text) | ScriptedChat(script=[said(SECRET, 0.9)]),
        policy=policy("[{accept: {below: 0.5}}, {abstain: {raise: true}}]"),
    )
    return PROMPT | ScriptedChat(script=[said("fine", 0.1)]) | StrOutputParser() | inner


@HOW
def test_the_recording_is_dropped_where_an_inner_guard_raises(how: str) -> None:
    listener = Inside()
    with pytest.raises(AbstainedError):
        run(guarded(nested(), policy=policy(HALF)), how, {"callbacks": [listener]})
    assert listener.heard == [], "a model had answered, and nobody decided that it may be heard"


@HOW
def test_the_recording_is_played_where_no_model_had_answered(how: str) -> None:
    def fail(asked: Any) -> Any:
        raise InputError("no such patient")

    listener = Inside()
    with pytest.raises(InputError, match="no such patient"):
        run(guarded(RunnableLambda(fail) | StrOutputParser(), policy=policy(HALF)), how, {"callbacks": [listener]})
    assert any("no such patient" in told for told in listener.heard)


# -- every answer of a call counts ---------------------------------------------------------------


class Several(BaseChatModel):
    """Gives several generations for one question."""

    p_wrong: tuple[float, ...]

    @property
    def _llm_type(self) -> str:
        return "several"

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        answers = [said(f"{SECRET} {number}", one) for number, one in enumerate(self.p_wrong)]
        return ChatResult(generations=[ChatGeneration(message=answer) for answer in answers])


@pytest.mark.parametrize(("p_wrong", "given"), [((0.1, 0.9), None), ((0.9, 0.1), None), ((0.1, 0.2), "0 1")])
@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_each_of_several_generations_is_decided_on(p_wrong: tuple[float, ...], given: str | None, how: str) -> None:
    model = Several(p_wrong=p_wrong)

    def both(asked: Any, config: Any) -> str:
        (generations,) = model.generate_prompt([PROMPT.invoke(asked)], callbacks=config["callbacks"]).generations
        return " ".join(generation.text[-1] for generation in generations)

    safe = guarded(RunnableLambda(both), policy=policy("[{accept: {below: 0.5}}, abstain]"))
    assert run(safe, how) == [given]


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_an_answer_that_is_still_being_made_counts_as_failed(how: str) -> None:
    """The chain takes the first piece of a stream and keeps the stream open."""
    model, kept = ScriptedChat(script=lambda messages: said(f"{SECRET} is nice", 0.1)), list[Any]()

    def first_piece(asked: Any) -> str:
        kept.append(model.stream("x"))
        return str(next(kept[-1]).content)

    (given,) = run(guarded(RunnableLambda(first_piece), policy=policy("[accept]"), return_outcome=True), how)
    assert (given.output, given.outcome.action) == (None, Action.ABSTAIN)
    assert "abandoned" in given.outcome.reason


# -- what listeners hear when it is accepted -----------------------------------------------------


@tool
def look_up(word: str) -> str:
    """Look a word up."""
    return f"{word}: found"


def everything(answer: AIMessage) -> str:
    """A step that makes each other kind of run: a tool and an event of its own."""
    from langchain_core.callbacks import dispatch_custom_event

    dispatch_custom_event("own", {"text": answer.text})
    return str(look_up.invoke({"word": answer.text}))


async def aeverything(answer: AIMessage) -> str:
    from langchain_core.callbacks import adispatch_custom_event

    await adispatch_custom_event("own", {"text": answer.text})
    return str(await look_up.ainvoke({"word": answer.text}))


def chain(p_wrong: float = 0.1) -> Runnable[Any, Any]:
    step = RunnableLambda(everything, aeverything, name="last step")
    return PROMPT | ScriptedChat(script=lambda messages: said("Paris is it", p_wrong)) | step


NAMES = ("chat_model_start", "llm_new_token", "llm_end", "chain_start", "chain_end", "tool_start", "tool_end")


class Names(BaseCallbackHandler):
    """Keeps the names of what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not (name.startswith("on_") and name[3:] in (*NAMES, "custom_event")):
            return super().__getattribute__(name)
        return lambda *_, **__: self.heard.append(name)


class AsyncNames(AsyncCallbackHandler):
    """The same, as a coroutine."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def on_chat_model_start(self, *_: Any, **__: Any) -> None:
        self.heard.append("on_chat_model_start")

    async def on_llm_end(self, *_: Any, **__: Any) -> None:
        self.heard.append("on_llm_end")

    async def on_tool_end(self, *_: Any, **__: Any) -> None:
        self.heard.append("on_tool_end")


@HOW
def test_listeners_hear_the_runs_of_an_accepted_attempt_in_the_chains_own_order(how: str) -> None:
    held, plain = Names(), Names()
    assert "".join(map(str, run(guarded(chain(), policy=policy(HALF)), how, {"callbacks": [held]}))).startswith("Paris")
    run(chain(), how, {"callbacks": [plain]})
    first, *inside, decision, end = held.heard
    assert (first, decision, end) == ("on_chain_start", "on_custom_event", "on_chain_end"), "the guarded run's own"
    assert inside == plain.heard
    assert {"on_tool_end", "on_custom_event", "on_llm_end"} <= {*inside}


@HOW
def test_coroutine_listeners_hear_an_accepted_attempt_and_nothing_of_a_rejected_one(how: str) -> None:
    listener = AsyncNames()
    run(guarded(chain(), policy=policy(HALF)), how, {"callbacks": [listener]})
    assert listener.heard == ["on_chat_model_start", "on_llm_end", "on_tool_end"]
    rejected = AsyncNames()
    run(guarded(chain(0.9), policy=policy(HALF)), how, {"callbacks": [rejected]})
    assert rejected.heard == []


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("p_wrong", [0.1, 0.9])
def test_streams_of_events_show_the_chunks_of_an_accepted_attempt_only(version: Any, p_wrong: float) -> None:
    async def events(runnable: Runnable[Any, Any]) -> list[Any]:
        return [event async for event in runnable.astream_events(ASKED, version=version)]

    def pieces(found: list[Any]) -> list[str]:
        return [event["data"]["chunk"].text for event in found if event["event"] == "on_chat_model_stream"]

    held = asyncio.run(events(guarded(chain(p_wrong), policy=policy(HALF))))
    plain = pieces(asyncio.run(events(chain(p_wrong))))
    assert "".join(plain).strip() == "Paris is it"
    assert pieces(held) == (plain if p_wrong == 0.1 else [])
    assert ("Paris" in str(held)) == (p_wrong == 0.1)


# -- handlers of one's own -----------------------------------------------------------------------


@HOW
def test_a_chains_own_review_handler_is_not_replaced(how: str, tmp_path: Any) -> None:
    cases: list[Escalation] = []
    safe = guarded(
        PROMPT | ScriptedChat(script=[said(SECRET, 0.9)]) | StrOutputParser(),
        policy=policy("[{escalate: {to: [review], reply: Wait.}}]"),
        handlers={"review": cases.append},
        store=tmp_path / "reviews.db",
    )
    assert run(safe, how) == ["Wait."]
    assert [case.answer.strip() for case in cases if case.answer] == [SECRET]
    assert not (tmp_path / "reviews.db").exists()


def test_without_ones_own_the_review_queue_takes_the_case(tmp_path: Any) -> None:
    safe = guarded(
        PROMPT | ScriptedChat(script=[said(SECRET, 0.9)]),
        policy=policy("[{escalate: {to: [review], reply: Wait.}}]"),
        store=tmp_path / "reviews.db",
    )
    assert isinstance(safe.rules().handlers()["review"], ReviewQueue)
    safe.invoke(ASKED)
    with Store.open(tmp_path / "reviews.db") as store:
        assert [review.answer for review in store.reviews()] == [SECRET]
