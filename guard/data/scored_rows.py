"""Scores of answers that exist already, or that the model gives now: row by row, resumable and in shards."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from guard.data.fingerprint_journal import FingerprintJournal
from guard.data.shards import Shard
from guard.data.sqlite_journal import differing_keys
from guard.engines import EMBEDDED
from guard.errors import GuardError, InputError, ScorerError
from guard.outcome_export import readings
from guard.runtime.guard import Guard
from guard.scores import Score

_WANTED = 'Give {"prompt": "...", "response": "..."} on each line.'


class ScoreJournal(FingerprintJournal):
    """The results of one run of `score_rows` or of one shard of it, on disk. Use as a context manager."""

    TABLES = ("scoring", "scores")

    def _create_rows(self) -> None:
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, result TEXT NOT NULL, failed INTEGER NOT NULL, "
            "asked TEXT NOT NULL)"
        )

    def answered(self) -> set[str]:
        """Return the keys of the rows that have a score; rows with an error are scored again."""
        with self._translated():
            return {key for (key,) in self._db.execute("SELECT key FROM scores WHERE NOT failed")}

    def check_rows(self, asked: Mapping[str, str]) -> None:
        """Refuse rows whose position belongs to the score of another row.

        Raises:
            InputError: a row differs from what was scored at its position.
        """
        with self._translated():
            stored = dict(self._db.execute("SELECT key, asked FROM scores"))
        if other := differing_keys(asked.items(), stored):
            raise InputError(
                f"'{self.path}' has the scores of other rows",
                why=f"the row {int(other[0]) + 1} differs from the one that was scored",
                fix="Give another file with --journal",
            )

    def keep(self, key: str, result: Mapping[str, Any], asked: str) -> None:
        """Add a result; it is safe on disk when this returns."""
        values = (key, json.dumps(result), "error" in result, asked)
        with self._translated():
            self._db.execute("INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?)", values)

    def result(self, key: str) -> dict[str, Any]:
        """Return a result.

        Raises:
            InputError: the journal is damaged.
        """
        with self._translated():
            found = self._db.execute("SELECT result FROM scores WHERE key = ?", (key,)).fetchone()
            result = json.loads(found[0]) if found else None
        if not isinstance(result, dict):
            raise InputError(f"'{self.path}' is damaged", why="a result", fix="Delete it to start again")
        return result


def score_rows(
    rows: Iterable[Mapping[str, Any]],
    *,
    model: str | Path = EMBEDDED,
    scorer: str | Path | None = None,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    force_scorer: bool = False,
    template_options: Mapping[str, Any] | None = None,
    journal: str | Path | None = None,
    shard: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Score answers, in order. ``guard score`` calls this function.

    Args:
        rows: each with a ``prompt`` (a text or chat messages), for an existing answer ``response``, and perhaps an
            ``id``; without a response the model answers.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        scorer: what `guard.calibrate` wrote; may be left out for the embedded model.
        engine: ``llama.cpp`` or ``transformers``, where both can load the model.
        engine_options: for the engine's ``load``, such as ``{"threads": 4, "context_tokens": 8192}``.
        force_scorer: use a scorer of another model; scores are marked as uncalibrated.
        template_options: variables of the model's chat template; by default those of the calibration.
        journal: where results are kept, one transaction per row, so that an interrupted run can be repeated without
            scoring anything twice; None to keep none.
        shard: the part of the rows to score, such as ``3/8``; it needs a journal. `merge_shards` joins the journals.

    Yields:
        ``id``, ``answer``, ``p_wrong``, ``scores``, ``calibrated`` and ``finish_reason`` of each row (of the shard), or
        ``id`` and ``error``.

    Raises:
        InputError: the journal or the shard cannot be used.
        GuardError: as for `Guard.load`.

    Examples:
        >>> import guard
        >>> rows = [{"prompt": "What is the capital of France?", "response": "Paris"}]
        >>> [row["p_wrong"] for row in guard.score_rows(rows)]  # doctest: +SKIP
        [0.18]
        >>> next(guard.score_rows(rows, shard="1/2"))
        Traceback (most recent call last):
        guard.errors.InputError: A shard needs a journal. Give --journal (journal=), a file for each shard
    """
    part = None if shard is None else Shard.parse(shard)
    if part is not None and journal is None:
        raise InputError("A shard needs a journal", fix="Give --journal (journal=), a file for each shard")
    loaded: dict[str, Any] = {
        "engine": engine,
        "engine_options": engine_options,
        "force_scorer": force_scorer,
        "template_options": template_options,
    }
    checked = [check_row(row, f"row {number}") for number, row in enumerate(rows, start=1)]
    with Guard.load(model, scorer=scorer, policy="shadow", **loaded) as guard:
        if journal is None:
            yield from (_scored(guard, row) for row in checked)
        else:
            yield from _kept(guard, checked, journal, part)


