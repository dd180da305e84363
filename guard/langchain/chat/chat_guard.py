"""A LangChain chat model on any of guard's engines; each answer carries its score.

    model = ChatGuard(model="smollm2", max_tokens=64)
    message = model.invoke("What is the capital of France?")
    message.response_metadata["guard"]["p_wrong"]

Without a policy the model only scores, and a wrapper decides (`guarded`, `GuardMiddleware`). With a policy the model
decides itself, and the message is the policy's result.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from guard.engines import EMBEDDED
from guard.engines.instructions import in_asked_form, tool_instruction
from guard.engines.protocols import Engine
from guard.engines.tokenizing import TokenizingEngine
from guard.engines.tool_calls import HERMES, TextAroundCalls
from guard.engines.tool_support import check_tools, find_form
from guard.engines.witness import AnswerWitness, begin
from guard.errors import EngineError, InputError, did_you_mean
from guard.langchain.attempts.attempt_settings import ATTEMPT, AttemptSettings
from guard.langchain.attempts.model_calls import MODEL_TYPE, prompt_text
from guard.langchain.call_options import NAMES, split_options
from guard.langchain.chat.answer_messages import ChatRequest, message_chunks
from guard.langchain.chat.chat_runtime import ChatRuntime
from guard.langchain.chat.routed_model import RoutedChatModel
from guard.langchain.chat.shared_engines import shared_engine
from guard.langchain.chat.structured_output import structured
from guard.langchain.messages import chat_turns
from guard.policy.policy import load_policy
from guard.records import Limits, Prompt, Sampling
from guard.review.handlers import HANDLERS, as_named
from guard.runtime.base_models import fitted_limits, put_as_fitted
from guard.runtime.guard import Guard
from guard.runtime.sources import FALLBACKS, bind_scorer, checked_options, declared_sources, loading_options
from guard.runtime.steps import Emit, Step, Steps, Stream, adrive, adrive_stream, drive, drive_stream
from guard.runtime.unscored_models import without_scorer
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer

RunManager = CallbackManagerForLLMRun | AsyncCallbackManagerForLLMRun | None

#: Settings that a call may override.
_SAMPLING = ("temperature", "top_p", "top_k", "seed")
_CALL_SETTINGS = frozenset({*_SAMPLING, "max_tokens", "timeout", "cache_key"})
#: Options that LangChain passes to a call.
_CALL_OPTIONS = frozenset(
    {"tools", "tool_choice", "response_format", "strict", "parallel_tool_calls", "stream"}
    # Variables of the chat template, under both names.
    | {"template_options", "chat_template_kwargs"}
)

_CALL_NAMES = _CALL_SETTINGS | _CALL_OPTIONS | frozenset(NAMES)


class ChatGuard(RoutedChatModel):
    """A chat model on a local engine that scores its answers.

    Safe under threads and asyncio; copies share one engine. Every message has the score and a summary of the signature
    in ``response_metadata["guard"]`` (see `guard.langchain.metadata`).
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, populate_by_name=True)

    model: str = Field(default=EMBEDDED)
    """``smollm2`` (the embedded model), a GGUF file, or a model folder."""
    scorer: Any = Field(default=None, repr=False)
    """A scorer file of ``guard calibrate``, or a `Scorer`; optional for the embedded model."""
    force_scorer: bool = False
    """Use a scorer that was fitted on another model; its scores are marked as uncalibrated."""
    engine: Any = Field(default=None, repr=False)
    """``llama.cpp`` or ``transformers`` if both can load the model, or a loaded engine."""
    engine_options: dict[str, Any] = Field(default_factory=dict)
    """For the engine's ``load``, such as ``{"context_tokens": 8192}``."""

    temperature: float = 0.0
    """0 is greedy, as in calibration."""
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = None
    """Token limit of an answer; by default that of the calibration."""
    timeout: float | None = None
    """Seconds that one answer may take, including the queue."""
    stop: list[str] | None = None
    """Stop strings."""
    max_retries: int = Field(default=2, ge=0)
    """Number of retries after an engine error; streams are not retried."""
    streaming: bool = False
    """Stream internally even if the caller invokes."""
    system: str | None = None
    """System message for conversations without one; by default that of the calibration, ``""`` for none."""
    cache_key: str | None = None
    """What the model has read of a prompt is reused for prompts with the same key only; see `Prompt`."""
    template_options: dict[str, Any] | None = Field(default=None, alias="chat_template_kwargs")
    """Variables of the chat template, such as ``{"enable_thinking": False}``; by default those of the calibration.
    Model servers call them ``chat_template_kwargs``."""
    text_around_calls: TextAroundCalls = "before"
    """Where an answer may have text beside its tool calls: ``none``, ``before`` them, or ``any``. Calls with text
    elsewhere are invalid and are not carried out, since they may be examples."""
    api_key: SecretStr | None = Field(default=None, exclude=True, repr=False)
    """Ignored, since a local model has none; accepted because programs that build models by name pass it."""

    route: str | None = None
    """Section of the policy for calls that name none."""
    fallbacks: dict[str, Any] = Field(default_factory=dict, repr=False)
    handlers: dict[str, Any] = Field(default_factory=dict, repr=False)
    store: Any = Field(default=None, repr=False)
    audit_log: Any = Field(default=None, repr=False)
    """These four are used by the policy's actions; see `Guard`."""

    _ready: ChatRuntime | None = PrivateAttr(default=None)

    # -- building ------------------------------------------------------------------------------

    @model_validator(mode="before")
    @classmethod
    def _check_names(cls, values: Any) -> Any:
        """Refuse misspelt settings, which pydantic would drop."""
        if isinstance(values, dict):
            known = {*cls.model_fields, *(info.alias for info in cls.model_fields.values() if info.alias)}
            for name in values:
                if name not in known:
                    raise InputError(f"ChatGuard has no setting '{name}'", fix=did_you_mean(str(name), known))
            as_named("fallbacks", values.get("fallbacks"), FALLBACKS)
            as_named("handlers", values.get("handlers"), HANDLERS)
            # Before pydantic converts texts and booleans to numbers.
            Sampling(**{name: values[name] for name in _SAMPLING if name in values})
            if values.get("max_tokens") is not None:
                Limits(values["max_tokens"])
            Limits(timeout_s=values.get("timeout"))
        return values

    @model_validator(mode="after")
    def _load(self) -> Self:
        """Refuse invalid settings, models and policies when the model is built, not in the first call."""
        self._sampling({})
        self._limits(None, {})
        self._put(Prompt.chat("?", system=self._system(), template_options=self._options({})))
        return self

    @classmethod
    def from_guard(cls, guard: Guard, *, decides: bool = True, **settings: Any) -> Self:
        """Return a chat model on a guard's engine and scorer.

        Args:
            guard: remains the caller's to close.
            decides: decide by the guard's policy, with its fallbacks, handlers and audit log; otherwise only score.
            settings: other fields, such as ``temperature``.
        """
        acting = {name: getattr(guard, name) for name in ("policy", "handlers", "audit_log")}
        store = guard.monitor.store if guard.monitor else None
        acting = {**acting, "fallbacks": guard.sources, "store": store} if decides else {}
        names = ("engine", "scorer", "template_options")
        parts = {"model": guard.engine.model.name, **{name: getattr(guard, name) for name in names}}
        return cls(**{**parts, **acting, "force_scorer": not guard.scorer.calibrated, **settings})

    def _runtime(self) -> ChatRuntime:
        if self._ready is None:
            self._ready = self._make_runtime()
        return self._ready

    def _make_runtime(self) -> ChatRuntime:
        if self.scorer is None and self.model != EMBEDDED:
            raise without_scorer(self.model, self.engine, self.engine_options)
        fitted = self.scorer
        if not isinstance(fitted, Scorer):
            fitted = load_scorer(shipped_scorer() if fitted is None else fitted)
        engine = self._engine(fitted)
        scorer = bind_scorer(fitted, engine, force=self.force_scorer)
        return ChatRuntime(engine, scorer, self._make_guard(engine, scorer))

    def _engine(self, fitted: Scorer) -> Engine:
        if self.engine is None or isinstance(self.engine, str):
            options = loading_options(fitted, self.engine_options)
            return shared_engine(self.model, engine=self.engine, options=options)
        ready: Engine = self.engine
        return ready

    def _make_guard(self, engine: Engine, scorer: Scorer) -> Guard | None:
        if self.policy is None:
            if self.route is not None or self.audit_log is not None:
                raise InputError(
                    "There is no policy for "
                    + ("the audit log" if self.route is None else f"the route '{self.route:.60}'"),
                    why="a ChatGuard without a policy does not decide",
                    fix="Build it with policy=, or give that to the wrapper that decides, or to its calls",
                )
            return None
        policy = load_policy(self.policy)
        policy.check_route(self.route)
        if policy.streaming == "live":
            raise InputError(
                f"The policy '{policy.name}' streams live, but a model with its own policy holds its answers",
                fix="Write streaming: hold, or put guarded(model, policy=...) around a model without a policy",
            )
        declared = declared_sources(
            policy, given=self.fallbacks, load=lambda model, options: shared_engine(model, options=options)
        )
        return Guard(
            engine,
            scorer,
            policy,
            fallbacks={**declared, **self.fallbacks},
            handlers=self.handlers,
            store=self.store,
            audit_log=self.audit_log,
            force_scorer=not scorer.calibrated,
            template_options=self.template_options,
        )

    def __getstate__(self) -> dict[Any, Any]:
        """Return the settings only; the engine is loaded or shared again after unpickling."""
        if self.engine is not None and not isinstance(self.engine, str):
            raise InputError("A ChatGuard on a loaded engine cannot be pickled", fix="Pass model= and engine= by name")
        return {**super().__getstate__(), "__pydantic_private__": {"_ready": None}}

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """Return a copy that shares engines, locks and stores."""
        return self.model_copy()

    # -- methods that LangChain requires of a chat model ------------------------------------------

    @property
    def _llm_type(self) -> str:
        return MODEL_TYPE

    @property
    def _identifying_params(self) -> Mapping[str, Any]:
        runtime = self._runtime()
        return {
            "model_name": self.model,
            "weights": runtime.engine.model.weights_sha256,
            "scorer": runtime.scorer.sha256,
            "policy": runtime.guard.policy.sha256 if runtime.guard else None,
            "route": self.route,
            "system": self.system,
            "template_options": self.template_options,
            **{name: getattr(self, name) for name in sorted(_CALL_SETTINGS)},
        }

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        """Return the model's parameters for traces."""
        params = LangSmithParams(
            ls_provider="guard",
            ls_model_name=kwargs.get("model", self.model),
            ls_model_type="chat",
            ls_temperature=float(kwargs.get("temperature", self.temperature)),
        )
        max_tokens = kwargs.get("max_tokens", self.max_tokens)
        if max_tokens is not None:
            params["ls_max_tokens"] = max_tokens
        ends = self.stop if stop is None else stop
        if ends:
            params["ls_stop"] = ends
        return params

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """Return the key of LangChain's cache; a retry of a guarded chain must not get the first answer from it."""
        own = super()._get_llm_string(stop=stop, **kwargs)
        attempt = ATTEMPT.get()
        return own if attempt is None else f"{own}---{attempt.sampling}{attempt.instruction}{attempt.token_limit}"

    def get_token_ids(self, text: str) -> list[int]:
        """Return the model's own tokens of a text."""
        engine = self._runtime().engine
        if self.custom_get_token_ids is None and isinstance(engine, TokenizingEngine):
            return engine.encode_text(text)
        return super().get_token_ids(text)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return drive(self._result(messages, stop, run_manager, kwargs))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return await adrive(self._result(messages, stop, run_manager, kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        yield from drive_stream(self._chunks(messages, stop, run_manager, kwargs))

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with aclosing(adrive_stream(self._chunks(messages, stop, run_manager, kwargs))) as chunks:
            async for chunk in chunks:
                yield chunk

    # -- one answer ----------------------------------------------------------------------------

    def _result(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: RunManager, options: dict[str, Any]
    ) -> Steps[ChatResult]:
        """Generate and score an answer, or let the model's own policy decide about it."""
        request, answering, called, runtime = self._begin(messages, stop, run_manager, options)
        if runtime.guard is None:
            message = yield from self._retried(partial(runtime.answer, request))
        else:
            message = yield from runtime.decided(request, called.route)
        answering.say(message.text)
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunks(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: RunManager, options: dict[str, Any]
    ) -> Stream:
        """Emit an answer as it grows; where the model's own policy decides, after the decision."""
        request, answering, called, runtime = self._begin(messages, stop, run_manager, options)
        emit = partial(_emit, answering, run_manager)
        if runtime.guard is None:
            yield from runtime.stream(request, emit)
            return
        message = yield from runtime.decided(request, called.route)
        for chunk in message_chunks(message):
            yield from emit(chunk)

    def _begin(
        self, messages: list[BaseMessage], stop: list[str] | None, run_manager: RunManager, options: dict[str, Any]
    ) -> tuple[ChatRequest, AnswerWitness, Self, ChatRuntime]:
        """Return the request, who witnesses its answer, and the model of this call with its runtime."""
        called, options = self._for_call(options)
        request, runtime = self._request(messages, stop, options), called._runtime()
        run = run_manager.run_id if run_manager else None
        return request, begin(run, prompt_text(messages), decided=runtime.decides), called, runtime

    def _retried(self, attempt: Callable[[], Steps[AIMessage]]) -> Steps[AIMessage]:
        """Try again after an engine's own failure; any other error would recur."""
        retries = self.max_retries
        while True:
            try:
                return (yield from attempt())
            except EngineError as error:
                if type(error) is not EngineError or not retries:
                    raise
                retries -= 1

    # -- tools and structure -------------------------------------------------------------------

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | bool | dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Return a model that may call tools. Tool calls are parsed after the answer is scored.

        Args:
            tools: tools in any form that LangChain accepts.
            tool_choice: ``auto``, ``none``, ``any`` (or True, ``required``), or a tool's name. With the last two the
                answer is one such call: decoding is constrained to it, unless ``strict`` is False.
            kwargs: bound to the model as well, such as ``strict``.

        Raises:
            ChatTemplateError: the model's chat template does not support tools, or guard cannot parse the model's form
                of tool calls.
            InputError: ``tool_choice`` names an unknown tool.
        """
        formatted = [convert_to_openai_tool(tool) for tool in tools]
        if formatted:
            check_tools(self._runtime().engine, self.model, formatted)
            tool_instruction(tool_choice, [tool["function"]["name"] for tool in formatted])
        chosen = {} if tool_choice is None else {"tool_choice": tool_choice}
        return self.bind(tools=formatted, **chosen, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        include_raw: bool = False,
        method: Literal["json_schema", "json_mode", "function_calling"] = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Return a model whose answers are objects.

        Args:
            schema: a pydantic class, a `TypedDict`, a JSON Schema, or a tool's definition.
            include_raw: return ``{"raw": message, "parsed": ..., "parsing_error": ...}``; the score is on the raw
                message.
            method: ``json_schema`` puts the schema into the prompt and parses the answer's JSON; ``json_mode`` leaves
                the schema to your prompt; ``function_calling`` needs a chat template with tools.
            strict: False only asks for the form, in the prompt; otherwise decoding is constrained to it.
            kwargs: bound to the model as well.

        Raises:
            ChatTemplateError: as for `bind_tools`, with ``function_calling``.
            InputError: an unknown method; in a call, a schema that cannot be compiled.
        """
        kwargs |= {} if strict is None else {"strict": strict}
        return structured(self, schema, include_raw=include_raw, method=method, **kwargs)

    # -- one call ------------------------------------------------------------------------------

    def _for_call(self, options: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Return the model with the route and policy of one call, and the call's other keyword arguments."""
        named, rest = split_options(options)
        if not named:
            return self, rest
        called = self.model_copy(update=named.changes())
        guard = self._runtime().guard
        if guard is None or called.policy != self.policy:
            called._ready = None  # another policy, which is loaded now
        else:
            guard.policy.check_route(called.route)
        called._runtime()
        return called, rest

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, options: Mapping[str, Any]) -> ChatRequest:
        """Return the request for an engine, with the changes of a guarded chain's attempt."""
        for name in options:
            if name not in _CALL_SETTINGS and name not in _CALL_OPTIONS:
                raise InputError(f"A call of ChatGuard has no option '{name}'", fix=did_you_mean(name, _CALL_NAMES))
        attempt = ATTEMPT.get() or AttemptSettings()
        tools = [] if options.get("tool_choice") == "none" else list(options.get("tools") or ())
        names = [tool["function"]["name"] for tool in tools]
        prompt = Prompt.chat(
            chat_turns(messages), system=self._system(), tools=tools, template_options=self._options(options)
        )
        prompt = replace(self._put(prompt), cache_key=options.get("cache_key", self.cache_key))
        form = find_form(self._runtime().engine, self.model) if names else HERMES
        prompt = in_asked_form(prompt, options, tools, form)
        prompt = attempt.prompts[prompt_text(messages)] = attempt.prompt(prompt)
        return ChatRequest(
            prompt=prompt,
            sampling=attempt.sampling or self._sampling(options),
            limits=attempt.limits(self._limits(stop, options)),
            tools=tuple(names),
            form=form if prompt.response_format is None else HERMES,
            demanded=tool_instruction(options.get("tool_choice"), names) is not None,
            around=self.text_around_calls,
        )

    def _put(self, prompt: Prompt) -> Prompt:
        return put_as_fitted(prompt, self._runtime().scorer.artefact.prompting)

    def _system(self) -> str | None:
        own = self.system
        return self._runtime().scorer.artefact.prompting.system if own is None else own

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chat-template variables of one call: the model's with the call's own."""
        runtime, own = self._runtime(), options.get("template_options", options.get("chat_template_kwargs"))
        given = checked_options(runtime.engine, runtime.scorer, self.template_options)
        return {**given, **(own or {})}

    def _sampling(self, options: Mapping[str, Any]) -> Sampling:
        return Sampling(**{name: options.get(name, getattr(self, name)) for name in _SAMPLING})

    def _limits(self, stop: list[str] | None, options: Mapping[str, Any]) -> Limits:
        fitted = fitted_limits(self._runtime().scorer.artefact.prompting)
        max_tokens = options.get("max_tokens", self.max_tokens)
        ends: Any = (self.stop if stop is None else stop) or ()
        stops: Any = ends if isinstance(ends, str) else tuple(ends)  # tuple() of a text would give its characters
        tokens = fitted.max_tokens if max_tokens is None else max_tokens
        limits = Limits(tokens, stops, options.get("timeout", self.timeout))
        return replace(limits, stop=(*fitted.stop, *limits.stop))


def _emit(answering: AnswerWitness, run_manager: RunManager, chunk: ChatGenerationChunk) -> Stream:
    """Report a chunk to the witness and to callbacks, then emit it."""
    answering.say(chunk.text)
    if run_manager is not None:
        report: Callable[[], Any] = partial(run_manager.on_llm_new_token, str(chunk.message.content), chunk=chunk)
        yield Step(report, report)
    yield Emit(chunk)
