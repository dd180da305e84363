"""Accepted answers are drawn for an audit without waiting, and a suspended certificate accepts nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_certificates import certificate, certificates, engine
from moved_clock import MovedClock
from scripted import confidence_scorer

from guard.errors import ReviewError, StoreError
from guard.monitoring.acceptance import AcceptanceMonitor
from guard.monitoring.certificate_watch import CertificateWatch
from guard.policy.guarantee import trial_policy
from guard.policy.policy import Policy, parse_policy
from guard.records import Action, Outcome
from guard.review.store import Review, Store
from guard.runtime.guard import Guard

AskOnce = Callable[[Guard], Outcome]

PLAIN = """
version: 1
name: plain
audit: {rate: 1}
rules:
  - accept: {below: 0.5}
  - escalate: {to: [review]}
"""
GUARANTEEING = """
version: 1
name: guaranteeing
audit: {rate: 1, within: 2d, priority: high}
rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - abstain: {text: I do not know.}
"""


@pytest.fixture(params=["ask", "aask"])
def ask(request: pytest.FixtureRequest) -> AskOnce:
    if request.param == "ask":
        return lambda guard: guard.ask("why?")
    return lambda guard: asyncio.run(guard.aask("why?"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


def guaranteeing(store: Store, text: str = GUARANTEEING, *, p_wrong: float = 0.1, **options: Any) -> Guard:
    policy = parse_policy(text)
    return Guard(
        engine(p_wrong),
        confidence_scorer(),
        policy,
        store=store,
        certificate=certificates(certificate(policy)),
        **options,
    )


def audits(store: Store) -> list[Review]:
    return store.reviews(kind="audit")


def look_at_once(guard: Guard) -> None:
    """Let the guard read the store at each call."""
    monitor = guard.monitor
    assert monitor is not None
    monitor._state_s = monitor._evidence_s = 0.0


# -- drawing -----------------------------------------------------------------------------------


def test_an_accepted_answer_that_is_drawn_goes_to_people_and_to_its_caller(ask: AskOnce, store: Store) -> None:
    guard = guaranteeing(store)
    outcome = ask(guard)
    assert (outcome.answer, outcome.action, outcome.escalated_to) == ("Paris", Action.ACCEPT, ())
    (case,) = audits(store)
    assert (case.decision_id, case.answer, case.kind, case.priority) == (outcome.decision_id, "Paris", "audit", "high")
    assert (case.audit_rate, case.late, case.reviews_wanted) == (1.0, None, 1)
    assert case.certificate == guard.policy.plan().rules[0].certificate
    assert case.due_at is not None


def test_an_answer_that_is_not_accepted_is_no_audit_case(ask: AskOnce, store: Store) -> None:
    ask(guaranteeing(store, p_wrong=0.9))
    ask(Guard(engine(0.9), confidence_scorer(), parse_policy(PLAIN), store=store))
    (escalated,) = store.reviews()
    assert (escalated.kind, escalated.audit_rate, escalated.certificate) == ("escalation", None, None)


def test_in_shadow_mode_nothing_goes_to_people(ask: AskOnce, store: Store) -> None:
    shadow = guaranteeing(store, GUARANTEEING.replace("name: guaranteeing", "name: guaranteeing\nmode: shadow"))
    assert shadow.monitor is None
    assert ask(shadow).answer == "Paris"
    assert audits(store) == []


def test_the_share_that_is_drawn_is_the_rate_and_the_draw_is_the_stores(store: Store, tmp_path: Path) -> None:
    policy = parse_policy(PLAIN.replace("rate: 1", "rate: 0.1"))
    first, again = AcceptanceMonitor(store, policy), AcceptanceMonitor(store, policy)
    names = [f"decision {number}" for number in range(5000)]
    drawn = [name for name in names if first.draws(policy.plan(), name)]
    assert 430 < len(drawn) < 570
    assert drawn == [name for name in names if again.draws(policy.plan(), name)]
    with Store.open(tmp_path / "other.db") as other:
        elsewhere = AcceptanceMonitor(other, policy)
        assert drawn != [name for name in names if elsewhere.draws(policy.plan(), name)]


def test_each_route_has_its_own_share(store: Store) -> None:
    text = f"{PLAIN}routes: {{clinic: {{audit: {{rate: 0.000001}}}}}}\n"
    guard = Guard(engine(0.1), confidence_scorer(), parse_policy(text), store=store)
    guard.ask("why?")
    guard.ask("why?", route="clinic")
    assert [case.route for case in audits(store)] == [None]


def test_a_policy_without_audit_opens_no_store() -> None:
    text = PLAIN.replace("audit: {rate: 1}", "").replace("escalate: {to: [review]}", "abstain")
    assert Guard(engine(0.1), confidence_scorer(), parse_policy(text), store="/").monitor is None


def test_an_answer_that_cannot_be_put_into_the_queue_is_not_given(ask: AskOnce, store: Store) -> None:
    guard = guaranteeing(store)
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE review_events")
    with pytest.raises(StoreError):
        ask(guard)


def test_every_draw_is_a_case_of_its_own(store: Store) -> None:
    guard = guaranteeing(store)
    for _ in range(3):
        guard.ask("why?")
    assert len(audits(store)) == 3
    assert all(case.repeats == 0 for case in audits(store))


def test_nobody_waits_for_an_audit_case(store: Store) -> None:
    guard = guaranteeing(store, GUARANTEEING.replace("abstain: {text: I do not know.}", "escalate"))
    outcome = guard.ask("why?")
    with pytest.raises(ReviewError, match="checks an answer that was accepted"):
        guard.review_result(outcome.decision_id)


# -- suspending --------------------------------------------------------------------------------


def judge(store: Store, clock: MovedClock, guard: Guard, verdicts: str) -> None:
    """Ask once for each letter, and decide the case: ``r`` right, ``w`` wrong."""
    for verdict in verdicts:
        outcome = guard.ask("why?")
        decide = store.approve if verdict == "r" else store.reject
        decide(outcome.decision_id, reviewer="ann")
    clock.move(11)


def test_a_broken_guarantee_closes_the_route_for_every_process(ask: AskOnce, store: Store) -> None:
    guard, clock = guaranteeing(store), MovedClock(store)
    other = guaranteeing(store)
    for each in (guard, other):
        look_at_once(each)
    judge(store, clock, guard, "rw" * 8)
    for each in (guard, other, guaranteeing(store)):
        outcome = ask(each)
        assert (outcome.action, outcome.answer, outcome.rule) == (Action.ABSTAIN, None, "on_certificate_lost")
        assert "The certificate is suspended" in outcome.reason
    assert len(audits(store)) == 16, "what is not accepted is not drawn"


def test_a_guarantee_that_holds_stays(store: Store) -> None:
    guard, clock = guaranteeing(store), MovedClock(store)
    look_at_once(guard)
    judge(store, clock, guard, "r" * 30 + "w" + "r" * 10)
    assert guard.ask("why?").answer == "Paris"


def test_a_verdict_counts_once_it_cannot_be_undone(store: Store) -> None:
    guard, clock = guaranteeing(store), MovedClock(store)
    look_at_once(guard)
    judge(store, clock, guard, "wwwwwwww")
    last = guard.ask("why?")
    assert last.action is Action.ABSTAIN
    again, later = guaranteeing(store, GUARANTEEING.replace("0.9}", "0.8}")), MovedClock(store)
    look_at_once(again)
    for _ in range(8):
        store.reject(again.ask("why?").decision_id, reviewer="ann")
    assert again.ask("why?").answer == "Paris", "all eight can still be undone"
    later.move(11)
    assert again.ask("why?").answer is None


def test_an_overdue_case_counts_as_wrong_until_it_is_decided(store: Store) -> None:
    guard, clock = guaranteeing(store), MovedClock(store)
    (certificate_id,) = (rule.certificate for rule in guard.policy.plan().rules if rule.certificate)
    for _ in range(4):
        guard.ask("why?")
    watch = CertificateWatch(store)
    assert (watch.find(certificate_id).waiting, watch.find(certificate_id).overdue) == (4, 0)
    # The calls' own clock made the cases, so the store's is set well behind their due times.
    clock.time = clock.time.replace(year=2200)
    overdue = watch.find(certificate_id)
    assert (overdue.overdue, overdue.overdue_share, overdue.evidence.wrong) == (4, 1.0, 4)
    store.approve(audits(store)[0].id, reviewer="ann")
    clock.move(11)
    assert watch.find(certificate_id).evidence.wrong == 3


def test_the_policy_says_what_takes_the_answers_place(store: Store) -> None:
    text = GUARANTEEING + "on_certificate_lost: {escalate: {to: [review], reply: A person will look.}}\n"
    guard, clock = guaranteeing(store, text), MovedClock(store)
    look_at_once(guard)
    judge(store, clock, guard, "w" * 8)
    outcome = guard.ask("why?")
    assert (outcome.action, outcome.answer) == (Action.ESCALATE, "A person will look.")
    assert store.review(outcome.decision_id).kind == "escalation"


def test_only_the_route_of_the_certificate_is_closed(store: Store) -> None:
    text = f"{GUARANTEEING}routes: {{easy: {{rules: [accept: {{below: 0.5}}, abstain]}}}}\n"
    guard, clock = guaranteeing(store, text), MovedClock(store)
    look_at_once(guard)
    judge(store, clock, guard, "w" * 8)
    assert guard.ask("why?").answer is None
    assert guard.ask("why?", route="easy").answer == "Paris"


def test_another_certificate_opens_the_route_again_and_the_same_one_does_not(store: Store) -> None:
    guard, clock = guaranteeing(store), MovedClock(store)
    look_at_once(guard)
    judge(store, clock, guard, "w" * 8)
    assert guard.ask("why?").answer is None
    assert guaranteeing(store).ask("why?").answer is None
    policy = parse_policy(GUARANTEEING)
    newer = certificates(certificate(policy, threshold=0.2))
    renewed = Guard(engine(0.1), confidence_scorer(), policy, store=store, certificate=newer)
    assert renewed.ask("why?").answer == "Paris"


def test_a_store_that_cannot_be_read_accepts_nothing(ask: AskOnce, store: Store) -> None:
    guard = guaranteeing(store)
    look_at_once(guard)
    with store._database.write() as connection:
        connection.exec_driver_sql("ALTER TABLE watched_certificates RENAME TO gone")
    with pytest.raises(StoreError):
        ask(guard)


def test_a_trusted_fallback_is_closed_too(store: Store) -> None:
    text = """
version: 1
name: trusting
audit: {rate: 1}
rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - fallback: {to: books, below: 0.9}
  - abstain
"""
    policy: Policy = parse_policy(text)
    fallbacks = {"books": lambda prompt: "From the books."}
    made = Guard(engine(0.5), confidence_scorer(), trial_policy(policy), fallbacks=fallbacks)
    known = certificates(certificate(policy, guard=made))
    guard = Guard(engine(0.5), confidence_scorer(), policy, fallbacks=fallbacks, store=store, certificate=known)
    clock = MovedClock(store)
    look_at_once(guard)
    assert guard.ask("why?").answer == "From the books."
    judge(store, clock, guard, "w" * 8)
    outcome = guard.ask("why?")
    assert (outcome.answer, outcome.rule) == (None, "on_certificate_lost")
