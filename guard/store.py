"""The review queue's database: SQLite in a file, or PostgreSQL by URL.

What `Store.add` or a reviewer's decision returned from is on disk: every call is one transaction that
is synced before it returns, so a killed process loses nothing that was accepted.
"""

from __future__ import annotations

import math
import numbers
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from guard import database
from guard.errors import InputError, ReviewError, StoreError, did_you_mean
from guard.migrations.tables import EVENTS, REVIEWS
from guard.records import Attempt, Escalation, Prompt

#: Crockford's base 32: no letter that can be taken for a digit.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 6
_AS_TYPED = str.maketrans({"o": "0", "i": "1", "l": "1"})

#: Metadata and messages that nest deeper are cut off here; this also ends a cycle.
_DEPTH = 64


class ReviewStatus(StrEnum):
    """Where a review stands."""

    PENDING = "pending"
    APPROVED = "approved"
    EDITED = "edited"
    REJECTED = "rejected"


# Queries get plain text: PostgreSQL's driver would write an enum's name in place of its value.
_PENDING = ReviewStatus.PENDING.value


@dataclass(frozen=True, slots=True)
class Review:
    """One escalated case and what became of it.

    Attributes:
        id: six characters, easy to type; ``o`` is read as ``0``, ``i`` and ``l`` as ``1``.
        decision_id: the guarded call that it came from.
        created_at: when that call escalated; ISO 8601, UTC, as all times here.
        route: the caller's route, or None.
        policy: the policy's name.
        model: the model's name.
        question: the question's text, for people.
        prompt: the whole prompt.
        answer: the answer that was not accepted; None when generation itself failed.
        p_wrong: its probability of being wrong; None when scoring failed.
        rule: the rule that fired.
        reason: one sentence.
        attempts: all attempts, in order, each with ``answer``, ``source``, ``p_wrong``,
            ``calibrated``, ``action``, ``rule``, ``reason``, ``prompt_tokens``,
            ``completion_tokens``, ``seconds``, ``sampling``, ``error``, ``finish_reason``.
        metadata: what the caller attached; values that JSON lacks are kept as their text.
        status: pending, or what the reviewer decided.
        final_answer: the answer that the reviewer lets stand, or None.
        reviewer: who decided.
        note: the reviewer's note.
        decided_at: when.
    """

    id: str
    decision_id: str
    created_at: str
    route: str | None
    policy: str
    model: str
    question: str
    prompt: Prompt
    answer: str | None
    p_wrong: float | None
    rule: str
    reason: str
    attempts: tuple[Mapping[str, Any], ...]
    metadata: Mapping[str, Any]
    status: ReviewStatus
    final_answer: str | None
    reviewer: str | None
    note: str | None
    decided_at: str | None


