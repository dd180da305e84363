"""Answers that exist already: the model is run over them, and their signals are scored."""

from __future__ import annotations

from dataclasses import replace

from guard.records import Generation, Limits, Prompt
from guard.runtime.sources import Source, generation_step
from guard.runtime.steps import Steps
from guard.scores import Score


def score_given(
    own: Source,
    prompt: Prompt,
    response: str,
    *,
    cache_key: str | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> Steps[tuple[Score, Generation]]:
    """Score an answer; return also the pass over the model, which counts its tokens.

    Args:
        own: the engine and its scorer.
        prompt: what was asked.
        response: the answer.
        cache_key: as for `guard.runtime.guard.Guard.ask`; None for the prompt's own.
        limits: of the pass, of which the time counts.

    Raises:
        CaptureError: its signals could not be recorded.
        EngineTimeoutError: it took too long.
    """
    observer = own.observer()
    asked = prompt if cache_key is None else replace(prompt, cache_key=cache_key)
    generation = yield generation_step(own.engine, asked, observer=observer, completion=response, limits=limits)
    return own.score(generation, observer, asked), generation
