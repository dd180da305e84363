"""The command line as a user types it: real processes, the embedded model, the shipped scorer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "from guard.cli import main; main()"]
EMBEDDED = pytest.mark.model


def guard(*arguments: str, stdin: str = "", store: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    if store is not None:
        environment["GUARD_STORE"] = str(store)
    return subprocess.run(
        [*COMMAND, *arguments], input=stdin, capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "reviews.db"


def test_help_names_every_command() -> None:
    told = guard("--help")
    assert told.returncode == 0
    for command in ("ask", "demo", "calibrate", "score", "policy", "review", "doctor"):
        assert command in told.stdout


def test_version_is_that_of_the_installed_distribution() -> None:
    assert guard("--version").stdout == f"guard {version('ilis-guard')}\n"


def test_help_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "llama_cpp", "lightgbm", "sklearn", "sqlalchemy", "alembic", "pydantic", "numpy"]
    program = (
        "import sys; sys.argv = ['guard', '--help']\n"
        "from guard.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        f"print(sorted(set({heavy}) & set(sys.modules)), file=sys.stderr)"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert told.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ask", "x", "--model", "no-such.gguf", "--scorer", "x.json"], 3, "x.json"),
        (["ask", "x", "--model", "no-such.gguf"], 4, "There is no model"),
        (["ask", "x", "--policy", "balancd"], 2, "Did you mean 'balanced'?"),
        (["score", "no-such-file.jsonl"], 2, "no-such-file.jsonl"),
        (["calibrate", "--data", "no-such.jsonl", "--out", "s.json"], 2, "no-such.jsonl"),
        (["calibrate", "--data", "x.jsonl", "--out", "no/such/folder/s.json"], 2, "folder that exists"),
        (["calibrate", "--data", "x.jsonl", "--out", "s.json", "--without", "maps"], 2, "Did you mean 'map'?"),
    ],
)
def test_bad_input_gets_one_sentence_and_its_code(arguments: list[str], code: int, words: str) -> None:
    told = guard(*arguments)
    assert (told.returncode, "Traceback" in told.stderr) == (code, False)
    assert words in " ".join(told.stderr.split())


def test_errors_are_json_where_json_was_asked_for() -> None:
    told = guard("ask", "x", "--policy", "balancd", "--json")
    error = json.loads(told.stdout)["error"]
    assert error["type"] == "PolicyError"
    assert "balanced" in error["fix"]


@EMBEDDED
def test_ask_answers_and_says_why(smollm2_path: Path, store: Path) -> None:
    told = guard("ask", "What is the capital of France?", store=store)
    assert told.returncode == 0, told.stderr
    assert "Paris" in told.stdout
    assert "p(wrong)" in told.stdout


@EMBEDDED
def test_ask_escalates_into_the_queue_and_a_person_decides(smollm2_path: Path, store: Path, tmp_path: Path) -> None:
    policy = tmp_path / "ask-a-person.yaml"
    policy.write_text("version: 1\nname: person\nrules:\n  - escalate: {to: [review], reply: Please wait.}\n")
    told = guard("ask", "What is the capital of Chad?", "--policy", str(policy), "--json", store=store)
    outcome: dict[str, Any] = json.loads(told.stdout)
    assert (told.returncode, outcome["action"], outcome["answer"]) == (11, "escalate", "Please wait.")
    (waiting,) = json.loads(guard("review", "list", "--json", store=store).stdout)["reviews"]
    assert waiting["decision_id"] == outcome["decision_id"]
    edited = guard("review", "edit", waiting["id"], "--answer", "N'Djamena", "--draft", "wrong", "--json", store=store)
    assert json.loads(edited.stdout)["final_answer"] == "N'Djamena"
    assert json.loads(guard("review", "list", "--json", store=store).stdout)["reviews"] == []


@EMBEDDED
def test_ask_abstains_with_its_exit_code(smollm2_path: Path, tmp_path: Path) -> None:
    policy = tmp_path / "silent.yaml"
    policy.write_text("version: 1\nname: silent\nrules:\n  - abstain: {text: No.}\n")
    told = guard("ask", "What is 2 + 2?", "--policy", str(policy))
    assert (told.returncode, told.stdout.splitlines()[0]) == (10, "No.")


@EMBEDDED
@pytest.mark.parametrize("command", ["ask", "score", "record", "calibrate", "certify"])
def test_every_command_that_loads_a_model_takes_a_dtype(command: str, smollm2_path: Path, tmp_path: Path) -> None:
    """And hands it on: llama.cpp, which has none, says so."""
    del smollm2_path
    pytest.importorskip("pyarrow")
    rows = tmp_path / "rows.jsonl"
    row = '{"id": "%d", "question": "What is %d + 1?", "answers": ["Paris"], "prompt": "Hi"}\n'
    rows.write_text("".join(row % (number, number) for number in range(150)))  # as many as calibrate asks for
    asked = {"ask": ["Hi"], "score": [str(rows)]}.get(command, ["--data", str(rows), "--out", str(tmp_path / "out")])
    done = guard(command, *asked, "--dtype", "int4")
    assert done.returncode == 2, done.stderr
    assert "cannot be loaded as int4" in done.stderr


def test_score_reads_lines_and_writes_lines(smollm2_path: Path) -> None:
    rows = [
        {"id": "given", "prompt": "What is the capital of France?", "response": "The capital of France is Paris."},
        {"id": "asked", "question": "What is the capital of France?"},
    ]
    told = guard("score", "-", stdin="\n".join(map(json.dumps, rows)))
    given, asked = map(json.loads, told.stdout.splitlines())
    assert told.returncode == 0, told.stderr
    assert (given["id"], asked["id"]) == ("given", "asked")
    # The model says just that sentence by itself, so replaying it must score the same.
    assert asked["answer"] == given["answer"]
    assert given["p_wrong"] == pytest.approx(asked["p_wrong"], abs=1e-6)


@EMBEDDED
def test_doctor_finds_the_embedded_model_well(smollm2_path: Path, store: Path) -> None:
    told = guard("doctor", "--json", store=store)
    checks = {check["name"]: check for check in json.loads(told.stdout)["checks"]}
    assert told.returncode == 0, told.stdout
    assert checks["scorer"]["ok"] is True
    assert checks["answer"]["ok"] is True


@EMBEDDED
@pytest.mark.slow
def test_demo_shows_every_action_from_real_scores(smollm2_path: Path, store: Path) -> None:
    told = guard("demo", "--json", store=store)
    assert told.returncode == 0, told.stderr
    outcomes = json.loads(told.stdout)
    done = {outcome["action"] for outcome in outcomes}
    done |= {attempt["action"] for outcome in outcomes for attempt in outcome["attempts"]}
    assert done == {"accept", "retry", "fallback", "escalate", "abstain"}
    assert all(0 < attempt["p_wrong"] < 1 for outcome in outcomes for attempt in outcome["attempts"])
    assert len({attempt["p_wrong"] for outcome in outcomes for attempt in outcome["attempts"]}) >= len(outcomes)


def test_interrupt_ends_with_130() -> None:
    # A job that was started in the background ignores SIGINT, and its children would too.
    process = subprocess.Popen(
        [*COMMAND, "score", "-"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
