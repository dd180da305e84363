"""Answers in a response format: always of that form, with the signals of the whole distribution."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from noise import NoiseEngine
from scripted import AnsweringEngine, ByteEngine, confidence_scorer

from guard import Guard, ResponseFormat
from guard.engines.sampling import token_signals
from guard.errors import EngineError, InputError, MissingExtraError
from guard.records import Limits, Prompt, Sampling

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 6},
        "rank": {"type": "integer", "minimum": 1, "maximum": 99},
        "kind": {"enum": ["town", "village"]},
    },
    "required": ["city", "rank", "kind"],
    "additionalProperties": False,
}
ROOMY = Limits(max_tokens=300)


def asked(wanted: ResponseFormat, text: str = "why?") -> Prompt:
    return Prompt(text=text, response_format=wanted)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0, 5.0]))
@settings(max_examples=30, deadline=None)
def test_a_model_that_writes_noise_writes_json_of_the_schema(seed: int, temperature: float) -> None:
    import jsonschema

    with NoiseEngine(seed) as engine:
        sampling = Sampling(temperature=temperature, top_k=40, seed=seed)
        found = engine.generate(asked(ResponseFormat.json(SCHEMA)), sampling=sampling, limits=ROOMY)
    assert found.finish_reason == "stop"
    jsonschema.validate(json.loads(found.text), SCHEMA)


def test_the_signals_are_those_of_the_whole_distribution() -> None:
    with NoiseEngine() as engine:
        found = engine.generate(asked(ResponseFormat.json(SCHEMA)), limits=ROOMY)
        expected = [token_signals(row, token) for row, token in zip(engine.rows, found.token_ids, strict=True)]
    assert found.logprobs.tolist() == np.array([each.logprob for each in expected], np.float32).tolist()
    assert found.entropies.tolist() == np.array([each.entropy for each in expected], np.float32).tolist()
    assert found.margins.tolist() == np.array([each.margin for each in expected], np.float32).tolist()
    likeliest = [int(row.argmax()) for row in engine.rows]
    ruled_out = sum(top != token for top, token in zip(likeliest, found.token_ids, strict=True))
    assert found.redirected == ruled_out > 0


@pytest.mark.parametrize(
    ("wanted", "form"),
    [
        (ResponseFormat.regex("(ab|cd){3}"), "(ab|cd){3}"),
        (ResponseFormat.lark('start: "yes" | "no" | "perhaps, " start'), "(perhaps, )*(yes|no)"),
    ],
)
def test_grammars_and_regular_expressions_hold(wanted: ResponseFormat, form: str) -> None:
    with NoiseEngine(3) as engine:
        assert re.fullmatch(form, engine.generate(asked(wanted), limits=ROOMY).text)


def test_an_answer_that_has_the_form_anyway_is_not_redirected() -> None:
    with AnsweringEngine(lambda prompt, number: ('{"a": 1}', 0.1)) as engine:
        free = engine.generate(Prompt.raw("why?"))
        held = engine.generate(asked(ResponseFormat.json()))
    assert (held.text, held.redirected, free.redirected) == (free.text, 0, None)
    assert held.logprobs.tolist() == free.logprobs.tolist()


def test_a_cut_answer_says_that_it_is_cut() -> None:
    with NoiseEngine() as engine:
        found = engine.generate(asked(ResponseFormat.json(SCHEMA)), limits=Limits(max_tokens=5))
    assert (found.finish_reason, len(found.token_ids)) == ("length", 5)


def test_streams_have_the_form_too() -> None:
    with NoiseEngine() as engine:
        chunks = [*engine.stream(asked(ResponseFormat.json(SCHEMA)), limits=ROOMY)]
    assert json.loads("".join(chunk.text for chunk in chunks))["kind"] in ("town", "village")


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (ResponseFormat.json({"type": "nonsense"}), "Invalid type"),
        (ResponseFormat.json({"$ref": "http://127.0.0.1/schema"}), "fetch"),
        (ResponseFormat.json({"type": "array", "uniqueItems": True}), "Unimplemented"),
        (ResponseFormat.json({"type": "integer", "minimum": 5, "maximum": 2}), "Unsatisfiable"),
        (ResponseFormat.lark("start: nowhere"), "unknown name"),
        (ResponseFormat.regex("(unclosed"), "regex"),
    ],
)
def test_what_cannot_be_compiled_is_refused_before_the_model_is_asked(wanted: ResponseFormat, why: str) -> None:
    with NoiseEngine() as engine:
        with pytest.raises(InputError, match=f"cannot be compiled.*{why}"):
            engine.generate(asked(wanted))
        assert not engine.rows


def test_deep_and_long_schemas_are_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"items": deep}
    with pytest.raises(InputError, match=r"cannot be written|cannot be compiled"), NoiseEngine() as engine:
        engine.generate(asked(ResponseFormat.json(deep)))
    with pytest.raises(InputError, match="at most 200000"):
        ResponseFormat.lark("x" * 200_001)
    for nothing in ("", "  "):
        with pytest.raises(InputError, match="needs a schema or a grammar"):
            ResponseFormat.regex(nothing)


def test_a_vocabulary_without_a_needed_token_fails() -> None:
    with NoiseEngine(missing=b'"') as engine, pytest.raises(EngineError, match="response format"):
        engine.generate(asked(ResponseFormat.json(SCHEMA)), limits=ROOMY)


def test_a_stop_string_in_the_form_fails() -> None:
    with NoiseEngine() as engine, pytest.raises(EngineError, match="a stop string cut it"):
        engine.generate(asked(ResponseFormat.json(SCHEMA)), limits=Limits(300, stop=("rank",)))


def test_a_thought_is_free_and_the_answer_has_the_form() -> None:
    with AnsweringEngine(lambda prompt, number: ("I wonder.</think>No form at all, and some more", 0.1)) as engine:
        found = engine.generate(asked(ResponseFormat.json(SCHEMA), "why? <think>"), limits=ROOMY)
    assert found.reasoning == "I wonder."
    assert json.loads(found.text)["kind"] in ("town", "village")


def test_a_thought_that_never_ends_is_no_answer() -> None:
    with (
        AnsweringEngine(lambda prompt, number: ("I wonder", 0.1)) as engine,
        pytest.raises(EngineError, match="never left its thought"),
    ):
        engine.generate(asked(ResponseFormat.json(SCHEMA), "why? <think>"), limits=ROOMY)


class MergingEngine(AnsweringEngine):
    """Has one token for the end of a thought and the beginning of an answer."""

    def _detokenizer(self) -> Any:
        from guard.engines.detokenizer import BytesDetokenizer

        return BytesDetokenizer(lambda token: b"</think>[" if token == ord("|") else bytes([token]))


def test_a_token_that_ends_a_thought_must_not_begin_the_answer() -> None:
    with (
        MergingEngine(lambda prompt, number: ("hm|1]", 0.1)) as engine,
        pytest.raises(EngineError, match="the thought's last token began it"),
    ):
        engine.generate(asked(ResponseFormat.json({"type": "array"}), "why? <think>"), limits=ROOMY)


def test_a_given_answer_is_scored_as_it_is() -> None:
    with NoiseEngine() as engine:
        found = engine.generate(asked(ResponseFormat.json(SCHEMA)), completion="no JSON")
    assert (found.text, found.redirected) == ("no JSON", None)


def test_a_score_of_a_redirected_answer_is_uncalibrated() -> None:
    scorer = confidence_scorer()
    with AnsweringEngine(lambda prompt, number: ("Paris" if "free" in prompt.question else '"a"', 0.1)) as engine:
        guard = Guard(engine, scorer, "permissive")
        text = ResponseFormat.json({"type": "string", "maxLength": 3})
        same = guard.ask(Prompt.raw("same"), response_format=text).attempts[0]
        bent = guard.ask(Prompt.raw("free"), response_format=text).attempts[0]
    assert same.score is not None
    assert bent.score is not None
    assert same.generation is not None
    assert bent.generation is not None
    assert (same.generation.redirected, same.score.calibrated) == (0, True)
    assert bent.generation.redirected
    assert bent.score.calibrated is False
    assert bent.score.p_wrong > same.score.p_wrong


def test_the_outcome_says_how_many_tokens_were_redirected() -> None:
    with AnsweringEngine(lambda prompt, number: ("x", 0.1)) as engine:
        guard = Guard(engine, confidence_scorer(), "permissive")
        told = guard.ask(Prompt.raw("why?"), response_format=ResponseFormat.regex("[ab]")).to_dict()
        free = guard.ask(Prompt.raw("why?")).to_dict()
    assert [each["attempts"][0]["redirected"] for each in (told, free)] == [1, None]


def test_without_llguidance_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with NoiseEngine() as engine, pytest.raises(MissingExtraError, match=r"ilis-guard\[grammar\]"):
        engine.generate(asked(ResponseFormat.json()))


def test_an_engine_without_a_vocabulary_says_that_it_cannot() -> None:
    class Plain(NoiseEngine):
        def _grammar_vocabulary(self) -> Any:
            return super(ByteEngine, self)._grammar_vocabulary()

    with Plain() as engine, pytest.raises(InputError, match="'scripted' cannot answer in a response format"):
        engine.generate(asked(ResponseFormat.json()))


@pytest.mark.torch
def test_transformers_answers_in_a_format() -> None:
    from tiny_models import byte_tokenizer, tiny_model

    from guard.engines.transformers import TransformersEngine

    with TransformersEngine.wrap(tiny_model("llama"), byte_tokenizer()) as engine:
        found = engine.generate(Prompt.chat("Where?", response_format=ResponseFormat.json(SCHEMA)), limits=ROOMY)
    assert json.loads(found.text)["kind"] in ("town", "village")


def test_llama_cpp_answers_in_a_format(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from tiny_gguf import write_tiny_gguf

    from guard.engines.llama_cpp import LlamaCppEngine

    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    with LlamaCppEngine.load(file, threads=1, trial_load=False) as engine:
        found = engine.generate(Prompt.chat("Where?", response_format=ResponseFormat.json(SCHEMA)), limits=ROOMY)
    assert json.loads(found.text)["kind"] in ("town", "village")


@pytest.mark.torch
def test_a_tokenizer_that_adds_spaces_answers_in_a_format() -> None:
    from tiny_models import sentencepiece_tokenizer, tiny_model

    from guard.engines.transformers import TransformersEngine

    tokenizer = sentencepiece_tokenizer()
    with TransformersEngine.wrap(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer) as engine:
        found = engine.generate(asked(ResponseFormat.json(SCHEMA)), limits=ROOMY)
    assert json.loads(found.text)["kind"] in ("town", "village")


def test_what_must_follow_is_tokenized_without_a_space_that_a_tokenizer_adds() -> None:
    class Prefixing(NoiseEngine):
        def encode_text(self, text: str) -> list[int]:
            return super().encode_text(f" {text}")

    with Prefixing() as engine:
        assert json.loads(engine.generate(asked(ResponseFormat.json(SCHEMA)), limits=ROOMY).text)
