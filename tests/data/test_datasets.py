"""Data sets by name, against small files in their native formats, written for the tests.

The rows here are made up; only columns, types and file names are those of the real sets.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guard.data.graders import grade, grader_for
from guard.data.prompts import question_prompt
from guard.data.questions import GRADER_NAMES, Question, read_rows
from guard.data.sets import SETS, DataSource, get_set, load_set, resolve
from guard.data.sets.named import MalformedRowError, UnfitRowError
from guard.errors import InputError, MissingExtraError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

QA = Path(__file__).resolve().parents[3] / "shared" / "data" / "qa"

#: Set to rows in its native columns and types.
NATIVE: dict[str, list[dict[str, Any]]] = {
    "triviaqa": [
        {
            "question": "Which lake feeds the river  Foss?",
            "question_id": "tc_1",
            "answer": {"value": "Lake Elm", "aliases": ["Lake Elm", "Elm lake"], "normalized_value": "lake elm"},
        },
        {"question": "Who wrote 'Tin'?", "question_id": "tc_2", "answer": {"value": "Ann Roe", "aliases": []}},
    ],
    "hotpotqa": [
        {"id": "5a", "question": "Are Foss and Elm both lakes?", "answer": "no", "type": "comparison", "level": "hard"},
        {"id": "5b", "question": "Who owns Elm?", "answer": "Ann Roe", "type": "bridge", "level": "hard"},
    ],
    "movies": [
        {"Question": "Who acted as Kim in the movie 'Tin, Part 2'?", "Answer": "Ann Roe"},
        {"Question": "Who acted as Jo in the movie 'Elm'?", "Answer": "Bo Lin"},
    ],
    "winogrande": [
        {"sentence": "Kim beat Jo because _ was fast.", "option1": "Kim", "option2": "Jo", "answer": "1"},
        {"sentence": "Kim beat Jo because _ was slow.", "option1": "Kim", "option2": "Jo", "answer": "2"},
    ],
    "winobias": [
        {
            **{"type": "1", "stereotype": "pro", "pronoun": "she", "sentence": "The guard met the cook as she left."},
            **{"answer": "guard", "incorrect_answer": "cook", "q": "The pronoun 'she' refers to the"},
            "q_instruct": "Who does the pronoun 'she' refer to?",
        },
    ],
    "imdb": [
        {"text": "A bore.<br /><br />Two hours of rain.", "label": 0},
        {"text": "I laughed all the way.", "label": 1},
    ],
    "math": [
        {
            **{"problem": "What is $1/2 + 1/4$?", "level": "Level 1", "type": "Prealgebra"},
            "solution": "Over four: $\\frac24 + \\frac14 = \\boxed{\\frac{3}{4}}$.",
        },
    ],
    "mmlu": [
        {"question": "2 + 2?", "subject": "abstract_algebra", "choices": ["3", "4", "5", "6"], "answer": 1},
        {"question": "Bone of the arm?", "subject": "anatomy", "choices": ["ulna", "tibia", "rib", "hip"], "answer": 0},
    ],
    "natural_questions": [
        {"question": "when was elm bridge built", "answer": ["1912", "in 1912"]},
        {"question": "who owns elm", "answer": ["Ann Roe"]},
    ],
    "gsm8k": [
        {"question": "Kim has 1,000 eggs and buys 80. How many?", "answer": "1000 + 80 = <<1000+80=1080>>\n#### 1,080"},
        {"question": "Jo owes 5 and pays 2. Her balance?", "answer": "-5 + 2 = -3\n#### -3"},
    ],
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the file's name tells."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.name.endswith(".gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    else:
        path.write_text(json.dumps(rows, indent=1) if path.name.endswith(".json") else lines, encoding="utf-8")
    return path


def lay_out(name: str, folder: Path, *, split: str | None = None) -> Path:
    """A set's files as its repository has them."""
    for pattern in SETS[name].files:
        file = pattern.format(split=split or SETS[name].split).replace("*", "00000-of-00001")
        write(folder / file, NATIVE[name])
    return folder


