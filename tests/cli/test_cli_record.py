"""``guard record`` on tiny GGUF models with random weights, and once on the embedded one."""

from __future__ import annotations

import gzip
import json
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")
pytest.importorskip("pyarrow")

from documented_json import differences, documented
from tiny_gguf import LAYERS, write_tiny_gguf
from typer.testing import CliRunner

from guard.cli import app
from guard.data.answers import Answers
from guard.data.question_sets import read_sets, round_robin
from guard.data.recording import Journal
from guard.data.run_settings import how_to_ask
from guard.data.sets import SETS
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.errors import ChatTemplateError, GuardError, InputError, MissingExtraError


def write_set(folder: Path, name: str, count: int, *, extra: Sequence[str] = ()) -> str:
    rows = [json.dumps({"question": f"{name} {number}?", "answers": ["a"]}) for number in range(count)]
    path = folder / f"{name}.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join([*rows, *extra]).encode()))
    return str(path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("model") / "base.gguf", template=None))


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    return ["--data", write_set(tmp_path, "big", 7), "--data", write_set(tmp_path, "small", 3)]


def record(out: Path, *arguments: str) -> tuple[Answers, dict[str, Any]]:
    """Run the command in this process; the file and what was said."""
    shown = CliRunner().invoke(
        app, ["record", "--out", str(out), "--threads", "1", "--max-tokens", "4", *arguments, "--json"]
    )
    if isinstance(shown.exception, GuardError):
        raise shown.exception
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert not differences(told, documented("guard record --json"))
    return Answers.read(out), told


# -- what is recorded --------------------------------------------------------------------------


def test_answers_are_recorded_set_by_set_in_turn(tmp_path: Path, model: str, sets: list[str]) -> None:
    table, told = record(tmp_path / "a.parquet", "--model", model, *sets, "--tau", "0.5", "--tau", "2")
    turns = ["big", "small"] * 3 + ["big"] * 4
    assert [*table.dataset] == turns
    assert table.temperatures == (0.5, 2.0)
    assert table.lens is not None
    assert table.lens.shape == (10, 2, 3, LAYERS)
    assert table.maps.shape == (10, 2, 4, LAYERS, LAYERS)
    metadata = table.metadata
    assert (metadata["capture_point"], metadata["max_tokens"], metadata["completion"]) == ("mlp", 4, False)
    assert (metadata["system"], metadata["stop"], metadata["grader"]) == (SHORT_ANSWER_SYSTEM, [], "by the row")
    assert metadata["data.small.sha256"] == read_sets([sets[3]], on_bad="stop", limit=None, seed=0)[0].sha256
    assert told["out"] == str(tmp_path / "a.parquet")
    assert (told["n"], told["residual"], told["completion"]) == (10, True, False)
    assert [(each["name"], each["n"], each["wrong"]) for each in told["sets"]] == [("big", 7, 7), ("small", 3, 3)]
    assert told["sets"][1]["tokens"] == pytest.approx(table.tokens[table.dataset == "small"].mean())
    assert (told["notes"], told["left_out"]) == ([], [])
    assert sorted(path.name for path in tmp_path.iterdir() if "set" not in path.name) == [
        "a.parquet",
        "a.parquet.journal",
        "big.jsonl.gz",
        "small.jsonl.gz",
    ]


def test_the_lens_changes_nothing_of_the_signature(tmp_path: Path, model: str, sets: list[str]) -> None:
    both, _ = record(tmp_path / "both", "--model", model, *sets, "--deterministic")
    alone, told = record(tmp_path / "alone", "--model", model, *sets, "--deterministic", "--no-lens")
    assert alone.lens is None
    assert (told["residual"], told["notes"]) == (False, [])
    for name in ("key", "answer", "maps", "norms", "activations"):
        np.testing.assert_array_equal(getattr(both, name), getattr(alone, name))


def test_a_model_whose_lens_is_not_understood_is_recorded_without(tmp_path: Path, sets: list[str]) -> None:
    """The file claims a bound on the logits that llama.cpp does not know of for this architecture."""
    odd = write_tiny_gguf(tmp_path / "odd.gguf", change=lambda writer: writer.add_final_logit_softcapping(1.0))
    table, told = record(tmp_path / "a", "--model", str(odd), *sets)
    assert table.lens is None
    (note,) = told["notes"]
    assert note.startswith(
        "Recorded without the residual stream. The logit lens of 'odd.gguf' does not match the model"
    )
    assert len(table) == 10


def test_further_answers_are_sampled(tmp_path: Path, model: str, sets: list[str]) -> None:
    table, told = record(tmp_path / "a", "--model", model, *sets, "--samples", "3", "--sampled-rows", "2")
    assert [len(each) for each in table.samples] == [3, 3, 3, 3] + [0] * 6
    assert [each["sampled"] for each in told["sets"]] == [2, 2]
    _, told = record(tmp_path / "a", "--model", model, *sets, "--samples", "3", "--sampled-rows", "3")
    assert told["notes"] == ["2 answers were recorded without samples before: only another --journal gets them"]


