"""What is taken from the review store, once: labels, and how much traffic they are of. Later runs read the copies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from guard.data.questions import LabelledResponse, read_rows
from guard.errors import InputError
from guard.files.write_whole import write_whole
from guard.recalibration.dividing import JudgedAnswer
from guard.replay.comparison import days_between, parse_since, read_minutes
from guard.replay.recorded import read_calls
from guard.review.pages import CaseFilter
from guard.review.store import Store

_LABELS, _TAKEN = "labels.jsonl", "taken.json"


@dataclass(frozen=True, slots=True)
class Traffic:
    """The answers that labels are a sample of.

    Attributes:
        policy: name of the policy that decided about them.
        model: name of the model that gave them.
        since: the time that was asked for, as it was written; None for the whole store.
        days: from the first of them to the time of taking.
        logged: number of calls that ended in ``accept`` and ``escalate``, by route (``""`` for none); None where the
            audit log has no decision of this policy in this time.
        undecided: number of cases that wait for a verdict.
        minutes: of a person's time for one opinion, or None.
        contradicted: number of labels that a later one of the same answer contradicts; they are not used.
        scorer_sha256: digest of the scorer in use when they were taken.
    """

    policy: str
    model: str
    since: str | None
    days: float
    logged: dict[str, dict[str, int]] | None
    undecided: int
    minutes: float | None
    contradicted: int
    scorer_sha256: str


def take_labels(
    store: Store, folder: Path, *, policy: str, since: str | None, labels_of: str | None, scorer_sha256: str
) -> tuple[tuple[JudgedAnswer, ...], Traffic]:
    """Return the verdicts on a policy's answers with their traffic; copied into a folder at the first call.

    Args:
        store: the review store.
        folder: of the recalibration; labels in it are used in place of the store's.
        policy: name of the policy.
        since: a duration such as ``30d``, or an ISO 8601 time with its offset; None for the whole store.
        labels_of: name of the model; None where the store has answers of one model only.
        scorer_sha256: digest of the scorer in use.

    Raises:
        InputError: there are no labels, they are of several models, or those in the folder were taken with other
            arguments.
        StoreError: the store cannot be read.
    """
    if not (folder / _TAKEN).exists():
        _copy(store, folder, policy=policy, since=since, labels_of=labels_of, scorer_sha256=scorer_sha256)
    traffic = _read_traffic(folder / _TAKEN)
    if (traffic.policy, traffic.since) != (policy, since) or labels_of not in (None, traffic.model):
        raise InputError(
            f"'{folder}' has labels that were taken with other options",
            why=f"policy {traffic.policy}, since {traffic.since or 'the beginning'}, model {traffic.model}",
            fix="Give another folder with --into",
        )
    return _read_labels(folder / _LABELS), traffic


def _copy(
    store: Store, folder: Path, *, policy: str, since: str | None, labels_of: str | None, scorer_sha256: str
) -> None:
    with store._database.read() as connection:
        now = store._database.now(connection)
    begin = "" if since is None else parse_since(since, now)
    rows = [row for row in store.labelled(model=labels_of) if row["policy"] == policy and row["created_at"] >= begin]
    model = _one_model(rows, policy, since)
    latest = {_answer(row): row["label"] for row in rows}
    kept = [row for row in rows if row["label"] == latest[_answer(row)]]
    first = min(row["created_at"] for row in rows) if since is None else begin
    traffic = Traffic(
        policy,
        model,
        since,
        days=days_between(first, now),
        logged=_logged(store, policy, first),
        undecided=store.count(CaseFilter(status="pending", policy=policy, since=first)),
        minutes=read_minutes(store),
        contradicted=len(rows) - len(kept),
        scorer_sha256=scorer_sha256,
    )
    write_whole(folder / _LABELS, "".join(json.dumps(row) + "\n" for row in kept), private=True)
    write_whole(folder / _TAKEN, json.dumps(asdict(traffic), indent=1) + "\n", private=True)


def _answer(row: dict[str, Any]) -> str:
    """Return what tells an answer from others, wherever it was given."""
    return json.dumps([row["prompt"], row["response"], row.get("tools"), row.get("template_options")])


def _one_model(rows: Iterable[dict[str, Any]], policy: str, since: str | None) -> str:
    names = sorted({row["model"] for row in rows})
    if not names:
        when = "" if since is None else f" since {since}"
        raise InputError(
            f"There are no final verdicts on answers of the policy '{policy}'{when}",
            fix="Decide cases first: guard review next, guard console",
        )
    if len(names) > 1:
        raise InputError(
            f"The verdicts are on answers of several models: {', '.join(names)}",
            why="a scorer learns from the answers of its own model",
            fix="Name one with --labels-of",
        )
    return str(names[0])


def _logged(store: Store, policy: str, since: str) -> dict[str, dict[str, int]] | None:
    found: dict[str, dict[str, int]] = {}
    for call in read_calls(store.audit_log(), since=since):
        if call.policy == policy:
            counts = found.setdefault(call.route or "", {"accept": 0, "escalate": 0})
            counts[call.action] = counts.get(call.action, 0) + 1
    return found or None


def _read_traffic(path: Path) -> Traffic:
    try:
        return Traffic(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _read_labels(path: Path) -> tuple[JudgedAnswer, ...]:
    try:
        contents = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    rows = [row for row in read_rows(path).rows if isinstance(row, LabelledResponse)]
    if len(rows) != len(contents):
        raise _damaged(path, f"{len(contents) - len(rows)} of its lines are no labels")
    return tuple(map(JudgedAnswer, contents, rows))


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"'{path}' is damaged", why=why, fix="Give another folder with --into")
