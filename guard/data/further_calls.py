"""What a model is asked about a question beyond its answer: further samples, P(true), and its attention for RAUQ."""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass

from guard.data.p_true import p_true
from guard.data.questions import Question, Row
from guard.data.rauq import answer_rauq
from guard.engines.protocols import Engine
from guard.errors import PromptTooLongError
from guard.records import Generation, Limits, Prompt, Sampling


@dataclass(frozen=True, slots=True)
class FurtherCalls:
    """Which calls follow an answer.

    Attributes:
        samples: number of further answers, sampled at temperature 1.
        p_true: ask whether the answer is right; see `guard.data.p_true`.
        rauq: read the attention over the answer; see `guard.data.rauq`.
    """

    samples: int = 0
    p_true: bool = False
    rauq: bool = False


@dataclass(frozen=True, slots=True)
class FurtherSignals:
    """What came of these calls; None where they were not made."""

    samples: tuple[str, ...] = ()
    p_true: float | None = None
    rauq: float | None = None


def ask_further(
    engine: Engine,
    row: Row,
    prompt: Prompt,
    generation: Generation,
    calls: FurtherCalls,
    *,
    limits: Limits,
    cancel: threading.Event,
) -> FurtherSignals:
    """Make the calls that follow an answer.

    Args:
        engine: a loaded engine.
        row: what was asked; of a given response there are no samples and no P(true).
        prompt: how it was asked.
        generation: the answer.
        calls: which to make.
        limits: of further answers.
        cancel: set it from another thread to stop.

    Raises:
        InputError: the engine returns no attention.
        CancelledError: ended from outside.
    """
    attention = answer_rauq(engine, prompt, generation) if calls.rauq else None
    if not isinstance(row, Question):
        return FurtherSignals(rauq=attention)
    # Each question has its own seeds: with common seeds the samples of all questions would be correlated.
    start = zlib.crc32(row.id.encode())
    draws = (Sampling(temperature=1.0, seed=start + draw) for draw in range(calls.samples))
    samples = tuple(engine.generate(prompt, sampling=draw, limits=limits, cancel=cancel).text for draw in draws)
    true = _p_true(engine, row, prompt, generation.text, cancel) if calls.p_true else None
    return FurtherSignals(samples, true, attention)


def _p_true(engine: Engine, row: Question, prompt: Prompt, answer: str, cancel: threading.Event) -> float | None:
    """Return the model's own judgement of its answer; None where question and answer are too long to be asked about."""
    try:
        return p_true(engine, row, answer, completion=prompt.messages is None, cancel=cancel)
    except PromptTooLongError:
        return None
