"""Recording with an engine that answers several requests at the same time: the journal of one at a time."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
from scripted import AnsweringEngine, scripted_model

from guard.data.asked_alone import asked_alone
from guard.data.further_calls import FurtherCalls
from guard.data.in_order import in_order
from guard.data.questions import Question, Row
from guard.data.recording import Journal, Record, Run, Skipped, record_rows
from guard.errors import EngineError

RUN = Run(model=scripted_model(), capture_point="mlp", system="", max_tokens=40)
#: Answers of very different lengths, so that they end in another order than they begin.
ROWS: list[tuple[str, Row]] = [
    ("d", Question(id=f"{number}", question="why " * (number * 7 % 5 + 1) + f"{number}", answers=("yes",)))
    for number in range(24)
]
KEYS = [f"d/{number}" for number in range(24)]


def engine(slots: int) -> AnsweringEngine:
    made = AnsweringEngine(lambda prompt, _: (prompt.question[-30:], 0.3))
    made.slots = slots
    return made


def recorded(path: Path, slots: int, **options: int) -> list[Record | Skipped]:
    with Journal(path, RUN) as journal:
        return list(record_rows(engine(slots), ROWS, journal, run=RUN, **options))


def test_the_answers_are_those_of_one_at_a_time_in_the_same_order(tmp_path: Path) -> None:
    alone, crowd = (
        recorded(tmp_path / f"{slots}", slots, calls=FurtherCalls(samples=2), sampled_rows=5) for slots in (1, 4)
    )
    assert [each.key for each in crowd] == KEYS
    for one, other in zip(alone, crowd, strict=True):
        assert isinstance(one, Record)
        assert isinstance(other, Record)
        assert (one.answer, one.further, one.asked) == (other.answer, other.further, other.asked)
        np.testing.assert_array_equal(one.signals.signature.activations, other.signals.signature.activations)


def test_several_rows_are_asked_at_the_same_time(tmp_path: Path) -> None:
    crowd, together = engine(4), threading.Barrier(4, timeout=30)
    encode = crowd.encode

    def waiting(prompt: object) -> list[int]:
        together.wait()  # passes only where four callers are here at once
        return encode(prompt)  # type: ignore[arg-type]

    crowd.encode = waiting  # type: ignore[method-assign]
    with Journal(tmp_path / "j", RUN) as journal:
        assert len(list(record_rows(crowd, ROWS, journal, run=RUN))) == len(ROWS)


def test_a_run_that_is_left_early_is_continued_without_a_gap(tmp_path: Path) -> None:
    with Journal(tmp_path / "j", RUN) as journal:
        rows = record_rows(engine(4), ROWS, journal, run=RUN)
        assert [each.key for each in itertools.islice(rows, 5)] == KEYS[:5]
        rows.close()
        assert journal.keys() == {*KEYS[:5]}
        rest = [each.key for each in record_rows(engine(4), ROWS, journal, run=RUN)]
    assert rest == KEYS[5:]


def test_an_engine_that_fails_ends_the_run_without_a_gap(tmp_path: Path) -> None:
    """A pass that fails ends all requests in it, so that the first of them is where the journal ends."""
    broken = engine(4)

    def fail(prompt: object, _: int) -> tuple[str, float]:
        if getattr(prompt, "question", "").endswith(" 9"):
            raise EngineError("it broke")
        return "yes", 0.3

    broken.script = fail  # type: ignore[assignment]
    with Journal(tmp_path / "j", RUN) as journal:
        with pytest.raises(EngineError, match="it broke"):
            list(record_rows(broken, ROWS, journal, run=RUN))
        kept = len(journal)
        assert kept <= 9
        assert journal.keys() == {*KEYS[:kept]}
        assert [each.key for each in record_rows(engine(4), ROWS, journal, run=RUN)] == KEYS[kept:]


def test_the_same_row_given_twice_is_asked_once(tmp_path: Path) -> None:
    once = engine(4)
    with Journal(tmp_path / "j", RUN) as journal:
        assert len(list(record_rows(once, [*ROWS, *ROWS], journal, run=RUN))) == 24
    assert len(once.asked) == 24


# -- the order of results ----------------------------------------------------------------------


def test_results_come_in_the_order_of_the_pieces() -> None:
    later = [threading.Event() for _ in range(9)]

    def work(number: int, _: threading.Event) -> int:
        if number + 1 < 4:  # each of the first ones waits for the one behind it
            assert later[number + 1].wait(30)
        later[number].set()
        return number

    assert list(in_order(work, range(9), at_once=4)) == [*range(9)]


def test_who_leaves_early_cancels_what_has_begun() -> None:
    cancelled: list[int] = []

    def work(number: int, cancel: threading.Event) -> int:
        if number:
            assert cancel.wait(30)
            cancelled.append(number)
        return number

    results = in_order(work, range(6), at_once=3)
    # Six pieces have begun before the first result is handed over.
    assert next(results) == 0
    results.close()
    assert {*cancelled} >= {1, 2}


def test_an_error_comes_in_its_turn() -> None:
    def work(number: int, _: threading.Event) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    results = in_order(work, range(9), at_once=3)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


# -- what rounding changed ---------------------------------------------------------------------


def noted(path: Path, engine: AnsweringEngine) -> tuple[str, ...]:
    rows: list[tuple[str, Row]] = [
        ("d", Question(id=f"{number}", question=f"why {number}", answers=("yes",))) for number in range(60)
    ]
    with Journal(path, RUN) as journal:
        list(record_rows(engine, rows, journal, run=RUN))
        return asked_alone(engine, rows, journal)


def test_a_few_answers_are_asked_again_alone_and_the_differing_ones_counted(tmp_path: Path) -> None:
    same = engine(4)
    assert noted(tmp_path / "same", same) == (
        "Recorded 4 at a time. Of 3 answers asked again alone, 0 differ, by rounding.",
    )
    assert len(same.asked) == 63
    changing = engine(4)
    changing.script = lambda _, number: ("no" if number == 61 else "yes", 0.3)
    assert noted(tmp_path / "changing", changing)[0].endswith("Of 3 answers asked again alone, 1 differ, by rounding.")


def test_an_engine_that_answers_one_at_a_time_is_not_asked_again(tmp_path: Path) -> None:
    alone = engine(1)
    assert noted(tmp_path / "j", alone) == ()
    assert len(alone.asked) == 60
