"""What must hold of SmolLM2 on another program's server: answers and signals are those of the same weights here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from guard import ResponseFormat, load_engine
from guard.engines.asked import RequestEngine
from guard.records import Limits, Prompt

QUESTION = Prompt.chat("What is the capital of France?")


def check_signals(engine: RequestEngine, limits: Limits, *, threads: int, model: str | Path = "smollm2") -> None:
    """Compare an answer with that of the embedded model, or of a model folder."""
    served = engine.generate(QUESTION, limits=limits)
    with load_engine(model, threads=threads) as local:
        own = local.generate(QUESTION, limits=limits)
    assert served.capture_error is None
    assert served.text == own.text
    shared = min(len(served.logprobs), len(own.logprobs))
    assert np.abs(served.logprobs[:shared] - own.logprobs[:shared]).max() < 0.2
    assert (served.entropies[:shared] <= own.entropies[:shared] + 0.2).all()  # of the likeliest tokens: a lower bound


def check_streams_stop_strings_and_formats(engine: RequestEngine, limits: Limits) -> None:
    streamed = [*engine.stream(QUESTION, limits=limits)]
    whole = "".join(chunk.text for chunk in streamed)
    assert whole == engine.generate(QUESTION, limits=limits).text
    stop = whole.split()[3]
    cut = engine.generate(QUESTION, limits=Limits(max_tokens=limits.max_tokens, stop=(stop,)))
    assert (cut.finish_reason, cut.text) == ("stop_string", whole.partition(stop)[0])
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    asked = Prompt.chat("The capital of France, as JSON?", response_format=ResponseFormat.json(schema))
    found = engine.generate(asked, limits=Limits(max_tokens=40))
    assert found.capture_error is None
    assert json.loads(found.text)["city"] in ("Paris", "Rome")
