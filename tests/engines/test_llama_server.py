"""The engine for served models against llama.cpp's own server, whose binary ``LLAMA_SERVER`` names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from llama_program import llama_server
from served_like_local import check_signals, check_streams_stop_strings_and_formats

from guard import load_engine
from guard.engines.asked import RequestEngine
from guard.errors import PromptTooLongError
from guard.records import Limits, Prompt

pytestmark = pytest.mark.model


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
    check_signals(engine, Limits(max_tokens=24), threads=2)


def test_streams_stop_strings_and_formats(engine: RequestEngine) -> None:
    check_streams_stop_strings_and_formats(engine, Limits(max_tokens=24))


def test_a_prompt_that_is_too_long_is_named_so(engine: RequestEngine) -> None:
    with pytest.raises(PromptTooLongError):
        engine.generate(Prompt.chat("word " * 5000))
