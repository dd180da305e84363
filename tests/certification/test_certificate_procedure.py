"""Certifying the whole procedure: one trial run shows what every threshold's real calls would give."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_trials import LADDER, ONCE, RETRY_ONLY, guard, questions
from scripted import AnsweringEngine, confidence_scorer, scripted_model, tiny_artefact, with_early

from guard.calibration.fresh import fresh_rows
from guard.calibration.splits import SPLIT_SHARES
from guard.certification.trials import TrialAttempt, TrialJournal, TrialRow, attempted_rows, label_trials, run_trials
from guard.data.graders import grade
from guard.data.questions import LabelledResponse, Question, Row, split_questions
from guard.data.recording import Skipped
from guard.data.sets import DataSource
from guard.errors import InputError
from guard.policy.certificate import CertificateError
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds, ceiling, trial_policy
from guard.policy.policy import Policy, parse_policy
from guard.records import Action, Floats, Limits, Prompt
from guard.runtime.guard import Guard
from guard.scoring.provenance import DataSet
from guard.scoring.scorer import Scorer, shipped_scorer

EMBEDDED = pytest.mark.model


def policy(body: str) -> Policy:
    return parse_policy(f"version: 1\nname: test\n{body}")


def settled(of: Policy, threshold: float, fingerprint: str) -> Policy:
    return apply_thresholds(of, {None: CertifiedThreshold(threshold, fingerprint)})


@pytest.mark.parametrize("body", [LADDER, RETRY_ONLY, ONCE])
def test_several_questions_at_once_have_the_attempts_of_one_after_the_other(body: str) -> None:
    certifiable, rows, together = policy(body), questions(24), set[int]()

    def tried(slots: int) -> list[TrialRow | Skipped]:
        trial_guard = guard(trial_policy(certifiable), 7)
        engine = trial_guard.engine
        assert isinstance(engine, AnsweringEngine)
        engine.slots, engine.on_feed = slots, lambda _: together.add(len(engine._answers))
        with TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal:
            found = list(run_trials(trial_guard, rows, journal, route=None))
            assert found == [journal.row(f"set/q{number}") for number in range(24)], "stored in the questions' order"
        return found

    one_by_one = tried(1)
    assert together == {1}
    assert tried(4) == one_by_one
    assert max(together) > 1


def test_an_error_in_a_trial_stops_those_beside_it_and_keeps_the_rows_before(monkeypatch: pytest.MonkeyPatch) -> None:
    certifiable = policy(LADDER)
    trial_guard = guard(trial_policy(certifiable), 7)
    engine = trial_guard.engine
    assert isinstance(engine, AnsweringEngine)
    engine.slots, encode = 4, engine.encode

    def encode_all_but_one(prompt: Prompt) -> list[int]:
        """An error in a pass would end all requests of that pass, not this one alone."""
        if "Question 9?" in prompt.question:
            raise InputError("no such question")
        return encode(prompt)

    monkeypatch.setattr(engine, "encode", encode_all_but_one)
    with TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal:
        with pytest.raises(InputError, match="no such question"):
            list(run_trials(trial_guard, questions(200), journal, route=None))
        assert journal.answered() == {f"set/q{number}" for number in range(9)}
    assert len(engine.asked) < 100, "the others were not asked to the end"


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([LADDER, RETRY_ONLY, ONCE]), st.floats(0.01, 1))
def test_a_trial_run_foretells_what_real_calls_give_at_any_threshold(seed: int, body: str, share: float) -> None:
    certifiable, rows = policy(body), questions(8)
    threshold = max(share * min(ceiling(certifiable.plan()), 1.0) * 0.999, 0.001)
    trial_guard = guard(trial_policy(certifiable), seed)
    fingerprint = trial_guard.fingerprint(certifiable).sha256
    with TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal:
        assert len(list(run_trials(trial_guard, rows, journal, route=None))) == len(rows)
        trials = label_trials(attempted_rows(rows, journal), grade=grade)
    real = guard(settled(certifiable, threshold, fingerprint), seed, lambda case: None)
    accepted = errors = 0
    for _, row in rows:
        assert isinstance(row, Question)
        # As a question is put in calibration and certification.
        outcome = real.ask(row.question, limits=Limits(max_tokens=12))
        if outcome.action in (Action.ACCEPT, Action.FALLBACK):
            accepted, errors = accepted + 1, errors + (outcome.answer != "yes")
    assert trials.at(threshold) == (accepted, errors)


def test_what_counts_where_there_is_no_score() -> None:
    """Unscored answers that on_error accepts count as accepted; failures and fixed texts as abstentions."""

    def no_layers(prompt: Prompt, number: int) -> Floats:
        return np.full((3, 8), np.nan, np.float32)

    for on_error, counted in (("accept", (1, 1)), ("abstain", (0, 0)), ("fallback: {text: Sorry.}", (0, 0))):
        action = on_error if ":" in on_error else f"{on_error}: {{}}"
        certifiable = policy(f"{ONCE}on_error:\n  {action}\n")
        engine = AnsweringEngine(lambda prompt, number: ("no", 0.5))
        engine.activations_at = no_layers
        trial_guard = Guard(engine, confidence_scorer(), trial_policy(certifiable))
        with TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal:
            list(run_trials(trial_guard, questions(1), journal, route=None))
            assert label_trials(attempted_rows(questions(1), journal), grade=grade).at(0.9) == counted


def test_a_callables_answer_counts_as_accepted_whatever_the_threshold() -> None:
    certifiable = policy(LADDER.replace("below: 0.7, times: 2, temperature: 0", "below: 0.1, times: 1"))
    trial_guard = Guard(
        AnsweringEngine(lambda prompt, number: ("no", 0.5)),
        confidence_scorer(),
        trial_policy(certifiable),
        fallbacks={"other": lambda prompt: "yes"},
        handlers={"desk": print},
    )
    assert trial_guard.fingerprint(certifiable).fallbacks == {"other": None}
    with TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal:
        (row,) = run_trials(trial_guard, questions(1), journal, route=None)
        assert isinstance(row, TrialRow)
        assert row.attempts[-1] == TrialAttempt("yes", None, released=True)
        trials = label_trials(attempted_rows(questions(1), journal), grade=grade)
    assert trials.at(0.01) == (1, 0)


def test_a_run_resumes_where_it_was_and_belongs_to_its_fingerprint(tmp_path: Path) -> None:
    certifiable, rows, path = policy(LADDER), questions(6), tmp_path / "j"
    first = guard(trial_policy(certifiable), 1)
    with TrialJournal(path, first.fingerprint(certifiable)) as journal:
        stopped = run_trials(first, rows, journal, route=None)
        next(stopped), next(stopped)
        with pytest.raises(InputError, match="Another run may be using it"):
            TrialJournal(path, first.fingerprint(certifiable))
    again = guard(trial_policy(certifiable), 1)
    with TrialJournal(path, again.fingerprint(certifiable)) as journal:
        assert len(list(run_trials(again, rows, journal, route=None))) == 4
        assert list(run_trials(again, rows, journal, route=None)) == []
        whole = attempted_rows(rows, journal)
    fresh = guard(trial_policy(certifiable), 1)
    with TrialJournal(tmp_path / "other", fresh.fingerprint(certifiable)) as journal:
        list(run_trials(fresh, rows, journal, route=None))
        assert attempted_rows(rows, journal) == whole, "the same as a run in one piece"
    changed = policy(LADDER.replace("times: 2", "times: 1"))
    with pytest.raises(
        InputError, match=r"answers of another run.*the rules, on_error, truncated, empty or the budget differs"
    ):
        TrialJournal(path, guard(trial_policy(changed), 1).fingerprint(changed))


def test_attempts_are_not_used_for_other_questions_with_the_same_ids() -> None:
    certifiable = policy(ONCE)
    trial_guard = guard(trial_policy(certifiable), 0)
    rows = questions(2)
    other = [(name, replace(row, question="Another?")) for name, row in rows]  # type: ignore[call-arg]
    with TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal:
        list(run_trials(trial_guard, rows, journal, route=None))
        with pytest.raises(InputError, match=r"has answers to other questions.*2 rows"):
            list(run_trials(trial_guard, other, journal, route=None))


def test_files_that_are_no_journal(tmp_path: Path) -> None:
    fingerprint = guard(trial_policy(policy(ONCE)), 0).fingerprint(policy(ONCE))
    (tmp_path / "text").write_text("not a database, but long enough to be taken for one" * 100)
    with pytest.raises(InputError, match="Cannot use the journal"):
        TrialJournal(tmp_path / "text", fingerprint)
    with pytest.raises(InputError, match="Cannot use the journal"):
        TrialJournal(tmp_path / "no" / "folder", fingerprint)


def test_a_question_that_is_too_long_is_left_out_and_named(tmp_path: Path) -> None:
    certifiable = policy(ONCE)
    rows: list[tuple[str, Row]] = [*questions(1), ("set", Question(id="long", question="x" * 500, answers=("y",)))]
    trial_guard = guard(trial_policy(certifiable), 0)
    with TrialJournal(tmp_path / "j", trial_guard.fingerprint(certifiable)) as journal:
        _, skipped = run_trials(trial_guard, rows, journal, route=None)
        assert isinstance(skipped, Skipped)
        assert "500 tokens" in skipped.reason
        assert len(attempted_rows(rows, journal)) == 1
        assert journal.row("set/long") == skipped
        assert list(run_trials(trial_guard, rows, journal, route=None)) == [skipped], "a larger context could do it"


def test_given_responses_are_scored_as_they_are_unless_the_policy_asks_again() -> None:
    rows: list[tuple[str, Row]] = [
        ("set", LabelledResponse(id="a", prompt=Prompt.chat("What?"), response="Paris", wrong=True))
    ]
    certifiable = policy(ONCE)
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.2))
    trial_guard = Guard(engine, confidence_scorer(), trial_policy(certifiable))
    with TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal:
        (row,) = run_trials(trial_guard, rows, journal, route=None)
        assert isinstance(row, TrialRow)
        assert row.attempts[0].p_wrong == trial_guard.score(Prompt.chat("What?"), "Paris").p_wrong
        assert label_trials(attempted_rows(rows, journal), grade=grade).at(1.0) == (1, 1)
    again = policy(RETRY_ONLY)
    with (
        TrialJournal(":memory:", guard(trial_policy(again), 0).fingerprint(again)) as journal,
        pytest.raises(InputError, match="'set/a' is a given response, but the policy may ask again"),
    ):
        list(run_trials(guard(trial_policy(again), 0), rows, journal, route=None))


def test_given_responses_are_refused_under_a_policy_that_stops_answers_early() -> None:
    rows: list[tuple[str, Row]] = [
        ("set", LabelledResponse(id="a", prompt=Prompt.chat("What?"), response="Paris", wrong=True))
    ]
    certifiable = policy(f"{ONCE}early: {{above: 0.9, then: abstain}}\n")
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.2))
    trial_guard = Guard(engine, with_early(confidence_scorer()), trial_policy(certifiable))
    with (
        TrialJournal(":memory:", trial_guard.fingerprint(certifiable)) as journal,
        pytest.raises(InputError, match="'set/a' is a given response, but the policy stops answers early"),
    ):
        list(run_trials(trial_guard, rows, journal, route=None))


# -- the command -------------------------------------------------------------------------------


def test_what_the_scorer_was_fitted_on_is_left_out() -> None:
    rows = questions(200)
    known = DataSet(name="set", sha256="a" * 64, rows=200, wrong=80)
    scorer = Scorer(tiny_artefact(scripted_model()).model_copy(update={"data": [known], "seed": 3}))
    fresh = [("other", Question(id=f"o{at}", question=f"Other {at}?", answers=("yes",))) for at in range(50)]
    sources = [
        DataSource(name, tuple(row for _, row in content), (), sha256)
        for name, content, sha256 in (("set", rows, known.sha256), ("other", fresh, "b" * 64))
    ]
    kept, notes = fresh_rows(sources, scorer)
    held_out = split_questions([row for _, row in rows], seed=3, shares=SPLIT_SHARES)["test"]
    assert [row for _, row in kept] == [*held_out, *(row for _, row in fresh)]
    assert 20 < len(held_out) < 60
    assert notes == [f"{200 - len(held_out)} questions of set, which the scorer was fitted or calibrated on"]


def test_the_benchmark_runs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    p_wrong = rng.beta(0.45, 1.0, 2000)
    rows = [{"p_wrong": float(p), "wrong": bool(rng.random() < p)} for p in p_wrong]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, rows)))
    script = Path(__file__).parents[2] / "benchmarks" / "risk_guarantee.py"
    told = subprocess.run(
        [
            *(sys.executable, str(script), "--scores", str(tmp_path / "scores.jsonl"), "--risk", "0.1"),
            *("--labels", "500", "--draws", "5", "--out", str(tmp_path / "out.json")),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2000 answers" in told.stdout
    (result,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert (result["draws"], result["n"]) == (5, 500)
    assert 0 < result["coverage"] <= result["oracle"] + 0.1


COMMAND = [sys.executable, "-c", "from guard.cli import main; main()"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=300, env=environment, check=False
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sums the embedded model mostly gets wrong, in a file that no scorer has seen, one of them twice."""
    file = tmp_path / "sums.jsonl"
    sums = [(a, b) for a in range(2, 9) for b in range(3, 7)]
    rows = [{"id": f"{a}+{b}", "question": f"What is {a} + {b}?", "answers": [str(a + b)]} for a, b in sums]
    rows.append({"id": "again", "question": "what is  2 + 3?", "answers": ["5"]})
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def written(tmp_path: Path, risk: float) -> Path:
    file = tmp_path / "p.yaml"
    rules = f"  - accept: {{max_error_rate: {risk}, confidence: 0.8}}\n  - escalate: {{to: [review]}}\n"
    file.write_text(f"version: 1\nname: sums\ncertificate: c.json\nrules:\n{rules}")
    return file


