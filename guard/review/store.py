"""The review queue's database: SQLite in a file, or PostgreSQL by URL.

Every call is one transaction that is synced to disk before the call returns, so a killed process loses no accepted
case and no decision.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.audit.events import Redaction
from guard.audit.log import AuditLog
from guard.checked import whole_number
from guard.errors import InputError
from guard.records import Escalation
from guard.review import claims, database, insights, labels, pages, queries, results, verdicts
from guard.review.claims import LEASE_S, checked_lease, person
from guard.review.insights import Insights
from guard.review.labels import MarkedAnswers
from guard.review.migrations.tables import EVENTS, REPEATS, REVIEWS
from guard.review.outbox import notify_of_checkpoint
from guard.review.pages import CaseFilter, Order, Page
from guard.review.queries import ALPHABET, ID_LENGTH, SHORTEST
from guard.review.records import (
    Draft,
    Repeat,
    Review,
    ReviewEvent,
    ReviewStatus,
    to_event,
    to_labelled_row,
    to_repeat,
    to_repeat_row,
    to_row,
)
from guard.review.results import ReviewResult, Waiting
from guard.review.short_lived import ShortLived
from guard.review.span_marks import SpanMark
from guard.review.stats import QueueStats, read_stats
from guard.review.verdicts import Opinion
from guard.review_terms import CaseKind

__all__ = [
    "ALPHABET",
    "ID_LENGTH",
    "SHORTEST",
    "CaseFilter",
    "Opinion",
    "Page",
    "Repeat",
    "Review",
    "ReviewEvent",
    "ReviewResult",
    "ReviewStatus",
    "Store",
]

_EVERYTHING = CaseFilter()


class Store:
    """The review store. Safe under threads; open one in each process."""

    def __init__(self, connected: database.Database) -> None:
        self._database = connected

    @classmethod
    def open(
        cls, url: str | Path | None = None, *, create: bool = True, timeout_s: float = database.TIMEOUT_S
    ) -> Store:
        """Open a review store, creating it or migrating it to this guard's schema where needed.

        Args:
            url: an SQLite file, or a URL (``sqlite:///FILE``, ``postgresql://USER@HOST/DATABASE``).
                Default: the environment variable ``GUARD_STORE``, else ``reviews.db`` in the user's
                data directory.
            create: whether to create a missing SQLite file; otherwise it is an error.
            timeout_s: seconds to wait for a lock that another process holds, or for a server.

        Raises:
            StoreError: the store cannot be opened, is not a review store, or belongs to a newer version of guard.
            MissingExtraError: a PostgreSQL URL without psycopg.
        """
        return cls(database.connect(url, create=create, timeout_s=timeout_s))

    def audit_log(self, *, keep_text: bool = False, redaction: Redaction | None = None) -> AuditLog:
        """Return the audit log in this database; the store adds every case and verdict to it.

        Endpoints that want it are notified of its checkpoints.

        Args:
            keep_text, redaction: see `guard.audit.log.AuditLog`. By default the log has only hashes of texts.
        """
        tell = partial(notify_of_checkpoint, now=self._database.now)
        return AuditLog(self._database, keep_text=keep_text, redaction=redaction, on_checkpoint=tell)

    def short_lived(self) -> ShortLived | None:
        """Return what servers on several hosts remember together in this database; None for an SQLite file.

        An SQLite file has one host, whose server remembers by itself.
        """
        return ShortLived(self._database) if self._database.is_shared else None

    @property
    def place(self) -> str:
        """The file, or the URL without its password."""
        return self._database.place

    def close(self) -> None:
        """Close all connections."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- taking cases in -----------------------------------------------------------------------

    def add(self, escalation: Escalation) -> Review:
        """Add a case to the queue; it is committed when this returns.

        A case identical to a waiting one (same prompt, answer, policy, model and route) is added to its `repeats`, so
        that a person decides once.

        Returns:
            the new review, or the existing one for this ``decision_id`` or an identical case.

        Raises:
            StoreError: the case could not be written.
            InputError: ``created_at`` is not an ISO 8601 time.
        """
        row = to_row(escalation)
        with self._database.write() as connection:
            known = queries.by_decision(connection, row["decision_id"])
            while known is None:
                known = self._repeated(connection, escalation, row) or self._new(connection, row)
            return known

    def _new(self, connection: Connection, row: dict[str, Any]) -> Review | None:
        """Add a case; return None if its id is taken, or an identical case was added concurrently."""
        row["id"] = "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
        number = sa.select(sa.func.coalesce(sa.func.max(REVIEWS.c.number), 0) + 1).scalar_subquery()
        numbered = {**row, "number": number} if connection.dialect.name == "sqlite" else row
        connection.execute(self._database.insert_new(REVIEWS).values(numbered))
        known = queries.by_decision(connection, row["decision_id"])
        if known is not None and known.id == row["id"]:
            queries.record(connection, known.id, at=self._database.now(connection), who="guard", what="added")
        return known

    def _repeated(self, connection: Connection, escalation: Escalation, row: dict[str, Any]) -> Review | None:
        """Add a case to the repeats of an identical open one, if there is one."""
        same = results.find_same(connection, row["fingerprint"], self._database.now(connection))
        if same is None:
            return None
        open_one = queries.locked(connection, same.id)
        at = self._database.now(connection)
        if results.is_overdue(open_one, at):  # the earlier caller has an answer; this one still waits
            results.mark(connection, open_one, at)
            return None
        if not results.takes_repeats(open_one, at):
            return None
        repeat = {**to_repeat_row(escalation), "review_id": open_one.id}
        connection.execute(self._database.insert_new(REPEATS).values(repeat))
        return queries.exactly(connection, open_one.id)

    # -- reading -------------------------------------------------------------------------------

    def page(
        self,
        chosen: CaseFilter = _EVERYTHING,
        *,
        order: Order = "due",
        after: str | None = None,
        before: str | None = None,
        limit: int = 50,
    ) -> Page:
        """Return a page of the queue; all pages take the same time.

        Args:
            chosen: filter of the cases.
            order: ``due`` (by due time; cases without one come last, by age), ``doubtful`` (by p_wrong, descending; no
                score comes first), ``oldest``, ``newest``, or ``decided`` (latest verdict first).
            after, before: `Page.after` or `Page.before` of another page with the same filter and order.
            limit: largest number of reviews.

        Raises:
            InputError: an argument or a value of the filter is unknown.
        """
        limit = whole_number("limit", limit, least=1, most=1000)
        with self._database.read() as connection:
            at = self._database.now(connection)
            return pages.read_page(connection, chosen, at, order=order, after=after, before=before, limit=limit)

    def reviews(
        self, *, status: str | None = None, route: str | None = None, kind: CaseKind | None = None, limit: int = 50
    ) -> list[Review]:
        """Return the oldest reviews; `page` has more filters and orders.

        Raises:
            InputError: an unknown status or kind, or a limit out of range.
        """
        chosen = CaseFilter(status=status, route=route, kind=kind)
        return list(self.page(chosen, order="oldest", limit=limit).reviews)

    def count(self, chosen: CaseFilter = _EVERYTHING) -> int:
        """Return the number of cases, exact up to `guard.review.pages.COUNTED`; beyond that, one more.

        Raises:
            InputError: as for `page`.
        """
        with self._database.read() as connection:
            return pages.read_count(connection, chosen, self._database.now(connection))

    def stats(self) -> QueueStats:
        """Return figures of the queue: waiting cases, verdicts by reviewer, and agreement."""
        with self._database.read() as connection:
            return read_stats(connection, self._database.now(connection))

    def review(self, name: str) -> Review:
        """Return one review by its id, an unambiguous prefix of it, or its decision id.

        Raises:
            ReviewError: no review matches, or several do.
        """
        with self._database.read() as connection:
            return queries.find(connection, name)

    def history(self, name: str, *, whole: bool = False) -> list[ReviewEvent]:
        """Return a review's audit trail, oldest first; ``name`` as in `review`.

        Args:
            name: the review.
            whole: whether to include the contents of opinions while the case waits for another one. By default a
                second reviewer stays blind.
        """
        with self._database.read() as connection:
            review = queries.find(connection, name)
            query = sa.select(EVENTS).where(EVENTS.c.review_id == review.id).order_by(EVENTS.c.number)
            events = [to_event(row) for row in connection.execute(query)]
        return events if whole or verdicts.is_open_to_all(review) else [event.blind() for event in events]

    def opinions(self, name: str) -> list[Opinion]:
        """Return the opinions on a case that were not withdrawn, in order; ``name`` as in `review`.

        Do not show them to a person who may still give one: a second opinion is blind.
        """
        with self._database.read() as connection:
            return verdicts.opinions(connection, queries.find(connection, name).id)

    def repeats(self, name: str) -> list[Repeat]:
        """Return the identical cases that arrived while a review waited, oldest first; ``name`` as in `review`."""
        with self._database.read() as connection:
            query = sa.select(REPEATS).where(REPEATS.c.review_id == queries.find(connection, name).id)
            rows = connection.execute(query.order_by(REPEATS.c.created_at, REPEATS.c.decision_id))
            return [to_repeat(row) for row in rows]

    def labelled(
        self,
        *,
        route: str | None = None,
        model: str | None = None,
        kind: CaseKind | None = None,
        page: int = labels.PAGE,
    ) -> Iterator[dict[str, Any]]:
        """Yield reviews with a final decision as rows for `guard calibrate`, in the order of the decisions.

        The label is the reviewer's judgement of the model's answer: 0 right (approved, or edited with
        ``draft="right"``), 1 wrong. Cases without an answer are left out.

        Args:
            route, model, kind: only these; a scorer learns from the answers of its own model.
            page: number of rows that are read at a time.

        Yields:
            ``id``, ``prompt`` (messages, or a text), ``response``, ``label``, ``model``, ``policy``, ``route``,
            ``verdict``, ``better`` (the reviewer's own answer, or None), ``note``, ``reviewer``, ``created_at``,
            ``kind``, ``weight`` (number of answers that the label stands for: 1 / audit rate, or 1 for an escalated
            answer), and ``tools`` if the prompt has any.
        """
        page = whole_number("page", page, least=1)
        wanted = {"route": route, "model": model, "kind": kind}
        return map(to_labelled_row, labels.read_decided(self._database, wanted, page=page))

    def marked(
        self, *, route: str | None = None, model: str | None = None, kind: CaseKind | None = None
    ) -> MarkedAnswers:
        """Return the answers with marked spans as rows for ``guard calibrate --spans``, chosen as in `labelled`."""
        return labels.read_marked(self._database, {"route": route, "model": model, "kind": kind})

    def insights(self, *, days: int, routes: frozenset[str] | None = None, route: str | None = None) -> Insights:
        """Return figures of the last days, computed by the database.

        Args:
            days: number of days in UTC, including today.
            routes: only these routes; None for all.
            route: only this route.
        """
        with self._database.read() as connection:
            at = self._database.now(connection)
            return insights.read_insights(connection, at, days=days, routes=routes, route=route)

    def routes(self, among: frozenset[str] | None = None) -> list[str]:
        """Return the routes of all cases, restricted to these; at most `guard.review.insights.ROUTES`."""
        with self._database.read() as connection:
            return insights.read_routes(connection, among)

    # -- claiming ------------------------------------------------------------------------------

    def claim(self, name: str, *, reviewer: str, lease_s: float = LEASE_S) -> Review:
        """Claim a case, so that nobody else works on it until the lease ends; a holder extends the claim.

        Args:
            name: the whole id, or the decision id.
            reviewer: login name of the reviewer.
            lease_s: duration in seconds from now.

        Raises:
            ReviewError: the case does not exist, is decided, claimed by or assigned to another person, or the reviewer
                has given an opinion on it.
            InputError: the lease is not above 0, or longer than a day.
        """
        who, lease_s = person(reviewer), checked_lease(lease_s)
        with self._database.write() as connection:
            return claims.claim(self._database, connection, name, who, lease_s)

    def claim_next(self, *, reviewer: str, route: str | None = None, lease_s: float = LEASE_S) -> Review | None:
        """Claim the next case: one that the reviewer holds, else by priority and due time; late cases come last.

        Cases that the reviewer skipped or gave an opinion on are left out. Concurrent reviewers get different cases.

        Returns:
            the case, or None if there is none for this reviewer.

        Raises:
            InputError: as for `claim`.
        """
        who, lease_s = person(reviewer), checked_lease(lease_s)
        with self._database.write() as connection:
            return claims.claim_next(self._database, connection, who, route, lease_s)

    def release(self, name: str, *, reviewer: str) -> Review:
        """Release a claimed case.

        Raises:
            ReviewError: the reviewer has not claimed the case.
        """
        with self._database.write() as connection:
            return claims.release(self._database, connection, name, person(reviewer), note=None, what="released")

    def skip(self, name: str, *, reviewer: str, note: str | None = None) -> Review:
        """Skip a case: it is released, and `claim_next` does not offer it to the reviewer again.

        An audit case is offered again once nothing else waits: whoever skips hard ones would make the sample easy.

        Raises:
            ReviewError: the case is decided, or claimed by another person.
        """
        with self._database.write() as connection:
            return claims.release(self._database, connection, name, person(reviewer), note=note, what="skipped")

    def assign(self, name: str, *, to: str | None, by: str) -> Review:
        """Assign a case to one person and end any claim; None opens it to everybody.

        Raises:
            ReviewError: the case is decided.
        """
        whom = None if to is None else person(to)
        with self._database.write() as connection:
            return claims.assign(self._database, connection, name, whom, person(by))

    # -- deciding ------------------------------------------------------------------------------

    def approve(self, name: str, *, reviewer: str, note: str | None = None, marks: Iterable[SpanMark] = ()) -> Review:
        """Approve the model's answer.

        If several reviewers decide at the same time, exactly one succeeds, as for `edit` and `reject`. The decision can
        be undone for ten seconds; until then only reviewers see it. If two reviews are wanted, the first two decisions
        are opinions: if they agree, they are the verdict; otherwise a third person decides.

        Args:
            name: the whole id, or the decision id; a prefix is refused, as in `edit` and `reject`.
            reviewer: login name of the reviewer.
            note: note on the decision.
            marks: spans of the answer that are right, or wrong; see `guard.review.span_marks.numbered_marks`. A span
                without a mark has no label.

        Raises:
            ReviewError: the review does not exist, is decided, claimed by or assigned to another person, has no answer,
                has no such span, or the reviewer has given an opinion on it; or a span of it is marked wrong.
        """
        return self._decide(name, ReviewStatus.APPROVED, reviewer, answer=None, draft="right", note=note, marks=marks)

    def edit(
        self,
        name: str,
        *,
        answer: str,
        draft: Draft | None = None,
        reviewer: str,
        note: str | None = None,
        marks: Iterable[SpanMark] = (),
    ) -> Review:
        """Replace the model's answer by a better one.

        Args:
            name: as in `approve`.
            answer: the better answer.
            draft: whether the model's own answer was right (such as right, but wordy) or wrong; it
                becomes the label. None only if the model gave no answer.
            reviewer, note, marks: as in `approve`.

        Raises:
            ReviewError: as for `approve`; or the answer is empty or the model's own, or ``draft`` is missing.
        """
        return self._decide(name, ReviewStatus.EDITED, reviewer, answer=answer, draft=draft, note=note, marks=marks)

    def reject(
        self,
        name: str,
        *,
        reviewer: str,
        note: str | None = None,
        answer: str | None = None,
        marks: Iterable[SpanMark] = (),
    ) -> Review:
        """Reject the answer as wrong, with or without a right one.

        Raises:
            ReviewError: as for `approve`.
        """
        return self._decide(name, ReviewStatus.REJECTED, reviewer, answer=answer, draft="wrong", note=note, marks=marks)

    def undo(self, name: str, *, reviewer: str) -> Review:
        """Undo the reviewer's decision of the last ten seconds; the case is claimed for them again.

        Raises:
            ReviewError: the reviewer has no decision here, it is final, or an identical case has arrived since.
        """
        with self._database.write() as connection:
            return verdicts.undo(self._database, connection, name, person(reviewer))

    def _decide(self, name: str, status: ReviewStatus, reviewer: str, **verdict: Any) -> Review:
        who = person(reviewer)
        with self._database.write() as connection:
            return verdicts.decide(self._database, connection, name, status, who=who, **verdict)

    # -- what callers get ----------------------------------------------------------------------

    def result(self, name: str) -> ReviewResult:
        """Return the current result of a case for its caller.

        Args:
            name: the decision id of the guarded call, or the review's id.

        Raises:
            ReviewError: there is no such case, or it checks an answer that was accepted.
        """
        return results.read_result(self._database, name)

    def wait(self, name: str, *, timeout_s: float | None = None) -> ReviewResult:
        """Wait until a case has a final decision, or is late.

        Args:
            name: as in `result`; works in any process, also after a restart.
            timeout_s: longest wait in seconds; None for no limit.

        Returns:
            the result; its state is ``waiting`` if the time is up first.

        Raises:
            ReviewError: there is no such case.
            InputError: the time is negative.
        """
        return self._waiting(name, timeout_s).wait()

    async def wait_async(self, name: str, *, timeout_s: float | None = None) -> ReviewResult:
        """`wait` without blocking the event loop."""
        return await self._waiting(name, timeout_s).wait_async()

    def _waiting(self, name: str, timeout_s: float | None) -> Waiting:
        if timeout_s is not None and not timeout_s >= 0:
            raise InputError(f"timeout_s must be at least 0, got {timeout_s}")
        return Waiting(lambda: self.result(name), timeout_s)

    def mark_late(self) -> int:
        """Mark late cases in their trails, and notify endpoints; return their number.

        For callers, a case is late at its due time, whether or not it is marked.
        """
        return results.mark_late(self._database)
