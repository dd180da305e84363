"""Labels of answers: right or wrong, or how wrong, from 0 (right) to 1 (wrong).

A graded label of 0.3 counts as three tenths of a wrong answer and seven tenths of a right one: in a fit by two weighted
examples, in a measure by its share of either count. Answers that are all right or wrong are boolean, and fits and
measures of them are the same to the last bit as if there were no graded labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Of one answer: whether it is wrong, or how wrong.
Label = bool | float
#: Of several, shape (n,).
Labels = NDArray[np.bool_] | NDArray[np.float64]


def label_array(labels: Sequence[Label]) -> Labels:
    """Return labels as an array, boolean where none is graded.

    Examples:
        >>> label_array([True, False]), label_array([True, 0.25])
        (array([ True, False]), array([1.  , 0.25]))
    """
    if all(isinstance(label, bool | np.bool_) for label in labels):
        return np.array(labels, np.bool_)
    return np.array(labels, np.float64)


def are_graded(labels: Labels) -> bool:
    """Return whether labels say how wrong answers are, and not only whether.

    Examples:
        >>> are_graded(label_array([True, 0.25])), are_graded(label_array([True, False]))
        (True, False)
    """
    return labels.dtype != np.bool_


def number_wrong(labels: Labels) -> int | float:
    """Return how many answers are wrong; the sum of graded labels.

    Examples:
        >>> number_wrong(label_array([True, False, True])), number_wrong(label_array([True, 0.25]))
        (2, 1.25)
    """
    return float(labels.sum()) if are_graded(labels) else int(labels.sum())


def has_both_kinds(labels: Labels) -> bool:
    """Return whether there are right and wrong answers, or parts of both.

    Examples:
        >>> has_both_kinds(label_array([True, True])), has_both_kinds(label_array([0.5]))
        (False, True)
    """
    return bool(0 < labels.sum() < len(labels))


def rather_wrong(labels: Labels) -> NDArray[np.bool_]:
    """Return whether each answer is at least as wrong as right, for what must divide them into two kinds.

    Examples:
        >>> rather_wrong(label_array([0.25, 0.5]))
        array([False,  True])
    """
    return np.asarray(labels >= 0.5, np.bool_)


@dataclass(frozen=True, slots=True, eq=False)
class WeightedLabels:
    """What a classifier is fitted on that knows only right and wrong.

    Attributes:
        rows: which answer each example is; a graded answer is two.
        wrong: whether the example is wrong.
        weights: how much it counts; None where all count the same.
    """

    rows: NDArray[np.intp] | slice
    wrong: NDArray[np.bool_]
    weights: NDArray[np.float64] | None


def weighted(labels: Labels, counts: NDArray[np.float64] | None = None) -> WeightedLabels:
    """Return labels as examples of right and wrong, of which graded ones have two with weights that add up to 1.

    Args:
        labels: shape (n,).
        counts: shape (n,), how much each answer counts; None where all count the same.

    Examples:
        >>> made = weighted(label_array([True, 0.25]))
        >>> made.rows, made.wrong, made.weights
        (array([0, 1, 1]), array([ True,  True, False]), array([1.  , 0.25, 0.75]))
    """
    if not are_graded(labels):
        return WeightedLabels(slice(None), np.asarray(labels, np.bool_), counts)
    rows = np.repeat(np.arange(len(labels)), 2)
    weights = np.column_stack([labels, 1 - labels]).ravel()
    wrong = np.tile([True, False], len(labels))
    kept = weights > 0
    weights = weights if counts is None else weights * counts[rows]
    return WeightedLabels(rows[kept], wrong[kept], weights[kept])
