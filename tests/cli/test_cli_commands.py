"""The commands that ask a model, in this process, on an engine whose answers are scripted."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from documented_json import differences, documented
from scripted import AnsweringEngine, Script, confidence_scorer, scripted_model
from sums import half_right, sum_rows

import guard.engines
import guard.runtime.guard
from guard.cli import main
from guard.cli.demo_questions import QUESTIONS
from guard.errors import EngineError
from guard.policy.certificate import load_certificates
from guard.records import Prompt
from guard.review.store import Store
from guard.scoring.scorer import load_scorer

MODEL = "scripted.gguf"


class CommandOutput(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def words(self) -> str:
        """Both outputs in one line, whatever the terminal's width."""
        return " ".join(f"{self.out} {self.err}".split())


RunGuard = Callable[..., CommandOutput]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunGuard:
    """Run a command line as its entry point does."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("NO_COLOR", "1")

    def command(*arguments: str | Path, stdin: str = "") -> CommandOutput:
        monkeypatch.setattr(sys, "argv", ["guard", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        return CommandOutput(code, *capsys.readouterr())

    return command


class EngineLoader:
    """Stands for the engines that a command may load; keeps what was asked of it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.engines: list[AnsweringEngine] = []
        self.options: list[dict[str, Any]] = []

    def __call__(self, model: str | Path, **options: Any) -> AnsweringEngine:
        assert str(model) in (MODEL, "smollm2")
        self.options.append(options)
        self.engines.append(AnsweringEngine(self.script, model=scripted_model(name=str(model))))
        return self.engines[-1]

    @property
    def asked(self) -> int:
        return sum(len(engine.asked) for engine in self.engines)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[Script], EngineLoader]:
    def install(script: Script) -> EngineLoader:
        loader = EngineLoader(script)
        for module in (guard.engines, guard.runtime.guard):
            monkeypatch.setattr(module, "load_engine", loader)
        return loader

    return install


@pytest.fixture
def scorer(tmp_path: Path) -> Path:
    file = tmp_path / "scorer.json"
    confidence_scorer().save(file)
    return file


def policy(tmp_path: Path, rules: str, *lines: str) -> Path:
    file = tmp_path / "policy.yaml"
    file.write_text("\n".join(["version: 1", "name: test", f"rules: {rules}", *lines]))
    return file


# -- ask -----------------------------------------------------------------------------------------

HALF = (
    "[{accept: {below: 0.5}}, {retry: {below: 0.7, times: 1, seed: 1}}, "
    "{escalate: {below: 0.95, to: [review], reply: Wait.}}, {abstain: {text: No.}}]"
)


@pytest.mark.parametrize(
    ("p_wrong", "code", "said", "trail"),
    [(0.1, 0, "Paris", "accept"), (0.9, 11, "Wait.", "escalate"), (0.97, 10, "No.", "abstain")],
)
def test_ask_prints_what_the_policy_gives_and_why(
    run: RunGuard, loads: Any, scorer: Path, tmp_path: Path, p_wrong: float, code: int, said: str, trail: str
) -> None:
    loader = loads(lambda prompt, number: ("Paris", p_wrong))
    asked = ("ask", "Capital?", "--model", MODEL, "--scorer", scorer, "--policy", policy(tmp_path, HALF))
    told = run(*asked, "--store", tmp_path / "reviews.db")
    assert (told.code, told.out.splitlines()[0]) == (code, said)
    assert f"p(wrong) {p_wrong:.0%} {trail} rule:" in told.words
    assert f"scores: guard {p_wrong:.3f} (decides), log-probabilities {p_wrong:.3f}" in told.words
    assert ("Paris" in told.out) == (code == 0)
    assert all(engine.closed for engine in loader.engines)
    if code == 11:
        with Store.open(tmp_path / "reviews.db") as store:
            (review,) = store.reviews()
        assert review.answer == "Paris"
        assert f"guard review show {review.decision_id}" in told.words


