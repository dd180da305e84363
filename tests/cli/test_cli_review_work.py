"""``guard review`` for people who work through the queue."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_cases import make_escalation, make_spanned
from typer.testing import CliRunner

from guard.cli import app, review_work
from guard.review.store import ReviewStatus, Store
from guard.review_terms import LateAction, ReviewTerms


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LOGNAME", "ann")
    return tmp_path / "reviews.db"


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store.open(place) as opened:
        yield opened


def run(place: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["review", *arguments, "--store", str(place)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_the_next_case_is_shown_and_claimed(place: Path, store: Store) -> None:
    terms = ReviewTerms(10**8, "high", 2, LateAction("fallback", "Ask tomorrow."))
    name = store.add(make_escalation(1, terms=terms)).id
    output = run(place, "next", "--minutes", "5")
    assert "Question 1?" in output
    assert "then the caller gets 'Ask tomorrow.'; high priority" in output
    assert "two opinions are wanted" in output
    assert f"guard review approve {name}" in output
    assert store.review(name).claimed_by == "ann"
    assert "No case waits for you." in run(place, "next", "--reviewer", "bob")
    assert run(place, "next", "--reviewer", "bob", "--json") == "null\n"


def test_a_case_is_claimed_released_skipped_assigned_and_undone(place: Path, store: Store) -> None:
    name = store.add(make_escalation(1)).id
    assert run(place, "claim", name) == f"{name} claimed by ann\n"
    assert run(place, "release", name) == f"{name} is free\n"
    assert run(place, "skip", name, "--note", "not mine") == f"{name} skipped by ann\n"
    assert run(place, "assign", name, "--to", "bob") == f"{name} is for bob\n"
    assert run(place, "assign", name) == f"{name} is for everybody\n"
    assert f"guard review undo {name}" in run(place, "approve", name)
    assert run(place, "undo", name) == f"{name} is undecided again, and yours\n"
    assert store.review(name).status is ReviewStatus.PENDING
    whats = [event.what for event in store.history(name)]
    assert whats == [
        *("added", "claimed", "released", "skipped", "assigned", "assigned", "approved", "undone", "claimed"),
    ]


def test_the_first_of_two_opinions_is_said_to_be_one(place: Path, store: Store) -> None:
    name = store.add(make_escalation(1, terms=ReviewTerms(reviews=2))).id
    assert f"{name} has one opinion; a second is wanted" in run(place, "approve", name)
    shown = run(place, "show", name)
    assert "a second opinion is wanted" in shown
    assert "approved" not in shown
    assert "two that differ; a third decides" in run(place, "reject", name, "--reviewer", "bob")
    assert "two opinions differ" in run(place, "show", name)


def test_stats(place: Path, store: Store) -> None:
    for number in range(3):
        store.add(make_escalation(number, terms=ReviewTerms(reviews=2 if number == 2 else 1)))
    store.approve("decision-0", reviewer="ann")
    store.approve("decision-2", reviewer="ann")
    store.reject("decision-2", reviewer="bob")
    output = run(place, "stats")
    assert "2, the oldest for" in output
    assert "1 disputed" in output
    assert "1 cases with two opinions, Krippendorff's alpha too few cases to say" in output
    assert [line.split()[0] for line in output.splitlines() if line.startswith(("ann", "bob"))]
    figures = json.loads(run(place, "stats", "--json"))
    assert figures["by_reviewer"] == {"ann": {"approved": 1, "opinion": 1}, "bob": {"opinion": 1}}


# -- by key, on a terminal ---------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard input is a terminal."""
    controller, end = pty.openpty()
    with os.fdopen(end, "r") as stdin:
        monkeypatch.setattr(review_work.sys, "stdin", stdin)
        yield
    os.close(controller)


def by_keys(place: Path, monkeypatch: pytest.MonkeyPatch, *keys: str) -> None:
    replies = iter(keys)
    monkeypatch.setattr(review_work.typer, "prompt", lambda *_, **__: next(replies))
    review_work.take_next(store=str(place))
    assert list(replies) == []


@pytest.mark.usefixtures("terminal")
def test_cases_are_decided_by_key_one_after_the_other(
    place: Path, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(5):
        store.add(make_escalation(number))
    editor = tmp_path / "editor.sh"
    editor.write_text("#!/bin/sh\necho Paris > $1\n")
    editor.chmod(0o700)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", str(editor))
    by_keys(place, monkeypatch, "n", "made up", "r", "a", "s", "e", "wrong", "?", "q")
    statuses = [store.review(f"decision-{number}").status.value for number in range(5)]
    assert statuses == ["rejected", "approved", "pending", "edited", "pending"]
    assert store.review("decision-0").note == "made up"
    assert store.review("decision-3").final_answer == "Paris"
    assert store.review("decision-4").claimed_by is None


@pytest.mark.usefixtures("terminal")
def test_the_last_decision_is_undone_by_key(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2):
        store.add(make_escalation(number))
    by_keys(place, monkeypatch, "u", "a", "u", "r", "q")
    assert [store.review(f"decision-{number}").status.value for number in range(2)] == ["rejected", "pending"]


@pytest.mark.usefixtures("terminal")
def test_spans_are_marked_by_key(place: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers that cannot be used are refused, later marks replace earlier ones, and the next case has none."""
    for number in range(2):
        store.add(make_spanned(number))
    by_keys(place, monkeypatch, *("m", "2 x", "", "m", "4", "", "m", "1", "", "m", "2, 1", "3", "r", "r"))
    assert [mark.wrong for mark in store.review("decision-0").span_marks] == [True, True, False]
    assert store.review("decision-1").span_marks == ()


@pytest.mark.usefixtures("terminal")
def test_a_case_with_a_span_marked_wrong_is_not_approved_by_key(
    place: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.add(make_spanned())
    by_keys(place, monkeypatch, "m", "2", "", "a", "q")
    assert "cannot be approved with a span marked wrong" in capsys.readouterr().out
    assert store.review("decision-0").status is ReviewStatus.PENDING
