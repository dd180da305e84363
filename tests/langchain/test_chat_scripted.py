"""`ChatGuard` on an engine whose answers and scores a test decides; no model is loaded."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from made_certificates import LADDER, certificate, certificates
from made_certificates import policy as guaranteeing
from pydantic import BaseModel
from scripted import AnsweringEngine, Script, confidence_scorer, scripted_model, tiny_artefact

from guard.engines.protocols import Chunk
from guard.errors import (
    AbstainedError,
    ChatTemplateError,
    EngineError,
    EngineTimeoutError,
    InputError,
    ScorerError,
    ScorerMismatchError,
)
from guard.langchain import ChatGuard, GuardedOutcome, RetractedError, guarded, read_score
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.policy.certificate import CertificateError
from guard.policy.policy import Policy, load_policy, parse_policy
from guard.records import Action, Escalation, Limits, Prompt, Sampling
from guard.runtime.guard import Guard
from guard.runtime.stream_monitor import TOKENS_BETWEEN
from guard.scoring.scorer import Scorer
from guard.scoring.scorer_file import Trees

SECRET = "BADWORD"
WAYS = pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])


class StreamKeepingEngine(AnsweringEngine):
    """The scripted engine with a place for tools in its template; it keeps every stream that it opens."""

    def __init__(self, script: Script, **model: object) -> None:
        super().__init__(script, model=scripted_model(**model))
        self.streams: list[Any] = []
        self.limits: list[Limits] = []
        self.sampled: list[Sampling] = []
        self.requests: list[Any] = []

    def encode(self, prompt: Prompt) -> list[int]:
        tools = f" tools:{json.dumps([dict(tool) for tool in prompt.tools])}" if prompt.tools else ""
        return [*f"{prompt.question}{tools}".encode()][-300:]

    @property
    def is_answering(self) -> bool:
        """Whether a request has the model."""
        return bool(self._answers)

    def _request(self, prompt: Any, sampling: Any, limits: Any, *rest: Any, **settings: Any) -> Any:
        self.limits.append(limits)
        self.sampled.append(sampling)
        self.requests.append(super()._request(prompt, sampling, limits, *rest, **settings))
        return self.requests[-1]

    def stream(self, *given: Any, **options: Any) -> Iterator[Chunk]:
        self.streams.append(super().stream(*given, **options))
        return self.streams[-1]  # type: ignore[no-any-return]

    def astream(self, *given: Any, **options: Any) -> AsyncIterator[Chunk]:
        self.streams.append(super().astream(*given, **options))
        return self.streams[-1]  # type: ignore[no-any-return]


def engine(*answers: tuple[str, float]) -> StreamKeepingEngine:
    """Answers in turn; the last one for ever."""
    return StreamKeepingEngine(lambda prompt, number: answers[min(number, len(answers) - 1)])


def chat(loaded: StreamKeepingEngine, **settings: Any) -> ChatGuard:
    return ChatGuard(**{"model": "scripted", "engine": loaded, "scorer": confidence_scorer(), **settings})


def map_reading_scorer() -> Scorer:
    """The scripted scorer, with a tree that reads a map and changes nothing."""
    at = tiny_artefact(scripted_model()).feature_names.index("map.1.last.0>1")
    stump = Trees(
        roots=[0], feature=[at, -1, -1], threshold=[0.0] * 3, left=[1, 0, 0], right=[2, 0, 0], value=[0.0] * 3
    )
    return Scorer(tiny_artefact(scripted_model(), trees=stump))


def policy(rules: str, *lines: str) -> Policy:
    return parse_policy("\n".join(["version: 1", "name: test", f"rules: {rules}", *lines]))


async def _ask(model: Runnable[Any, Any], how: str, question: Any = "Why?") -> Any:
    if how == "ainvoke":
        return await model.ainvoke(question)
    if how == "astream":
        return _sum([chunk async for chunk in model.astream(question)])
    return model.invoke(question) if how == "invoke" else _sum(list(model.stream(question)))


def _sum(chunks: list[AIMessageChunk]) -> Any:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk  # type: ignore[assignment]
    return whole


def ask(model: Runnable[Any, Any], how: str, question: Any = "Why?") -> Any:
    return asyncio.run(_ask(model, how, question))


# -- answers and scores --------------------------------------------------------------------------


@WAYS
def test_an_answer_carries_its_score_usage_and_signature(how: str) -> None:
    message = ask(chat(engine(("Paris", 0.3)), scorer=map_reading_scorer()), how)
    scored = read_score(message)
    assert scored is not None
    assert message.text == "Paris"
    assert scored.p_wrong == pytest.approx(0.3, abs=1e-6)
    assert (scored.error, scored.calibrated, scored.model) == (None, True, "scripted")
    assert message.usage_metadata == {"input_tokens": 4, "output_tokens": 6, "total_tokens": 10}
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["guard"]["signature"]["layers"] == 3


@WAYS
def test_an_answer_whose_layers_were_not_recorded_has_a_reason_and_no_score(how: str) -> None:
    loaded = engine(("Paris", 0.3))
    loaded.activations_at = lambda prompt, number: np.full((3, 8), np.nan, np.float32)
    message = ask(chat(loaded), how)
    scored = read_score(message)
    assert scored is not None
    assert (message.text, scored.p_wrong) == ("Paris", None)
    assert scored.error
    assert message.response_metadata["guard"]["signature"] is None


@WAYS
def test_an_error_of_the_scorer_is_data_and_not_the_loss_of_the_answer(how: str) -> None:
    model = chat(engine(("Paris", 0.3)))

    class Broken(type(model._runtime().scorer)):  # type: ignore[misc]
        def score(self, signals: Any) -> Any:
            raise ZeroDivisionError("division by zero")

    model._runtime().scorer.__class__ = Broken
    scored = read_score(ask(model, how))
    assert scored is not None
    assert (scored.p_wrong, scored.error) == (None, "ZeroDivisionError: division by zero")


def test_listeners_hear_each_token_of_a_stream() -> None:
    class Tokens(BaseCallbackHandler):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def on_llm_new_token(self, token: str, **_: Any) -> None:
            self.heard.append(token)

    for model in (chat(engine(("Paris", 0.3))), chat(engine(("Paris", 0.3)), policy=policy("[accept]"))):
        listener = Tokens()
        list(model.stream("Why?", {"callbacks": [listener]}))
        assert "".join(listener.heard) == "Paris"

        async def asynchronous(model: ChatGuard = model, listener: Tokens = listener) -> None:
            listener.heard.clear()
            _ = [chunk async for chunk in model.astream("Why?", {"callbacks": [listener]})]

        asyncio.run(asynchronous())
        assert "".join(listener.heard) == "Paris"


# -- streams that are left early -----------------------------------------------------------------


@pytest.mark.parametrize("tools", [False, True])
def test_a_stream_that_is_left_early_closes_the_engines(tools: bool) -> None:
    loaded = engine(("a long answer", 0.3))
    model = chat(loaded).bind_tools([{"title": "add", "type": "object", "description": "x"}]) if tools else chat(loaded)
    stream = model.stream("Why?")
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    (inner,) = loaded.streams
    assert inner.gi_frame is None, "it is closed, though the engine still holds it"
    assert loaded.generate(Prompt.chat("Next?"), limits=Limits(timeout_s=20)).text == "a long answer"


async def test_an_asynchronous_stream_that_is_left_early_closes_the_engines() -> None:
    loaded = engine(("a long answer", 0.3))
    stream = chat(loaded).astream("Why?")
    await anext(stream)
    await stream.aclose()  # type: ignore[attr-defined]
    (inner,) = loaded.streams
    assert inner.ag_frame is None
    done = await asyncio.wait_for(loaded.agenerate(Prompt.chat("Next?")), 20)
    assert done.text == "a long answer"


class FifthPass:
    """Keeps an engine in the fifth pass of a request until it is opened."""

    def __init__(self, loaded: StreamKeepingEngine) -> None:
        self.loaded, self.opened, self.passes = loaded, threading.Event(), 0
        loaded.on_feed = self

    def __call__(self, number: int) -> None:
        self.passes = number + 1
        assert number < 4 or self.opened.wait(20)

    def open(self) -> None:
        self.loaded.on_feed = lambda number: None
        self.opened.set()


def test_a_guarded_live_stream_that_is_left_early_frees_the_engine() -> None:
    loaded = engine(("a long answer", 0.1))
    gate = FifthPass(loaded)
    stream = guarded(PROMPT | chat(loaded) | StrOutputParser(), policy=policy(HALF, LIVE)).stream(ASKED)
    next(stream)
    assert loaded.is_answering
    threading.Timer(0.1, gate.open).start()
    stream.close()  # type: ignore[attr-defined]
    assert not loaded.is_answering
    assert gate.passes <= 5, "the pass that was running is the last"
    assert loaded.generate(Prompt.chat("Next?"), limits=Limits(timeout_s=20)).text == "a long answer"


async def test_an_asynchronous_live_stream_that_is_left_early_frees_the_engine() -> None:
    loaded = engine(("a long answer", 0.1))
    gate = FifthPass(loaded)
    stream = guarded(chat(loaded), policy=policy(HALF, LIVE)).astream("Why?")
    await anext(stream)
    assert loaded.is_answering
    await stream.aclose()  # type: ignore[attr-defined]
    assert loaded.requests[0].outbox.abandoned, "at once, not when the garbage collector comes"
    gate.open()
    done = await asyncio.wait_for(loaded.agenerate(Prompt.chat("Next?")), 20)
    assert done.text == "a long answer"
    assert gate.passes <= 5
    # LangChain's own sequences leave the closing of their steps to the garbage collector.
    longer = guarded(PROMPT | chat(loaded) | StrOutputParser(), policy=policy(HALF, LIVE)).astream(ASKED)
    await anext(longer)
    await longer.aclose()  # type: ignore[attr-defined]
    done = await asyncio.wait_for(loaded.agenerate(Prompt.chat("Next?")), 20)
    assert done.text == "a long answer"


# -- settings ------------------------------------------------------------------------------------


@WAYS
def test_settings_of_the_model_and_of_the_call_reach_the_engine(how: str) -> None:
    loaded = engine(("Paris is", 0.3))
    model = chat(loaded, temperature=0.5, top_p=0.9, top_k=40, seed=3, max_tokens=4, timeout=30, stop=["x"])
    ask(model.bind(seed=4, max_tokens=5, stop=["is"]), how)
    ask(model, how)
    assert loaded.limits == [Limits(5, ("is",), 30), Limits(4, ("x",), 30)]
    assert loaded.sampled == [Sampling(0.5, 0.9, 40, 4), Sampling(0.5, 0.9, 40, 3)]


@WAYS
def test_a_stop_text_ends_the_answer_before_it_is_shown(how: str) -> None:
    message = ask(chat(engine((f"Paris. {SECRET}", 0.3)), stop=[". BAD"]), how)
    assert message.text == "Paris"
    assert message.response_metadata["finish_reason"] == "stop_string"


@WAYS
def test_an_attempt_of_a_guarded_chain_changes_what_is_asked(how: str) -> None:
    loaded = engine(("Paris", 0.3))
    before = ATTEMPT.set(AttemptSettings(Sampling(0.7, seed=5), "Think.", max_tokens=3))
    try:
        ask(chat(loaded), how)
    finally:
        ATTEMPT.reset(before)
    assert loaded.sampled == [Sampling(0.7, seed=5)]
    assert loaded.limits[0].max_tokens == 3
    assert loaded.asked[0].question == "Why?\n\nThink."


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"temprature": 1}, InputError, "Did you mean 'temperature'"),
        ({"policy": "balancd"}, InputError, "Did you mean 'balanced'"),
        ({"policy": "strict", "route": "x"}, InputError, "has no route 'x'"),
        ({"policy": policy("[accept]", "streaming: live")}, InputError, "holds its answers"),
        (
            {"scorer": None},
            ScorerError,
            "There is no scorer for 'scripted'.* None on the shelf was fitted on this model",
        ),
    ],
)
def test_bad_settings_are_found_when_the_model_is_built(settings: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        chat(engine(("x", 0.3)), **settings)


def test_a_scorer_of_another_model_is_refused_or_marked() -> None:
    other = StreamKeepingEngine(lambda prompt, number: ("Paris", 0.3), weights_sha256="0" * 64)
    with pytest.raises(ScorerMismatchError):
        chat(other)
    scored = read_score(chat(other, force_scorer=True).invoke("Why?"))
    assert scored is not None
    assert scored.calibrated is False


def test_options_of_a_call_that_are_not_known_are_refused() -> None:
    with pytest.raises(InputError, match="Did you mean 'temperature'"):
        chat(engine(("x", 0.3))).invoke("Why?", temprature=1)


def test_the_systems_message_and_token_limit_are_those_of_the_calibration() -> None:
    loaded = engine(("x", 0.3))
    prompts: list[Prompt] = []
    encode = loaded.encode
    loaded.encode = lambda prompt: prompts.append(prompt) or encode(prompt)  # type: ignore[method-assign,func-returns-value]
    model = chat(loaded)
    model.invoke("Why?")
    chat(loaded, system="Be brief.").invoke("Why?")
    assert [next(iter(prompt.messages or ()))["content"] for prompt in prompts] == [
        "Answer with as few words as possible. No explanation.",
        "Be brief.",
    ]
    assert loaded.limits[0].max_tokens == confidence_scorer().artefact.prompting.max_tokens


@WAYS
def test_a_models_cache_key_reaches_the_engine_and_a_call_may_have_its_own(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, keys = engine(("Paris", 0.3)), list[str | None]()
    encode = loaded.encode
    model = chat(loaded, cache_key="ann")
    monkeypatch.setattr(loaded, "encode", lambda prompt: keys.append(prompt.cache_key) or encode(prompt))
    ask(model, how)
    ask(model.bind(cache_key="bob"), how)
    assert [*dict.fromkeys(keys)] == ["ann", "bob"]


# -- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_an_engines_failure_is_tried_again_and_its_refusals_are_not(how: str) -> None:
    failures: list[Exception] = [EngineError("hiccup"), EngineError("hiccup")]

    def feed(number: int) -> None:
        if failures:
            raise failures.pop()

    loaded = engine(("Paris", 0.3))
    loaded.on_feed = feed
    assert ask(chat(loaded), how).text == "Paris"
    failures += [EngineError("hiccup")] * 2
    with pytest.raises(EngineError, match="hiccup"):
        ask(chat(loaded, max_retries=1), how)
    failures += [EngineTimeoutError("late")] * 2
    with pytest.raises(EngineTimeoutError):
        ask(chat(loaded), how)
    assert len(failures) == 1


async def test_a_cancelled_call_stops_the_engine() -> None:
    loaded, passes = engine(("a" * 50, 0.3)), list[tuple[str, int]]()
    reached, opened = threading.Event(), threading.Event()

    def feed(number: int) -> None:
        passes.append((loaded.asked[-1].question, number))
        if not opened.is_set() and number == 1:
            reached.set()
            assert opened.wait(20)

    loaded.on_feed = feed
    task = asyncio.ensure_future(chat(loaded, max_tokens=50).ainvoke("Why?"))
    assert await asyncio.to_thread(reached.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    opened.set()
    assert (await asyncio.wait_for(loaded.agenerate(Prompt.chat("Next?"), limits=Limits(1)), 20)).text
    assert passes == [("Why?", 0), ("Why?", 1), ("Next?", 0)], "no further token is computed for nobody"


# -- a policy of its own -------------------------------------------------------------------------


@WAYS
def test_a_model_with_a_policy_shows_what_its_policy_says(how: str) -> None:
    loaded = engine((SECRET, 0.9), ("Paris", 0.1))
    rules = "[{accept: {below: 0.5}}, {retry: {below: 0.95, times: 1, temperature: 0}}, {abstain: {text: No.}}]"
    message = ask(chat(loaded, policy=policy(rules)), how)
    assert message.text == "Paris"
    assert SECRET not in str(message)
    assert message.response_metadata["guard"]["decision"]["action"] == "accept"
    assert message.usage_metadata == {"input_tokens": 8, "output_tokens": 14, "total_tokens": 22}, "of both attempts"
    abstained = ask(chat(engine((SECRET, 0.9)), policy=policy(rules)), how)
    assert abstained.text == "No."
    assert SECRET not in str(abstained)
    assert abstained.response_metadata["guard"]["p_wrong"] == pytest.approx(0.9, abs=1e-6)


@WAYS
def test_a_policy_that_raises_raises(how: str) -> None:
    with pytest.raises(AbstainedError):
        ask(chat(engine((SECRET, 0.9)), policy=policy("[{abstain: {raise: true}}]")), how)


@WAYS
def test_a_policys_text_calls_no_tools_though_it_looks_like_a_call(how: str) -> None:
    text = json.dumps({"name": "add", "arguments": {"a": 1}})
    rules = f"[{{accept: {{below: 0.5}}}}, {{abstain: {{text: '{text}'}}}}]"
    model = chat(engine((SECRET, 0.9)), policy=policy(rules)).bind_tools([ADD])
    message = ask(model, how)
    assert (message.text, message.tool_calls) == (text, [])


def test_escalations_of_a_deciding_model_reach_its_handlers(tmp_path: Path) -> None:
    cases: list[Escalation] = []
    model = chat(
        engine((SECRET, 0.9)),
        policy=policy("[{escalate: {to: [review], reply: Wait.}}]"),
        handlers={"review": cases.append},
        store=tmp_path / "reviews.db",
    )
    assert model.invoke("Why?").text == "Wait."
    assert [case.answer for case in cases] == [SECRET]
    assert not (tmp_path / "reviews.db").exists(), "one's own review handler is not replaced"


def test_a_guard_becomes_a_chat_model() -> None:
    loaded = engine((SECRET, 0.9))
    guard = Guard(loaded, confidence_scorer(), policy("[{accept: {below: 0.5}}, {abstain: {text: No.}}]"))
    assert ChatGuard.from_guard(guard).invoke("Why?").text == "No."
    assert ChatGuard.from_guard(guard, decides=False).invoke("Why?").text == SECRET


# -- tools and structure -------------------------------------------------------------------------

ADD = {"title": "add", "description": "Add.", "type": "object", "properties": {"a": {"type": "integer"}}}
CALL = 'Let me see. <tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'


@WAYS
def test_tool_calls_are_scored_and_parsed(how: str) -> None:
    message = ask(chat(engine((CALL, 0.3)), max_tokens=90).bind_tools([ADD]), how)
    (call,) = message.tool_calls
    assert (call["name"], call["args"], message.text) == ("add", {"a": 1}, "Let me see.")
    assert message.additional_kwargs["raw_text"] == CALL
    scored = read_score(message)
    assert scored is not None
    assert scored.p_wrong == pytest.approx(0.3, abs=1e-6)


@WAYS
def test_a_deciding_models_call_is_parsed_where_it_is_accepted(how: str) -> None:
    message = ask(chat(engine((CALL, 0.3)), max_tokens=90, policy=policy("[accept]")).bind_tools([ADD]), how)
    assert [call["name"] for call in message.tool_calls] == ["add"]


@WAYS
def test_a_broken_tool_call_is_no_call(how: str) -> None:
    message = ask(chat(engine(("<tool_call>add 1</tool_call>", 0.3)), max_tokens=60).bind_tools([ADD]), how)
    assert message.tool_calls == []
    assert [invalid["args"] for invalid in message.invalid_tool_calls] == ["add 1"]


def test_tools_that_the_template_leaves_out_are_refused() -> None:
    loaded = AnsweringEngine(lambda prompt, number: ("x", 0.3))
    model = ChatGuard(model="scripted", engine=loaded, scorer=confidence_scorer())
    with pytest.raises(ChatTemplateError, match="does not support tools"):
        model.bind_tools([ADD])


def test_a_tool_choice_is_asked_for() -> None:
    loaded = engine((CALL, 0.3))
    chat(loaded).bind_tools([ADD], tool_choice="add").invoke("1?")
    assert "Answer by calling the tool add." in loaded.asked[-1].question
    chat(loaded).bind_tools([ADD], tool_choice="none").invoke("1?")
    assert loaded.asked[-1].question == "1?"
    with pytest.raises(InputError, match="Did you mean 'add'"):
        chat(loaded).bind_tools([ADD], tool_choice="ad")


class City(BaseModel):
    """A city."""

    name: str


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("json_schema", '{"name": "Paris"}'),
        ("json_mode", '{"name": "Paris"}'),
        ("function_calling", '<tool_call>{"name": "City", "arguments": {"name": "Paris"}}</tool_call>'),
    ],
)
def test_objects_come_back_as_their_schema_says(method: Any, text: str) -> None:
    model = chat(engine((text, 0.3)), max_tokens=90)
    assert model.with_structured_output(City, method=method).invoke("Where?") == City(name="Paris")
    raw = model.with_structured_output(City, method=method, include_raw=True).invoke("Where?")
    assert isinstance(raw, dict)
    assert (raw["parsed"], raw["parsing_error"]) == (City(name="Paris"), None)
    scored = read_score(raw["raw"])
    assert scored is not None
    assert scored.p_wrong == pytest.approx(0.3, abs=1e-6)


def test_an_answer_of_another_shape_is_a_parsing_error() -> None:
    model = chat(engine(('{"nam": "Paris"}', 0.3)), max_tokens=60)
    raw = model.with_structured_output(City, include_raw=True, strict=False).invoke("Where?")
    assert isinstance(raw, dict)
    assert raw["parsed"] is None
    assert raw["parsing_error"] is not None
    with pytest.raises(InputError, match="Did you mean 'json_mode'"):
        model.with_structured_output(City, method="json_mod")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Unknown response_format"):
        model.bind(response_format={"type": "xml"}).invoke("Where?")


# -- copies and traces ---------------------------------------------------------------------------


def test_copies_share_the_engine_and_a_loaded_one_is_not_pickled() -> None:
    loaded = engine(("Paris", 0.3))
    model = chat(loaded)
    assert copy.deepcopy(model).engine is loaded
    assert model.model_copy(update={"temperature": 1.0}).engine is loaded
    with pytest.raises(InputError, match="cannot be pickled"):
        pickle.dumps(model)


def test_traces_and_caches_tell_models_and_attempts_apart() -> None:
    model = chat(engine(("Paris", 0.3)), max_tokens=7, stop=["x"])
    params = model._get_ls_params()
    assert (params["ls_model_name"], params["ls_max_tokens"], params["ls_stop"]) == ("scripted", 7, ["x"])
    assert model._identifying_params["scorer"] == confidence_scorer().sha256
    assert model.get_token_ids("ab") == [97, 98]
    first = model._get_llm_string()
    before = ATTEMPT.set(AttemptSettings(Sampling(seed=1)))
    try:
        assert model._get_llm_string() != first
    finally:
        ATTEMPT.reset(before)


# -- live streams --------------------------------------------------------------------------------

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
ASKED = {"q": "?"}
LIVE = "streaming: live"
HALF = "[{accept: {below: 0.5}}, {abstain: {text: No.}}]"
LONG = f"{SECRET} is what it says at some length"


def live(loaded: StreamKeepingEngine, rules: str, how: str, **settings: Any) -> tuple[str, Exception | None]:
    """The text that was shown, and the error that ended the stream."""
    safe = guarded(PROMPT | chat(loaded, max_tokens=60) | StrOutputParser(), policy=policy(rules, LIVE), **settings)
    shown: list[str] = []

    async def collect() -> None:
        async for chunk in safe.astream(ASKED):
            shown.append(chunk)  # noqa: PERF401 - what came before an error counts

    try:
        if how == "astream":
            asyncio.run(collect())
        else:
            for chunk in safe.stream(ASKED):
                shown.append(chunk)  # noqa: PERF402
    except AbstainedError as error:
        return "".join(shown), error
    return "".join(shown), None


LIVELY = pytest.mark.parametrize("how", ["stream", "astream"])


@LIVELY
def test_a_live_answer_that_holds_is_shown_whole(how: str) -> None:
    assert live(engine((LONG, 0.1)), HALF, how) == (LONG, None)


@LIVELY
def test_a_live_answer_over_the_line_is_stopped_while_it_grows(how: str) -> None:
    loaded = engine((LONG, 0.9))
    shown, error = live(loaded, HALF, how)
    assert isinstance(error, RetractedError)
    assert LONG.startswith(shown)
    assert len(shown) <= TOKENS_BETWEEN, "a token is a character"
    assert error.outcome is not None
    assert error.outcome.p_wrong == pytest.approx(0.9, abs=1e-4)
    assert not loaded.is_answering
    assert loaded.generate(Prompt.chat("Next?"), limits=Limits(4, timeout_s=20)).text


@LIVELY
def test_a_person_gets_the_case_of_a_live_answer_that_was_stopped(how: str) -> None:
    """With the text that the caller has seen of it."""
    cases: list[Escalation] = []
    rules = "[{accept: {below: 0.5}}, {escalate: {to: [desk], reply: Wait.}}]"
    shown, error = live(engine((LONG, 0.9)), rules, how, handlers={"desk": cases.append})
    assert isinstance(error, RetractedError)
    (case,) = cases
    assert error.outcome is not None
    assert (error.outcome.action, error.outcome.escalated_to) == (Action.ESCALATE, ("desk",))
    assert case.p_wrong == pytest.approx(0.9, abs=1e-4)
    assert case.answer == shown
    assert case.prompt.question == "?"


@LIVELY
def test_a_case_of_a_stopped_answer_that_nobody_takes_is_an_error(how: str) -> None:
    from guard.errors import EscalationError

    def down(case: Escalation) -> None:
        raise OSError("down")

    with pytest.raises(EscalationError, match="down"):
        live(engine((LONG, 0.9)), "[{escalate: {to: [desk]}}]", how, handlers={"desk": down})


@LIVELY
def test_the_outcome_of_a_stopped_answer_does_not_hold_its_text(how: str) -> None:
    shown, error = live(engine((LONG, 0.9)), HALF, how, return_outcome=True)
    assert isinstance(error, RetractedError)
    assert shown == ""
    assert SECRET[: TOKENS_BETWEEN - 1] not in f"{error} {error.outcome}"


def test_an_accepted_live_answer_gives_its_outcome_when_asked_for() -> None:
    safe = guarded(
        PROMPT | chat(engine((LONG, 0.1)), max_tokens=60) | StrOutputParser(),
        policy=policy(HALF, LIVE),
        return_outcome=True,
    )
    (given,) = safe.stream(ASKED)
    assert isinstance(given, GuardedOutcome)
    assert (given.output, given.outcome.action) == (LONG, Action.ACCEPT)


def test_a_message_is_an_ai_message() -> None:
    assert isinstance(chat(engine(("Paris", 0.3))).invoke("Why?"), AIMessage)


# -- risk guarantees -----------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize(("p_wrong", "answer"), [(0.24, "Paris"), (0.26, "I do not know.")])
async def test_a_model_that_decides_holds_its_policys_guarantee(
    how: str, p_wrong: float, answer: str, tmp_path: Path
) -> None:
    """As a `Guard`: one call of it is the procedure that was certified."""
    file = tmp_path / "policy.yaml"
    file.write_text(f"version: 1\nname: test\ncertificate: c.json\n{LADDER}")
    certificates(certificate(load_policy(file))).save(tmp_path / "c.json")
    engine = AnsweringEngine(lambda prompt, number: ("Paris", p_wrong))
    declared = ChatGuard(engine=engine, scorer=confidence_scorer(), policy=str(file))
    taken = ChatGuard.from_guard(Guard(engine, confidence_scorer(), str(file)))
    for model in (declared, taken):
        assert await asked(model, how) == answer


def test_a_model_that_decides_is_not_built_without_the_certificate() -> None:
    with pytest.raises(CertificateError, match="there is no certificate"):
        ChatGuard(engine=AnsweringEngine(lambda *_: ("Paris", 0.1)), scorer=confidence_scorer(), policy=guaranteeing())


async def asked(model: ChatGuard, how: str) -> str:
    match how:
        case "invoke":
            return str(model.invoke("What?").content)
        case "ainvoke":
            return str((await model.ainvoke("What?")).content)
        case "stream":
            return "".join(str(chunk.content) for chunk in model.stream("What?"))
        case _:
            return "".join([str(chunk.content) async for chunk in model.astream("What?")])
