"""Put labelled questions through a guard's whole procedure, and keep every attempt that it could make.

With a rule that accepts nothing in place of the promise, a guarded call goes on as long as the policy's
other rules and its budget let it. Whatever threshold is chosen later, the real call makes these same
attempts up to the first that is accepted. So one run is enough to see every threshold's answers.

Attempts are kept in a SQLite file, one transaction a question: a run can be killed at any moment and
goes on where it was. Labels are made afterwards, so that a better grader needs no second run.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from guard.certification.fixed_sequence import Trials
from guard.data.graders import Grader, is_wrong
from guard.data.prompts import completion_prompt, question_prompt, with_default_options
from guard.data.questions import LabelledResponse, Row
from guard.data.recording import Skipped
from guard.data.sqlite_journal import JournalFile, asked_digest, row_key
from guard.errors import CaptureError, InputError, PromptTooLongError
from guard.policy.certificate import Fingerprint
from guard.policy.defects import Defect, defects_of
from guard.policy.guarantee import asks_again
from guard.policy.policy import decide_error
from guard.policy.rules import RoutePlan
from guard.records import Action, Attempt, Score
from guard.runtime.guard import Guard


@dataclass(frozen=True, slots=True)
class TrialAttempt:
    """One attempt, as far as a certificate needs it.

    Attributes:
        answer: what came back; None where generating failed.
        p_wrong: its score; None where there is none, and where no threshold accepts it: the answer is cut
            or empty, or the input is out of distribution.
        released: given to the caller whatever a threshold says: ``on_error: accept``, or a callable's answer.
    """

    answer: str | None
    p_wrong: float | None
    released: bool

    @classmethod
    def of(cls, attempt: Attempt, plan: RoutePlan) -> Self:
        """The part of an attempt that is kept."""
        p_wrong = _comparable(attempt.score, plan, defects_of(attempt.answer or "", attempt.finish_reason))
        return cls(attempt.answer, p_wrong, attempt.decision.action is Action.ACCEPT)


@dataclass(frozen=True, slots=True)
class TrialRow:
    """All attempts at one question, with the digest of what was asked (`guard.data.sqlite_journal.asked_digest`)."""

    key: str
    attempts: tuple[TrialAttempt, ...]
    asked: str = ""


class TrialJournal(JournalFile):
    """The attempts of one run, on disk; belongs to one fingerprint. Use as a context manager."""

    def __init__(self, path: str | Path, fingerprint: Fingerprint) -> None:
        super().__init__(path)
        try:
            with self._translated():
                stored = self._set_up(fingerprint)
            self._check(stored, fingerprint)
        except BaseException:
            self._db.close()
            raise

    def keys(self) -> set[str]:
        """Keys of all rows that were put to the model, skipped ones included."""
        with self._translated():
            return {key for (key,) in self._db.execute("SELECT key FROM trials")}

    def check_questions(self, rows: Sequence[tuple[str, Row]]) -> None:
        """Refuse rows that have the key of attempts at something else.

        Raises:
            InputError: a row is not what was asked under its key.
        """
        with self._translated():
            stored = dict(self._db.execute("SELECT key, asked FROM trials"))
        self._check_asked(rows, stored)

    def keep(self, row: TrialRow | Skipped) -> None:
        """Add a row; it is safe on disk when this returns."""
        skipped, attempts = (row.reason, "[]") if isinstance(row, Skipped) else (None, _written(row.attempts))
        with self._translated():
            self._db.execute(
                "INSERT OR REPLACE INTO trials VALUES (?, ?, ?, ?)", (row.key, attempts, skipped, row.asked)
            )

    def row(self, key: str) -> TrialRow | Skipped | None:
        """What is known of one row; None if it was not asked yet."""
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

    def _set_up(self, fingerprint: Fingerprint) -> str:
        self._claim(("fingerprint", "trials"))
        self._db.execute("BEGIN IMMEDIATE")
        self._db.execute("CREATE TABLE IF NOT EXISTS fingerprint (content TEXT NOT NULL)")
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS trials (key TEXT PRIMARY KEY, attempts TEXT NOT NULL, skipped TEXT, "
            "asked TEXT NOT NULL)"
        )
        if not self._db.execute("SELECT count(*) FROM fingerprint").fetchone()[0]:
            self._db.execute("INSERT INTO fingerprint VALUES (?)", (fingerprint.model_dump_json(),))
        self._db.execute("COMMIT")
        return str(self._db.execute("SELECT content FROM fingerprint").fetchone()[0])

    def _check(self, stored: str, fingerprint: Fingerprint) -> None:
        try:
            there = Fingerprint.model_validate_json(stored)
        except ValueError as error:
            raise InputError(f"'{self.path}' is damaged", why="its header", fix="Delete it to start again") from error
        differing = there.differences(fingerprint)
        if differing:
            raise InputError(
                f"'{self.path}' holds the answers of another run",
                why="; ".join(differing),
                fix="Give another file with --journal, or delete this one to start again",
            )


def run_trials(
    guard: Guard, rows: Sequence[tuple[str, Row]], journal: TrialJournal, *, route: str | None
) -> Iterator[TrialRow | Skipped]:
    """Put every row that the journal does not have yet to the guard; yields each as it is kept.

    Args:
        guard: with the policy that `guard.policy.guarantee.trial_policy` gives.
        rows: pairs of data set name and row.
        journal: where attempts are kept.
        route: of the policy.

    Raises:
        InputError: given responses, and a policy that would have other answers made, which nobody labelled; or
            the journal has attempts at something else under a row's key.
    """
    if asks_again(guard.policy.plan(route)):
        for dataset, row in rows:
            if isinstance(row, LabelledResponse):
                raise InputError(
                    f"'{row_key(dataset, row)}' is a given response, and the policy may ask again",
                    why="the label of one answer says nothing about the others that the policy would have made",
                    fix="Certify on questions with their accepted answers, or without retries and fallbacks",
                )
    journal.check_questions(rows)
    known = journal.keys()
    for dataset, row in rows:
        key = row_key(dataset, row)
        if key in known:
            continue
        known.add(key)
        try:
            result: TrialRow | Skipped = TrialRow(key, _attempts(guard, row, route), asked_digest(row))
        except PromptTooLongError as error:
            result = Skipped(key, str(error), asked_digest(row))
        journal.keep(result)
        yield result


@dataclass(frozen=True, slots=True)
class AttemptedRow:
    """A row of a data set, with all attempts at it."""

    dataset: str
    row: Row
    attempts: tuple[TrialAttempt, ...]


def attempted_rows(rows: Sequence[tuple[str, Row]], journal: TrialJournal) -> list[AttemptedRow]:
    """The rows that were put to the guard; skipped and unknown ones are left out."""
    found = ((dataset, row, journal.row(row_key(dataset, row))) for dataset, row in rows)
    return [AttemptedRow(dataset, row, known.attempts) for dataset, row, known in found if isinstance(known, TrialRow)]


def trials_of(answered: Sequence[AttemptedRow], *, grade: Grader) -> Trials:
    """Label the attempts at at least one row; a row of the result for each of these, in their order."""
    shape = len(answered), max(len(each.attempts) for each in answered)
    p_wrong, wrong, released = np.full(shape, np.inf), np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for at, each in enumerate(answered):
        for number, tried in enumerate(each.attempts):
            p_wrong[at, number] = np.inf if tried.p_wrong is None else tried.p_wrong
            wrong[at, number] = tried.answer is None or is_wrong(each.row, tried.answer, grade)
            released[at, number] = tried.released
    return Trials(p_wrong, wrong, released)


def _attempts(guard: Guard, row: Row, route: str | None) -> tuple[TrialAttempt, ...]:
    plan = guard.policy.plan(route)
    if not isinstance(row, LabelledResponse):
        prompting = guard.scorer.artefact.prompting
        prompt = (
            completion_prompt(row)
            if prompting.completion
            else question_prompt(row, system=prompting.system, template_options=guard.template_options)
        )
        return tuple(TrialAttempt.of(attempt, plan) for attempt in guard.attempts(prompt, route=route))
    try:
        score = guard.score(with_default_options(row.prompt, guard.template_options), row.response)
    except CaptureError as error:
        decision = decide_error(guard.policy, error=str(error), route=route, defects=defects_of(row.response, None))
        return (TrialAttempt(row.response, None, released=decision.action is Action.ACCEPT),)
    return (TrialAttempt(row.response, _comparable(score, plan, defects_of(row.response, None)), released=False),)


def _comparable(score: Score | None, plan: RoutePlan, defects: Collection[Defect]) -> float | None:
    """The p_wrong that a threshold is compared with; None where it does not come to that."""
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
