"""The audit log for auditors: whether it is as it was written, its entries, and proofs of them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from guard.access import Permission
from guard.audit.log import AuditLog, Entry
from guard.audit.notes import PublicKey
from guard.audit.recent import latest_checkpoint, newest_entries
from guard.console.desk import PageError, TheForm, TheVisit, Visit
from guard.errors import InputError, MissingExtraError, ReviewError

router = APIRouter()

#: Entries on a page.
LENGTH = 50

#: Digits of an entry's number.
_DIGITS = 12


@dataclass(frozen=True, slots=True)
class EntryLine:
    """One entry for people.

    Attributes:
        number, leaf: as in `guard.audit.log.Entry`.
        event: its fields.
        what: it in a few words.
    """

    number: int
    leaf: str
    event: dict[str, Any]
    what: str

    @classmethod
    def of(cls, entry: Entry) -> EntryLine:
        """Return an entry's line."""
        event = json.loads(entry.event)
        return cls(entry.number, entry.leaf, event, in_words(event))


def in_words(event: dict[str, Any]) -> str:
    """Return what an event is, in a few words.

    Examples:
        >>> in_words({"kind": "decision", "action": "escalate", "policy": "balanced", "p_wrong": 0.741})
        'escalate by balanced, p(wrong) 0.74'
    """
    match event.get("kind"):
        case "decision":
            p_wrong = event.get("p_wrong")
            score = "no score" if p_wrong is None else f"p(wrong) {p_wrong:.2f}"
            return f"{event.get('action')} by {event.get('policy')}, {score}"
        case "review":
            return f"{event.get('what')} {event.get('review_id')}"
        case "policy":
            return f"{event.get('subject')} in mode {event.get('mode')}"
    return str(event.get("subject"))


@router.get("/audit")
def show_log(visit: TheVisit, q: str = "", before: str = "") -> Response:
    """Return the newest entries, or those about something."""
    return _log_page(visit, q=q.strip(), before=before)


@router.post("/audit/verify")
def verify_log(visit: TheVisit, form: TheForm) -> Response:
    """Check the whole log, also against a checkpoint that was kept elsewhere."""
    log, key, note = _open_log(visit), form.get("key", "").strip(), form.get("note", "").strip()
    try:
        public = PublicKey.parse(key) if key else _own_key(visit)
        if note and public is None:
            raise InputError("A checkpoint from elsewhere needs the key that signed it", fix="Give its verifier key")
    except (InputError, MissingExtraError) as error:
        return _log_page(visit, error=str(error), typed=form, status=422)
    visit.desk.log_checks.begin(log, key=public, copies=(f"{note}\n",) if note else ())
    return visit.go("/audit")


@router.post("/audit/checkpoint")
def make_checkpoint(visit: TheVisit) -> Response:
    """Record the log's size and root, and show the note, to be kept elsewhere."""
    return _log_page(visit, note=_open_log(visit).checkpoint(visit.desk.settings.signing_key))


@router.get("/audit/{number}")
def show_entry(visit: TheVisit, number: str) -> Response:
    """Return one entry with all of its fields."""
    log = _open_log(visit)
    line = EntryLine.of(_entry(log, number))
    latest = latest_checkpoint(log)
    covered = latest is not None and line.number < latest.size
    return visit.page("audit_entry.html.j2", here="audit", line=line, latest=latest, covered=covered)


@router.get("/audit/{number}/proof")
def download_proof(visit: TheVisit, number: str) -> Response:
    """Return the proof that an entry is in the tree of the latest checkpoint, as a file."""
    log = _open_log(visit)
    entry = _entry(log, number)
    try:
        (proof,) = log.prove(entry.number)
    except InputError as error:
        raise PageError(409, "There is no proof yet", str(error)) from None
    content = asdict(proof)
    content["checkpoint"]["root"] = proof.checkpoint.root.hex()
    name = f'attachment; filename="entry-{entry.number}-proof.json"'
    return JSONResponse(content, headers={"content-disposition": name})


def _open_log(visit: Visit) -> AuditLog:
    """Return the log, for whoever may read it on all routes: its entries are of all."""
    visit.require(Permission.READ_LOG, None)
    return visit.desk.store.audit_log()


def _own_key(visit: Visit) -> PublicKey | None:
    key = visit.desk.settings.signing_key
    return None if key is None else key.public


def _entry(log: AuditLog, number: str) -> Entry:
    found = next(log.entries(int(number)), None) if _is_number(number) else None
    if found is None or found.number != int(number):
        raise PageError(404, "There is no such entry", "Entries are numbered from 0.")
    return found


def _log_page(
    visit: Visit,
    *,
    q: str = "",
    before: str = "",
    note: str = "",
    error: str = "",
    typed: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    log = _open_log(visit)
    found = _about(visit, log, q) if q else _before(log, before)
    checks, settings = visit.desk.log_checks, visit.desk.settings
    return visit.page(
        "audit.html.j2",
        status=status,
        here="audit",
        size=sum(entry.number + 1 for entry in newest_entries(log, 1)),
        lines=[EntryLine.of(entry) for entry in found],
        q=q,
        first=found[-1].number if found and not q else 0,
        last=checks.last,
        since=checks.since,
        latest=latest_checkpoint(log),
        key=str(settings.signing_key.public) if settings.signing_key is not None else "",
        note=note,
        error=error,
        typed=typed or {},
    )


def _before(log: AuditLog, before: str) -> list[Entry]:
    """Return the entries before a number, the newest first; those at the end for what is no number."""
    return newest_entries(log, LENGTH, before=int(before) if _is_number(before) else None)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS


def _about(visit: Visit, log: AuditLog, q: str) -> list[Entry]:
    """Return entries by a number, a case's id, a decision's id, or another subject such as ``policy balanced``."""
    if _is_number(q):
        return [entry for entry in islice(log.entries(int(q)), 1) if entry.number == int(q)]
    found = [*islice(log.entries(subject=q), LENGTH)]
    if found:
        return found
    try:
        return [*islice(log.entries(subject=visit.desk.store.review(q).decision_id), LENGTH)]
    except ReviewError:
        return []
