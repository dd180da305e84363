"""What a policy says of audits and lost certificates: strict in what it takes, closed in what it does."""

from __future__ import annotations

import jsonschema
import pytest

from guard.errors import PolicyError
from guard.policy.document import Abstain, Escalate
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds, procedure_sha256, suspend, trial_policy
from guard.policy.policy import Policy, decide, decide_error, json_schema, parse_policy
from guard.policy.yaml_source import InvalidPolicyError
from guard.records import Action

RULES = """
rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - abstain
"""


def policy(*lines: str, rules: str = RULES) -> Policy:
    return parse_policy("\n".join(["version: 1", "name: test", *lines, rules]))


def certified(chosen: Policy) -> Policy:
    thresholds = {route: CertifiedThreshold(0.3, "f", f"certificate of {route}") for route in chosen.plans}
    return apply_thresholds(chosen, thresholds)


def test_a_week_low_priority_and_five_percent_are_the_defaults() -> None:
    audit = policy("audit: {rate: 0.02}").plan().audit
    assert audit is not None
    assert (audit.rate, audit.within, audit.priority, audit.false_alarms) == (0.02, 7 * 86_400.0, "low", 0.05)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("audit: {rate: 2}", "audit.rate must be at most 1, got 2. Write 0.02 for 2 %"),
        ("audit: {rate: 0}", "audit.rate must be above 0, got 0"),
        ("audit: {}", "'rate' is missing in audit"),
        ("audit: {rates: 0.1}", "unknown key 'rates' in audit. Did you mean 'rate'?"),
        ("audit: {rate: 0.1, within: soon}", "within must be a time such as 30min"),
        ("audit: {rate: 0.1, false_alarms: 0.6}", "audit.false_alarms must be at most 0.5, got 0.6"),
        ("on_certificate_lost: accept", "accept is not allowed in on_certificate_lost"),
        ("on_certificate_lost: {retry: {}}", "retry is not allowed in on_certificate_lost"),
        ("on_certificate_lost: {fallback: {to: big}}", "'text' is missing in on_certificate_lost.fallback"),
        ("on_certificate_lost: {abstian: {}}", "unknown action 'abstian'. Did you mean 'abstain'?"),
        ("on_certificate_lost: abstain", "nothing watches the certificate. Write audit: {rate: 0.02} beside it"),
    ],
)
def test_what_cannot_be_meant_is_refused(line: str, message: str) -> None:
    with pytest.raises(InvalidPolicyError) as raised:
        policy(line)
    assert message in str(raised.value)


def test_a_certificate_that_is_not_there_cannot_be_lost() -> None:
    with pytest.raises(InvalidPolicyError, match="there is no certificate to lose"):
        policy("audit: {rate: 1}", "on_certificate_lost: abstain", rules="rules: [accept]")
    routed = "rules: [accept]\nroutes: {clinic: {rules: [accept: {max_error_rate: 0.05, confidence: 0.9}, abstain]}}"
    policy("audit: {rate: 1}", "on_certificate_lost: abstain", rules=routed)


def test_the_schema_knows_both_sections() -> None:
    good = {"version": 1, "name": "x", "audit": {"rate": 0.1, "within": "2d"}, "on_certificate_lost": "abstain"}
    rules = [{"accept": {"max_error_rate": 0.05, "confidence": 0.9}}, "abstain"]
    jsonschema.validate({**good, "rules": rules}, json_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**good, "rules": rules, "on_certificate_lost": "accept"}, json_schema())


def test_a_suspended_certificate_accepts_nothing_and_changes_nothing_else() -> None:
    chosen = certified(policy("audit: {rate: 1}"))
    closed = suspend(chosen, {"certificate of None"})
    for p_wrong in (0.0, 0.1, 0.29):
        decision = decide(closed, p_wrong=p_wrong)
        assert (decision.action, decision.rule, decision.settings) == (
            Action.ABSTAIN,
            "on_certificate_lost",
            Abstain(),
        )
        assert decision.p_wrong == p_wrong
    assert decide(closed, p_wrong=0.5) == decide(chosen, p_wrong=0.5)
    assert decide(suspend(closed, ()), p_wrong=0.1).action is Action.ACCEPT
    assert decide(suspend(chosen, {"another"}), p_wrong=0.1).action is Action.ACCEPT


def test_what_on_error_or_a_defect_would_accept_is_not_accepted_either() -> None:
    lines = ("audit: {rate: 1}", "on_error: accept", "truncated: accept")
    chosen = certified(policy(*lines))
    closed = suspend(chosen, {"certificate of None"})
    assert decide_error(chosen, error="x").action is Action.ACCEPT
    assert decide_error(closed, error="x").rule == "on_certificate_lost"
    assert decide(chosen, p_wrong=0.1, defects=["truncated"]).action is Action.ACCEPT
    assert decide(closed, p_wrong=0.1, defects=["truncated"]).rule == "on_certificate_lost"


def test_answers_that_call_a_tool_are_not_accepted_either() -> None:
    chosen = certified(policy("audit: {rate: 1}", "tools: {search: {rules: [accept]}}"))
    closed = suspend(chosen, {"certificate of None"})
    assert decide(chosen, p_wrong=0.1, tools=["search"]).action is Action.ACCEPT
    assert decide(closed, p_wrong=0.1, tools=["search"]).rule == "on_certificate_lost"


def test_each_route_takes_its_own_action() -> None:
    routes = "routes:\n  clinic: {on_certificate_lost: {fallback: {text: Ask a doctor.}}}\n  shop: {}\n"
    chosen = certified(
        policy("audit: {rate: 1}", "on_certificate_lost: {escalate: {to: [desk]}}", rules=RULES + routes)
    )
    closed = suspend(chosen, {"certificate of clinic", "certificate of shop"})
    assert decide(closed, p_wrong=0.1).action is Action.ACCEPT
    clinic, shop = (decide(closed, p_wrong=0.1, route=route) for route in ("clinic", "shop"))
    assert (clinic.action, clinic.settings.text, clinic.rule) == (
        Action.FALLBACK,
        "Ask a doctor.",
        "routes.clinic.on_certificate_lost",
    )
    assert isinstance(shop.settings, Escalate)
    assert chosen.handler_names() == ("desk",)


def test_auditing_does_not_void_a_certificate() -> None:
    lost = "on_certificate_lost: {escalate: {to: [desk]}}"
    audited, plain = policy("audit: {rate: 1}", lost), policy()
    assert procedure_sha256(audited, None) == procedure_sha256(plain, None)
    assert audited.sha256 != plain.sha256


def test_a_trial_is_not_audited() -> None:
    assert trial_policy(policy("audit: {rate: 1}")).plan().audit is None


def test_a_policy_that_awaits_its_certificate_decides_nothing() -> None:
    with pytest.raises(PolicyError, match="has no threshold yet"):
        decide(suspend(policy("audit: {rate: 1}"), {"x"}), p_wrong=0.1)
