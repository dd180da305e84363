"""Certificates and scorers that must be refused, and the boundaries at which a threshold is chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_certificates import certificate, certificates, policy, written
from made_trials import LADDER, ONCE, guard, questions
from scripted import AnsweringEngine, confidence_scorer, scripted_model
from typer.testing import CliRunner

from guard.certification.fixed_sequence import Certified, Trials, find_threshold, grid, passes
from guard.certification.trials import TrialAttempt, TrialJournal, TrialRow, attempted_rows, label_trials, run_trials
from guard.cli import app
from guard.data.graders import grade
from guard.data.questions import LabelledResponse, Row
from guard.errors import GuardError, InputError, PolicyError, ScorerError
from guard.files import checked_json as sealed
from guard.policy.certificate import CertificateError, check_certificate, parse_certificates
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds, guarantees, trial_policy
from guard.policy.policy import Policy, parse_policy
from guard.records import Floats, Prompt
from guard.runtime.guard import Guard
from guard.scoring.scorer import load_scorer, parse_scorer

# -- checksums ---------------------------------------------------------------------------------

CLAIMS = pytest.mark.parametrize("claim", [{}, {"sha256": None}, {"sha256": ""}, {"sha256": 0}, {"sha256": "0" * 64}])


def without_checksum(content: dict[str, Any], claim: dict[str, Any]) -> bytes:
    kept = {key: value for key, value in content.items() if key != "sha256"}
    return json.dumps({**kept, **claim}).encode()


@CLAIMS
def test_a_certificate_without_its_checksum_is_refused(claim: dict[str, Any]) -> None:
    with pytest.raises(CertificateError, match="checksum does not match"):
        parse_certificates(without_checksum(written(), claim))


@CLAIMS
def test_a_scorer_without_its_checksum_is_refused(claim: dict[str, Any], tmp_path: Path) -> None:
    confidence_scorer().save(tmp_path / "scorer.json")
    content = json.loads((tmp_path / "scorer.json").read_text())
    assert load_scorer(tmp_path / "scorer.json").sha256 == content["sha256"]
    with pytest.raises(ScorerError, match="checksum does not match"):
        parse_scorer(without_checksum(content, claim))


def resealed(content: dict[str, Any]) -> bytes:
    """A file with a checksum that is right, as whoever edits one by hand could make it."""
    kept = {key: value for key, value in content.items() if key != "sha256"}
    return json.dumps({**kept, "sha256": sealed.digest(kept)}).encode()


def test_two_certificates_for_one_route_are_refused() -> None:
    content = written()
    first = content["certificates"][0]
    assert len(parse_certificates(resealed(content)).by_route) == 1
    with pytest.raises(CertificateError, match="two certificates for one route"):
        parse_certificates(resealed({**content, "certificates": [first, {**first, "threshold": 0.9}]}))


OTHER_DATA = [{"name": "fresh", "sha256": "d" * 64, "rows": 99, "wrong": 3}]


@pytest.mark.parametrize(
    ("key", "value"),
    [("threshold", 0.0), ("risk", 0.001), ("accepted", 5), ("bound", 0.0), ("bound", 1.0), ("data", OTHER_DATA)],
)
def test_a_certificate_that_was_changed_and_sealed_again_must_still_add_up(key: str, value: Any) -> None:
    content = written()
    content["certificates"][0][key] = value
    with pytest.raises(CertificateError, match="is not a valid certificate"):
        parse_certificates(resealed(content))


@pytest.mark.parametrize("options", [{"enable_thinking": True}, {"enable_thinking": 0}, {}])
def test_other_template_options_void_a_certificate_and_its_journal(options: dict[str, Any], tmp_path: Path) -> None:
    """Compared as JSON: to a template 0 is another value than false."""
    own = policy()
    made = Guard(AnsweringEngine(lambda *_: ("", 0.1)), confidence_scorer(), trial_policy(own)).fingerprint(own)
    there, here = (
        made.model_copy(update={"own": made.own.model_copy(update={"template_options": each})})
        for each in ({"enable_thinking": False}, options)
    )
    given = certificates(certificate(own, fingerprint=there))
    guarantee = guarantees(own)[None]
    assert check_certificate(own, given, None, guarantee, now=there).threshold == 0.25
    with pytest.raises(CertificateError, match=r"model's template options were .* are "):
        check_certificate(own, given, None, guarantee, now=here)
    with TrialJournal(tmp_path / "trials.journal", there):
        pass
    with pytest.raises(InputError, match=r"answers of another run.*template options"):
        TrialJournal(tmp_path / "trials.journal", here)


def test_a_certificate_does_not_hold_for_another_scorer_of_the_same_guard() -> None:
    own = policy()
    certified = Guard(
        AnsweringEngine(lambda *_: ("Paris", 0.1)), confidence_scorer(), own, certificate=certificates(certificate(own))
    )
    assert certified.ask("Where?").answer == "Paris"
    with pytest.raises(PolicyError, match="no certificate covers another scorer"):
        certified.with_scorer(confidence_scorer(scripted_model(weights_sha256="9" * 64)))
    assert certified.with_scorer(confidence_scorer()).ask("Where?").answer == "Paris", "it is the same, loaded again"


# -- rules, without a model --------------------------------------------------------------------

RULES = """rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - retry: {below: 0.6, times: 1}
  - abstain: {text: I do not know.}
