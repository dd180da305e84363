"""What a guarded chain does with its chain's output, by policy; scores and answers are scripted."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from collections.abc import Callable
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField, Runnable, RunnableLambda, RunnablePassthrough
from langchain_fixtures import ABSTAIN, ACCEPT, RAISE, SILENT, policy
from scripted_chat import ScriptedChat, said

from guard.errors import (
    AbstainedError,
    EngineError,
    EscalationError,
    InputError,
    PolicyError,
    PromptTooLongError,
)
from guard.langchain import GuardedOutcome, GuardedRunnable, guarded, read_score, trusted
from guard.records import Action, Escalation
from guard.review.store import Store

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
HALF = "[{accept: {below: 0.5}}, {abstain: {text: I cannot say.}}]"
RETRY = "[{accept: {below: 0.5}}, {retry: {below: 1, times: 2, seed: 5}}, {abstain: {text: No.}}]"
ASKED = {"q": "?"}


def scripted(*answers: Any) -> ScriptedChat:
    return ScriptedChat(script=[*answers])


def text_chain(*answers: Any) -> Runnable[Any, Any]:
    return PROMPT | scripted(*answers) | StrOutputParser()


def run(safe: Runnable[Any, Any], how: str, asked: Any = ASKED, config: Any = None) -> Any:
    """Run in one of the ways there are; what is streamed is put together."""
    if how == "invoke":
        return safe.invoke(asked, config)
    if how == "ainvoke":
        return asyncio.run(safe.ainvoke(asked, config))
    if how == "batch":
        return safe.batch([asked], config)[0]
    if how == "abatch":
        return asyncio.run(safe.abatch([asked], config))[0]
    if how == "stream":
        return _sum([*safe.stream(asked, config)])

    async def collected() -> Any:
        return _sum([chunk async for chunk in safe.astream(asked, config)])

    return asyncio.run(collected())


def _sum(chunks: list[Any]) -> Any:
    whole = chunks[0] if chunks else None
    for chunk in chunks[1:]:
        whole = whole + chunk
    return whole


WAYS = pytest.mark.parametrize("how", ["invoke", "ainvoke", "batch", "abatch", "stream", "astream"])


class EventListener(BaseCallbackHandler):
    """Keeps custom events and the names of what else it hears."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ended: list[str] = []

    def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
        self.events.append((name, data))

    def on_llm_end(self, response: Any, **_: Any) -> None:
        self.ended.append(response.generations[0][0].text)


# -- each action ---------------------------------------------------------------------------------


@WAYS
def test_an_accepted_answer_is_the_chains_own(how: str) -> None:
    assert run(guarded(text_chain(said("Paris", 0.1)), policy=policy(HALF)), how).strip() == "Paris"


@WAYS
def test_an_answer_over_the_line_is_replaced_by_the_policys_text(how: str) -> None:
    assert run(guarded(text_chain(said("Rome", 0.9)), policy=policy(HALF)), how) == "I cannot say."


@WAYS
def test_an_abstention_without_text_is_nothing(how: str) -> None:
    assert run(guarded(text_chain(said("Rome", 0.9)), policy=policy(SILENT)), how) is None


@WAYS
def test_an_abstention_may_raise(how: str) -> None:
    with pytest.raises(AbstainedError) as caught:
        run(guarded(text_chain(said("Rome", 0.9)), policy=policy(RAISE)), how)
    assert caught.value.__cause__ is caught.value.__context__ is None


@WAYS
def test_a_retry_runs_the_chain_again(how: str) -> None:
    safe = guarded(text_chain(said("Rome", 0.9), said("Oslo", 0.8), said("Paris", 0.2)), policy=policy(RETRY))
    assert run(safe, how).strip() == "Paris"


@WAYS
def test_retries_end(how: str) -> None:
    safe = guarded(text_chain(*[said(f"no {n}", 0.9) for n in range(3)]), policy=policy(RETRY))
    assert run(safe, how) == "No."


