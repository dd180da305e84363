"""What ``guard ask`` shows of a model that has no scorer yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from guard.cli.output import console, print_json
from guard.cli.terminal import shown

if TYPE_CHECKING:
    from guard.runtime.first_look import FirstLook

#: Options of ``guard ask`` that decide or act on a probability.
_DECIDING = ("policy", "certificate", "route", "store", "fallback", "handler", "force", "audit_log")

_UNCALIBRATED = "so nobody knows how likely the answer is wrong, and no policy decided about it."


def needs_a_scorer(ctx: typer.Context) -> bool:
    """Return whether an option was given that decides or acts on a probability."""
    sources = (ctx.get_parameter_source(name) for name in _DECIDING)
    return any(source is not None and source.name != "DEFAULT" for source in sources)


def show_first_look(
    question: str,
    model: str,
    engine: str | None,
    engine_options: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Ask a model without a scorer, and show its answer with its label-free signals.

    Args:
        question: the question's text.
        model: a GGUF file or model folder.
        engine: llama.cpp or transformers, where both can load it.
        engine_options: for the engine's ``load``.
        options: of `guard.runtime.first_look.take_first_look`.
        as_json: print JSON.
    """
    from guard.engines import load_engine
    from guard.runtime.first_look import take_first_look
    from guard.scoring.shelf import scorers_for

    with load_engine(model, engine=engine, **(engine_options or {})) as loaded:
        look, fitting = take_first_look(loaded, question, **options), scorers_for(loaded.model)
    if as_json:
        print_json({**look.to_dict(), "scorers": fitting})
    else:
        _print(look)
        console().print(shown(_uncalibrated(fitting), "yellow"))


def _uncalibrated(fitting: Sequence[str]) -> str:
    """Return why there is no probability, and what to do; scorers on the shelf are named, never used unasked."""
    if fitting:
        named = " or ".join(f"--scorer {name}" for name in fitting)
        return f"uncalibrated: no scorer was named, {_UNCALIBRATED} On the shelf, fitted on this very model: {named}"
    fix = "Fit one: guard calibrate --model MODEL --data QUESTIONS.jsonl --out scorer.json"
    return f"uncalibrated: there is no scorer for this model, {_UNCALIBRATED} {fix}"


def _print(look: FirstLook) -> None:
    out = console()
    out.print(shown(look.answer or "(no answer)"))
    out.print()
    logprobs = f"log-probability: mean {_number(look.mean_logprob)}, least {_number(look.least_logprob)}"
    entropies = f"entropy: mean {_number(look.mean_entropy)}, greatest {_number(look.greatest_entropy)}"
    out.print(shown(f"{logprobs}  {entropies}  (nats, {look.tokens} tokens)", "dim"))
    if look.finish_reason == "length":
        out.print("cut: the answer ends at its token limit", style="yellow")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