"""
LAXER = {
    "rules": RULES.replace("times: 1", "times: 2"),
    "on_error": f"{RULES}on_error: accept\n",
    "budget": f"{RULES}budget: {{attempts: 3}}\n",
    "out_of_distribution": f"{RULES}out_of_distribution: {{above: 0.9, then: escalate}}\n",
}


@pytest.mark.parametrize("change", LAXER)
def test_changed_rules_void_a_certificate_also_where_no_model_is_loaded(change: str) -> None:
    own, other = policy(RULES), policy(LAXER[change])
    given = certificates(certificate(own))
    assert check_certificate(own, given, None, guarantees(own)[None]).threshold == 0.25
    with pytest.raises(CertificateError, match="the budget differs"):
        check_certificate(other, given, None, guarantees(other)[None])


@pytest.mark.parametrize("command", ["check", "explain"])
def test_the_command_line_says_that_a_certificate_is_for_other_rules(command: str, tmp_path: Path) -> None:
    certificates(certificate(policy(RULES))).save(tmp_path / "c.json")
    score = ["--score", "0.2"] if command == "explain" else []

    def run(body: str) -> Any:
        (tmp_path / "p.yaml").write_text(f"version: 1\nname: test\n{body}")
        arguments = ["policy", command, str(tmp_path / "p.yaml"), "--certificate", str(tmp_path / "c.json"), *score]
        return CliRunner().invoke(app, arguments)

    assert run(RULES).exit_code == 0, run(RULES).output
    refused = run(LAXER["on_error"])
    told = f"{refused.output} {refused.exception}"
    assert refused.exit_code != 0
    assert "the budget differs" in " ".join(told.split())
    assert isinstance(refused.exception, GuardError | SystemExit)


# -- where a threshold is chosen ---------------------------------------------------------------


def test_an_answer_at_the_threshold_is_not_accepted() -> None:
    trials = Trials.from_scores([0.2, 0.5, 0.7], [False, True, True])
    assert trials.at(0.5) == (1, 0)
    assert trials.at(np.nextafter(0.5, 1.0)) == (2, 1)


def test_a_p_value_at_the_level_passes_and_one_above_it_does_not() -> None:
    # One accepted answer, right: were the risk 1/2, that would happen with probability 1/2.
    assert passes(0, 1, 0.5, 0.5)
    assert not passes(0, 1, 0.5, 0.51)
    # 0.9^22 = 0.0985 and 0.9^21 = 0.109.
    assert passes(0, 22, 0.1, 0.9)
    assert not passes(0, 21, 0.1, 0.9)


@pytest.mark.parametrize("seed", range(3))
def test_the_walk_ends_at_the_first_threshold_that_fails(seed: int) -> None:
    """A band of wrong answers ends it, though all answers together would pass."""
    p_wrong = np.random.default_rng(seed).random(3000)
    wrong = (p_wrong > 0.2) & (p_wrong < 0.26)
    assert wrong.mean() < 0.08
    result = find_threshold(Trials.from_scores(p_wrong, wrong), risk=0.1, confidence=0.9, seed=seed)
    assert isinstance(result, Certified)
    assert 0.1 < result.threshold < 0.26
    all_pass = find_threshold(Trials.from_scores(p_wrong, wrong & False), risk=0.1, confidence=0.9, seed=seed)
    assert isinstance(all_pass, Certified)
    assert all_pass.threshold > 0.9


def test_a_threshold_that_falls_on_the_next_rules_stays_below_it() -> None:
    thresholds = grid(np.full(50, 0.5), 400, 0.1, 0.9, ceiling=0.5)
    assert thresholds.tolist() == [np.nextafter(0.5, 0.0)]


@pytest.mark.parametrize("threshold", [0.6, 0.61, 0.0, -0.1, float("nan")])
def test_a_threshold_outside_of_its_rule_is_refused(threshold: float) -> None:
    with pytest.raises(PolicyError, match=r"not below 0\.6"):
        apply_thresholds(policy(RULES), {None: CertifiedThreshold(threshold, "a" * 64)})
    fitting = apply_thresholds(policy(RULES), {None: CertifiedThreshold(np.nextafter(0.6, 0.0), "a" * 64)})
    assert fitting.plan().rules[0].below < 0.6


# -- the trial run -----------------------------------------------------------------------------


def tried(chosen: Policy, trial_guard: Guard, rows: list[tuple[str, Row]]) -> list[Any]:
    with TrialJournal(":memory:", trial_guard.fingerprint(chosen)) as journal:
        return list(run_trials(trial_guard, rows, journal, route=None))


@pytest.mark.parametrize("seed", range(3))
def test_a_shadow_policy_is_tried_with_the_attempts_of_an_enforced_one(seed: int) -> None:
    """It may be watched first and enforced later, by the same certificate."""
    enforced = parse_policy(f"version: 1\nname: test\n{LADDER}")
    shadow = parse_policy(f"version: 1\nname: test\nmode: shadow\n{LADDER}")
    one = tried(enforced, guard(trial_policy(enforced), seed), questions(12))
    other = tried(shadow, guard(trial_policy(shadow), seed), questions(12))
    assert one == other
    assert max(len(row.attempts) for row in one) > 1


def no_layers(prompt: Prompt, number: int) -> Floats:
    return np.full((3, 8), np.nan, np.float32)


@pytest.mark.parametrize(
    ("on_error", "released", "counted"),
    [("accept", True, (1, 1)), ("abstain", False, (0, 0)), ("escalate", False, (0, 0))],
)
def test_a_given_response_that_cannot_be_scored_counts_as_on_error_says(
    on_error: str, released: bool, counted: tuple[int, int]
) -> None:
    chosen = parse_policy(f"version: 1\nname: test\n{ONCE}on_error:\n  {on_error}: {{}}\n")
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.2))
    engine.activations_at = no_layers
    trial_guard = Guard(engine, confidence_scorer(), trial_policy(chosen), handlers={"review": print})
    rows: list[tuple[str, Row]] = [
        ("set", LabelledResponse(id="a", prompt=Prompt.chat("What?"), response="Rome", wrong=True))
    ]
    with TrialJournal(":memory:", trial_guard.fingerprint(chosen)) as journal:
        (row,) = run_trials(trial_guard, rows, journal, route=None)
        trials = label_trials(attempted_rows(rows, journal), grade=grade)
    assert isinstance(row, TrialRow)
    assert row.attempts == (TrialAttempt("Rome", None, released=released),)
    assert trials.at(0.01) == trials.at(1.0) == counted
