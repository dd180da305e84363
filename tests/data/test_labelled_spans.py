"""Labelled spans: rows are read strictly, claims and marks label spans, and equations are computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from span_rows import country_rows, write_rows

from guard.data.equations import equations_hold
from guard.data.labelled_spans import ExpectedClaim, MarkedPlace, SpanRow, read_span_rows
from guard.errors import InputError
from guard.records import Prompt


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("So 3 × 14 = 42 apples.", True),
        ("2 + 2 = 5", False),
        ("10 - 3 - 2 = 5", True),
        ("2 + 3 * 4 = 14", True),
        ("$5 * 3 = $15", True),
        ("1,200 + 300 = 1,500", True),
        ("2 / 3 = 0.67", True),
        ("2 / 3 = 0.66", False),
        ("4 * 10 + 6 * 20 = 40 + 120 = 160", True),
        ("3 + 4 = 7, so 7 * 2 = 15", False),
        ("12 + 5 = 17.", True),
        ("(3 + 4) * 2 = 14", None),
        ("5% * 20 = 1", None),
        ("1 / 0 = 3", None),
        ("3 dogs + 4 cats = 7 animals", None),
        ("x = 3", None),
    ],
)
def test_equations_are_computed_and_others_left_alone(text: str, holds: bool | None) -> None:
    assert equations_hold(text) is holds


ROW = SpanRow("Norway?", (ExpectedClaim("capital", ("Oslo",)), ExpectedClaim("currency", ("krone", "kroner"))))


@pytest.mark.parametrize(
    ("span", "wrong"),
    [
        ("Capital: Oslo", False),
        ("Its capital is OSLO.", False),
        ("The capital is Bergen", True),
        ("Currency: Norwegian krone", False),
        ("Currency: euro", True),
        ("Capital and currency: Oslo, krone", None),
        ("Capitals are many", None),
        ("It is cold.", None),
        ("Capital: Oslo, 2 + 2 = 5", True),
    ],
)
def test_a_span_about_one_claim_must_have_its_answer(span: str, wrong: bool | None) -> None:
    assert ROW.labels(span, [(0, len(span))]) == (wrong,)


def test_marks_label_the_spans_that_they_touch() -> None:
    row = SpanRow("q", equations=False, response="Oslo. Bergen. Rome.", marks=(MarkedPlace(6, 8, True),))
    assert row.labels("Oslo. Bergen. Rome.", [(0, 5), (6, 13), (14, 19)]) == (None, True, None)


def test_a_file_is_read_row_by_row(tmp_path: Path) -> None:
    rows = read_span_rows(write_rows(tmp_path / "spans.jsonl", country_rows(3)))
    assert [row.question for row in rows] == [f"Facts about country {number}:" for number in range(3)]
    assert rows[1].claims[0] == ExpectedClaim("capital", ("Arl1",))


def test_a_whole_prompt_takes_the_place_of_the_question(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Norway?"}]
    marked = {"response": "Oslo", "spans": [{"start": 0, "end": 4, "wrong": False}], "model": "m"}
    raw = {"prompt": "Q: Norway?", "raw": True, "control_tokens": True}
    chat, text = read_span_rows(
        write_rows(tmp_path / "spans.jsonl", [{"prompt": turns, "tools": [{"name": "t"}], **marked}, raw | marked])
    )
    assert (chat.prompt, chat.question, chat.model) == (Prompt.chat(turns, tools=[{"name": "t"}]), "Norway?", "m")
    assert (text.prompt, text.question) == (Prompt.raw("Q: Norway?"), "Q: Norway?")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"claims": []}, "misses 'question' or 'prompt'"),
        ({"question": "q", "prompt": "p"}, "has both 'question' and 'prompt'"),
        ({"question": "q", "tools": []}, "has both 'question' and 'tools'"),
        ({"prompt": [{"role": "user"}]}, "misses 'content'"),
        ({"prompt": "q", "control_tokens": True}, "'control_tokens' without 'raw'"),
        ({"question": "q", "claim": []}, "unknown key 'claim'. Did you mean 'claims'?"),
        ({"question": "q", "claims": [{"about": "a"}]}, "a claim without 'about' or 'answers'"),
        ({"question": "q", "claims": [{"abot": "a", "answers": ["b"]}]}, "Did you mean 'about'?"),
        ({"question": "q", "claims": [{"about": "...", "answers": ["b"]}]}, "there is no word"),
        ({"question": "q", "equations": False}, "nothing is labelled"),
        ({"question": "q", "equations": "no"}, "equations"),
        ({"question": "q", "spans": [{"start": 0, "end": 1, "wrong": True}]}, "no 'response'"),
        ({"question": "q", "response": "ab", "spans": [{"start": 0, "end": 3, "wrong": True}]}, "2 characters"),
        ({"question": "q", "response": "ab", "spans": [{"start": 0, "wrong": True}]}, "'start', 'end' or 'wrong'"),
        ([], "not an object"),
    ],
)
def test_a_row_that_is_not_understood_is_refused_with_its_line(row: Any, says: str, tmp_path: Path) -> None:
    file = tmp_path / "spans.jsonl"
    file.write_text(f"{json.dumps(country_rows(1)[0])}\n{json.dumps(row)}\n")
    with pytest.raises(InputError, match="line 2") as caught:
        read_span_rows(file)
    assert says in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spans.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        read_span_rows(tmp_path / "spans.jsonl")
