"""The guard: a model, a scorer and a policy in one object.

`Guard.ask` builds a `guard.runtime.loop.Call`; its `steps` lead from the prompt to the outcome.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from guard.engines import EMBEDDED, load_engine
from guard.engines.protocols import Engine
from guard.errors import InputError
from guard.policy.certificate import Answering, Certificates, Fingerprint, certified_policy, needed_certificates
from guard.policy.guarantee import find_fallbacks, procedure_sha256, refuse_guarantees
from guard.policy.policy import Policy, load_policy
from guard.records import Attempt, Generation, Limits, Outcome, Prompt, Sampling
from guard.response_format import ResponseFormat
from guard.review.handlers import HANDLERS, Handler, ReviewQueue, WaitingQueue, as_named
from guard.runtime.base_models import fitted_limits, put_as_fitted
from guard.runtime.call_state import OWN_ENGINE, CallState
from guard.runtime.decision_log import log_policy
from guard.runtime.given_answers import score_given
from guard.runtime.live import stream_steps
from guard.runtime.loop import Call
from guard.runtime.monitored import find_monitor
from guard.runtime.resources import Resources, all_handlers, open_store
from guard.runtime.sources import (
    FALLBACKS,
    FallbackFunction,
    Source,
    bind_scorer,
    check_scores,
    check_source,
    checked_options,
    declared_sources,
    find_capture_point,
    loading_options,
    missing_fallback,
)
from guard.runtime.steps import Steps, adrive, adrive_stream, drive, drive_stream
from guard.runtime.unscored_models import without_scorer
from guard.scores import Score
from guard.scoring.provenance import Binding
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer

if TYPE_CHECKING:
    from guard.audit.log import AuditLog
    from guard.monitoring.acceptance import AcceptanceMonitor
    from guard.review.results import ReviewResult
    from guard.review.store import Store

#: Input of a call: a question, chat messages, or a prompt.
PromptLike = str | Iterable[Mapping[str, Any]] | Prompt


class Guard:
    """A model with a scorer of its answers and a policy that acts on the scores.

    Safe under threads and asyncio. Build one with `Guard.load`, or from parts.
    """

    def __init__(
        self,
        engine: Engine,
        scorer: Scorer,
        policy: Policy | str | Path,
        *,
        fallbacks: Mapping[str, Guard | Source | FallbackFunction] | None = None,
        handlers: Mapping[str, Handler] | None = None,
        store: Store | str | Path | None = None,
        force_scorer: bool = False,
        handler_timeout_s: float = 10.0,
        certificate: Certificates | str | Path | None = None,
        template_options: Mapping[str, Any] | None = None,
        audit_log: AuditLog | None = None,
        all_scores: bool = False,
    ) -> None:
        """
        Args:
            engine: the engine that answers.
            scorer: a scorer that was fitted on the engine's model.
            policy: a `Policy`, a built-in name or a file.
            fallbacks: for the policy's ``fallback: {to: NAME}``: other guards or sources (their engine
                answers, their scorer scores, this policy decides) or callables (their answer is final).
            handlers: for the policy's ``escalate: {to: [NAME]}``; ``log`` and ``review`` are built in unless you pass
                your own.
            store: where ``review`` and the policy's ``audit`` keep their cases; by default the user's data folder.
            force_scorer: use a scorer that was fitted on another model; its scores are marked as uncalibrated.
            handler_timeout_s: deadline of each handler, in seconds.
            certificate: certificates, or a file of ``guard certify``, with the thresholds of a policy that guarantees
                an error rate; by default the file that the policy names.
            template_options: variables of the model's chat template; by default those of the calibration.
            audit_log: gets every decision before it is carried out, such as ``store.audit_log()``. Where it
                cannot be written, the call raises `StoreError` and gives no answer.
            all_scores: compute every score that the scorers give. By default, the one that the policy decides on is
                computed, and those that need nothing more of the layers; in shadow mode always all.

        Raises:
            ScorerMismatchError: the scorer was fitted on another model.
            CertificateError: the policy has a risk guarantee and no valid certificate.
            ScorerError: the policy needs a score or the ood_score, and a scorer does not give it.
            InputError: the policy names an unknown fallback or handler, or the model's chat template does not use one
                of the options.
        """
        policy = load_policy(policy)
        self._owned = ExitStack()  # loaded or opened here, so closed here
        self._source = own = Source(OWN_ENGINE, engine, bind_scorer(scorer, engine, force=force_scorer))
        self.template_options = checked_options(engine, scorer, template_options)
        sources = _checked_sources(as_named("fallbacks", fallbacks, FALLBACKS), policy)
        check_scores(policy, own, sources)
        if not all_scores:
            own, sources = _deciding(policy, own, sources)
        fingerprint = partial(_fingerprint, own, sources, self.template_options, policy)
        self.policy = certified_policy(policy, certificate, fingerprint=fingerprint)
        given = as_named("handlers", handlers, HANDLERS)
        find_store = cache(partial(self._opened, store))
        taking = all_handlers(self.policy, given, find_store)
        monitor = find_monitor(self.policy, find_store)
        if monitor is not None:
            self._owned.callback(monitor.close)
        self._resources = Resources(own, sources, taking, handler_timeout_s, audit_log, monitor)
        log_policy(audit_log, self.policy)

    @property
    def engine(self) -> Engine:
        """The engine of the guard's own model."""
        return self._resources.own.engine

    @property
    def scorer(self) -> Scorer:
        """The scorer of the guard's own model."""
        scorer = self._resources.own.scorer
        assert scorer is not None
        return scorer

    @property
    def sources(self) -> Mapping[str, Source | FallbackFunction]:
        """The fallbacks by their names in the policy."""
        return self._resources.fallbacks

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """The escalation handlers by name."""
        return self._resources.handlers

    @property
    def audit_log(self) -> AuditLog | None:
        """What gets every decision; None where decisions are not logged."""
        return self._resources.audit_log

    @property
    def monitor(self) -> AcceptanceMonitor | None:
        """What watches the policy's guarantees; None where the policy has no ``audit`` section."""
        return self._resources.monitor

    def with_scorer(self, scorer: Scorer) -> Guard:
        """Return a guard with another scorer that shares all other parts. It owns nothing: close this one.

        Args:
            scorer: scorer for the same model; it is not checked again.

        Raises:
            PolicyError: the policy has a risk guarantee and the scorer is another; the certificate is bound to this
                guard's.
        """
        if scorer.sha256 != self.scorer.sha256:
            refuse_guarantees(self.policy, caller="another scorer")
        twin = copy.copy(self)
        twin._owned = ExitStack()
        twin._resources = replace(self._resources, own=replace(self._resources.own, scorer=scorer))
        return twin

    @classmethod
    def load(
        cls,
        model: str | Path = EMBEDDED,
        *,
        scorer: str | Path | None = None,
        policy: str | Path | Policy = "balanced",
        engine: str | None = None,
        engine_options: Mapping[str, Any] | None = None,
        fallbacks: Mapping[str, Guard | Source | FallbackFunction] | None = None,
        handlers: Mapping[str, Handler] | None = None,
        store: Store | str | Path | None = None,
        force_scorer: bool = False,
        handler_timeout_s: float = 10.0,
        certificate: Certificates | str | Path | None = None,
        template_options: Mapping[str, Any] | None = None,
        audit_log: AuditLog | None = None,
        all_scores: bool = False,
    ) -> Self:
        """Load model, scorer and policy by name or path.

        Args:
            model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
            scorer: a scorer file of ``guard calibrate``, or a name on the shelf; optional for the embedded model.
            policy: a file, a built-in (``strict``, ``balanced``, ``permissive``, ``shadow``), or a `Policy`.
            engine: ``llama.cpp``, ``transformers`` or ``vllm``, where they can load the model.
            engine_options: for the engine's ``load``, such as ``{"context_tokens": 8192, "gpu_layers": 20}``.
            fallbacks: see `Guard`.
            handlers: see `Guard`.
            store: see `Guard`.
            force_scorer: see `Guard`.
            handler_timeout_s: see `Guard`.
            certificate: see `Guard`.
            template_options: see `Guard`.
            audit_log: see `Guard`.
            all_scores: see `Guard`.
        """
        if scorer is None and str(model) != EMBEDDED:
            raise without_scorer(model, engine, engine_options)
        chosen = load_policy(policy)
        certificate = needed_certificates(chosen, certificate)
        fitted = load_scorer(shipped_scorer() if scorer is None else scorer)
        given = as_named("fallbacks", fallbacks, FALLBACKS)
        as_named("handlers", handlers, HANDLERS)  # before the weights are loaded
        with ExitStack() as loaded:

            def load(model: str | Path, options: Mapping[str, Any], engine: str | None = None) -> Engine:
                return loaded.enter_context(load_engine(model, engine=engine, **options))

            own = load(model, loading_options(fitted, engine_options), engine)
            declared = declared_sources(chosen, given=given, load=load)
            guard = cls(
                own,
                fitted,
                chosen,
                fallbacks={**declared, **given},
                handlers=handlers,
                store=store,
                force_scorer=force_scorer,
                handler_timeout_s=handler_timeout_s,
                certificate=certificate,
                template_options=template_options,
                audit_log=audit_log,
                all_scores=all_scores,
            )
            guard._owned.push(loaded.pop_all())
            return guard

    def ask(
        self,
        prompt: PromptLike,
        *,
        route: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        limits: Limits | None = None,
        metadata: Mapping[str, Any] | None = None,
        template_options: Mapping[str, Any] | None = None,
        cache_key: str | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Outcome:
        """Answer, score, decide, act.

        Args:
            prompt: a question, messages, or a `Prompt`. A question gets the system message or examples of calibration.
            route: name of a section of the policy, such as ``medical``.
            sampling: sampling parameters of the first attempt; greedy by default, as in calibration.
            limits: limits of each attempt; by default the token limit of the calibration.
            metadata: passed to escalation handlers and the review queue.
            template_options: variables of the model's chat template for this call, in addition to the guard's own.
            cache_key: key of the caller; the model's cache of a prompt is reused only for prompts with the same key.
            response_format: the form that each attempt's answer must have, such as ``ResponseFormat.json(schema)``;
                decoding is constrained to it. The question should ask for that form, too.

        Raises:
            AbstainedError: the policy abstains by ``abstain: {raise: true}``.
            EscalationError: no handler accepted the case.
            InputError, PromptTooLongError, ChatTemplateError: the question cannot be put.
            CancelledError: cancelled from outside.
        """
        call = self._call(prompt, route, sampling, limits, metadata, template_options, cache_key, response_format)
        return drive(call.steps())

    async def aask(
        self,
        prompt: PromptLike,
        *,
        route: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        limits: Limits | None = None,
        metadata: Mapping[str, Any] | None = None,
        template_options: Mapping[str, Any] | None = None,
        cache_key: str | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Outcome:
        """`ask` without blocking the event loop; cancelling the task stops the generation."""
        call = self._call(prompt, route, sampling, limits, metadata, template_options, cache_key, response_format)
        return await adrive(call.steps())

    def stream(self, prompt: PromptLike, **options: Any) -> Iterator[str | Outcome]:
        """Yield the text for the caller, then the outcome; options and errors as for `ask`.

        Where the policy says ``streaming: live``, the model's text comes as it grows, before the decision: if the
        outcome's action is not ``accept``, what was yielded does not hold. Nothing is tried again, and a policy that
        abstains by raising raises nothing. Otherwise all of the text comes once it is decided.
        """
        return drive_stream(stream_steps(self._call(prompt, **options)))

    def astream(self, prompt: PromptLike, **options: Any) -> AsyncGenerator[str | Outcome, None]:
        """`stream` without blocking the event loop; closing it stops the generation."""
        return adrive_stream(stream_steps(self._call(prompt, **options)))

    def attempts(
        self,
        prompt: PromptLike,
        *,
        route: str | None = None,
        limits: Limits | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[Attempt, ...]:
        """Return the attempts of a guarded call without carrying out its last decision; no handler gets the case.

        Args:
            prompt, route, limits: as for `ask`.
            cancel: set it from another thread to stop.

        Raises:
            InputError, PromptTooLongError, ChatTemplateError: the question cannot be put.
            CancelledError: ``cancel`` was set.
        """
        call = replace(self._call(prompt, route, Sampling(), limits, None), cancel=cancel)
        drive(call.attempts())
        return tuple(call.state.attempts)

    def fingerprint(self, policy: Policy, route: str | None = None) -> Fingerprint:
        """Return the fingerprint of a route: what a certificate is bound to."""
        return _fingerprint(self._resources.own, self.sources, self.template_options, policy, route)

    def score(self, prompt: PromptLike, response: str) -> Score:
        """Score an existing answer by running the model over it; p_wrong is the policy's score.

        A base model continues "Answer:", so a space is added before its answer to a question.

        Raises:
            CaptureError: its signals could not be recorded.
        """
        return drive(self._read(prompt, response))[0].deciding(self.policy.score)

    async def aread_answer(self, prompt: PromptLike, response: str, **asked: Any) -> tuple[Score, Generation]:
        """`score` without blocking the event loop; cancelling the task stops it.

        Args:
            prompt, response: as for `score`.
            asked: ``cache_key`` as for `ask`; ``limits``, of which the time counts.

        Returns:
            the score, and the pass over the model, which counts its tokens.
        """
        score, generation = await adrive(self._read(prompt, response, **asked))
        return score.deciding(self.policy.score), generation

    def _read(self, prompt: PromptLike, response: str, **asked: Any) -> Steps[tuple[Score, Generation]]:
        built = self.to_prompt(prompt)
        if built is not prompt and built.messages is None and not response[:1].isspace():
            response = f" {response}"
        return score_given(self._resources.own, built, response, **asked)

    def to_prompt(self, prompt: PromptLike) -> Prompt:
        """Return the prompt for a question, messages or a prompt, put as in the calibration.

        Raises:
            InputError: it is no prompt, or more than the question that a base model's scorer was fitted on.
        """
        return put_as_fitted(self._written(prompt, {}), self.scorer.artefact.prompting)

    @property
    def limits(self) -> Limits:
        """Default limits of an answer: those of the calibration."""
        return fitted_limits(self.scorer.artefact.prompting)

    def review_result(self, decision_id: str, *, wait_s: float = 0.0) -> ReviewResult:
        """Return what people decided of an escalated call: its answer, or that it still waits, or that it is late.

        Args:
            decision_id: `Outcome.decision_id`, of this guard or of an earlier process with the same store.
            wait_s: seconds to wait for a decision.

        Raises:
            ReviewError: the call is not in the queue.
            InputError: no rule escalates to the built-in handler ``review``.
        """
        return self._queue.wait(decision_id, timeout_s=wait_s)

    async def areview_result(self, decision_id: str, *, wait_s: float = 0.0) -> ReviewResult:
        """`review_result` without blocking the event loop."""
        return await self._queue.wait_async(decision_id, timeout_s=wait_s)

    @property
    def _queue(self) -> Store:
        handlers = self.handlers.values()
        queue = next((each for each in handlers if isinstance(each, ReviewQueue | WaitingQueue)), None)
        if queue is None:
            raise InputError("This guard has no review queue", why="its policy escalates to none")
        return queue.store

    def close(self) -> None:
        """Close what this guard loaded or opened itself: the engines of `Guard.load`, and the store.

        The caller closes an engine or a `Store` that was passed in.
        """
        self._owned.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- parts of a call -----------------------------------------------------------------------

    def _written(self, prompt: PromptLike, options: Mapping[str, Any]) -> Prompt:
        if not isinstance(prompt, Iterable | Prompt):
            raise InputError(f"Expected a question, messages or a Prompt, got {type(prompt).__name__}")
        if not isinstance(prompt, Prompt):
            system = self.scorer.artefact.prompting.system if isinstance(prompt, str) else None
            prompt = Prompt.chat(prompt, system=system, template_options=self.template_options)
        return replace(prompt, template_options={**prompt.template_options, **options}) if options else prompt

    def _call(
        self,
        prompt: PromptLike,
        route: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        limits: Limits | None = None,
        metadata: Mapping[str, Any] | None = None,
        template_options: Mapping[str, Any] | None = None,
        cache_key: str | None = None,
        response_format: ResponseFormat | None = None,
    ) -> Call:
        self.policy.check_route(route)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InputError(f"metadata must be a mapping, got {type(metadata).__name__}")
        limits = limits or self.limits
        state = CallState(self.policy, route)
        built = put_as_fitted(self._written(prompt, template_options or {}), self.scorer.artefact.prompting)
        if cache_key is not None:
            built = replace(built, cache_key=cache_key)
        if response_format is not None:
            built = replace(built, response_format=response_format)
        return Call(self._resources, built, sampling, limits, dict(metadata or {}), state)

    def _opened(self, store: Store | str | Path | None) -> Store:
        """Return the store for ``review``; a store opened here is closed with the guard."""
        opened = open_store(store)
        if opened is not store:
            self._owned.callback(opened.close)
        return opened


def _checked_sources(
    given: Mapping[str, Guard | Source | FallbackFunction], policy: Policy
) -> dict[str, Source | FallbackFunction]:
    """Check the fallbacks, including that every fallback a rule names exists."""
    own = {name: target._source if isinstance(target, Guard) else target for name, target in given.items()}
    sources = {name: check_source(name, target) for name, target in own.items()}
    for name in policy.fallback_names():
        if name not in sources:
            raise missing_fallback(policy, name, sources, fix="Pass it in fallbacks=, or declare it in the policy")
    return sources


def _deciding(
    policy: Policy, own: Source, fallbacks: Mapping[str, Source | FallbackFunction]
) -> tuple[Source, dict[str, Source | FallbackFunction]]:
    """Return the sources with scorers that compute no more than the policy reads."""
    narrowed = {name: each.deciding(policy) if isinstance(each, Source) else each for name, each in fallbacks.items()}
    return own.deciding(policy), narrowed


def _fingerprint(
    own: Source,
    fallbacks: Mapping[str, Source | FallbackFunction],
    template_options: Mapping[str, Any],
    policy: Policy,
    route: str | None,
) -> Fingerprint:
    named = {name: fallbacks[name] for name in find_fallbacks(policy.plan(route))}
    return Fingerprint(
        own=_answering(own, template_options),
        fallbacks={
            name: _answering(source, source.template_options) if isinstance(source, Source) else None
            for name, source in named.items()
        },
        score=policy.score,
        procedure_sha256=procedure_sha256(policy, route),
    )


def _answering(source: Source, options: Mapping[str, Any]) -> Answering:
    model = Binding.from_model(source.engine.model, find_capture_point(source.engine))
    scorer = source.scorer.sha256 if source.scorer else None
    return Answering(model=model, scorer_sha256=scorer, template_options=dict(options))
