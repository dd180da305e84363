"""Labels of answers to rows of data: the row's own, or a grader's."""

from __future__ import annotations

from collections.abc import Iterable

from guard.data.graders import Grader
from guard.data.questions import LabelledResponse, Row
from guard.errors import InputError
from guard.scoring.labels import Label


def label_answer(row: Row, answer: str, grader: Grader) -> Label:
    """Return the label of an answer to a row: a labelled response has its own, a question is graded."""
    if isinstance(row, LabelledResponse):
        return row.wrong
    right = grader(row, answer)
    return not right if isinstance(right, bool) else 1.0 - right


def find_weight(row: Row) -> float:
    """Return the number of answers that a row's answer stands for: a labelled response says so, a question is one."""
    return row.weight if isinstance(row, LabelledResponse) else 1.0


def is_wrong(row: Row, answer: str, grader: Grader) -> bool:
    """Return whether an answer is wrong, for what counts wrong answers, such as certificates.

    Raises:
        InputError: the label says how wrong the answer is.
    """
    label = label_answer(row, answer, grader)
    if not isinstance(label, bool):
        raise _graded(row, label)
    return label


def check_not_graded(rows: Iterable[Row]) -> None:
    """Refuse responses whose labels say how wrong they are, before a model is asked.

    Raises:
        InputError: there is one.
    """
    for row in rows:
        if isinstance(row, LabelledResponse) and not isinstance(row.wrong, bool):
            raise _graded(row, row.wrong)


def check_same_weights(rows: Iterable[Row]) -> None:
    """Refuse responses that stand for different numbers of answers, where each row counts the same.

    Raises:
        InputError: two rows have different weights.
    """
    weights = sorted({find_weight(row) for row in rows})
    if len(weights) > 1:
        raise InputError(
            f"The labels stand for different numbers of answers, from {weights[0]:g} to {weights[-1]:g} ('weight')",
            why="they are no random sample, and a certificate counts each the same",
            fix="Use guard recalibrate, which draws a sample, or audits alone: guard review export --kind audit",
        )


def _graded(row: Row, label: float) -> InputError:
    return InputError(
        f"Row {row.id!r} has a graded label, {label:g} wrong",
        why="only fits and evaluations take labels between right and wrong; here wrong answers are counted",
        fix="Give labels that are true or false, or a grader that returns True or False",
    )