@EMBEDDED
def test_certify_then_ask_then_change_something(smollm2_path: Path, data: Path, tmp_path: Path) -> None:
    file, out = written(tmp_path, 0.95), tmp_path / "c.json"
    asked = ("--policy", file, "--data", data, "--out", out)
    told = run("certify", *asked, "--risk", "0.95", "--confidence", "0.8", "--json")
    assert told.returncode == 0, told.stderr
    result = json.loads(told.stdout)
    assert (result["certified"], result["n"] + result["grid_rows"]) == (True, 28)
    assert result["left_out"] == ["1 repeated questions: repeats are not fresh evidence"]
    again = json.loads(run("certify", *asked, "--json").stdout)
    assert again == result, "from the journal, without asking anything"
    checked = run("policy", "check", file).stdout
    assert f"is certified for p_wrong < {result['threshold']:.4g}" in checked
    answered = json.loads(run("ask", "What is 4 + 4?", "--policy", file, "--json").stdout)
    p_wrong = answered["p_wrong"]
    assert answered["action"] == ("accept" if p_wrong < result["threshold"] else "escalate")
    assert run("policy", "explain", file, "--score", result["threshold"] - 0.001).stdout.count("accept") >= 1
    written(tmp_path, 0.9)
    refused = run("ask", "What is 4 + 4?", "--policy", file)
    assert refused.returncode == 2
    assert "max_error_rate was 0.95, is 0.9" in " ".join(refused.stderr.split())


