"""``guard evaluate`` in the terminal: means that can be compared."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from guard.cli.evaluate import _tables
from guard.evaluation.bootstrap import Estimate
from guard.evaluation.result import CellScore, MethodScore, ModelResult, SettingResult

#: What each method gets on three sets; "half" was not recorded on the easy one.
VALUES = {
    "own": {"easy": 0.9, "middle": 0.7, "hard": 0.5},
    "whole": {"easy": 0.8, "middle": 0.6, "hard": 0.4},
    "half": {"middle": 0.8, "hard": 0.6},
}


def shown(values: dict[str, dict[str, float]]) -> list[str]:
    setting = SettingResult(
        setting="within-dataset cross-validation",
        cells=3,
        scores=tuple(
            MethodScore(name, "AUROC", Estimate(None, None, None), len(sets)) for name, sets in values.items()
        ),
        per_cell=tuple(
            CellScore(name, name, method, "AUROC", sets.get(name))
            for method, sets in values.items()
            for name in ("easy", "middle", "hard")
        ),
        comparisons=(),
        missing=(),
        curves=(),
        oracle=None,
        random=None,
        reliability=(),
    )
    methods = [SimpleNamespace(name=name) for name in values]
    result = cast(Any, SimpleNamespace(model=SimpleNamespace(name="tiny"), methods=methods, own="own"))
    screen = Console(file=StringIO(), width=100)
    for table in _tables(cast(ModelResult, result), setting):
        screen.print(table)
    return cast(StringIO, screen.file).getvalue().splitlines()


def test_means_in_one_table_are_over_the_same_sets_and_say_over_how_many() -> None:
    """Over its two sets "half" has the same mean as "own" over three, and is better on both."""
    lines = shown(VALUES)
    first, second = [at for at, line in enumerate(lines) if "means over" in line]
    assert "within-dataset cross-validation (means over 3 of 3 tests)" in lines[first]
    assert "within-dataset cross-validation (means over 2 of 3 tests)" in lines[second]
    upper, lower = "\n".join(lines[first:second]), "\n".join(lines[second:])
    assert "half" not in upper
    assert "whole" not in lower
    assert [value in upper for value in ("0.700", "0.600")] == [True, True]  # own and whole, over three sets
    assert [value in lower for value in ("0.600", "0.700")] == [True, True]  # own and half, over two sets


def test_methods_that_have_all_sets_need_one_table() -> None:
    lines = shown({name: VALUES[name] for name in ("own", "whole")})
    assert sum("means over" in line for line in lines) == 1
