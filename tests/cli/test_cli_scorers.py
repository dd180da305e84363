"""``guard scorers``: what is on the shelf, what gets there, and what a card has to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import confidence_scorer, scripted_model, with_early, with_spans
from typer.testing import CliRunner

from guard.cli import app
from guard.errors import GuardError, InputError, ScorerError
from guard.runtime.guard import Guard
from guard.scoring.answer_bounds import AnswerBounds
from guard.scoring.provenance import Card, DataSet
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.scoring.scorer_file import BackOff
from guard.scoring.shelf import missing_scorer, scorers_for, shelved, shipped_folder

#: Names of the scorers that come with guard.
SHIPPED = sorted(path.stem for path in shipped_folder().glob("*.json"))

CARD = """
title = "A model, short answers"
licence = "CC0-1.0"
limits = ["English only."]
figures = ["On popqa: AUROC 0.7."]

[data]
sums = "CC BY 4.0"
"""


@pytest.fixture(autouse=True)
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUARD_SCORERS", str(tmp_path / "shelf"))
    return tmp_path / "shelf"


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    """A scorer of one data set, without a card."""
    data = [DataSet(name="sums", sha256="0" * 64, rows=90, wrong=30)]
    path = tmp_path / "mine.json"
    Scorer(confidence_scorer().artefact.model_copy(update={"data": data})).save(path)
    return path


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, ["scorers", *map(str, arguments)])
    if isinstance(done.exception, GuardError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_shelf_has_the_scorers_that_come_with_guard() -> None:
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert rows.keys() == set(SHIPPED)
    assert all(row["comes_with_guard"] and row["error"] is None for row in rows.values())
    assert rows[shipped_scorer().stem]["sha256"] == load_scorer(shipped_scorer()).sha256
    assert "0.8" in run("list")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_scorer_that_comes_with_guard_lacks_nothing_and_is_small(name: str) -> None:
    assert json.loads(run("check", name, "--json"))["lacks"] == []
    assert shelved()[name].stat().st_size < 1_000_000


def test_a_loaded_model_finds_the_scorers_that_were_fitted_on_it(fitted: Path, shelf: Path) -> None:
    run("pull", fitted)
    (shelf / "broken.json").write_text("{}")
    (shelf / "older.json").write_text('{"binding": {"engine": "scripted"}}')
    assert scorers_for(scripted_model()) == ["mine"]
    assert scorers_for(scripted_model(template_date="2026-11-26")) == ["mine"]
    assert scorers_for(scripted_model(weights_sha256="0" * 64)) == []


def test_the_error_of_a_model_without_a_scorer_names_the_shelf_which_is_not_used(fitted: Path) -> None:
    run("pull", fitted)
    with pytest.raises(ScorerError, match=r"There is no scorer for 'other\.gguf'") as caught:
        Guard.load("other.gguf")
    assert str(caught.value) == str(missing_scorer("other.gguf"))
    assert all(name in caught.value.fix for name in ("mine", *SHIPPED))


def test_the_card_of_the_shipped_scorer_says_data_licences_figures_and_limits() -> None:
    shown = run("check", shipped_scorer().stem)
    for said in ("data: countries, 942 answers, 526 wrong, ODbL 1.0", "licence: Apache-2.0", "limit: ", "figure: "):
        assert said in shown


def test_a_pulled_scorer_is_found_by_its_name(fitted: Path, shelf: Path) -> None:
    assert "--scorer mine" in run("pull", fitted)
    assert load_scorer("mine").sha256 == load_scorer(fitted).sha256
    assert {row["name"] for row in json.loads(run("list", "--json"))} == {"mine", *SHIPPED}
    assert load_scorer(str(shelf / "mine.json")).sha256 == load_scorer("mine").sha256


def test_a_file_goes_before_a_name_on_the_shelf(fitted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("pull", fitted)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("no scorer")
    with pytest.raises(ScorerError, match="is not a scorer"):
        load_scorer("mine")


def test_a_damaged_file_does_not_reach_the_shelf(fitted: Path, shelf: Path) -> None:
    fitted.write_text(fitted.read_text().replace('"intercept":', '"intercept":1'))
    with pytest.raises(ScorerError):
        run("pull", fitted)
    assert not shelf.exists()


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", ".hidden", "", "a" * 101])
def test_a_name_cannot_leave_the_shelf(name: str, fitted: Path) -> None:
    with pytest.raises(InputError, match="is no name for a scorer"):
        run("pull", fitted, "--name", name)


def test_a_pulled_scorer_cannot_replace_another_unasked_nor_the_shipped_one_at_all(fitted: Path) -> None:
    run("pull", fitted)
    with pytest.raises(InputError, match="'mine' is on the shelf already"):
        run("pull", fitted)
    run("pull", fitted, "--replace")
    with pytest.raises(InputError, match="comes with guard"):
        run("pull", fitted, "--name", shipped_scorer().stem, "--replace")


def test_a_file_that_cannot_be_used_stands_in_the_list_with_its_reason(shelf: Path) -> None:
    shelf.mkdir()
    (shelf / "broken.json").write_text("{}")
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert "is not a scorer" in rows["broken"]["error"]
    assert "broken" in run("list")


def test_a_described_scorer_keeps_its_scores_and_gets_its_card(fitted: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    card.write_text(CARD)
    out = tmp_path / "described.json"
    assert "lacks a card: guard scorers describe" in run("check", fitted)
    shown = run("describe", fitted, card, "--out", out)
    before, after = load_scorer(fitted).artefact, load_scorer(out).artefact
    assert after.model_copy(update={"card": None}).model_dump() == before.model_dump()
    assert after.card == Card(
        title="A model, short answers",
        licence="CC0-1.0",
        data={"sums": "CC BY 4.0"},
        limits=["English only."],
        figures=["On popqa: AUROC 0.7."],
    )
    assert "data: sums, 90 answers, 30 wrong, CC BY 4.0" in shown
    assert "lacks a card" not in run("check", out)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('sums = "CC BY 4.0"', "", "does not state the licence of the data set 'sums'"),
        ("[data]", '[data]\nmore = "MIT"', "names the data set 'more'"),
        ("licence", "license", "no field 'license'. Did you mean 'licence'"),
        ('["English only."]', "[]", "limits"),
        ('title = "A', 'title = A"', "invalid TOML"),
    ],
)
def test_a_card_that_hides_something_is_refused(old: str, new: str, said: str, fitted: Path, tmp_path: Path) -> None:
    card = tmp_path / "card.toml"
    card.write_text(CARD.replace(old, new))
    with pytest.raises(InputError) as caught:
        run("describe", fitted, card, "--out", tmp_path / "out.json")
    assert said in str(caught.value)
    assert not (tmp_path / "out.json").exists()


def test_a_scorer_file_whose_card_leaves_a_data_set_out_is_not_read(fitted: Path, tmp_path: Path) -> None:
    card = Card(title="t", licence="l", data={}, limits=["none"])
    path = tmp_path / "half.json"
    Scorer(load_scorer(fitted).artefact.model_copy(update={"card": card})).save(path)
    with pytest.raises(ScorerError, match="the card's data sets are not those of the calibration"):
        load_scorer(path)


def test_a_strangers_card_cannot_steer_the_terminal(fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "card.toml").write_text(CARD.replace("English only.", "\\u001b]0;owned\\u0007 [bold]"), "utf-8")
    shown = run("describe", fitted, tmp_path / "card.toml", "--out", tmp_path / "out.json")
    assert "\x1b" not in shown
    assert "[bold]" in shown


def test_a_back_off_is_said(tmp_path: Path) -> None:
    """Whoever reads a card must know that the ood_score moves guard's own score."""
    shipped = load_scorer(shipped_scorer()).artefact
    assert "back-off: where" not in run("check", shipped_scorer())
    assert json.loads(run("check", shipped_scorer(), "--json"))["back_off"] is None
    path = tmp_path / "far.json"
    Scorer(shipped.model_copy(update={"back_off": BackOff(start=0.25, most=0.5)})).save(path)
    said = " ".join(run("check", path).split())
    assert "reads the log-probabilities more, with a share of up to 0.5 from an ood_score of 0.25 on" in said
    assert json.loads(run("check", path, "--json"))["back_off"] == {"start": 0.25, "most": 0.5}


