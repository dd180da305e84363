"""Checks whether answers recorded several at a time equal those of one at a time, by asking a few of them again."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import replace

from guard.data.questions import Question, Row
from guard.data.recording import Journal, Record, prompt_of_row
from guard.data.sqlite_journal import row_key
from guard.engines.protocols import Engine
from guard.records import Limits

#: One in `ONE_IN` answers is asked again, and at most `AT_MOST`.
ONE_IN, AT_MOST = 20, 16


def asked_alone(engine: Engine, rows: Sequence[tuple[str, Row]], journal: Journal) -> tuple[str, ...]:
    """Ask some rows again, each alone and from an empty cache; return a note of how many answers differ.

    Args:
        engine: the engine of the answers.
        rows: rows that were asked in this run, as pairs of data set name and row.
        journal: journal with the answers.

    Returns:
        no note for an engine that answers one request at a time, or if there are few rows.
    """
    at_once = getattr(engine, "at_once", 1)
    records = [(row, journal.record(row_key(dataset, row))) for dataset, row in rows if isinstance(row, Question)]
    answered = [(row, record.answer) for row, record in records if isinstance(record, Record)]
    count = min(AT_MOST, len(answered) // ONE_IN)
    if at_once == 1 or not count:
        return ()
    chosen = answered[:: len(answered) // count][:count]
    differ = sum(_alone(engine, row, journal) != answer for row, answer in chosen)
    return (f"Recorded {at_once} at a time. Of {count} answers asked again alone, {differ} differ, by rounding.",)


def _alone(engine: Engine, row: Row, journal: Journal) -> str:
    run = journal.run
    prompt, _ = prompt_of_row(row, run)
    own = replace(prompt, cache_key=secrets.token_hex(8))
    return engine.generate(own, limits=Limits(max_tokens=run.max_tokens, stop=run.stop)).text
