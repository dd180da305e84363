"""Answers of scored models that callbacks do not see: none of them gets out, and other calls are left alone."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
from langchain.agents.middleware import AgentMiddleware
from langchain_agents import Around, agent, ask, last
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_fixtures import policy
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.engines import witness
from guard.langchain import ChatGuard, RetractedError, guarded, trusted, unguarded
from guard.records import Prompt
from guard.runtime.guard import Guard

RULES = "[{accept: {below: 0.5}}, {abstain: {text: No.}}]"
ERROR = "on_error: {abstain: {text: Not accounted for.}}"
POLICY = policy(RULES, ERROR)

#: What the model says to each question, and how likely that is wrong.
ANSWERS = {"good": ("Paris", 0.05), "bad": ("Lyon", 0.9), "fed": ("Of Lyon", 0.05), "json": ('{"dose": 15}', 0.05)}


@pytest.fixture(name="pool")
def _pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    yield
    assert not witness._open
    assert not witness._announced


def model(**settings: Any) -> ChatGuard:
    def script(prompt: Prompt, _: int) -> tuple[str, float]:
        return ANSWERS[prompt.question.split()[0]]

    engine = AnsweringEngine(script)
    return ChatGuard(engine=engine, scorer=confidence_scorer(engine.model), system="", max_tokens=32, **settings)


# -- ways to hide a call ---------------------------------------------------------------------------


def in_a_pool(chat: ChatGuard, asked: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(chat.invoke, asked).result().text


def in_a_thread(chat: ChatGuard, asked: str) -> str:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(chat.invoke(asked).text))
    thread.start()
    thread.join()
    return said[0]


def in_a_loop_of_its_own(chat: ChatGuard, asked: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(chat.ainvoke(asked))).result().text


def streamed_in_a_pool(chat: ChatGuard, asked: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: "".join(chunk.text for chunk in chat.stream(asked))).result()


def first_chunk_in_a_pool(chat: ChatGuard, asked: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: next(iter(chat.stream(asked))).text).result()


def in_an_empty_context(chat: ChatGuard, asked: str) -> str:
    return contextvars.Context().run(chat.invoke, asked).text


def without_callbacks(chat: ChatGuard, asked: str) -> str:
    return chat.invoke(asked, config={"callbacks": []}).text


def in_a_chain_in_a_pool(chat: ChatGuard, asked: str) -> str:
    chain = RunnableLambda(lambda text: text) | chat | StrOutputParser()
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(chain.invoke, asked).result()


def by_the_engine(chat: ChatGuard, asked: str) -> str:
    return chat.engine.generate(Prompt.raw(asked)).text  # type: ignore[no-any-return]


def by_the_engine_in_a_pool(chat: ChatGuard, asked: str) -> str:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(by_the_engine, chat, asked).result()


HIDDEN: list[Callable[[ChatGuard, str], str]] = [
    in_a_pool,
    in_a_thread,
    in_a_loop_of_its_own,
    streamed_in_a_pool,
    first_chunk_in_a_pool,
    in_an_empty_context,
    without_callbacks,
    in_a_chain_in_a_pool,
    by_the_engine,
    by_the_engine_in_a_pool,
]

EVERY_HIDING = pytest.mark.parametrize("hide", HIDDEN, ids=lambda hide: hide.__name__)


def run(safe: Any, how: str, asked: Any = "good") -> Any:
    match how:
        case "invoke":
            return safe.invoke(asked)
        case "ainvoke":
            return asyncio.run(safe.ainvoke(asked))
        case "stream":
            return "".join(safe.stream(asked))

    async def collected() -> str:
        return "".join([chunk async for chunk in safe.astream(asked)])

    return asyncio.run(collected())


WAYS = pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])


# -- what is hidden does not get out ---------------------------------------------------------------


@WAYS
@EVERY_HIDING
def test_the_text_of_a_hidden_call_is_a_failure_of_scoring_beside_a_good_visible_one(hide: Any, how: str) -> None:
    chat = model()

    def answer(asked: str) -> str:
        chat.invoke("good")
        return str(hide(chat, "bad"))

    assert run(guarded(answer, policy=POLICY), how) == "Not accounted for."


@EVERY_HIDING
@pytest.mark.parametrize("scores", ["last", {"tag": "mine"}])
def test_it_is_one_whichever_calls_decide(hide: Any, scores: Any) -> None:
    chat = model()
    tagged = chat.with_config(tags=["mine"])

    def answer(asked: str) -> str:
        text = hide(chat, "bad")
        tagged.invoke("good")
        return str(text)

    assert guarded(answer, policy=POLICY, scores=scores).invoke("?") == "Not accounted for."


@EVERY_HIDING
def test_a_hidden_call_whose_text_is_changed_is_one(hide: Any) -> None:
    chat = model()

    def answer(asked: str) -> dict[str, Any]:
        chat.invoke("good")
        return {"city": str(hide(chat, "bad")).upper()}

    assert guarded(answer, policy=POLICY).invoke("?") == "Not accounted for."


@EVERY_HIDING
def test_a_hidden_draft_that_a_visible_call_reads_is_one(hide: Any) -> None:
    chat = model()

    def answer(asked: str) -> str:
        return chat.invoke("fed " + str(hide(chat, "bad"))).text

    assert guarded(answer, policy=POLICY).invoke("?") == "Not accounted for."


@WAYS
@EVERY_HIDING
def test_a_fallback_whose_call_is_hidden_is_not_trusted_even_where_it_is_declared_so(hide: Any, how: str) -> None:
    chat = model()
    rules = "[{accept: {below: 0.5}}, {fallback: {below: 1, to: other}}, {abstain: {text: No.}}]"
    for fallback in (lambda asked: hide(chat, "bad"), trusted(lambda asked: hide(chat, "bad"))):
        safe = guarded(chat | StrOutputParser(), policy=policy(rules, ERROR), fallbacks={"other": fallback})
        assert run(safe, how, "bad") == "Not accounted for."


@WAYS
def test_a_fallback_without_a_score_is_final_only_where_it_is_declared_to_be_trusted(how: str) -> None:
    rules = "[{accept: {below: 0.5}}, {fallback: {below: 1, to: book}}, {abstain: {text: No.}}]"
    for fallback, text in ((trusted(lambda asked: "Paris"), "Paris"), (lambda asked: "Paris", "Not accounted for.")):
        safe = guarded(model() | StrOutputParser(), policy=policy(rules, ERROR), fallbacks={"book": fallback})
        assert run(safe, how, "bad") == text


def test_an_error_that_may_quote_a_hidden_answer_is_not_raised() -> None:
    chat = model()

    def answer(asked: str) -> str:
        raise ValueError(f"cannot use {in_a_pool(chat, 'bad')}")

    assert guarded(answer, policy=POLICY).invoke("?") == "Not accounted for."


def test_a_live_stream_with_a_hidden_call_is_taken_back() -> None:
    chat = model()

    def answer(asked: str) -> str:
        chat.invoke("good")
        return in_a_pool(chat, "bad")

    safe = guarded(answer, policy=policy(RULES, ERROR, "streaming: live"))
    for how in ("stream", "astream"):
        with pytest.raises(RetractedError, match="no callback reported"):
            run(safe, how)


def test_in_shadow_mode_a_hidden_call_is_reported_and_nothing_changes() -> None:
    chat = model()

    def answer(asked: str) -> str:
        chat.invoke("good")
        return in_a_pool(chat, "bad")

    result = guarded(answer, policy=policy(RULES, ERROR, "mode: shadow"), return_outcome=True).invoke("?")
    assert result.output == "Lyon"
    assert result.outcome.would_be is not None
    assert "no callback reported" in result.outcome.would_be.reason


# -- what is accounted for passes ------------------------------------------------------------------


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_a_model_that_streams_in_the_chain_is_accounted_for(how: str) -> None:
    safe = guarded(model() | StrOutputParser(), policy=POLICY)
    assert run(safe, how, "good") == "Paris"
    assert run(safe, how, "bad") == "No."
    live = guarded(model() | StrOutputParser(), policy=policy(RULES, ERROR, "streaming: live"))
    assert run(live, how, "good") == "Paris"
    streaming = guarded(model(streaming=True) | StrOutputParser(), policy=POLICY)
    assert run(streaming, how, "good") == "Paris"
    assert run(streaming, how, "bad") == "No."


def test_a_hidden_stream_that_asks_the_same_as_a_visible_one_is_a_failure_of_scoring() -> None:
    chat = model()

    def answer(asked: str) -> dict[str, str]:
        texts = [chat.invoke("good").text, *(chunk.text for chunk in chat.stream("good"))]
        return {"answer": "".join(texts) + streamed_in_a_pool(chat, "good")}

    assert guarded(answer, policy=POLICY).invoke("?") == "Not accounted for."


@WAYS
def test_a_call_in_a_thread_that_gets_the_context_or_the_config_is_accounted_for(
    how: str, pool: ThreadPoolExecutor
) -> None:
    chat = model()

    def with_context(asked: str) -> str:
        return pool.submit(contextvars.copy_context().run, chat.invoke, asked).result().text

    def with_config(asked: str, config: Any) -> str:
        return pool.submit(chat.invoke, asked, config).result().text

    for answer in (with_context, with_config):
        safe = guarded(RunnableLambda(answer), policy=POLICY)
        assert run(safe, how, "good") == "Paris"
        assert run(safe, how, "bad") == "No."


@WAYS
def test_an_answer_that_a_policy_of_its_own_has_decided_on_is_accounted_for(how: str) -> None:
    chat = model()
    guard = Guard(chat.engine, confidence_scorer(chat.engine.model), POLICY)

    def answer(asked: str) -> str:
        chat.invoke("good")
        return str(guard.ask(asked).answer)

    assert run(guarded(answer, policy=POLICY), how, "good") == "Paris"


def test_calls_of_chains_that_run_at_once_are_not_mistaken_for_each_others() -> None:
    chat = model()
    both = threading.Barrier(2, timeout=20)

    def answer(asked: str) -> dict[str, str]:
        both.wait()
        text = chat.invoke(asked).text
        both.wait()
        return {"answer": text.upper()}

    safe = guarded(answer, policy=POLICY)
    for chain in (safe, RunnableParallel(one=safe, two=safe)):
        results = chain.batch(["good", "good"]) if chain is safe else [*chain.invoke("good").values()]
        assert results == [{"answer": "PARIS"}] * 2


def meanwhile(other: Callable[[], Any], chat: ChatGuard, asked: str) -> str:
    """A call of the model while another part of the program, with no context of this one's, asks it too."""
    outside.submit(other).result()
    return chat.invoke(asked).text


