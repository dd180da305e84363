"""ChatGuard beyond LangChain's standard suites: settings, scores, policies, tools, copies, caches."""

from __future__ import annotations

import asyncio
import copy
import itertools
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, TypedDict

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langchain_fixtures import ABSTAIN, ACCEPT, chat, embedded, policy, scorer_for
from pydantic import BaseModel, ValidationError

from guard.engines.batch import Feed, PassRow
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import (
    AbstainedError,
    CaptureError,
    ChatTemplateError,
    EngineError,
    EngineTimeoutError,
    InputError,
    ModelFileError,
    PolicyError,
    PromptTooLongError,
    ScorerError,
    ScorerMismatchError,
)
from guard.langchain import ChatGuard, guarded, read_score
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.langchain.chat.shared_engines import shared_engine
from guard.records import Limits, Prompt, Sampling
from guard.runtime.guard import Guard
from guard.runtime.sources import score_generation
from guard.scoring.signature import SignatureObserver

pytestmark = pytest.mark.model

#: The part of a Hermes-like template that matters: tools are written into the system message.
TOOL_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@lru_cache(maxsize=1)
def model() -> ChatGuard:
    return chat()


class SayingEngine(LlamaCppEngine):
    """The embedded model made to say a text: its layers, logits and prompt are real, the choice is not."""

    saying: str = ""

    @classmethod
    def that_says(cls, text: str, template: str = TOOL_TEMPLATE) -> SayingEngine:
        from guard.engines import embedded_model

        engine = cls.load(embedded_model(), context_tokens=1024, chat_template=template, deterministic=True)
        engine.saying = text  # type: ignore[attr-defined]
        return engine  # type: ignore[return-value]

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        if feeds[0].position == 0:
            self._left = iter([*self.encode_text(self.saying), self._end_token()])
        return [_Saying(row, next(self._left, self._end_token())) for row in super()._evaluate(feeds)]


class _Saying:
    """A row whose logits leave only the next token of the text."""

    def __init__(self, row: PassRow, token: int) -> None:
        self._row, self._token = row, token
        self.activations = row.activations

    def logits(self) -> Any:
        logits = self._row.logits().copy()
        logits[self._token] = logits.max() + 5
        return logits


@pytest.fixture
def saying() -> Iterator[Any]:
    engines: list[LlamaCppEngine] = []

    def make(text: str, **settings: Any) -> ChatGuard:
        embedded()  # skips where the model is not installed
        engine = SayingEngine.that_says(text)
        engines.append(engine)
        return ChatGuard(**{"engine": engine, "scorer": scorer_for(engine, max_tokens=60), **settings})

    yield make
    for engine in engines:
        engine.close()


# -- scores --------------------------------------------------------------------------------------


def test_the_score_is_that_of_the_engines_own_generation() -> None:
    message = model().invoke("Name a colour.")
    scorer, engine = scorer_for(embedded()), embedded()
    observer = SignatureObserver()
    prompt = Prompt.chat("Name a colour.")
    generation = engine.generate(prompt, limits=Limits(8), observer=observer)
    scored = read_score(message)
    assert scored is not None
    assert scored.p_wrong == score_generation(generation, observer, scorer, prompt).p_wrong
    assert message.content == generation.text
    summary = message.response_metadata["guard"]["signature"]
    divergences = observer.signature().maps[0, observer.signature().aggregates.index("mean")]
    assert summary["layers"] == engine.model.layers
    assert summary["kl_max"] == pytest.approx(divergences.max())
    off_diagonal = divergences.sum() / (divergences.size - len(divergences))
    assert summary["kl_mean"] == pytest.approx(off_diagonal)
    assert divergences[tuple(summary["kl_max_pair"])] == divergences.max()


def test_all_ways_of_asking_say_and_score_the_same() -> None:
    async def asynchronous() -> list[AIMessage]:
        streamed = [chunk async for chunk in model().astream("Name a colour.")]
        return [await model().ainvoke("Name a colour."), _sum(streamed), *await model().abatch(["Name a colour."])]

    messages = [
        model().invoke("Name a colour."),
        _sum([*model().stream("Name a colour.")]),
        *asyncio.run(asynchronous()),
    ]
    messages += model().batch(["Name a colour."])
    assert len({message.content for message in messages}) == 1
    assert len({message.response_metadata["guard"]["p_wrong"] for message in messages}) == 1
    assert len({str(message.usage_metadata) for message in messages}) == 1