def load(name: str, folder: Path, **options: Any) -> tuple[Question, ...]:
    rows = load_set(name, folder=folder, **options)
    assert all(isinstance(row, Question) for row in rows)
    return rows  # type: ignore[return-value]


def content(question: Question) -> str:
    return str((question_prompt(question).messages or ())[-1]["content"])


# -- every set -----------------------------------------------------------------------------------


def test_they_are_the_ten_of_the_paper() -> None:
    assert set(SETS) == set(NATIVE)
    assert len(SETS) == 10


@pytest.mark.parametrize("name", SETS)
def test_every_set_says_what_it_is(name: str) -> None:
    named = SETS[name]
    assert named.name == name
    assert named.split in named.splits
    assert named.grader is None or named.grader in GRADER_NAMES
    assert named.citation
    assert named.licence
    assert named.notes
    assert named.max_tokens > 0
    assert all("{split}" in pattern for pattern in named.files)


EXPECTED: dict[str, list[dict[str, Any]]] = {
    "triviaqa": [
        {"question": "Which lake feeds the river Foss?", "answers": ("Lake Elm", "Elm lake")},
        {"question": "Who wrote 'Tin'?", "answers": ("Ann Roe",)},
    ],
    "hotpotqa": [
        {"question": "Are Foss and Elm both lakes?", "answers": ("no",), "category": "comparison", "context": None},
        {"question": "Who owns Elm?", "answers": ("Ann Roe",), "category": "bridge"},
    ],
    "movies": [
        {"question": "Who acted as Kim in the movie 'Tin, Part 2'?", "answers": ("Ann Roe",)},
        {"answers": ("Bo Lin",)},
    ],
    "winogrande": [
        {"choices": ("Kim", "Jo"), "answer_index": 0, "answers": ("Kim",)},
        {"choices": ("Kim", "Jo"), "answer_index": 1, "answers": ("Jo",)},
    ],
    "winobias": [
        {
            **{"context": "The guard met the cook as she left.", "choices": ("cook", "guard"), "answer_index": 1},
            **{"question": "Who does the pronoun 'she' refer to?", "category": "type1-pro"},
        }
    ],
    "imdb": [
        {"context": "A bore.\nTwo hours of rain.", "choices": ("negative", "positive"), "answer_index": 0},
        {"context": "I laughed all the way.", "answers": ("positive",), "answer_index": 1},
    ],
    "math": [
        {
            **{"question": "What is $1/2 + 1/4$?", "answers": ("\\frac{3}{4}",), "grader": "math"},
            **{"category": "Prealgebra", "meta": {"level": "Level 1"}},
        }
    ],
    "mmlu": [
        {"choices": ("3", "4", "5", "6"), "answer_index": 1, "answers": ("4",), "category": "abstract_algebra"},
        {"answer_index": 0, "answers": ("ulna",), "category": "anatomy"},
    ],
    "natural_questions": [{"answers": ("1912", "in 1912")}, {"question": "who owns elm", "answers": ("Ann Roe",)}],
    "gsm8k": [{"answers": ("1080",), "grader": "number"}, {"answers": ("-3",)}],
}


@pytest.mark.parametrize("name", SETS)
def test_native_rows_become_questions(name: str, tmp_path: Path) -> None:
    questions = load(name, lay_out(name, tmp_path))
    found = [{key: getattr(question, key) for key in want} for question, want in zip(questions, EXPECTED[name])]  # noqa: B905
    assert found == EXPECTED[name]
    assert len(questions) == len(EXPECTED[name])
    assert len({question.id for question in questions}) == len(questions)


@pytest.mark.parametrize("name", SETS)
def test_what_a_set_asks_can_be_graded_and_read_back(name: str, tmp_path: Path) -> None:
    questions = load(name, lay_out(name, tmp_path))
    for question in questions:
        assert grade(question, question.answers[0])
        assert not grade(question, "I have no idea.")
    if (grader := SETS[name].grader) is not None:
        assert {grader_for(question) for question in questions} == {grader}
    # The same as a file of guard's own: nothing that is converted breaks the rules for rows.
    own = write(tmp_path / "own.jsonl", [dataclasses.asdict(question) for question in questions])
    assert read_rows(own).rows == questions


