"""Paired bootstrap: intervals for means over test sets and for differences of two methods.

Answers are resampled within each test set, by question, and all methods are measured on the same draws, so that the
difficulty of a set cancels out of a difference. Methods are not refitted and data sets are not resampled: an interval
is about other answers to these data sets, not about other data sets. Each answer keeps its rank; a draw only changes
its count.

Written here, because SciPy's bootstrap has no clusters and recomputes each measure for every draw.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError, did_you_mean
from guard.evaluation.measures import Measure
from guard.evaluation.predictions import Predictions
from guard.scoring.labels import Labels
from guard.scoring.metrics import Ranked

#: Largest product of draws and answers per batch; arrays of this size fit into a processor's cache.
_CHUNK = 100_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval; None if it is undefined, such as for right answers only.

    Attributes:
        value: on the original answers.
        low, high: percentile interval over the draws, by default 95 %.
    """

    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class PairedGain:
    """The gain of one method over another; above 0 is better, for measures of either direction.

    Attributes:
        estimate: mean difference over test sets, above 0 if the first method is better.
        better: number of test sets on which the first method is better.
        cells: number of test sets (of pairs of sets for pairwise transfer) with results of both methods.
    """

    estimate: Estimate
    better: int
    cells: int


@dataclass(frozen=True, slots=True, eq=False)
class Bootstrap:
    """All measures of all methods on all cells, for the original answers and for each draw.

    Attributes:
        cells: (train, test) of each cell.
        methods: names.
        measures: the measures.
        values: shape (methods, cells, measures); nan if not recorded or undefined.
        draws: shape (methods, cells, measures, draws).
        level: level of the intervals, such as 0.95.
    """

    cells: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]
    measures: tuple[Measure, ...]
    values: NDArray[np.float64]
    draws: NDArray[np.float64]
    level: float

    def value(self, method: str, cell: tuple[str, str], measure: str) -> float | None:
        """Return one measure of one method on one cell; None if not recorded or undefined.

        Raises:
            InputError: the method, cell or measure does not exist.
        """
        found = self.values[self._method(method), self._cell(cell), self._measure(measure)]
        return None if np.isnan(found) else float(found)

    def mean(self, method: str, measure: str) -> tuple[Estimate, int]:
        """Return the mean over the cells where the measure is defined, and the number of these.

        Raises:
            InputError: the method or measure does not exist.
        """
        row, column = self._method(method), self._measure(measure)
        defined = ~np.isnan(self.values[row, :, column])
        values, draws = self.values[row, defined, column], self.draws[row, defined, column]
        return self._estimate(values, draws, self.measures[column]), int(defined.sum())

    def gain(self, method: str, against: str, measure: str, *, cell: tuple[str, str] | None = None) -> PairedGain:
        """Return the gain of the first method on the cells with results of both, or on one of them.

        Raises:
            InputError: the method, measure or cell does not exist.
        """
        at = slice(None) if cell is None else [self._cell(cell)]
        first, second, column = self._method(method), self._method(against), self._measure(measure)
        sign = self.measures[column].sign
        values = sign * (self.values[first, at, column] - self.values[second, at, column])
        draws = sign * (self.draws[first, at, column] - self.draws[second, at, column])
        defined = ~np.isnan(values)
        estimate = self._estimate(values[defined], draws[defined], self.measures[column])
        return PairedGain(estimate=estimate, better=int((values[defined] > 0).sum()), cells=int(defined.sum()))

    def _estimate(self, values: NDArray[np.float64], draws: NDArray[np.float64], measure: Measure) -> Estimate:
        if not len(values):
            return Estimate(None, None, None)
        with warnings.catch_warnings():
            # A draw of a tiny set can have right answers only, and then no value for that set.
            warnings.simplefilter("ignore", RuntimeWarning)
            means = np.nanmean(draws, axis=0)
            tail = (1 - self.level) / 2
            low, middle, high = np.nanquantile(means, [tail, 0.5, 1 - tail])
        if measure.inflated:
            low, high = np.array([low, high]) + values.mean() - middle
        return Estimate(float(values.mean()), float(low), float(high))

    def _cell(self, cell: tuple[str, str]) -> int:
        if cell not in self.cells:
            raise InputError(f"Nothing was trained on {cell[0]!r} and tested on {cell[1]!r}")
        return self.cells.index(cell)

    def _method(self, name: str) -> int:
        if name not in self.methods:
            raise InputError(f"There is no method {name!r}", fix=did_you_mean(name, self.methods))
        return self.methods.index(name)

    def _measure(self, name: str) -> int:
        names = [measure.name for measure in self.measures]
        if name not in names:
            raise InputError(f"{name!r} was not measured", fix=did_you_mean(name, names))
        return names.index(name)


def bootstrap(
    predictions: Sequence[Predictions],
    measures: Sequence[Measure],
    *,
    draws: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Bootstrap:
    """Measure all methods on all cells, on the original answers and on resamples.

    Draws depend only on the seed, the test set's name and its questions, so they are the same for all training sets and
    protocols.

    Args:
        predictions: cells of one protocol.
        measures: the measures.
        draws: number of resamples.
        seed: seed of the draws.
        level: level of the intervals.

    Raises:
        InputError: there are no predictions, fewer than one draw, or the level is not between 0 and 1.
    """
    if not predictions or draws < 1 or not 0 < level < 1:
        raise InputError(
            "A bootstrap needs predictions, at least one draw, and a level between 0 and 1",
            why=f"got {len(predictions)} predictions, {draws} draws, level {level}",
        )
    methods = tuple(dict.fromkeys(name for each in predictions for name in (*each.p_wrong, *each.missing)))
    shape = (len(methods), len(predictions), len(measures))
    values, drawn = np.full(shape, np.nan), np.full((*shape, draws), np.nan)
    for cell, each in enumerate(predictions):
        counts = resamples(each.group, draws=draws, seed=zlib.crc32(each.test.encode()) ^ seed)
        for name, p_wrong in each.p_wrong.items():
            row = methods.index(name)
            values[row, cell] = [measure.value(p_wrong, each.wrong) for measure in measures]
            drawn[row, cell] = _judged(p_wrong, each.wrong, counts, measures)
    cells = tuple((each.train, each.test) for each in predictions)
    return Bootstrap(cells, methods, tuple(measures), values, drawn, level)


def resamples(group: NDArray[np.intp], *, draws: int, seed: int) -> NDArray[np.int32]:
    """Return the count of each row in each draw, shape (draws, n).

    Groups, numbered from 0, are drawn with replacement, the same number as in the original; rows follow their group.
    """
    groups = int(group.max()) + 1
    chosen = np.random.default_rng(seed).integers(groups, size=(draws, groups))
    chosen += np.arange(draws)[:, None] * groups
    counts = np.bincount(chosen.ravel(), minlength=draws * groups).reshape(draws, groups)
    return counts[:, group].astype(np.int32)


def _judged(
    p_wrong: NDArray[np.float64],
    wrong: Labels,
    counts: NDArray[np.int32],
    measures: Sequence[Measure],
) -> NDArray[np.float64]:
    """Return all measures in all draws, shape (measures, draws)."""
    step = max(1, _CHUNK // len(wrong))
    parts = []
    for start in range(0, len(counts), step):
        ranked = Ranked.from_scores(p_wrong, wrong, counts=counts[start : start + step])
        parts.append(np.stack([measure.function(ranked) for measure in measures]))
    return np.concatenate(parts, axis=1)
