"""Sources of answers in a guarded call: engines with their scorers, and functions.

Guards, chat models and chains load and check their sources here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from guard.engines.asked import RequestEngine
from guard.engines.protocols import Engine
from guard.errors import CaptureError, GuardError, InputError, ScorerError, did_you_mean, missing_extra
from guard.policy.policy import Policy
from guard.records import CapturePoint, Generation, Prompt, Sampling
from guard.runtime.call_state import OWN_ENGINE
from guard.runtime.steps import Step
from guard.scores import Score, Span
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.signature import SignatureObserver
from guard.scoring.span_scores import score_spans
from guard.scoring.spans import can_find_spans

#: A fallback that is a function of a prompt, plain or asynchronous; its answer is final.
FallbackFunction = Callable[[Prompt], Any]

#: Kinds of fallbacks, for errors.
FALLBACKS = "guards, sources or functions of one Prompt"


@dataclass(frozen=True, slots=True)
class Source:
    """An engine with its scorer. Without a scorer its answers count as failed scoring."""

    name: str
    engine: Engine
    scorer: Scorer | None

    @property
    def template_options(self) -> Mapping[str, Any]:
        """The template options of the scorer's calibration."""
        return self.scorer.artefact.prompting.template_options if self.scorer else {}

    def own_prompt(self, prompt: Prompt) -> Prompt:
        """Return another model's prompt with the template options of this one, and what its engine can report."""
        most = getattr(self.engine, "most_top_logprobs", None) or 0
        return replace(prompt, template_options=self.template_options, top_logprobs=min(prompt.top_logprobs, most))

    def deciding(self, policy: Policy) -> Source:
        """Return this with a scorer that computes what a policy reads; a shadow policy records all that there is."""
        if self.scorer is None or policy.mode == "shadow":
            return self
        return replace(self, scorer=self.scorer.giving(policy.score, ood_score=policy.needs_ood_score))

    def observer(self) -> SignatureObserver:
        """Return an observer that records what the scorer reads of one generation."""
        return self.scorer.observer() if self.scorer else SignatureObserver(aggregates=(), reads_layers=False)

    def score(self, generation: Generation, observer: SignatureObserver, prompt: Prompt) -> Score:
        """Score this engine's answer to a prompt; errors as for `score_generation`.

        Raises:
            ScorerError: there is no scorer.
        """
        if self.scorer is None:
            raise ScorerError(
                f"The fallback '{self.name}' has no scorer", fix="Fit one with guard calibrate and declare it"
            )
        return score_generation(generation, observer, self.scorer, prompt)


def score_generation(generation: Generation, observer: SignatureObserver, scorer: Scorer, prompt: Prompt) -> Score:
    """Score the answer to a prompt, whose activations an observer has recorded.

    The score is uncalibrated if the answer was sampled, the template options differ from the calibration's, or a
    response format has changed the answer, or may have. An answer that is longer than those of the calibration, or of
    another form, counts as out of distribution.

    Raises:
        CaptureError: the activations are missing or not finite.
    """
    if generation.capture_error:
        raise CaptureError("The layers were not recorded", why=generation.capture_error)
    score = replace(scorer.score(generation.signals(observer.signature())), spans=_spans(generation, scorer, prompt))
    if unlike := scorer.artefact.why_unlike(generation.text, len(generation.answer_token_ids)):
        score = replace(score, unlike=unlike, ood_score=None if score.ood_score is None else 1.0)
    as_written = prompt.response_format is None or generation.redirected == 0
    as_fitted = as_written and is_asked_as_fitted(scorer, prompt, generation.sampling)
    return score if as_fitted else replace(score, calibrated=False)


def is_asked_as_fitted(scorer: Scorer, prompt: Prompt, sampling: Sampling) -> bool:
    """Return whether an answer is generated as those of the calibration: greedily, with the same template options."""
    same_options = prompt.messages is None or prompt.template_options == scorer.artefact.prompting.template_options
    return sampling.is_greedy and same_options


def _spans(generation: Generation, scorer: Scorer, prompt: Prompt) -> tuple[Span, ...] | None:
    """Return the answer's spans; None where the scorer has no model of spans, or the extra is not installed."""
    model = scorer.artefact.spans
    return score_spans(model, generation, prompt) if model and can_find_spans() else None