def test_prompts_say_what_is_asked(tmp_path: Path) -> None:
    prompts = {name: content(load(name, lay_out(name, tmp_path / name))[0]) for name in SETS}
    assert prompts["winogrande"] == (
        "What does the blank _ stand for? Kim beat Jo because _ was fast.\nA. Kim\nB. Jo\nAnswer with the letter only."
    )
    assert prompts["imdb"] == (
        "A bore.\nTwo hours of rain.\n\nIs this movie review positive or negative?\n"
        "A. negative\nB. positive\nAnswer with the letter only."
    )
    assert prompts["winobias"].startswith("The guard met the cook as she left.\n\nWho does the pronoun 'she' refer to?")
    assert prompts["math"] == "What is $1/2 + 1/4$?"


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("gsm8k", "She has 1000 + 80 = 1080.\nAnswer: 1080", "She has 1080.\nAnswer: 1000"),
        ("math", "We get $\\boxed{0.75}$.", "Not 3/4 but \\boxed{\\frac{4}{3}}"),
    ],
)
def test_worked_answers_are_graded_by_their_end(name: str, right: str, wrong: str, tmp_path: Path) -> None:
    named, question = SETS[name], load(name, lay_out(name, tmp_path))[0]
    assert "step by step" in named.system
    assert named.max_tokens > 256
    assert grade(question, right)
    assert not grade(question, wrong)


# -- where files are -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gsm8k", "main/test-00000-of-00001.parquet"),
        ("gsm8k", "main/test/0000.parquet"),
        ("gsm8k", "test-00000-of-00001.parquet"),
        ("gsm8k", "test.parquet"),
        ("gsm8k", "test.jsonl"),
        ("gsm8k", "test.jsonl.gz"),
        ("gsm8k", "test.json"),
        ("gsm8k", "test.csv"),
        ("movies", "data/movie_qa_test.csv"),
        ("movies", "movie_qa_test.csv"),
        ("winobias", "winobias_test.csv"),
        ("math", "test.jsonl"),
        ("hotpotqa", "validation.json"),
        ("natural_questions", "validation.jsonl"),
        ("mmlu", "all/test-00000-of-00001.parquet"),
    ],
)
def test_every_layout_and_format_gives_the_same_questions(name: str, file: str, tmp_path: Path) -> None:
    path = write(tmp_path / "there" / file, NATIVE[name])
    expected = load(name, lay_out(name, tmp_path / "expected"))
    assert load(name, tmp_path / "there") == expected
    assert load(name, path) == expected


def test_a_large_json_list_on_one_line_is_read(tmp_path: Path) -> None:
    rows = [{"question": f"Who is number {at}?", "answer": f"Ann {at}", "type": "bridge"} for at in range(20_000)]
    (tmp_path / "validation.json").write_text(json.dumps(rows))
    assert len(load("hotpotqa", tmp_path)) == len(rows)


def test_own_files_are_taken_with_the_sets_grader(tmp_path: Path) -> None:
    rows = [
        {"id": "a", "question": "1/2?", "answers": ["\\frac12"]},
        {"question": "?", "answers": ["1"], "grader": "text"},
    ]
    write(tmp_path / "math.jsonl.gz", rows)
    write(tmp_path / "math_train.jsonl", rows[:1])
    assert [row.grader for row in load("math", tmp_path)] == ["math", "text"]
    assert [row.id for row in load("math", tmp_path, split="train")] == ["a"]


def test_a_file_may_be_called_by_the_sets_other_name(tmp_path: Path) -> None:
    write(tmp_path / "nq_open.jsonl", [{"question": "Q?", "answers": ["A"]}])
    assert len(load("natural_questions", tmp_path)) == 1


