"""The engine for served models on what real servers said: `recorded_server` has recorded them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from endpoint import scorer_for
from recorded_server import LIMITS, QUESTION, TOP, ServerRecording, replayed

from guard import Guard, load_engine
from guard.policy.policy import parse_policy

RECORDED = sorted((Path(__file__).parent / "recorded").glob("*.json"))
#: How each server is known, and a word of its answer, which need not be right.
KNOWN = {
    "vllm-0.32": ("small on vLLM, fingerprint vllm-0.32", "Paris"),
    "llama-server-0.3.36": ("smollm2-135m on llama.cpp server, fingerprint b1-0c1e570", "L'Étoile"),
}
#: An answer may be cut: it is what the server said that counts.
ACCEPTS = "{version: 1, name: a, rules: [accept], truncated: accept}"


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_the_answer_is_read_as_it_was_sent(file: Path) -> None:
    recording = ServerRecording.read(file)
    entries = [entry for each in recording.events() for entry in tokens_of(each)]
    with replayed(recording) as url, load_engine(url, top_logprobs=TOP) as engine:
        assert engine.model.served is not None
        assert KNOWN[file.stem][0] in engine.model.served
        found = engine.generate(QUESTION, limits=LIMITS)
        pieces = [chunk.text for chunk in engine.stream(QUESTION, limits=LIMITS)]
        outcome = Guard(engine, scorer_for(engine), parse_policy(ACCEPTS)).ask(QUESTION, limits=LIMITS)
    assert found.capture_error is None
    assert KNOWN[file.stem][1] in found.text
    assert "".join(pieces) == outcome.answer == found.text
    given = [min(entry["logprob"], 0.0) for entry in entries][: len(found.logprobs)]
    assert found.logprobs.tolist() == pytest.approx(given, abs=1e-6)
    for entropy, entry in zip(found.entropies, entries, strict=False):
        shares = [math.exp(each["logprob"]) for each in entry["top_logprobs"]]
        assert -sum(share * math.log(share) for share in shares) <= entropy + 1e-5


def tokens_of(event: dict[str, list[dict[str, dict[str, list[dict[str, float]]]]]]) -> list[dict[str, float]]:
    return [entry for choice in event["choices"] for entry in (choice.get("logprobs") or {}).get("content") or ()]


def test_each_server_that_is_known_is_recorded() -> None:
    assert {file.stem for file in RECORDED} == {*KNOWN}