@WAYS
def test_a_fallback_that_is_not_scored_is_final(how: str) -> None:
    rules = "[{accept: {below: 0.5}}, {fallback: {below: 1, to: book}}, abstain]"
    safe = guarded(
        text_chain(said("Rome", 0.9)), policy=policy(rules), fallbacks={"book": trusted(lambda asked: asked["q"] + "!")}
    )
    assert run(safe, how) == "?!"
    outcome = safe.with_outcome().runnable and guarded(
        text_chain(said("Rome", 0.9)),
        policy=policy(rules),
        fallbacks={"book": trusted(lambda _: "Paris")},
        return_outcome=True,
    ).invoke(ASKED)
    assert outcome.outcome.action is Action.FALLBACK
    assert [attempt.source for attempt in outcome.outcome.attempts] == ["model", "book"]


@WAYS
@pytest.mark.parametrize(("p_wrong", "given"), [(0.2, "Paris"), (0.8, None)])
def test_a_fallback_that_is_scored_is_decided_on(how: str, p_wrong: float, given: str | None) -> None:
    rules = "[{accept: {below: 0.5}}, {fallback: {below: 1, to: bigger}}, abstain]"
    bigger = text_chain(said("Paris", p_wrong))
    answer = run(guarded(text_chain(said("Rome", 0.9)), policy=policy(rules), fallbacks={"bigger": bigger}), how)
    assert (answer.strip() if answer else answer) == given


@WAYS
def test_an_escalation_gives_people_what_the_caller_does_not_get(how: str) -> None:
    cases: list[Escalation] = []
    safe = guarded(
        text_chain(said("Rome", 0.9)),
        policy=policy("[{escalate: {to: desk, reply: Wait.}}]", name="desk"),
        handlers={"desk": cases.append},
    )
    assert run(safe, how, config={"metadata": {"user": "ann", "client": object()}}) == "Wait."
    (case,) = cases
    assert (case.answer or "").strip() == "Rome"
    assert (case.question, case.p_wrong, case.policy, case.model) == ("?", 0.9, "desk", "scripted")
    assert case.metadata["user"] == "ann"
    assert "client" not in case.metadata
    assert case.prompt.messages == ({"role": "user", "content": "?"},)


@WAYS
def test_a_case_that_nobody_takes_is_an_error(how: str) -> None:
    def fail(case: Escalation) -> None:
        raise OSError("down")

    safe = guarded(text_chain(said("Rome", 0.9)), policy=policy("[{escalate: {to: desk}}]"), handlers={"desk": fail})
    with pytest.raises(EscalationError, match="desk: OSError: down"):
        run(safe, how)


@WAYS
def test_handlers_may_be_async_and_a_late_one_is_reported(how: str) -> None:
    taken: list[Any] = []
    over = threading.Event()

    async def desk(case: Escalation) -> None:
        await asyncio.sleep(0)
        taken.append(case.question)

    safe = guarded(
        text_chain(said("Rome", 0.9)),
        policy=policy("[{escalate: {to: [late, desk], reply: Wait.}}]"),
        handlers={"late": lambda case: over.wait(10), "desk": desk},
        handler_timeout_s=0.1,
    ).with_outcome()
    result = run(safe, how)
    over.set()
    assert (result.output, taken, result.outcome.escalated_to) == ("Wait.", ["?"], ("desk",))
    (error,) = result.outcome.errors
    assert error.startswith("late: ")
    assert "0.1" in error


def test_reviews_are_kept_in_the_store(tmp_path: Path) -> None:
    place = tmp_path / "reviews.db"
    safe = guarded(text_chain(said("Rome", 0.9)), policy=policy("[escalate]"), store=place)
    assert safe.invoke(ASKED) is None
    with Store.open(place) as store:
        (review,) = store.reviews()
    assert (review.question, review.answer) == ("?", "Rome")


@WAYS
def test_in_shadow_mode_nothing_changes_and_the_decision_is_reported(how: str) -> None:
    listener = EventListener()
    safe = guarded(text_chain(said("Rome", 0.9)), policy=policy(ABSTAIN, "mode: shadow"))
    assert run(safe, how, config={"callbacks": [listener]}).strip() == "Rome"
    ((name, event),) = listener.events
    assert (name, event["action"], event["mode"]) == ("guard_decision", "abstain", "shadow")
    assert [text.strip() for text in listener.ended] == ["Rome"]