def test_ask_gives_programs_every_attempt(run: RunGuard, loads: Any, scorer: Path, tmp_path: Path) -> None:
    loads(lambda prompt, number: (("Rome", 0.6), ("Paris", 0.2))[number])
    asked = ("ask", "-", "--model", MODEL, "--scorer", scorer, "--policy", policy(tmp_path, HALF))
    told = run(*asked, "--json", "--max-tokens", "9", "--timeout", "30", stdin="Capital?")
    assert told.code == 0
    outcome = told.json
    assert (outcome["answer"], outcome["action"]) == ("Paris", "accept")
    assert not differences(outcome, documented("guard ask --json"))
    assert [attempt["action"] for attempt in outcome["attempts"]] == ["retry", "accept"]
    assert outcome["p_wrong"] == pytest.approx(0.2, abs=1e-5)


def test_ask_says_of_a_cut_answer_what_to_raise(run: RunGuard, loads: Any, scorer: Path, tmp_path: Path) -> None:
    loads(lambda prompt, number: ("Paris, and not Lyon.", 0.1))
    asked = ("ask", "Capital?", "--model", MODEL, "--scorer", scorer, "--policy", policy(tmp_path, HALF))
    told = run(*asked, "--max-tokens", "6")
    assert told.code == 10
    assert "rule: on_error The answer is cut at its limit of 6 tokens; raise max_tokens" in told.words


def test_ask_says_beside_the_figure_that_it_is_not_calibrated(
    run: RunGuard, loads: Any, scorer: Path, tmp_path: Path
) -> None:
    loads(lambda prompt, number: (("Rome", 0.6), ("Paris", 0.2))[number])
    asked = ("ask", "Capital?", "--model", MODEL, "--scorer", scorer, "--policy")
    retried = run(*asked, policy(tmp_path, HALF))
    assert "p(wrong) 20% (uncalibrated) retry, accept rule:" in retried.words
    assert "uncalibrated: this answer was sampled" in retried.words
    loads(lambda prompt, number: ("Paris", 0.2))
    greedy = run(*asked, policy(tmp_path, HALF))
    assert "p(wrong) 20% accept rule:" in greedy.words


def test_ask_says_that_there_is_no_answer_what_failed_and_that_scores_are_forced(
    run: RunGuard, loads: Any, tmp_path: Path
) -> None:
    def fail(number: int, interrupt: Any) -> None:
        raise EngineError("out of order")

    other = confidence_scorer(scripted_model(weights_sha256="0" * 64))
    other.save(tmp_path / "other.json")
    asked = ("ask", "Capital?", "--model", MODEL, "--scorer", tmp_path / "other.json", "--policy")
    loader = loads(lambda prompt, number: ("Paris", 0.1))
    refused = run(*asked, policy(tmp_path, "[accept]"))
    assert refused.code == 3
    assert "fitted on another model" in refused.words
    forced = run(*asked, policy(tmp_path, "[accept]"), "--force-scorer")
    assert "uncalibrated: this scorer was fitted on another model" in forced.words
    loader.script = lambda prompt, number: (_ for _ in ()).throw(EngineError("out of order"))
    failed = run(*asked, policy(tmp_path, "[accept]", "on_error: abstain"), "--force-scorer")
    assert (failed.code, failed.out.splitlines()[0]) == (10, "(no answer)")
    assert "p(wrong) unknown" in failed.words
    assert "failure: out of order" in failed.words


def test_ask_in_shadow_mode_says_what_would_be_done(run: RunGuard, loads: Any, scorer: Path, tmp_path: Path) -> None:
    loads(lambda prompt, number: ("Paris", 0.97))
    shadow = policy(tmp_path, HALF, "mode: shadow")
    told = run("ask", "Capital?", "--model", MODEL, "--scorer", scorer, "--policy", shadow)
    assert (told.code, told.out.splitlines()[0]) == (0, "Paris")
    assert "accept (would abstain)" in told.words