def _sum(chunks: list[AIMessageChunk]) -> AIMessageChunk:
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk  # type: ignore[assignment]
    return whole


def test_streams_carry_the_score_on_their_last_chunk_only() -> None:
    *before, last = model().stream("Name a colour.")
    assert not any(chunk.response_metadata or chunk.usage_metadata or chunk.chunk_position for chunk in before)
    assert last.chunk_position == "last"
    assert read_score(last) is not None


def test_an_answer_that_cannot_be_scored_is_there_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise CaptureError("no layers")

    monkeypatch.setattr("guard.langchain.chat.chat_runtime.score_generation", fail)
    scored = read_score(model().invoke("Name a colour."))
    assert scored is not None
    assert (scored.p_wrong, scored.error) == (None, "no layers.")
    monkeypatch.setattr("guard.langchain.chat.chat_runtime.score_generation", lambda *_: 1 / 0)
    scored = read_score(model().invoke("Name a colour."))
    assert scored is not None
    assert scored.error == "ZeroDivisionError: division by zero"


# -- settings ------------------------------------------------------------------------------------


def test_settings_of_the_model_and_of_the_call_reach_the_engine() -> None:
    sampled = chat(temperature=1.2, top_p=0.9, top_k=40, seed=3, max_tokens=4)
    first, same = sampled.invoke("Tell a story."), sampled.invoke("Tell a story.")
    assert first.content == same.content
    assert read_score(first).sampling == Sampling(1.2, 0.9, 40, 3)  # type: ignore[union-attr]
    other = sampled.invoke("Tell a story.", seed=4, max_tokens=5)
    assert read_score(other).sampling.seed == 4  # type: ignore[union-attr]
    assert (first.usage_metadata or {})["output_tokens"] == 4
    assert (other.usage_metadata or {})["output_tokens"] == 5


def test_the_calibrations_token_limit_and_system_message_are_the_defaults() -> None:
    loaded = embedded()
    scorer = scorer_for(loaded, system="Answer like a pirate.", max_tokens=3)
    plain, own = ChatGuard(engine=loaded, scorer=scorer), ChatGuard(engine=loaded, scorer=scorer, system="")
    message = plain.invoke("Hi")
    told = plain.invoke([SystemMessage("Answer like a pirate."), HumanMessage("Hi")])
    assert (message.usage_metadata or {})["output_tokens"] == 3
    assert message.usage_metadata == told.usage_metadata != own.invoke("Hi").usage_metadata


def test_stop_texts_end_the_answer_and_are_not_part_of_it() -> None:
    whole = model().invoke("Count from one to ten.", max_tokens=12).content
    word = whole.split()[1]
    cut = model().invoke("Count from one to ten.", stop=[word], max_tokens=12)
    assert cut.content == whole.split(word)[0]
    assert chat(stop=[word], max_tokens=12).invoke("Count from one to ten.").content == cut.content


@pytest.mark.parametrize(
    ("settings", "error", "told"),
    [
        ({"temprature": 1}, InputError, "Did you mean 'temperature'"),
        ({"temperature": -1}, InputError, "temperature"),
        ({"top_p": 0}, InputError, "top_p"),
        ({"max_tokens": 0}, InputError, "max_tokens"),
        ({"timeout": 0}, InputError, "timeout"),
        ({"stop": [""]}, InputError, "stop"),
        ({"max_retries": -1}, ValidationError, "max_retries"),
        ({"policy": "balancd"}, PolicyError, "Did you mean 'balanced'"),
        ({"policy": "balanced", "route": "x"}, PolicyError, "no route 'x'"),
        ({"policy": policy(ACCEPT, "streaming: live")}, InputError, "streams live.*guarded"),
        ({"scorer": "missing.json"}, ScorerError, "missing.json"),
        ({"engine": None, "model": "missing.gguf"}, ModelFileError, "missing.gguf"),
        ({"engine": None, "model": "missing.gguf", "scorer": None}, ScorerError, "no scorer"),
        ({"engine": "llama", "engine_options": {"threads": object()}}, InputError, "plain values"),
    ],
)
def test_bad_settings_are_found_when_the_model_is_built(
    settings: dict[str, Any], error: type[Exception], told: str
) -> None:
    loaded = embedded()
    with pytest.raises(error, match=told):
        ChatGuard(**{"engine": loaded, "scorer": scorer_for(loaded), **settings})