# -- how questions are put ---------------------------------------------------------------------


def test_a_model_without_a_chat_template_continues_a_text(tmp_path: Path, base_model: str, sets: list[str]) -> None:
    table, told = record(tmp_path / "a", "--model", base_model, *sets)
    assert told["completion"]
    assert (table.metadata["completion"], table.metadata["system"], table.metadata["stop"]) == (True, "", ["\n"])
    assert not any("\n" in answer for answer in table.answer)
    assert table.prompt_tokens.min() > 200, "solved examples come first"
    with pytest.raises(ChatTemplateError):
        record(tmp_path / "b", "--model", base_model, *sets, "--chat")


def test_a_chat_model_may_be_made_to_continue_a_text(tmp_path: Path, model: str, sets: list[str]) -> None:
    table, _ = record(tmp_path / "a", "--model", model, *sets, "--completion")
    assert table.metadata["completion"]
    with pytest.raises(InputError, match="no system message"):
        record(tmp_path / "b", "--model", model, *sets, "--completion", "--system", "Be brief.")


def test_named_sets_bring_their_own_way_of_asking(tmp_path: Path) -> None:
    for name in ("gsm8k", "triviaqa", "movies", "mine"):
        write_set(tmp_path, name, 2)

    def asked(*names: str, system: str | None = None, max_tokens: int | None = None) -> tuple[str, int]:
        specs = [f"{name}@{tmp_path}" if name in SETS else str(tmp_path / f"{name}.jsonl.gz") for name in names]
        return how_to_ask(read_sets(specs, on_bad="stop", limit=None, seed=0), system=system, max_tokens=max_tokens)

    gsm8k = SETS["gsm8k"]
    assert gsm8k.system != SHORT_ANSWER_SYSTEM
    assert asked("gsm8k") == (gsm8k.system, gsm8k.max_tokens)
    assert asked("gsm8k", max_tokens=7) == (gsm8k.system, 7)
    assert asked("mine", "triviaqa", "movies") == (SHORT_ANSWER_SYSTEM, 32)
    assert asked("mine", system="") == ("", 32)
    for names in (("gsm8k", "triviaqa"), ("mine", "gsm8k")):
        with pytest.raises(InputError, match=r"asked differently: .*gsm8k with --system .*Give --system"):
            asked(*names)
        with pytest.raises(InputError, match=r"with --max-tokens 32"):
            asked(*names, system="S")
        assert asked(*names, system="S", max_tokens=9) == ("S", 9)


def test_rows_take_turns(tmp_path: Path) -> None:
    sources = read_sets(
        [write_set(tmp_path, name, n) for name, n in (("a", 1), ("b", 3))], on_bad="stop", limit=None, seed=0
    )
    assert [name for name, _ in round_robin(sources)] == ["a", "b", "b", "b"]
    assert round_robin([]) == []


# -- stopping and going on ---------------------------------------------------------------------