# -- output --------------------------------------------------------------------------------------


@WAYS
def test_a_chain_of_messages_abstains_by_a_message(how: str) -> None:
    message = run(guarded(PROMPT | scripted(said("Rome", 0.9)), policy=policy(HALF)), how)
    assert isinstance(message, AIMessageChunk if "stream" in how else AIMessage)
    assert message.content == "I cannot say."
    scored = read_score(message)
    assert scored is not None
    assert scored.p_wrong == 0.9
    assert scored.decision is not None
    assert scored.decision["action"] == "abstain"


def test_a_chain_of_messages_that_failed_abstains_by_a_message_too() -> None:
    safe = guarded(
        PROMPT | scripted(EngineError("out of order")), policy=policy(HALF, "on_error: {abstain: {text: Sorry.}}")
    )
    assert safe.invoke(ASKED).content == "Sorry."


def test_the_caller_may_say_what_stands_in_place_of_an_answer() -> None:
    chain = PROMPT | scripted(said('{"city": "Rome"}', 0.9)) | JsonOutputParser()
    safe = guarded(chain, policy=policy(HALF), output=lambda outcome: {"city": None, "why": outcome.action.value})
    assert safe.invoke(ASKED) == {"city": None, "why": "abstain"}


@WAYS
def test_the_outcome_is_there_when_asked_for(how: str) -> None:
    safe = guarded(text_chain(said("Rome", 0.9), said("Paris", 0.2)), policy=policy(RETRY), route=None).with_outcome()
    result = run(safe, how)
    assert isinstance(result, GuardedOutcome)
    outcome = result.outcome
    assert (result.output.strip(), outcome.action, outcome.p_wrong) == ("Paris", Action.ACCEPT, 0.2)
    assert [attempt.score.p_wrong for attempt in outcome.attempts if attempt.score] == [0.9, 0.2]
    assert outcome.attempts[0].answer is None, "a rejected text is nobody's but a reviewer's"
    assert (outcome.attempts[1].answer or "").strip() == "Paris"
    assert (outcome.attempts[0].prompt_tokens, outcome.attempts[0].completion_tokens) == (7, 5)


@WAYS
def test_each_decision_is_an_event(how: str) -> None:
    listener = EventListener()
    safe = guarded(text_chain(said("Rome", 0.9), said("Paris", 0.2)), policy=policy(RETRY))
    run(safe, how, config={"callbacks": [listener]})
    assert [name for name, _ in listener.events] == ["guard_decision"] * 2
    first, second = (event for _, event in listener.events)
    assert (first["action"], second["action"]) == ("retry", "accept")
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["decision_id"] == second["decision_id"]
    assert "Rome" not in repr(listener.events)
    assert [text.strip() for text in listener.ended] == ["Paris"]


class TagKeeper(BaseCallbackHandler):
    """Keeps the tags and metadata of runs and events by name."""

    def __init__(self) -> None:
        self.runs: dict[str, tuple[list[str], dict[str, Any]]] = {}
        self.events: list[list[str]] = []

    def on_chain_start(self, *_: Any, name: str, tags: Any, metadata: Any, **__: Any) -> None:
        self.runs[name] = (tags, metadata)

    def on_chat_model_start(self, *_: Any, tags: Any, metadata: Any, **__: Any) -> None:
        self.runs["model"] = (tags, metadata)

    def on_custom_event(self, *_: Any, tags: Any, **__: Any) -> None:
        self.events.append(tags)


@WAYS
def test_traces_say_by_what_a_run_is_decided_and_only_the_guards_own(how: str) -> None:
    marks, route = TagKeeper(), "routes: {careful: {rules: [{accept: {below: 0.3}}, {abstain: {text: No.}}]}}"
    safe = guarded(text_chain(said("Paris", 0.2)), policy=policy(RETRY, route), route="careful")
    config = {"callbacks": [marks], "tags": ["mine"], "metadata": {"user": 7}, "run_name": "top"}
    run(safe, how, config=config)
    tags, metadata = marks.runs.pop("top")
    assert sorted(tags) == ["guard", "mine"]
    assert metadata == {"user": 7, "guard_policy": "test", "guard_route": "careful", "guard_mode": "enforce"}
    assert {"RunnableSequence", "model"} <= marks.runs.keys()
    for tags, metadata in marks.runs.values():
        assert not any(tag.startswith("guard") for tag in tags)
        assert not any(key.startswith("guard") for key in metadata)
    (event,) = marks.events
    assert sorted(event) == ["guard", "guard:accept", "mine"]


