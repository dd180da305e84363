"""Live streaming: text is shown as it is generated, the score is updated, and a bad answer is retracted.

An engine reports its token signals when an answer is complete. A monitor scores the answer while it grows: every few
tokens it scores their log-probabilities and activations as those of an answer that ends there. Tokens of a thought are
neither shown nor scored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from guard.engines.sampling import TokenSignals
from guard.errors import AbstainedError, GuardError
from guard.records import Outcome, Signals
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
        return _MonitoredAnswer(scorer, observer, self).add


@dataclass(slots=True)
class _MonitoredAnswer:
    """The tokens so far; the observer has their activations."""

    scorer: Scorer
    observer: SignatureObserver
    monitor: StreamMonitor
    tokens: list[TokenSignals] = field(default_factory=list)

    def add(self, signals: TokenSignals) -> None:
        """Add one token.

        Raises:
            RetractedError: the policy would not accept the answer so far.
        """
        self.tokens.append(signals)
        if len(self.tokens) % self.monitor.every:
            return
        score = self._score()
        if score is not None and not self.monitor.accepts(score):
            why = f"after {len(self.tokens)} tokens p_wrong is {score.p_wrong:.4g}"
            error = RetractedError("The answer was stopped", why=why)
            error.score, error.tokens = score, len(self.tokens)
            raise error

    def _score(self) -> Score | None:
        """Return None if scoring fails: the complete answer is scored at its end and fails there."""
        try:
            signature = self.observer.signature()
            if signature.tokens != len(self.tokens):
                return None
            signals = Signals(
                np.array([token.logprob for token in self.tokens], np.float32),
                np.array([token.entropy for token in self.tokens], np.float32),
                np.array([token.margin for token in self.tokens], np.float32),
                signature,
            )
            # Spans are parts of a complete answer: none of this one counts yet.
            return replace(self.scorer.score(signals).deciding(self.monitor.score), spans=())
        except GuardError:
            return None