def test_list_and_check_say_which_parts_a_scorer_has(shelf: Path) -> None:
    """A policy with spans or early decisions needs them, and nobody should have to try."""
    shelf.mkdir()
    bounds = AnswerBounds(tokens=20, lines=1)
    whole = with_early(with_spans(Scorer(confidence_scorer().artefact.model_copy(update={"answer_bounds": bounds}))))
    whole.save(shelf / "whole.json")
    said = "parts: bounds of answers, spans, early stages; without out-of-distribution detector, back-off"
    for command in (("check", "whole"), ("list",)):
        assert said in " ".join(run(*command).split())
    for facts in (json.loads(run("check", "whole", "--json")), json.loads(run("list", "--json"))[-1]):
        assert (facts["answer_bounds"], facts["ood_detector"]) == ({"tokens": 20, "lines": 1}, False)
        assert facts["spans"]
        assert facts["early"]


def test_a_scorer_without_parts_says_so(fitted: Path) -> None:
    every = "out-of-distribution detector, bounds of answers, back-off, spans, early stages"
    assert f"parts: none; without {every}" in " ".join(run("check", fitted).split())


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        (AnswerBounds(tokens=20, lines=1), "answers of more than 20 tokens or 1 line"),
        (AnswerBounds(tokens=20, lines=3), "answers of more than 20 tokens or 3 lines"),
        (None, "answers of more than 16 tokens, the limit of the calibration; lines are not compared"),
    ],
)
def test_a_card_says_which_answers_count_as_longer(bounds: AnswerBounds | None, said: str, tmp_path: Path) -> None:
    artefact = confidence_scorer().artefact
    prompting = artefact.prompting.model_copy(update={"max_tokens": 16})
    Scorer(artefact.model_copy(update={"answer_bounds": bounds, "prompting": prompting})).save(tmp_path / "s.json")
    assert f"unlike those of the calibration: {said}" in " ".join(run("check", tmp_path / "s.json").split())


@pytest.mark.parametrize("columns", [60, 80])
def test_the_list_fits_and_keeps_names_whole(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run("list").splitlines()
    assert max(map(len, lines)) <= columns
    assert [line.strip() for line in lines if not line.startswith(" ")] == SHIPPED