# -- which scores decide -------------------------------------------------------------------------


def two_calls(first: float | None, second: float | None) -> Runnable[Any, Any]:
    one = scripted(said("first", first)).with_config(tags=["draft"])
    two = scripted(said("second", second)).with_config(tags=["answer"])
    return RunnablePassthrough.assign(draft=PROMPT | one) | PROMPT | two | StrOutputParser()


@pytest.mark.parametrize(
    ("scores", "first", "second", "accepted"),
    [
        ("worst", 0.1, 0.2, True),
        ("worst", 0.9, 0.2, False),
        ("worst", 0.2, 0.9, False),
        ("worst", None, 0.2, False),
        ("last", 0.9, 0.2, True),
        ("last", 0.2, 0.9, False),
        ("last", None, 0.2, True),
        ("last", 0.2, None, False),
        ({"tag": "answer"}, 0.9, 0.2, True),
        ({"tag": "draft"}, 0.9, 0.2, False),
        ({"tag": "draft"}, 0.2, 0.9, True),
        ({"tag": "anser"}, 0.1, 0.1, False),
    ],
)
def test_scores_are_joined_as_the_policy_or_the_caller_says(
    scores: Any, first: float | None, second: float | None, accepted: bool
) -> None:
    by_caller = guarded(two_calls(first, second), policy=policy(HALF), scores=scores)
    written = scores if isinstance(scores, str) else "{tag: " + scores["tag"] + "}"
    by_policy = guarded(two_calls(first, second), policy=policy(HALF, f"calls: {written}"))
    for safe in (by_caller, by_policy):
        assert (safe.with_outcome().invoke(ASKED).outcome.action is Action.ACCEPT) is accepted


def test_a_model_that_guard_does_not_score_is_no_way_around() -> None:
    unscored = FakeListChatModel(responses=["free text"])
    chain = PROMPT | scripted(said("first", 0.1)) | StrOutputParser() | unscored | StrOutputParser()
    outcome = guarded(chain, policy=policy(HALF), return_outcome=True).invoke(ASKED).outcome
    assert outcome.action is Action.ABSTAIN
    assert "not scored by guard" in outcome.reason


@WAYS
@pytest.mark.parametrize("chain", [RunnableLambda(itemgetter("q")), PROMPT | FakeListChatModel(responses=["x"])])
def test_a_chain_without_a_scored_call_is_never_passed(how: str, chain: Runnable[Any, Any]) -> None:
    safe = guarded(chain, policy=policy(ACCEPT, "on_error: {abstain: {raise: true}}"))
    with pytest.raises(AbstainedError, match="scored"):
        run(safe, how)


def test_rules_of_tools_meet_answers_that_call_them() -> None:
    tools = "tools: {send: {rules: [{accept: {below: 0.05}}, {abstain: {text: Not sent.}}]}}"
    for calls, given in (((), "ok"), ((("send", {}),), "Not sent."), ((("look", {}),), "ok")):
        chain = PROMPT | scripted(said("ok", 0.1, *calls))
        assert guarded(chain, policy=policy(HALF, tools)).invoke(ASKED).content == given


def test_an_answer_that_was_cut_off_counts_as_failed() -> None:
    def first_chunk(asked: Any) -> str:
        return str(next(iter(model.stream("x"))).content)

    model = scripted(said("Paris is nice", 0.1))
    outcome = guarded(RunnableLambda(first_chunk), policy=policy(ACCEPT), return_outcome=True).invoke(ASKED).outcome
    assert outcome.action is Action.ABSTAIN
    assert "abandoned" in outcome.reason


# -- errors --------------------------------------------------------------------------------------