def test_a_run_that_was_stopped_resumes_and_may_be_written_as_it_is(
    tmp_path: Path, model: str, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--model", model, *sets, "--deterministic"]
    whole, _ = record(tmp_path / "whole", *arguments)
    keep, kept = Journal.append, []

    def interrupted(self: Journal, answer: Any) -> None:
        if len(kept) == 5:
            raise KeyboardInterrupt
        keep(self, answer)
        kept.append(answer.key)

    monkeypatch.setattr(Journal, "append", interrupted)
    stopped = CliRunner().invoke(
        app, ["record", "--out", str(tmp_path / "a"), "--threads", "1", "--max-tokens", "4", *arguments]
    )
    assert stopped.exit_code == 130
    assert not (tmp_path / "a").exists()
    part, told = record(tmp_path / "a", *arguments, "--partial")
    assert [*part.dataset] == ["big", "small", "big", "small", "big"]
    assert told["notes"] == ["5 questions are not asked yet: the same command without --partial asks them"]
    np.testing.assert_array_equal(part.maps, whole.maps[:5])
    assert part.lens is not None

    monkeypatch.setattr(Journal, "append", lambda self, answer: (keep(self, answer), kept.append(answer.key)))
    again, told = record(tmp_path / "a", *arguments)
    assert told["notes"] == []
    assert kept == [*whole.key], "nothing was asked twice"
    for name in ("key", "answer", "maps", "lens", "path"):
        np.testing.assert_array_equal(getattr(again, name), getattr(whole, name))
    record(tmp_path / "a", *arguments)
    assert len(kept) == 10


def test_a_better_grader_asks_nothing_again(tmp_path: Path, model: str, sets: list[str]) -> None:
    first, _ = record(tmp_path / "a", "--model", model, *sets)
    assert first.wrong.all()
    (tmp_path / "lenient.py").write_text("def grade(question, answer):\n    return question.question[0] == 'b'\n")
    sys.path.insert(0, str(tmp_path))
    try:
        second, told = record(tmp_path / "a", "--model", model, *sets, "--grader", "lenient:grade")
    finally:
        sys.path.remove(str(tmp_path))
    np.testing.assert_array_equal(second.wrong, second.dataset != "big")
    assert second.metadata["grader"] == "lenient:grade"
    np.testing.assert_array_equal(first.seconds, second.seconds)
    assert [each["wrong"] for each in told["sets"]] == [0, 3]


def test_what_is_left_out_is_reported(tmp_path: Path, model: str) -> None:
    long = json.dumps({"id": "long", "question": "x" * 2000, "answers": ["a"]})
    data = write_set(tmp_path, "set", 2, extra=[long, "no JSON"])
    table, told = record(tmp_path / "a", "--model", model, "--data", data, "--on-bad", "skip")
    assert len(table) == 2
    bad, skipped = told["left_out"]
    assert bad.startswith(f"{data}:4: is not JSON")
    assert skipped.startswith("set/long: ")
    assert "the context holds" in skipped
    assert told["notes"] == []


# -- what is refused ---------------------------------------------------------------------------


def test_bad_arguments_are_refused_before_anything_is_asked(
    tmp_path: Path, model: str, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, here = tmp_path / "a", ["--model", model]
    for arguments, told in (
        ((*here, "--data", str(tmp_path / "bigg.jsonl.gz")), r"Did you mean 'big.jsonl.gz'"),
        ((*here, "--data", "triviaq@x"), r"Did you mean 'triviaqa'"),
        ((*here, *sets, *sets[:2]), "Two data sets are called 'big'"),
        ((*here, *sets, "--on-bad", "skipp"), "Did you mean 'skip'"),
        ((*here, *sets, "--grader", "txt"), "Did you mean 'text'"),
        ((*here, *sets, "--partial"), r"There is no journal '.*a.journal'"),
        ((*here, *sets, "--tau", "0"), "Temperatures must be above 0"),
        (("--model", str(tmp_path / "no.gguf"), *sets), "There is no model"),
    ):
        with pytest.raises(GuardError, match=told):
            record(out, *arguments)
        assert not out.exists()
    with pytest.raises(InputError, match="Cannot write the answers"):
        record(tmp_path / "missing" / "a", *here, *sets)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"guard\[evaluate\]"):
        record(out, *here, *sets)


def test_the_answers_of_another_run_are_not_mixed_in(
    tmp_path: Path, model: str, base_model: str, sets: list[str]
) -> None:
    before, _ = record(tmp_path / "a", "--model", model, *sets)
    content = (tmp_path / "a").read_bytes()
    for changes, told in (
        (["--system", "Be long."], "system"),
        (["--tau", "3"], "temperatures"),
        (["--completion"], "completion"),
    ):
        with pytest.raises(InputError, match=f"another run: .*{told}"):
            record(tmp_path / "a", "--model", model, *sets, *changes)
    with pytest.raises(InputError, match="another run"):
        record(tmp_path / "a", "--model", base_model, *sets)
    assert (tmp_path / "a").read_bytes() == content
    with sqlite3.connect(tmp_path / "a.journal") as journal:
        assert journal.execute("SELECT count(*) FROM answers").fetchone() == (len(before),)
    journal.close()


# -- other engines, the embedded model ---------------------------------------------------------


@pytest.mark.torch
def test_transformers_models_are_recorded_without_the_lens(tmp_path: Path, sets: list[str]) -> None:
    pytest.importorskip("transformers")
    from tiny_models import byte_tokenizer, tiny_model

    folder = tmp_path / "model"
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    table, told = record(tmp_path / "a", "--model", str(folder), "--dtype", "bfloat16", *sets)
    assert table.lens is None
    assert table.metadata["model.quantization"] == "bfloat16"
    assert table.metadata["model.engine"] == "transformers"
    assert table.metadata["versions.torch"]
    assert told["notes"] == [
        "Recorded without the residual stream. Only a GGUF file on llama.cpp has a logit lens here"
    ]


@pytest.mark.model
def test_the_embedded_model_is_recorded_and_described(tmp_path: Path, smollm2_path: Path) -> None:
    """As a user runs it."""
    path = tmp_path / "sums.jsonl"
    path.write_text("\n".join(json.dumps({"question": f"{n} + {n} =", "answers": [str(2 * n)]}) for n in range(1, 4)))
    command = [sys.executable, "-c", "from guard.cli import main; main()", "record", "--threads", "1"]
    command += ["--data", str(path), "--out", str(tmp_path / "a.parquet"), "--max-tokens", "8"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "sums" in told.stdout
    assert "asking: 3 of 3" in told.stderr
    assert f"Answers written to {tmp_path}" in told.stdout.replace("\n", "")
    table = Answers.read(tmp_path / "a.parquet")
    assert (len(table), table.layers) == (3, 30)
    assert table.lens is not None