def generation_step(engine: Engine, prompt: Prompt, *, cancel: threading.Event | None = None, **options: Any) -> Step:
    """Return the step that generates an answer; options are those of `Engine.generate`.

    Args:
        engine, prompt: who answers what.
        cancel: stops a generation in a thread; a task is cancelled by itself.
        options: further ones.
    """
    stop: dict[str, Any] = {} if cancel is None else {"cancel": cancel}
    return Step(partial(engine.generate, prompt, **stop, **options), partial(engine.agenerate, prompt, **options))


# -- engines and their scorers -----------------------------------------------------------------


def find_capture_point(engine: Engine) -> CapturePoint:
    """Return an engine's capture point; the MLP output unless the engine says otherwise."""
    return getattr(engine, "capture_point", "mlp")


def bind_scorer(scorer: Scorer, engine: Engine, *, force: bool = False) -> Scorer:
    """Return the scorer for an engine's answers; see `Scorer.for_model`.

    Raises:
        ScorerMismatchError: fitted on another model or at another capture point, and not forced.
    """
    return scorer.for_model(engine.model, find_capture_point(engine), force=force)


def check_scores(policy: Policy, own: Source, fallbacks: Mapping[str, Source | FallbackFunction]) -> None:
    """Refuse scorers that lack what a policy decides on, and engines that it cannot stop; errors as for those below."""
    for source in (own, *(fallbacks[name] for name in policy.fallback_names())):
        if isinstance(source, Source) and source.scorer is not None:
            check_gives(source.scorer, policy, whose=source.name)
            check_can_stop(source.engine, policy, whose=source.name)


def check_gives(scorer: Scorer, policy: Policy, *, whose: str) -> None:
    """Refuse a scorer without the scores that a policy decides on.

    Args:
        scorer: scorer of the answers.
        policy: decides.
        whose: name of the scorer's source, for messages.

    Raises:
        ScorerError: it lacks the policy's score, or the ood_score, spans or early stages that the policy needs.
        MissingExtraError: the policy needs spans, and the extra ``spans`` is not installed.
    """
    for error in lacking(scorer, policy, whose=whose):
        raise error


def lacking(scorer: Scorer, policy: Policy, *, whose: str) -> Iterator[GuardError]:
    """Yield an error for each part that a policy needs and a scorer, or this installation, lacks; see `check_gives`.

    Args:
        scorer: scorer of the answers.
        policy: decides.
        whose: name of the scorer's source, for messages.

    Examples:
        >>> from guard.policy import parse_policy
        >>> from guard.scoring import load_scorer, shipped_scorer
        >>> early = parse_policy("version: 1\\nname: p\\nrules: [abstain]\\nearly: {above: 0.9, then: abstain}\\n")
        >>> [error.what for error in lacking(load_scorer(shipped_scorer()), early, whose="smollm2")]
        ["The policy 'p' stops answers early, and the scorer of 'smollm2' has no stages for it"]
    """
    given = scorer.gives
    if scorer.resolved(policy.score) not in given:
        yield ScorerError(
            f"The policy '{policy.name}' decides on the score '{policy.score}', which the scorer of '{whose}' does "
            "not give",
            why=f"it gives {', '.join(given)}; the others carried no signal when it was fitted",
            fix="Write score: guard in the policy, or run guard calibrate on more questions",
        )
    if policy.needs_ood_score and not scorer.gives_ood_score:
        yield ScorerError(
            f"The policy '{policy.name}' needs ood_score, which the scorer of '{whose}' does not give",
            why="it was fitted on too few answers, or built without that part",
            fix="Run guard calibrate on more questions, or remove 'out_of_distribution' from the policy",
        )
    if policy.needs_spans:
        yield from _lacking_spans(scorer, policy, whose)
    if policy.needs_early:
        yield from _lacking_early(scorer, policy, whose)


def _lacking_early(scorer: Scorer, policy: Policy, whose: str) -> Iterator[GuardError]:
    early = scorer.artefact.early
    if early is None or not any(scorer.resolved(policy.score) in stage.calibrations for stage in early.stages):
        yield ScorerError(
            f"The policy '{policy.name}' stops answers early, and the scorer of '{whose}' has no stages for it",
            why="a score of an answer so far is no probability of how the answer ends until it is calibrated as one",
            fix="Run guard calibrate --early with that scorer, or remove 'early' from the policy",
        )