@WAYS
def test_errors_before_any_answer_are_the_callers(how: str) -> None:
    safe = guarded(text_chain(said("Paris", 0.1)), policy=policy(ACCEPT))
    with pytest.raises(KeyError, match="missing variables"):
        run(safe, how, asked={})
    long = guarded(text_chain(PromptTooLongError("too long")), policy=policy(ACCEPT))
    with pytest.raises(PromptTooLongError):
        run(long, how)


@WAYS
def test_an_engine_that_fails_is_the_policys(how: str) -> None:
    safe = guarded(
        text_chain(EngineError("out of order")), policy=policy(ACCEPT, "on_error: {abstain: {text: Sorry.}}")
    )
    assert run(safe, how) == "Sorry."


@WAYS
def test_an_error_with_the_answer_in_it_is_shown_only_where_the_answer_is(how: str) -> None:
    def fail(answer: Any) -> Any:
        raise ValueError(f"cannot use {answer}")

    def chain(p_wrong: float) -> Runnable[Any, Any]:
        return text_chain(said("Rome", p_wrong)) | RunnableLambda(fail)

    with pytest.raises(ValueError, match="cannot use Rome"):
        run(guarded(chain(0.1), policy=policy(HALF)), how)
    assert run(guarded(chain(0.9), policy=policy(HALF)), how) == "I cannot say."


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"policy": "balancd"}, PolicyError, "Did you mean 'balanced'"),
        ({"policy": "certified"}, PolicyError, "no certificate covers a chain"),
        ({"policy": policy(HALF), "route": "medical"}, PolicyError, "no route 'medical'"),
        (
            {"policy": policy("[{fallback: {below: 1, to: biger}}, abstain]"), "fallbacks": {"bigger": str}},
            InputError,
            "Did you mean 'bigger'",
        ),
        ({"policy": policy("[{escalate: {to: desk}}]")}, InputError, "no escalation handler 'desk'"),
        ({"policy": policy(HALF), "scores": "wrost"}, InputError, "'worst', 'last'"),
        ({"policy": policy(HALF), "scores": {"tags": "x"}}, InputError, "'tag': NAME"),
    ],
)
def test_mistakes_are_found_when_the_chain_is_guarded(
    settings: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        guarded(text_chain(), **settings)


def test_a_graph_that_saves_itself_is_refused() -> None:
    memory = pytest.importorskip("langgraph.checkpoint.memory")
    graphs = pytest.importorskip("langgraph.graph")
    graph = graphs.StateGraph(dict)
    graph.add_node("step", lambda state: state)
    graph.add_edge(graphs.START, "step")
    guarded(graph.compile(), policy=policy(HALF))
    with pytest.raises(InputError, match="checkpointer"):
        guarded(graph.compile(checkpointer=memory.MemorySaver()), policy=policy(HALF))


def test_an_interrupt_within_a_graph_goes_up() -> None:
    errors = pytest.importorskip("langgraph.errors")

    def pause(answer: Any) -> Any:
        raise errors.GraphInterrupt(())

    safe = guarded(text_chain(said("Rome", 0.9)) | RunnableLambda(pause), policy=policy(HALF))
    for how in ("invoke", "ainvoke", "stream", "astream"):
        with pytest.raises(errors.GraphInterrupt):
            run(guarded(text_chain(said("Rome", 0.9)) | RunnableLambda(pause), policy=policy(HALF)), how)
    assert isinstance(safe, GuardedRunnable)


# -- the budget ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "attempts"),
    [("{attempts: 3}", 3), ("{tokens: 15}", 1), ("{tokens: 27}", 2), ("{seconds: 0.000001}", 1), ("{attempts: 9}", 3)],
)
def test_attempts_stay_within_the_budget(budget: str, attempts: int) -> None:
    chain = text_chain(*[said("no", 0.9) for _ in range(5)])
    outcome = guarded(chain, policy=policy(RETRY, f"budget: {budget}"), return_outcome=True).invoke(ASKED).outcome
    assert len(outcome.attempts) == attempts
    assert outcome.action is Action.ABSTAIN


