"""Log-probabilities of an answer's tokens in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from guard.engines.asked import RequestEngine
from guard.engines.protocols import Engine
from guard.engines.tokenizing import TokenizingEngine
from guard.records import Attempt, Generation
from guard.runtime.call_state import OWN_ENGINE
from guard.runtime.guard import Guard
from guard.runtime.sources import Source
from guard.serve.request_errors import RequestError, not_offered


def check_top_logprobs(engine: Engine, wanted: int) -> None:
    """Refuse log-probabilities that an engine does not report, before anything is generated.

    Raises:
        RequestError: names the option.
    """
    most = engine.most_top_logprobs if isinstance(engine, RequestEngine) else None
    if most is None:
        raise not_offered("logprobs", why=f"the engine of '{engine.model.name}' shows no single tokens")
    if wanted > most:
        raise RequestError(
            f"top_logprobs is {wanted}", why=f"'{engine.model.name}' reports {most} at most", param="top_logprobs"
        )


def answering_engine(guard: Guard, attempt: Attempt) -> Engine | None:
    """Return the engine that answered in an attempt; None for a function."""
    source = guard.sources.get(attempt.source)
    if attempt.source == OWN_ENGINE:
        return guard.engine
    return source.engine if isinstance(source, Source) else None


def token_logprobs(generation: Generation | None, engine: Engine | None) -> dict[str, Any] | None:
    """Return the ``logprobs`` of a choice: the answer's tokens, without thoughts and the end token.

    A token that ends within a character has no text; the next one has the whole character. None where the engine
    that answered does not tell.

    Args:
        generation: of the answer; None for a function's.
        engine: that answered.
    """
    if generation is None:
        return None
    kept = range(generation.answer_start, len(generation.token_ids) - (generation.finish_reason == "stop"))
    texts = _texts(generation, engine, kept)
    if texts is None:
        return None
    content = [
        {**_entry(text, float(generation.logprobs[at])), "top_logprobs": _alternatives(generation, engine, at)}
        for at, text in zip(kept, texts, strict=True)
    ]
    return {"content": content, "refusal": None}


def _texts(generation: Generation, engine: Engine | None, kept: Sequence[int]) -> list[str] | None:
    if generation.pieces is not None:
        return [_shown(generation.pieces[generation.token_ids[at]]) for at in kept]
    return (
        engine.token_texts([generation.token_ids[at] for at in kept]) if isinstance(engine, TokenizingEngine) else None
    )


def _alternatives(generation: Generation, engine: Engine | None, at: int) -> list[dict[str, Any]]:
    """Return the likeliest tokens at a position; ends of the answer have no text."""
    found = generation.top[at] if generation.top is not None else ()
    if generation.pieces is not None:
        return [_entry(_shown(generation.pieces[token]), logprob) for token, logprob in found]
    assert isinstance(engine, TokenizingEngine)
    before = generation.token_ids[:at]
    return [_entry(engine.alternative_text(before, token), logprob) for token, logprob in found]


def _shown(piece: bytes) -> str:
    return piece.decode(errors="replace")


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": [*text.encode()]}