outside = ThreadPoolExecutor(1)


def test_an_unguarded_call_elsewhere_does_not_disturb_an_answer_that_is_the_scored_ones_word_for_word() -> None:
    chat = model()

    def elsewhere() -> Any:
        return chat.invoke("bad")

    text = guarded(lambda asked: meanwhile(elsewhere, chat, asked), policy=POLICY)
    assert text.invoke("good") == "Paris"
    state = guarded(lambda asked: {"question": asked, "answer": meanwhile(elsewhere, chat, asked)}, policy=POLICY)
    assert state.invoke("good") == {"question": "good", "answer": "Paris"}


@pytest.mark.parametrize(("declared", "given"), [(unguarded, {"dose": 15}), (nullcontext, "Not accounted for.")])
def test_where_the_output_cannot_be_compared_calls_elsewhere_have_to_say_that_they_are_apart(
    declared: Any, given: Any
) -> None:
    chat = model()

    def elsewhere() -> Any:
        with declared():
            return chat.invoke("bad")

    safe = guarded(lambda asked: json.loads(meanwhile(elsewhere, chat, asked)), policy=POLICY)
    assert safe.invoke("json") == given


def test_saying_so_inside_of_a_guarded_call_changes_nothing() -> None:
    chat = model()

    def answer(asked: str) -> str:
        chat.invoke("good")
        with unguarded():
            return chat.invoke("bad", config={"callbacks": []}).text

    assert guarded(answer, policy=POLICY).invoke("?") == "Not accounted for."