@EMBEDDED
def test_not_certifiable_has_its_own_exit_code_and_says_what_would_help(
    smollm2_path: Path, data: Path, tmp_path: Path
) -> None:
    file, out = written(tmp_path, 0.01), tmp_path / "c.json"
    told = run("certify", "--policy", file, "--data", data, "--out", out)
    assert told.returncode == 12, told.stderr
    text = " ".join(told.stdout.split())
    assert "Not certifiable: 28 labels certify no threshold for a risk of 1 %" in text
    assert "labels" in text
    assert not out.exists()
    result = json.loads(run("certify", "--policy", file, "--data", data, "--out", out, "--json").stdout)
    assert result["certified"] is False
    assert result["explanation"] in text


@EMBEDDED
def test_a_killed_run_resumes(smollm2_path: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["certify", "--policy", written(tmp_path, 0.95), "--data", data, "--out", tmp_path / "c.json"]
    process = subprocess.Popen([*COMMAND, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "c.json.journal-wal"
    while not (journal.exists() and journal.stat().st_size > 20_000) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = run(*arguments)
    assert told.returncode == 0, told.stderr
    assert "Certificate written to" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "balanced"], "The policy 'balanced' has no risk guarantee"),
        (
            ["--policy", "certified", "--risk", "0.1"],
            "--risk is 0.1, but the policy 'certified' guarantees max_error_rate",
        ),
        (["--policy", "certified", "--confidence", "0.5"], "leave --confidence out"),
        (["--policy", "certified", "--route", "x"], "has no route 'x'"),
        (["--policy", "certifed"], "Did you mean 'certified'?"),
        (["--policy", "certified", "--on-bad", "skp"], "Did you mean 'skip'?"),
    ],
)
def test_what_cannot_be_certified_is_said_before_anything_is_asked(
    data: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    told = run("certify", *arguments, "--data", data, "--out", tmp_path / "c.json")
    assert (told.returncode, "Traceback" in told.stderr) == (2, False)
    assert words in " ".join(told.stderr.split())


def test_an_output_that_is_something_else_is_not_written_over(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "c.json"
    out.write_text(shipped_scorer().read_text())
    told = run("certify", "--policy", "certified", "--data", data, "--out", out, "--json")
    error: dict[str, Any] = json.loads(told.stdout)["error"]
    assert (told.returncode, error["type"]) == (2, CertificateError.__name__)
    assert out.read_text() == shipped_scorer().read_text()
