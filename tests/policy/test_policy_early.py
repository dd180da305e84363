"""The policy's ``early`` section: what may stand in it, and what becomes of an answer that was stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from guard.cli import app
from guard.errors import PolicyError
from guard.policy.defects import find_defects
from guard.policy.document import Abstain, Escalate, Fallback
from guard.policy.guarantee import procedure_sha256
from guard.policy.policy import InvalidPolicyError, Policy, Usage, decide, decide_error, load_policy, parse_policy
from guard.policy.stopping import refuse_early
from guard.records import Action

RULES = "version: 1\nname: mine\nrules: [{accept: {below: 0.9}}, {abstain: {text: No.}}]\n"
SECTION = "early: {above: 0.97, then: {abstain: {text: Stopped.}}}\n"


def policy(more: str = SECTION) -> Policy:
    return parse_policy(RULES + more)


def problem(more: str) -> str:
    with pytest.raises(InvalidPolicyError) as refused:
        policy(more)
    return str(refused.value)


def test_without_the_section_no_answer_is_stopped() -> None:
    assert policy("").plan().early is None
    assert not policy("").needs_early
    assert not any(load_policy(name).needs_early for name in ("strict", "balanced", "permissive", "ilis"))


@pytest.mark.parametrize(
    ("then", "settings"),
    [
        ("abstain", Abstain),
        ("escalate", Escalate),
        ("{fallback: {text: Ask again.}}", Fallback),
        ("{escalate: {to: [desk]}}", Escalate),
    ],
)
def test_what_may_stand_in_it(then: str, settings: type) -> None:
    early = policy(f"early: {{above: 0.97, then: {then}}}").plan().early
    assert early is not None
    assert (early.above, type(early.rule.settings), early.rule.name) == (0.97, settings, "early")


def test_a_route_has_its_own_or_that_of_the_policy() -> None:
    both = policy(SECTION + "routes: {a: {early: {above: 0.5, then: escalate}}, b: {budget: {attempts: 2}}}\n")
    above = [plan.early.above for plan in (both.plan(None), both.plan("a"), both.plan("b")) if plan.early]
    assert above == [0.97, 0.5, 0.97]
    assert both.plan("a").early.rule.name == "routes.a.early"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("early: {above: 0.97, then: accept}", "accept is not allowed in early"),
        ("early: {above: 0.97, then: {retry: {times: 1}}}", "retry is not allowed in early"),
        ("early: {above: 97, then: abstain}", "Write 0.97 for 97 %"),
        ("early: {above: 1, then: abstain}", "early.above must be below 1"),
        ("early: {then: abstain}", "'above' is missing in early"),
        ("early: {abov: 0.9, then: abstain}", "Did you mean 'above'"),
        ("early: {above: 0.9, escalate: {to: x}}", "belongs under 'then', as in 'early: {above: 0.97"),
        ("early: {above: 0.9, then: {abstian: {}}}", "unknown action 'abstian'"),
        ("streaming: live\n" + SECTION, "a live stream is stopped by the rules"),
        ("early: {above: 0.9, then: {fallback: {to: big}}}\nbudget: {attempts: 1}", "early.then asks for a fallback"),
        ("early: {above: 0.9, then: {fallback: {to: bg}}}\nfallbacks: {big: {model: x}}", "no fallback 'bg'"),
        ("erly: {above: 0.9, then: abstain}", "Did you mean 'early'"),
    ],
)
def test_what_is_refused(more: str, words: str) -> None:
    assert words in problem(more)


def test_a_stopped_answer_is_no_other_defect() -> None:
    assert find_defects("", "early") == ("stopped",)
    assert find_defects("Par", "early") == ("stopped",)


@pytest.mark.parametrize("p_wrong", [0.0, 0.5, 0.99, None])
def test_a_stopped_answer_is_never_accepted_whatever_its_score(p_wrong: float | None) -> None:
    decision = decide(policy(), p_wrong=p_wrong, defects=["stopped"])
    assert decision.action is Action.ABSTAIN
    if p_wrong is not None:
        assert (decision.rule, decision.settings.text) == ("early", "Stopped.")


@pytest.mark.parametrize("on_error", ["accept", "abstain"])
def test_under_a_policy_that_stops_none_a_stopped_answer_is_not_accepted(on_error: str) -> None:
    other = policy(f"on_error: {on_error}\n")
    assert decide(other, p_wrong=0.01, defects=["stopped"]).action is Action.ABSTAIN
    assert decide_error(other, error="none", defects=["stopped"]).action is Action.ABSTAIN


def test_an_exhausted_fallback_does_what_on_error_says_and_never_accepts() -> None:
    falling = policy("on_error: accept\nearly: {above: 0.9, then: {fallback: {to: big}}}\n")
    found = decide(falling, p_wrong=0.95, defects=["stopped"], usage=Usage(exhausted=True))
    assert found.action is Action.ABSTAIN
    assert "budget" in found.reason


def test_the_section_is_part_of_what_is_certified() -> None:
    digests = {procedure_sha256(policy(more), None) for more in ("", SECTION, SECTION.replace("0.97", "0.9"))}
    assert len(digests) == 3


def test_who_cannot_stop_an_answer_refuses_the_policy_even_in_shadow_mode() -> None:
    refuse_early(policy(""), caller="a chain", why="it is one")
    for more in (SECTION, "mode: shadow\n" + SECTION):
        with pytest.raises(PolicyError, match="stops answers early, which a chain cannot"):
            refuse_early(policy(more), caller="a chain", why="it is one")


def test_guard_policy_explain_says_where_answers_are_stopped(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(RULES + SECTION)
    said = CliRunner().invoke(app, ["policy", "explain", str(file), "--score", "0.2"])
    assert "p_wrong of the answer so far > 0.97, it is stopped: abstain, by early." in " ".join(said.stdout.split())
    as_json = CliRunner().invoke(app, ["policy", "explain", str(file), "--score", "0.2", "--json"])
    assert json.loads(as_json.stdout)["early"] == {"above": 0.97, "then": "abstain"}
