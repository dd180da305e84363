"""``guard demo``: a dozen questions to the embedded model, each scored, decided and graded at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.ask import trail
from guard.cli.engine_options import EngineOptions, loads_a_model
from guard.cli.output import (
    JsonOption,
    PolicyOption,
    StoreOption,
    console,
    print_json,
)
from guard.cli.terminal import one_line, shown
from guard.errors import InputError
from guard.files.write_whole import write_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from guard.cli.demo_questions import Shown

_STYLES = {"accept": "green", "retry": "yellow", "fallback": "cyan", "escalate": "magenta", "abstain": "red"}
#: Width of the columns beside an answer: margins, right or wrong, score, action.
_BESIDE = 2 + 2 + 5 + 2 + 13 + 2 + 8


@loads_a_model(without=("dtype", "device", "base_url", "api_key_env", "api_key_file", "top_logprobs"))
def demo(
    policy: PolicyOption = "balanced",
    engine_options: EngineOptions = None,
    store: StoreOption = None,
    svg: Annotated[Path | None, typer.Option(help="SVG file to write the output to, as a picture.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the embedded model a dozen questions, and show guard's action on each answer and whether it is right.

    The questions and their right answers are fixed. Cases go to the demo's own store unless you name one.
    """
    from guard.cli.demo_questions import run, store_path
    from guard.runtime.guard import Guard

    place = store if store is not None else str(store_path())
    out = console()
    done: list[Shown] = []
    with Guard.load(policy=policy, engine_options=engine_options, store=place) as guard:
        title = f"SmolLM2-135M-Instruct, policy '{guard.policy.name}'"
        if not as_json:
            out.print(shown(f"{title}\n", "dim"))
        for each in run(guard):
            done.append(each)
            if not as_json:
                _print_one(out, each)
    if as_json:
        print_json(
            [
                {"question": each.question.question, "right": each.first_is_right, **each.outcome.to_dict()}
                for each in done
            ]
        )
    else:
        _print_end(out, done, place)
    if svg is not None:
        _write_picture(svg, done, title)


def _print_one(out: Console, each: Shown) -> None:
    """Print the question, and one line per attempt, as soon as the call is decided."""
    out.print(shown(one_line(each.question.question), "bold"))
    steps = trail(each.outcome).split(", ")
    for attempt, step in zip(each.outcome.attempts, steps, strict=True):
        score = f"{attempt.score.p_wrong:.2f}" if attempt.score else "   -"
        answer = shown(one_line(attempt.answer or "(nothing)"))
        answer.truncate(max(20, min(out.width, 100) - _BESIDE), overflow="ellipsis", pad=True)
        out.print(_line(answer, each.right(attempt), score, step), soft_wrap=True)


def _line(answer: Text, right: bool, score: str, step: str) -> Text:
    from rich.text import Text

    verdict = Text("right", "green") if right else Text("wrong", "red")
    style = _STYLES.get(step.partition(" ")[0], "")
    return Text("  ").join([Text(), answer, verdict, Text(f"p(wrong) {score}"), shown(step, style)])


def _print_end(out: Console, done: list[Shown], place: str) -> None:
    from guard.cli.demo_questions import worth

    value = worth(done)
    out.print()
    out.print(shown(f"Without guard: {value.without()}.", "bold"))
    out.print(shown(f"With guard: {value.with_guard()}.", "bold"))
    out.print(f"{sum(each.outcome.seconds for each in done):.1f} s for {len(done)} questions.", style="dim")
    if any("review" in each.outcome.escalated_to for each in done):
        out.print("\nEscalated cases wait for a person in the demo's own store:")
        out.print(shown(f"  guard review list --store {place}", "bold"), soft_wrap=True)


def _write_picture(path: Path, done: list[Shown], title: str) -> None:
    from guard.cli.demo_picture import picture

    try:
        write_whole(path, picture(done, title))
    except OSError as error:
        raise InputError(f"Cannot write the picture to '{path}'", why=error.strerror or str(error)) from error
