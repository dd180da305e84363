"""The guard: a model, a scorer and a policy behind one call. The loop itself is in `guard.runtime.loop`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import tenacity

from guard.engines import EMBEDDED, load_engine
from guard.engines.base import BaseEngine
from guard.engines.protocols import Engine
from guard.errors import InputError, ScorerError, did_you_mean
from guard.policy.certificate import Answering, Certificates, Fingerprint, certified_policy, needed_certificates
from guard.policy.guarantee import fallbacks_of, procedure_sha256
from guard.policy.policy import Policy, load_policy
from guard.records import Attempt, CapturePoint, Limits, Outcome, Prompt, Sampling, Score
from guard.review.handlers import HANDLERS, Handler, as_named, check_handlers, log_handler
from guard.runtime.base_models import COMPLETION_STOP, completion_text
from guard.runtime.call_state import OWN_ENGINE, CallState
from guard.runtime.loop import Call, FallbackFunction, Source, score_of
from guard.scoring.provenance import Binding
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.scoring.signature import SignatureObserver

if TYPE_CHECKING:
    from guard.review.store import Store

#: What fallbacks are, for errors.
FALLBACKS = "guards, sources or functions of one Prompt"

#: What can be asked: a question, chat messages, or a prompt.
PromptLike = str | Iterable[Mapping[str, Any]] | Prompt


class Guard:
    """A model that knows how likely each of its answers is wrong, and what to do about it.

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
    ) -> None:
        """
        Args:
            engine: answers.
            scorer: must have been fitted on the engine's model.
            policy: decides; a `Policy`, a built-in name or a file.
            fallbacks: for the policy's ``fallback: {to: NAME}``: other guards or sources (their engine
                answers, their scorer scores, this policy decides) or callables (their answer is final).
            handlers: for the policy's ``escalate: {to: [NAME]}``; ``log`` and ``review`` are there
                already unless you give your own.
            store: where ``review`` keeps its cases; by default the user's data folder.
            force_scorer: take a scorer that was fitted on another model; its scores are marked.
            handler_timeout_s: deadline of each handler, in seconds.
            certificate: what ``guard certify`` wrote, or its file: gives the thresholds of a policy that
                guarantees an error rate; by default the file that the policy names.
            template_options: variables of the model's chat template, such as ``{"enable_thinking": False}``;
                by default those of the calibration.

        Raises:
            ScorerMismatchError: the scorer was fitted on another model.
            CertificateError: a policy with a risk guarantee, and no certificate that holds for it.
            ScorerError: the policy needs ood_score, which a scorer does not give.
            InputError: the policy names a fallback or handler that is not known, or the model's chat
                template does not read one of the options.
        """
        policy = load_policy(policy)
        self._loaded = ExitStack()  # engines that `load` loaded
        self.engine = engine
        self.scorer = scorer.for_model(engine.model, capture_point_of(engine), force=force_scorer)
        self.template_options = checked_options(engine, self.scorer, template_options)
        self.sources: dict[str, Source | FallbackFunction] = {
            name: _source(name, target) for name, target in as_named("fallbacks", fallbacks, FALLBACKS).items()
        }
        self._check_fallbacks(policy)
        self._check_ood_score(policy)
        self.policy = certified_policy(policy, certificate, fingerprint=partial(self.fingerprint, policy))
        self.handlers = self._with_builtin_handlers(as_named("handlers", handlers, HANDLERS), store)
        if policy.mode == "enforce":
            check_handlers(policy.handler_names(), self.handlers)
        self.handler_timeout_s = handler_timeout_s

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
        certificate: Certificates | str | Path | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Self:
        """Load model, scorer and policy by name or path.

        Args:
            model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
            scorer: what ``guard calibrate`` wrote; may be left out for the embedded model.
            policy: a file, a built-in (``strict``, ``balanced``, ``permissive``, ``shadow``), or a `Policy`.
            engine: ``llama.cpp`` or ``transformers``, where both can load the model.
            engine_options: for the engine's ``load``, such as ``{"context_tokens": 8192}``.
            fallbacks, handlers, store, force_scorer, certificate, template_options: see `Guard`.
        """
        if scorer is None and str(model) != EMBEDDED:
            raise ScorerError(
                f"There is no scorer for '{model}'",
                why="only the embedded model comes with one",
                fix="Fit one: guard calibrate --model MODEL --data QUESTIONS.jsonl --out scorer.json",
            )
        chosen = load_policy(policy)
        certificate = needed_certificates(chosen, certificate)
        fitted = load_scorer(shipped_scorer() if scorer is None else scorer)
        given = as_named("fallbacks", fallbacks, FALLBACKS)
        as_named("handlers", handlers, HANDLERS)  # before the weights are loaded
        with ExitStack() as loaded:
            options = {**fitted.artefact.binding.engine_options, **(engine_options or {})}
            own = loaded.enter_context(load_engine(model, engine=engine, **options))
            declared = _declared_fallbacks(chosen, leave_out=given, loaded=loaded)
            guard = cls(
                own,
                fitted,
                chosen,
                fallbacks={**declared, **given},
                handlers=handlers,
                store=store,
                force_scorer=force_scorer,
                certificate=certificate,
                template_options=template_options,
            )
            guard._loaded = loaded.pop_all()
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
    ) -> Outcome:
        """Answer, score, decide, act.

        Args:
            prompt: a question, chat messages, or a `Prompt`. A question is put with the system
                message that the scorer was calibrated with.
            route: name of a section of the policy, such as ``medical``.
            sampling: of the first attempt; greedy by default, as in calibration.
            limits: of each attempt; by default the token limit of the calibration.
            metadata: goes to escalation handlers and the review queue.
            template_options: variables of the model's chat template for this call, beside the guard's own.

        Raises:
            AbstainedError: where the policy says ``abstain: {raise: true}``.
            EscalationError: no handler took the case.
            InputError, PromptTooLongError, ChatTemplateError: the question cannot be put.
            CancelledError: cancelled from outside.
        """
        call = self._call(prompt, route, sampling, limits, metadata, template_options)
        tenacity.Retrying(**call.bounds)(call.attempt)
        return call.finish()

    async def aask(
        self,
        prompt: PromptLike,
        *,
        route: str | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008
        limits: Limits | None = None,
        metadata: Mapping[str, Any] | None = None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """`ask` without blocking the event loop; cancelling the task stops the generation."""
        call = self._call(prompt, route, sampling, limits, metadata, template_options)
        await tenacity.AsyncRetrying(**call.bounds)(call.aattempt)
        return await call.afinish()

    def attempts(
        self, prompt: PromptLike, *, route: str | None = None, limits: Limits | None = None
    ) -> tuple[Attempt, ...]:
        """All attempts of a guarded call, without carrying out its last decision: nobody is told anything.

        Raises:
            InputError, PromptTooLongError, ChatTemplateError: the question cannot be put.
        """
        call = self._call(prompt, route, Sampling(), limits, None)
        tenacity.Retrying(**call.bounds)(call.attempt)
        return tuple(call.state.attempts)

    def fingerprint(self, policy: Policy, route: str | None = None) -> Fingerprint:
        """What a certificate for a route of this policy, with this model and scorer, holds for."""
        return Fingerprint(
            own=_answering(self.engine, self.scorer, self.template_options),
            fallbacks={name: _source_fingerprint(self.sources[name]) for name in fallbacks_of(policy.plan(route))},
            procedure_sha256=procedure_sha256(policy, route),
        )

    def score(self, prompt: PromptLike, response: str) -> Score:
        """Score an answer that exists already, by running the model over it.

        A base model continues "Answer:", so its answer to a question begins with a space; it is added.

        Raises:
            CaptureError: its signals could not be recorded.
        """
        observer = self._observer()
        if isinstance(prompt, str) and self.scorer.artefact.prompting.completion and not response[:1].isspace():
            response = f" {response}"
        asked = self.prompt_of(prompt)
        generation = self.engine.generate(asked, observer=observer, completion=response)
        return score_of(generation, observer, self.scorer, asked)

    def prompt_of(self, prompt: PromptLike) -> Prompt:
        """The prompt that a question, messages or a prompt stand for."""
        if isinstance(prompt, Prompt):
            return prompt
        if not isinstance(prompt, Iterable):
            raise InputError(f"Expected a question, messages or a Prompt, got {type(prompt).__name__}")
        prompting = self.scorer.artefact.prompting
        if isinstance(prompt, str) and prompting.completion:
            return Prompt.raw(completion_text(prompt), plain=True)
        system = prompting.system if isinstance(prompt, str) else None
        return Prompt.chat(prompt, system=system, template_options=self.template_options)

    @property
    def limits(self) -> Limits:
        """Of an answer where none are given: those of the calibration."""
        prompting = self.scorer.artefact.prompting
        return Limits(max_tokens=prompting.max_tokens, stop=COMPLETION_STOP if prompting.completion else ())

    def close(self) -> None:
        """Free the engines, and close the store if it was opened here."""
        self.engine.close()
        self._loaded.close()
        if self._owned_store is not None:
            self._owned_store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- parts of a call -----------------------------------------------------------------------

    def _call(
        self,
        prompt: PromptLike,
        route: str | None,
        sampling: Sampling,
        limits: Limits | None,
        metadata: Mapping[str, Any] | None,
        template_options: Mapping[str, Any] | None = None,
    ) -> Call:
        self.policy.check_route(route)
        if metadata is not None and not isinstance(metadata, Mapping):
            raise InputError(f"metadata must be a mapping, got {type(metadata).__name__}")
        limits = limits or self.limits
        state = CallState(self.policy, route)
        built = self.prompt_of(prompt)
        if template_options:
            built = replace(built, template_options={**built.template_options, **template_options})
        return Call(self, built, sampling, limits, dict(metadata or {}), state)

    def _observer(self) -> SignatureObserver:
        return SignatureObserver(temperatures=self.scorer.schema.temperatures)

    def _check_fallbacks(self, policy: Policy) -> None:
        for name in policy.fallback_names():
            if name not in self.sources:
                raise InputError(
                    f"The policy '{policy.name}' falls back to '{name}', which is not there",
                    fix=did_you_mean(name, self.sources) or "Pass it in fallbacks=, or declare it in the policy",
                )

    def _check_ood_score(self, policy: Policy) -> None:
        """Every score that the policy decides on must have the ood_score that it needs."""
        if not policy.needs_ood_score:
            return
        sources = {name: self.sources[name] for name in policy.fallback_names()}
        fallbacks = {name: source.scorer for name, source in sources.items() if isinstance(source, Source)}
        for name, scorer in {OWN_ENGINE: self.scorer, **fallbacks}.items():
            if scorer is not None and scorer.artefact.ood_detector is None:
                raise ScorerError(
                    f"The policy '{policy.name}' needs ood_score, which the scorer of '{name}' does not give",
                    why="it was fitted on too few answers, or put together without that part",
                    fix="Run guard calibrate on more questions, or remove 'out_of_distribution' from the policy",
                )

    def _with_builtin_handlers(
        self, given: Mapping[str, Handler], store: Store | str | Path | None
    ) -> dict[str, Handler]:
        handlers: dict[str, Handler] = {"log": log_handler, **given}
        self._owned_store: Store | None = None
        enforced = self.policy.mode == "enforce"  # in shadow mode nothing is handed to anybody
        if enforced and "review" in self.policy.handler_names() and "review" not in given:
            from guard.review.handlers import ReviewQueue
            from guard.review.store import Store

            if not isinstance(store, Store):
                store = self._owned_store = Store.open(store)
            handlers["review"] = ReviewQueue(store)
        return handlers


def capture_point_of(engine: Engine) -> CapturePoint:
    """Where an engine records; the MLP's output unless it says otherwise."""
    return getattr(engine, "capture_point", "mlp")


def checked_options(engine: Engine, scorer: Scorer, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """The template options to ask with: those given, or else those of the calibration.

    Raises:
        InputError: the model's chat template does not read one of them.
    """
    options = dict(scorer.artefact.prompting.template_options if given is None else given)
    if isinstance(engine, BaseEngine):
        engine.check_template_options(options)
    return options


def _answering(engine: Engine, scorer: Scorer | None, options: Mapping[str, Any]) -> Answering:
    binding = Binding.of(engine.model, capture_point_of(engine))
    return Answering(model=binding, scorer_sha256=scorer.sha256 if scorer else None, template_options=dict(options))


def _source_fingerprint(source: Source | FallbackFunction) -> Answering | None:
    if not isinstance(source, Source):
        return None
    return _answering(source.engine, source.scorer, source.template_options)


def _source(name: str, target: Guard | Source | FallbackFunction) -> Source | FallbackFunction:
    """A fallback under the name that the policy knows it by; its scorer must fit its engine too."""
    if name == OWN_ENGINE:
        raise InputError(f"A fallback cannot be called '{name}', which stands for the guard's own model")
    if isinstance(target, Guard | Source):
        engine, scorer = target.engine, target.scorer
        if scorer is not None:
            scorer = scorer.for_model(engine.model, capture_point_of(engine), force=not scorer.calibrated)
        return Source(name, engine, scorer)
    if not callable(target):
        raise InputError(f"The fallback '{name}' is no Guard, Source or callable", why=f"got {type(target).__name__}")
    return target


def _declared_fallbacks(policy: Policy, *, leave_out: Mapping[str, Any], loaded: ExitStack) -> dict[str, Source]:
    """Load the engines that the policy itself declares and that a rule falls back to."""
    return {
        name: _load_source(name, policy.fallbacks[name].model, policy.fallbacks[name].scorer, loaded)
        for name in policy.fallback_names()
        if name in policy.fallbacks and name not in leave_out
    }


def _load_source(name: str, model: str, scorer: str | None, loaded: ExitStack) -> Source:
    fitted = load_scorer(scorer) if scorer else None
    options: dict[str, Any] = {**fitted.artefact.binding.engine_options} if fitted else {}
    return Source(name, loaded.enter_context(load_engine(model, **options)), fitted)