@dataclass(frozen=True, slots=True)
class ReviewEvent:
    """One line of a review's audit trail.

    Attributes:
        at: ISO 8601, UTC.
        who: the reviewer; ``guard`` where the escalation itself added the case.
        what: ``added``, ``approved``, ``edited`` or ``rejected``.
    """

    at: str
    who: str
    what: str


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

        Returns:
            The new review, or the one that exists already for this ``decision_id``.

        Raises:
            StoreError: it could not be written.
            InputError: ``created_at`` is not an ISO 8601 time.
        """
        row = _row_of(escalation)
        with self._database.write() as connection:
            while True:
                row["id"] = "".join(secrets.choice(ALPHABET) for _ in range(ID_LENGTH))
                connection.execute(self._database.insert_new(REVIEWS).values(row))
                known = _first(connection, REVIEWS.c.decision_id == row["decision_id"])
                if known is None:  # the id was taken: draw another
                    continue
                if known.id == row["id"]:
                    _record(connection, known.id, who="guard", what="added")
                return known

    # -- reading -------------------------------------------------------------------------------

    def reviews(
        self, *, status: str | None = None, route: str | None = None, limit: int = 50, offset: int = 0
    ) -> list[Review]:
        """Reviews, those that have waited longest first.

        Args:
            status: only these; a `ReviewStatus` or its name.
            route: only these.
            limit: at most so many.
            offset: leave out so many at the beginning.

        Raises:
            InputError: an unknown status, or a limit or offset out of range.
        """
        if limit < 1 or offset < 0:
            raise InputError(f"limit must be at least 1 and offset at least 0, got {limit} and {offset}")
        query = sa.select(REVIEWS).where(*_matching(status, route))
        query = query.order_by(REVIEWS.c.created_at, REVIEWS.c.id).limit(limit).offset(offset)
        with self._database.read() as connection:
            return _reviews(connection, query)

    def count(self, *, status: str | None = None, route: str | None = None) -> int:
        """How many reviews there are; arguments as in `reviews`."""
        query = sa.select(sa.func.count()).select_from(REVIEWS).where(*_matching(status, route))
        with self._database.read() as connection:
            return int(connection.scalar(query) or 0)

    def review(self, name: str) -> Review:
        """One review by its id, an unambiguous beginning of it, or its decision id.

        Raises:
            ReviewError: there is none, or more than one.
        """
        with self._database.read() as connection:
            return _find(connection, name)

    def history(self, name: str) -> list[ReviewEvent]:
        """A review's audit trail, oldest first; ``name`` as in `review`."""
        with self._database.read() as connection:
            query = sa.select(EVENTS.c.at, EVENTS.c.who, EVENTS.c.what)
            query = query.where(EVENTS.c.review_id == _find(connection, name).id).order_by(EVENTS.c.number)
            return [ReviewEvent(row.at, row.who, row.what) for row in connection.execute(query)]

    def labelled(self, *, route: str | None = None, page: int = 500) -> Iterator[dict[str, Any]]:
        """Decided reviews as rows for `guard calibrate`, in the order they were decided.

        An approved answer was right (label 0); an edited or rejected one was wrong (label 1). Cases
        without an answer have nothing to label and are left out.

        Args:
            route: only these.
            page: how many rows are read at a time.

        Yields:
            ``prompt`` (messages, or a text), ``response``, ``label``, ``id``, ``route``.
        """
        order = sa.tuple_(REVIEWS.c.decided_at, REVIEWS.c.id)
        query = sa.select(REVIEWS).where(
            REVIEWS.c.status != _PENDING, REVIEWS.c.answer.is_not(None), *_matching(None, route)
        )
        query = query.order_by(REVIEWS.c.decided_at, REVIEWS.c.id).limit(page)
        after: tuple[str, str] | None = None
        while True:
            # No transaction stays open between pages: the reader may be slow.
            with self._database.read() as connection:
                reviews = _reviews(connection, query if after is None else query.where(order > after))
            yield from map(_labelled, reviews)
            if len(reviews) < page:
                return
            after = (str(reviews[-1].decided_at), reviews[-1].id)

    # -- deciding ------------------------------------------------------------------------------

    def approve(self, name: str, *, reviewer: str, note: str | None = None) -> Review:
        """Let the model's answer stand.

        Of several reviewers who decide at once exactly one succeeds; this holds for `edit` and
        `reject` too.

        Raises:
            ReviewError: no such review, decided already (says by whom and when), or no answer.
        """
        return self._decide(name, ReviewStatus.APPROVED, None, reviewer, note)

    def edit(self, name: str, *, answer: str, reviewer: str, note: str | None = None) -> Review:
        """Put a better answer in place of the model's.

        Raises:
            ReviewError: as for `approve`, and where the answer is the model's own or empty.
        """
        return self._decide(name, ReviewStatus.EDITED, answer, reviewer, note)

    def reject(self, name: str, *, reviewer: str, note: str | None = None, answer: str | None = None) -> Review:
        """Say that the answer is wrong, with or without a right one.

        Raises:
            ReviewError: as for `approve`.
        """
        return self._decide(name, ReviewStatus.REJECTED, answer, reviewer, note)

    def _decide(self, name: str, status: ReviewStatus, answer: str | None, reviewer: str, note: str | None) -> Review:
        if not reviewer.strip():
            raise InputError("A decision needs the reviewer's name", fix="Give one with --reviewer")
        with self._database.write() as connection:
            review = _find(connection, name)
            if review.status is not ReviewStatus.PENDING:
                raise _decided_already(review)
            _check_answer(review, status, answer)
            decision = {
                "status": status.value,
                "final_answer": review.answer if status is ReviewStatus.APPROVED else _text(answer),
                "reviewer": _text(reviewer.strip()),
                "note": _text(note),
                "decided_at": _now(),
            }
            # On PostgreSQL another reviewer may come in between the look and the change.
            still_pending = sa.and_(REVIEWS.c.id == review.id, REVIEWS.c.status == _PENDING)
            if not connection.execute(sa.update(REVIEWS).where(still_pending).values(decision)).rowcount:
                raise _decided_already(_find(connection, review.id))
            _record(connection, review.id, who=str(decision["reviewer"]), what=status.value)
            return _find(connection, review.id)


# -- queries -----------------------------------------------------------------------------------


def _reviews(connection: Connection, query: sa.Select[Any]) -> list[Review]:
    try:
        return [_review(row) for row in connection.execute(query)]
    except (KeyError, TypeError, ValueError) as error:  # no column has a form that `add` gives it
        raise StoreError("A review is damaged", why=str(error), fix="Restore the store from a backup") from error


def _first(connection: Connection, condition: sa.ColumnElement[bool]) -> Review | None:
    return next(iter(_reviews(connection, sa.select(REVIEWS).where(condition).limit(1))), None)


