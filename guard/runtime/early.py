"""Early decisions: an answer that is likely to be wrong in the end is stopped while it is generated.

The policy's ``early`` section states the limit. The scorer has stages: at some numbers of tokens, the score so far is
calibrated as the probability that the complete answer will be wrong (`guard.scoring.early_scores`). Nothing of a
stopped answer is accepted. A stage that cannot be scored stops nothing: the complete answer is scored at its end and
fails there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from guard.engines.asked import RequestEngine
from guard.engines.sampling import TokenSignals
from guard.errors import AbstainedError, GuardError
from guard.policy.rules import EarlyRule
from guard.records import Generation, Prompt, Sampling
from guard.runtime.growing_score import GrowingScore
from guard.runtime.sources import is_asked_as_fitted
from guard.runtime.steps import END, Pieces, Steps
from guard.scores import Score, ScoreName
from guard.scoring.early_scores import as_forecast
from guard.scoring.scorer import Scorer
from guard.scoring.scorer_file import EarlyStage
from guard.scoring.signature import SignatureObserver


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """Where an answer was stopped, or in shadow mode would have been.

    Attributes:
        score: of the answer so far; its p_wrong is that of the complete answer, as forecast.
        tokens: of the answer so far.
    """

    score: Score
    tokens: int

    def reason(self, above: float) -> str:
        """Say why, in a part of a sentence."""
        tokens = f"{self.tokens} token{'s' if self.tokens > 1 else ''}"
        return f"after {tokens} p_wrong is {self.score.p_wrong:.4g}, above {above:g}"


class StoppedEarlyError(AbstainedError):
    """Ends the generation of an answer that is likely to be wrong; never leaves the guarded call."""


@dataclass(frozen=True, slots=True)
class EarlyMonitor:
    """Stops answers that are likely to be wrong.

    Attributes:
        rule: of the policy.
        score: name of the score that the policy decides on.
        stops: whether to stop them; a shadow policy only records.
    """

    rule: EarlyRule
    score: ScoreName
    stops: bool

    def for_answer(self, scorer: Scorer, observer: SignatureObserver) -> StoppableAnswer:
        """Return what watches one answer."""
        stages = scorer.artefact.early.stages if scorer.artefact.early else []
        return StoppableAnswer(GrowingScore(scorer, observer), self, {stage.tokens: stage for stage in stages})


@dataclass(slots=True)
class StoppableAnswer:
    """One growing answer.

    Attributes:
        so_far: its tokens and activations.
        monitor: stops it.
        stages: by number of tokens.
        stop: the first stage above the limit; None until then.
        text: what the engine has written of it.
    """

    so_far: GrowingScore
    monitor: EarlyMonitor
    stages: dict[int, EarlyStage]
    stop: EarlyStop | None = None
    text: list[str] = field(default_factory=list)

    def add(self, signals: TokenSignals) -> None:
        """Add one token.

        Raises:
            StoppedEarlyError: the complete answer is likely to be wrong.
        """
        self.so_far.add(signals)
        stage = self.stages.get(len(self.so_far))
        if stage is None or self.stop is not None:
            return
        score = self._forecast(stage)
        if score is None or not score.p_wrong > self.monitor.rule.above:
            return
        self.stop = EarlyStop(score, len(self.so_far))
        if self.monitor.stops:
            raise StoppedEarlyError("The answer was stopped", why=self.stop.reason(self.monitor.rule.above))

    def _forecast(self, stage: EarlyStage) -> Score | None:
        score = self.so_far.now()
        try:
            return None if score is None else as_forecast(score.deciding(self.monitor.score), stage)
        except GuardError:
            return None


def watched_steps(
    engine: RequestEngine, prompt: Prompt, watched: StoppableAnswer, **options: Any
) -> Steps[Generation | None]:
    """Generate an answer, and stop it where it is likely to be wrong.

    Args:
        engine, prompt: who answers what.
        watched: the answer; its ``text`` gets the pieces, its ``stop`` says where it was stopped.
        options: further ones of `RequestEngine.stream`.

    Returns:
        the generation; None of a stopped answer.
    """
    start: Callable[..., Any] = partial(engine.stream, prompt, on_token=watched.add, **options)
    options.pop("cancel", None)  # a task is cancelled by itself
    pieces = Pieces(start, partial(engine.astream, prompt, on_token=watched.add, **options))
    generation: Generation | None = None
    yield pieces.open
    try:
        while (chunk := (yield pieces.next)) is not END:
            watched.text.append(chunk.text)
            generation = chunk.generation
    except StoppedEarlyError:
        return None
    finally:
        yield pieces.close
    return generation


def as_stopped(stop: EarlyStop, scorer: Scorer, prompt: Prompt, sampling: Sampling) -> Score:
    """Return the score of a stopped answer to a prompt; it is uncalibrated where that of a complete one may be."""
    as_fitted = prompt.response_format is None and is_asked_as_fitted(scorer, prompt, sampling)
    return stop.score if as_fitted else replace(stop.score, calibrated=False)
