"""Recorded answers as columns: what goes in comes out, parts share, files are whole or refused."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow")

import pyarrow.parquet
from scripted import END, LAYERS, WIDTH, AnsweringEngine, layers_of, scripted_model

from guard.data import parquet_file as table_file
from guard.data.answers import Answers, concatenate
from guard.data.columns import ARRAYS, RAGGED, VALUES, Columns
from guard.data.further_calls import FurtherCalls
from guard.data.graders import grade
from guard.data.logit_lens import Lens
from guard.data.questions import LabelledResponse, Question, Row
from guard.data.recording import Journal, Record, Run, Skipped, record_rows
from guard.data.sqlite_journal import asked_digest, row_key
from guard.errors import InputError
from guard.records import Prompt
from guard.scoring.probe import inner_products
from guard.scoring.signature import FeatureSchema, feature_vector

RUN = Run(model=scripted_model(), capture_point="mlp", system="Be brief.", max_tokens=20, temperatures=(0.5, 1.0))
#: A text that is too long for the scripted model.
LONG = Question(id="long", question="x" * 500, answers=("no",))


def list_rows(name: str, count: int) -> list[tuple[str, Row]]:
    """Questions of which every third is answered right, and a given response."""
    rows: list[tuple[str, Row]] = [
        (name, Question(id=f"{number}", question=f"{name} {number}?", answers=("yes" if number % 3 == 0 else "no",)))
        for number in range(count)
    ]
    given = LabelledResponse(id="given", prompt=Prompt.chat(f"{name} why?"), response="so", wrong=False)
    return [*rows, (name, given)]


def with_blocks(prompt: Prompt, number: int) -> Any:
    return np.concatenate([layers_of(prompt, number), layers_of(prompt, number + 100)])


def recorded(
    path: Path,
    rows: Sequence[tuple[str, Row]],
    *,
    lens: bool = False,
    samples: int = 0,
    run: Run = RUN,
    **metadata: Any,
) -> tuple[Answers, list[Record]]:
    """Answers and the records that they are made of."""
    engine = AnsweringEngine(lambda prompt, number: ("yes" + "s" * (number % 4), 0.4), model=run.model)
    reader = None
    if lens:
        engine.activations_at = with_blocks
        rng = np.random.default_rng(0)
        norm, unembedding = rng.normal(size=WIDTH), rng.normal(size=(END + 1, WIDTH))
        reader = Lens(np.float32(norm), np.float32(unembedding), epsilon=1e-5)
    with Journal(path, run) as journal:
        list(
            record_rows(
                engine, rows, journal, run=run, lens=reader, calls=FurtherCalls(samples=samples), sampled_rows=2
            )
        )
        answers = Answers.from_journal(journal, rows, says_yes, metadata=metadata)
        return answers, journal.records([row_key(name, row) for name, row in rows])


def says_yes(question: Question, answer: str) -> bool:
    return question.answers == ("yes",) and answer.startswith("yes")


def same(left: Columns, right: Columns) -> bool:
    pairs = ((getattr(left, name), getattr(right, name)) for name in (*VALUES, *RAGGED, *ARRAYS, "offsets"))
    arrays = all(
        (a is None) == (b is None) and (a is None or (a.dtype == b.dtype and np.array_equal(a, b))) for a, b in pairs
    )
    return arrays and left.samples == right.samples


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return recorded(tmp_path / "j", [*list_rows("d", 7), *list_rows("e", 5)], lens=True, samples=2)[0]


# -- from a journal ----------------------------------------------------------------------------


def test_columns_are_the_records(tmp_path: Path) -> None:
    rows = [*list_rows("d", 7), ("d", LONG), *list_rows("e", 5), *list_rows("d", 2)]
    answers, records = recorded(tmp_path / "j", rows, lens=True, samples=2, grader="mine")
    records = list({record.key: record for record in records}.values())
    assert len(answers) == len(records) == 14, "rows that are given twice are there once, skipped ones not at all"
    assert [*answers.key] == [record.key for record in records]
    assert answers.key[0] == "d/0"
    assert set(answers.dataset) == {"d", "e"}
    assert [*answers.answer] == [record.answer for record in records]
    assert [*answers.seconds] == [record.seconds for record in records]
    assert [*answers.prompt_tokens] == [len(record.question) for record in records]
    assert [*answers.tokens] == [len(record.answer) + 1 for record in records]
    assert answers.samples == tuple(record.further.samples for record in records)
    assert sum(map(bool, answers.samples)) == 4
    for at, record in enumerate(records):
        ours, theirs = answers.signals(at), record.signals
        for name in ("logprobs", "entropies", "margins"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("maps", "norms", "activations"):
            np.testing.assert_array_equal(getattr(ours.signature, name), getattr(theirs.signature, name))
            assert getattr(ours.signature, name).dtype == np.float32
        assert (ours.signature.tokens, ours.signature.temperatures) == (len(theirs.logprobs), (0.5, 1.0))
        assert record.residual is not None
        assert answers.lens is not None
        assert answers.path is not None
        np.testing.assert_array_equal(answers.lens[at], record.residual.lens)
        np.testing.assert_array_equal(answers.path[at], record.residual.path)
    assert answers.maps.shape == (14, 2, 4, LAYERS, LAYERS)
    assert answers.activations.shape == (14, 3, LAYERS, WIDTH)
    assert answers.activations.dtype == np.float16
    assert answers.layers == LAYERS


def test_labels_are_the_graders_or_the_rows_own(answers: Answers) -> None:
    right = {f"d/{n}" for n in (0, 3, 6)} | {"e/0", "e/3", "d/given", "e/given"}
    assert {key for key, wrong in zip(answers.key, answers.wrong, strict=True) if not wrong} == right


def test_questions_with_the_same_text_are_of_one_group(tmp_path: Path) -> None:
    rows: list[tuple[str, Row]] = [
        ("d", Question(id="1", question="Who is it?", answers=("a",))),
        ("d", Question(id="2", question="Who was it?", answers=("a",))),
        ("e", Question(id="1", question=" who is IT", answers=("b",))),
    ]
    group = recorded(tmp_path / "j", rows)[0].group
    assert group[0] == group[2] != group[1]


def test_metadata_is_flat_and_gives_model_versions_and_place(tmp_path: Path) -> None:
    metadata = recorded(tmp_path / "j", list_rows("d", 1), grader="mine")[0].metadata
    assert metadata["model.name"] == "scripted"
    assert metadata["model.layers"] == LAYERS
    assert metadata["temperatures"] == [0.5, 1.0]
    assert (metadata["system"], metadata["completion"], metadata["grader"]) == ("Be brief.", False, "mine")
    assert {"date", "machine", "versions.ilis-guard", "versions.numpy", "versions.python"} <= metadata.keys()
    assert json.loads(json.dumps(metadata)) == metadata


def test_an_answer_without_a_probability_is_left_out(tmp_path: Path) -> None:
    rows = list_rows("d", 3)
    _, records = recorded(tmp_path / "j", rows)
    signals = replace(records[1].signals, logprobs=np.full_like(records[1].signals.logprobs, -np.inf))
    with Journal(tmp_path / "j", RUN) as journal:
        journal.append(replace(records[1], signals=signals))
        answers = Answers.from_journal(journal, rows, says_yes)
    assert [*answers.key] == ["d/0", "d/2", "d/given"]


def test_the_residual_stream_is_there_only_where_all_answers_have_it(tmp_path: Path) -> None:
    rows = list_rows("d", 4)
    recorded(tmp_path / "j", rows[:2])
    answers, records = recorded(tmp_path / "j", rows, lens=True)
    assert [record.residual is None for record in records] == [True, True, False, False, False]
    assert answers.lens is answers.path is None
    answers.write(tmp_path / "a")
    assert Answers.read(tmp_path / "a").lens is None


def test_a_journal_without_these_answers_is_refused(tmp_path: Path) -> None:
    recorded(tmp_path / "j", list_rows("d", 2))
    with Journal(tmp_path / "j", RUN) as journal:
        for rows in ([], list_rows("other", 3), [("d", LONG)]):
            with pytest.raises(InputError, match="has none of these answers"):
                Answers.from_journal(journal, rows, says_yes)
        journal.skip(Skipped("d/long", "too long", asked_digest(LONG)), dataset="d")
        with pytest.raises(InputError, match="has none of these answers"):
            Answers.from_journal(journal, [("d", LONG)], grade)


# -- the table ---------------------------------------------------------------------------------


SCHEMAS = [
    FeatureSchema(layers=LAYERS, temperatures=(0.5, 1.0)),
    FeatureSchema(layers=LAYERS, temperatures=(1.0,), aggregates=("last", "first"), groups=("map", "length")),
    FeatureSchema(layers=LAYERS, groups=("logprob",)),
]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_features_are_those_that_the_scorer_makes(tmp_path: Path, schema: FeatureSchema) -> None:
    answers, records = recorded(tmp_path / "j", list_rows("d", 7))
    expected = np.stack([feature_vector(record.signals, schema) for record in records])
    np.testing.assert_array_equal(answers.features(schema), expected)
    some = np.array([5, 0, 5])
    np.testing.assert_array_equal(answers.take(some).features(schema), expected[some])


def test_a_feature_that_was_not_recorded_is_named(answers: Answers) -> None:
    with pytest.raises(InputError, match=r"'d/0' lacks a feature.*temperature 2"):
        answers.features(FeatureSchema(layers=LAYERS, temperatures=(2.0,)))


def test_parts_of_parts_are_the_same_rows(answers: Answers) -> None:
    part = answers.take(np.array([8, 2, 2, 5, 11])).take(np.array([4, 0, 1]))
    rows = [11, 8, 2]
    names = [*VALUES, "tokens", "maps", "norms", "activations", "lens", "path"]
    for name in names:
        np.testing.assert_array_equal(getattr(part, name), getattr(answers, name)[rows])
    assert part.samples == tuple(answers.samples[row] for row in rows)
    np.testing.assert_array_equal(part.signals(0).logprobs, answers.signals(11).logprobs)
    assert len(answers.take(np.zeros(0, np.intp))) == 0


def test_parts_share_what_is_made_of_the_whole(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(activations: Any) -> Any:
        made.append(len(activations))
        return inner_products(activations)

    monkeypatch.setattr("guard.data.columns.inner_products", counted)
    rows = np.array([3, 1, 7])
    part = answers.take(rows)
    every = np.arange(len(rows))
    np.testing.assert_allclose(
        part.products.between(every, every), inner_products(answers.activations[rows]), atol=1e-6
    )
    np.testing.assert_array_equal(answers.products.between(rows, rows), part.products.between(every, every))
    part.take(np.array([0])).products  # noqa: B018
    assert made == [len(answers)]
    assert answers.products is answers.products
    assert answers.activations is answers.columns.activations is part.columns.activations
    assert answers.take(np.arange(len(answers))).maps is answers.columns.maps


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_bytes", [1, 2000, 2**25])
@pytest.mark.parametrize("lens", [True, False])
def test_a_file_gives_back_every_bit(
    tmp_path: Path, lens: bool, group_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_file, "_GROUP_BYTES", group_bytes)
    rows = [*list_rows("d", 7), *list_rows("Größe, 尺", 5)]
    answers, _ = recorded(tmp_path / "j", rows, lens=lens, samples=2, **{"data.d.sha256": "f" * 64})
    answers.write(tmp_path / "a.parquet")
    again = Answers.read(str(tmp_path / "a.parquet"))
    assert same(again.columns, answers.columns)
    assert again.metadata == answers.metadata
    with pyarrow.parquet.ParquetFile(tmp_path / "a.parquet") as file:
        assert file.num_row_groups == {1: 14, 2**25: 1}.get(group_bytes, file.num_row_groups)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "j"]
    schema = SCHEMAS[0]
    np.testing.assert_array_equal(again.features(schema), answers.features(schema))


def test_a_part_is_written_as_a_table_of_its_own(answers: Answers, tmp_path: Path) -> None:
    part = answers.take(np.array([9, 1, 4]))
    part.write(tmp_path / "part")
    again = Answers.read(tmp_path / "part")
    assert len(again.columns) == 3
    for name in ("key", "answer", "wrong", "tokens", "maps", "lens"):
        np.testing.assert_array_equal(getattr(again, name), getattr(part, name))
    for at in range(3):
        np.testing.assert_array_equal(again.signals(at).margins, part.signals(at).margins)
    assert again.samples == part.samples


def test_other_tools_can_read_the_file(answers: Answers, tmp_path: Path) -> None:
    answers.write(tmp_path / "a")
    table = pyarrow.parquet.read_table(tmp_path / "a")
    assert table["dataset"].to_pylist() == [*answers.dataset]
    assert table["logprobs"].to_pylist()[3] == answers.signals(3).logprobs.tolist()
    maps = np.frombuffer(table["maps"][2].as_py(), "<f4").reshape(2, 4, LAYERS, LAYERS)
    np.testing.assert_array_equal(maps, answers.maps[2])


def test_writing_is_whole_or_not_at_all(answers: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in ("missing/a", "file/a", "a\0b"):
        with pytest.raises(InputError, match="Cannot write the answers"):
            answers.write(tmp_path / path)
    answers.write(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    calls = []

    def interrupted(columns: Any, field: Any, rows: Any) -> Any:
        calls.append(field.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(table_file, "_to_arrow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answers.write(tmp_path / "a")
    assert calls
    assert (tmp_path / "a").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "file", "j"]


def test_files_of_something_else_are_refused(answers: Answers, tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"key": ["a"]}), tmp_path / "other")
    (tmp_path / "text").write_text("key,answer\n" * 100)
    (tmp_path / "empty").touch()
    (tmp_path / "a.parquet").touch()
    for name, told in (
        ("other", "has no recorded answers"),
        ("text", "is damaged"),
        ("empty", "is damaged"),
        ("b.parquet", "There is no file.*Did you mean 'a.parquet'"),
        ("missing/b", "There is no file"),
        (".", "There is no file"),
        ("a\0b", "There is no file"),
    ):
        with pytest.raises(InputError, match=told):
            Answers.read(tmp_path / name)


def changed(path: Path, **changes: Any) -> Path:
    """The same file with another header, or other columns, and right checksums."""
    table = pyarrow.parquet.read_table(path)
    told = json.loads(table.schema.metadata[b"guard"])
    metadata = {**told["metadata"], **changes.pop("metadata", {})}
    columns = changes.pop("columns", {})
    told |= {"metadata": metadata, "sha256": table_file._digest(metadata), **changes}
    for name, values in columns.items():
        at = table.schema.get_field_index(name)
        if values is None:
            table = table.remove_column(at)
        else:
            table = table.set_column(at, table.schema.field(at), pyarrow.array(values, table.schema.field(at).type))
    table = table.replace_schema_metadata({b"guard": json.dumps(told).encode()})
    pyarrow.parquet.write_table(table, path)
    return path


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "other"}, "has no recorded answers"),
        ({"format_version": 99}, "version 99.*Upgrade guard"),
        ({"sha256": "0" * 64}, "checksum of its header"),
        ({"metadata": {"model.layers": 4}}, "columns do not match"),
        ({"metadata": {"model.layers": 10**9}}, "not a valid size"),
        ({"metadata": {"model.width": "8"}}, "not a valid size"),
        ({"metadata": {"temperatures": []}}, "not numbers"),
        ({"metadata": {"temperatures": ["1", "2"]}}, "not numbers"),
        ({"columns": {"wrong": None}}, "columns do not match"),
        ({"columns": {"norms": [np.full((4, LAYERS), np.nan, "<f4").tobytes()] * 4}}, "'norms' has values"),
        ({"columns": {"logprobs": [[]] * 4}}, "differ in length"),
        ({"columns": {name: [[]] * 4 for name in RAGGED}}, "without tokens"),
        ({"columns": {"margins": [[float("nan")] * n for n in (4, 5, 6, 3)]}}, "'margins' has values"),
    ],
)
def test_sound_files_with_wrong_content_are_refused(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    answers, _ = recorded(tmp_path / "j", list_rows("d", 3))
    assert [*answers.tokens] == [4, 5, 6, 3]
    answers.write(tmp_path / "a")
    with pytest.raises(InputError, match=told):
        Answers.read(changed(tmp_path / "a", **changes))


def test_a_file_of_answers_is_its_owners_only(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("everybody's")
    answers.write(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_without_a_header_sum_is_read(tmp_path: Path) -> None:
    answers, _ = recorded(tmp_path / "j", list_rows("d", 3))
    answers.write(tmp_path / "a")
    table = pyarrow.parquet.read_table(tmp_path / "a")
    told = json.loads(table.schema.metadata[b"guard"])
    del told["sha256"]
    pyarrow.parquet.write_table(table.replace_schema_metadata({b"guard": json.dumps(told)}), tmp_path / "a")
    assert same(Answers.read(tmp_path / "a").columns, answers.columns)


def test_damaged_files_are_read_right_or_refused(answers: Answers, tmp_path: Path) -> None:
    path = tmp_path / "a"
    answers.write(path)
    data, rng, refused = path.read_bytes(), random.Random(0), 0
    for number in range(400):
        damaged = bytearray(data)
        if number % 4 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        else:
            # A quarter in the footer, which has no checksum.
            start = len(data) - 4000 if number % 4 == 1 else 0
            for _ in range(rng.choice((1, 3, 50))):
                damaged[rng.randrange(start, len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            again = Answers.read(path)
        except InputError as error:
            refused += 1
            told = str(error)
        else:
            assert same(again.columns, answers.columns)
            assert again.metadata == answers.metadata
            continue
        assert str(path) in told
    assert 300 < refused < 400


# -- several tables ----------------------------------------------------------------------------


def test_tables_of_one_run_become_one(tmp_path: Path) -> None:
    rows = [*list_rows("d", 4), *list_rows("e", 3), *list_rows("f", 2)]
    whole, _ = recorded(tmp_path / "whole", rows, lens=True, **{"data.seed": 0})
    tables = [
        recorded(tmp_path / name, [row for row in rows if row[0] == name], lens=True, **{"data.seed": number})[0]
        for number, name in enumerate("def")
    ]
    joined = concatenate(tables)
    for name in ("key", "dataset", "group", "wrong", "tokens", "maps", "activations", "lens", "path"):
        expected = np.concatenate([getattr(table, name) for table in tables])
        np.testing.assert_array_equal(getattr(joined, name), expected)
    assert [*joined.key] == [*whole.key]
    for at in range(len(joined)):
        assert len(joined.signals(at).logprobs) == joined.tokens[at]
    assert "data.seed" not in joined.metadata
    assert joined.metadata["model.name"] == "scripted"
    joined.write(tmp_path / "a")
    assert same(Answers.read(tmp_path / "a").columns, joined.columns)


def test_one_table_alone_loses_what_it_was_taken_from(answers: Answers) -> None:
    alone = concatenate([answers.take(np.array([3, 1]))])
    assert len(alone.columns) == 2
    assert len(alone.products) == 2
    assert alone.metadata == answers.metadata


def test_tables_of_different_runs_or_with_the_same_answer_are_refused(tmp_path: Path) -> None:
    first, _ = recorded(tmp_path / "1", list_rows("d", 3), grader="a")
    with pytest.raises(InputError, match="'d/0' is in two"):
        concatenate([first, first])
    for number, (run, grader, told) in enumerate(
        (
            (replace(RUN, system="Be long."), "a", "different runs.*system: 'Be brief.' and 'Be long.'"),
            (replace(RUN, model=scripted_model(quantization="Q8_0")), "a", "model.quantization"),
            (RUN, "b", "grader: 'a' and 'b'"),
        )
    ):
        other, _ = recorded(tmp_path / f"other{number}", list_rows("e", 2), run=run, grader=grader)
        with pytest.raises(InputError, match=told):
            concatenate([first, other])
    renamed = replace(RUN, model=scripted_model(name="moved.gguf", context_tokens=300))
    assert len(concatenate([first, recorded(tmp_path / "2", list_rows("e", 2), run=renamed, grader="a")[0]])) == 7
    with pytest.raises(InputError, match="no table"):
        concatenate([])


def test_the_residual_stream_is_dropped_where_a_table_lacks_it(tmp_path: Path) -> None:
    with_lens, _ = recorded(tmp_path / "1", list_rows("d", 2), lens=True)
    without, _ = recorded(tmp_path / "2", list_rows("e", 2))
    assert concatenate([with_lens, without]).lens is None