def check_can_stop(engine: Engine, policy: Policy, *, whose: str) -> None:
    """Refuse a policy that stops answers early, for an engine that cannot be stopped.

    Raises:
        InputError: it reports no tokens while it generates.
    """
    if policy.needs_early and not isinstance(engine, RequestEngine):
        raise InputError(
            f"The policy '{policy.name}' stops answers early, which the engine of '{whose}' cannot",
            why="it reports no tokens while it generates",
            fix="Remove 'early' from the policy, or take one of guard's engines",
        )


def _lacking_spans(scorer: Scorer, policy: Policy, whose: str) -> Iterator[GuardError]:
    if scorer.artefact.spans is None:
        yield ScorerError(
            f"The policy '{policy.name}' decides on spans, which the scorer of '{whose}' does not give",
            why="it was fitted without labelled spans",
            fix="Run guard calibrate with --spans, or remove 'spans' from the policy",
        )
    if not can_find_spans():
        yield missing_extra("sentencex", "spans")


def loading_options(scorer: Scorer | None, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return load options with which an engine records and prompts as in the scorer's calibration.

    Args:
        scorer: scorer of the engine's answers, if there is one.
        given: the caller's own options, which take precedence.
    """
    return {**(scorer.artefact.binding.engine_options if scorer else {}), **(given or {})}


def checked_options(engine: Engine, scorer: Scorer, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the template options: the given ones, or else those of the calibration.

    Raises:
        InputError: the model's chat template does not read one of them, or the calibration used none.
    """
    options = dict(scorer.artefact.prompting.template_options if given is None else given)
    if isinstance(engine, RequestEngine):
        engine.check_template_options(options)
    if options and scorer.artefact.prompting.completion:
        raise InputError(
            "A question behind solved examples cannot have options of a chat template",
            why="the scorer was fitted on texts that the model continues",
            fix="Leave template_options= (--template-option) out",
        )
    return options


# -- fallbacks by name -------------------------------------------------------------------------


def check_source(name: str, target: Source | FallbackFunction) -> Source | FallbackFunction:
    """Check a fallback under its name in the policy, and return it; its scorer must fit its engine.

    Raises:
        InputError: the name is reserved for the model, or the target is neither a source nor callable.
        ScorerMismatchError: the scorer was fitted on another model.
    """
    if name == OWN_ENGINE:
        raise InputError(f"A fallback cannot be called '{name}', which stands for the guard's own model")
    if isinstance(target, Source):
        scorer = target.scorer
        if scorer is not None:
            scorer = bind_scorer(scorer, target.engine, force=not scorer.calibrated)
        return Source(name, target.engine, scorer)
    if not callable(target):
        raise InputError(f"The fallback '{name}' is no Guard, Source or callable", why=f"got {type(target).__name__}")
    return target


def declared_sources(
    policy: Policy, *, given: Mapping[str, Any], load: Callable[[str, dict[str, Any]], Engine]
) -> dict[str, Source]:
    """Load the declared engines that some rule of a policy falls back to.

    Args:
        policy: the policy that declares them.
        given: fallbacks of the caller; they replace declared ones.
        load: loads a model with the options that its scorer needs; the caller closes it.
    """
    wanted = [name for name in policy.fallback_names() if name in policy.fallbacks and name not in given]
    return {name: _declared(name, policy, load) for name in wanted}


def _declared(name: str, policy: Policy, load: Callable[[str, dict[str, Any]], Engine]) -> Source:
    declared = policy.fallbacks[name]
    scorer = load_scorer(declared.scorer) if declared.scorer else None
    return Source(name, load(declared.model, loading_options(scorer)), scorer)


def missing_fallback(policy: Policy, name: str, known: Mapping[str, Any], *, why: str = "", fix: str) -> InputError:
    """Return the error of a policy that falls back to an unknown name."""
    return InputError(
        f"The policy '{policy.name}' falls back to '{name}', which does not exist",
        why=why,
        fix=did_you_mean(name, known) or fix,
    )
