"""Runs the whole procedure of a guard on labelled questions, and stores every attempt that it could make.

A trial run replaces the rule with the risk guarantee by one that accepts nothing, so a guarded call continues as long
as the policy's other rules and its budget allow. For any threshold, a real call makes the same attempts up to the
first accepted one. One trial run therefore shows the answers for every threshold.

Attempts are stored in an SQLite file, one transaction per question, so a killed run can be resumed. Answers are
graded afterwards, so a better grader needs no second run.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np

from guard.certification.fixed_sequence import Trials
from guard.data.fingerprint_journal import FingerprintJournal
from guard.data.graders import Grader
from guard.data.in_order import in_order
from guard.data.labelling import is_wrong
from guard.data.prompts import completion_prompt, question_prompt, with_default_options
from guard.data.questions import LabelledResponse, Row
from guard.data.recording import Skipped
from guard.data.sqlite_journal import asked_digest, row_key
from guard.errors import CaptureError, InputError, PromptTooLongError
from guard.policy.defects import Defect, find_defects
from guard.policy.guarantee import asks_again
from guard.policy.policy import decide_error
from guard.policy.rules import RoutePlan
from guard.records import Action, Attempt
from guard.runtime.guard import Guard
from guard.scores import Score


@dataclass(frozen=True, slots=True)
class TrialAttempt:
    """One attempt, reduced to what a certificate needs.

    Attributes:
        answer: the answer; None if generation failed.
        p_wrong: the score; None if there is none, or if no threshold accepts the attempt: the answer is truncated or
            empty, or the input is out of distribution.
        released: whether the answer is given to the caller at any threshold: by ``on_error: accept``, or as a
            callable's answer.
    """

    answer: str | None
    p_wrong: float | None
    released: bool

    @classmethod
    def from_attempt(cls, attempt: Attempt, plan: RoutePlan) -> Self:
        """Return the part of an attempt that is stored."""
        p_wrong = _comparable(attempt.score, plan, find_defects(attempt.answer or "", attempt.finish_reason))
        return cls(attempt.answer, p_wrong, attempt.decision.action is Action.ACCEPT)


@dataclass(frozen=True, slots=True)
class TrialRow:
    """All attempts at one question, with the digest of its prompt (`guard.data.sqlite_journal.asked_digest`)."""

    key: str
    attempts: tuple[TrialAttempt, ...]
    asked: str = ""


class TrialJournal(FingerprintJournal):
    """The attempts of one run or of one shard of it, on disk; belongs to one fingerprint. Use as a context manager."""

    TABLES = ("fingerprint", "trials")

    def answered(self) -> set[str]:
        """Return the keys of the rows that have attempts; skipped ones are asked again."""
        with self._translated():
            return {key for (key,) in self._db.execute("SELECT key FROM trials WHERE skipped IS NULL")}

    def check_questions(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Refuse rows whose key belongs to attempts at another question.

        Raises:
            InputError: the question of a row differs from the one in the journal.
        """
        with self._translated():
            stored = dict(self._db.execute("SELECT key, asked FROM trials"))
        self._check_asked(rows, stored)

    def keep(self, row: TrialRow | Skipped) -> None:
        """Add a row; it is on disk when this returns."""
        skipped, attempts = (row.reason, "[]") if isinstance(row, Skipped) else (None, _written(row.attempts))
        with self._translated():
            self._db.execute(
                "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?)", (row.key, attempts, skipped, row.asked)
            )

    def row(self, key: str) -> TrialRow | Skipped | None:
        """Return one row's attempts or the reason for skipping it; None if it is not in the journal."""
        with self._translated():
            found = self._db.execute("SELECT attempts, skipped, asked FROM trials WHERE key = ?", (key,)).fetchone()
        if found is None:
            return None
        attempts, skipped, asked = found
        if skipped is not None:
            return Skipped(key, str(skipped), asked)
        try:
            return TrialRow(key, tuple(_read(each) for each in json.loads(attempts)), asked)
        except (ValueError, TypeError) as error:
            why = f"the attempts of '{key}': {error}"
            raise InputError(f"'{self.path}' is damaged", why=why, fix="Delete it to start again") from error

    def _create_rows(self) -> None:
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS trials (key TEXT PRIMARY KEY, attempts TEXT NOT NULL, skipped TEXT, "
            "asked TEXT NOT NULL)"
        )


