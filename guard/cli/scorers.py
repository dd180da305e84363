"""``guard scorers``: the shelf of scorers, with their cards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.output import JsonOption, console, print_json
from guard.cli.terminal import say, shown
from guard.errors import GuardError, InputError

if TYPE_CHECKING:
    from guard.scoring.scorer import Scorer
    from guard.scoring.scorer_file import Artefact, BackOff, EarlyModel, SpanModel

#: Figures of a model of spans that are shown, by their name in the file.
_SPAN_FIGURES = {"auroc": "AUROC", "auroc_within": "within answers", "top_1": "top-1", "brier": "Brier"}

app = typer.Typer(
    help="List, fetch, check and describe scorers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

ScorerArgument = Annotated[str, typer.Argument(metavar="SCORER", help="Scorer file, or its name on the shelf.")]


@app.command("list")
def list_(*, as_json: JsonOption = False) -> None:
    """List the scorers that come with guard and those in your own folder ($GUARD_SCORERS)."""
    from guard.scoring.shelf import shelved

    rows = [_row(name, path) for name, path in sorted(shelved().items())]
    if as_json:
        print_json(rows)
    else:
        _print_list(rows)


@app.command()
def pull(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Scorer file that you downloaded or fitted.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name on the shelf; by default that of the file.")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing scorer of this name.")] = False,
) -> None:
    """Check a scorer file and put it on your shelf; --scorer NAME then finds it."""
    from guard.scoring.scorer import load_scorer
    from guard.scoring.shelf import place_for

    if not file.is_file():
        raise InputError(f"There is no file '{file}'", fix="Download the scorer first; guard fetches nothing itself")
    scorer = load_scorer(file)
    place = place_for(file.stem if name is None else name)
    if place.exists() and not replace:
        raise InputError(f"'{place.stem}' is on the shelf already", fix="Give another --name, or --replace")
    _write(scorer, place)
    _print_card(place.stem, scorer)
    say(f"On the shelf: --scorer {place.stem}")


@app.command()
@loads_a_model()
def check(
    scorer: ScorerArgument,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model to check the scorer against.")] = None,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    as_json: JsonOption = False,
) -> None:
    """Check a scorer file, show its card, and list what it lacks for publication.

    Exit code 3 where the file is damaged or, with --model, was fitted on another model.
    """
    from guard.scoring.scorer import load_scorer

    loaded = load_scorer(scorer)
    if model is not None:
        _check_fits(loaded, model, engine, engine_options)
    lacks = list(_lacks(loaded))
    if as_json:
        print_json({**_facts(loaded), "card": _card(loaded), "fits_model": True if model else None, "lacks": lacks})
        return
    _print_card(scorer, loaded)
    for each in lacks:
        console().print(shown(f"lacks {each}", "yellow"))
    say("The file is sound." if model is None else "The file is sound, and fits the model.")


@app.command()
def describe(
    scorer: ScorerArgument,
    card: Annotated[Path, typer.Argument(metavar="CARD", help="TOML file: title, licence, limits, figures, [data].")],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", help="Scorer file to write.")],
) -> None:
    """Add a card to a scorer. Scores stay the same; the checksum changes, so certify again afterwards."""
    from guard.scoring.cards import read_card, with_card
    from guard.scoring.scorer import load_scorer

    loaded = load_scorer(scorer)
    described = with_card(loaded, read_card(card, loaded))
    described.save(out)
    _print_card(str(out), described)


def _check_fits(scorer: Scorer, model: str, engine: str | None, engine_options: EngineOptions) -> None:
    from guard.engines import load_engine
    from guard.runtime.sources import find_capture_point, loading_options

    with load_engine(model, engine=engine, **loading_options(scorer, engine_options)) as loaded:
        scorer.for_model(loaded.model, find_capture_point(loaded))


def _lacks(scorer: Scorer) -> Iterator[str]:
    """Yield what people expect of a published scorer, as far as this one does not have it."""
    from guard.scores import SCORE_NAMES

    artefact = scorer.artefact
    if artefact.card is None:
        yield "a card: guard scorers describe"
    elif not artefact.card.figures:
        yield "figures on data that it was not fitted on, in its card"
    for name in SCORE_NAMES:
        if name not in artefact.scores:
            yield f"the score '{name}'"
    if artefact.ood_detector is None:
        yield "an out-of-distribution detector"


def _write(scorer: Scorer, place: Path) -> None:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write to '{place.parent}'", why=error.strerror or str(error)) from error
    scorer.save(place)


def _row(name: str, path: Path) -> dict[str, Any]:
    """Return what the list says of a scorer; ``error`` where its file cannot be used."""
    from guard.scoring.scorer import load_scorer
    from guard.scoring.shelf import shipped_folder

    where = {"name": name, "path": str(path), "comes_with_guard": path.parent == shipped_folder()}
    try:
        return {**where, **_facts(load_scorer(path)), "error": None}
    except GuardError as error:
        return {**where, "error": str(error)}


def _facts(scorer: Scorer) -> dict[str, Any]:
    artefact, binding = scorer.artefact, scorer.artefact.binding
    return {
        "title": artefact.card.title if artefact.card else None,
        "architecture": binding.architecture,
        "quantization": binding.quantization,
        "engine": binding.engine,
        "weights_sha256": binding.weights_sha256,
        "scores": list(artefact.scores),
        "metrics": artefact.metrics,
        "answers": sum(artefact.split_sizes.values()),
        "ood_detector": artefact.ood_detector is not None,
        "answer_bounds": artefact.answer_bounds and artefact.answer_bounds.model_dump(),
        "back_off": artefact.back_off and artefact.back_off.model_dump(),
        "spans": span_facts(artefact.spans) if artefact.spans else None,
        "early": early_facts(artefact.early) if artefact.early else None,
        "sha256": scorer.sha256,
    }


def back_off_line(back_off: BackOff) -> str:
    """Return in one line that guard's own score backs off."""
    return (
        "back-off: where an input is out of distribution, guard's own score reads the log-probabilities more, with a "
        f"share of up to {back_off.most:g} from an ood_score of {back_off.start:g} on"
    )


