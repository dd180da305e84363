"""Spans marked on the command line: listed with numbers, marked, shown again, exported, and fitted on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")
pytest.importorskip("sentencex")

from made_cases import PLACES, SPANNED, UNLIKE, make_long, make_spanned
from moved_clock import MovedClock
from scripted import confidence_scorer, with_spans
from span_rows import answer_lines, country_engine
from typer.testing import CliRunner

import guard
from guard import Limits, engines
from guard.cli import app
from guard.data.labelled_spans import MarkedPlace, read_span_rows
from guard.errors import ReviewError
from guard.policy.policy import parse_policy
from guard.records import Prompt
from guard.review.span_marks import SpanMark, numbered_marks
from guard.review.store import Review, ReviewStatus, Store
from guard.review_terms import ReviewTerms

TO_PEOPLE = "version: 1\nname: p\nrules: [{escalate: {to: [review], reply: Wait.}}]\n"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Run ``guard review`` on the store."""
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LOGNAME", "ann")

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["review", *arguments, "--store", str(tmp_path / "reviews.db")])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


@pytest.fixture
def case(store: Store) -> Review:
    return store.add(make_spanned())


def listed(shown: str) -> list[str]:
    """The lines of a case that list its spans."""
    lines = [line.strip() for line in shown.splitlines()]
    begin = next(at for at, line in enumerate(lines) if line.startswith("spans"))
    return [lines[begin].removeprefix("spans").strip(), *lines[begin + 1 : begin + 3]]


def test_spans_are_listed_with_their_numbers_and_then_with_their_marks(shell: Callable[..., str], case: Review) -> None:
    assert listed(shell("show", case.id)) == [
        "1   0.10  Norway:",
        "2 * 0.90  Capital: Bergen",
        "3   0.30  Founded: 1040",
    ]
    shell("reject", case.id, "--wrong-span", "2", "--right-span", "1", "--right-span", "3")
    shown = shell("show", case.id)
    assert listed(shown) == [
        "1   0.10  Norway:  (marked right)",
        "2 * 0.90  Capital: Bergen  (marked wrong)",
        "3   0.30  Founded: 1040  (marked right)",
    ]
    assert "rejected by ann, 1 span marked wrong, 2 right" in shown
    assert json.loads(shell("show", case.id, "--json"))["span_marks"][1] == {"start": 10, "end": 25, "wrong": True}


def test_blind_reviewers_see_the_numbers_and_nothing_else(shell: Callable[..., str], store: Store) -> None:
    name = store.add(make_spanned(terms=ReviewTerms(reviews=2))).id
    store.reject(name, reviewer="bob", marks=[SpanMark(*PLACES[1], wrong=True)])
    shown = shell("show", name)
    assert listed(shown) == ["1 Norway:", "2 Capital: Bergen", "3 Founded: 1040"]
    assert "marked" not in shown
    assert "0.90" not in shown


def test_a_case_says_why_its_answer_is_unlike_others_and_whether_anything_is_wrong_in_it(
    shell: Callable[..., str], store: Store
) -> None:
    open_case, blind = store.add(make_long(1)), store.add(make_long(2, terms=ReviewTerms(reviews=2)))
    shown, hidden = (" ".join(shell("show", each.id).split()) for each in (open_case, blind))
    for said in (f"unlike {UNLIKE}", "any wrong 0.937, as if spans were independent"):
        assert said in shown
        assert said not in hidden
    assert "any wrong" not in hidden


