"""``guard certificates`` and what ``guard review`` shows of audit cases."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_cases import make_escalation
from moved_clock import MovedClock
from typer.testing import CliRunner

from guard.cli import app
from guard.monitoring.certificate_watch import CertificateWatch
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds
from guard.policy.policy import parse_policy
from guard.review.store import Store
from guard.review_terms import AuditDraw, ReviewTerms

ID = "c0ffee" + "0" * 58
TEXT = """
version: 1
name: clinic
audit: {rate: 0.02}
rules:
  - accept: {max_error_rate: 0.05, confidence: 0.9}
  - abstain
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("LOGNAME", "ann")
    return tmp_path / "reviews.db"


@pytest.fixture
def store(place: Path) -> Iterator[Store]:
    with Store.open(place) as opened:
        yield opened


def run(place: Path, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*arguments, "--store", str(place)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


def add(store: Store, number: int, *, within_s: float = 10**9) -> str:
    terms = ReviewTerms(within_s=within_s, priority="low", audit=AuditDraw(0.02, ID))
    return store.add(make_escalation(number, terms=terms)).id


def watch(store: Store) -> None:
    policy = apply_thresholds(parse_policy(TEXT), {None: CertifiedThreshold(0.3, "f" * 64, ID)})
    CertificateWatch(store).begin(policy)


def test_without_a_watched_certificate_it_says_what_is_missing(place: Path, store: Store) -> None:
    assert "No certificate is watched: a policy needs a certificate and an audit section" in run(place, "certificates")
    assert run(place, "certificates", "--json") == "[]\n"


def test_evidence_and_suspension_are_shown(place: Path, store: Store) -> None:
    watch(store)
    clock = MovedClock(store)
    names = [add(store, number) for number in range(5)]
    for name in names[:4]:
        store.reject(name, reviewer="ann")
    holds = run(place, "certificates")
    assert "c0ffee00" in holds
    assert "0.05 at 0.9" in holds
    assert "suspended" in holds, "the command's own clock is past the ten seconds"
    whole = run(place, "certificates", "c0f")
    assert "0 right, 4 wrong, 0 overdue, 1 waiting" in " ".join(whole.split())
    assert "4 of 5 audited answers are wrong or overdue" in " ".join(whole.split())
    assert "95 % interval" in whole
    (found,) = json.loads(run(place, "certificates", "c0f", "--json"))
    assert (found["id"], found["evidence"]["wrong"], found["error_rate"]["share"]) == (ID, 4, 1.0)
    assert found["suspended_at"]
    assert str(clock)


def test_an_unknown_certificate_is_refused(place: Path, store: Store) -> None:
    from guard.errors import InputError

    with pytest.raises(InputError, match="no certificate 'beef'"):
        run(place, "certificates", "beef")


def test_audit_cases_differ_from_escalated_ones(place: Path, store: Store) -> None:
    audit, escalated = add(store, 1), store.add(make_escalation(2)).id
    listed = run(place, "review", "list")
    assert "kind" in listed
    assert all(word in listed for word in (audit, escalated, "audit", "escalation"))
    assert escalated not in run(place, "review", "list", "--kind", "audit")
    only = run(place, "review", "list", "--kind", "escalation")
    assert audit not in only
    assert "1 of 1 pending escalation reviews" in only
    shown = " ".join(run(place, "review", "show", audit).split())
    assert "audit of an accepted answer, which its caller has; 0.02 of them are drawn" in shown
    assert "watching certificate c0ffee00" in shown
    assert "then it counts as wrong; low priority" in shown
    assert "audit" not in run(place, "review", "show", escalated)


def test_nothing_leads_a_verdict_that_should_be_blind(place: Path, store: Store) -> None:
    audit = add(store, 1)
    two = store.add(make_escalation(2, terms=ReviewTerms(reviews=2))).id
    case = store.review(audit)
    leading = (f"{case.p_wrong:.3f}", case.rule, case.reason)
    for name in (audit, two):
        shown = run(place, "review", "show", name)
        assert [said for said in leading if said in shown] == []
        assert "hidden until the verdict" in shown
    assert leading[0] not in run(place, "review", "list")
    assert leading[0] not in run(place, "review", "next")
    store.approve(audit, reviewer="ann")
    assert leading[0] in run(place, "review", "show", audit)


def test_a_misspelt_kind_is_refused(place: Path, store: Store) -> None:
    from guard.errors import InputError

    with pytest.raises(InputError, match=r"There are no cases 'audits'\. Did you mean 'audit'"):
        run(place, "review", "list", "--kind", "audits")


def test_the_statistics_show_audits_and_certificates(place: Path, store: Store) -> None:
    store.add(make_escalation(9))
    assert "audits" not in run(place, "review", "stats")
    watch(store)
    store.approve(add(store, 1), reviewer="ann")
    add(store, 2, within_s=1)
    stats = " ".join(run(place, "review", "stats").split())
    assert "1 right, 0 wrong, 1 overdue (50.0% of what counts), 0 waiting; all of these are above too" in stats
    assert "c0ffee00" in stats
    found = json.loads(run(place, "review", "stats", "--json"))
    assert found["audits"] == {"waiting": 0, "overdue": 1, "right": 1, "wrong": 0}
    assert found["certificates"][0]["id"] == ID


def test_the_next_case_may_be_an_audit(place: Path, store: Store) -> None:
    add(store, 1)
    assert "audit of an accepted answer" in " ".join(run(place, "review", "next").split())
