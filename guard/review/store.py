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
from guard.errors import InputError, ReviewError, StoreError, did_you_mean
from guard.records import Escalation
from guard.review import database
from guard.review.migrations.tables import EVENTS, REPEATS, REVIEWS
from guard.review.records import (
    VERDICT,
    Draft,
    Repeat,
    Review,
    ReviewEvent,
    ReviewStatus,
    case_event,
    now,
    text_of,
    to_labelled_row,
    to_repeat,
    to_repeat_row,
    to_review,
    to_row,
    verdict_event,
)

__all__ = ["ALPHABET", "ID_LENGTH", "SHORTEST", "Repeat", "Review", "ReviewEvent", "ReviewStatus", "Store"]

#: Crockford's base 32: no letter that can be taken for a digit.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 6
_AS_TYPED = str.maketrans({"o": "0", "i": "1", "l": "1"})


# Queries get plain text: PostgreSQL's driver would write an enum's name in place of its value.
_PENDING = ReviewStatus.PENDING.value

#: The least of an id that stands for it: with fewer characters a slip of the finger names another case.
SHORTEST = 4

_VERDICTS = EVENTS.alias("verdicts")


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
            known = _by_decision(connection, row["decision_id"])
            while known is None:
                row["id"] = "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
                connection.execute(self._database.insert_new(REVIEWS).values(row))
                known = _by_decision(connection, row["decision_id"]) or self._repeated(connection, escalation, row)
                if known is not None and known.id == row["id"]:
                    _record(connection, known.id, {"at": now(), "who": "guard", "what": "added"})
                    self.audit_log().append_in(connection, "case", **case_event(known))
            return known

    def _repeated(self, connection: Connection, escalation: Escalation, row: dict[str, Any]) -> Review | None:
        """Count a case on the open one that it repeats; None where there is none, as the id was taken."""
        same = sa.and_(REVIEWS.c.fingerprint == row["fingerprint"], REVIEWS.c.status == _PENDING)
        if (open_one := _first(connection, same)) is None:
            return None
        repeat = {**to_repeat_row(escalation), "review_id": open_one.id}
        connection.execute(self._database.insert_new(REPEATS).values(repeat))
        return _first(connection, REVIEWS.c.id == open_one.id)

    # -- reading -------------------------------------------------------------------------------

    def reviews(
        self, *, status: str | None = None, route: str | None = None, limit: int = 50, offset: int = 0
    ) -> list[Review]:
        """Reviews, those that have waited longest first.

        Args:
            status: only these; a `ReviewStatus` or its name.
            route: only these.
            limit: the largest number of reviews to return.
            offset: the number of reviews to skip.

        Raises:
            InputError: an unknown status, or a limit or offset out of range.
        """
        limit, offset = whole_number("limit", limit, least=1), whole_number("offset", offset, least=0)
        query = _selected().where(*_matching(status, route))
        query = query.order_by(REVIEWS.c.created_at, REVIEWS.c.id).limit(limit).offset(offset)
        with self._database.read() as connection:
            return _reviews(connection, query)

    def count(self, *, status: str | None = None, route: str | None = None) -> int:
        """Return how many reviews there are; arguments as in `reviews`."""
        query = sa.select(sa.func.count()).select_from(REVIEWS).where(*_matching(status, route))
        with self._database.read() as connection:
            return int(connection.scalar(query) or 0)

    def review(self, name: str) -> Review:
        """Return one review by its id, an unambiguous beginning of it, or its decision id.

        Raises:
            ReviewError: there is none, or more than one.
        """
        with self._database.read() as connection:
            return _find(connection, name)

    def history(self, name: str) -> list[ReviewEvent]:
        """Return a review's audit trail, oldest first; ``name`` as in `review`."""
        with self._database.read() as connection:
            columns = [EVENTS.c[field] for field in ReviewEvent.__dataclass_fields__]
            query = sa.select(*columns).where(EVENTS.c.review_id == _find(connection, name).id)
            return [ReviewEvent(*row) for row in connection.execute(query.order_by(EVENTS.c.number))]

    def repeats(self, name: str) -> list[Repeat]:
        """Return the identical cases that came in while a review waited, oldest first; ``name`` as in `review`."""
        with self._database.read() as connection:
            query = sa.select(REPEATS).where(REPEATS.c.review_id == _find(connection, name).id)
            rows = connection.execute(query.order_by(REPEATS.c.created_at, REPEATS.c.decision_id))
            return [to_repeat(row) for row in rows]

    def labelled(
        self, *, route: str | None = None, model: str | None = None, page: int = 500
    ) -> Iterator[dict[str, Any]]:
        """Decided reviews as rows for `guard calibrate`, in the order they were decided.

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
        query = _selected().where(
            # A case that has a verdict in the trail and none in the review must be found, not left out.
            sa.or_(REVIEWS.c.status != _PENDING, _VERDICTS.c.what.is_not(None)),
            REVIEWS.c.answer.is_not(None),
            *_matching(None, route, model),
        )
        query = query.order_by(REVIEWS.c.decided_at, REVIEWS.c.id).limit(page)
        after: tuple[str, str] | None = None
        while True:
            # No transaction stays open between pages: the reader may be slow.
            with self._database.read() as connection:
                reviews = _reviews(connection, query if after is None else query.where(order > after))
            yield from map(to_labelled_row, reviews)
            if len(reviews) < page:
                return
            after = (str(reviews[-1].decided_at), reviews[-1].id)

    # -- deciding ------------------------------------------------------------------------------

    def approve(self, name: str, *, reviewer: str, note: str | None = None) -> Review:
        """Let the model's answer stand.

        Of several reviewers who decide at once exactly one succeeds; this holds for `edit` and
        `reject` too.

        Args:
            name: the whole id, or the decision id; here as in `edit` and `reject` a part will not do.
            reviewer: who decides.
            note: to keep with the decision.

        Raises:
            ReviewError: no such review, decided already (says by whom and when), or no answer.
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

    def _decide(
        self, name: str, status: ReviewStatus, answer: str | None, draft: str | None, reviewer: str, note: str | None
    ) -> Review:
        if not reviewer.strip():
            raise InputError("A decision needs the reviewer's name", fix="Give one with --reviewer")
        with self._database.write() as connection:
            review = _locked(connection, name)
            if review.status is not ReviewStatus.PENDING:
                raise _decided_already(review)
            _check_answer(review, status, answer)
            verdict = {
                "status": status.value,
                "final_answer": review.answer if status is ReviewStatus.APPROVED else text_of(answer),
                "draft": _checked_draft(review, draft),
                "reviewer": text_of(reviewer.strip()),
                "note": text_of(note),
                "decided_at": now(),
            }
            # The trail first: the database lets no verdict into the review that is not there.
            _record(connection, review.id, {kept: verdict[column] for column, kept in VERDICT.items()})
            connection.execute(sa.update(REVIEWS).where(REVIEWS.c.id == review.id).values(verdict))
            decided = _exactly(connection, review.id)
            self.audit_log().append_in(connection, "verdict", **verdict_event(decided))
            return decided