def _find(connection: Connection, name: str) -> Review:
    key = _text(name.strip().lower().translate(_AS_TYPED))
    if not key:
        raise ReviewError("A review's id must not be empty", fix="Run: guard review list")
    exact = sa.or_(REVIEWS.c.id == key, REVIEWS.c.decision_id == _text(name.strip()))
    found = _first(connection, exact)
    if found:
        return found
    begins = REVIEWS.c.id.startswith(key, autoescape=True)
    near = _reviews(connection, sa.select(REVIEWS).where(begins).order_by(REVIEWS.c.id).limit(6))
    if len(near) == 1:
        return near[0]
    if near:
        several = ", ".join(review.id for review in near[:5]) + (", ..." if len(near) > 5 else "")
        raise ReviewError(f"'{name}' begins more than one review's id", why=several, fix="Type more of it")
    pending = sa.select(REVIEWS.c.id).where(REVIEWS.c.status == _PENDING)
    ids = connection.scalars(pending.order_by(REVIEWS.c.created_at, REVIEWS.c.id).limit(20)).all()
    hint = did_you_mean(str(key), ids) or "Run: guard review list --status all"
    raise ReviewError(f"There is no review '{name}'", fix=hint)


def _matching(status: str | None, route: str | None) -> list[sa.ColumnElement[bool]]:
    conditions = []
    if status is not None:
        if status not in list(ReviewStatus):
            raise InputError(f"There is no status '{status}'", fix=did_you_mean(status, ReviewStatus))
        conditions.append(REVIEWS.c.status == ReviewStatus(status).value)
    if route is not None:
        conditions.append(REVIEWS.c.route == _text(route))
    return conditions


def _record(connection: Connection, review_id: str, *, who: str, what: str) -> None:
    event = {"review_id": review_id, "at": _now(), "who": who, "what": what}
    connection.execute(sa.insert(EVENTS).values(event))


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


# -- records and rows --------------------------------------------------------------------------


def _row_of(escalation: Escalation) -> dict[str, Any]:
    prompt = escalation.prompt
    return {
        "decision_id": _text(escalation.decision_id),
        "created_at": _utc(escalation.created_at),
        "route": _text(escalation.route),
        "policy": _text(escalation.policy),
        "model": _text(escalation.model),
        "question": _text(escalation.question),
        "prompt": _plain({"messages": prompt.messages, "text": prompt.text, "tools": prompt.tools}),
        "answer": _text(escalation.answer),
        "p_wrong": None if escalation.p_wrong is None else float(escalation.p_wrong),
        "rule": _text(escalation.rule),
        "reason": _text(escalation.reason),
        "attempts": [_attempt(attempt) for attempt in escalation.attempts],
        "metadata": _plain(escalation.metadata),
        "status": _PENDING,
    }


def _attempt(attempt: Attempt) -> Any:
    score, decision, sampling = attempt.score, attempt.decision, attempt.sampling
    return _plain(
        {
            "answer": attempt.answer,
            "source": attempt.source,
            "p_wrong": score.p_wrong if score else None,
            "calibrated": score.calibrated if score else None,
            "action": decision.action,
            "rule": decision.rule,
            "reason": decision.reason,
            "prompt_tokens": attempt.prompt_tokens,
            "completion_tokens": attempt.completion_tokens,
            "seconds": attempt.seconds,
            "sampling": {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k", "seed")},
            "error": attempt.error,
            "finish_reason": attempt.finish_reason,
        }
    )


def _review(row: sa.Row[Any]) -> Review:
    values = dict(row._mapping)
    prompt = values.pop("prompt")
    messages = None if prompt["messages"] is None else tuple(prompt["messages"])
    return Review(
        prompt=Prompt(messages=messages, text=prompt["text"], tools=tuple(prompt["tools"])),
        attempts=tuple(values.pop("attempts")),
        metadata=dict(values.pop("metadata")),
        status=ReviewStatus(values.pop("status")),
        **values,
    )


def _labelled(review: Review) -> dict[str, Any]:
    messages = review.prompt.messages
    return {
        "prompt": review.prompt.text if messages is None else [dict(message) for message in messages],
        "response": review.answer,
        "label": 0 if review.status is ReviewStatus.APPROVED else 1,
        "id": review.id,
        "route": review.route,
    }


def _plain(value: Any, depth: int = 0) -> Any:
    """The value in JSON's types; what JSON lacks becomes its text, so that no case is refused for it."""
    if value is None or isinstance(value, bool):
        return value
    if depth > _DEPTH:
        return "..."
    if isinstance(value, Enum):
        return _plain(value.value, depth + 1)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {_text(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes | bytearray):
        return [_plain(item, depth + 1) for item in value]
    return _text(str(value))


def _text(text: str | None) -> str | None:
    """Text that every database can hold: no lone surrogates (UTF-8) and no NUL (PostgreSQL)."""
    if text is None:
        return None
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def _utc(time: str) -> str:
    """One form for all times, so that their text sorts as they do."""
    try:
        parsed = datetime.fromisoformat(time)
    except ValueError as error:
        raise InputError(f"created_at must be an ISO 8601 time, got {time!r:.60}") from error
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return aware.astimezone(UTC).isoformat(timespec="microseconds")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