def test_shards_are_read_in_order_and_none_may_miss(tmp_path: Path) -> None:
    for at, row in enumerate(NATIVE["gsm8k"]):
        write(tmp_path / f"main/train-{at:05}-of-00002.parquet", [row])
    assert [row.answers for row in load("gsm8k", tmp_path, split="train")] == [("1080",), ("-3",)]
    (tmp_path / "main/train-00000-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"only a part of 'gsm8k': missing: train-00000-of-00002\.parquet"):
        load("gsm8k", tmp_path, split="train")


def test_a_missing_subject_is_named(tmp_path: Path) -> None:
    lay_out("math", tmp_path)
    next((tmp_path / "geometry").iterdir()).unlink()
    with pytest.raises(InputError, match=r"only a part of 'math': missing: geometry/test-\*\.parquet"):
        load("math", tmp_path)


def test_several_copies_are_not_guessed_between(tmp_path: Path) -> None:
    lay_out("gsm8k", tmp_path)
    write(tmp_path / "gsm8k.jsonl", [{"question": "Q?", "answers": ["1"]}])
    with pytest.raises(InputError, match=r"several copies.*main/test-00000-of-00001\.parquet, gsm8k\.jsonl"):
        load("gsm8k", tmp_path)


def test_a_wrong_folder_says_what_was_looked_for(tmp_path: Path) -> None:
    lay_out("gsm8k", tmp_path / "sets")
    with pytest.raises(
        InputError, match=r"There is no folder '.*sits' for the data set 'gsm8k'. Did you mean 'sets'\?"
    ):
        load("gsm8k", tmp_path / "sits")
    with pytest.raises(
        InputError, match=r"no file of the split 'test' of 'imdb'.*plain_text/test-\*.*hf download"
    ) as error:
        load("imdb", tmp_path / "sets")
    assert "stanfordnlp/imdb" in str(error.value)
    with pytest.raises(InputError, match=r"movie_qa_test\.csv from github\.com/technion-cs-nlp/LLMsKnow"):
        load("movies", tmp_path / "sets")


def test_another_sets_file_is_refused_by_its_columns(tmp_path: Path) -> None:
    for suffix in ("parquet", "csv"):
        path = write(tmp_path / f"rows.{suffix}", NATIVE["gsm8k"])
        with pytest.raises(InputError, match=rf"rows\.{suffix}' has no column 'text': it has question, answer"):
            load("imdb", path)
    path = write(tmp_path / "rows.jsonl", NATIVE["gsm8k"])
    with pytest.raises(InputError, match=r"(?s)2 bad rows:.*rows\.jsonl, row 1: misses text, label"):
        load("imdb", path)


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("test.parquet", b"PAR1 and then nothing PAR1", "not a whole Parquet file|Cannot read"),
        ("test.parquet", b"", "not a whole Parquet file"),
        ("test.parquet", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer that Git LFS leaves"),
        ("test.csv", b"question,answer\n\xff\xfe,1\n", "not a CSV file in UTF-8"),
        ("test.csv", b'question,answer\n"never closed,1\n', "not a CSV file"),
        ("test.csv", b"", "has no column 'question': it is empty"),
        ("test.json", b"[1, 2", "is not JSON"),
        ("test.json", b"[" * 100_000, "is not JSON"),
        ("test.jsonl.gz", gzip.compress(b'{"question": "Q"}\n' * 99, mtime=0)[:40], "damaged gzip data"),
        ("test.jsonl", b"", "no usable row"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason(file: str, data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(data)
    with pytest.raises(InputError, match=reason) as error:
        load("gsm8k", tmp_path)
    assert file in str(error.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text("x")
    with pytest.raises(InputError, match=r"of no known format. Known: \.parquet"):
        load("gsm8k", tmp_path / "test.txt")


# -- rows ----------------------------------------------------------------------------------------

BAD: list[tuple[str, dict[str, Any], str]] = [
    ("triviaqa", {"answer": "Lake Elm"}, "'answer' must be an object, got a str"),
    ("triviaqa", {"answer": {"value": "<unk>", "aliases": []}}, "has no answer, as in the test split"),
    ("triviaqa", {"answer": {"value": "x", "aliases": 5}}, "'aliases' must be a list of texts, got a int"),
    ("hotpotqa", {"answer": " "}, "'answer' is empty"),
    ("hotpotqa", {"question": None}, "'question' must be a text, got nothing"),
    ("winogrande", {"answer": ""}, "has no answer, as in the test split"),
    ("winogrande", {"answer": "3"}, "'answer' must be one of 1, 2; got another text"),
    ("imdb", {"label": -1}, "'label' must be one of 0, 1; got -1"),
    ("imdb", {"label": True}, "'label' must be one of 0, 1; got True"),
    ("math", {"problem": ""}, "'problem' is empty"),
    ("mmlu", {"choices": ["1", "2"]}, "has 2 choices in place of 4"),
    ("mmlu", {"answer": 4}, "'answer' must be one of 0, 1, 2, 3; got 4"),
    ("mmlu", {"choices": 3}, "'choices' must be a list of texts, got a int"),
    ("natural_questions", {"answer": []}, "'answer' must be a list of texts, got an empty list"),
    ("natural_questions", {"answer": ["x", 1]}, r"'answer\[1\]' must be a text"),
    ("gsm8k", {"answer": "It is 5."}, "'answer' does not end with #### and a number"),
    ("gsm8k", {"question": "\ud800"}, "'question' has half of a surrogate pair"),
]


@pytest.mark.parametrize(("name", "change", "reason"), BAD)
def test_a_bad_row_is_named_by_file_row_and_reason(
    name: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "rows.jsonl", [NATIVE[name][0], NATIVE[name][0] | change])
    with pytest.raises(InputError, match=rf"1 bad row: .*rows\.jsonl, row 2: {reason}"):
        load(name, path)
    source = resolve(f"{name}@{path}", on_bad="skip")
    assert len(source.rows) == 1
    ((file, bad),) = source.bad
    assert (file, bad.line) == (path, 2)


def test_reasons_show_no_question_and_no_answer(tmp_path: Path) -> None:
    secret = "zebra"
    for name, change, _ in BAD:
        row = {key: secret if value == NATIVE[name][0][key] else value for key, value in change.items()}
        path = write(tmp_path / f"{name}.jsonl", [dict.fromkeys(SETS[name].columns, secret) | row])
        with pytest.raises(InputError) as error:
            load(name, path)
        assert secret not in str(error.value)


def test_rows_that_are_no_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    good = json.dumps(NATIVE["gsm8k"][0]).encode()
    path.write_bytes(b"\n".join([good, b"[1]", b"{", b'{"question": "\xff"}', b'{"question": "Q?"}', b"{" * 9999]))
    source = resolve(f"gsm8k@{path}", on_bad="skip")
    assert [(bad.line, bad.reason) for _, bad in source.bad] == [
        (2, "is not an object"),
        (3, "is not JSON: Expecting property name enclosed in double quotes in column 2"),
        (4, "is not UTF-8 (byte 15 of the line)"),
        (5, "misses answer"),
        (6, "is not JSON: Expecting property name enclosed in double quotes in column 2"),
    ]
    with pytest.raises(InputError, match=r"(?s)5 bad rows.*row 2: is not an object\n.*row 6"):
        load("gsm8k", path)


def test_cells_that_miss_or_are_too_many_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "movie_qa_test.csv"
    path.write_text("Question,Answer\nWho?,Ann\nWho else?\nAnd who?,Bo,Lin\n")
    source = resolve(f"movies@{tmp_path}", on_bad="skip")
    assert len(source.rows) == 1
    assert [bad.line for _, bad in source.bad] == [3, 4]


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("movies", {"Question": "Who acted as  in the movie 'Elm'?"}, "names no role"),
        ("winogrande", {"option2": "Kim"}, "has the same choice twice"),
        ("winogrande", {"sentence": "Kim beat Jo."}, "has no blank"),
        ("mmlu", {"choices": ["a", "b", "a", "c"]}, "has the same choice twice"),
        ("mmlu", {"choices": ["a", "b", " ", "c"]}, "has an empty choice"),
        ("math", {"solution": "It is clear."}, r"has no \\boxed answer"),
        ("math", {"solution": r"$\boxed{1"}, r"has no \\boxed answer"),
    ],
)
def test_known_faults_of_a_set_are_left_out_and_reported(
    name: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """They stop nothing: the user of a published set cannot correct it."""
    path = write(tmp_path / "rows.jsonl", [NATIVE[name][0] | change, NATIVE[name][0]])
    source = resolve(f"{name}@{path}")
    assert len(source.rows) == 1
    ((_, bad),) = source.bad
    assert bad.line == 1
    assert bad.reason.startswith(reason.replace("\\\\", "\\"))
    write(path, [NATIVE[name][0] | change])
    with pytest.raises(InputError, match=f"no usable row: .*row 1: {reason}"):
        load(name, path)


def test_the_same_question_is_asked_once(tmp_path: Path) -> None:
    first, second = NATIVE["natural_questions"]
    again = first | {"answer": ["1912", "1912 AD"]}
    path = write(tmp_path / "rows.jsonl", [first, second, again])
    assert [row.answers for row in load("natural_questions", path)] == [("1912", "in 1912", "1912 AD"), ("Ann Roe",)]


def test_repeated_choices_are_dropped_but_contradictions_reported(tmp_path: Path) -> None:
    first = NATIVE["mmlu"][0]
    path = write(tmp_path / "rows.jsonl", [first, first, first | {"answer": 2}])
    source = resolve(f"mmlu@{path}")
    assert [row.answers for row in source.rows if isinstance(row, Question)] == [("4",)]
    assert [(bad.line, bad.reason) for _, bad in source.bad] == [(3, "repeats a question with another answer")]


def test_ids_do_not_depend_on_order_or_company(tmp_path: Path) -> None:
    rows = NATIVE["gsm8k"]
    there = {row.question: row.id for row in load("gsm8k", write(tmp_path / "a.jsonl", rows))}
    back = {row.question: row.id for row in load("gsm8k", write(tmp_path / "b.csv", rows[::-1]))}
    assert there == back


def test_a_limit_draws_by_seed_and_keeps_the_order(tmp_path: Path) -> None:
    rows = [{"question": f"How much is {at} + 0?", "answer": f"#### {at}"} for at in range(50)]
    path = write(tmp_path / "rows.parquet", rows)
    everything = load("gsm8k", path)
    drawn = [load("gsm8k", path, limit=10, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert [row for row in everything if row in drawn[0]] == list(drawn[0])
    # The same draw as from a file of guard's own with the same ids.
    own = write(tmp_path / "own.jsonl", [dataclasses.asdict(row) for row in everything])
    assert read_rows(own, limit=10, seed=0).rows == drawn[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(SETS)), st.data())
def test_no_row_breaks_a_converter(name: str, data: st.DataObject) -> None:
    named = SETS[name]
    row = NATIVE[name][0] | data.draw(
        st.dictionaries(st.sampled_from([*named.columns, *named.optional]), JSON, min_size=1)
    )
    try:
        question = named.convert(row)
    except (MalformedRowError, UnfitRowError):
        return
    assert question.answers
    assert all(answer.strip() for answer in question.answers)


# -- arguments -----------------------------------------------------------------------------------


def test_unknown_names_and_splits_say_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"There is no data set 'trivia_qa'. Did you mean 'triviaqa'\?"):
        load_set("trivia_qa")
    with pytest.raises(InputError, match=r"'triviaqa' has no labelled split 'test'. Known: train, validation"):
        load_set("triviaqa", folder=tmp_path, split="test")
    with pytest.raises(InputError, match="There is no data set"):
        get_set("")
    with pytest.raises(InputError, match="limit must be at least 1"):
        load_set("gsm8k", folder=tmp_path, limit=0)
    with pytest.raises(InputError, match="on_bad must be"):
        load_set("gsm8k", folder=tmp_path, on_bad="ignore")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="A revision is for sets from the hub"):
        load_set("gsm8k", folder=tmp_path, revision="main")
    with pytest.raises(InputError, match="There is no folder"):
        load_set("gsm8k", folder="a\0b")


def test_a_spec_is_a_file_or_a_set_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = write(tmp_path / "mine.jsonl", [{"question": "Q?", "answers": ["A"]}])
    lay_out("gsm8k", tmp_path / "sets")
    lay_out("gsm8k", tmp_path / "sets", split="train")
    expected = hashlib.sha256(own.read_bytes()).hexdigest()
    assert resolve("mine.jsonl") == DataSource("mine", read_rows(own).rows, (), expected)
    assert resolve(own).sha256 == expected
    source = resolve("gsm8k@sets")
    assert (source.name, source.named, len(source.rows)) == ("gsm8k", SETS["gsm8k"], 2)
    assert (
        source.sha256 == hashlib.sha256((tmp_path / "sets/main/test-00000-of-00001.parquet").read_bytes()).hexdigest()
    )
    assert resolve("gsm8k:train@sets").name == "gsm8k-train"


def test_the_digest_tells_of_every_file(tmp_path: Path) -> None:
    lay_out("math", tmp_path)
    before = resolve(f"math@{tmp_path}").sha256
    write(tmp_path / "precalculus/test-00000-of-00001.parquet", NATIVE["math"] * 2)
    assert resolve(f"math@{tmp_path}").sha256 != before
    assert len(before) == 64


def test_a_file_that_exists_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "gsm8k@sets", [{"question": "Q?", "answers": ["A"]}])
    assert resolve("gsm8k@sets").named is None


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("mine.jsonl", "There is no file mine.jsonl"),
        ("triviaqa", "There is no file 'triviaqa'. For the data set write triviaqa@FOLDER, or hub:triviaqa"),
        ("triviaq@sets", r"There is no data set 'triviaq'. Did you mean 'triviaqa'\?"),
        ("triviaqa@", "names no folder. Write triviaqa@FOLDER, or hub:triviaqa"),
        ("triviaqa@sets", "There is no folder 'sets'"),
        ("hub:", "names no data set. Write hub:NAME or hub:NAME:SPLIT"),
        ("hub:a b", "names no data set"),
        ("hub:triva", r"There is no data set 'triva'. Did you mean 'triviaqa'\?"),
        ("hub:gsm8k:tests", r"no labelled split 'tests'. Did you mean 'test'\?"),
        ("hub:movies", "'movies' is not on the Hugging Face hub. Download data/movie_qa_test.csv from github.com"),
        ("", "Cannot read"),
    ],
)
def test_a_spec_that_means_nothing_is_explained(
    spec: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=reason):
        resolve(spec)


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out("gsm8k", tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow is not installed. Run: pip install 'ilis-guard\[datasets\]'"):
        load("gsm8k", tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"huggingface_hub is not installed. .*'ilis-guard\[datasets\]'"):
        load_set("gsm8k")


def test_importing_loads_neither_pyarrow_nor_the_hub() -> None:
    code = "import sys, guard.data.sets; print(sorted({'pyarrow', 'huggingface_hub'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"


# -- the hub -------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs Python with a hub of its own, which has GSM8K and nothing else, over real HTTP."""
    lay_out("gsm8k", tmp_path / "hub")
    lay_out("gsm8k", tmp_path / "hub", split="train")
    files = {path.relative_to(tmp_path / "hub").as_posix(): path for path in (tmp_path / "hub").rglob("*.parquet")}
    asked: list[str] = []

    class FileServer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            asked.append(f"{self.command} {path}")
            name = path.removeprefix(f"/datasets/openai/gsm8k/resolve/{COMMIT}/")
            if name in files:
                self._send(files[name].read_bytes())
            elif path == "/api/datasets/openai/gsm8k/revision/main":
                siblings = [{"rfilename": each} for each in files]
                self._send(json.dumps({"id": "openai/gsm8k", "sha": COMMIT, "siblings": siblings}).encode())
            elif path.startswith("/api/datasets/openai/gsm8k/tree/"):
                tree = [
                    {"type": "file", "path": each, "size": file.stat().st_size, "oid": "0" * 40}
                    for each, file in files.items()
                ]
                self._send(json.dumps(tree).encode())
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), FileServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(code: str, **more: str) -> subprocess.CompletedProcess[str]:
        clean = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HTTP"))}
        own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "cache")}
        asked.clear()
        program = f"from guard.data.sets import load_set, resolve\n{code}"
        done = subprocess.run(
            [sys.executable, "-c", program],
            **{"capture_output": True, "text": True, "timeout": 60, "env": clean | own | more},  # type: ignore[call-overload]
        )
        done.asked = list(asked)
        return done  # type: ignore[no-any-return]

    yield run
    server.shutdown()
    server.server_close()


