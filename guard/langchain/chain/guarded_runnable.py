"""Any chain as a guarded one.

    chain = prompt | ChatGuard() | StrOutputParser()
    safe = guarded(chain, policy="balanced")
    safe.invoke({"question": "What is the capital of France?"})

The scores of all model calls inside are collected through LangChain's callbacks; when the chain has
ended the policy decides once, and the chain's output is accepted, withheld, made again, taken from
somewhere else, or handed to a person. Where it is accepted it is the chain's own, untouched.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.base import coerce_to_runnable
from langchain_core.runnables.utils import (
    AnyConfigurableField,
    ConfigurableField,
    ConfigurableFieldSpec,
    Input,
    Output,
    get_unique_config_specs,
)
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from guard.errors import InputError, did_you_mean
from guard.langchain.attempts.buffered_run import join_chunks
from guard.langchain.attempts.stateful_steps import refuse_stateful
from guard.langchain.attempts.trusted_fallbacks import steps_of
from guard.langchain.call_options import NAMES, SPECS, joined, read_config, split_options
from guard.langchain.chain.chain_call import ChainCall
from guard.langchain.chain.guarded_run import GuardedOutcome, GuardedRun
from guard.langchain.tracing import escalation_metadata, marked_run
from guard.policy.guarantee import refuse_guarantees
from guard.policy.policy import Calls, Policy, load_policy
from guard.review.handlers import HANDLERS, Handler, as_named, check_handlers, log_handler
from guard.runtime.call_state import CallState

if TYPE_CHECKING:
    from langchain_core.runnables.graph import Graph

    from guard.review.store import Store

Scores = Literal["worst", "last"] | Mapping[str, str] | Calls


class GuardedRunnable(RunnableSerializable[Input, Output]):
    """A chain whose output leaves it only by a policy's decision. Build one with `guarded`.

    Holds settings only, so it is safe under threads, batches and asyncio. Takes part in everything
    that LangChain's runnables do: ``|``, ``batch``, ``with_config``, ``configurable_fields``,
    ``with_retry``, ``with_fallbacks``, ``astream_events``. A call may name a ``route`` and a ``policy``
    of its own, by keyword argument or as a ``configurable`` key.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    runnable: Any
    """The chain."""
    policy: Any
    """A file, a built-in name or a `Policy`."""
    route: str | None = None
    """Name of a section of the policy."""
    scores: Any = None
    """In place of the policy's ``calls``."""
    fallbacks: dict[str, Any] = Field(default_factory=dict, repr=False)
    handlers: dict[str, Any] = Field(default_factory=dict, repr=False)
    store: Any = Field(default=None, repr=False)
    output: Any = None
    """Makes what the caller gets in place of an answer."""
    return_outcome: bool = False
    """Give a `GuardedOutcome` in place of the output."""
    handler_timeout_s: float = Field(default=10.0, gt=0)
    field_ids: frozenset[str] = Field(default=frozenset(), repr=False)
    """Keys of `configurable_fields`, which may be similar to ours."""

    _policy: Policy | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Bad policies, routes and names are found here, not in the first call that needs them."""
        policy = self.resolved_policy()
        policy.check_route(self.route)
        refuse_guarantees(policy, caller="a chain")
        self.joined(policy)
        for name in policy.fallback_names():
            self.fallback(name)
        if policy.mode == "enforce":
            check_handlers(policy.handler_names(), {"review": log_handler, "log": log_handler, **self.handlers})
        for step in (self.runnable, *steps_of(self.fallbacks).values()):
            refuse_stateful(step)
        return self

    # -- what a call asks of the settings --------------------------------------------------------

    def resolved_policy(self) -> Policy:
        """The policy itself, read once."""
        if self._policy is None:
            self._policy = load_policy(self.policy)
        return self._policy

    def joined(self, policy: Policy) -> Calls:
        """Which scores decide."""
        if self.scores is None:
            return policy.calls
        if isinstance(self.scores, Calls):
            return self.scores
        try:
            return Calls.model_validate(self.scores)
        except ValueError as error:
            raise InputError(
                f"scores= cannot be {self.scores!r:.100}", fix="Give 'worst', 'last', or {'tag': NAME}"
            ) from error

    def fallback(self, name: str) -> Runnable[Any, Any]:
        """A fallback by its name in the policy."""
        if name not in self.fallbacks:
            policy = self.resolved_policy()
            why = "an engine that a policy declares cannot take a chain's place" if name in policy.fallbacks else ""
            raise InputError(
                f"The policy '{policy.name}' falls back to '{name}', which is not there",
                why=why,
                fix=did_you_mean(name, self.fallbacks) or "Give a runnable of that name in fallbacks=",
            )
        runnable: Runnable[Any, Any] = coerce_to_runnable(steps_of(self.fallbacks)[name])
        return runnable

    def all_handlers(self) -> dict[str, Handler]:
        """Handlers by name, with those that are always there."""
        handlers: dict[str, Handler] = {"log": log_handler, **self.handlers}
        if "review" in self.resolved_policy().handler_names() and "review" not in handlers:
            from guard.review.handlers import ReviewQueue

            handlers["review"] = ReviewQueue(_opened(self.store))
        return handlers

    def with_outcome(self) -> GuardedRunnable[Input, Any]:
        """The same, giving a `GuardedOutcome` (the output and all that is known of it) in place of the output."""
        return type(self)(**{**self._settings(), "return_outcome": True})

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    def __getstate__(self) -> dict[Any, Any]:
        """Pickles hold the settings; an opened store stays where it is."""
        return {**super().__getstate__(), "__pydantic_private__": {"_policy": None}}

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[Input, Output]:
        """See LangChain's. ``route`` and ``policy`` need none, unless you want other keys for them."""
        ids = {field.id for field in kwargs.values() if isinstance(field, ConfigurableField) and field.id}
        settings = {**self._settings(), "field_ids": self.field_ids | ids}
        return super(GuardedRunnable, type(self)(**settings)).configurable_fields(**kwargs)

    def _called(self, config: RunnableConfig | None, options: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """The runnable as one call wants it, and the keyword arguments that are for the chain."""
        by_keyword, rest = split_options(options, own=type(self).model_fields)
        named = joined(by_keyword, read_config(config, taken=self._others_keys()))
        if not named:
            return self, rest
        return type(self)(**{**self._settings(), "policy": self.resolved_policy(), **named.changes()}), rest

    def _others_keys(self) -> frozenset[str]:
        return self.field_ids | {spec.id for spec in self.runnable.config_specs}

    # -- running -------------------------------------------------------------------------------

    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        """Run the chain, decide, act.

        Raises:
            AbstainedError: where the policy says ``abstain: {raise: true}``.
            EscalationError: no handler took the case.
            Exception: the chain's own error, where the score allows it to be shown.
            InputError, PolicyError: the call names a route or a policy that is not there, or a key that
                is not known.
        """
        called, options = self._called(config, kwargs)

        def call(asked: Input, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Output:
            output: Output
            (output,) = called._run(asked, config, options).run(stream=False)
            return output

        return called._call_with_config(call, input, called._marked(config))

    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        """`invoke` without blocking the event loop."""
        called, options = self._called(config, kwargs)

        async def call(asked: Input, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Output:
            output: Output
            (output,) = await called._run(asked, config, options).arun(stream=False)
            return output

        return await called._acall_with_config(call, input, called._marked(config))

    def transform(
        self, input: Iterator[Input], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Output]:
        """Stream the chain as the policy's ``streaming`` says; the whole input is read first.

        Raises:
            RetractedError: a live stream does not hold (see `guard.langchain.chat.stream_monitor`).
            AbstainedError, EscalationError, Exception: as for `invoke`.
        """
        called, options = self._called(config, kwargs)

        def run(
            asked: Iterator[Input], run_manager: CallbackManagerForChainRun, config: RunnableConfig
        ) -> Iterator[Output]:
            run = called._run(join_chunks(list(asked)), config, options)
            yield from run.live() if run.streams_live else run.run(stream=True)

        yield from called._transform_stream_with_config(input, run, called._marked(config))

    async def atransform(
        self, input: AsyncIterator[Input], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Output, None]:
        """`transform` without blocking the event loop."""
        called, options = self._called(config, kwargs)

        async def run(
            asked: AsyncIterator[Input], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
        ) -> AsyncIterator[Output]:
            run = called._run(join_chunks([chunk async for chunk in asked]), config, options)
            if run.streams_live:
                async with aclosing(run.alive()) as live:
                    async for chunk in live:
                        yield chunk
            else:
                for chunk in await run.arun(stream=True):
                    yield chunk

        stream = called._atransform_stream_with_config(input, run, called._marked(config))
        async with aclosing(stream) as chunks:  # type: ignore[type-var] # LangChain's is a generator
            async for chunk in chunks:
                yield chunk

    def stream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Output]:
        """See `transform`."""
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Output]:
        """See `atransform`."""

        async def asked() -> AsyncIterator[Input]:
            yield input

        async with aclosing(self.atransform(asked(), config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _run(self, asked: Input, config: RunnableConfig, options: dict[str, Any]) -> GuardedRun:
        state = CallState(self.resolved_policy(), self.route)
        return GuardedRun(ChainCall(self, state, asked, escalation_metadata(config)), config, options)

    def _marked(self, config: RunnableConfig | None) -> RunnableConfig:
        return marked_run(config, self.resolved_policy(), self.route)

    # -- what LangChain asks of a runnable -------------------------------------------------------

    @property
    def InputType(self) -> Any:
        """The chain's."""
        return self.runnable.InputType

    @property
    def OutputType(self) -> Any:
        """The chain's, or an outcome."""
        return GuardedOutcome if self.return_outcome else self.runnable.OutputType

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The chain's."""
        schema: type[BaseModel] = self.runnable.get_input_schema(config)
        return schema

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """The chain's, unless outcomes are given."""
        source: Any = super() if self.return_outcome else self.runnable
        schema: type[BaseModel] = source.get_output_schema(config)
        return schema

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """The chain's."""
        graph: Graph = self.runnable.get_graph(config)
        return graph

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The chain's, with the route and the policy."""
        chain = [spec for spec in self.runnable.config_specs if spec.id not in NAMES]
        return get_unique_config_specs([*chain, *(spec for spec in SPECS if spec.id not in self.field_ids)])


def guarded(
    runnable: Runnable[Input, Output] | Callable[[Input], Output] | Mapping[str, Any],
    *,
    policy: str | Path | Policy = "balanced",
    route: str | None = None,
    scores: Scores | None = None,
    fallbacks: Mapping[str, Any] | None = None,
    handlers: Mapping[str, Handler] | None = None,
    store: Store | str | Path | None = None,
    output: Callable[..., Any] | None = None,
    return_outcome: bool = False,
    handler_timeout_s: float = 10.0,
) -> GuardedRunnable[Input, Output]:
    """Guard a chain that contains a scored model (`ChatGuard`).

    Args:
        runnable: the chain: anything that LangChain can run.
        policy: a file, a built-in (``strict``, ``balanced``, ``permissive``, ``shadow``), or a `Policy`.
        route: name of a section of the policy, for calls that name none.
        scores: which scores decide, in place of the policy's ``calls``: ``worst``, ``last``, or
            ``{"tag": NAME}`` for the calls of steps with that tag.
        fallbacks: runnables for the policy's ``fallback: {to: NAME}``. One that contains a scored model
            is decided on like the chain. What another gives is final where it is declared `trusted`, and
            else a failure of scoring.
        handlers: for ``escalate: {to: [NAME]}``; ``log`` and ``review`` are there already.
        store: where ``review`` keeps its cases.
        output: makes what the caller gets in place of an answer, from the `Outcome`. By default it is
            the policy's text (or None), as a message where the chain gives messages.
        return_outcome: see `GuardedRunnable.with_outcome`.
        handler_timeout_s: deadline of each handler, in seconds.

    Raises:
        PolicyError: the policy is wrong, has no such route, or guarantees an error rate, which no certificate
            covers here.
        InputError: a fallback or handler that the policy names is missing, or the chain contains a step
            that saves answers by itself (a conversation history, a graph with a checkpointer or a store),
            which no guard around it could take back.
    """
    return GuardedRunnable(
        runnable=coerce_to_runnable(runnable),
        policy=policy,
        route=route,
        scores=scores,
        fallbacks=as_named("fallbacks", fallbacks, "runnables"),
        handlers=as_named("handlers", handlers, HANDLERS),
        store=store,
        output=output,
        return_outcome=return_outcome,
        handler_timeout_s=handler_timeout_s,
    )


@lru_cache(maxsize=32)
def _opened_path(path: str | None) -> Store:
    from guard.review.store import Store

    return Store.open(path)


def _opened(store: Store | str | Path | None) -> Store:
    """A store; one that is given by its place is opened once in a process."""
    if store is None or isinstance(store, str | Path):
        return _opened_path(None if store is None else str(store))
    return store