# -- queries -----------------------------------------------------------------------------------


def _selected() -> sa.Select[Any]:
    """Reviews, each with the verdict in its trail and the number of its repeats."""
    repeats = sa.select(sa.func.count()).where(REPEATS.c.review_id == REVIEWS.c.id).scalar_subquery()
    trail = [_VERDICTS.c[kept].label(f"trail_{column}") for column, kept in VERDICT.items()]
    joined = sa.and_(_VERDICTS.c.review_id == REVIEWS.c.id, _VERDICTS.c.what != "added")
    query = sa.select(REVIEWS, repeats.label("repeats"), *trail)
    return query.select_from(REVIEWS.outerjoin(_VERDICTS, joined))


def _reviews(connection: Connection, query: sa.Select[Any]) -> list[Review]:
    try:
        return [to_review(row) for row in connection.execute(query)]
    except (KeyError, TypeError, ValueError) as error:  # no column has a form that `add` gives it
        raise StoreError("A review is damaged", why=str(error), fix="Restore the store from a backup") from error


def _first(connection: Connection, condition: sa.ColumnElement[bool]) -> Review | None:
    return next(iter(_reviews(connection, _selected().where(condition).limit(1))), None)


def _by_decision(connection: Connection, decision_id: str | None) -> Review | None:
    """Return the review of a guarded call, its own or the one that it repeats."""
    repeated = sa.select(REPEATS.c.review_id).where(REPEATS.c.decision_id == decision_id)
    return _first(connection, sa.or_(REVIEWS.c.decision_id == decision_id, REVIEWS.c.id.in_(repeated)))


