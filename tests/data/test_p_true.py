"""P(true): the model's own judgement of its answers, asked, kept and compared."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("pyarrow")

from scipy.special import logit
from scripted import AnsweringEngine, scripted_model

from guard.data.answers import Answers, concatenate
from guard.data.further_calls import FurtherCalls
from guard.data.p_true import p_true_prompt
from guard.data.questions import LabelledResponse, Question, Row
from guard.data.recording import Journal, Record, Run, record_rows
from guard.errors import InputError
from guard.evaluation.controls import self_judgement
from guard.records import Prompt

RUN = Run(model=scripted_model(), capture_point="mlp", system="Be brief.", max_tokens=8)
ROWS: list[tuple[str, Row]] = [
    ("d", Question("1", "Which?", ("yes",), choices=("yes", "no"), answer_index=0)),
    ("d", Question("2", "What?", ("yes",))),
    ("d", LabelledResponse(id="3", prompt=Prompt.chat("Why?"), response="So.", wrong=False)),
]


def confident(prompt: Prompt, number: int) -> tuple[str, float]:
    """Answer "yes"; of its own answers this model is surer where there were choices."""
    if "Is the proposed answer:" not in prompt.question:
        return "yes", 0.4
    return "A", 0.1 if "A. yes" in prompt.question else 0.6


def recorded(path: Path, *, asked: bool) -> Answers:
    with Journal(path, RUN) as journal:
        calls = FurtherCalls(p_true=asked)
        list(record_rows(AnsweringEngine(confident, model=RUN.model), ROWS, journal, run=RUN, calls=calls))
        return Answers.from_journal(journal, ROWS, lambda row, answer: answer == "yes")


def test_the_question_about_an_answer_has_both_and_no_system_message() -> None:
    asked = p_true_prompt(Question("1", "Which?", ("yes",), choices=("yes", "no"), answer_index=0), " no\n")
    assert asked.messages is not None
    assert [turn["role"] for turn in asked.messages] == ["user"]
    text = asked.question
    assert all(
        part in text for part in ("Question: Which?\nA. yes\nB. no", "Proposed answer: no\n", "A. True\nB. False")
    )
    raw = p_true_prompt(Question("1", "Which?", ("yes",)), "no", completion=True)
    assert raw.messages is None
    assert (raw.text or "").endswith("B. False\nLetter of the right choice: ")


def test_what_the_model_says_of_its_answers_is_kept(tmp_path: Path) -> None:
    answers = recorded(tmp_path / "j", asked=True)
    assert answers.p_true is not None
    engine = AnsweringEngine(confident, model=RUN.model)
    prompts = [p_true_prompt(row, "yes") for _, row in ROWS if isinstance(row, Question)]
    logprobs = [engine.generate(prompt, completion="A").logprobs[0] for prompt in prompts]
    assert answers.p_true[:2].tolist() == [math.exp(float(each)) for each in logprobs]
    assert answers.p_true[0] > answers.p_true[1] > 0
    assert np.isnan(answers.p_true[2]), "a given response is not asked about"
    with Journal(tmp_path / "j", RUN) as journal:
        record = journal.record("d/1")
        assert isinstance(record, Record)
        assert record.further.p_true == answers.p_true[0]
    answers.write(tmp_path / "a.parquet")
    again = Answers.read(tmp_path / "a.parquet")
    assert np.array_equal(again.p_true, answers.p_true, equal_nan=True)  # type: ignore[arg-type]
    assert self_judgement(again.take(np.array([0, 1]))).ravel() == pytest.approx(logit(answers.p_true[:2]))
    with pytest.raises(InputError, match=r"answers without P\(true\).*--p-true"):
        self_judgement(again)


def test_without_it_nothing_is_asked_and_nothing_stands_in_the_file(tmp_path: Path) -> None:
    answers = recorded(tmp_path / "j", asked=False)
    assert answers.p_true is None
    answers.write(tmp_path / "a.parquet")
    assert Answers.read(tmp_path / "a.parquet").p_true is None
    with pytest.raises(InputError, match=r"answers without P\(true\)"):
        self_judgement(answers)
    other = recorded(tmp_path / "k", asked=True)
    renamed = Answers.whole(replace(other.columns, key=other.key + "x"))
    assert np.isnan(concatenate([answers, renamed]).p_true).tolist() == [True, True, True, False, False, True]  # type: ignore[arg-type]