def test_a_model_with_a_policy_elsewhere_does_not_disturb() -> None:
    chat, deciding = model(), model(policy=POLICY)
    safe = guarded(lambda asked: json.loads(meanwhile(lambda: deciding.invoke("bad"), chat, asked)), policy=POLICY)
    assert safe.invoke("json") == {"dose": 15}


@pytest.mark.parametrize(
    ("declared", "asked", "given"),
    [
        (nullcontext, "good", "Paris"),
        (unguarded, "json", {"dose": 15}),
        (nullcontext, "json", "Not accounted for."),
    ],
)
async def test_an_unguarded_call_of_another_task_disturbs_only_where_the_output_cannot_be_compared(
    declared: Any, asked: str, given: Any
) -> None:
    chat, began, over = model(), asyncio.Event(), asyncio.Event()

    async def answer(asked: str) -> Any:
        began.set()
        await over.wait()
        text = (await chat.ainvoke(asked)).text
        return json.loads(text) if asked == "json" else text

    async def elsewhere() -> None:
        await began.wait()
        with declared():
            await chat.ainvoke("bad")
        over.set()

    safe = guarded(RunnableLambda(answer), policy=POLICY)
    result, _ = await asyncio.gather(safe.ainvoke(asked), elsewhere())
    assert result == given


async def test_the_answer_of_a_task_that_serves_a_queue_is_a_failure_of_scoring() -> None:
    chat, queue = model(), asyncio.Queue[tuple[str, asyncio.Future[str]]]()

    async def serve() -> None:
        while True:
            asked, done = await queue.get()
            done.set_result((await chat.ainvoke(asked)).text)

    async def answer(asked: str) -> str:
        await chat.ainvoke("good")
        done = asyncio.get_running_loop().create_future()
        await queue.put(("bad", done))
        return str(await done)

    server = asyncio.create_task(serve())
    assert await guarded(RunnableLambda(answer), policy=POLICY).ainvoke("?") == "Not accounted for."
    server.cancel()


