"""One request while its answer is generated: what it feeds next, and what it makes of a pass."""

from __future__ import annotations

import time

import numpy as np

from guard.engines.batch import Feed, PassRow
from guard.engines.growing import AnswerReader, GrowingAnswer
from guard.engines.request import Request
from guard.engines.sampling import Likeliest, choose, likeliest, token_signals
from guard.records import FinishReason, Floats, Generation

#: Tokens of an answer that room is kept for at a time.
ANSWER_ROOM = 128


class RunningAnswer:
    """A request that has a slot, or has had one and waits for room.

    Attributes:
        slot: its number.
        turn: larger than those of the requests that came before.
        tokens: of the prompt, and of the answer as far as it is there.
        done: the generation, once the answer is complete.
    """

    def __init__(self, request: Request, slot: int, turn: int, reader: AnswerReader) -> None:
        """
        Args:
            request: what is asked.
            slot: where it runs.
            turn: larger than those of the requests that came before.
            reader: of the model's answers.
        """
        self.request, self.slot, self.turn = request, slot, turn
        self.tokens = [*request.tokens]
        self.done: Generation | None = None
        self._started = time.monotonic()
        self._position, self._next = 0, request.tokens
        self._rng = np.random.default_rng(request.sampling.seed)
        stop = request.limits.stop if request.forced is None else ()
        reading = reader.reading(request.tokens, stop=stop, tools=bool(request.prompt.tools))
        self._captures = request.reader is not None
        self._top: list[Likeliest] = []
        self._answer = GrowingAnswer(reading, request.reader, request.on_token)

    @property
    def pending(self) -> int:
        """How many tokens are evaluated before the next one is chosen."""
        return len(self._next)

    @property
    def unread(self) -> list[int]:
        """The prompt, as long as it has not been evaluated."""
        return self.request.tokens if self._position < len(self.request.tokens) else []

    @property
    def room(self) -> int:
        """Tokens that it needs room for now: those that are there, and a part of the answer."""
        return min(len(self.tokens) + ANSWER_ROOM, self.request.room)

    def begin(self, slot: int, held: int) -> None:
        """Leave out the first tokens, which its slot holds already."""
        self.slot, self._position, self._next = slot, held, self.tokens[held:]

    def feed(self, count: int) -> Feed:
        """Return the next tokens, at most as many as given."""
        tokens = self._next[:count]
        chooses = len(tokens) == len(self._next)
        return Feed(self.slot, tokens, self._position, chooses, chooses and self._captures)

    def take(self, feed: Feed, row: PassRow | None) -> None:
        """Go on after a pass: choose the next token where the pass ends with one, and hand on its text.

        Args:
            feed: what this request was continued by.
            row: what the model says after its last token; None in the middle of a prompt.

        Raises:
            Exception: what the model's output, the observer or ``on_token`` raise; it ends this request.
        """
        self._position += len(feed.tokens)
        self._next = self._next[len(feed.tokens) :]
        if row is not None:
            self.request.context.run(self._choose, row)

    def _choose(self, row: PassRow) -> None:
        request, answer = self.request, self._answer
        logits = row.logits()
        token = self._next_token(logits) if request.forced is None else request.forced[len(answer)]
        if request.prompt.top_logprobs:
            self._top.append(likeliest(logits, request.prompt.top_logprobs))
        self._show(answer.push(token, token_signals(logits, token), row.activations))
        self._next = [token]
        self.tokens.append(token)
        if answer.ended:
            self._finish("stop_string" if answer.stopped else "stop")
        elif len(answer) == request.max_tokens:
            self._finish("length")

    def _next_token(self, logits: Floats) -> int:
        """Choose the next token; outside of thoughts, among those that the response format allows."""
        request, constraint = self.request, self.request.constraint
        if constraint is None or self._answer.thinking:
            return choose(logits, request.sampling, self._rng)
        token = choose(constraint.mask(logits), request.sampling, self._rng)
        constraint.take(token)
        return token

    def _finish(self, reason: FinishReason) -> None:
        request, constraint = self.request, self.request.constraint
        self._show(self._answer.finish(cut=reason == "length"))
        if constraint is not None and reason != "length":
            constraint.check_complete(self._answer.answer_tokens)
        self.done = self._answer.generation(
            reason,
            prompt_tokens=len(request.tokens),
            sampling=request.sampling,
            queue_s=self._started - request.interrupt.started,
            seconds=time.monotonic() - self._started,
            redirected=None if constraint is None else constraint.redirected,
            top=tuple(self._top) if request.prompt.top_logprobs else None,
        )

    def _show(self, text: str) -> None:
        if text and self.request.streamed:
            self.request.outbox.put(text)
