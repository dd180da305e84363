"""Spans in a guarded call: in the outcome, marked, cut, asked again, handed to a person; and refused where unknown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from scripted import AnsweringEngine, Script, confidence_scorer, with_spans

from guard import Action, Escalation, Guard, Limits, Outcome, Prompt, ResponseFormat
from guard.errors import MissingExtraError, ScorerError
from guard.policy.policy import Policy, parse_policy
from guard.runtime import sources
from guard.scoring.scorer import Scorer

RULES = "version: 1\nname: mine\nrules: [{accept: {below: 0.99}}, {abstain: {}}]\n"
TEXT = "Norway:\n- Capital: Bergen\n- Founded: 1040"
LONG = Limits(max_tokens=200)


def policy(then: str, more: str = "") -> Policy:
    return parse_policy(f"{RULES}spans: {{above: 0.6, then: {then}}}\n{more}")


def guard(
    rules: Policy | str,
    script: Script = lambda prompt, number: (TEXT, 0.1),
    *,
    scorer: Scorer | None = None,
    unsure: tuple[str, ...] = ("Bergen",),
    **options: Any,
) -> Guard:
    engine = AnsweringEngine(script)
    engine.unsure = unsure
    return Guard(engine, scorer or with_spans(confidence_scorer()), rules, **options)


def ask(rules: Policy | str, *given: Any, **options: Any) -> Outcome:
    return guard(rules, *given, **options).ask("Facts about Norway:", limits=LONG)


def test_every_outcome_has_the_spans_that_the_scorer_gives() -> None:
    found = ask(parse_policy(RULES))
    assert found.spans is not None
    assert [span.text for span in found.spans] == ["Norway:", "Capital: Bergen", "Founded: 1040"]
    assert [span.p_wrong > 0.6 for span in found.spans] == [False, True, False]
    assert ask(parse_policy(RULES), scorer=confidence_scorer()).spans is None


def test_the_outcome_as_plain_data_has_them_too() -> None:
    found = ask(policy("mark"))
    data = json.loads(found.to_json())
    assert data["spans"][1]["claim"] == ["Capital", "Bergen"]
    assert data["attempts"][0]["spans_above"] == [data["spans"][1]]
    assert data["p_any_wrong"] == data["attempts"][0]["p_any_wrong"] == found.p_any_wrong
    assert found.p_any_wrong is not None
    assert found.p_any_wrong > data["spans"][1]["p_wrong"]
    assert ask(parse_policy(RULES), scorer=confidence_scorer()).p_any_wrong is None


def test_a_marked_answer_is_given_whole() -> None:
    found = ask(policy("mark"))
    assert (found.answer, found.accepted) == (TEXT, True)
    assert "1 of 3 spans are above 0.6" in found.reason


def test_a_cut_answer_is_given_without_the_span_and_kept_whole_in_the_attempt() -> None:
    found = ask(policy("cut"))
    assert (found.answer, found.action, found.rule) == ("Norway:\n- Founded: 1040", Action.ACCEPT, "spans")
    assert found.attempts[0].answer == TEXT


def test_a_retry_is_asked_again_and_judged_by_its_own_spans() -> None:
    answers = [TEXT, TEXT.replace("Bergen", "Oslo")]
    found = ask(policy("{retry: {instruction: Check each fact.}}"), lambda prompt, number: (answers[number], 0.1))
    assert (found.answer, len(found.attempts)) == (answers[1], 2)
    assert found.attempts[0].decision.rule == "spans"


def test_a_retry_that_does_not_help_is_not_accepted() -> None:
    found = ask(policy("retry"))
    assert (found.answer, found.action, len(found.attempts)) == (None, Action.ABSTAIN, 2)


def test_a_person_gets_the_case_with_its_spans() -> None:
    cases: list[Escalation] = []
    found = ask(policy("{escalate: {to: mine, reply: Wait.}}"), handlers={"mine": cases.append})
    assert (found.answer, found.action) == ("Wait.", Action.ESCALATE)
    (case,) = cases
    assert [span.text for span in case.attempts[0].decision.spans] == ["Capital: Bergen"]


def test_in_shadow_mode_nothing_is_cut() -> None:
    found = ask(policy("cut", "mode: shadow"))
    assert found.answer == TEXT
    assert found.would_be is not None
    assert found.would_be.rule == "spans"


@pytest.mark.parametrize("prompt", ["tools", "format"])
def test_an_answer_with_a_form_is_not_cut(prompt: str) -> None:
    asked = Prompt.chat("Facts about Norway:")
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    form = ResponseFormat.regex(r"[\s\S]+")
    given = replace(asked, tools=(tool,)) if prompt == "tools" else replace(asked, response_format=form)
    found = guard(policy("cut")).ask(given, limits=LONG)
    assert (found.answer, found.action) == (None, Action.ABSTAIN)
    assert "spans are not cut from an answer with tools or a response format" in found.reason


def test_a_scorer_without_spans_is_refused_when_the_guard_is_built() -> None:
    with pytest.raises(ScorerError, match="decides on spans, which the scorer of 'model' does not give") as caught:
        guard(policy("mark"), scorer=confidence_scorer())
    assert "guard calibrate with --spans" in str(caught.value)


def test_so_is_a_fallbacks_scorer_without_spans() -> None:
    rules = "version: 1\nname: m\nrules: [{accept: {below: 0.2}}, {fallback: {below: 0.5, to: other}}, abstain]\n"
    other = guard(parse_policy(RULES), scorer=confidence_scorer())
    with pytest.raises(ScorerError, match="the scorer of 'other'"):
        guard(parse_policy(f"{rules}spans: {{above: 0.6, then: mark}}"), fallbacks={"other": other})


def test_without_the_extra_a_policy_with_spans_is_refused_and_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "can_find_spans", lambda: False)
    with pytest.raises(MissingExtraError, match=r"ilis-guard\[spans\]"):
        guard(policy("mark"))
    found = ask(parse_policy(RULES))
    assert (found.accepted, found.spans) == (True, None)


def test_a_given_answer_gets_spans_too() -> None:
    score = guard(parse_policy(RULES)).score("Facts about Norway:", TEXT)
    assert score.spans is not None
    assert len(score.spans) == 3