def test_a_hidden_answer_that_is_one_of_the_choices_in_the_input_is_a_failure_of_scoring() -> None:
    chat = model()

    def answer(asked: dict[str, Any]) -> str:
        chat.invoke("good")
        return in_a_pool(chat, "bad")

    asked = {"question": "Which?", "choices": ["Lyon", "Paris"]}
    assert guarded(answer, policy=POLICY).invoke(asked) == "Not accounted for."


# -- agents ----------------------------------------------------------------------------------------


class Changes(AgentMiddleware[Any, Any]):
    """Changes what the model has said, between it and the guard, and leaves its score on it."""

    def __init__(self, change: Callable[[AIMessage], AIMessage]) -> None:
        super().__init__()
        self.change = change

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        response = handler(request)
        response.result[0] = self.change(response.result[0])
        return response


def test_an_answer_that_is_changed_between_the_model_and_the_guard_is_a_failure_of_scoring() -> None:
    changes: list[Callable[[AIMessage], AIMessage]] = [
        lambda message: message.model_copy(update={"content": "Lyon"}),
        lambda message: message.model_copy(
            update={"tool_calls": [{"name": "send", "args": {"amount": 1}, "id": "1", "type": "tool_call"}]}
        ),
        lambda message: said("Lyon", 0.05),
    ]
    for change in changes:
        step = agent_step(ScriptedChat(script=[said("Paris", 0.05)]), change)
        assert step == "Not accounted for."
    assert agent_step(ScriptedChat(script=[said("Paris", 0.05)]), lambda message: message) == "Paris"


def agent_step(chat: Any, change: Callable[[AIMessage], AIMessage]) -> str:
    """What a guarded call of an agent's model gives where a step inside of the guard changes the answer."""
    return last(ask(agent(chat, Around(Changes(change), policy(RULES, ERROR)), checkpointer=None), config={})).text


@pytest.mark.parametrize("hide", [without_callbacks, in_an_empty_context, by_the_engine, in_a_pool])
def test_an_agents_answer_that_a_hidden_call_gave_is_a_failure_of_scoring(hide: Any) -> None:
    chat = model()

    def replaced(message: AIMessage) -> AIMessage:
        return message.model_copy(update={"content": hide(chat, "bad")})

    assert agent_step(ScriptedChat(script=[said("Paris", 0.05)]), replaced) == "Not accounted for."


SHADOW = policy(RULES, ERROR, "mode: shadow")


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream"])
def test_an_answer_of_a_shadow_policy_inside_of_a_chain_is_not_decided_on(how: str) -> None:
    """Before, `Guard.ask` in shadow mode counted as a call that a policy had decided on, and its text was released."""
    chat = model()
    inner = Guard(chat.engine, confidence_scorer(chat.engine.model), SHADOW)
    chain = chat | RunnableLambda(lambda _: inner.ask("bad").answer)
    assert run(guarded(chain, policy=POLICY), how) == "Not accounted for."
    enforced = Guard(chat.engine, confidence_scorer(chat.engine.model), POLICY)
    chain = chat | RunnableLambda(lambda _: enforced.ask("good").answer)
    assert run(guarded(chain, policy=POLICY), how) == "Paris"


@pytest.mark.parametrize("mode", ["mode: enforce", "mode: shadow"])
def test_a_visible_model_with_a_policy_is_judged_by_its_score(mode: str) -> None:
    safe = guarded(model(policy=policy(RULES, ERROR, mode)) | StrOutputParser(), policy=POLICY)
    assert safe.invoke("good") == "Paris"
    assert safe.invoke("bad") != "Lyon"


def test_a_hidden_model_with_a_shadow_policy_is_not_accounted_for() -> None:
    hidden = model(policy=SHADOW)
    chain = model() | RunnableLambda(lambda _: in_a_pool(hidden, "bad"))
    assert guarded(chain, policy=POLICY).invoke("good") == "Not accounted for."


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_an_answer_that_a_chain_writes_into_its_own_input_is_no_part_of_the_question(how: str) -> None:
    chat = model()

    def chain(asked: dict[str, Any]) -> str:
        chat.invoke("good")
        asked["notes"].append(in_a_pool(chat, "bad"))
        return str(asked["notes"][-1])

    given: dict[str, Any] = {"q": "good", "notes": []}
    assert run(guarded(RunnableLambda(chain), policy=POLICY), how, given) == "Not accounted for."
    assert given == {"q": "good", "notes": []}