def span_facts(spans: SpanModel) -> dict[str, Any]:
    """Return what people should know of a model of spans."""
    return {name: getattr(spans, name) for name in ("spans", "wrong", "answers", "max_tokens", "metrics")}


def spans_line(spans: SpanModel) -> str:
    """Return a model of spans in one line; anybody may have written the figures of a file."""
    figures = [f"{name} {_number(spans.metrics.get(key))}" for key, name in _SPAN_FIGURES.items()]
    return (
        f"spans, on held-out answers: {', '.join(figures)}; {spans.spans} labelled spans of {spans.answers} answers, "
        f"{spans.wrong} wrong, at most {spans.max_tokens} tokens an answer"
    )


def early_facts(early: EarlyModel) -> dict[str, Any]:
    """Return what people should know of early stages."""
    names = ("tokens", "answers", "wrong", "metrics")
    stages = [{name: getattr(stage, name) for name in names} for stage in early.stages]
    return {"answers": early.answers, "max_tokens": early.max_tokens, "stages": stages}


def early_lines(early: EarlyModel) -> list[str]:
    """Return early stages, one a line, by the figures of the first score of each; anybody may have written these."""
    lines = []
    for stage in early.stages:
        name = next(iter(stage.calibrations))
        figures = ", ".join(f"{key} {_written(stage.metrics, name, key)}" for key in ("AUROC", "Brier"))
        tokens = f"{stage.tokens} token{'s' if stage.tokens > 1 else ''}"
        lines.append(
            f"after {tokens}, on held-out answers: {figures} ({name}); {stage.answers} longer answers, "
            f"{stage.wrong} wrong"
        )
    return lines


