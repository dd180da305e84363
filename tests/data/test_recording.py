"""The journal: nothing asked twice, nothing mixed up, nothing lost to a kill."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import END, LAYERS, WIDTH, AnsweringEngine, layers_of, scripted_model

from guard.data.further_calls import FurtherCalls
from guard.data.logit_lens import Lens, path_geometry
from guard.data.prompts import completion_prompt
from guard.data.questions import LabelledResponse, Question, Row, split_questions
from guard.data.recording import Journal, Record, Run, Skipped, find_template_date, of_this_model, record_rows
from guard.data.sqlite_journal import row_key
from guard.errors import EngineError, InputError
from guard.records import Prompt

RUN = Run(model=scripted_model(), capture_point="mlp", system="Be brief.", max_tokens=8)
ROWS: list[tuple[str, Row]] = [
    ("d", Question(id=f"{number}", question=f"question {number}", answers=("yes",))) for number in range(12)
]


def engine() -> AnsweringEngine:
    return AnsweringEngine(lambda prompt, number: (prompt.question[-6:], 0.3))


def asked(engine: AnsweringEngine) -> list[str]:
    return [prompt.question for prompt in engine.asked]


# -- asking and keeping ------------------------------------------------------------------------


def test_what_is_kept_is_what_the_model_said(tmp_path: Path) -> None:
    run = replace(RUN, temperatures=(0.5, 1.0))
    with Journal(tmp_path / "j", run) as journal:
        yielded = list(record_rows(engine(), ROWS, journal, run=run))
    with Journal(tmp_path / "j", run) as journal:
        assert len(journal) == 12
        kept = journal.records([row_key(dataset, row) for dataset, row in ROWS])
    assert [record.key for record in kept] == [f"d/{number}" for number in range(12)]
    for before, after in zip(yielded, kept, strict=True):
        assert isinstance(before, Record)
        assert (after.key, after.dataset, after.question, after.answer) == (
            before.key,
            "d",
            before.question,
            before.answer,
        )
        assert (after.seconds, after.prompt_tokens) == (before.seconds, before.prompt_tokens)
        assert after.prompt_tokens == len(before.question)
        assert (after.residual, after.further.samples) == (None, ())
        for name in ("logprobs", "entropies", "margins"):
            np.testing.assert_array_equal(getattr(after.signals, name), getattr(before.signals, name))
        ours, theirs = after.signals.signature, before.signals.signature
        np.testing.assert_array_equal(ours.maps, theirs.maps)
        np.testing.assert_array_equal(ours.norms, theirs.norms)
        assert ours.maps.shape == (2, 4, LAYERS, LAYERS)
        assert (ours.temperatures, ours.aggregates, ours.tokens) == (
            (0.5, 1.0),
            theirs.aggregates,
            len(before.signals.logprobs),
        )
        question = Prompt.raw(before.question)
        tokens = np.stack([layers_of(question, number) for number in range(ours.tokens)])
        expected = np.stack([tokens[0], tokens[-1], tokens.mean(axis=0)])
        assert ours.activations.shape == (3, LAYERS, WIDTH)
        np.testing.assert_allclose(ours.activations, expected, rtol=1e-3, atol=1e-6)
        np.testing.assert_array_equal(ours.activations, theirs.activations.astype(np.float16))


def test_a_massive_activation_does_not_become_infinite(tmp_path: Path) -> None:
    massive = engine()
    massive.activations_at = lambda prompt, number: layers_of(prompt, number) * np.float32(1e5)
    with Journal(tmp_path / "j", RUN) as journal:
        (given,) = record_rows(massive, ROWS[:1], journal, run=RUN)
        kept = journal.record("d/0")
    assert isinstance(given, Record)
    assert isinstance(kept, Record)
    largest = np.finfo(np.float16).max
    assert np.abs(given.signals.signature.activations).max() > largest
    assert np.isfinite(kept.signals.signature.activations).all()
    assert np.abs(kept.signals.signature.activations).max() == largest


def test_a_journal_resumes_without_asking_twice(tmp_path: Path) -> None:
    first, second, third = engine(), engine(), engine()
    with Journal(tmp_path / "j", RUN) as journal:
        rows = record_rows(first, ROWS, journal, run=RUN)
        for _ in range(5):
            next(rows)
    with Journal(tmp_path / "j", RUN) as journal:
        assert journal.keys() == {f"d/{number}" for number in range(5)}
        assert len(list(record_rows(second, ROWS, journal, run=RUN))) == 7
    with Journal(tmp_path / "j", RUN) as journal:
        assert list(record_rows(third, ROWS, journal, run=RUN)) == []
    assert asked(first) + asked(second) == [f"question {number}" for number in range(12)]
    assert asked(third) == []


def test_a_run_that_resumes_on_another_day_is_asked_with_the_journals_date(tmp_path: Path) -> None:
    dated = replace(RUN, model=scripted_model(template_date="2026-11-25"))
    assert find_template_date(tmp_path / "j") is None
    with Journal(tmp_path / "j", dated):
        pass
    assert find_template_date(tmp_path / "j") == "2026-11-25"
    assert [path.name for path in tmp_path.iterdir()] == ["j"]
    with (
        pytest.raises(InputError, match="template_date"),
        Journal(tmp_path / "j", replace(RUN, model=scripted_model(template_date="2026-11-26"))),
    ):
        pass
    with Journal(tmp_path / "undated", RUN):
        pass
    assert find_template_date(tmp_path / "undated") is None
    (tmp_path / "other").write_text("no journal")
    assert find_template_date(tmp_path / "other") is None


def test_the_same_row_given_twice_is_asked_once(tmp_path: Path) -> None:
    once = engine()
    with Journal(tmp_path / "j", RUN) as journal:
        assert len(list(record_rows(once, [*ROWS, *ROWS], journal, run=RUN))) == 12
    assert len(once.asked) == 12


def test_the_same_id_in_two_data_sets_is_two_questions(tmp_path: Path) -> None:
    twice = engine()
    with Journal(tmp_path / "j", RUN) as journal:
        list(record_rows(twice, [ROWS[0], ("e", ROWS[0][1])], journal, run=RUN))
        assert journal.keys() == {"d/0", "e/0"}


LONG = Question(id="long", question="x" * 500, answers=("yes",))


def test_prompts_that_are_too_long_are_skipped_and_named(tmp_path: Path) -> None:
    rows = [ROWS[0], ("d", LONG), ROWS[1]]
    first, second = engine(), engine()
    with Journal(tmp_path / "j", RUN) as journal:
        records = list(record_rows(first, rows, journal, run=RUN))
        assert [type(record) for record in records] == [Record, Skipped, Record]
        skipped = journal.record("d/long")
        assert isinstance(skipped, Skipped)
        assert list(record_rows(second, rows, journal, run=RUN)) == [skipped]
        assert "500 tokens, the context holds 400" in skipped.reason
        assert journal.record("d/unknown") is None
        assert journal.skipped({"d/0", "d/long"}) == [skipped]
        assert journal.skipped({"d/0"}) == []
        assert [record.key for record in journal.records(["d/1", "d/long", "d/unknown", "d/0"])] == ["d/1", "d/0"]
    assert asked(second) == []


def test_a_run_with_a_larger_context_asks_what_the_one_before_had_to_skip(tmp_path: Path) -> None:
    """Else a larger --context would change nothing, and nothing would say so."""
    rows = [ROWS[0], ("d", LONG)]
    larger = AnsweringEngine(lambda prompt, number: ("yes", 0.1), model=scripted_model(context_tokens=4000))
    with Journal(tmp_path / "j", RUN) as journal:
        list(record_rows(engine(), rows, journal, run=RUN))
        assert journal.answered() == {"d/0"}
        (answered,) = record_rows(larger, rows, journal, run=RUN)
        assert isinstance(answered, Record)
        assert answered.key == "d/long"
        assert journal.skipped({"d/long"}) == []
        assert list(record_rows(larger, rows, journal, run=RUN)) == []


def test_an_answer_without_its_layers_is_skipped(tmp_path: Path) -> None:
    broken = engine()

    def fail(prompt: Prompt, number: int) -> Any:
        return layers_of(prompt, number) if prompt.question == "question 1" else np.zeros((LAYERS, WIDTH), np.float32)

    broken.activations_at = fail
    with Journal(tmp_path / "j", RUN) as journal:
        records = list(record_rows(broken, ROWS[:2], journal, run=RUN))
    assert isinstance(records[0], Skipped)
    assert "all zero" in records[0].reason
    assert isinstance(records[1], Record)


def test_a_failing_engine_ends_the_run_and_loses_nothing(tmp_path: Path) -> None:
    failing = engine()

    def fail(number: int) -> None:
        if len(failing.asked) == 4:
            raise EngineError("no electricity")

    failing.on_feed = fail
    with Journal(tmp_path / "j", RUN) as journal, pytest.raises(EngineError):
        list(record_rows(failing, ROWS, journal, run=RUN))
    with Journal(tmp_path / "j", RUN) as journal:
        assert len(journal) == 3


def test_a_given_response_is_replayed(tmp_path: Path) -> None:
    row = LabelledResponse(id="0", prompt=Prompt.chat("why?"), response="no idea", wrong=True)
    with Journal(tmp_path / "j", RUN) as journal:
        (record,) = record_rows(engine(), [("d", row)], journal, run=RUN)
    assert isinstance(record, Record)
    assert (record.question, record.answer) == ("why?", "no idea")
    assert record.signals.signature.tokens == len("no idea") + 1


# -- the residual stream -----------------------------------------------------------------------


def blocks_of(prompt: Prompt, number: int) -> Any:
    """The residual stream that a scripted engine has beside its MLPs."""
    return layers_of(Prompt.raw(f"{prompt.question} as blocks"), number)


def made_lens() -> Lens:
    rng = np.random.default_rng(0)
    norm, unembedding = rng.normal(size=WIDTH), rng.normal(size=(END + 1, WIDTH))
    return Lens(norm.astype(np.float32), unembedding.astype(np.float32), epsilon=1e-5)


def test_the_residual_stream_is_kept_beside_the_same_signature(tmp_path: Path) -> None:
    both, lens = engine(), made_lens()
    both.activations_at = lambda prompt, number: np.concatenate([layers_of(prompt, number), blocks_of(prompt, number)])
    with Journal(tmp_path / "both", RUN) as journal:
        list(record_rows(both, ROWS, journal, run=RUN, lens=lens))
    with Journal(tmp_path / "both", RUN) as journal, Journal(tmp_path / "plain", RUN) as plain:
        list(record_rows(engine(), ROWS, plain, run=RUN))
        pairs = [(journal.record(key), plain.record(key)) for key in sorted(plain.keys())]
    assert len(pairs) == len(ROWS)
    for ours, theirs in pairs:
        assert isinstance(ours, Record)
        assert isinstance(theirs, Record)
        assert theirs.residual is None
        for name in ("maps", "norms", "activations"):
            mine, other = (getattr(each.signals.signature, name) for each in (ours, theirs))
            np.testing.assert_array_equal(mine, other)
        question, answer = Prompt.raw(ours.question), [*ours.answer.encode(), END]
        states = np.stack([blocks_of(question, number) for number in range(len(answer))])
        assert ours.residual is not None
        np.testing.assert_allclose(ours.residual.lens[0], lens.signals(states[0], answer[0]), rtol=1e-6)
        np.testing.assert_allclose(ours.residual.lens[1], lens.signals(states[-1], answer[-1]), rtol=1e-6)
        np.testing.assert_allclose(ours.residual.path[0], path_geometry(states[-1]), rtol=1e-6)
        np.testing.assert_allclose(ours.residual.path[1], path_geometry(states.mean(axis=0)), rtol=1e-4)


def test_an_answer_whose_residual_stream_is_broken_is_skipped(tmp_path: Path) -> None:
    broken = engine()
    zero = np.zeros((LAYERS, WIDTH), np.float32)
    broken.activations_at = lambda prompt, number: np.concatenate([layers_of(prompt, number), zero])
    with Journal(tmp_path / "j", RUN) as journal:
        (skipped,) = record_rows(broken, ROWS[:1], journal, run=RUN, lens=made_lens())
    assert isinstance(skipped, Skipped)
    assert "residual stream" in skipped.reason


# -- samples -----------------------------------------------------------------------------------


def unsure() -> AnsweringEngine:
    return AnsweringEngine(lambda prompt, number: ("four", 0.9))


def sampled(path: Path, rows: Sequence[tuple[str, Row]], **options: int) -> dict[str, tuple[str, ...]]:
    with Journal(path, RUN) as journal:
        list(record_rows(unsure(), rows, journal, run=RUN, **options))
    with Journal(path, RUN) as journal:
        return {
            record.key: record.further.samples for record in journal.records([row_key(name, row) for name, row in rows])
        }


def test_samples_are_of_the_first_questions_of_each_set(tmp_path: Path) -> None:
    given = LabelledResponse(id="r", prompt=Prompt.chat("why?"), response="so", wrong=True)
    rows = [("r", given), *((name, row) for _, row in ROWS[:4] for name in ("d", "e"))]
    found = sampled(tmp_path / "j", rows, calls=FurtherCalls(samples=3), sampled_rows=2)
    counts = {key: len(samples) for key, samples in found.items()}
    assert {key for key, count in counts.items() if count} == {"d/0", "d/1", "e/0", "e/1"}
    assert set(counts.values()) == {0, 3}
    assert counts["r/r"] == 0, "a given response has no second one"


def test_samples_differ_within_a_question_and_between_questions_but_not_between_runs(tmp_path: Path) -> None:
    first = sampled(tmp_path / "a", ROWS, calls=FurtherCalls(samples=4), sampled_rows=12)
    assert first == sampled(tmp_path / "b", ROWS, calls=FurtherCalls(samples=4), sampled_rows=12)
    assert all(len(set(samples)) == 4 for samples in first.values())
    assert len(set(first.values())) == len(ROWS), "every question has luck of its own"


def test_damaged_samples_are_refused(tmp_path: Path) -> None:
    sampled(tmp_path / "j", ROWS[:2], calls=FurtherCalls(samples=1), sampled_rows=2)
    for stored in ("[1]", '{"a": "b"}', "[", '"text"'):
        with sqlite3.connect(tmp_path / "j") as journal:
            journal.execute("UPDATE answers SET samples = ? WHERE key = 'd/0'", (stored,))
        journal.close()
        with Journal(tmp_path / "j", RUN) as again:
            with pytest.raises(InputError, match="is damaged"):
                again.record("d/0")
            assert isinstance(again.record("d/1"), Record)


# -- base models -------------------------------------------------------------------------------


def test_a_base_model_continues_a_text_to_the_end_of_the_line(tmp_path: Path) -> None:
    run = replace(
        RUN, model=scripted_model(context_tokens=2000), system="", completion=True, stop=("\n",), max_tokens=40
    )
    talkative = AnsweringEngine(lambda prompt, number: ("yes\n\nQuestion: more?", 0.3), model=run.model)
    question = ROWS[0][1]
    assert isinstance(question, Question)
    with Journal(tmp_path / "j", run) as journal:
        (record,) = record_rows(talkative, ROWS[:1], journal, run=run)
    assert isinstance(record, Record)
    assert (record.question, record.answer) == ("question 0", "yes")
    assert asked(talkative) == [completion_prompt(question).text]
    assert record.signals.signature.tokens == len("yes\n")


# -- one journal, one run ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"system": "Be long."}, 'system: "Be brief." there, "Be long." now'),
        ({"max_tokens": 9}, "max_tokens: 8 there, 9 now"),
        ({"capture_point": "block"}, "capture_point"),
        ({"temperatures": (1.0, 2.0)}, "temperatures"),
        ({"stop": ("\n",)}, "stop"),
        ({"completion": True}, "completion: false there, true now"),
        ({"model": scripted_model(weights_sha256="f" * 64)}, "model.weights_sha256"),
        ({"model": scripted_model(quantization="Q8_0", layers=4)}, "model.quantization: .*; model.layers: 3 there"),
    ],
)
def test_the_answers_of_another_run_are_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with Journal(tmp_path / "j", RUN) as journal:
        list(record_rows(engine(), ROWS[:2], journal, run=RUN))
    for _ in range(2):
        with pytest.raises(InputError, match="another run") as caught:
            Journal(tmp_path / "j", replace(RUN, **changes))
        assert caught.match(named)
    with Journal(tmp_path / "j", RUN) as journal:
        assert len(journal) == 2


def test_a_models_name_and_context_do_not_matter(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", RUN):
        pass
    with Journal(tmp_path / "j", replace(RUN, model=scripted_model(name="other", context_tokens=50))) as journal:
        assert len(journal) == 0


def test_two_writers_get_a_clear_error(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", RUN) as journal:
        with pytest.raises(InputError, match="Another run may be using it"):
            Journal(tmp_path / "j", RUN)
        list(record_rows(engine(), ROWS[:1], journal, run=RUN))
    with Journal(tmp_path / "j", RUN) as journal:
        assert len(journal) == 1


def test_files_that_are_no_journals(tmp_path: Path) -> None:
    (tmp_path / "text").write_text('{"question": "?"}\n' * 100)
    (tmp_path / "folder").mkdir()
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE reviews (id)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    for name, told in (
        ("text", "not a database"),
        ("folder", "Cannot use"),
        ("missing/j", "Cannot use"),
        ("other.db", "other content"),
    ):
        with pytest.raises(InputError, match=told):
            Journal(tmp_path / name, RUN)
    assert (tmp_path / "text").read_text().startswith('{"question"')
    with sqlite3.connect(tmp_path / "other.db") as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("reviews",)]
    other.close()
    assert len((tmp_path / "other.db").read_bytes()) == len(before)


def test_damaged_journals_are_read_right_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with Journal(path, RUN) as journal:
        list(record_rows(engine(), ROWS, journal, run=RUN))
    data, rng, refused = path.read_bytes(), random.Random(0), 0
    keys = [row_key(dataset, row) for dataset, row in ROWS]
    for number in range(300):
        damaged = bytearray(data)
        if number % 3 == 0:
            del damaged[rng.randrange(len(damaged)) :]
        for _ in range(rng.choice((1, 20, 400))):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        for leftover in ("j-wal", "j-shm"):
            (tmp_path / leftover).unlink(missing_ok=True)
        try:
            with Journal(path, RUN) as journal:
                journal.keys()
                journal.records(keys)
        except InputError as error:
            refused += 1
            told = str(error)
        else:
            continue
        assert str(path) in told
    assert 50 < refused < 300


@pytest.mark.parametrize("after", range(6, 22))
def test_a_kill_while_the_journal_is_made_leaves_no_half_header(tmp_path: Path, after: int) -> None:
    """The process ends at the n-th statement; the next run must be able to go on."""
    code = (
        "import os, sqlite3, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parents[1] / 'support'), str(Path(__file__).parent)]!r}\n"
        "from guard.data.recording import Journal\n"
        "import test_recording\n"
        "class Dying(sqlite3.Connection):\n"
        "    count = 0\n"
        "    def tick(self):\n"
        "        Dying.count += 1\n"
        f"        if Dying.count == {after}: os._exit(9)\n"
        "    def execute(self, *a):\n"
        "        self.tick(); return super().execute(*a)\n"
        "    def executemany(self, sql, rows):\n"
        "        for row in rows: self.execute(sql, row)\n"
        "connect = sqlite3.connect\n"
        "sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Dying)\n"
        f"Journal({str(tmp_path / 'j')!r}, test_recording.RUN)\n"
        "os._exit(8)\n"
    )
    died = subprocess.run([sys.executable, "-c", code], check=False, timeout=60, stderr=subprocess.PIPE)
    assert died.returncode in (8, 9), died.stderr
    with Journal(tmp_path / "j", RUN) as journal:
        assert len(list(record_rows(engine(), ROWS[:2], journal, run=RUN))) == 2


# -- guard calibrate, killed -------------------------------------------------------------------

#: The command line as it is, but for a line in a file for each question that is put to the model,
#: and on one core: llama.cpp's threads spin, and on a busy machine wait for one another for minutes.
LOGGED = """
import os, sys
from guard.engines.base import BaseEngine
from guard.cli import main
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
log = os.open(sys.argv.pop(1), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
generate = BaseEngine.generate
def logged(self, prompt, **options):
    os.write(log, (prompt.question + "\\n").encode())
    return generate(self, prompt, **options)
BaseEngine.generate = logged
main()
"""
KILLED = "KILLED"


def write_questions(path: Path) -> int:
    """Questions to be answered and answers to be replayed, just enough of each split; returns how many."""
    from guard.calibration.scorer_fit import SPLIT_SHARES

    room = {"fit": 66, "test": 20}
    lines = []
    for number in range(1000):
        text = f"{number} + 1?"
        messages = [{"role": "system", "content": "Sum."}, {"role": "user", "content": text}]
        # The right sums are likelier in the model's eyes than this nonsense.
        response = f"{number + 1}" if number % 2 else "purple violin"
        wrong = {"id": f"{number}", "prompt": messages, "response": response, "wrong": number % 2 == 0}
        open_question = {"id": f"{number}", "question": text, "answers": [f"{number + 1}"]}
        row = Question(id="", question=text, answers=("",))
        (split,) = (name for name, rows in split_questions([row], seed=0, shares=SPLIT_SHARES).items() if rows)
        if room[split]:
            room[split] -= 1
            lines.append(json.dumps(open_question if number % 9 == 0 else wrong))
    assert not any(room.values())
    path.write_text("\n".join(lines) + "\n")
    return len(lines)


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    arguments = ["calibrate", "--data", str(folder / "sums.jsonl"), "--out", str(folder / name / "scorer.json")]
    # What is asked beside a question moves its answer's scores by rounding, and kills change what that is.
    arguments += ["--system", "Sum.", "--max-tokens", "3", "--deterministic"]
    return subprocess.Popen(
        [sys.executable, "-c", LOGGED, str(folder / name / "asked"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output.decode()


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.model
@pytest.mark.slow
def test_calibrate_killed_twenty_times_gives_the_same_scorer(tmp_path: Path, smollm2_path: Path) -> None:
    pytest.importorskip("lightgbm")
    count = write_questions(tmp_path / "sums.jsonl")
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    finish(start(tmp_path, "undisturbed"))
    expected = (tmp_path / "undisturbed" / "scorer.json").read_bytes()
    assert len(lines_of(tmp_path / "undisturbed" / "asked")) == count

    rng, log, kills = random.Random(0), tmp_path / "killed" / "asked", 0
    for number in range(20):
        process = start(tmp_path, "killed")
        if number % 5 == 0:  # anywhere from its start, or somewhere after a few more questions
            time.sleep(rng.uniform(0.0, 3.0))
        else:
            goal = len([line for line in lines_of(log) if line != KILLED]) + rng.randrange(1, 8)
            while process.poll() is None and len([x for x in lines_of(log) if x != KILLED]) < min(goal, count):
                time.sleep(0.01)
            # At the end it is the fitting and the writing that are hit.
            time.sleep(rng.uniform(0.0, 0.3 if goal < count else 1.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        output = process.communicate(timeout=60)[0]
        assert process.returncode in (0, -signal.SIGKILL), output.decode()
        kills += process.returncode == -signal.SIGKILL
        with log.open("a") as marks:
            marks.write(f"{KILLED}\n")
    assert kills >= 15
    finish(start(tmp_path, "killed"))
    same = (tmp_path / "killed" / "scorer.json").read_bytes() == expected  # pytest compares two long files for minutes
    assert same
    assert sorted(os.listdir(tmp_path / "killed")) == sorted(os.listdir(tmp_path / "undisturbed"))

    # A question comes again only where the kill came before its answer was kept.
    told = [line for line in lines_of(log) if line != KILLED]
    assert set(told) == set(lines_of(tmp_path / "undisturbed" / "asked"))
    interrupted = [before for before, line in itertools.pairwise(lines_of(log)) if line == KILLED]
    for line in set(told):
        assert told.count(line) <= 1 + interrupted.count(line)
    with sqlite3.connect(tmp_path / "killed" / "scorer.json.journal") as journal:
        rows = [row for (row,) in journal.execute("SELECT rowid FROM answers ORDER BY rowid")]
    journal.close()
    assert rows == list(range(1, count + 1)), "no answer took the place of another"


@pytest.mark.parametrize(
    "other",
    [
        Question(id="0", question="another question", answers=("yes",)),
        Question(id="0", question="question 0", answers=("yes",), context="A passage."),
        Question(id="0", question="question 0", answers=("yes",), choices=("yes", "no"), answer_index=0),
        LabelledResponse(id="0", prompt=Prompt.chat("question 0"), response="yes", wrong=False),
    ],
    ids=["question", "passage", "choices", "response"],
)
def test_a_journal_is_not_used_for_other_questions_with_the_same_ids(tmp_path: Path, other: Row) -> None:
    """Answers to one file would be graded against the answers that another one accepts."""
    again = engine()
    with Journal(tmp_path / "j", RUN) as journal:
        list(record_rows(engine(), ROWS[:2], journal, run=RUN))
        with pytest.raises(InputError, match=r"has answers to other questions.*1 row .*first is 'd/0'.*--journal"):
            list(record_rows(again, [("d", other), *ROWS[1:]], journal, run=RUN))
    assert asked(again) == []


def test_a_skipped_row_is_not_another_row_with_its_id(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", RUN) as journal:
        list(record_rows(engine(), [("d", Question("0", "x" * 500, ("yes",)))], journal, run=RUN))
        with pytest.raises(InputError, match="has answers to other questions"):
            list(record_rows(engine(), ROWS, journal, run=RUN))


def test_better_answers_and_graders_need_no_second_run(tmp_path: Path) -> None:
    again = engine()
    better = [(name, replace(row, answers=("no", "never"), grader="text")) for name, row in ROWS[:2]]  # type: ignore[call-arg]
    with Journal(tmp_path / "j", RUN) as journal:
        list(record_rows(engine(), ROWS[:2], journal, run=RUN))
        assert list(record_rows(again, better, journal, run=RUN)) == []
    assert asked(again) == []


def test_responses_of_other_models_are_distinguished_from_those_of_the_own_one() -> None:
    """A scorer that learns from another model's answers learns how that one is wrong."""
    own = LabelledResponse("1", Prompt.chat("Hi"), "Ho", wrong=True, model="tiny")
    rows: list[tuple[str, Row]] = [
        ("d", own),
        ("d", replace(own, id="2", model="other")),
        ("d", replace(own, id="3", model=None)),
        ("e", replace(own, id="4", model="other")),
        *ROWS[:1],
    ]
    kept, others = of_this_model(rows, "tiny")
    assert [row.id for _, row in kept] == ["1", "3", "0"]
    assert others == {"other": 2}
