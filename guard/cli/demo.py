"""``guard demo``: a dozen questions to the embedded model, scored and decided as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.ask import outcome_json, trail
from guard.cli.output import AsJson, PolicyName, StoreUrl, console, print_json

if TYPE_CHECKING:
    from rich.table import Table

    from guard.records import Outcome

_STYLES = {"accept": "green", "retry": "yellow", "fallback": "cyan", "escalate": "magenta", "abstain": "red"}


def demo(
    policy: PolicyName = "balanced",
    store: StoreUrl = None,
    svg: Annotated[Path | None, typer.Option(help="Also write the table as a picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Ask the embedded model a dozen questions and show what becomes of each answer."""
    from guard.demo import QUESTIONS, run
    from guard.guard import Guard

    screen = console(stderr=True)
    done: list[tuple[str, Outcome]] = []
    with Guard.load(policy=policy, store=store) as guard, screen.status("loading the model") as status:
        for question, outcome in run(guard):
            done.append((question, outcome))
            status.update(f"{len(done)} of {len(QUESTIONS)} answered")
        model = guard.engine.model.name
    if as_json:
        print_json([{"question": question, **outcome_json(outcome)} for question, outcome in done])
        return
    _show(_table(done, f"{model}, policy '{policy}'"), svg)
    _tell(done)


def _table(done: list[tuple[str, Outcome]], title: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_lines=True)
    table.add_column("question", ratio=3)
    table.add_column("the model says", ratio=4)
    table.add_column("p(wrong)", justify="right", no_wrap=True)
    table.add_column("rule", ratio=2)
    table.add_column("action", no_wrap=True)
    for question, outcome in done:
        style = _STYLES[outcome.action.value]
        said = "\n".join(_one_line(attempt.answer) for attempt in outcome.attempts)
        scores = "\n".join(_score(attempt) for attempt in outcome.attempts)
        steps = trail(outcome).replace(", ", "\n")
        table.add_row(Text(question), Text(said), scores, Text(outcome.rule), Text(steps, style))
    return table


def _one_line(answer: str | None) -> str:
    line = " ".join((answer or "(nothing)").split())
    return line if len(line) <= 70 else f"{line[:67]}..."


def _score(attempt: Any) -> str:
    return f"{attempt.score.p_wrong:.2f}" if attempt.score else "-"


def _show(table: Table, svg: Path | None) -> None:
    screen = console()
    screen.print(table)
    if svg is not None:
        from io import StringIO

        from rich.console import Console

        picture = Console(record=True, width=110, file=StringIO())
        picture.print(table)
        picture.save_svg(str(svg), title="guard demo")


def _tell(done: list[tuple[str, Outcome]]) -> None:
    screen = console()
    counts = {action: sum(outcome.action.value == action for _, outcome in done) for action in _STYLES}
    counts["retry"] = sum(len(outcome.attempts) > 1 for _, outcome in done)
    told = ", ".join(f"{action} {count}" for action, count in counts.items())
    seconds = sum(outcome.seconds for _, outcome in done)
    screen.print(f"\n{told}; {seconds:.1f} s for {len(done)} questions.")
    if counts["escalate"]:
        screen.print("\nWhat was escalated waits for a person:")
        screen.print("  guard review list\n  guard review approve ID     (or edit, reject)", style="bold", markup=False)
