"""Streaming live: text is shown as it comes, the score is updated with it, and a bad answer is taken back.

An engine says what its tokens were worth when an answer is whole. Here the answer is scored while it
grows: after every few of its tokens their log-probabilities and the layers' activations are scored as
an answer that ended there would be. Tokens of a thought are neither shown nor looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from guard.engines.base import BaseEngine
from guard.engines.detokenizer import Detokenizer
from guard.engines.fair_queue import Interrupt
from guard.engines.protocols import Engine, Session
from guard.engines.sampling import TokenSignals
from guard.errors import AbstainedError, GuardError
from guard.records import ModelInfo, Outcome, Prompt, Score, Signals
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

#: Tokens between two looks at a growing answer. The score of fewer says little: a scorer was fitted
#: on whole answers.
TOKENS_BETWEEN = 8


class RetractedError(AbstainedError):
    """Ends a live stream whose text does not hold; what was shown of it is taken back.

    Attributes:
        score: of the answer so far.
        outcome: what the policy made of it; None on its way up through the chain.
    """

    score: Score | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at an answer as it grows.

    Attributes:
        accepts: whether the policy would accept an answer with this score.
        every: tokens between two looks.
    """

    accepts: Callable[[Score], bool]
    every: int = TOKENS_BETWEEN

    def over(self, engine: Engine, scorer: Scorer, observer: SignatureObserver) -> Engine:
        """The engine, for one request whose answer is looked at as it grows.

        An engine of another make cannot be looked into; its answers are judged at their end.
        """
        return _WatchedEngine(engine, scorer, observer, self) if isinstance(engine, BaseEngine) else engine


class _WatchedEngine(BaseEngine):
    """An engine for one watched request; everything it does is done by the real one, in its queue."""

    def __init__(self, engine: BaseEngine, scorer: Scorer, observer: SignatureObserver, watch: Watch) -> None:
        super().__init__()
        self._engine = engine
        self._process, self._queue = engine._process, engine._queue
        self.capture_point = engine.capture_point
        self._growing = _GrowingAnswer(scorer, observer, watch)

    @property
    def model(self) -> ModelInfo:
        return self._engine.model

    def encode(self, prompt: Prompt) -> list[int]:
        return self._engine.encode(prompt)

    def encode_text(self, text: str) -> list[int]:
        return self._engine.encode_text(text)

    def _detokenizer(self) -> Detokenizer:
        return self._engine._detokenizer()

    def _is_end(self, token: int) -> bool:
        return self._engine._is_end(token)

    def _end_token(self) -> int:
        return self._engine._end_token()

    @property
    def chat_template(self) -> str | None:
        return self._engine.chat_template

    def _token_id(self, text: str) -> int | None:
        return self._engine._token_id(text)

    def _session(self, *, capture: bool, interrupt: Interrupt) -> AbstractContextManager[Session]:
        return self._engine._session(capture=capture, interrupt=interrupt)

    def _answered(self, signals: TokenSignals) -> None:
        self._growing.add(signals)

    def close(self) -> None:
        """Nothing: the engine belongs to others."""


@dataclass(slots=True)
class _GrowingAnswer:
    """The tokens so far, which the observer has seen the activations of."""

    scorer: Scorer
    observer: SignatureObserver
    watch: Watch
    tokens: list[TokenSignals] = field(default_factory=list)

    def add(self, signals: TokenSignals) -> None:
        """Take one token.

        Raises:
            RetractedError: the policy would not accept the answer so far.
        """
        self.tokens.append(signals)
        if len(self.tokens) % self.watch.every:
            return
        score = self._score()
        if score is not None and not self.watch.accepts(score):
            why = f"after {len(self.tokens)} tokens p_wrong is {score.p_wrong:.4g}"
            error = RetractedError("The answer was stopped", why=why)
            error.score = score
            raise error

    def _score(self) -> Score | None:
        """None where it cannot be told: the answer is scored at its end, and fails there."""
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
            return self.scorer.score(signals)
        except GuardError:
            return None
