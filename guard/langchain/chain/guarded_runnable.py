"""Guard any chain.

    chain = prompt | ChatGuard() | StrOutputParser()
    safe = guarded(chain, policy="balanced")
    safe.invoke({"question": "What is the capital of France?"})

LangChain's callbacks report the scores of all model calls in the chain. When the chain has finished, the policy decides
once: the output is accepted, withheld, regenerated, replaced by a fallback, or escalated. An accepted output is the
chain's own, unchanged.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

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

from guard.errors import InputError
from guard.langchain.attempts.attempt_run import join_chunks
from guard.langchain.attempts.stateful_steps import refuse_stateful
from guard.langchain.attempts.trusted_fallbacks import fallback_steps
from guard.langchain.call_options import NAMES, SPECS, merged, read_config, split_options
from guard.langchain.chain.chain_call import ChainCall
from guard.langchain.chain.chain_rules import ChainRules
from guard.langchain.chain.guarded_run import GuardedOutcome, GuardedRun
from guard.langchain.tracing import escalation_metadata, marked_run
from guard.policy.cuts import refuse_cuts
from guard.policy.guarantee import refuse_guarantees
from guard.policy.policy import Calls, Policy, load_policy
from guard.policy.stopping import refuse_early
from guard.review.handlers import HANDLERS, Handler, as_named, check_handlers, log_handler
from guard.runtime.call_state import CallState
from guard.runtime.decision_log import log_policy
from guard.runtime.monitored import find_monitor
from guard.runtime.resources import all_handlers
from guard.runtime.steps import adrive, adrive_stream, drive, drive_stream

if TYPE_CHECKING:
    from langchain_core.runnables.graph import Graph

    from guard.audit.log import AuditLog
    from guard.monitoring.acceptance import AcceptanceMonitor
    from guard.review.store import Store

Scores = Literal["worst", "last"] | Mapping[str, str] | Calls


class GuardedRunnable(RunnableSerializable[Input, Output]):
    """A chain whose output is released only by a policy's decision. Create one with `guarded`.

    Holds settings only, so it is safe under threads, batches and asyncio. Supports what LangChain's runnables support:
    ``|``, ``batch``, ``with_config``, ``configurable_fields``, ``with_retry``, ``with_fallbacks``, ``astream_events``.
    A call may name its own ``route`` and ``policy``, as a keyword argument or as a ``configurable`` key.
    """

    guard_boundary: ClassVar[bool] = True
    """Marks a step that was searched for stateful steps when it was built."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    runnable: Any
    """The chain."""
    policy: Any
    """A file, a built-in name or a `Policy`."""
    route: str | None = None
    """Name of a section of the policy."""
    scores: Any = None
    """Which scores decide, in place of the policy's ``calls``."""
    fallbacks: dict[str, Any] = Field(default_factory=dict, repr=False)
    handlers: dict[str, Any] = Field(default_factory=dict, repr=False)
    store: Any = Field(default=None, repr=False)
    output: Any = None
    """Makes the output that replaces a rejected answer, from the `Outcome`."""
    return_outcome: bool = False
    """Return a `GuardedOutcome` in place of the output."""
    handler_timeout_s: float = Field(default=10.0, gt=0)
    audit_log: Any = Field(default=None, repr=False)
    """Gets every decision before it is carried out; an `AuditLog`."""
    field_ids: frozenset[str] = Field(default=frozenset(), repr=False)
    """Keys of `configurable_fields`, which may resemble ``route`` and ``policy``."""

    _policy: Policy | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _check(self) -> Self:
        """Refuse invalid policies, routes and names when the chain is built, not in the first call."""
        rules = self.rules()
        policy = rules.policy
        policy.check_route(self.route)
        refuse_guarantees(policy, caller="a chain")
        refuse_cuts(policy, caller="a chain", why="its output may be anything that was made of the answer")
        refuse_early(policy, caller="a chain", why="it decides when its steps are done, of which the model is one")
        for name in policy.fallback_names():
            rules.fallback(name)
        if policy.mode == "enforce":
            check_handlers(policy.handler_names(), {"review": log_handler, "log": log_handler, **self.handlers})
        for step in (self.runnable, *fallback_steps(self.fallbacks).values()):
            refuse_stateful(step)
        log_policy(self.audit_log, policy)
        return self

    # -- settings --------------------------------------------------------------------------------

    def rules(self) -> ChainRules:
        """Return the rules of this chain's calls; the policy is read once."""
        if self._policy is None:
            self._policy = load_policy(self.policy)
        return ChainRules(
            runnable=self.runnable,
            policy=self._policy,
            route=self.route,
            join=_deciding_scores(self.scores, self._policy),
            fallbacks=self.fallbacks,
            handlers=self._all_handlers,
            handler_timeout_s=self.handler_timeout_s,
            output=self.output,
            return_outcome=self.return_outcome,
            audit_log=self.audit_log,
            monitor=self._monitor,
        )

    def _monitor(self) -> AcceptanceMonitor | None:
        """Return what draws audit cases, one for each policy and store of the process."""
        policy = self.rules().policy
        return find_monitor(policy, partial(_opened, self.store))

    def _all_handlers(self) -> dict[str, Handler]:
        """Return the handlers by name, with the built-in ones."""
        return all_handlers(self.rules().policy, self.handlers, partial(_opened, self.store))

    def with_outcome(self) -> GuardedRunnable[Input, Any]:
        """Return the same chain with a `GuardedOutcome` (the output and its outcome) in place of the output."""
        return type(self)(**{**self._settings(), "return_outcome": True})

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields}

    def __getstate__(self) -> dict[Any, Any]:
        """Return the settings only; the policy is read again after unpickling."""
        return {**super().__getstate__(), "__pydantic_private__": {"_policy": None}}

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[Input, Output]:
        """See LangChain. ``route`` and ``policy`` need no field unless you want other keys for them."""
        ids = {field.id for field in kwargs.values() if isinstance(field, ConfigurableField) and field.id}
        settings = {**self._settings(), "field_ids": self.field_ids | ids}
        return super(GuardedRunnable, type(self)(**settings)).configurable_fields(**kwargs)

    def _called(self, config: RunnableConfig | None, options: dict[str, Any]) -> tuple[Self, dict[str, Any]]:
        """Return the chain with the route and policy of one call, and the keyword arguments for the inner chain."""
        by_keyword, rest = split_options(options, own=type(self).model_fields)
        named = merged(by_keyword, read_config(config, taken=self._declared_keys()))
        if not named:
            return self, rest
        return type(self)(**{**self._settings(), "policy": self.rules().policy, **named.changes()}), rest

    def _declared_keys(self) -> frozenset[str]:
        return self.field_ids | {spec.id for spec in self.runnable.config_specs}

    # -- running -------------------------------------------------------------------------------

    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        """Run the chain, decide, act.

        Raises:
            AbstainedError: where the policy says ``abstain: {raise: true}``.
            EscalationError: no handler accepted the case.
            Exception: the chain's own error, if the score allows it to be shown.
            InputError, PolicyError: the call names an unknown route, policy or key.
        """
        called, options = self._called(config, kwargs)

        def call(input: Input, run_manager: CallbackManagerForChainRun, config: RunnableConfig) -> Output:
            output: Output
            (output,) = drive(called._run(input, config, options).steps(stream=False))
            return output

        return called._call_with_config(call, input, called._marked(config))

    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        """`invoke` without blocking the event loop."""
        called, options = self._called(config, kwargs)

        async def call(input: Input, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig) -> Output:
            output: Output
            (output,) = await adrive(called._run(input, config, options).steps(stream=False))
            return output

        return await called._acall_with_config(call, input, called._marked(config))

    def transform(
        self, input: Iterator[Input], config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[Output]:
        """Stream the chain according to the policy's ``streaming``; the whole input is read first.

        Raises:
            RetractedError: the policy rejected a live answer (see `guard.runtime.stream_monitor`).
            AbstainedError, EscalationError, Exception: as for `invoke`.
        """
        called, options = self._called(config, kwargs)

        def run(
            input: Iterator[Input], run_manager: CallbackManagerForChainRun, config: RunnableConfig
        ) -> Iterator[Output]:
            yield from drive_stream(called._run(join_chunks(list(input)), config, options).stream())

        yield from called._transform_stream_with_config(input, run, called._marked(config))

    async def atransform(
        self, input: AsyncIterator[Input], config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncGenerator[Output, None]:
        """`transform` without blocking the event loop."""
        called, options = self._called(config, kwargs)

        async def run(
            input: AsyncIterator[Input], run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig
        ) -> AsyncIterator[Output]:
            run = called._run(join_chunks([chunk async for chunk in input]), config, options)
            async with aclosing(adrive_stream(run.stream())) as chunks:
                async for chunk in chunks:
                    yield chunk

        stream = called._atransform_stream_with_config(input, run, called._marked(config))
        async with aclosing(stream) as chunks:  # type: ignore[type-var] # LangChain's is a generator
            async for chunk in chunks:
                yield chunk

    def stream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Output]:
        """Stream one input; see `transform`."""
        yield from self.transform(iter([input]), config, **kwargs)

    async def astream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Output]:
        """Stream one input; see `atransform`."""

        async def inputs() -> AsyncIterator[Input]:
            yield input

        async with aclosing(self.atransform(inputs(), config, **kwargs)) as chunks:
            async for chunk in chunks:
                yield chunk

    def _run(self, input: Input, config: RunnableConfig, options: dict[str, Any]) -> GuardedRun:
        rules = self.rules()
        state = CallState(rules.policy, rules.route)
        return GuardedRun(ChainCall(rules, state, input, escalation_metadata(config)), config, options)

    def _marked(self, config: RunnableConfig | None) -> RunnableConfig:
        return marked_run(config, self.rules().policy, self.route)

    # -- LangChain's description of a runnable ---------------------------------------------------

    @property
    def InputType(self) -> Any:
        """The chain's input type."""
        return self.runnable.InputType

    @property
    def OutputType(self) -> Any:
        """The chain's output type, or `GuardedOutcome`."""
        return GuardedOutcome if self.return_outcome else self.runnable.OutputType

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Return the input schema of the chain."""
        schema: type[BaseModel] = self.runnable.get_input_schema(config)
        return schema

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Return the output schema of the chain, or that of `GuardedOutcome`."""
        source: Any = super() if self.return_outcome else self.runnable
        schema: type[BaseModel] = source.get_output_schema(config)
        return schema

    def get_graph(self, config: RunnableConfig | None = None) -> Graph:
        """Return the graph of the chain."""
        graph: Graph = self.runnable.get_graph(config)
        return graph

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The chain's config specs, with the route and the policy."""
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
    audit_log: AuditLog | None = None,
) -> GuardedRunnable[Input, Output]:
    """Guard a chain that contains a scored model (`ChatGuard`).

    Args:
        runnable: the chain; anything that LangChain can run.
        policy: a file, a built-in (``strict``, ``balanced``, ``permissive``, ``shadow``), or a `Policy`.
        route: name of a section of the policy, for calls that name none.
        scores: which scores decide, in place of the policy's ``calls``: ``worst``, ``last``, or
            ``{"tag": NAME}`` for the calls of steps with that tag.
        fallbacks: runnables for the policy's ``fallback: {to: NAME}``. The policy decides about one that contains a
            scored model, as about the chain. The answer of another is final if it is declared `trusted`, and a scoring
            failure otherwise.
        handlers: for ``escalate: {to: [NAME]}``; ``log`` and ``review`` are built in.
        store: the store of ``review``.
        output: makes the output that replaces a rejected answer, from the `Outcome`. By default that is the policy's
            text (or None), as a message if the chain's output is a message.
        return_outcome: see `GuardedRunnable.with_outcome`.
        handler_timeout_s: deadline of each handler, in seconds.
        audit_log: gets every decision before it is carried out. Where it cannot be written, the call raises
            `StoreError` and gives no answer.

    Raises:
        PolicyError: the policy is invalid, has no such route, or has a risk guarantee, which no certificate covers
            here.
        InputError: a fallback or handler that the policy names is missing, or the chain contains a step that stores
            answers itself (a conversation history, a graph with a checkpointer or a store), where a guard around it
            cannot remove them.

    Examples:
        A chain without a scored model is never accepted:

        >>> from guard import parse_policy
        >>> policy = parse_policy("{version: 1, name: mine, rules: [{accept: {below: 0.3}}, {abstain: {}}]}")
        >>> chain = guarded(str.upper, policy=policy)
        >>> chain.with_outcome().invoke("hello").outcome.action.value
        'abstain'
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
        audit_log=audit_log,
    )


def _deciding_scores(scores: Any, policy: Policy) -> Calls:
    """Return which scores decide: those that the caller chose, or else those of the policy."""
    if scores is None:
        return policy.calls
    if isinstance(scores, Calls):
        return scores
    try:
        return Calls.model_validate(scores)
    except ValueError as error:
        raise InputError(f"scores= cannot be {scores!r:.100}", fix="Give 'worst', 'last', or {'tag': NAME}") from error


@lru_cache(maxsize=32)
def _opened_path(path: str | None) -> Store:
    from guard.review.store import Store

    return Store.open(path)


def _opened(store: Store | str | Path | None) -> Store:
    """Return a store; a path is opened once per process."""
    if store is None or isinstance(store, str | Path):
        return _opened_path(None if store is None else str(store))
    return store
