"""``guard policy check``: what a policy needs of its scorer, and whether a given scorer has it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model, with_early, with_spans
from typer.testing import CliRunner, Result

from guard.cli.policy import app
from guard.errors import GuardError, ScorerError
from guard.policy.policy import load_policy
from guard.runtime.guard import Guard
from guard.runtime.sources import lacking
from guard.scoring.scorer import Scorer, load_scorer

RULES = "version: 1\nname: facts\nrules:\n  - accept: {below: 0.9}\n  - abstain\n"
SECTIONS = {
    "spans": "spans: {above: 0.6, then: mark}\n",
    "early": "early: {above: 0.97, then: abstain}\n",
    "out_of_distribution": "out_of_distribution: {above: 0.99, then: escalate}\n",
    "score: ilis": "score: ilis\n",
}


def check(*arguments: str | Path) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["check", *map(str, arguments)])


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    return tmp_path / "facts.yaml"


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("spans", "needs a scorer with a model of spans: guard calibrate --spans"),
        ("early", "needs a scorer with early stages: guard calibrate --early"),
        ("out_of_distribution", "needs a scorer with an out-of-distribution detector"),
        ("score: ilis", "needs a scorer with the score 'ilis'"),
    ],
)
def test_each_part_of_the_scorer_that_a_policy_needs_is_said(part: str, said: str, facts: Path) -> None:
    facts.write_text(RULES + SECTIONS[part])
    done = check(facts)
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == [f"{facts}: no mistakes (facts, 2 rules)", f"{facts}: {said}"]
    assert json.loads(check(facts, "--json").stdout)[0]["needs"]["scorer"] == [part]


def test_a_route_that_needs_a_part_counts(facts: Path) -> None:
    facts.write_text(f"{RULES}routes:\n  careful:\n    {SECTIONS['spans']}")
    assert json.loads(check(facts, "--json").stdout)[0]["needs"]["scorer"] == ["spans"]


def test_nothing_is_said_of_a_scorer_that_any_scorer_would_be(facts: Path) -> None:
    facts.write_text(RULES)
    assert check(facts).stdout.splitlines() == [f"{facts}: no mistakes (facts, 2 rules)"]


def test_a_policy_that_needs_a_certificate_is_not_called_fine() -> None:
    first, second, third = check("ilis").stdout.splitlines()
    assert first == "ilis: no mistakes (ilis, 2 rules)"
    assert "needs a certificate" in second
    assert third == "ilis: needs a scorer with the score 'ilis'"


def scorers() -> dict[str, Scorer]:
    plain = confidence_scorer()
    return {
        "plain": plain,
        "early": with_early(plain),
        "spans": with_spans(plain),
        "both": with_early(with_spans(plain)),
    }


@pytest.mark.parametrize("section", sorted(SECTIONS))
@pytest.mark.parametrize("named", ["plain", "early", "spans", "both"])
def test_the_check_refuses_what_a_guard_would(section: str, named: str, facts: Path, tmp_path: Path) -> None:
    """A policy and a scorer that pass are not refused when a guard is built, and the other way round."""
    pytest.importorskip("sentencex")
    facts.write_text(RULES + SECTIONS[section])
    path = tmp_path / "scorer.json"
    scorers()[named].save(path)
    refusal: GuardError | None = None
    try:
        engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.1), model=scripted_model())
        Guard(engine, load_scorer(path), load_policy(str(facts)))
    except GuardError as error:
        refusal = error
    done = check(facts, "--scorer", path)
    assert done.exit_code == (0 if refusal is None else ScorerError.exit_code)
    assert ("has every part that the policy needs" in done.stdout) is (refusal is None)
    if refusal is not None:
        assert refusal.fix in " ".join(done.stdout.split())


def test_every_missing_part_is_said_at_once(facts: Path, tmp_path: Path) -> None:
    """Building a guard stops at the first."""
    pytest.importorskip("sentencex")
    facts.write_text(RULES + SECTIONS["spans"] + SECTIONS["early"])
    path = tmp_path / "scorer.json"
    confidence_scorer().save(path)
    done = check(facts, "strict", "--scorer", path, "--json")
    assert done.exit_code == ScorerError.exit_code
    ours, strict = json.loads(done.stdout)
    assert ours["valid"]
    assert ["spans" in ours["scorer"]["lacks"][0], "early" in ours["scorer"]["lacks"][1]] == [True, True]
    assert strict["scorer"] == {"file": str(path), "lacks": []}


def test_mistakes_come_before_the_scorer(facts: Path, tmp_path: Path) -> None:
    facts.write_text("version: 1\nname: x\nrules: [abstian]\n")
    path = tmp_path / "scorer.json"
    confidence_scorer().save(path)
    done = check(facts, "--scorer", path)
    assert (done.exit_code, "Did you mean 'abstain'" in done.stdout) == (2, True)


def test_a_scorer_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    done = check("strict", "--scorer", tmp_path / "none.json")
    assert isinstance(done.exception, ScorerError)


def test_a_missing_extra_is_one_of_the_parts(monkeypatch: pytest.MonkeyPatch, facts: Path) -> None:
    monkeypatch.setattr("guard.runtime.sources.can_find_spans", lambda: False)
    facts.write_text(RULES + SECTIONS["spans"])
    (error,) = lacking(with_spans(confidence_scorer()), load_policy(str(facts)), whose="model")
    assert "ilis-guard[spans]" in error.fix


NOTE = "thresholds that were chosen for another score do not hold for it"


@pytest.mark.parametrize("score", ["ilis", "log-probabilities"])
def test_thresholds_of_another_score_are_noted(score: str, facts: Path) -> None:
    facts.write_text(f"{RULES}score: {score}\n")
    (note,) = json.loads(check(facts, "--json").stdout)[0]["notes"]
    assert note.startswith(f"the rules compare the score '{score}'")
    assert note.endswith(NOTE)
    assert f"{facts}: note: {note}" in check(facts).stdout.splitlines()


def test_so_are_those_of_tools(facts: Path) -> None:
    rules = "version: 1\nname: x\nscore: ilis\nrules: [abstain]\n"
    facts.write_text(f"{rules}tools: {{send: {{rules: [accept: {{below: 0.02}}, abstain]}}}}\n")
    assert NOTE in check(facts).stdout


@pytest.mark.parametrize("policy", ["ilis", "balanced"])
def test_certified_thresholds_and_guards_own_score_get_no_note(policy: str) -> None:
    assert json.loads(check(policy, "--json").stdout)[0]["notes"] == []