SHOW = "print(resolve('hub:gsm8k').name, [row.answers for row in load_set('gsm8k')])"


def test_a_set_is_fetched_from_the_hub_once_and_then_needs_none(hub: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    first = hub(SHOW)
    assert first.stdout == "gsm8k [('1080',), ('-3',)]\n", first.stderr
    fetched = [line.rpartition("/")[2] for line in first.asked if line.startswith("GET /datasets/")]
    assert fetched == ["test-00000-of-00001.parquet"]
    assert list((tmp_path / "cache").rglob("test-*.parquet"))
    offline = hub(SHOW, HF_HUB_OFFLINE="1")
    assert (offline.stdout, offline.asked) == (first.stdout, []), offline.stderr
    unreachable = hub(SHOW, HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.stdout == first.stdout, unreachable.stderr


@pytest.mark.parametrize(
    ("call", "environment", "reasons"),
    [
        (
            "load_set('gsm8k')",
            {"HF_HUB_OFFLINE": "1"},
            ["Cannot fetch 'gsm8k' (openai/gsm8k) from", "main/test-*.parquet"],
        ),
        ("load_set('gsm8k')", {"HF_ENDPOINT": "http://127.0.0.1:9"}, ["hf download openai/gsm8k", "gsm8k@FOLDER"]),
        ("load_set('imdb')", {}, ["Cannot fetch 'imdb' (stanfordnlp/imdb)", "NotFound"]),
        ("load_set('gsm8k', revision='v9')", {}, ["at revision v9"]),
        ("load_set('math')", {"HF_HUB_OFFLINE": "1"}, ["--include '*/test-*.parquet'", "math@FOLDER"]),
    ],
)
def test_a_set_that_cannot_be_fetched_is_one_clear_error(
    call: str, environment: dict[str, str], reasons: list[str], hub: Callable[..., Any]
) -> None:
    pytest.importorskip("huggingface_hub")
    code = f"from guard.errors import InputError\ntry:\n    {call}\nexcept InputError as error:\n    print(error)"
    done = hub(code, **environment)
    assert len(done.stdout.splitlines()) == 1, done.stderr
    assert [reason for reason in reasons if reason not in done.stdout] == [], done.stdout


# -- documentation and real copies ---------------------------------------------------------------


def test_the_documentation_lists_every_set() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reference" / "data.md").read_text(encoding="utf-8")
    for named in SETS.values():
        rows = "\n".join(line for line in page.splitlines() if line.startswith(f"| `{named.name}` |"))
        for detail in (named.repository, f"`{named.split}`", named.licence, named.citation, str(named.max_tokens)):
            assert detail in rows


@pytest.mark.skipif(not QA.is_dir(), reason="the copies of real sets are not here")
@pytest.mark.parametrize("name", sorted(set(SETS) - {"imdb", "math"}))
def test_real_copies_load_by_name(name: str) -> None:
    source = resolve(f"{name}@{QA}", limit=200)
    assert source.name == name
    assert source.bad == ()
    assert len(source.rows) == 200
    right = [grade(row, row.answers[0]) for row in source.rows if isinstance(row, Question)]
    assert sum(right) == 200


@pytest.mark.skipif(not QA.is_dir(), reason="the copies of real sets are not here")
@pytest.mark.parametrize("split", ["test", "train"])
def test_real_copies_load_by_split(split: str) -> None:
    assert len(load_set("gsm8k", folder=QA, split=split)) > 1000
