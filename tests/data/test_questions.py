"""Labelled data: what is read, what is refused and why, how prompts and splits are made."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.data.labelling import check_same_weights, find_weight
from guard.data.prompts import completion_prompt, question_prompt, with_default_options
from guard.data.questions import (
    LabelledResponse,
    Question,
    ReadResult,
    question_identity,
    read_rows,
    split_questions,
)
from guard.data.sqlite_journal import asked_digest
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.errors import InputError
from guard.files.json_lines import MAX_LINE_BYTES
from guard.records import Prompt

QA = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa"
GOOD = {"id": "1", "question": "Capital of France?", "answers": ["Paris"]}

ReadFile = Callable[..., ReadResult]


@pytest.fixture
def read(tmp_path: Path) -> ReadFile:
    path = tmp_path / "data.jsonl"

    def read(content: bytes | list[Any], **options: Any) -> ReadResult:
        if isinstance(content, list):
            content = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in content)
        path.write_bytes(content)
        return read_rows(path, **options)

    return read


def reason(read: ReadFile, line: bytes | dict[str, Any]) -> str:
    """Why a line is refused, when it stands between good ones."""
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    good = [json.dumps({**GOOD, "id": name}).encode() for name in ("before", "after")]
    result = read(b"\n".join([good[0], raw, good[1]]), on_bad="skip")
    assert [row.id for row in result.rows] == ["before", "after"]
    (bad,) = result.bad
    assert bad.line == 2
    return bad.reason


# -- what is read --------------------------------------------------------------------------------


def test_a_question_with_everything(read: ReadFile) -> None:
    row = {
        "id": "x1",
        "question": "Which is a planet?",
        "answers": ["Mars", "the planet Mars"],
        "choices": ["Sun", "Mars"],
        "answer_index": 1,
        "context": "Mars is a planet.",
        "category": "space",
        "grader": "choice",
        "meta": {"level": 1},
        "source": "mine",
    }
    (found,) = read([row]).rows
    assert found == Question(
        id="x1",
        question="Which is a planet?",
        answers=("Mars", "the planet Mars"),
        choices=("Sun", "Mars"),
        answer_index=1,
        context="Mars is a planet.",
        category="space",
        grader="choice",
        meta={"level": 1},
    )


@pytest.mark.parametrize(
    ("row", "index", "answers"),
    [
        ({"choices": ["a", "b"], "answer_index": 1}, 1, ("b",)),
        ({"choices": ["a", "b"], "answers": ["b", "B!"]}, 1, ("b", "B!")),
        ({"choices": None, "answer_index": None, "answers": ["x"]}, None, ("x",)),
    ],
)
def test_what_can_be_left_out(read: ReadFile, row: dict[str, Any], index: int | None, answers: tuple[str, ...]) -> None:
    (found,) = read([{"question": "q", **row}]).rows
    assert isinstance(found, Question)
    assert (found.answer_index, found.answers) == (index, answers)


@pytest.mark.parametrize(
    ("label", "wrong"),
    [
        ({"wrong": True}, True),
        ({"wrong": False}, False),
        ({"wrong": 0.25}, 0.25),
        ({"wrong": 1.0}, True),
        ({"wrong": 0}, False),
        ({"label": 1}, True),
        ({"label": 0}, False),
        ({"label": "wrong"}, True),
        ({"label": "right"}, False),
    ],
)
def test_labelled_responses(read: ReadFile, label: dict[str, Any], wrong: bool | float) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    rows = read([{"prompt": "2 + 2?", "response": "4", **label}, {"prompt": messages, "response": "", **label}]).rows
    first, second = rows
    assert isinstance(first, LabelledResponse)
    assert isinstance(second, LabelledResponse)
    assert (first.prompt, first.response, first.wrong) == (Prompt.chat("2 + 2?"), "4", wrong)
    assert (second.prompt, second.response, second.wrong) == (Prompt.chat(messages), "", wrong)
    assert type(first.wrong) is type(wrong)


def test_plain_and_gzip_files_bom_and_blank_lines_read_alike(read: ReadFile) -> None:
    rows = [{**GOOD, "id": str(at)} for at in range(3)]
    lines = [json.dumps(row).encode() for row in rows]
    expected = read(b"\n".join(lines))
    for content in (
        b"\xef\xbb\xbf" + b"\r\n".join(lines),
        b"\n\n" + b"\n \n".join(lines) + b"\n\n",
        gzip.compress(b"\n".join(lines)),
        gzip.compress(lines[0] + b"\n") + gzip.compress(lines[1] + b"\n" + lines[2]),
    ):
        assert read(content) == expected


def test_line_numbers_count_blank_lines(read: ReadFile) -> None:
    with pytest.raises(InputError, match=r"data\.jsonl:3: is not JSON"):
        read(b"\n" + json.dumps(GOOD).encode() + b"\nnonsense\n")


def test_ids_are_made_of_the_content(read: ReadFile) -> None:
    row = {"question": "q", "answers": ["a"]}
    (one,), (same,) = read([row]).rows, read([dict(reversed(row.items()))]).rows
    (other,) = read([{**row, "answers": ["b"]}]).rows
    assert one.id == same.id != other.id
    assert len(one.id) == 16
    assert read([{**row, "id": 7}]).rows[0].id == "7"


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{", "is not JSON: Expecting property name.*column 2"),
        (b'{"question": "a" "b"}', "is not JSON: Expecting ',' delimiter in column 18"),
        (b"[]", "is an empty list, not an object"),
        (b"[1]", "is a list, not an object"),
        (b"null", "is null"),
        (b"3", "is a number"),
        (b'"text"', "is a text"),
        (b"true", "is a truth value"),
        (b'{"question": "\xff"}', "is not UTF-8 \\(byte 15"),
        (b'{"question": "\\ud800", "answers": ["a"]}', "surrogate"),
        (b'{"question": NaN}', "has NaN, which is not JSON"),
        (b'{"question": "q", "answers": ["a"], "meta": {"x": -Infinity}}', "has -Infinity"),
        (b'{"question": "q", "answers": ["a"], "meta": {"x": 1e999}}', "too large"),
        (b'{"question": "q", "answers": ["a"], "meta": {"x": ' + b"9" * 5000 + b"}}", "too long"),
        (b'{"question": "q", "question": "r", "answers": ["a"]}', "same key twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"question": "' + b"x" * MAX_LINE_BYTES + b'"}', f"longer than {MAX_LINE_BYTES} bytes"),
        ({}, "misses 'question'"),
        ({"questions": "q", "answers": ["a"]}, "Did you mean 'question'"),
        ({"question": "q"}, "misses 'answers'"),
        ({"question": "q", "answer": ["a"]}, "unknown key 'answer'. Did you mean 'answers'"),
        ({"question": "q", "answers": ["a"], "choises": ["a", "b"]}, "unknown key 'choises'. Did you mean 'choices'"),
        ({"question": 3, "answers": ["a"]}, "'question' must be a text, got a number"),
        ({"question": " ", "answers": ["a"]}, "'question' is empty"),
        ({"question": "q", "answers": "a"}, "'answers' must be a list of texts, got a text"),
        ({"question": "q", "answers": []}, "'answers' is empty"),
        ({"question": "q", "answers": [""]}, r"'answers\[0\]' is empty"),
        ({"question": "q", "answers": ["a", 1]}, r"'answers\[1\]' must be a text, got a number"),
        ({"question": "q", "answers": ["a"], "id": True}, "'id' must be a text, got a truth value"),
        ({"question": "q", "answers": ["a"], "id": ""}, "'id' is empty"),
        ({"question": "q", "answers": ["a"], "meta": []}, "'meta' must be an object, got an empty list"),
        ({"question": "q", "answers": ["a"], "answer_index": 0}, "'answer_index' but no 'choices'"),
        ({"question": "q", "choices": ["a", "b"]}, "needs 'answer_index' or 'answers'"),
        ({"question": "q", "choices": ["a"], "answer_index": 0}, "has 1 choices"),
        ({"question": "q", "choices": [str(at) for at in range(27)], "answer_index": 0}, "has 27 choices"),
        ({"question": "q", "choices": ["a", "a"], "answer_index": 0}, "same choice twice"),
        ({"question": "q", "choices": ["a", "b"], "answer_index": 2}, "answer_index 2, but 2 choices"),
        ({"question": "q", "choices": ["a", "b"], "answer_index": -1}, "answer_index -1"),
        ({"question": "q", "choices": ["a", "b"], "answer_index": "A"}, "must be a whole number, got a text"),
        ({"question": "q", "choices": ["a", "b"], "answer_index": True}, "must be a whole number"),
        ({"question": "q", "choices": ["a", "b"], "answers": ["c"]}, "has 0 choices among its 'answers'"),
        ({"question": "q", "choices": ["a", "b"], "answers": ["a", "b"]}, "has 2 choices among its 'answers'"),
        (
            {"question": "q", "choices": ["a", "b"], "answers": ["a"], "answer_index": 1},
            "right choice that is not among",
        ),
        ({"question": "q", "answers": ["a"], "grader": "txt"}, "unknown grader 'txt'. Did you mean 'text'"),
        ({"question": "q", "answers": ["a"], "grader": "os:system"}, "names code as its grader.*--grader"),
        ({"question": "q", "answers": ["a"], "grader": "choice"}, "no 'choices'"),
        ({"question": "q", "answers": ["a"], "grader": "regex"}, "no text 'answer_regex'"),
        ({"question": "q", "response": "r", "wrong": True}, "both 'question' and 'response'"),
        ({"response": "r", "wrong": True}, "misses 'prompt'"),
        ({"prompt": "p", "wrong": True}, "misses 'response'"),
        ({"prompt": "p", "response": "r"}, "misses 'wrong'"),
        (
            {"prompt": "p", "response": "r", "wrong": 1.5},
            r"'wrong' must be true or false, or a number from 0.*, got 1.5",
        ),
        ({"prompt": "p", "response": "r", "wrong": -1}, r"'wrong' must be true or false, or a number from 0.*, got -1"),
        ({"prompt": "p", "response": "r", "wrong": "no"}, "'wrong' must be true or false, or a number.*, got a text"),
        ({"prompt": "p", "response": "r", "label": True}, "could mean either"),
        ({"prompt": "p", "response": "r", "label": 2}, "'label' must be 1"),
        ({"prompt": "p", "response": "r", "label": []}, "'label' must be 1"),
        ({"prompt": "p", "response": "r", "label": 1, "wrong": True}, "both 'wrong' and 'label'"),
        ({"prompt": "", "response": "r", "wrong": True}, "'prompt' is empty"),
        ({"prompt": [], "response": "r", "wrong": True}, "got an empty list"),
        ({"prompt": ["p"], "response": "r", "wrong": True}, r"'prompt\[0\]' must be an object"),
        ({"prompt": [{"role": "user"}], "response": "r", "wrong": True}, r"'prompt\[0\]' misses 'content'"),
        ({"prompt": [{"role": 1, "content": "c"}], "response": "r", "wrong": True}, r"role' must be a text"),
        ({**GOOD, "id": "before"}, "repeats the id or the content of line 1"),
    ],
)
def test_a_bad_row_is_named_with_its_reason(read: ReadFile, line: bytes | dict[str, Any], said: str) -> None:
    found = reason(read, line)
    assert re.search(said, found), found


def test_stopping_lists_the_first_bad_rows_and_counts_the_rest(read: ReadFile) -> None:
    with pytest.raises(InputError, match="7 bad rows") as caught:
        read(json.dumps(GOOD).encode() + b"\n1" * 7)
    first, *reasons, more, fix = str(caught.value).split("\n")
    assert first == "7 bad rows:"
    assert [re.search(r"data.jsonl:(\d): is a number", each)[1] for each in reasons] == list("23456")  # type: ignore[index]
    assert (more, fix) == ("and 2 more", "Correct them, or leave them out with --on-bad skip (on_bad='skip').")
    assert "data.jsonl:7" not in str(caught.value)


def test_an_error_shows_no_question_and_no_answer(read: ReadFile) -> None:
    row = {"question": "secret question", "answers": ["secret answer", 1]}
    assert "secret" not in reason(read, row)
    assert "secret" not in reason(read, b'{"question": "secret question", "answers": [}')


@pytest.mark.parametrize("content", [b"", b"\n \n", b"1\n2\n"])
def test_a_file_without_rows_is_an_error_in_both_modes(read: ReadFile, content: bytes) -> None:
    for on_bad in ("stop", "skip"):
        with pytest.raises(InputError):
            read(content, on_bad=on_bad)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}")
    with pytest.raises(InputError, match=r"no file .*Did you mean 'train\.jsonl'"):
        read_rows(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match="Cannot read"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="Cannot read"):
        read_rows("a\0b")
    damaged = tmp_path / "cut.jsonl.gz"
    whole = gzip.compress(random.Random(0).randbytes(5000))
    for content in (whole[:-20], whole[:9], whole[:100] + b"xxxx" + whole[104:]):
        damaged.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged gzip|bad row"):
            read_rows(damaged)


def test_wrong_options(read: ReadFile) -> None:
    with pytest.raises(InputError, match="on_bad"):
        read([GOOD], on_bad="ignore")
    with pytest.raises(InputError, match="limit"):
        read([GOOD], limit=0)


def test_thousands_of_bad_lines_each_with_a_reason(read: ReadFile) -> None:
    random_ = random.Random(0)
    samples = [
        {**GOOD, "choices": ["Paris", "Rome"], "answer_index": 0, "meta": {"a": [1.5, None, {"b": "é"}]}},
        {"id": "2", "prompt": [{"role": "user", "content": "hi"}], "response": "ho", "wrong": True},
    ]
    values = [None, True, 0, -1, 10**30, 0.5, "", " ", "x", [], ["x"], [None], {}, {"x": 1}, [[["x"]]]]
    lines = []
    for at in range(3000):
        row: dict[str, Any] = {**random_.choice(samples), "id": f"row {at}"}
        if at % 2:
            for _ in range(random_.randrange(1, 4)):
                row[random_.choice(["prompt", "label", *row])] = random_.choice(values)
            lines.append(json.dumps(row).encode())
        else:
            raw = bytearray(json.dumps(row).encode())
            for _ in range(random_.randrange(1, 6)):
                raw[random_.randrange(len(raw))] = random_.randrange(256)
            lines.append(bytes(raw).replace(b"\n", b" ").replace(b"\r", b" "))
    result = read(b"\n".join(lines), on_bad="skip")
    assert len(result.rows) + len(result.bad) == 3000
    assert len(result.bad) > 1500
    assert all(bad.reason and len(bad.reason) < 300 for bad in result.bad)
    for row_ in result.rows:
        if isinstance(row_, Question):
            question_prompt(row_)


@settings(max_examples=300, deadline=None)
@given(content=st.binary(max_size=300))
def test_noise_is_never_a_foreign_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.jsonl"
    path.write_bytes(content)
    for prefix in (b"", b"\x1f\x8b\x08\x00"):
        path.write_bytes(prefix + content)
        with pytest.raises(InputError):
            read_rows(path, on_bad="skip")


# -- sampling, prompts, splits ---------------------------------------------------------------------


def list_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"q{at}", "question": f"Question {at}?", "answers": ["a"]} for at in range(count)]


def test_a_sample_is_repeatable_in_order_and_nearly_the_same_with_more_rows(read: ReadFile) -> None:
    sample = [row.id for row in read(list_rows(400), limit=40).rows]
    assert sample == [row.id for row in read(list_rows(400), limit=40).rows]
    assert len(set(sample)) == 40
    assert sample == sorted(sample, key=lambda name: int(name[1:]))
    assert sample != [row.id for row in read(list_rows(400), limit=40, seed=1).rows]
    assert len(set(sample) & {row.id for row in read(list_rows(410), limit=40).rows}) >= 36
    assert len(read(list_rows(5), limit=40).rows) == 5


def test_the_prompt_of_an_open_question() -> None:
    question = Question(id="1", question="Capital of France?", answers=("Paris",))
    assert question_prompt(question) == Prompt.chat("Capital of France?", system=SHORT_ANSWER_SYSTEM)
    assert question_prompt(question, system="") == Prompt.chat("Capital of France?")


def test_the_prompt_of_a_choice_with_a_passage() -> None:
    question = Question(
        id="1", question="Which one?", answers=("y",), choices=("x", "y"), answer_index=1, context="Read this."
    )
    assert question_prompt(question, system="S").messages == (
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Read this.\n\nWhich one?\nA. x\nB. y\nAnswer with the letter only."},
    )


def test_the_prompt_of_a_base_model_shows_solved_questions_and_ends_where_it_continues() -> None:
    question = Question(
        id="1", question="Which one?", answers=("y",), choices=("x", "y"), answer_index=1, context="Read this."
    )
    prompt = completion_prompt(question)
    assert prompt.messages is None
    *solved, asked = (prompt.text or "").split("\n\nQuestion: ")
    assert asked == "Read this.\n\nWhich one?\nA. x\nB. y\nAnswer with the letter only.\nAnswer:"
    assert [block.rpartition("\n")[2] for block in solved] == [
        "Answer: yellow",
        "Answer: 7",
        "Answer: B",
        "Answer: cat",
    ]
    assert "\nA. milk\nB. honey\n" in solved[2]


def test_rows_have_one_identity_where_splits_keep_them_together() -> None:
    def asked(text: str, **more: Any) -> str:
        return question_identity(Question(id=text, question=text, answers=("a",), **more))

    same = [asked("Who was  first?"), asked("who was first"), asked("WHO WAS FIRST !", category="c")]
    response = LabelledResponse(
        id="r", prompt=Prompt.chat("Who was first?", system="Be brief."), response="a", wrong=True
    )
    assert len({*same, question_identity(response)}) == 1
    assert len({same[0], asked("Who was second?"), asked("Who was first?", context="In the race.")}) == 3
    assert len(same[0]) == 32


SHARES = {"fit": 0.5, "stop": 0.1, "calibrate": 0.2, "test": 0.2}


def test_splits_are_disjoint_complete_and_near_their_shares(read: ReadFile) -> None:
    rows = read(list_rows(4000)).rows
    parts = split_questions(rows, seed=0, shares=SHARES)
    assert list(parts) == list(SHARES)
    ids = [row.id for part in parts.values() for row in part]
    assert sorted(ids) == sorted(row.id for row in rows)
    for name, share in SHARES.items():
        assert len(parts[name]) == pytest.approx(share * 4000, abs=4 * (4000 * share * (1 - share)) ** 0.5)


def test_splits_do_not_move_when_rows_are_added(read: ReadFile) -> None:
    few, many = read(list_rows(100)).rows, read(list_rows(300)).rows
    before = split_questions(few, seed=3, shares=SHARES)
    after = split_questions(list(reversed(many)), seed=3, shares=SHARES)
    for name, part in before.items():
        assert {row.id for row in part} <= {row.id for row in after[name]}
    assert split_questions(few, seed=4, shares=SHARES) != before


def test_the_same_question_in_other_words_of_print_stays_together(read: ReadFile) -> None:
    forms = ["What is  the capital of France?", "what is the capital of France", "WHAT IS THE CAPITAL OF FRANCE ?"]
    for seed in range(20):
        rows = read([{"question": text, "answers": [str(at)]} for at, text in enumerate(forms)]).rows
        responses = read([{"prompt": text, "response": "Paris", "wrong": False} for text in forms]).rows
        for same in (rows, responses):
            parts = split_questions(same, seed=seed, shares=SHARES)
            assert sorted(map(len, parts.values())) == [0, 0, 0, 3]
    passages = read([{"question": "Who?", "answers": ["x"], "context": f"Passage {at}"} for at in range(200)]).rows
    assert all(split_questions(passages, seed=0, shares=SHARES).values())


@pytest.mark.parametrize("shares", [{}, {"a": 0.5}, {"a": 1.2, "b": -0.2}, {"a": 1.0, "b": 0.0}, {"a": float("nan")}])
def test_impossible_shares(read: ReadFile, shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="add up to 1"):
        split_questions(read([GOOD]).rows, seed=0, shares=shares)


@pytest.mark.skipif(not QA.is_dir(), reason="the shared question sets are not here")
def test_the_open_question_sets_are_read_without_a_bad_row() -> None:
    total = 0
    for path in sorted(QA.glob("*.jsonl.gz")):
        result = read_rows(path)
        total += len(result.rows)
        assert all(isinstance(row, Question) for row in result.rows)
    assert total > 70_000


@pytest.mark.parametrize("on_bad", ["stop", "skip"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps([GOOD, GOOD], indent=2).encode(), r"a JSON list.*jq -c '\.\[\]'"),
        (json.dumps([GOOD] * 90_000).encode(), "a JSON list"),
        (json.dumps(GOOD, indent=2).encode(), "pretty-printed JSON.*jq -c"),
        (b"\xef\xbb\xbf" + json.dumps(GOOD, indent=2).encode(), "pretty-printed JSON"),
        (b"question,answers\nWhat?,Paris\n", "CSV"),
        (b'"question";"answers"\r\n"What?";"Paris"\r\n', "CSV"),
        (b"question\tanswers\nWhat?\tParis\n", "CSV"),
        ((json.dumps(GOOD) + "\n").encode("utf-16"), "UTF-16.*iconv"),
        ((json.dumps(GOOD) + "\n").encode("utf-16-le"), "UTF-16"),
        *((json.dumps(GOOD).encode(coding), "UTF-32.*iconv") for coding in ("utf-32", "utf-32-le", "utf-32-be")),
        (b"PAR1\x15\x04", "Parquet"),
        (b"PK\x03\x04\x14", "a zip archive"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_file_of_another_kind_is_named_as_such(
    tmp_path: Path, content: bytes, said: str, on_bad: Literal["stop", "skip"], packed: bool
) -> None:
    """Not as thousands of bad rows."""
    path = tmp_path / "mine"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError, match=f"mine is {said}"):
        read_rows(path, on_bad=on_bad)


@pytest.mark.parametrize("line", [b"\n", b" " * 1000 + b"\n", b"x" * 2**21, b'{"question": "q", "answers": ["a"]}\n'])
def test_gzip_that_unpacks_out_of_all_proportion_is_refused(tmp_path: Path, line: bytes) -> None:
    """A bomb of 300 KB took two minutes."""
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(line * (2**23 // len(line)), 9))
    with pytest.raises(InputError, match="unpacks to more than 200 times its size"):
        read_rows(path, on_bad="skip")


def test_gzip_of_real_rows_is_read_however_large(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    rows = [
        json.dumps({"question": f"What is {number} x {number}?", "answers": ["a" * 300]}) for number in range(20_000)
    ]
    path.write_bytes(gzip.compress("\n".join(rows).encode(), 9))
    assert len(read_rows(path).rows) == 20_000


def test_a_response_that_is_labelled_both_ways_is_refused_with_its_lines(read: ReadFile) -> None:
    """Nobody but who made the labels can say which one is right."""
    rows = [
        {"id": f"{at}", "prompt": "Hi", "response": "Ho", "wrong": wrong}
        for at, wrong in enumerate([True, True, False])
    ]
    with pytest.raises(InputError, match=r"data.jsonl:3: is labelled right; line 1 labels the same response wrong"):
        read(b"\n".join(json.dumps(row).encode() for row in rows))
    graded = [{**rows[0], "wrong": 0.25}, {**rows[1], "wrong": 0.5}]
    with pytest.raises(InputError, match=r"data.jsonl:2: is labelled 0.5 wrong; line 1 labels .* 0.25 wrong"):
        read(b"\n".join(json.dumps(row).encode() for row in graded))
    other = [rows[0], {**rows[2], "response": "Ha"}, {**rows[2], "id": "x", "prompt": "Hey"}]
    assert len(read(b"\n".join(json.dumps(row).encode() for row in other)).rows) == 3


def test_the_model_of_an_exported_review_is_read(read: ReadFile) -> None:
    (row,) = read(
        b'{"prompt": "Hi", "response": "Ho", "label": 1, "model": "tiny", "policy": "p", "verdict": "reject"}'
    ).rows
    assert isinstance(row, LabelledResponse)
    assert row.model == "tiny"


def test_a_replayed_case_keeps_its_tools_and_template_options(read: ReadFile) -> None:
    tools = [{"type": "function", "function": {"name": "search"}}]
    case = {"id": "1", "prompt": [{"role": "user", "content": "Who?"}], "response": "Ann", "label": 0}
    own = {**case, "id": "2", "tools": tools, "template_options": {"enable_thinking": False}}
    plain, replayed = read([case, own]).rows
    assert isinstance(plain, LabelledResponse)
    assert isinstance(replayed, LabelledResponse)
    assert replayed.prompt == Prompt.chat("Who?", tools=tools, template_options={"enable_thinking": False})
    assert plain.prompt == Prompt.chat("Who?")
    assert asked_digest(plain) != asked_digest(replayed)
    shared = with_default_options(replayed.prompt, {"enable_thinking": True, "today": "1 May"})
    assert shared.template_options == {"enable_thinking": False, "today": "1 May"}
    assert shared.tools == replayed.prompt.tools


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"tools": "search"}, "'tools' must be a list of objects"),
        ({"tools": ["search"]}, r"'tools\[0\]' must be an object"),
        ({"template_options": ["a"]}, "'template_options' must be an object"),
        ({"template_option": {"a": 1}}, "unknown key 'template_option'"),
    ],
)
def test_tools_and_template_options_of_another_type_are_refused(
    read: ReadFile, change: dict[str, Any], why: str
) -> None:
    assert re.search(why, reason(read, {"prompt": "Who?", "response": "Ann", "label": 0, **change}))


def test_a_raw_prompt_is_put_as_it_stands_and_has_control_tokens_only_where_that_is_said(read: ReadFile) -> None:
    case = {"prompt": "Question: Who?\nAnswer:", "response": "Ann", "label": 0, "raw": True}
    plain, special = read([{**case, "id": "1"}, {**case, "id": "2", "control_tokens": True}]).rows
    assert isinstance(plain, LabelledResponse)
    assert isinstance(special, LabelledResponse)
    assert plain.prompt == Prompt.raw("Question: Who?\nAnswer:", plain=True)
    assert special.prompt == Prompt.raw("Question: Who?\nAnswer:")
    assert with_default_options(plain.prompt, {"enable_thinking": True}) == plain.prompt


def test_responses_to_different_texts_are_different_questions(read: ReadFile) -> None:
    case = {"response": "Ann", "raw": True}
    first, second = read([{**case, "prompt": "Who?", "label": 0}, {**case, "prompt": "Which?", "label": 1}]).rows
    assert question_identity(first) != question_identity(second)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"raw": "yes"}, "'raw' must be true or false"),
        ({"raw": 1}, "'raw' must be true or false"),
        ({"control_tokens": True}, "'control_tokens' without 'raw'"),
        ({"raw": True, "prompt": [{"role": "user", "content": "Who?"}]}, "'prompt' must be a text"),
        ({"raw": True, "tools": [{"type": "function"}]}, "which only a chat template reads"),
        ({"raw": True, "prompt": " "}, "'prompt' is empty"),
    ],
)
def test_a_raw_prompt_that_is_none_is_a_bad_row(read: ReadFile, change: dict[str, Any], why: str) -> None:
    assert re.search(why, reason(read, {"prompt": "Who?", "response": "Ann", "label": 0, **change}))


def test_a_response_says_how_many_answers_it_stands_for(read: ReadFile) -> None:
    row = {"prompt": "Why?", "response": "So.", "wrong": False}
    found = read([{**row, "id": "a", "weight": 20}, {**row, "id": "b"}]).rows
    assert [find_weight(each) for each in found] == [20.0, 1.0]
    for weight in (0, -1, True, "2"):
        with pytest.raises(InputError, match="weight"):
            read([{**row, "weight": weight}])


def test_labels_of_different_weights_are_refused_where_each_counts_the_same(read: ReadFile) -> None:
    row = {"prompt": "Why?", "response": "So.", "wrong": False}
    check_same_weights(read([{**row, "id": "a", "weight": 20}, {**row, "id": "b", "weight": 20}]).rows)
    with pytest.raises(InputError, match="from 1 to 20"):
        check_same_weights(read([{**row, "id": "a", "weight": 20}, {**row, "id": "b"}]).rows)
