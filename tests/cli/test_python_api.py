"""`guard.calibrate`, `record`, `certify` and `evaluate` do what the commands do: same files, same journals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model
from sums import half_right, sum_rows
from tiny_gguf import write_tiny_gguf
from typer.testing import CliRunner

import guard
import guard.engines
import guard.runtime.guard
from guard.cli import app
from guard.data.answers import Answers
from guard.errors import GuardError, InputError

MODEL = "scripted.gguf"


class InterruptedByCallerError(Exception):
    """What a caller's own callback raises."""


def interrupt_after(count: int) -> Callable[[guard.Progress], None]:
    def callback(progress: guard.Progress) -> None:
        if progress.done == count:
            raise InterruptedByCallerError

    return callback


def command(*arguments: str | Path) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    if isinstance(done.exception, GuardError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AnsweringEngine]:
    """The engines that were loaded, scripted ones."""
    engines: list[AnsweringEngine] = []

    def load(model: str | Path, **_: Any) -> AnsweringEngine:
        engines.append(AnsweringEngine(half_right, model=scripted_model(name=str(model))))
        return engines[-1]

    for module in (guard.engines, guard.runtime.guard):
        monkeypatch.setattr(module, "load_engine", load)
    return engines


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    file.write_text(sum_rows(range(240)))
    return file