def _kept(
    guard: Guard, rows: Sequence[Mapping[str, Any]], journal: str | Path, shard: Shard | None
) -> Iterator[dict[str, Any]]:
    """Yield the results of all rows or of a shard, those of an earlier run from the journal."""
    keys, asked = [f"{at:012d}" for at in range(len(rows))], [_digest(row) for row in rows]
    header = None if shard is None else shard.header(keys, asked)
    with ScoreJournal(journal, guard.fingerprint(guard.policy), header) as kept:
        kept.check_rows(dict(zip(keys, asked, strict=True)))
        known = kept.answered()
        for at, key in enumerate(keys):
            if shard is not None and not shard.has(at):
                continue
            if key not in known:
                kept.keep(key, _scored(guard, rows[at]), asked[at])
            yield kept.result(key)


def _digest(row: Mapping[str, Any]) -> str:
    """Return a digest of what is scored, which holds whatever the files are called on another machine."""
    canonical = json.dumps([row.get("prompt"), row.get("response")], sort_keys=True)
    return sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def check_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return a row to score, or one with "error" if it cannot be scored.

    Args:
        row: as for `score_rows`.
        where: names the row in an error, and is its id where it has none.

    Examples:
        >>> check_row({"prompt": "Hi", "response": "Ho"}, "rows.jsonl:1")
        {'id': 'rows.jsonl:1', 'prompt': 'Hi', 'response': 'Ho'}
        >>> check_row({"response": "Ho"}, "rows.jsonl:2")["error"]
        'rows.jsonl:2 has no prompt. Give {"prompt": "...", "response": "..."} on each line.'
    """
    found = {"id": where, **row}
    if "error" in found:
        return {"id": found["id"], "error": found["error"]}
    if not isinstance(found.get("prompt"), str | list):
        return {"id": found["id"], "error": f"{where} has no prompt. {_WANTED}"}
    if not isinstance(found.get("response"), str | None):
        return {"id": found["id"], "error": f"{where} has a response that is not a text. {_WANTED}"}
    return found


def _scored(guard: Guard, row: Mapping[str, Any]) -> dict[str, Any]:
    if "prompt" not in row:
        return dict(row)
    try:
        answer, score, finish_reason = _answer_and_score(guard, row["prompt"], row.get("response"))
    except GuardError as error:
        return {"id": row["id"], "error": str(error)}
    return {
        "id": row["id"],
        "answer": answer,
        "p_wrong": score.p_wrong,
        "scores": readings(score.scores),
        "calibrated": score.calibrated,
        "finish_reason": finish_reason,
    }


def _answer_and_score(guard: Guard, prompt: Any, response: str | None) -> tuple[str | None, Score, str | None]:
    if response is not None:
        return response, guard.score(prompt, response), None
    attempt = guard.ask(prompt).attempts[0]
    if attempt.score is None:
        raise ScorerError("The answer could not be scored", why=attempt.error or "")
    return attempt.answer, attempt.score, attempt.finish_reason
