"""Watched certificates in the review store: the evidence against them, and which are suspended.

The evidence is not stored but computed from the verdicts, so it cannot differ from them. A suspension is stored for
every process that shares the store, and cannot be lifted: another certificate has another digest.
"""

from __future__ import annotations

import logging
import secrets
import weakref
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.audit.log import add_entry
from guard.errors import InputError
from guard.monitoring.risk_test import RiskEvidence, risk_evidence
from guard.monitoring.shift_test import ShiftTest
from guard.policy.bounds import Interval, exact_share
from guard.policy.policy import Policy
from guard.review.database import Database
from guard.review.migrations.tables import REVIEWS, SAMPLING_KEYS, WATCHED_CERTIFICATES
from guard.review.outbox import notify_of_certificate
from guard.review.queries import IS_PENDING
from guard.review.store import Store

#: The sampling keys of the databases that are open in this process; a key never changes.
_KEYS: weakref.WeakKeyDictionary[Database, bytes] = weakref.WeakKeyDictionary()

_log = logging.getLogger("guard.monitoring")


@dataclass(frozen=True, slots=True)
class WatchedCertificate:
    """A certificate with its running evidence.

    Attributes:
        id: digest of the certificate.
        policy, route: where it is used; the route is None for calls without one.
        risk, confidence, threshold: what it guarantees, and the threshold that keeps the guarantee.
        rate: share of the accepted answers that people check, by the present policy.
        false_alarms: probability of ever suspending it if its guarantee holds.
        since: when it was first used with the store; ISO 8601, UTC, as all times here.
        waiting: audit cases that nobody has checked yet; they count as right.
        overdue: audit cases that nobody has checked in time; they count as wrong.
        right, wrong: audit cases with a verdict that is final.
        evidence: the test of the guarantee; its counts include what waits and what is overdue.
        inputs: scored inputs in the label-free test.
        shift_e_value: evidence now that inputs are less usual than before; 1 is none.
        shifted_at: when the label-free alarm was given; None if it was not.
        suspended_at, suspended_why: when and why the certificate was suspended; None while it holds.
    """

    id: str
    policy: str
    route: str | None
    risk: float
    confidence: float
    threshold: float
    rate: float
    false_alarms: float
    since: str
    waiting: int
    overdue: int
    right: int
    wrong: int
    evidence: RiskEvidence
    inputs: int
    shift_e_value: float
    shifted_at: str | None
    suspended_at: str | None
    suspended_why: str | None

    @property
    def checked(self) -> int:
        """Audit cases that count: with a verdict, or overdue."""
        return self.right + self.wrong + self.overdue

    @property
    def overdue_share(self) -> float | None:
        """Share of the cases that count which nobody has checked in time; None without any."""
        return self.overdue / self.checked if self.checked else None

    @property
    def error_rate(self) -> Interval | None:
        """The audited share of wrong answers with its 95 % Clopper-Pearson interval; None without any.

        Valid for one look at a time chosen in advance; the evidence is valid at any.
        """
        return exact_share(self.wrong + self.overdue, 0, self.checked) if self.checked else None