def test_errors_are_one_sentence_or_json(run: RunGuard, loads: Any, tmp_path: Path) -> None:
    loader = loads(lambda prompt, number: ("Paris", 0.1))
    told = run("ask", "x", "--policy", "balancd")
    assert (told.code, loader.engines) == (2, [])
    assert "Did you mean 'balanced'?" in told.words
    error = run("ask", "x", "--model", MODEL, "--policy", "strict", "--json").json["error"]
    assert (error["type"], "guard calibrate" in error["fix"]) == ("ScorerError", True)


# -- score ---------------------------------------------------------------------------------------


def test_score_scores_given_answers_and_asks_for_others(
    run: RunGuard, loads: Any, scorer: Path, tmp_path: Path
) -> None:
    loads(lambda prompt, number: ("Paris", 0.3))
    rows = [
        {"id": "given", "prompt": "Capital?", "response": "Paris"},
        {"id": "asked", "question": "Capital?"},
        {"prompt": [{"role": "user", "content": "Capital?"}], "response": "Paris"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    told = run("score", file, "--model", MODEL, "--scorer", scorer)
    given, asked, third = map(json.loads, told.out.splitlines())
    assert told.code == 0
    assert (given["id"], asked["id"], third["id"]) == ("given", "asked", f"{file}:3")
    assert given["answer"] == asked["answer"] == "Paris"
    assert given["p_wrong"] == pytest.approx(asked["p_wrong"], abs=1e-6)
    assert third["p_wrong"] == given["p_wrong"]
    assert (given["finish_reason"], asked["finish_reason"]) == (None, "stop")
    assert run("score", "-", "--model", MODEL, "--scorer", scorer, stdin=json.dumps(rows[0])).code == 0


def test_score_continues_after_a_row_that_cannot_be_scored(run: RunGuard, loads: Any, scorer: Path) -> None:
    loads(lambda prompt, number: ("Paris", 0.3))
    rows = [{"id": 1, "prompt": "x" * 500, "response": "y"}, {"id": 2, "prompt": "Capital?"}]
    told = run("score", "-", "--model", MODEL, "--scorer", scorer, stdin="\n".join(map(json.dumps, rows)))
    long, fine = map(json.loads, told.out.splitlines())
    assert told.code == 3
    assert "500 tokens" in long["error"]
    assert "p_wrong" not in long
    assert fine["p_wrong"] == pytest.approx(0.3, abs=1e-5)


def test_score_says_of_an_answer_without_recorded_layers_that_it_has_no_score(
    run: RunGuard, loads: Any, scorer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads(lambda prompt, number: ("Paris", 0.3))
    monkeypatch.setattr("scripted.layers_of", lambda prompt, number: np.full((3, 8), np.nan, np.float32))
    rows = [{"id": 1, "prompt": "Capital?"}, {"id": 2, "prompt": "Capital?", "response": "Paris"}]
    told = run("score", "-", "--model", MODEL, "--scorer", scorer, stdin="\n".join(map(json.dumps, rows)))
    assert told.code == 3
    assert all("error" in row and "p_wrong" not in row for row in map(json.loads, told.out.splitlines()))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ""),
        ("[1]", ""),
        ('{"response": "x"}', "has no prompt"),
        ('{"prompt": 1}', "has no prompt"),
        ('{"prompt": "x", "response": 1}', "has a response that is not a text"),
    ],
)
def test_a_bad_row_has_an_error_and_no_score_and_the_others_are_scored(
    run: RunGuard, loads: Any, scorer: Path, line: str, words: str
) -> None:
    loads(lambda prompt, number: ("Paris", 0.3))
    rows = f'{{"prompt": "fine"}}\n{line}\n{{"prompt": "fine too"}}'
    told = run("score", "-", "--model", MODEL, "--scorer", scorer, stdin=rows)
    first, bad, last = map(json.loads, told.out.splitlines())
    assert told.code == 3
    assert (bad["id"], "p_wrong" in bad) == ("-:2", False)
    assert words in bad["error"]
    assert first["p_wrong"] == pytest.approx(last["p_wrong"]) == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("name", ["library", "libary"])
