"""What ``guard calibrate --early`` shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from guard.cli.output import console, print_json
from guard.cli.scorers import early_facts, early_lines
from guard.cli.terminal import say

if TYPE_CHECKING:
    from guard.calibration.early_fit import Saving
    from guard.calibration.early_procedure import EarlyCalibration


def show_early(made: EarlyCalibration, *, as_json: bool) -> None:
    """Show the stages of a scorer, and what stopping at them saves and loses."""
    early = made.scorer.artefact.early
    assert early is not None
    if as_json:
        print_json(_json(made, early_facts(early)))
        return
    for line in early_lines(early):
        say(line)
    _print_savings(made.savings)
    for each in made.left_out:
        say(f"left out {each}")
    say(f"Scorer written to {made.out}")


def _json(made: EarlyCalibration, facts: dict[str, Any]) -> dict[str, Any]:
    return {
        "out": str(made.out),
        "sha256": made.scorer.sha256,
        **facts,
        "savings": [asdict(each) for each in made.savings],
        "left_out": list(made.left_out),
    }


def _print_savings(savings: Sequence[Saving]) -> None:
    from rich.table import Table

    table = Table(title="Effect of early: {above: ...}, on held-out answers", title_justify="left")
    for name in ("above", "tokens saved", "answers stopped", "of right ones", "of surer right ones"):
        table.add_column(name, justify="right")
    for each in savings:
        shares = (f"{share:.1%}" for share in (each.saved, each.stopped, each.right_stopped))
        table.add_row(f"{each.above:g}", *shares, f"{each.surer_stopped} of {each.surer}")
    console().print(table)
    console().print("Surer right ones: right answers whose complete p_wrong is below 0.5.", style="dim")
