"""Recalibration of the embedded model: it reads the answers that people judged, so nothing is generated."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

pytest.importorskip("lightgbm")
pytest.importorskip("sklearn")

from moved_clock import MovedClock
from scripted import AnsweringEngine, confidence_scorer, scripted_model

import guard
from guard.policy.policy import parse_policy
from guard.records import Limits, Prompt
from guard.review.pages import CaseFilter
from guard.review.store import Store
from guard.runtime.guard import Guard
from guard.scoring.scorer import load_scorer, shipped_scorer

POLICY = """version: 1
name: sums
certificate: certificate.json
audit: {rate: 0.99}
rules:
  - accept: {max_error_rate: 0.3, confidence: 0.8}
  - escalate: {to: [review]}
"""
BEFORE = POLICY.replace("{max_error_rate: 0.3, confidence: 0.8}", "{below: 0.5}")


def is_right(number: int) -> bool:
    return number % 3 != 0


def script(prompt: Prompt, number: int) -> tuple[str, float]:
    """Right sums, and wrong ones that nobody would take for right."""
    first = int(prompt.question.split()[2])
    return f"{first + 2 if is_right(first) else 3 * first + 57}", 0.2


@pytest.mark.model
@pytest.mark.slow
def test_verdicts_on_its_answers_make_a_scorer_and_a_certificate_of_the_embedded_model(tmp_path: Path) -> None:
    policy, scorer = tmp_path / "sums.yaml", tmp_path / "scorer.json"
    policy.write_text(POLICY)
    shutil.copy(shipped_scorer(), scorer)
    with guard.engines.load_engine("smollm2", threads=1) as embedded:
        name = embedded.model.name
    with Store.open(tmp_path / "reviews.db") as store:
        answering = AnsweringEngine(script, model=scripted_model(name=name))
        with Guard(answering, confidence_scorer(answering.model), parse_policy(BEFORE), store=store) as guarded:
            for number in range(300):
                guarded.ask(f"What is {number} + 2?", limits=Limits(max_tokens=8))
        for case in store.page(CaseFilter(status="pending"), limit=1000).reviews:
            decide = store.approve if is_right(int(case.question.split()[2])) else store.reject
            decide(case.id, reviewer="ann")
        MovedClock(store).time = datetime.now(UTC) + timedelta(days=1)
        options = {"into": tmp_path / "new", "policy": policy, "scorer": scorer, "engine_options": {"threads": 1}}
        made = guard.recalibrate(store, apply=True, share=0.35, **options)
        assert made.is_certified
        assert made.calibration.fitted.metrics["guard"].auroc > 0.8
        assert load_scorer(scorer).sha256 == made.calibration.fitted.scorer.sha256
        with Guard.load("smollm2", scorer=scorer, policy=policy, store=store) as guarded:
            below = guarded.policy.plan().rules[0].below
            right, wrong = (guarded.score("What is 211 + 2?", answer).p_wrong for answer in ("213", "690"))
        assert right < min(0.5, below)
        assert wrong > 0.5
