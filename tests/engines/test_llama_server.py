"""The engine for served models against llama.cpp's own server, whose binary ``LLAMA_SERVER`` names."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from llama_program import llama_server

from guard import ResponseFormat, load_engine
from guard.engines.asked import RequestEngine
from guard.errors import PromptTooLongError
from guard.records import Limits, Prompt

pytestmark = pytest.mark.model

QUESTION = Prompt.chat("What is the capital of France?")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with llama_server("-t", "2", "-c", "2048") as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def engine(url: str) -> Iterator[RequestEngine]:
    with load_engine(url) as found:
        yield found


def test_it_is_known_by_what_it_says(engine: RequestEngine) -> None:
    assert engine.model.served is not None
    assert "on llama.cpp server, fingerprint b" in engine.model.served


def test_answers_and_signals_are_those_of_the_same_weights_here(engine: RequestEngine) -> None:
    served = engine.generate(QUESTION, limits=Limits(max_tokens=24))
    with load_engine("smollm2", threads=2) as local:
        own = local.generate(QUESTION, limits=Limits(max_tokens=24))
    assert served.capture_error is None
    assert served.text == own.text
    shared = min(len(served.logprobs), len(own.logprobs))
    assert np.abs(served.logprobs[:shared] - own.logprobs[:shared]).max() < 0.2
    assert (served.entropies[:shared] <= own.entropies[:shared] + 0.2).all()  # of the likeliest tokens: a lower bound


def test_streams_stop_strings_and_formats(engine: RequestEngine) -> None:
    streamed = [*engine.stream(QUESTION, limits=Limits(max_tokens=24))]
    whole = "".join(chunk.text for chunk in streamed)
    assert whole == engine.generate(QUESTION, limits=Limits(max_tokens=24)).text
    stop = whole.split()[3]
    cut = engine.generate(QUESTION, limits=Limits(max_tokens=24, stop=(stop,)))
    assert (cut.finish_reason, cut.text) == ("stop_string", whole.partition(stop)[0])
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    asked = Prompt.chat("The capital of France, as JSON?", response_format=ResponseFormat.json(schema))
    assert engine.generate(asked, limits=Limits(max_tokens=40)).capture_error is None


def test_a_prompt_that_is_too_long_is_named_so(engine: RequestEngine) -> None:
    with pytest.raises(PromptTooLongError):
        engine.generate(Prompt.chat("word " * 5000))
