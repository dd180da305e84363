"""Live streaming: text is shown as it is generated, the score is updated, and a bad answer is retracted.

An engine reports its token signals when an answer is complete. A monitor scores the answer while it grows: every few
tokens it scores their log-probabilities and activations as those of an answer that ends there. Tokens of a thought are
neither shown nor scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from guard.engines.sampling import TokenSignals
from guard.errors import AbstainedError, GuardError
from guard.records import Outcome
from guard.runtime.growing_score import GrowingScore
from guard.scores import Score, ScoreName
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

#: Tokens between two scores of a growing answer. Fewer say little, since scorers are fitted on complete answers.
TOKENS_BETWEEN = 8


class RetractedError(AbstainedError):
    """Ends a live stream whose answer was rejected; the text that was shown is retracted.

    Attributes:
        score: score of the answer so far.
        tokens: of the answer so far.
        outcome: outcome of the guarded call; None while the error passes through the chain.
    """

    score: Score | None = None
    tokens: int = 0
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class StreamMonitor:
    """Decides whether a growing answer may continue.

    Attributes:
        accepts: returns whether the policy would accept an answer with this score.
        score: name of the score that the policy decides on.
        every: tokens between two scores.
    """

    accepts: Callable[[Score], bool]
    score: ScoreName = "guard"
    every: int = TOKENS_BETWEEN

    def for_answer(self, scorer: Scorer, observer: SignatureObserver) -> Callable[[TokenSignals], None]:
        """Return the ``on_token`` callback of one answer.

        Args:
            scorer: scores the tokens so far.
            observer: observer of the same answer.
        """
        return _MonitoredAnswer(GrowingScore(scorer, observer), self).add


@dataclass(slots=True)
class _MonitoredAnswer:
    """The answer so far, and what decides about it."""

    so_far: GrowingScore
    monitor: StreamMonitor

    def add(self, signals: TokenSignals) -> None:
        """Add one token.

        Raises:
            RetractedError: the policy would not accept the answer so far.
        """
        self.so_far.add(signals)
        if len(self.so_far) % self.monitor.every:
            return
        score = self._score()
        if score is not None and not self.monitor.accepts(score):
            why = f"after {len(self.so_far)} tokens p_wrong is {score.p_wrong:.4g}"
            error = RetractedError("The answer was stopped", why=why)
            error.score, error.tokens = score, len(self.so_far)
            raise error

    def _score(self) -> Score | None:
        """Return None if scoring fails: the complete answer is scored at its end and fails there."""
        score = self.so_far.now()
        if score is None:
            return None
        try:
            # Spans are parts of a complete answer: none of this one counts yet.
            return replace(score.deciding(self.monitor.score), spans=())
        except GuardError:
            return None