def test_an_edit_and_an_approval_take_marks(shell: Callable[..., str], store: Store, case: Review) -> None:
    shell("edit", case.id, "--answer", "Oslo", "--draft", "wrong", "--wrong-span", "2")
    assert store.review(case.id).span_marks == (SpanMark(*PLACES[1], wrong=True),)
    other = store.add(make_spanned(1)).id
    shell("approve", other, "--right-span", "1")
    assert store.review(other).span_marks == (SpanMark(*PLACES[0], wrong=False),)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--wrong-span", "4"), "no span number 4"),
        (("--right-span", "0"), "no span number 0"),
        (("--wrong-span", "2", "--right-span", "2"), "Span 2 has two marks"),
    ],
)
def test_numbers_that_name_no_span_are_refused(
    shell: Callable[..., str], store: Store, case: Review, options: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ReviewError, match=says):
        shell("reject", case.id, *options)
    assert store.review(case.id).status is ReviewStatus.PENDING


def test_what_is_left_out_is_counted(shell: Callable[..., str], store: Store, case: Review, tmp_path: Path) -> None:
    clock = MovedClock(store)
    store.reject(case.id, reviewer="ann", marks=[SpanMark(*PLACES[1], wrong=True)])
    chain = make_spanned(1)
    chain = replace(chain, attempts=(replace(chain.attempts[0], generation=None),))
    store.reject(store.add(chain).id, reviewer="ann", marks=[SpanMark(*PLACES[1], wrong=True)])
    clock.move(60)
    out = tmp_path / "spans.jsonl"
    said = shell("export", "--spans", "--out", str(out))
    assert "1 labelled rows written" in said
    assert "1 cases with marked spans left out" in said
    assert json.loads(shell("export", "--spans", "--out", str(out), "--json")) == {
        **{"rows": 1, "out": str(out), "models": {"tiny": 1}, "left_out": 1},
    }
    assert shell("export", "--spans") == out.read_text()
    (row,) = read_span_rows(out)
    assert (row.response, row.marks, row.equations) == (SPANNED, (MarkedPlace(*PLACES[1], wrong=True),), False)
    assert row.prompt == case.prompt


def test_marks_flow_back_into_calibration(
    shell: Callable[..., str], store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guarded answers, marked by a person, are read under the prompts that they answered, and fitted on."""
    clock = MovedClock(store)
    own = guard.Guard(country_engine(), with_spans(confidence_scorer()), parse_policy(TO_PEOPLE), store=store)
    for number in range(40):
        asked = {"role": "user", "content": f"Facts about country {number}:"}
        name = own.ask([{"role": "system", "content": "Be exact."}, asked], limits=Limits(max_tokens=99)).decision_id
        labels = [wrong for _, _, wrong, _ in answer_lines(number)]
        wrong = [at for at, label in enumerate(labels, 1) if label]
        right = [at for at, label in enumerate(labels, 1) if not label]
        marks = numbered_marks(store.review(name).attempts, wrong=wrong, right=right[:2])
        store.reject(name, reviewer="ann", marks=marks)
    clock.move(60)
    out = tmp_path / "spans.jsonl"
    shell("export", "--spans", "--model", "scripted", "--out", str(out))
    rows = read_span_rows(out)
    assert len(rows) == 40
    assert all(row.prompt and row.prompt.messages and row.prompt.messages[0]["content"] == "Be exact." for row in rows)

    reading = country_engine()
    prompts: list[Prompt] = []
    generate = reading.generate

    def kept(prompt: Prompt, **options: object) -> object:
        prompts.append(prompt)
        return generate(prompt, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "generate", kept)
    monkeypatch.setattr(engines, "load_engine", lambda model, **options: reading)
    confidence_scorer().save(tmp_path / "scorer.json")
    scorer = tmp_path / "scorer.json"
    found = guard.calibrate_spans(out, scorer=scorer, out=tmp_path / "out.json", system="Not this one.")
    fitted = found.scorer.artefact.spans
    assert fitted is not None
    marked = [mark for row in rows for mark in row.marks]
    assert (fitted.answers, fitted.spans, fitted.wrong) == (40, len(marked), sum(mark.wrong for mark in marked))
    assert found.unlabelled == 120 - len(marked) > 0
    assert prompts == [row.prompt for row in rows]
    assert json.loads((tmp_path / "out.json").read_text())["spans"]