def test_ask_falls_back_to_a_function_of_the_users_own(
    run: RunGuard, loads: Any, scorer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "books.py").write_text("def answer(prompt):\n    return 'by the book'\n")
    monkeypatch.syspath_prepend(tmp_path)
    loader = loads(lambda prompt, number: ("perhaps", 0.6))
    rules = "[{accept: {below: 0.5}}, {fallback: {below: 0.9, to: library}}, {abstain: {text: No.}}]"
    told = run(
        *("ask", "Why?", "--model", MODEL, "--scorer", scorer, "--policy", policy(tmp_path, rules)),
        *("--fallback", f"{name}=books:answer", "--json"),
    )
    if name == "library":
        assert (told.code, told.json["answer"], told.json["attempts"][-1]["source"]) == (0, "by the book", "library")
    else:
        assert (told.code, loader.asked) == (2, 0)
        assert "library" in told.words


# -- demo ----------------------------------------------------------------------------------------


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch, scorer: Path) -> None:
    """The scripted model's scorer in place of the embedded one's."""
    del scorer
    monkeypatch.setattr(guard.runtime.guard, "load_scorer", lambda _: confidence_scorer(scripted_model(name="smollm2")))


@pytest.mark.usefixtures("shipped")
def test_demo_shows_every_question_and_what_became_of_it(run: RunGuard, loads: Any, tmp_path: Path) -> None:
    scores = (0.05, 0.45, 0.97)
    loader = loads(lambda prompt, number: ("who knows", scores[number % 3]))
    chosen = policy(
        tmp_path,
        "[{accept: {below: 0.3}}, {escalate: {below: 0.6, to: [review], reply: Wait.}}, {abstain: {text: No.}}]",
    )
    picture = tmp_path / "demo.svg"
    told = run("demo", "--policy", chosen, "--store", tmp_path / "reviews.db", "--svg", picture, "--threads", "1")
    assert told.code == 0, told.words
    assert loader.options[0]["threads"] == 1
    asked = [each.question for each in QUESTIONS]
    assert all(question.split()[-1] in told.words for question in asked)
    assert "who knows" in told.words
    assert {"accept", "escalate", "abstain"} <= set(told.words.replace(",", " ").split())
    assert "guard review list" in told.words
    assert picture.read_text().startswith("<svg")
    rows = run("demo", "--policy", chosen, "--store", tmp_path / "reviews.db", "--json").json
    assert [row["question"] for row in rows] == asked
    assert [row["right"] for row in rows] == [False] * len(asked)
    held = [row["answer"] for row in rows if row["action"] != "accept"]
    assert set(held) == {"Wait.", "No."}


# -- calibrate -----------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "sums.jsonl"
    file.write_text(sum_rows(range(240)))
    return file


