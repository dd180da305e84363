"""Every decision of a guarded call is in the audit log before it is carried out, and none where that fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer

from guard.audit.log import AuditLog
from guard.errors import AbstainedError, EscalationError, InputError, StoreError
from guard.policy.policy import parse_policy
from guard.records import Outcome
from guard.review.store import Store
from guard.runtime.guard import Guard

RULES = """
version: 1
name: test
rules:
  - accept: {below: 0.2}
  - retry: {below: 0.4, times: 1}
  - escalate: {below: 0.8, to: [desk], reply: A person will look.}
  - abstain: {raise: true}
"""

EitherWay = Callable[[Guard], Outcome]


@pytest.fixture(params=["ask", "aask"])
def ask(request: pytest.FixtureRequest) -> EitherWay:
    return (
        (lambda guard: guard.ask("why?")) if request.param == "ask" else (lambda guard: asyncio.run(guard.aask("why?")))
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


def guarded(log: AuditLog | None, *answers: tuple[str, float], rules: str = RULES, **options: Any) -> Guard:
    engine = AnsweringEngine(lambda prompt, number: answers[min(number, len(answers) - 1)])
    handlers = {"desk": lambda case: None}
    return Guard(engine, confidence_scorer(), parse_policy(rules), handlers=handlers, audit_log=log, **options)


def decisions(log: AuditLog) -> list[dict[str, Any]]:
    events = [json.loads(entry.event) for entry in log.entries()]
    return [event for event in events if event["kind"] == "decision"]


def test_an_accepted_answer_has_an_entry_without_its_text(ask: EitherWay, store: Store) -> None:
    log = store.audit_log()
    outcome = ask(guarded(log, ("42", 0.1)))
    (event,) = decisions(log)
    assert (event["subject"], event["action"], event["rule"]) == (outcome.decision_id, "accept", outcome.rule)
    assert event["p_wrong"] == outcome.p_wrong
    assert (event["mode"], event["source"], event["attempts"]) == ("enforce", "model", 1)
    assert event["texts"].keys() == {"question", "answer", "reason"}
    assert "why?" not in "".join(log.export())


@pytest.mark.parametrize(("p_wrong", "action"), [(0.1, "accept"), (0.3, "accept"), (0.7, "escalate")])
def test_the_entry_names_the_last_decision(ask: EitherWay, store: Store, p_wrong: float, action: str) -> None:
    log = store.audit_log()
    outcome = ask(guarded(log, ("first", p_wrong), ("second", 0.05)))
    (event,) = decisions(log)
    assert event["action"] == outcome.action.value == action
    assert event["attempts"] == len(outcome.attempts)


def test_a_decision_that_raises_has_an_entry(ask: EitherWay, store: Store) -> None:
    log = store.audit_log()
    with pytest.raises(AbstainedError):
        ask(guarded(log, ("42", 0.9)))
    assert [event["action"] for event in decisions(log)] == ["abstain"]


def test_an_escalation_that_nobody_takes_has_an_entry(ask: EitherWay, store: Store) -> None:
    def absent(case: object) -> None:
        raise RuntimeError("nobody is here")

    log = store.audit_log()
    engine = AnsweringEngine(lambda prompt, number: ("42", 0.7))
    guard = Guard(engine, confidence_scorer(), parse_policy(RULES), handlers={"desk": absent}, audit_log=log)
    with pytest.raises(EscalationError):
        ask(guard)
    assert [event["action"] for event in decisions(log)] == ["escalate"]


def test_the_entry_comes_before_the_handlers(ask: EitherWay, store: Store) -> None:
    log = store.audit_log()
    seen: list[int] = []
    engine = AnsweringEngine(lambda prompt, number: ("42", 0.7))
    handlers = {"desk": lambda case: seen.append(len(decisions(log)))}
    ask(Guard(engine, confidence_scorer(), parse_policy(RULES), handlers=handlers, audit_log=log))
    assert seen == [1]


def test_a_shadow_policy_is_logged_as_such(ask: EitherWay, store: Store) -> None:
    log = store.audit_log()
    ask(guarded(log, ("42", 0.9), rules=RULES + "mode: shadow\n"))
    (event,) = decisions(log)
    assert (event["mode"], event["action"]) == ("shadow", "abstain")


def test_no_answer_is_given_without_an_entry(ask: EitherWay, store: Store) -> None:
    guard = guarded(store.audit_log(), ("42", 0.1))
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE audit_texts")
    with pytest.raises(StoreError):
        ask(guard)


def test_a_policy_has_an_entry_when_it_changes(store: Store) -> None:
    log = store.audit_log()
    for rules in (RULES, RULES, RULES.replace("0.2", "0.3"), RULES.replace("0.2", "0.3"), RULES):
        guarded(log, ("42", 0.1), rules=rules)
    events = [json.loads(entry.event) for entry in log.entries(subject="policy test")]
    assert [event["thresholds"]["default"] for event in events] == [
        *([0.2, 0.4, 0.8, None], [0.3, 0.4, 0.8, None], [0.2, 0.4, 0.8, None])
    ]
    assert events[0]["policy_sha256"] == events[2]["policy_sha256"] != events[1]["policy_sha256"]
    assert [parse_policy(event["document"]).sha256 for event in events] == [each["policy_sha256"] for each in events]


def test_kept_texts_are_those_of_the_call(ask: EitherWay, store: Store) -> None:
    log = store.audit_log(keep_text=True)
    ask(guarded(log, ("forty-two", 0.1)))
    opened = json.loads(list(log.export())[-1])["openings"]
    assert (opened["question"]["content"], opened["answer"]["content"]) == ("why?", "forty-two")
    assert log.verify().ok


def test_a_guard_without_a_log_keeps_none(ask: EitherWay, store: Store) -> None:
    ask(guarded(None, ("42", 0.1)))
    assert len(store.audit_log()) == 0


@pytest.mark.parametrize("wrong", [True, "reviews.db", object()])
def test_what_is_no_log_is_refused_where_it_is_set(wrong: Any) -> None:
    with pytest.raises(InputError, match="must be an AuditLog"):
        guarded(wrong, ("42", 0.1))
