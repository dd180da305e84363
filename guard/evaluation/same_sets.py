"""Which methods can stand in one table: means over different test sets are not comparable."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from guard.evaluation.result import ModelResult, SettingResult

#: Training set and test set of a cell.
CellPlace = tuple[str, str]


@dataclass(frozen=True, slots=True)
class SameSets:
    """Methods whose means are over the same cells of a protocol.

    Attributes:
        methods: their names, guard's own first where it is among them.
        cells: the cells that all of them have.
        whole: whether these are all cells that any method has.
    """

    methods: tuple[str, ...]
    cells: frozenset[CellPlace]
    whole: bool

    def mean(self, setting: SettingResult, method: str, measure: str) -> float | None:
        """Return a method's mean over these cells; None where the measure is not defined on any."""
        found = (
            each.value
            for each in setting.per_cell
            if (each.method, each.measure) == (method, measure) and (each.train, each.test) in self.cells
        )
        known = [value for value in found if value is not None]
        return sum(known) / len(known) if known else None


def same_sets(result: ModelResult, setting: SettingResult, measures: Sequence[str]) -> Iterator[SameSets]:
    """Yield the methods with results on all sets, then those that lack some beside guard's own.

    Args:
        result: the model's result.
        setting: one of its protocols.
        measures: those that the table shows.
    """
    cells = _cells(setting, measures)
    run = [method.name for method in result.methods if cells.get(method.name)]
    everywhere = frozenset[CellPlace]().union(*(cells[name] for name in run))
    complete = [name for name in run if cells[name] == everywhere]
    if complete:
        yield SameSets(tuple(complete), everywhere, whole=True)
    partial = [name for name in run if cells[name] != everywhere]
    common = everywhere.intersection(*(cells[name] for name in partial))
    if partial and common:
        own = [result.own] if result.own in complete else []
        yield SameSets((*own, *partial), common, whole=False)


def _cells(setting: SettingResult, measures: Sequence[str]) -> dict[str, frozenset[CellPlace]]:
    """Return, for each method, the cells where it has a value of one of the measures at least."""
    found: dict[str, set[CellPlace]] = {each.method: set() for each in setting.per_cell}
    for each in setting.per_cell:
        if each.measure in measures and each.value is not None:
            found[each.method].add((each.train, each.test))
    return {name: frozenset(places) for name, places in found.items()}
