"""The page of watched certificates: guarantees, evidence, suspension, and who sees which."""

from __future__ import annotations

import pytest
from console_pages import MadeConsole
from made_cases import make_escalation
from moved_clock import MovedClock

from guard.monitoring import CertificateWatch
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds
from guard.policy.policy import parse_policy
from guard.review_terms import AuditDraw, ReviewTerms

TEXT = """
version: 1
name: guaranteeing
audit: {rate: 0.5, false_alarms: 0.05}
rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - abstain
"""
ID = "c" * 64


@pytest.fixture
def clock(console: MadeConsole) -> MovedClock:
    moved = MovedClock(console.store)
    CertificateWatch(console.store).begin(
        apply_thresholds(parse_policy(TEXT), {None: CertifiedThreshold(0.3, "f" * 64, ID)})
    )
    return moved


def audited(console: MadeConsole, clock: MovedClock, numbers: range, *, right: bool) -> None:
    decide = console.store.approve if right else console.store.reject
    for number in numbers:
        terms = ReviewTerms(within_s=3600.0, audit=AuditDraw(0.5, ID))
        review = console.store.add(make_escalation(number, terms=terms, created_at=str(clock)))
        decide(review.id, reviewer="ann")
    clock.move(11)


def test_a_certificate_is_shown_with_its_evidence(console: MadeConsole, clock: MovedClock) -> None:
    lea = console.signed_in("lea", ("lead",))
    page = lea.get("/certificates").text
    assert "at most 5.0 % wrong" in page
    assert "Fewer than 20 answers count" in page
    audited(console, clock, range(19), right=True)
    audited(console, clock, range(19, 20), right=False)
    page = lea.get("/certificates").text
    assert "Fewer than 20" not in page
    assert ">holds<" in page
    assert "5.0 %, 95 % interval 0.1 % to 24.9 %" in page


def test_a_suspended_certificate_comes_first_and_looking_suspends_none(console: MadeConsole, clock: MovedClock) -> None:
    lea = console.signed_in("lea", ("lead",))
    audited(console, clock, range(6), right=False)
    assert "is suspended since" not in lea.get("/certificates").text
    assert CertificateWatch(console.store).read()[0].suspended_at is None
    CertificateWatch(console.store).refresh()
    page = lea.get("/certificates").text
    assert "is suspended since" in page
    assert "6 of 6 audited answers are wrong or overdue" in page


def test_only_certificates_of_routes_in_reach_are_shown(console: MadeConsole, clock: MovedClock) -> None:
    assert "No certificate is watched" in console.signed_in("mira", ("reviewer:medical",)).get("/certificates").text
    assert console.signed_in("ana", ("admin",)).get("/certificates").status_code == 403
    assert 'href="/certificates"' in console.signed_in("vera", ("viewer",)).get("/insights").text


def test_nothing_leads_the_verdict_on_an_audit_case(console: MadeConsole, clock: MovedClock) -> None:
    terms = ReviewTerms(within_s=3600.0, audit=AuditDraw(0.5, ID))
    review = console.store.add(make_escalation(1, terms=terms, created_at=str(clock)))
    page = console.signed_in("mira").get(f"/case/{review.id}").text
    for lead in ("0.75", "rules[1]", "too likely wrong", "Shade", 'class="heat"', "Similar earlier cases"):
        assert lead not in page
