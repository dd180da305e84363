"""Log-probabilities of an answer's tokens in OpenAI's form."""

from __future__ import annotations

from typing import Any

from guard.engines.protocols import Engine
from guard.engines.tokenizing import TokenizingEngine
from guard.records import Generation


def token_logprobs(generation: Generation | None, engine: Engine) -> dict[str, Any] | None:
    """Return the ``logprobs`` of a choice: the answer's tokens, without thoughts and the end token.

    A token that ends inside a character has an empty text; the next one has the whole character. Returns None if the
    engine does not provide the texts of tokens.
    """
    if generation is None or not isinstance(engine, TokenizingEngine):
        return None
    kept = range(generation.answer_start, len(generation.token_ids) - (generation.finish_reason == "stop"))
    texts = engine.token_texts([generation.token_ids[at] for at in kept])
    return {
        "content": [_entry(text, float(generation.logprobs[at])) for at, text in zip(kept, texts, strict=True)],
        "refusal": None,
    }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    return {"token": text, "logprob": logprob, "bytes": [*text.encode()], "top_logprobs": []}