def _find(connection: Connection, name: str) -> Review:
    """Return a review by its id, a beginning of it, or a decision id."""
    key = _typed(name)
    if (found := _named(connection, name)) is not None:
        return found
    near: list[Review] = []
    if SHORTEST <= len(key) <= ID_LENGTH:
        begins = REVIEWS.c.id.startswith(key, autoescape=True)
        near = _reviews(connection, _selected().where(begins).order_by(REVIEWS.c.id).limit(6))
    if len(near) == 1:
        return near[0]
    if near:
        several = ", ".join(review.id for review in near[:5]) + (", ..." if len(near) > 5 else "")
        raise ReviewError(f"'{name}' begins more than one review's id", why=several, fix="Type more of it")
    raise _unknown(connection, name)


def _exactly(connection: Connection, name: str) -> Review:
    """Return a review by its whole id or a decision id; a beginning could be a slip, and a decision is final."""
    if (found := _named(connection, name)) is not None:
        return found
    raise _unknown(connection, name)


def _locked(connection: Connection, name: str) -> Review:
    """Return the review, which nobody else can decide until the transaction ends (SQLite has locked it all)."""
    review = _exactly(connection, name)
    connection.execute(sa.select(REVIEWS.c.id).where(REVIEWS.c.id == review.id).with_for_update())
    return _exactly(connection, review.id)


def _named(connection: Connection, name: str) -> Review | None:
    by_id = _first(connection, REVIEWS.c.id == _typed(name))
    return by_id or _by_decision(connection, text_of(name.strip()))


def _typed(name: str) -> str:
    key = text_of(name.strip().lower().translate(_AS_TYPED)) or ""
    if not key:
        raise ReviewError("A review's id must not be empty", fix="Run: guard review list")
    return key


def _unknown(connection: Connection, name: str) -> ReviewError:
    pending = sa.select(REVIEWS.c.id).where(REVIEWS.c.status == _PENDING)
    ids = connection.scalars(pending.order_by(REVIEWS.c.created_at, REVIEWS.c.id).limit(20)).all()
    key = _typed(name)
    if any(known.startswith(key) for known in ids):
        return ReviewError(f"'{name}' is too short to name a review", fix="Type the whole id; see guard review list")
    hint = did_you_mean(key, ids) or "Run: guard review list --status all"
    return ReviewError(f"There is no review '{name}'", fix=hint)


def _matching(status: str | None, route: str | None, model: str | None = None) -> list[sa.ColumnElement[bool]]:
    conditions = []
    if status is not None:
        if status not in list(ReviewStatus):
            raise InputError(f"There is no status '{status}'", fix=did_you_mean(status, ReviewStatus))
        conditions.append(REVIEWS.c.status == ReviewStatus(status).value)
    for column, value in ((REVIEWS.c.route, route), (REVIEWS.c.model, model)):
        if value is not None:
            conditions.append(column == text_of(value))
    return conditions


def _record(connection: Connection, review_id: str, event: dict[str, str | None]) -> None:
    connection.execute(sa.insert(EVENTS).values(review_id=review_id, **event))


def _checked_draft(review: Review, draft: str | None) -> str | None:
    """Return what the reviewer says of the model's answer; only where there is one."""
    if review.answer is None:
        return None
    if draft not in ("right", "wrong"):
        raise ReviewError(
            f"The edit of review {review.id} must say whether the model's own answer was right or wrong",
            why=f"it becomes a label for calibration, and draft is {draft!r:.40}",
            fix="Give --draft right (such as right, but wordy) or --draft wrong",
        )
    return draft


def _check_answer(review: Review, status: ReviewStatus, answer: str | None) -> None:
    if status is ReviewStatus.APPROVED and review.answer is None:
        raise ReviewError(
            f"Review {review.id} has no answer to approve", why="generation failed", fix="Edit or reject it"
        )
    if status is ReviewStatus.EDITED and not (answer or "").strip():
        raise ReviewError("An edited answer must not be empty", fix="Reject the review to give no answer")
    if answer is not None and review.answer is not None and answer.strip() == review.answer.strip():
        # It would be labelled wrong, which it is not.
        raise ReviewError(f"The answer of review {review.id} is unchanged", fix="Approve it as it is")


def _decided_already(review: Review) -> ReviewError:
    return ReviewError(
        f"Review {review.id} has been decided already",
        why=f"{review.status} by {review.reviewer} at {review.decided_at}",
        fix=f"See: guard review show {review.id}",
    )