def test_calibrate_fits_says_how_well_and_resumes_where_it_was(
    run: RunGuard, loads: Any, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lightgbm")
    loader = loads(half_right)
    out = tmp_path / "fitted.json"
    asked = ("calibrate", "--data", data, "--out", out, "--model", MODEL)
    told = run(*asked)
    assert told.code == 0, told.words
    assert "Held-out questions" in told.words
    assert "AUROC" in told.words
    for score in ("guard", "ilis", "log-probabilities"):
        assert f"│ {score} │" in told.words or f"no score '{score}' in the scorer" in told.words
    assert f"Scorer written to {out}" in told.words
    assert loader.asked == 240
    fitted = load_scorer(out)
    assert fitted.artefact.data[0].rows == 240
    again = run(*asked, "--json")
    assert (again.code, loader.asked) == (0, 240), "from the journal, without asking anything"
    assert again.json["splits"] == fitted.artefact.split_sizes
    assert again.json["truncated"] == 0
    assert not differences(again.json, documented("guard calibrate --json"))
    short = ("--max-tokens", "2", "--journal", tmp_path / "short.journal")
    words, truncated = run(*asked, *short).words, run(*asked, *short, "--json").json["truncated"]
    assert 0 < truncated <= 240
    assert f"{truncated} of 240 answers are truncated at their token limit" in words
    assert "truncated answers of the test split:" in words
    answered = run("ask", "What is 3 + 1?", "--model", MODEL, "--scorer", out, "--policy", "shadow", "--json")
    assert answered.json["p_wrong"] is not None


def test_calibrate_names_what_it_left_out(run: RunGuard, loads: Any, tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    loads(half_right)
    file = tmp_path / "bad.jsonl"
    long = json.dumps({"id": "long", "question": "What is 1 + 1? " + "x" * 500, "answers": ["2"]})
    file.write_text(f"{sum_rows(range(240))}\n{{\n{long}")
    asked = ("calibrate", "--data", file, "--out", tmp_path / "s.json", "--model", MODEL)
    stopped = run(*asked)
    assert stopped.code == 2
    assert not (tmp_path / "s.json").exists()
    told = run(*asked, "--on-bad", "skip")
    assert told.code == 0, told.words
    assert f"left out {file}:241" in told.words
    assert "left out bad/long" in told.words
    result = run(*asked, "--on-bad", "skip", "--json").json
    assert [row["line"] for row in result["bad_rows"]] == [241]
    assert [row["key"] for row in result["skipped"]] == ["bad/long"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--without", "maps"], "Did you mean 'map'?"),
        (["--capture-point", "mpl"], "Did you mean 'mlp'?"),
        (["--grader", "numbr"], "number"),
        (["--on-bad", "skp"], "Did you mean 'skip'?"),
    ],
)
def test_calibrate_refuses_options_before_a_model_is_loaded(
    run: RunGuard, loads: Any, data: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    loader = loads(half_right)
    told = run("calibrate", "--data", data, "--out", tmp_path / "s.json", "--model", MODEL, *arguments)
    assert (told.code, loader.engines) == (2, [])
    assert words in told.words


# -- certify -------------------------------------------------------------------------------------

GUARANTEE = "[{accept: {max_error_rate: 0.2, confidence: 0.9}}, {abstain: {text: No.}}]"


def certifying(scorer: Path, data: Path, tmp_path: Path, rules: str, *lines: str) -> list[str | Path]:
    chosen = policy(tmp_path, rules, *lines)
    return [
        "certify",
        "--model",
        MODEL,
        "--scorer",
        scorer,
        "--data",
        data,
        "--policy",
        chosen,
        "--out",
        tmp_path / "c.json",
    ]


def test_certify_writes_a_certificate_that_ask_goes_by(
    run: RunGuard, loads: Any, scorer: Path, data: Path, tmp_path: Path
) -> None:
    loader = loads(half_right)
    asked = certifying(scorer, data, tmp_path, GUARANTEE)
    told = run(*asked)
    assert told.code == 0, told.words
    assert "at most 20 % are wrong, with confidence 90 %" in told.words
    assert f"Certificate written to {tmp_path / 'c.json'}" in told.words
    certificate = load_certificates(tmp_path / "c.json").by_route[None]
    assert (certificate.n + certificate.grid_rows, loader.asked) == (240, 240)
    again = run(*asked, "--risk", "0.2", "--confidence", "0.9", "--json")
    assert (again.json["threshold"], loader.asked) == (certificate.threshold, 240), "from the journal"
    assert not differences(again.json, documented("guard certify --json"))
    question = next(
        n for n in range(240) if abs(half_right(Prompt.raw(f"x x {n} "), 0)[1] - certificate.threshold) > 0.1
    )
    answered = run(
        *("ask", f"What is {question} + 1?", "--model", MODEL, "--scorer", scorer, "--json"),
        *("--policy", tmp_path / "policy.yaml", "--certificate", tmp_path / "c.json"),
    )
    wanted = "accept" if answered.json["p_wrong"] < certificate.threshold else "abstain"
    assert answered.json["action"] == wanted


def test_certify_keeps_the_other_routes_of_its_file(
    run: RunGuard, loads: Any, scorer: Path, data: Path, tmp_path: Path
) -> None:
    loads(half_right)
    routes = f"routes: {{strict: {{rules: {GUARANTEE.replace('0.2', '0.25')}}}}}"
    assert run(*certifying(scorer, data, tmp_path, GUARANTEE, routes)).code == 0
    journal = tmp_path / "strict.journal"
    told = run(*certifying(scorer, data, tmp_path, GUARANTEE, routes), "--route", "strict", "--journal", journal)
    assert told.code == 0, told.words
    held = load_certificates(tmp_path / "c.json").by_route
    assert {route: each.risk for route, each in held.items()} == {None: 0.2, "strict": 0.25}


def test_certify_says_where_no_threshold_keeps_the_risk_guarantee(
    run: RunGuard, loads: Any, scorer: Path, data: Path, tmp_path: Path
) -> None:
    loads(half_right)
    asked = certifying(scorer, data, tmp_path, GUARANTEE.replace("0.2", "0.001"))
    told = run(*asked)
    assert told.code == 12
    assert "Not certifiable" in told.words
    assert not (tmp_path / "c.json").exists()
    result = run(*asked, "--json")
    assert (result.code, result.json["certified"]) == (12, False)
    assert not differences(result.json, documented("guard certify --json", 1))


def test_certify_counts_a_question_once_and_leaves_out_what_the_scorer_has_seen(
    run: RunGuard, loads: Any, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("lightgbm")
    loader = loads(half_right)
    fitted = tmp_path / "fitted.json"
    assert run("calibrate", "--data", data, "--out", fitted, "--model", MODEL).code == 0
    asked_before = loader.asked
    fresh = tmp_path / "fresh.jsonl"
    more = [{"id": f"f{n}", "question": f"What is {n} + 1?", "answers": [str(n + 1)]} for n in range(1000, 1100)]
    fresh.write_text("\n".join(map(json.dumps, [*more, {**more[0], "id": "again", "question": "what is 1000  + 1?"}])))
    told = run(*certifying(fitted, data, tmp_path, GUARANTEE), "--data", fresh, "--json")
    assert told.code in (0, 12), told.words
    left_out = " ".join(told.json["left_out"])
    assert "which the scorer was fitted or calibrated on" in left_out
    assert "1 repeated questions" in left_out
    held_out = load_scorer(fitted).artefact.split_sizes["test"]
    assert loader.asked - asked_before == held_out + 100


@pytest.mark.parametrize(
    ("rules", "arguments", "words"),
    [
        ("[accept]", [], "has no risk guarantee"),
        (GUARANTEE, ["--risk", "0.1"], "--risk is 0.1, but the policy 'test' guarantees"),
        (GUARANTEE, ["--confidence", "0.5"], "leave --confidence out"),
        (GUARANTEE, ["--route", "x"], "has no route 'x'"),
    ],
)
def test_what_cannot_be_certified_is_said_before_a_model_is_loaded(
    run: RunGuard, loads: Any, scorer: Path, data: Path, tmp_path: Path, rules: str, arguments: list[str], words: str
) -> None:
    loader = loads(half_right)
    told = run(*certifying(scorer, data, tmp_path, rules), *arguments)
    assert (told.code, loader.engines) == (2, [])
    assert words in told.words


def test_certify_hands_no_case_to_anybody_and_needs_questions(
    run: RunGuard, loads: Any, scorer: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUARD_STORE", str(tmp_path / "reviews.db"))
    loads(half_right)
    rules = GUARANTEE.replace("{abstain: {text: No.}}", "{escalate: {to: [review, desk]}}")
    assert run(*certifying(scorer, data, tmp_path, rules)).code in (0, 12)
    assert not (tmp_path / "reviews.db").exists()
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"id": "long", "question": "x" * 500, "answers": ["y"]}))
    told = run(*certifying(scorer, long, tmp_path, rules), "--journal", tmp_path / "other.journal")
    assert told.code == 2
    assert "There are no questions to certify on" in told.words
    assert "long/long" in told.words