def test_calibrate_writes_the_commands_file_after_an_interruption_too(
    asked: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lightgbm")
    command("calibrate", "--data", sums, "--out", tmp_path / "a.json", "--model", MODEL)
    with pytest.raises(InterruptedByCallerError):
        guard.calibrate(sums, out=tmp_path / "b.json", model=MODEL, progress=interrupt_after(100))
    seen: list[guard.Progress] = []
    result = guard.calibrate(sums, out=tmp_path / "b.json", model=MODEL, progress=seen.append)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert [len(engine.asked) for engine in asked] == [240, 100, 140]
    assert seen == [guard.Progress("asking", done, 240) for done in range(100, 241)]
    assert result.fitted.metrics["guard"].n == result.fitted.scorer.artefact.split_sizes["test"]
    assert (result.bad_rows, result.skipped, result.other_models, result.truncated) == ((), (), {}, 0)


def test_recorded_answers_give_the_scorer_of_the_same_questions_asked_by_calibrate(
    asked: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lightgbm")
    records = tmp_path / "answers.parquet"
    more = tmp_path / "more.jsonl"
    more.write_text(sums.read_text().replace("1?", "1 then?").replace('"id": "q', '"id": "m'))
    guard.record([sums, more], out=records, model=MODEL, lens=False, journal=tmp_path / "asked.journal")
    guard.calibrate([sums, more], out=tmp_path / "a.json", model=MODEL, journal=tmp_path / "asked.journal")
    engines = len(asked)
    command("calibrate", "--records", records, "--out", tmp_path / "b.json")
    result = guard.calibrate_records(records, out=tmp_path / "c.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    assert len(asked) == engines, "no model was loaded"
    assert [each.name for each in result.fitted.scorer.artefact.data] == ["sums", "more"]


def test_recorded_answers_of_unknown_files_are_refused_since_certificates_must_know_fresh_questions(
    asked: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    recorded = guard.record(sums, out=tmp_path / "answers.parquet", model=MODEL, lens=False).answers
    metadata = {name: value for name, value in recorded.metadata.items() if name != "data.sums.sha256"}
    Answers.whole(replace(recorded.columns, metadata=metadata)).write(tmp_path / "nameless.parquet")
    with pytest.raises(InputError, match="do not state which file 'sums' was"):
        guard.calibrate_records(tmp_path / "nameless.parquet", out=tmp_path / "scorer.json")


def test_certify_writes_the_commands_file_after_an_interruption_too(
    asked: list[AnsweringEngine], sums: Path, tmp_path: Path
) -> None:
    policy, scorer = tmp_path / "policy.yaml", tmp_path / "scorer.json"
    confidence_scorer().save(scorer)
    rules = "[{accept: {max_error_rate: 0.2, confidence: 0.9}}, {abstain: {text: No.}}]"
    policy.write_text(f"version: 1\nname: test\nrules: {rules}\n")
    options: dict[str, Any] = {"model": MODEL, "scorer": scorer, "policy": policy}
    command(
        *("certify", "--data", sums, "--out", tmp_path / "a.json", "--model", MODEL),
        *("--scorer", scorer, "--policy", policy),
    )
    with pytest.raises(InterruptedByCallerError):
        guard.certify(sums, out=tmp_path / "b.json", **options, progress=interrupt_after(100))
    result = guard.certify(sums, out=tmp_path / "b.json", **options)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert [len(engine.asked) for engine in asked] == [240, 100, 140]
    assert result.certificate is not None
    assert result.base_rate is not None
    assert result.explain() == f"{result.certificate.explain()} {result.base_rate.explain()}"
    policy.write_text(policy.read_text().replace("0.2", "0.001"))
    refused = guard.certify(sums, out=tmp_path / "c.json", **options)
    assert refused.certificate is None
    assert "Not certifiable" in refused.explain()
    assert not (tmp_path / "c.json").exists()


def test_certify_counts_the_answers_of_a_function_as_the_command_does(
    asked: list[AnsweringEngine], sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "books_of_sums.py").write_text(
        "def answer(prompt):\n    return str(int(prompt.question.split()[2]) + 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    policy, scorer = tmp_path / "policy.yaml", tmp_path / "scorer.json"
    confidence_scorer().save(scorer)
    fallback = "{fallback: {below: 0.99, to: books}}"
    rules = f"[{{accept: {{max_error_rate: 0.2, confidence: 0.9}}}}, {fallback}, {{abstain: {{text: No.}}}}]"
    policy.write_text(f"version: 1\nname: test\nrules: {rules}\n")
    command(
        *("certify", "--data", sums, "--out", tmp_path / "a.json", "--model", MODEL, "--scorer", scorer),
        *("--policy", policy, "--fallback", "books=books_of_sums:answer"),
    )
    result = guard.certify(
        sums,
        out=tmp_path / "b.json",
        model=MODEL,
        scorer=scorer,
        policy=policy,
        fallbacks={"books": lambda prompt: str(int(prompt.question.split()[2]) + 1)},
    )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert result.certificate is not None
    assert result.certificate.coverage == 1.0, "a function's answer is always given"


class StoppedClock(datetime):
    """Files hold the date at which they were written."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> datetime:
        return datetime(2026, 11, 25, tzinfo=tz)


def test_record_writes_the_commands_file_from_the_same_journal(
    sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers take different times in two runs, so both write from one journal: the function begins it."""
    monkeypatch.setattr("guard.data.answers.datetime", StoppedClock)
    pytest.importorskip("llama_cpp")
    pytest.importorskip("pyarrow")
    model = write_tiny_gguf(tmp_path / "tiny.gguf")
    journal = tmp_path / "j"
    options: dict[str, Any] = {"limit": 8, "max_tokens": 4, "engine_options": {"threads": 1}, "journal": journal}
    with pytest.raises(InterruptedByCallerError):
        guard.record(sums, out=tmp_path / "b", model=model, **options, progress=interrupt_after(3))
    told = command(
        *("record", "--data", sums, "--out", tmp_path / "a", "--model", model, "--limit", "8", "--json"),
        *("--max-tokens", "4", "--threads", "1", "--journal", journal),
    )
    result = guard.record(sums, out=tmp_path / "b", model=model, **options)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert json.loads(told)["n"] == len(result.answers) == 8
    assert result.answers.key.tolist() == Answers.read(tmp_path / "a").key.tolist()


def test_a_grader_may_be_a_function(asked: list[AnsweringEngine], sums: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    with pytest.raises(InputError, match=r"The grader 'test_python_api:.*<lambda>' must return True or False"):
        guard.calibrate(sums, out=tmp_path / "a.json", model=MODEL, grader=lambda question, answer: 7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"without": ("mapp",)}, "Did you mean 'map'"),
        ({"capture_point": "mpl"}, "Did you mean 'mlp'"),
        ({"on_bad": "skp"}, "Did you mean 'skip'"),
        ({"grader": "numbr"}, "number"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_options_are_refused_before_a_model_is_loaded(
    asked: list[AnsweringEngine], sums: Path, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    pytest.importorskip("lightgbm")
    with pytest.raises(InputError, match=words):
        guard.calibrate(sums, out=tmp_path / "a.json", model=MODEL, **options)
    assert asked == []


def test_no_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no data set"):
        guard.record([], out=tmp_path / "a")