def _card(scorer: Scorer) -> dict[str, Any] | None:
    return scorer.artefact.card.model_dump() if scorer.artefact.card else None


def _print_list(rows: list[dict[str, Any]]) -> None:
    from rich.padding import Padding

    out = console()
    for row in rows:
        out.print(shown(row["name"], "bold"), no_wrap=True)  # people type it
        lines = [shown(row["error"], "red")] if row["error"] else map(shown, _row_lines(row))
        for line in lines:
            out.print(Padding(line, (0, 0, 0, 2)))


def _row_lines(row: dict[str, Any]) -> list[str]:
    figures = ", ".join(f"{name} {_written(row['metrics'], 'guard', name)}" for name in ("AUROC", "Brier"))
    model = f"{row['architecture']}, {row['quantization']}, {row['engine']}"
    return [f"{model}; {row['answers']} answers, {figures}", parts_line(row)]


def parts_line(facts: dict[str, Any]) -> str:
    """Return in one line which of the parts that policies and scores can use a scorer has, and which it lacks."""
    parts = {
        "out-of-distribution detector": facts["ood_detector"],
        "bounds of answers": facts["answer_bounds"],
        "back-off": facts["back_off"],
        "spans": facts["spans"],
        "early stages": facts["early"],
    }
    has, lacks = ([name for name, part in parts.items() if bool(part) is kind] for kind in (True, False))
    return f"parts: {', '.join(has) or 'none'}" + (f"; without {', '.join(lacks)}" if lacks else "")


def _bounds_line(artefact: Artefact) -> str:
    """Return which answers count as longer than those of the calibration."""
    bounds = artefact.answer_bounds
    if bounds is None:
        most = f"more than {artefact.prompting.max_tokens} tokens, the limit of the calibration"
        return f"unlike those of the calibration: answers of {most}; lines are not compared"
    lines = f"{bounds.lines} line{'s' if bounds.lines > 1 else ''}"
    return f"unlike those of the calibration: answers of more than {bounds.tokens} tokens or {lines}"


def _written(metrics: dict[str, Any], score: str, name: str) -> str:
    """Return a figure of a scorer file, which anybody may have written."""
    figures = metrics.get(score)
    return _number(figures.get(name.lower()) if isinstance(figures, dict) else None)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value) if isinstance(value, int) else "-"


def _print_card(name: str, scorer: Scorer) -> None:
    """Show what a person should know of a scorer; foreign text is shown, never obeyed."""
    out, facts, card = console(), _facts(scorer), scorer.artefact.card
    out.print(shown(card.title if card else name, "bold"))
    out.print(shown(f"model: {facts['architecture']}, {facts['quantization']}, {facts['engine']}"))
    out.print(shown(f"weights: {facts['weights_sha256']}"))
    for score in facts["scores"]:
        figures = [f"{key} {_written(facts['metrics'], score, key)}" for key in ("AUROC", "Brier", "ECE", "n")]
        out.print(shown(f"{score}, on held-out questions of the same sets: {', '.join(figures)}"))
    out.print(shown(parts_line(facts)))
    out.print(shown(_bounds_line(scorer.artefact)))
    if back_off := scorer.artefact.back_off:
        out.print(shown(back_off_line(back_off)))
    if spans := scorer.artefact.spans:
        out.print(shown(spans_line(spans)))
    if early := scorer.artefact.early:
        for line in early_lines(early):
            out.print(shown(line))
    for each in scorer.artefact.data:
        licence = f", {card.data[each.name]}" if card else ""
        out.print(shown(f"data: {each.name}, {each.rows} answers, {each.wrong:g} wrong{licence}"))
    if card:
        out.print(shown(f"licence: {card.licence}"))
        for label, lines in (("figure", card.figures), ("limit", card.limits)):
            for line in lines:
                out.print(shown(f"{label}: {line}"))
