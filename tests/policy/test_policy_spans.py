"""The policy's section for spans: read strictly, and deciding only about answers that the rules accept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from guard.errors import PolicyError
from guard.policy.cuts import refuse_cuts, released_spans, released_text
from guard.policy.document import Cut, Escalate, Retry
from guard.policy.policy import Policy, decide, parse_policy
from guard.policy.rules import Usage
from guard.policy.yaml_source import InvalidPolicyError
from guard.records import Action, Attempt, Decision, Outcome, Sampling
from guard.scores import Score, Span

RULES = "version: 1\nname: mine\nrules: [{accept: {below: 0.5}}, {abstain: {}}]\n"
TEXT = "Oslo\n1040\nBergen"


def policy(section: str = "spans: {above: 0.6, then: mark}", rules: str = RULES) -> Policy:
    return parse_policy(f"{rules}{section}\n")


def spans(*p_wrong: float) -> tuple[Span, ...]:
    places = ((0, 4), (5, 9), (10, 16))
    return tuple(Span(a, b, TEXT[a:b], p) for (a, b), p in zip(places, p_wrong, strict=False))


def decided(section: str, *p_wrong: float, p: float = 0.1, usage: Usage = Usage()) -> Decision:  # noqa: B008 - frozen
    return decide(policy(section), p_wrong=p, spans=spans(*p_wrong), usage=usage)


def outcome(answer: str | None, decision: Decision, score: Score | None) -> Outcome:
    attempt = Attempt(TEXT, "model", score, decision, 1, 1, 0.0, Sampling())
    fields = {"rule": "r", "reason": "", "p_wrong": 0.1, "decision_id": "1", "route": None}
    return Outcome(answer, decision.action, mode="enforce", would_be=None, attempts=(attempt,), **fields)


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["mark", "cut", "retry", "escalate", "{retry: {times: 2}}", "{cut: }"])
def test_each_action_can_stand_alone_or_with_settings(then: str) -> None:
    assert policy(f"spans: {{above: 0.6, then: {then}}}").needs_spans
    assert not policy("").needs_spans


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("spans: {above: 0.6, then: cutt}", "unknown action 'cutt'. Did you mean 'cut'?"),
        ("spans: {abov: 0.6, then: cut}", "unknown key 'abov' in spans. Did you mean 'above'?"),
        ("spans: {above: 60, then: cut}", "Write 0.6 for 60 %"),
        ("spans: {above: 0.6}", "'then' is missing in spans"),
        ("spans: {above: 0.6, then: accept}", "accept is not allowed in spans"),
        ("spans: {above: 0.6, then: abstain}", "abstain is not allowed in spans"),
        ("spans: {above: 0.6, cut: {}}", "'cut' belongs under 'then'"),
        ("spans: {above: 0.6, then: {retry: {tims: 2}}}", "Did you mean 'times'?"),
        ("spans: {above: 0.6, then: {cut: , mark: }}", "exactly one action"),
        ("spans: {above: 0.6, then: {retry: {times: 9}}}", "budget.attempts leaves room for 3"),
        ("streaming: live\nspans: {above: 0.6, then: cut}", "cut takes back text that a live stream has shown"),
        ("streaming: live\nspans: {above: 0.6, then: retry}", "retry takes back text that a live stream has shown"),
        ("span: {above: 0.6, then: cut}", "unknown key 'span'. Did you mean 'spans'?"),
    ],
)
def test_what_is_not_understood_is_refused(section: str, says: str) -> None:
    with pytest.raises(InvalidPolicyError) as caught:
        policy(section)
    assert says in str(caught.value)


def test_live_streams_can_mark_and_escalate() -> None:
    for then in ("mark", "escalate"):
        assert policy(f"streaming: live\nspans: {{above: 0.6, then: {then}}}").needs_spans


@pytest.mark.parametrize("then", ["cut", "retry", "escalate"])
def test_a_risk_guarantee_leaves_released_answers_as_they_were_certified(then: str) -> None:
    rules = RULES.replace("below: 0.5", "max_error_rate: 0.1, confidence: 0.9")
    assert policy("spans: {above: 0.6, then: mark}", rules).needs_spans
    with pytest.raises(InvalidPolicyError, match="a risk guarantee covers whole answers"):
        policy(f"spans: {{above: 0.6, then: {then}}}", rules)


def test_a_route_has_the_policys_spans_or_its_own() -> None:
    written = policy("spans: {above: 0.6, then: mark}\nroutes: {a: {}, b: {spans: {above: 0.2, then: cut}}}")
    found = [written.plan(route).spans for route in (None, "a", "b")]
    assert [(rule.above, rule.what) for rule in found if rule] == [(0.6, "mark"), (0.6, "mark"), (0.2, "cut")]


# -- deciding ----------------------------------------------------------------------------------


def test_marked_spans_are_accepted_and_named() -> None:
    found = decided("spans: {above: 0.6, then: mark}", 0.1, 0.7, 0.6)
    assert (found.action, found.rule) == (Action.ACCEPT, "rules[0] (accept)")
    assert [span.text for span in found.spans] == ["1040"]
    assert found.reason.endswith("; 1 of 3 spans are above 0.6")


def test_a_span_at_the_limit_is_not_above_it() -> None:
    assert decided("spans: {above: 0.6, then: cut}", 0.6, 0.6).spans == ()


def test_only_what_the_rules_accept_is_looked_at() -> None:
    found = decided("spans: {above: 0.6, then: mark}", 0.9, p=0.8)
    assert (found.action, found.spans) == (Action.ABSTAIN, ())


@pytest.mark.parametrize(("then", "settings"), [("retry", Retry), ("escalate", Escalate), ("cut", Cut)])
def test_one_likely_wrong_span_is_enough(then: str, settings: type) -> None:
    found = decided(f"spans: {{above: 0.6, then: {then}}}", 0.1, 0.9)
    assert isinstance(found.settings, settings)
    assert (found.rule, found.reason) == ("spans", "1 of 2 spans are above 0.6")


def test_an_exhausted_retry_never_accepts() -> None:
    section = "on_error: accept\nspans: {above: 0.6, then: retry}"
    found = decided(section, 0.9, usage=Usage(retries=1))
    assert found.action is Action.ABSTAIN
    assert "has used its 1 retry" in found.reason


def test_where_every_span_would_be_cut_nothing_is_given() -> None:
    found = decided("on_error: accept\nspans: {above: 0.6, then: cut}", 0.9, 0.8)
    assert (found.action, found.reason) == (Action.ABSTAIN, "2 of 2 spans are above 0.6; nothing would be left")


def test_an_answer_whose_spans_are_not_known_goes_to_on_error() -> None:
    found = decide(policy("on_error: escalate\nspans: {above: 0.6, then: mark}"), p_wrong=0.1)
    assert (found.action, found.rule) == (Action.ESCALATE, "on_error")
    assert "spans, which are not known" in found.reason


def test_an_out_of_distribution_input_is_decided_before_its_spans() -> None:
    section = "out_of_distribution: {above: 0.9, then: abstain}\nspans: {above: 0.6, then: mark}"
    found = decide(policy(section), p_wrong=0.1, ood_score=0.95, spans=spans(0.9))
    assert (found.action, found.spans) == (Action.ABSTAIN, ())


# -- what the caller gets ----------------------------------------------------------------------


def test_a_cut_leaves_the_other_spans_with_their_new_places() -> None:
    parts = spans(0.1, 0.9, 0.2)
    decision = Decision(Action.ACCEPT, "spans", "", 0.1, Cut(), parts[1:2])
    text = released_text(TEXT, decision)
    assert text == "Oslo\nBergen"
    left = released_spans(outcome(text, decision, Score(0.1, True, 0.0, spans=parts)))
    assert left is not None
    assert [text[span.start : span.end] for span in left] == ["Oslo", "Bergen"]


def test_a_rejected_answers_spans_are_not_released() -> None:
    score = Score(0.1, True, 0.0, spans=spans(0.9))
    rejected = Decision(Action.ABSTAIN, "r", "", 0.1)
    assert released_spans(outcome(None, rejected, score)) is None
    assert released_spans(outcome("I do not know.", replace(rejected, action=Action.ACCEPT), score)) is None
    assert released_spans(outcome(TEXT, replace(rejected, action=Action.ACCEPT), score)) == spans(0.9)


def test_whoever_cannot_cut_refuses_to_enforce_it() -> None:
    cutting = policy("spans: {above: 0.6, then: cut}")
    with pytest.raises(PolicyError, match="cuts spans, which a chain cannot"):
        refuse_cuts(cutting, caller="a chain", why="it is one")
    refuse_cuts(replace(cutting, mode="shadow"), caller="a chain", why="it is one")
    refuse_cuts(policy(), caller="a chain", why="it is one")
