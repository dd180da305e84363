"""The engine for served models against llama.cpp's own server, whose binary ``LLAMA_SERVER`` names."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from guard import ResponseFormat, load_engine
from guard.engines import embedded_model
from guard.engines.asked import RequestEngine
from guard.errors import PromptTooLongError
from guard.records import Limits, Prompt

pytestmark = pytest.mark.model

QUESTION = Prompt.chat("What is the capital of France?")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    binary = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if binary is None or not Path(binary).exists():
        pytest.skip("no llama-server: LLAMA_SERVER names no binary")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [binary, "-m", str(embedded_model()), "--port", str(port), "-t", "2", "-c", "2048", "--jinja"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "llama-server ended"
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("llama-server does not begin to answer")


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