# -- as a runnable -------------------------------------------------------------------------------


def test_it_stands_anywhere_in_a_chain() -> None:
    safe = guarded(text_chain(said("Paris", 0.1)), policy=policy(HALF))
    assert ({"q": itemgetter("x")} | safe | str.upper).invoke({"x": "?"}) == "PARIS"


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_policy_and_route_can_be_configured(how: str) -> None:
    routed = policy(ACCEPT, "routes: {careful: {rules: [{abstain: {text: Careful.}}]}}")
    answers = [said("Rome", 0.9) for _ in range(3)]
    safe = guarded(text_chain(*answers), policy=routed).configurable_fields(
        policy=ConfigurableField(id="policy"), route=ConfigurableField(id="route")
    )
    assert run(safe, how).strip() == "Rome"
    assert run(safe.with_config(configurable={"route": "careful"}), how) == "Careful."
    assert run(safe, how, config={"configurable": {"policy": policy(ABSTAIN)}}) == "I cannot say."
    with pytest.raises(PolicyError):
        run(safe, how, config={"configurable": {"route": "carefull"}})


def test_retries_and_fallbacks_of_langchain_see_exceptions() -> None:
    flaky = text_chain(said("Rome", 0.9), said("Paris", 0.1))
    rules = policy("[{accept: {below: 0.5}}, {abstain: {raise: true}}]")
    assert (
        guarded(flaky, policy=rules).with_retry(stop_after_attempt=2, wait_exponential_jitter=False).invoke(ASKED)
        == "Paris"
    )
    safe = guarded(text_chain(said("Rome", 0.9)), policy=rules).with_fallbacks([RunnableLambda(lambda _: "Ask Ann.")])
    assert safe.invoke(ASKED) == "Ask Ann."


def test_transform_reads_its_whole_input_first() -> None:
    chain = RunnableLambda(lambda text: {"q": text}) | text_chain(said("Paris", 0.1), said("Paris", 0.1))
    safe = guarded(chain, policy=policy(HALF))
    assert "".join(safe.transform(iter(["wh", "at?"]))).strip() == "Paris"

    async def collected() -> str:
        async def asked() -> Any:
            yield "wh"
            yield "at?"

        return "".join([chunk async for chunk in safe.atransform(asked())])

    assert asyncio.run(collected()).strip() == "Paris"


def test_settings_of_the_call_reach_the_chain() -> None:
    model = scripted(said("Paris", 0.1))
    guarded(model, policy=policy(HALF)).bind(stop=["x"], seed=3).invoke("?")
    assert model.asked[0][1]["seed"] == 3


def test_it_describes_itself_as_its_chain() -> None:
    chain = text_chain(said("Paris", 0.1))
    safe = guarded(chain, policy=policy(HALF))
    assert safe.get_input_schema().model_json_schema() == chain.get_input_schema().model_json_schema()
    assert safe.get_output_schema().model_json_schema() == chain.get_output_schema().model_json_schema()
    assert (safe.InputType, safe.OutputType) == (chain.InputType, chain.OutputType)
    assert [node.name for node in safe.get_graph().nodes.values()] == [
        node.name for node in chain.get_graph().nodes.values()
    ]
    assert safe.with_outcome().OutputType is GuardedOutcome


def test_it_can_be_copied_and_pickled() -> None:
    safe = guarded(PROMPT, policy=policy(ABSTAIN), output=repr)
    twins: list[Callable[[], GuardedRunnable[Any, Any]]] = [
        lambda: pickle.loads(pickle.dumps(safe)),  # noqa: S301
        lambda: copy.deepcopy(safe),
        lambda: copy.copy(safe),
    ]
    for twin in twins:
        assert "ABSTAIN" in twin().invoke(ASKED)


def test_any_runnable_like_thing_can_be_guarded() -> None:
    model = scripted(said("Paris", 0.1), said("Paris", 0.1))
    assert guarded(lambda asked: model.invoke(asked["q"]).content, policy=policy(HALF)).invoke(ASKED) == "Paris"
    assert guarded({"a": PROMPT | model}, policy=policy(HALF)).invoke(ASKED)["a"].content == "Paris"
