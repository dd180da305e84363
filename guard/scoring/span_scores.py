"""Compute a probability for each span of an answer from the signals of its tokens.

Each span has three columns: the logarithms of the least log-probability and of the greatest entropy among the tokens of
its claim, and of the least log-probability among all its tokens. Few, logarithmic columns generalise to other data.
No layers are read, so every engine with log-probabilities supports spans.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from guard.errors import ScorerError
from guard.records import Doubles, Floats, Generation, Prompt
from guard.scores import Span
from guard.scoring.claims import find_claims
from guard.scoring.scorer import logistic
from guard.scoring.scorer_file import SpanModel
from guard.scoring.spans import Extent, find_spans

#: What is read of a span.
COLUMNS = ("log_surprisal_max_of_claim", "log_entropy_max_of_claim", "log_surprisal_max_of_span")

#: A token that is certain; below this, in nats, differences mean nothing.
CERTAIN = 1e-4


def span_columns(claim: Floats, entropies: Floats, span: Floats) -> Doubles:
    """Return the columns of one span, shape (3,).

    Args:
        claim, entropies: log-probabilities and entropies of the claim's tokens, shape (k,), k above 0.
        span: log-probabilities of all the span's tokens, shape (n,), n above 0.

    Examples:
        >>> span_columns(np.array([-1.0]), np.array([1.0]), np.array([-0.5, -1.0])).tolist()
        [0.0, 0.0, 0.0]
    """
    values = np.array([-claim.min(), entropies.max(), -span.min()], np.float64)
    columns: Doubles = np.log(np.maximum(values, CERTAIN))
    return columns


class AnswerSpans:
    """The spans of one answer, their claims and their columns.

    Attributes:
        places: of the spans that have tokens, in order.
        claims: places of the claim of each.
        columns: shape (spans, 3).
    """

    def __init__(self, generation: Generation, offsets: NDArray[np.int32], question: str) -> None:
        """
        Args:
            generation: the answer.
            offsets: of its tokens.
            question: what the model was given to read.
        """
        text = generation.text
        found = find_spans(text)
        kept = slice(None) if generation.in_answer is None else generation.in_answer
        self._offsets = offsets[kept]
        self._logprobs, self._entropies = generation.logprobs[kept], generation.entropies[kept]
        both = [
            (place, claim)
            for place, claim in zip(found, find_claims(text, found, question), strict=True)
            if self._write([place]).any()
        ]
        self.places: tuple[Extent, ...] = tuple(place for place, _ in both)
        self.claims: tuple[tuple[Extent, ...], ...] = tuple(claim for _, claim in both)
        columns = [self._columns(place, claim) for place, claim in both]
        self.columns: Doubles = np.array(columns, np.float64).reshape(len(both), len(COLUMNS))

    def _write(self, places: Sequence[Extent]) -> NDArray[np.bool_]:
        """Return the tokens that write characters of these places."""
        first, last = self._offsets[:, 0], self._offsets[:, 1]
        found = np.zeros(len(first), np.bool_)
        for start, end in places:
            found |= (first < end) & (last > start) & (last > first)
        return found

    def _columns(self, place: Extent, claim: Sequence[Extent]) -> Doubles:
        of_span, of_claim = self._write([place]), self._write(claim or [place])
        return span_columns(self._logprobs[of_claim], self._entropies[of_claim], self._logprobs[of_span])


def answer_spans(generation: Generation, prompt: Prompt) -> AnswerSpans | None:
    """Return the spans of an answer; None if its text differs from its tokens, as with rewritten tool calls.

    Raises:
        GuardError: the extra ``spans`` is not installed, and there is prose.
    """
    if generation.offsets is None:
        return None
    return AnswerSpans(generation, generation.offsets, text_read(prompt))


def text_read(prompt: Prompt) -> str:
    """Return the text that the model was given to read, without the system message.

    Examples:
        >>> text_read(Prompt.chat("Where is it?", system="Be brief."))
        'Where is it?'
    """
    if prompt.messages is None:
        return prompt.text or ""
    return "\n".join(str(turn["content"]) for turn in prompt.messages if turn["role"] != "system")


def score_spans(model: SpanModel, generation: Generation, prompt: Prompt) -> tuple[Span, ...] | None:
    """Return the spans of an answer with their probabilities of being wrong; None and errors as for `answer_spans`.

    Args:
        model: fitted on spans of the same model's answers.
        generation: the answer.
        prompt: its prompt.

    Raises:
        ScorerError: the model's numbers are so large that a probability is no number.
    """
    spans = answer_spans(generation, prompt)
    if spans is None:
        return None
    text, places = generation.text, zip(spans.places, spans.claims, p_wrong(model, spans.columns), strict=True)
    return tuple(
        Span(start, end, text[start:end], float(p), tuple(text[a:b] for a, b in claim))
        for (start, end), claim, p in places
    )


def p_wrong(model: SpanModel, columns: Doubles) -> Doubles:
    """Return the probability that each span is wrong, shape (n,), from columns of shape (n, 3)."""
    linear = model.linear
    scaled = (columns - np.array(linear.mean)) / np.array(linear.scale)
    with np.errstate(over="ignore", invalid="ignore"):  # looked at below
        log_odds = model.calibration.log_odds(scaled @ np.array(linear.coefficients) + linear.intercept)
    if not np.isfinite(log_odds).all():
        raise ScorerError("The score of a span is not finite", why="the scorer's numbers are too large")
    return np.array([logistic(each) for each in log_odds], np.float64)