@pytest.mark.parametrize(
    ("option", "told"), [("modle", "has no option 'modle'"), ("max_token", "Did you mean 'max_tokens'")]
)
def test_bad_options_of_a_call_are_refused(option: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        model().invoke("Hi", **{option: 3})


def test_a_scorer_of_another_model_is_refused_or_marked() -> None:
    loaded = embedded()
    artefact = scorer_for(loaded).artefact
    other = type(scorer_for(loaded))(
        artefact.model_copy(update={"binding": artefact.binding.model_copy(update={"width": 1})})
    )
    with pytest.raises(ScorerMismatchError):
        ChatGuard(engine=loaded, scorer=other)
    marked = read_score(ChatGuard(engine=loaded, scorer=other, force_scorer=True).invoke("Hi"))
    assert marked is not None
    assert not marked.calibrated


def test_images_long_prompts_and_deadlines_are_errors_in_words() -> None:
    with pytest.raises(InputError, match="text only"):
        model().invoke([HumanMessage([{"type": "image_url", "image_url": {"url": "data:,"}}])])
    with pytest.raises(PromptTooLongError):
        model().invoke("word " * 9000)
    with pytest.raises(EngineTimeoutError):
        model().invoke("Hi", timeout=0.0001)


def test_an_engines_failure_is_tried_again_and_its_refusals_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, failures = embedded(), [EngineError("hiccup"), EngineError("hiccup")]
    generate = loaded.generate

    def flaky(*args: Any, **kwargs: Any) -> Any:
        if failures:
            raise failures.pop()
        return generate(*args, **kwargs)

    monkeypatch.setattr(loaded, "generate", flaky)
    assert model().invoke("Hi").content
    failures += [EngineError("hiccup")] * 2
    with pytest.raises(EngineError, match="hiccup"):
        chat(max_retries=1).invoke("Hi")
    failures[:] = [EngineTimeoutError("late"), EngineTimeoutError("late")]
    with pytest.raises(EngineTimeoutError):
        model().invoke("Hi")
    assert len(failures) == 1


# -- a policy of its own -------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_a_model_with_a_policy_decides_by_itself(how: str) -> None:
    deciding = chat(policy=policy(ABSTAIN, "routes: {open: {rules: [accept]}}"))
    message = asyncio.run(_ask(deciding, how))
    assert message.content == "I cannot say."
    decision = message.response_metadata["guard"]["decision"]
    assert (decision["action"], decision["policy"], decision["route"]) == ("abstain", "test", None)
    assert message.response_metadata["guard"]["signature"]["layers"] == 30
    own = asyncio.run(_ask(chat(policy=deciding.policy, route="open"), how))
    assert own.content == model().invoke("Name a colour.").content


async def _ask(asked: ChatGuard, how: str) -> Any:
    if how == "ainvoke":
        return await asked.ainvoke("Name a colour.")
    if how == "astream":
        return _sum([chunk async for chunk in asked.astream("Name a colour.")])
    return asked.invoke("Name a colour.") if how == "invoke" else _sum([*asked.stream("Name a colour.")])


def test_all_attempts_count_in_the_usage() -> None:
    rules = "[{retry: {below: 1, times: 1, seed: 1}}, {abstain: {text: No.}}]"
    once, twice = model().invoke("Name a colour."), chat(policy=policy(rules)).invoke("Name a colour.")
    assert twice.content == "No."
    assert once.usage_metadata is not None
    assert twice.usage_metadata is not None
    assert twice.usage_metadata["input_tokens"] == 2 * once.usage_metadata["input_tokens"]


def test_a_policy_that_raises_raises() -> None:
    with pytest.raises(AbstainedError):
        chat(policy=policy("[{abstain: {raise: true}}]")).invoke("Name a colour.")


def test_a_guard_becomes_a_chat_model() -> None:
    loaded = embedded()
    guard = Guard(loaded, scorer_for(loaded), policy(ABSTAIN))
    assert ChatGuard.from_guard(guard).invoke("Hi").content == "I cannot say."
    only_scores = ChatGuard.from_guard(guard, decides=False, max_tokens=2)
    assert (only_scores.invoke("Hi").usage_metadata or {})["output_tokens"] == 2
    assert read_score(only_scores.invoke("Hi")).decision is None  # type: ignore[union-attr]


# -- tools and structure -------------------------------------------------------------------------


def test_tools_that_the_template_would_swallow_are_refused() -> None:
    with pytest.raises(ChatTemplateError, match="does not support tools"):
        model().bind_tools([add])
    with pytest.raises(ChatTemplateError, match="does not support tools"):
        model().with_structured_output({"title": "City", "type": "object"}, method="function_calling")
    assert model().bind_tools([]).invoke("Hi").content


@pytest.mark.parametrize("how", ["invoke", "ainvoke", "stream", "astream"])
def test_tool_calls_are_scored_then_parsed_and_the_raw_text_is_kept(saying: Any, how: str) -> None:
    calling = saying(f"Let me see. {CALL}")
    message = asyncio.run(_ask(calling.bind_tools([add]), how))
    (call,) = message.tool_calls
    assert (call["name"], call["args"], message.content) == ("add", {"a": 1, "b": 2}, "Let me see.")
    assert message.additional_kwargs["raw_text"] == f"Let me see. {CALL}"
    assert read_score(message).p_wrong is not None
    plain = asyncio.run(_ask(calling, how))
    assert (plain.content, plain.tool_calls) == (f"Let me see. {CALL}", [])


def test_a_broken_tool_call_is_kept_as_invalid(saying: Any) -> None:
    message = saying("<tool_call>add 1 and 2</tool_call>").bind_tools([add]).invoke("1+2?")
    (invalid,) = message.invalid_tool_calls
    assert (invalid["args"], message.tool_calls) == ("add 1 and 2", [])


def test_a_tool_choice_is_asked_for(saying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calling = saying(CALL)
    prompts: list[Prompt] = []
    encode = calling.engine.encode
    monkeypatch.setattr(calling.engine, "encode", lambda prompt: prompts.append(prompt) or encode(prompt))
    calling.bind_tools([add], tool_choice="add").invoke("1+2?")
    assert prompts[-1].question.endswith("Answer by calling the tool add.")
    assert [given["function"]["name"] for given in prompts[-1].tools] == ["add"]
    calling.bind_tools([add], tool_choice="none").invoke("1+2?")
    assert (prompts[-1].question, prompts[-1].tools) == ("1+2?", ())
    with pytest.raises(InputError, match="Did you mean 'add'"):
        calling.bind_tools([add], tool_choice="ad")


def test_an_agent_runs_on_it(saying: Any) -> None:
    agents = pytest.importorskip("langchain.agents")
    agent = agents.create_agent(saying(CALL), [add])
    stream = agent.stream({"messages": [("user", "1+2?")]}, stream_mode="updates")
    steps = list(itertools.islice(stream, 2))  # it would call the tool for ever
    stream.close()
    (answer,), (result,) = steps[0]["model"]["messages"], steps[1]["tools"]["messages"]
    assert (answer.tool_calls[0]["name"], result.content) == ("add", "3")
    assert read_score(answer) is not None


class City(BaseModel):
    """A city."""

    name: str
    people: int


class CityDict(TypedDict):
    """A city."""

    name: str
    people: int


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
@pytest.mark.parametrize("schema", [City, CityDict, City.model_json_schema()])
def test_objects_come_back_as_their_schema_says(saying: Any, method: Any, schema: Any) -> None:
    written = '{"name": "Oslo", "people": 700000}'
    call = f'<tool_call>{{"name": "{_name(schema)}", "arguments": {written}}}</tool_call>'
    answering = saying(call if method == "function_calling" else written)
    answer = answering.with_structured_output(schema, method=method).invoke("Oslo?")
    assert answer == (City(name="Oslo", people=700000) if schema is City else {"name": "Oslo", "people": 700000})
    raw = answering.with_structured_output(schema, method=method, include_raw=True).invoke("Oslo?")
    assert (raw["parsed"], raw["parsing_error"]) == (answer, None)
    assert read_score(raw["raw"]).p_wrong is not None  # type: ignore[union-attr]


def _name(schema: Any) -> str:
    return schema["title"] if isinstance(schema, dict) else schema.__name__


def test_an_answer_of_another_shape_is_a_parsing_error(saying: Any) -> None:
    """JSON mode asks for any object; only a schema decides what the object has."""
    answering = saying('{"town": "Oslo"}')
    asked = partial(answering.with_structured_output, City, method="json_mode")
    with pytest.raises(OutputParserException):
        asked().invoke("Oslo?")
    raw = asked(include_raw=True).invoke("Oslo?")
    assert raw["parsed"] is None
    assert isinstance(raw["parsing_error"], OutputParserException)
    assert read_score(raw["raw"]) is not None
    assert guarded(asked(), policy=policy(ABSTAIN)).invoke("Oslo?") == "I cannot say."


def test_a_model_that_would_say_something_else_gives_an_object_of_the_schema(saying: Any) -> None:
    answering = saying("Oslo is in Norway.")
    assert isinstance(answering.with_structured_output(City).invoke("Oslo?"), City)
    with pytest.raises(InputError, match="Did you mean 'json_mode'"):
        answering.with_structured_output(City, method="jsonmode")


# -- copies, caches, attempts ----------------------------------------------------------------------


def test_copies_share_the_engine() -> None:
    named = ChatGuard(engine="llama.cpp", scorer=scorer_for(embedded()))
    twins = [named.model_copy(), copy.copy(named), copy.deepcopy(named), pickle.loads(pickle.dumps(named))]  # noqa: S301
    configured = named.configurable_fields(temperature=ConfigurableField(id="t")).with_config(configurable={"t": 0.5})
    assert all(twin._runtime().engine is shared_engine("smollm2", engine="llama.cpp") for twin in twins)
    assert read_score(configured.invoke("Hi")).sampling.temperature == 0.5
    assert twins[-1].invoke("Hi").content == named.invoke("Hi").content
    with pytest.raises(InputError, match="cannot be pickled"):
        pickle.dumps(model())


def test_shared_engines_are_freed_before_the_interpreter_ends() -> None:
    script = """
import atexit, sys
engines = []
atexit.register(lambda: print("open" if engines[0]._context else "freed"))  # runs last: it is registered first
from guard.langchain import ChatGuard, shared_engine
ChatGuard(model="smollm2", engine_options={"context_tokens": 64, "threads": 1})
engines.append(shared_engine("smollm2", options={"context_tokens": 64, "threads": 1}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert (done.stdout.split(), done.stderr) == (["freed"], "")


def test_tokens_are_counted_by_the_models_own_tokenizer() -> None:
    assert model().get_token_ids("Paris is nice") == embedded().encode_text("Paris is nice")
    assert model().get_num_tokens("Paris is nice") == len(embedded().encode_text("Paris is nice"))


def test_what_an_attempt_asks_for_is_done_and_not_cached_as_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cached = chat(cache=InMemoryCache())
    first = cached.invoke("Tell a story.")
    assert cached.invoke("Tell a story.").content == first.content
    token = ATTEMPT.set(AttemptSettings(sampling=Sampling(1.5, 0.95, 0, 3), instruction="Be brief.", max_tokens=5))
    try:
        other = cached.invoke("Tell a story.")
    finally:
        ATTEMPT.reset(token)
    scored = read_score(other)
    assert scored is not None
    assert (scored.sampling.seed, scored.tokens) == (3, 5)
    assert (other.usage_metadata or {})["input_tokens"] > (first.usage_metadata or {})["input_tokens"]
    assert cached.invoke("Tell a story.").content == first.content


def test_an_attempts_deadline_ends_a_generation() -> None:
    token = ATTEMPT.set(AttemptSettings(deadline=time.monotonic() - 1))
    try:
        with pytest.raises(EngineTimeoutError):
            model().invoke("Hi")
    finally:
        ATTEMPT.reset(token)


def test_it_works_in_chains() -> None:
    assert (model() | StrOutputParser()).invoke("Hi") == model().invoke("Hi").content
    assert guarded(model() | StrOutputParser(), policy=policy(ACCEPT)).invoke("Hi") == model().invoke("Hi").content