class CertificateWatch:
    """The watched certificates of a review store. Safe under threads and several processes."""

    def __init__(self, store: Store) -> None:
        """
        Args:
            store: where the verdicts are; it stays the caller's to close.
        """
        self.store = store
        self._database = store._database

    def begin(self, policy: Policy) -> tuple[str, ...]:
        """Watch the certificates of a policy from now on; return their digests.

        A certificate that is known keeps its evidence. The rate is the policy's of now.

        Args:
            policy: with the thresholds of its certificates.

        Raises:
            StoreError: the store failed.
        """
        rows = [row for route in policy.plans if (row := _row(policy, route)) is not None]
        if not rows:
            return ()
        with self._database.write() as connection:
            at = self._database.now(connection)
            for row in rows:
                self._add(connection, row, at)
        return tuple(dict.fromkeys(row["id"] for row in rows))

    def suspended(self, ids: Collection[str]) -> frozenset[str]:
        """Return which of these certificates are suspended.

        Raises:
            StoreError: the store failed.
        """
        table = WATCHED_CERTIFICATES.c
        query = sa.select(table.id).where(table.id.in_(sorted(ids)), table.suspended_at.is_not(None))
        with self._database.read() as connection:
            return frozenset(connection.scalars(query))

    def refresh(self, ids: Collection[str] | None = None) -> list[WatchedCertificate]:
        """Read the evidence, suspend the certificates whose guarantee it finds broken, and return all.

        Args:
            ids: only these; None for all.

        Raises:
            StoreError: the store failed.
        """
        found = self.read(ids)
        broken = [each for each in found if each.evidence.broken and each.suspended_at is None]
        for each in broken:
            self._suspend(each)
        return self.read(ids) if broken else found

    def read(self, ids: Collection[str] | None = None) -> list[WatchedCertificate]:
        """Return certificates with their evidence, newest first; nothing is written.

        Args:
            ids: only these; None for all.

        Raises:
            StoreError: the store failed.
        """
        table = WATCHED_CERTIFICATES
        query = sa.select(table).order_by(table.c.since.desc(), table.c.id)
        if ids is not None:
            query = query.where(table.c.id.in_(sorted(ids)))
        with self._database.read() as connection:
            at = self._database.now(connection)
            return [_watched(row._mapping, _states(connection, row.id, at)) for row in connection.execute(query).all()]

    def labels(self, certificate: str) -> list[bool]:
        """Return whether each audited answer counts as wrong, in the order of the test.

        Args:
            certificate: its digest.

        Raises:
            StoreError: the store failed.
        """
        with self._database.read() as connection:
            return _wrong(_states(connection, certificate, self._database.now(connection)))

    def find(self, name: str) -> WatchedCertificate:
        """Return one certificate by its digest or an unambiguous beginning of it, as `refresh` does.

        Raises:
            InputError: there is none, or more than one.
            StoreError: the store failed.
        """
        near = [each for each in self.refresh() if each.id.startswith(name.strip().lower())]
        if len(near) != 1:
            what = "more than one" if near else "no"
            raise InputError(f"There is {what} certificate '{name:.70}'", fix="List them: guard certificates")
        return near[0]

    def note_inputs(self, certificate: str, scores: Sequence[tuple[float, float]]) -> bool:
        """Continue the label-free test; return whether it has given the alarm, now or before.

        Args:
            certificate: digest of a certificate that is watched.
            scores: out-of-distribution scores, each with its tie breaker, as for `ShiftTest.observe`.

        Raises:
            StoreError: the store failed.
        """
        table = WATCHED_CERTIFICATES
        mine = table.c.id == certificate
        with self._database.write() as connection:
            row = connection.execute(sa.select(table).where(mine).with_for_update()).one()
            test = ShiftTest.from_plain(row.shift)
            for ood_score, tie in scores:
                test.observe(ood_score, tie=tie)
            values: dict[str, Any] = {"shift": test.to_plain()}
            if new := test.alarm_at is not None and row.shifted_at is None:
                values["shifted_at"] = at = self._database.now(connection)
                fields = {"policy": row.policy, "route": row.route, "inputs": test.alarm_at}
                _tell(connection, certificate, "shifted", at, fields)
            connection.execute(sa.update(table).where(mine).values(values))
        if new:
            _log.warning("inputs have become less usual certificate=%s policy=%r route=%r", *_names(row))
        return test.alarm_at is not None

    def sampling_key(self) -> bytes:
        """Return the key that draws audit cases; the first process that needs one makes it.

        Raises:
            StoreError: the store failed.
        """
        if self._database in _KEYS:
            return _KEYS[self._database]
        table = SAMPLING_KEYS
        query = sa.select(table.c.key).where(table.c.name == "audit")
        with self._database.read() as connection:
            known = connection.scalar(query)
        if known is None:
            with self._database.write() as connection:
                connection.execute(self._database.insert_new(table).values(name="audit", key=secrets.token_hex(32)))
                known = connection.scalar(query)
        return _KEYS.setdefault(self._database, bytes.fromhex(str(known)))

    # -- writing -------------------------------------------------------------------------------

    def _add(self, connection: Connection, row: dict[str, Any], at: str) -> None:
        table = WATCHED_CERTIFICATES
        known = connection.execute(sa.select(table).where(table.c.id == row["id"])).one_or_none()
        if known is None:
            values = {**row, "since": at, "shift": ShiftTest().to_plain()}
            insert = self._database.insert_new(table).values(values).returning(table.c.id)
            if connection.scalar(insert) is not None:  # not added by another server at the same moment
                add_entry(connection, "certificate", row["id"], {"what": "watched", **_plain(row)}, texts={})
        elif known.rate != row["rate"] or known.false_alarms != row["false_alarms"]:
            values = {name: row[name] for name in ("rate", "false_alarms")}
            connection.execute(sa.update(table).where(table.c.id == row["id"]).values(values))
            add_entry(connection, "certificate", row["id"], {"what": "changed", **values}, texts={})

    def _suspend(self, broken: WatchedCertificate) -> None:
        """Suspend a certificate once; the first process that finds it broken does so."""
        table, evidence = WATCHED_CERTIFICATES, broken.evidence
        why = (
            f"{evidence.wrong} of {evidence.labels} audited answers are wrong or overdue, against a guarantee of at "
            f"most {broken.risk:.4g}; evidence {evidence.e_value:.4g} where {1 / broken.false_alarms:.4g} suspends"
        )
        fields = {"policy": broken.policy, "route": broken.route, "why": why}
        with self._database.write() as connection:
            at = self._database.now(connection)
            open_one = sa.and_(table.c.id == broken.id, table.c.suspended_at.is_(None))
            done = connection.execute(sa.update(table).where(open_one).values(suspended_at=at, suspended_why=why))
            if done.rowcount:
                _tell(connection, broken.id, "suspended", at, fields)
        if done.rowcount:
            _log.warning("suspended certificate=%s policy=%r route=%r: %s", *_names(broken), why)