def run_trials(
    guard: Guard, rows: Sequence[tuple[str, Row]], journal: TrialJournal, *, route: str | None
) -> Iterator[TrialRow | Skipped]:
    """Ask the guard every row that has no attempts in the journal; yield each row once it is stored.

    An engine that answers several requests at the same time is asked several rows at once; they are stored in order.
    Functions that are fallbacks are then called in several threads.

    Args:
        guard: a guard with the policy of `guard.policy.guarantee.trial_policy`.
        rows: pairs of data set name and row.
        journal: the journal of the attempts.
        route: route of the policy.

    Raises:
        InputError: a row is a given response and the policy may ask again, which gives answers without labels; or the
            journal has attempts at another question under a row's key.
    """
    if asks_again(guard.policy.plan(route)):
        for dataset, row in rows:
            if isinstance(row, LabelledResponse):
                raise InputError(
                    f"'{row_key(dataset, row)}' is a given response, but the policy may ask again",
                    why="its label says nothing about the further answers of retries and fallbacks",
                    fix="Certify with questions and accepted answers, or a policy without retries and fallbacks",
                )
    if guard.policy.plan(route).early is not None:
        _refuse_given(rows)
    journal.check_questions(rows)
    known = journal.answered()
    wanted = {key: row for dataset, row in rows if (key := row_key(dataset, row)) not in known}

    def tried(each: tuple[str, Row], cancel: threading.Event) -> TrialRow | Skipped:
        return _tried(guard, *each, route=route, cancel=cancel)

    at_once = getattr(guard.engine, "at_once", 1)
    with contextlib.closing(in_order(tried, wanted.items(), at_once=at_once)) as found:
        for result in found:
            journal.keep(result)
            yield result


def _tried(guard: Guard, key: str, row: Row, *, route: str | None, cancel: threading.Event) -> TrialRow | Skipped:
    try:
        return TrialRow(key, _attempts(guard, row, route, cancel), asked_digest(row))
    except PromptTooLongError as error:
        return Skipped(key, str(error), asked_digest(row))


@dataclass(frozen=True, slots=True)
class AttemptedRow:
    """A row of a data set with all attempts at it."""

    dataset: str
    row: Row
    attempts: tuple[TrialAttempt, ...]


def attempted_rows(rows: Sequence[tuple[str, Row]], journal: TrialJournal) -> list[AttemptedRow]:
    """Return the rows that have attempts in the journal."""
    found = ((dataset, row, journal.row(row_key(dataset, row))) for dataset, row in rows)
    return [AttemptedRow(dataset, row, known.attempts) for dataset, row, known in found if isinstance(known, TrialRow)]


def label_trials(answered: Sequence[AttemptedRow], *, grade: Grader) -> Trials:
    """Grade the attempts; return one row for each of these rows, of which there is at least one."""
    shape = len(answered), max(len(each.attempts) for each in answered)
    p_wrong, wrong, released = np.full(shape, np.inf), np.ones(shape, np.bool_), np.zeros(shape, np.bool_)
    for at, each in enumerate(answered):
        for number, tried in enumerate(each.attempts):
            p_wrong[at, number] = np.inf if tried.p_wrong is None else tried.p_wrong
            wrong[at, number] = tried.answer is None or is_wrong(each.row, tried.answer, grade)
            released[at, number] = tried.released
    return Trials(p_wrong, wrong, released)


def _refuse_given(rows: Sequence[tuple[str, Row]]) -> None:
    """Refuse given responses under a policy that stops answers early: it would not have let all of them be written."""
    for dataset, row in rows:
        if isinstance(row, LabelledResponse):
            raise InputError(
                f"'{row_key(dataset, row)}' is a given response, but the policy stops answers early",
                why="a given response is complete, so its label says nothing about where the policy would have stopped",
                fix="Certify with questions and accepted answers, or a policy without 'early'",
            )


def _attempts(guard: Guard, row: Row, route: str | None, cancel: threading.Event) -> tuple[TrialAttempt, ...]:
    plan = guard.policy.plan(route)
    if not isinstance(row, LabelledResponse):
        prompting = guard.scorer.artefact.prompting
        prompt = (
            completion_prompt(row)
            if prompting.completion
            else question_prompt(row, system=prompting.system, template_options=guard.template_options)
        )
        attempts = guard.attempts(prompt, route=route, cancel=cancel)
        return tuple(TrialAttempt.from_attempt(attempt, plan) for attempt in attempts)
    try:
        score = guard.score(with_default_options(row.prompt, guard.template_options), row.response)
    except CaptureError as error:
        decision = decide_error(guard.policy, error=str(error), route=route, defects=find_defects(row.response, None))
        return (TrialAttempt(row.response, None, released=decision.action is Action.ACCEPT),)
    return (TrialAttempt(row.response, _comparable(score, plan, find_defects(row.response, None)), released=False),)


def _comparable(score: Score | None, plan: RoutePlan, defects: Collection[Defect]) -> float | None:
    """Return the p_wrong to compare with a threshold; None if another rule decides first."""
    if score is None or plan.stopped_by(defects) is not None:
        return None
    ood = plan.out_of_distribution
    if ood is not None and (score.ood_score is None or score.ood_score > ood.above):
        return None
    return score.p_wrong


def _read(stored: dict[str, Any]) -> TrialAttempt:
    tried = TrialAttempt(**stored)
    if not (isinstance(tried.answer, str | None) and isinstance(tried.p_wrong, float | None)):
        raise ValueError("a value is of the wrong type")
    return tried


def _written(attempts: Sequence[TrialAttempt]) -> str:
    return json.dumps([asdict(each) for each in attempts])
