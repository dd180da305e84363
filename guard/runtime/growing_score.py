"""The score of an answer that is still being generated."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from guard.engines.sampling import TokenSignals
from guard.errors import GuardError
from guard.records import Signals, Signature
from guard.scores import Score
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver


@dataclass(slots=True)
class GrowingScore:
    """The tokens of one answer so far; the observer has their activations.

    Attributes:
        scorer: scores the tokens so far as those of an answer that ends there.
        observer: observer of the same answer.
        tokens: what the engine has reported.
    """

    scorer: Scorer
    observer: SignatureObserver
    tokens: list[TokenSignals] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, signals: TokenSignals) -> None:
        """Add one token."""
        self.tokens.append(signals)

    def now(self) -> Score | None:
        """Return the score of the answer so far.

        None if scoring fails: the complete answer is scored at its end and fails there.
        """
        try:
            signature = self.observer.signature()
            if self.observer.reads_layers and signature.tokens != len(self.tokens):
                return None
            return self.scorer.score(self._signals(signature))
        except GuardError:
            return None

    def _signals(self, signature: Signature) -> Signals:
        return Signals(
            np.array([token.logprob for token in self.tokens], np.float32),
            np.array([token.entropy for token in self.tokens], np.float32),
            np.array([token.margin for token in self.tokens], np.float32),
            signature,
        )
