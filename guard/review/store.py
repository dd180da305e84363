"""The review queue's database: SQLite in a file, or PostgreSQL by URL.

What `Store.add` or a reviewer's decision returned from is on disk: every call is one transaction that
is synced before it returns, so a killed process loses nothing that was accepted.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard.audit.events import Redaction
from guard.audit.log import AuditLog
from guard.checked import whole_number
from guard.errors import InputError
from guard.records import Escalation
from guard.review import claims, database, insights, pages, queries, results, verdicts
from guard.review.claims import LEASE_S, checked_lease, person
from guard.review.insights import Insights
from guard.review.migrations.tables import EVENTS, REPEATS, REVIEWS
from guard.review.pages import CaseFilter, Order, Page
from guard.review.queries import ALPHABET, ID_LENGTH, SHORTEST
from guard.review.records import (
    Draft,
    Repeat,
    Review,
    ReviewEvent,
    ReviewStatus,
    text_of,
    to_labelled_row,
    to_repeat,
    to_repeat_row,
    to_row,
)
from guard.review.results import ReviewResult, Waiting
from guard.review.short_lived import ShortLived
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
    """Reviews in a database. Safe under threads; open one in each process (never across a fork)."""

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
            create: whether a missing SQLite file is made; otherwise it is an error.
            timeout_s: seconds to wait for a lock that another process holds, or for a server.

        Raises:
            StoreError: it cannot be opened, is not a review store, or is of a newer guard.
            MissingExtraError: a PostgreSQL URL without psycopg.
        """
        return cls(database.connect(url, create=create, timeout_s=timeout_s))

    def audit_log(self, *, keep_text: bool = False, redaction: Redaction | None = None) -> AuditLog:
        """Return the audit log in this database; the store adds every case and verdict to it.

        Args:
            keep_text: see `guard.audit.log.AuditLog`; here as there the log has only hashes of texts by default.
            redaction: see there.
        """
        return AuditLog(self._database, keep_text=keep_text, redaction=redaction)

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
        """Put a case into the queue; it is on disk when this returns.

        A case like one that waits already (same prompt, answer, policy, model and route) is counted there
        and kept in its `repeats`, so that a person decides it once.

        Returns:
            The new review, or the one that exists already for this ``decision_id`` or this case.

        Raises:
            StoreError: it could not be written.
            InputError: ``created_at`` is not an ISO 8601 time.
        """
        row = to_row(escalation)
        with self._database.write() as connection:
            known = queries.by_decision(connection, row["decision_id"])
            while known is None:
                known = self._repeated(connection, escalation, row) or self._new(connection, row)
            return known

    def _new(self, connection: Connection, row: dict[str, Any]) -> Review | None:
        """Add a case; None where its id was taken, or an identical case came in at this moment."""
        row["id"] = "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
        number = sa.select(sa.func.coalesce(sa.func.max(REVIEWS.c.number), 0) + 1).scalar_subquery()
        numbered = {**row, "number": number} if connection.dialect.name == "sqlite" else row
        connection.execute(self._database.insert_new(REVIEWS).values(numbered))
        known = queries.by_decision(connection, row["decision_id"])
        if known is not None and known.id == row["id"]:
            queries.record(connection, known.id, at=self._database.now(connection), who="guard", what="added")
        return known

    def _repeated(self, connection: Connection, escalation: Escalation, row: dict[str, Any]) -> Review | None:
        """Count a case on the open one that it repeats; None where there is none."""
        same = results.find_same(connection, row["fingerprint"], self._database.now(connection))
        if same is None:
            return None
        open_one = queries.locked(connection, same.id)
        at = self._database.now(connection)
        if results.is_overdue(open_one, at):  # its caller has an answer; this one's has time
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
        """Return a page of the queue; each page costs the same, however far down it is.

        Args:
            chosen: which cases.
            order: ``due`` (what is due first; cases that may wait forever come last, by age), ``doubtful`` (the
                largest p_wrong first; no score counts as the most doubtful), ``oldest``, ``newest``, or ``decided``
                (the newest verdict first).
            after, before: `Page.after` or `Page.before` of another page with the same filter and order.
            limit: the largest number of reviews to return.

        Raises:
            InputError: an argument or a value of the filter is not one of those that there are.
        """
        limit = whole_number("limit", limit, least=1, most=1000)
        with self._database.read() as connection:
            at = self._database.now(connection)
            return pages.read_page(connection, chosen, at, order=order, after=after, before=before, limit=limit)

    def reviews(
        self, *, status: str | None = None, route: str | None = None, kind: CaseKind | None = None, limit: int = 50
    ) -> list[Review]:
        """Return the reviews that have waited longest; `page` has more filters and orders.

        Raises:
            InputError: an unknown status or kind, or a limit out of range.
        """
        chosen = CaseFilter(status=status, route=route, kind=kind)
        return list(self.page(chosen, order="oldest", limit=limit).reviews)

    def count(self, chosen: CaseFilter = _EVERYTHING) -> int:
        """Return how many cases there are, exactly up to `guard.review.pages.COUNTED`; more are that and one.

        Raises:
            InputError: as for `page`.
        """
        with self._database.read() as connection:
            return pages.read_count(connection, chosen, self._database.now(connection))

    def stats(self) -> QueueStats:
        """Return the queue in figures: what waits, who decides how much, and how far people agree."""
        with self._database.read() as connection:
            return read_stats(connection, self._database.now(connection))

    def review(self, name: str) -> Review:
        """Return one review by its id, an unambiguous beginning of it, or its decision id.

        Raises:
            ReviewError: there is none, or more than one.
        """
        with self._database.read() as connection:
            return queries.find(connection, name)

    def history(self, name: str, *, whole: bool = False) -> list[ReviewEvent]:
        """Return a review's audit trail, oldest first; ``name`` as in `review`.

        Args:
            name: the review.
            whole: also what opinions say while the case waits for another one; without it a second reviewer stays
                blind.
        """
        with self._database.read() as connection:
            columns = [EVENTS.c[field] for field in ReviewEvent.__dataclass_fields__]
            review = queries.find(connection, name)
            query = sa.select(*columns).where(EVENTS.c.review_id == review.id)
            events = [ReviewEvent(*row) for row in connection.execute(query.order_by(EVENTS.c.number))]
        return events if whole or verdicts.is_open_to_all(review) else [event.blind() for event in events]

    def opinions(self, name: str) -> list[Opinion]:
        """Return the opinions on a case that stand, in the order they were given; ``name`` as in `review`.

        Show them to nobody who may still give one: a second opinion is blind.
        """
        with self._database.read() as connection:
            return verdicts.opinions(connection, queries.find(connection, name).id)

    def repeats(self, name: str) -> list[Repeat]:
        """Return the identical cases that came in while a review waited, oldest first; ``name`` as in `review`."""
        with self._database.read() as connection:
            query = sa.select(REPEATS).where(REPEATS.c.review_id == queries.find(connection, name).id)
            rows = connection.execute(query.order_by(REPEATS.c.created_at, REPEATS.c.decision_id))
            return [to_repeat(row) for row in rows]

    def labelled(
        self, *, route: str | None = None, model: str | None = None, page: int = 500
    ) -> Iterator[dict[str, Any]]:
        """Reviews whose decision is final as rows for `guard calibrate`, in the order they were decided.

        The label is what the reviewer said of the model's answer: 0 right (approved, or edited with
        ``draft="right"``), 1 wrong. Cases without an answer have nothing to label and are left out.

        Args:
            route: only these.
            model: only these; a scorer learns from its own model's answers.
            page: how many rows are read at a time.

        Yields:
            ``id``, ``prompt`` (messages, or a text), ``response``, ``label``, ``model``, ``policy``, ``route``,
            ``verdict``, ``better`` (the reviewer's answer in place of the model's, or None), ``note``,
            ``reviewer``, and ``tools`` where the prompt has some.
        """
        page = whole_number("page", page, least=1)
        order = sa.tuple_(REVIEWS.c.decided_at, REVIEWS.c.id)
        query = queries.selected().where(queries.has_verdict(), REVIEWS.c.answer.is_not(None))
        for column, value in ((REVIEWS.c.route, route), (REVIEWS.c.model, model)):
            query = query if value is None else query.where(column == text_of(value))
        query = query.order_by(REVIEWS.c.decided_at, REVIEWS.c.id).limit(page)
        after: tuple[str, str] | None = None
        while True:
            # No transaction stays open between pages: the reader may be slow.
            with self._database.read() as connection:
                at = self._database.now(connection)
                reviews = queries.reviews_of(connection, query if after is None else query.where(order > after))
            yield from (to_labelled_row(review) for review in reviews if str(review.final_at) <= at)
            if len(reviews) < page:
                return
            after = (str(reviews[-1].decided_at), reviews[-1].id)

    def insights(self, *, days: int, routes: frozenset[str] | None = None, route: str | None = None) -> Insights:
        """Return what came and became of it in the last days, counted by the database.

        Args:
            days: today and the days before it, in UTC.
            routes: only these; None for all.
            route: only this one.
        """
        with self._database.read() as connection:
            at = self._database.now(connection)
            return insights.read_insights(connection, at, days=days, routes=routes, route=route)

    def routes(self, among: frozenset[str] | None = None) -> list[str]:
        """Return the routes of the cases that there are, those among these; at most `guard.review.insights.ROUTES`."""
        with self._database.read() as connection:
            return insights.read_routes(connection, among)

    # -- claiming ------------------------------------------------------------------------------

    def claim(self, name: str, *, reviewer: str, lease_s: float = LEASE_S) -> Review:
        """Take a case, so that nobody else works on it until the lease ends; who has it already keeps it for longer.

        Args:
            name: the whole id, or the decision id.
            reviewer: who takes it.
            lease_s: seconds from now.

        Raises:
            ReviewError: no such case, decided, taken by or assigned to somebody else, or the reviewer has given
                an opinion on it.
            InputError: the lease is not above 0, or longer than a day.
        """
        who, lease_s = person(reviewer), checked_lease(lease_s)
        with self._database.write() as connection:
            return claims.claim(self._database, connection, name, who, lease_s)

    def claim_next(self, *, reviewer: str, route: str | None = None, lease_s: float = LEASE_S) -> Review | None:
        """Take the next case: one that the reviewer has already, else by priority and due time; late ones come last.

        Cases that the reviewer has skipped or given an opinion on are left out. Any number of reviewers may ask at
        once: each gets a case of their own.

        Returns:
            The case, or None where there is none for this reviewer.

        Raises:
            InputError: as for `claim`.
        """
        who, lease_s = person(reviewer), checked_lease(lease_s)
        with self._database.write() as connection:
            return claims.claim_next(self._database, connection, who, route, lease_s)

    def release(self, name: str, *, reviewer: str) -> Review:
        """Give a case back.

        Raises:
            ReviewError: the reviewer has not claimed it.
        """
        with self._database.write() as connection:
            return claims.release(self._database, connection, name, person(reviewer), note=None, what="released")

    def skip(self, name: str, *, reviewer: str, note: str | None = None) -> Review:
        """Leave a case to others: it is given back, and `claim_next` does not offer it to the reviewer again.

        An audit case is offered again once nothing else waits: whoever skips hard ones would make the sample easy.

        Raises:
            ReviewError: it is decided, or claimed by somebody else.
        """
        with self._database.write() as connection:
            return claims.release(self._database, connection, name, person(reviewer), note=note, what="skipped")

    def assign(self, name: str, *, to: str | None, by: str) -> Review:
        """Reserve a case for one person, ending any claim; None opens it to everybody again.

        Raises:
            ReviewError: it is decided.
        """
        whom = None if to is None else person(to)
        with self._database.write() as connection:
            return claims.assign(self._database, connection, name, whom, person(by))

    # -- deciding ------------------------------------------------------------------------------

    def approve(self, name: str, *, reviewer: str, note: str | None = None) -> Review:
        """Let the model's answer stand.

        Of several reviewers who decide at once exactly one succeeds; this holds for `edit` and
        `reject` too. The decision can be undone for ten seconds; nobody but reviewers learns of it before. Where two
        reviews are wanted, the first two decisions are opinions: if they agree they are the verdict, otherwise a
        third person's decision is.

        Args:
            name: the whole id, or the decision id; here as in `edit` and `reject` a part will not do.
            reviewer: who decides.
            note: to keep with the decision.

        Raises:
            ReviewError: no such review, decided already (says by whom and when), claimed by or assigned to somebody
                else, no answer, or the reviewer has given an opinion on it.
        """
        return self._decide(name, ReviewStatus.APPROVED, None, "right", reviewer, note)

    def edit(
        self, name: str, *, answer: str, draft: Draft | None = None, reviewer: str, note: str | None = None
    ) -> Review:
        """Put a better answer in place of the model's.

        Args:
            name: as in `approve`.
            answer: the better answer.
            draft: whether the model's own answer was right (such as right, but wordy) or wrong; it
                becomes the label. None only where the model gave no answer.
            reviewer: as in `approve`.
            note: as in `approve`.

        Raises:
            ReviewError: as for `approve`, where the answer is the model's own or empty, or ``draft`` is missing.
        """
        return self._decide(name, ReviewStatus.EDITED, answer, draft, reviewer, note)

    def reject(self, name: str, *, reviewer: str, note: str | None = None, answer: str | None = None) -> Review:
        """Say that the answer is wrong, with or without a right one.

        Raises:
            ReviewError: as for `approve`.
        """
        return self._decide(name, ReviewStatus.REJECTED, answer, "wrong", reviewer, note)

    def undo(self, name: str, *, reviewer: str) -> Review:
        """Take back what the reviewer decided less than ten seconds ago; the case is theirs again.

        Raises:
            ReviewError: they decided nothing here, it is final, or an identical case has come in since.
        """
        with self._database.write() as connection:
            return verdicts.undo(self._database, connection, name, person(reviewer))

    def _decide(
        self, name: str, status: ReviewStatus, answer: str | None, draft: str | None, reviewer: str, note: str | None
    ) -> Review:
        who = person(reviewer)
        with self._database.write() as connection:
            return verdicts.decide(
                self._database, connection, name, status, answer=answer, draft=draft, who=who, note=note
            )

    # -- what callers get ----------------------------------------------------------------------

    def result(self, name: str) -> ReviewResult:
        """Return what became of a case for its caller, now.

        Args:
            name: the decision id of the guarded call, or the review's id.

        Raises:
            ReviewError: there is no such case, or it checks an answer that was accepted.
        """
        return results.read_result(self._database, name)

    def wait(self, name: str, *, timeout_s: float | None = None) -> ReviewResult:
        """Wait until a case is decided and past undoing, or late.

        Args:
            name: as in `result`. It works in any process, also after a restart.
            timeout_s: seconds to wait at most; None for as long as it takes.

        Returns:
            The result; its state is ``waiting`` where the time was up first.

        Raises:
            ReviewError: there is no such case.
            InputError: a negative time.
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
        """Mark every case that is late, so that its trail and its notifications say so; return how many were.

        Callers need not wait for this: for them a case is late at its due time.
        """
        return results.mark_late(self._database)
