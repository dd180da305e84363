"""Answers of another length or form than those of the calibration are marked, and count as out of distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model, tiny_artefact

from guard import Guard, Limits, Outcome
from guard.policy.policy import parse_policy
from guard.records import Prompt, Signals
from guard.scoring.answer_bounds import AnswerBounds, count_lines
from guard.scoring.ood import fit_ood_detector
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.scoring.signature import SignatureObserver

POLICY = """
version: 1
name: mine
rules: [{accept: {below: 0.9}}, {abstain: {}}]
out_of_distribution: {above: 0.99, then: {abstain: {text: Unlike.}}}
"""


def test_bounds_are_those_of_all_but_the_longest_answers() -> None:
    texts, tokens = ["a\nb"] * 999 + ["a\n" * 50], [5] * 999 + [900]
    assert AnswerBounds.of(texts, tokens) == AnswerBounds(tokens=5, lines=2)
    assert AnswerBounds.of(["", "---"], [1, 1]) == AnswerBounds(tokens=1, lines=1)


def test_lines_that_say_nothing_do_not_count() -> None:
    assert [count_lines(text) for text in ("", "a\n\n---\n|  |\nb", "a\r\nb")] == [0, 2, 2]


def ask(text: str, form: AnswerBounds | None, policy: str = POLICY, *, ood: bool = True) -> Outcome:
    """Ask a guard whose scorer has these bounds, and a detector that finds every input usual."""
    artefact = tiny_artefact(scripted_model())
    engine = AnsweringEngine(lambda prompt, number: (text, 0.1))
    detector = usual_detector(engine) if ood else None
    scorer = Scorer(artefact.model_copy(update={"answer_bounds": form, "ood_detector": detector}))
    return Guard(engine, scorer, parse_policy(policy)).ask("Same?", limits=Limits(max_tokens=99))


def usual_detector(engine: AnsweringEngine) -> object:
    found = []
    rng = np.random.default_rng(0)
    for _ in range(200):
        observer = SignatureObserver()
        own = engine.activations_at(Prompt.raw("Same?"), 0)
        observer.observe((own + 0.3 * rng.normal(size=own.shape)).astype(np.float32))
        found.append(Signals(*[np.zeros(1, np.float32)] * 3, observer.signature()))
    return fit_ood_detector(found[:150], found[150:]).stored()


FORM = AnswerBounds(tokens=20, lines=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("one line, and rather a long one", "it has 32 tokens, those of the calibration at most 20"),
        ("a\nb\nc", "it has 3 lines, those of the calibration at most 2"),
    ],
)
def test_a_longer_answer_is_marked_and_the_policys_section_decides(text: str, says: str) -> None:
    found = ask(text, FORM)
    score = found.attempts[0].score
    assert score is not None
    assert (score.unlike, score.ood_score) == (says, 1.0)
    assert (found.answer, found.rule) == ("Unlike.", "out_of_distribution")
    assert found.to_dict()["attempts"][0]["unlike"] == says


def test_an_answer_within_the_bounds_is_not() -> None:
    found = ask("a\nb", FORM)
    score = found.attempts[0].score
    assert score is not None
    assert score.unlike is None
    assert found.answer == "a\nb"


def test_without_the_section_or_a_detector_it_is_marked_only() -> None:
    found = ask("a\nb\nc", FORM, POLICY.partition("out_of")[0], ood=False)
    score = found.attempts[0].score
    assert score is not None
    assert (found.answer, score.ood_score) == ("a\nb\nc", None)
    assert "3 lines" in str(score.unlike)


def test_a_file_without_bounds_still_knows_how_many_tokens_an_answer_could_have() -> None:
    artefact = confidence_scorer().artefact
    assert artefact.why_unlike("a\nb\nc", artefact.prompting.max_tokens) is None
    assert artefact.why_unlike("a", artefact.prompting.max_tokens + 1) is not None
    assert "answer_bounds" not in artefact.model_dump()


def test_only_tokens_and_lines_are_compared() -> None:
    """A list on one line is not noticed, and a file without bounds notices no lines: the reference says so."""
    assert AnswerBounds(tokens=20, lines=1).why_unlike("1. Oslo 2. Bergen 3. Paris", 12) is None
    shipped = load_scorer(shipped_scorer()).artefact
    assert shipped.answer_bounds is None
    assert shipped.why_unlike("1. Oslo\n2. Bergen\n3. Paris", 12) is None
    text = (Path(__file__).parents[2] / "docs" / "reference" / "policies.md").read_text(encoding="utf-8")
    assert "Scorers of older files, the embedded model's among them, have no bound of lines" in text
    assert "a list on one line is not noticed" in text
