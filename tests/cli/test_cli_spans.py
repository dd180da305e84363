"""Spans on a terminal: shaded, listed, cut; in cases and explanations; never steering the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from scripted import AnsweringEngine, confidence_scorer, scripted_model, with_spans
from typer.testing import CliRunner

import guard.engines
import guard.runtime.guard
from guard.cli import app
from guard.cli.terminal import shaded, span_line
from guard.review.store import Store

RULES = "version: 1\nname: mine\nrules: [{accept: {below: 0.99}}, {abstain: {}}]\n"
TEXT = "Norway:\n- Capital: Bergen\n- Founded: 1040"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run guard ask with a policy on an engine that is unsure of one claim."""
    engine = AnsweringEngine(lambda prompt, number: (TEXT, 0.1), model=scripted_model(name="m.gguf"))
    engine.unsure = ("Bergen",)
    for module in (guard.engines, guard.runtime.guard):
        monkeypatch.setattr(module, "load_engine", lambda model, **options: engine)
    with_spans(confidence_scorer()).save(tmp_path / "scorer.json")

    def run(section: str, *options: str) -> str:
        (tmp_path / "policy.yaml").write_text(f"{RULES}{section}\n")
        fixed = ["ask", "Facts?", "--model", "m.gguf", "--scorer", str(tmp_path / "scorer.json"), "--max-tokens", "99"]
        more = ["--policy", str(tmp_path / "policy.yaml"), "--store", str(tmp_path / "reviews.db"), *options]
        return CliRunner().invoke(app, [*fixed, *more], env={"COLUMNS": "200"}).output

    return run


@pytest.mark.parametrize("section", ["", "spans: {above: 0.6, then: mark}"])
def test_likely_wrong_spans_are_listed_below_the_answer(asked: Any, section: str) -> None:
    lines = asked(section).splitlines()
    assert lines[:3] == TEXT.splitlines()
    assert lines[3].startswith("likely wrong: 0.8")
    assert lines[3].endswith("Capital: Bergen")
    assert not lines[4].startswith("likely wrong")


def test_the_policys_limit_says_which_are_shaded(asked: Any) -> None:
    assert "likely wrong" not in asked("spans: {above: 0.99, then: mark}")


def test_cut_spans_are_counted_and_not_shown(asked: Any) -> None:
    out = asked("spans: {above: 0.6, then: cut}")
    assert out.splitlines()[:3] == ["Norway:", "- Founded: 1040", "cut: 1 of 3 spans"]
    assert "Bergen" not in out


def test_a_persons_case_shows_the_spans(asked: Any, tmp_path: Path) -> None:
    asked("spans: {above: 0.6, then: {escalate: {to: review, reply: Wait.}}}")
    place = str(tmp_path / "reviews.db")
    with Store.open(place) as store:
        (review,) = store.reviews()
    assert review.attempts[0]["spans_above"][0]["text"] == "Capital: Bergen"
    out = CliRunner().invoke(app, ["review", "show", review.id, "--store", place], env={"COLUMNS": "200"}).output
    shown = [line.split(maxsplit=2) for line in out.splitlines() if "Capital: Bergen" in line and "0.8" in line]
    assert shown
    assert any("* 0.8" in line and "Capital: Bergen" in line for line in out.splitlines())


def test_shading_changes_no_text_and_hides_nothing() -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, color_system="standard", width=80)
    screen.print(shaded("a\x1b[2J bc \u202ed", [(6, 8)], "black on yellow"))
    out = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "\\x1b[2J" in out
    assert "\\u202e" in out
    assert "\x1b[2J" not in out
    assert "\x1b[30;43mbc" in out
    assert span_line({"p_wrong": 0.5, "text": "a\nb\x1b"}) == "0.50  a b\\x1b"


def test_a_policys_explanation_says_what_spans_do(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(f"{RULES}spans: {{above: 0.6, then: cut}}\n")
    run = CliRunner()
    out = run.invoke(app, ["policy", "explain", str(tmp_path / "p.yaml"), "--score", "0.1"]).output
    assert "If the p_wrong of a span > 0.6: cut." in out
    assert "span" not in run.invoke(app, ["policy", "explain", str(tmp_path / "p.yaml"), "--score", "0.995"]).output