def _tell(connection: Connection, certificate: str, what: str, at: str, fields: dict[str, Any]) -> None:
    """Write what has happened to the audit log and for the endpoints, in the transaction in which it happens."""
    add_entry(connection, "certificate", certificate, {"what": what, **fields}, texts={})
    notify_of_certificate(connection, certificate, what, at, fields)


def _row(policy: Policy, route: str | None) -> dict[str, Any] | None:
    """Return the stored fields of a route's certificate; None without a certificate or without audits."""
    plan = policy.plan(route)
    rule, audit = plan.certified, plan.audit
    if rule is None or rule.guarantee is None or audit is None:
        return None
    return {
        "id": rule.certificate,
        "policy": policy.name,
        "route": route,
        "risk": rule.guarantee.max_error_rate,
        "confidence": rule.guarantee.confidence,
        "threshold": rule.below,
        "rate": audit.rate,
        "false_alarms": audit.false_alarms,
    }


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "id"}


def _names(row: Any) -> tuple[str, str, str | None]:
    return row.id[:12], row.policy, row.route


# -- reading -----------------------------------------------------------------------------------


def _states(connection: Connection, certificate: str, at: str) -> list[str]:
    """Return what has become of each audit case of a certificate, in the order in which they were drawn.

    A verdict counts once it is final; until then, and while nobody has checked a case, it is ``waiting``.
    """
    table = REVIEWS.c
    state = sa.case(
        (sa.and_(~IS_PENDING, table.final_at <= at), table.draft),
        (sa.and_(IS_PENDING, table.due_at <= at), "overdue"),
        else_="waiting",
    )
    query = sa.select(state).where(table.certificate == certificate).order_by(table.number)
    return [str(each) for each in connection.scalars(query)]


def _watched(row: Any, states: Sequence[str]) -> WatchedCertificate:
    evidence = risk_evidence(_wrong(states), risk=row["risk"], false_alarms=row["false_alarms"])
    shift = ShiftTest.from_plain(row["shift"])
    kept = {name: value for name, value in row.items() if name != "shift"}
    return WatchedCertificate(
        **kept,
        waiting=states.count("waiting"),
        overdue=states.count("overdue"),
        right=states.count("right"),
        wrong=states.count("wrong"),
        evidence=evidence,
        inputs=shift.observations,
        shift_e_value=shift.e_value,
    )


def _wrong(states: Iterable[str]) -> list[bool]:
    return [state in ("wrong", "overdue") for state in states]
