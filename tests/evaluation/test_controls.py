"""Controls: what the texts alone say, and what peers print without a fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

from scripted import AnsweringEngine, scripted_model
from sklearn.metrics import roc_auc_score

from guard.data.answers import Answers
from guard.data.questions import Question, Row
from guard.data.recording import Journal, Run, record_rows
from guard.errors import InputError
from guard.evaluation.controls import (
    CATEGORIES,
    LEAST_TOKEN_PROBABILITY,
    SEQUENCE_PROBABILITY,
    TextMethod,
    question_categories,
)

RUN = Run(model=scripted_model(), capture_point="mlp", system="", max_tokens=20)
QUESTIONS = ("Who wrote it?", "When was it?", "What is 2 + 3?", "Is it so?", "Where is it?", "Tell me.")


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """Answers whose label is the kind of question; the label of the first kinds is wrong."""
    rows: list[tuple[str, Row]] = [
        ("set", Question(id=f"{n}", question=f"{QUESTIONS[n % 6]} ({n})", answers=("yes",))) for n in range(120)
    ]
    engine = AnsweringEngine(lambda prompt, number: ("yes" if number % 2 else "no idea", 0.4), model=RUN.model)
    with Journal(tmp_path_factory.mktemp("journal") / "j", RUN) as journal:
        list(record_rows(engine, rows, journal, run=RUN))
        columns = Answers.from_journal(journal, rows, lambda row, answer: True).columns
    return Answers.whole(replace(columns, wrong=np.arange(len(columns)) % 6 < 3))


def test_records_keep_the_questions_text(answers: Answers, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    answers.write(tmp_path / "a.parquet")
    assert list(Answers.read(tmp_path / "a.parquet").question) == list(answers.question)
    assert answers.question[1] == "When was it? (1)"


def test_what_the_words_of_a_question_say_is_found(answers: Answers) -> None:
    learn, test = answers.take(np.arange(60)), answers.take(np.arange(60, 120))
    p_wrong = TextMethod().fit(learn, seed=0).p_wrong(test)
    assert roc_auc_score(test.wrong, p_wrong) > 0.95
    assert ((p_wrong > 0) & (p_wrong < 1)).all()


def test_the_text_only_control_reads_nothing_of_the_pass(answers: Answers) -> None:
    blind = Answers.whole(replace(answers.columns, logprobs=answers.columns.logprobs * 0 - 1))
    np.testing.assert_array_equal(
        TextMethod().fit(answers, seed=0).p_wrong(answers), TextMethod().fit(blind, seed=0).p_wrong(blind)
    )


def test_labels_of_one_kind_teach_nothing(answers: Answers) -> None:
    with pytest.raises(InputError, match="all are wrong"):
        TextMethod().fit(answers.take(np.flatnonzero(answers.wrong)), seed=0)


def test_questions_have_categories_by_their_words(answers: Answers) -> None:
    columns = question_categories(answers)[:6]
    names = list(CATEGORIES)
    found = [[names[at] for at in np.flatnonzero(row[:-1])] for row in columns]
    assert found == [["who"], ["when"], ["sum"], ["yes or no"], ["where"], []]
    assert columns[0, -1] == pytest.approx(np.log1p(4))


def test_peers_as_they_stand_are_the_probabilities_of_the_tokens(answers: Answers) -> None:
    sequence = SEQUENCE_PROBABILITY.fit(answers, seed=0).p_wrong(answers)
    least = LEAST_TOKEN_PROBABILITY.fit(answers, seed=0).p_wrong(answers)
    for at in (0, 1, 7):
        probabilities = np.exp(answers.signals(at).logprobs.astype(float))
        assert sequence[at] == pytest.approx(1 - probabilities.prod())
        assert least[at] == pytest.approx(1 - probabilities.min())
