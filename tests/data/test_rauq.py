"""RAUQ: an answer's uncertainty from its probabilities and the model's attention, recorded and compared."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from scripted import AnsweringEngine, scripted_model  # noqa: E402
from tiny_models import QUESTION, SHORT, byte_tokenizer, one_thread, tiny_model, wrap  # noqa: E402, F401

from guard.data.answers import Answers, concatenate  # noqa: E402
from guard.data.further_calls import FurtherCalls  # noqa: E402
from guard.data.questions import Question, Row  # noqa: E402
from guard.data.rauq import answer_rauq, check_attention, rauq  # noqa: E402
from guard.data.recording import Journal, Record, Run, record_rows  # noqa: E402
from guard.engines import attention as attention_pass  # noqa: E402
from guard.engines.protocols import AttentionEngine  # noqa: E402
from guard.engines.transformers import TransformersEngine  # noqa: E402
from guard.errors import InputError  # noqa: E402
from guard.evaluation.controls import attention_uncertainty  # noqa: E402

pytestmark = pytest.mark.torch


def made_attention(layers: int, heads: int, tokens: int) -> tuple[Any, Any]:
    """Log-probabilities and attention by a formula, so that LM-Polygraph can be given the same."""
    at = np.arange(layers * heads * (tokens - 1)).reshape(layers, heads, tokens - 1)
    return -0.1 - (np.arange(tokens) * 7 % 5) / 2.0, ((at * 37) % 101) / 101.0


@pytest.mark.parametrize(
    ("layers", "heads", "tokens", "weight", "theirs"),
    [(6, 2, 5, 0.5, 2.2052992), (6, 2, 5, 0.2, 2.4799906), (12, 3, 9, 0.5, 2.3267804), (3, 4, 2, 0.5, 1.3555951)],
)
def test_it_is_that_of_lm_polygraph_without_its_constant(
    layers: int, heads: int, tokens: int, weight: float, theirs: float
) -> None:
    logprobs, attention = made_attention(layers, heads, tokens)
    assert rauq(logprobs, attention, weight=weight) == pytest.approx(theirs - 1, abs=1e-6)


def test_an_answer_of_one_token_has_its_own_surprisal() -> None:
    assert rauq(np.array([-1.5]), np.zeros((4, 2, 0))) == pytest.approx(1.5)


def test_a_head_that_looks_away_lowers_the_confidence_in_what_follows() -> None:
    logprobs = np.log([0.9, 0.5, 0.5])
    near, away = np.full((3, 1, 2), 0.9), np.full((3, 1, 2), 0.1)
    assert rauq(logprobs, away) > rauq(logprobs, near)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text"])
def test_attention_is_that_of_the_passes_that_generate(kind: str, one_thread: None) -> None:  # noqa: F811
    model = tiny_model(kind)
    engine = wrap(model)
    generation = engine.generate(QUESTION, limits=SHORT)
    found = engine.attention(QUESTION, generation.token_ids)
    ids = torch.tensor([engine.encode(QUESTION)])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        made = model.generate(
            ids,
            max_new_tokens=len(generation.token_ids),
            min_new_tokens=len(generation.token_ids),
            do_sample=False,
            output_attentions=True,
            return_dict_in_generate=True,
        )
    assert made.sequences[0, ids.shape[1] :].tolist() == list(generation.token_ids)
    latest = [[layer[0, :, -1, -1].numpy() for layer in step] for step in made.attentions[1:]]
    assert found.shape == (3, 4, len(generation.token_ids) - 1)
    np.testing.assert_allclose(found, np.moveaxis(np.array(latest), 0, 2), atol=1e-5)


def test_reading_attention_leaves_the_model_as_it_was(one_thread: None) -> None:  # noqa: F811
    model = tiny_model("llama")
    model.train()
    engine, before = wrap(model), model.config._attn_implementation
    first = engine.generate(QUESTION, limits=SHORT)
    engine.attention(QUESTION, first.token_ids)
    assert (model.config._attn_implementation, model.training) == (before, True)
    again = engine.generate(QUESTION, limits=SHORT)
    assert again.token_ids == first.token_ids
    np.testing.assert_array_equal(again.logprobs, first.logprobs)


def test_a_request_waits_while_attention_is_read(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    engine = wrap(tiny_model("llama"))
    generation = engine.generate(QUESTION, limits=SHORT)
    entered, leave = threading.Event(), threading.Event()
    read = attention_pass.attention_to_latest

    def slowly(*given: Any, **more: Any) -> Any:
        entered.set()
        assert leave.wait(30)
        return read(*given, **more)

    monkeypatch.setattr("guard.engines.transformers.attention_to_latest", slowly)
    reading = threading.Thread(target=engine.attention, args=(QUESTION, generation.token_ids))
    reading.start()
    assert entered.wait(30)
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(engine.generate(QUESTION, limits=SHORT)))
    asking.start()
    asking.join(0.3)
    assert not answers
    leave.set()
    asking.join(30)
    reading.join(30)
    assert answers[0].token_ids == generation.token_ids


@pytest.mark.timeout(60)
def test_an_observer_that_reads_attention_is_refused_and_does_not_wait_for_itself(one_thread: None) -> None:  # noqa: F811
    engine = wrap(tiny_model("llama"))

    class Reading:
        def observe(self, activations: Any) -> None:
            engine.attention(QUESTION, [1, 2])

    generation = engine.generate(QUESTION, limits=SHORT, observer=Reading())
    assert "An observer or on_token asks the engine that calls it" in str(generation.capture_error)
    assert engine.attention(QUESTION, generation.token_ids).shape[2] == len(generation.token_ids) - 1


def test_more_attention_than_fits_is_refused(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    engine = wrap(tiny_model("llama"))
    monkeypatch.setattr(attention_pass, "MAX_BYTES", 1000)
    with pytest.raises(InputError, match=r"Attention over .* tokens takes too much memory"):
        engine.attention(QUESTION, [1, 2])


def test_a_model_without_attention_of_all_layers_is_refused(one_thread: None, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    model = tiny_model("llama")
    engine = wrap(model)
    monkeypatch.setattr(type(model), "forward", lambda self, **_: SimpleNamespace(attentions=(None, None, None)))
    with pytest.raises(InputError, match="does not return the attention of all layers"):
        engine.attention(QUESTION, [1, 2])


# -- recorded ----------------------------------------------------------------------------------

ROWS: list[tuple[str, Row]] = [("d", Question(f"{at}", f"What is {at}?", ("yes",))) for at in range(2)]


def recorded(path: Path, engine: TransformersEngine, *, read: bool) -> Answers:
    run = Run(model=engine.model, capture_point="mlp", system="", max_tokens=6)
    with Journal(path, run) as journal:
        (first, _) = record_rows(engine, ROWS, journal, run=run, calls=FurtherCalls(rauq=read))
        assert isinstance(first, Record)
        stored = journal.record("d/0")
        assert isinstance(stored, Record)
        assert stored.further == first.further
        return Answers.from_journal(journal, ROWS, lambda row, answer: row.id == "0")


def test_it_is_kept_where_it_is_asked_for(tmp_path: Path, one_thread: None) -> None:  # noqa: F811
    engine = wrap(tiny_model("llama"))
    assert isinstance(engine, AttentionEngine)
    answers = recorded(tmp_path / "j", engine, read=True)
    assert answers.rauq is not None
    assert (answers.rauq > 0).all()
    answers.write(tmp_path / "a.parquet")
    again = Answers.read(tmp_path / "a.parquet")
    np.testing.assert_array_equal(again.rauq, answers.rauq)
    np.testing.assert_array_equal(attention_uncertainty(again).ravel(), answers.rauq)
    plain = recorded(tmp_path / "k", engine, read=False)
    assert plain.rauq is None
    with pytest.raises(InputError, match=r"answers without RAUQ.*--rauq"):
        attention_uncertainty(plain)
    renamed = Answers.whole(replace(plain.columns, key=plain.columns.key + "x"))
    assert np.isnan(concatenate([answers, renamed]).rauq).tolist() == [False, False, True, True]  # type: ignore[arg-type]


def test_of_a_recorded_answer_it_is_that_of_its_prompt_and_tokens(tmp_path: Path, one_thread: None) -> None:  # noqa: F811
    engine = wrap(tiny_model("llama"))
    answers = recorded(tmp_path / "j", engine, read=True)
    from guard.data.prompts import question_prompt
    from guard.records import Limits

    row = ROWS[0][1]
    assert isinstance(row, Question)
    prompt = question_prompt(row, system="")
    generation = engine.generate(prompt, limits=Limits(max_tokens=6))
    assert answers.rauq is not None
    assert answers.rauq[0] == pytest.approx(answer_rauq(engine, prompt, generation), abs=1e-5)


def test_an_engine_without_attention_is_refused_with_the_one_that_has_it() -> None:
    with pytest.raises(InputError, match=r"returns none.*--engine transformers"):
        check_attention(AnsweringEngine(lambda prompt, number: ("yes", 0.4), model=scripted_model()))
