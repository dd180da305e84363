"""One HTML file of an evaluation: tables, figures, verdicts, provenance; nothing is fetched from elsewhere.

The page is made from the result alone. What a table or a figure means is said beside it in a sentence,
since the reader may not know the measure; what is missing is said too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from guard.evaluation import figures
from guard.evaluation.bootstrap import Estimate
from guard.evaluation.measures import AUROC, MEASURES, TRANSFER_MEASURES, Measure
from guard.evaluation.predictions import HELD_OUT, LEAVE_ONE_OUT, PAIRWISE, SAMPLED, SHIFT, WITHIN
from guard.evaluation.result import EvaluationResult, Missing, ModelResult, SettingResult, Verdict

#: How many methods stand in figures that need room for each; the rest are in a fold below.
_IN_SIGHT = 6

_GUIDES = {
    WITHIN: "Fitted and tested on the same kind of question, in folds; no question is in two folds.",
    LEAVE_ONE_OUT: "Fitted on all data sets but one and tested on that one: what a new kind of question gets.",
    PAIRWISE: "Fitted on one data set and tested on each other one: the hardest transfer, and the noisiest.",
    HELD_OUT: "Fitted on all data sets and tested on further ones that were recorded separately.",
    SAMPLED: "Leave-one-dataset-out on the answers whose questions were sampled again: methods that read samples.",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One place of a table: the value, its interval, and whether it is the best of its column."""

    text: str
    interval: str
    best: bool


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; ``own`` marks guard's method."""

    label: str
    own: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the page: column heads with the direction that is better, and rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with the sentence that says how to read it; folded where it is one of many."""

    title: str
    guide: str
    svg: Markup
    folded: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """One protocol of one model on the page."""

    anchor: str
    title: str
    guide: str
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]
    per_set: tuple[Table, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class Chapter:
    """One model's records on the page; those of one model may be there twice, so the title counts them."""

    anchor: str
    title: str
    result: ModelResult
    sections: tuple[Section, ...]
    pictures: tuple[Picture, ...]


def render(result: EvaluationResult) -> str:
    """The report as one HTML text.

    Raises:
        MissingExtraError: matplotlib is not installed (raised when this module is imported).
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=_signed, duration=figures.duration, interval=_interval_text, verdict=_verdict_class
    )
    chapters = [_chapter(number, model) for number, model in enumerate(result.models, start=1)]
    return environment.get_template("report.html.j2").render(result=result, chapters=chapters, measures=MEASURES)


def _chapter(number: int, result: ModelResult) -> Chapter:
    anchor = slug(f"{number} {result.model.name} {result.model.quantization}")
    sections = tuple(_section(anchor, result, setting) for setting in result.settings)
    title = f"{result.model.name} {result.model.quantization}, {result.answers:,} answers"
    return Chapter(anchor, title, result, sections, tuple(_model_pictures(result)))


def _section(anchor: str, result: ModelResult, setting: SettingResult) -> Section:
    measures = TRANSFER_MEASURES if setting.setting == PAIRWISE else MEASURES
    shifted = "Fitted on one precision or engine, tested on another, within each data set; no question is in both."
    return Section(
        anchor=f"{anchor}-{slug(setting.setting)}",
        title=setting.setting[0].upper() + setting.setting[1:],
        guide=_GUIDES.get(setting.setting, shifted),
        tables=(_means(result, setting, measures), _gains(result, setting)),
        pictures=tuple(_shift_pictures(result, setting) or _setting_pictures(result, setting)),
        per_set=()
        if setting.setting == PAIRWISE
        else tuple(_per_set(result, setting, each) for each in TRANSFER_MEASURES),
        missing=_merged(setting.missing),
    )


def _merged(missing: Sequence[Missing]) -> tuple[Missing, ...]:
    """One line for a method and a reason, with all the sets it is about."""
    tests: dict[tuple[str, str], list[str]] = {}
    for each in missing:
        tests.setdefault((each.method, each.reason), []).append(each.test)
    return tuple(Missing(name, "", ", ".join(dict.fromkeys(sets)), why) for (name, why), sets in tests.items())


# -- tables ------------------------------------------------------------------------------------


def _means(result: ModelResult, setting: SettingResult, measures: Sequence[Measure]) -> Table:
    cells = "pairs of training and test set" if setting.setting == PAIRWISE else "test sets"
    columns = []
    for measure in measures:
        found = [setting.score(card.name, measure.name) for card in result.methods]
        columns.append(_column([each.estimate if each else None for each in found], result, measure))
    return Table(
        caption=f"Mean over {setting.cells} {cells} with 95 % intervals; the best one-pass value is marked.",
        head=tuple(_unbroken(f"{measure.name}\u00a0{measure.arrow}") for measure in measures),
        rows=_rows(result, setting, columns),
    )


def _per_set(result: ModelResult, setting: SettingResult, measure: Measure) -> Table:
    """One measure, set by set."""
    values = {(each.method, each.test): each.value for each in setting.per_cell if each.measure == measure.name}
    sets = list(dict.fromkeys(each.test for each in setting.per_cell))
    columns = [
        _column([Estimate(values.get((card.name, name)), None, None) for card in result.methods], result, measure)
        for name in sets
    ]
    return Table(
        caption=f"{measure.name} {measure.arrow} by test set", head=tuple(sets), rows=_rows(result, setting, columns)
    )


def _column(estimates: Sequence[Estimate | None], result: ModelResult, measure: Measure) -> list[Cell]:
    """Cells of one measure; the best is sought among methods that need no pass more."""
    cheap = [
        round(each.value, 3)
        for each, card in zip(estimates, result.methods, strict=True)
        if each is not None and each.value is not None and card.kind != "reference"
    ]
    best = (max if measure.direction == "higher" else min)(cheap, default=None)
    cells = []
    for each, card in zip(estimates, result.methods, strict=True):
        value = None if each is None or each.value is None else round(each.value, 3)
        marked = value is not None and value == best and card.kind != "reference"
        cells.append(Cell(_estimate_text(each), _interval_text(each), marked))
    return cells


def _rows(result: ModelResult, setting: SettingResult, columns: Sequence[Sequence[Cell]]) -> tuple[Row, ...]:
    run = {score.method for score in setting.scores}
    return tuple(
        Row(card.name, card.name == result.own, tuple(column[place] for column in columns))
        for place, card in enumerate(result.methods)
        if card.name in run
    )


def _gains(result: ModelResult, setting: SettingResult) -> Table:
    """guard's own method against each other one; a gain is marked where its interval is above zero."""
    gains = {(each.against, each.measure): each.gain for each in setting.comparisons}
    measures = list(dict.fromkeys(each.measure for each in setting.comparisons))
    rows = []
    for card in result.methods:
        if card.name == result.own or not any(against == card.name for against, _ in gains):
            continue
        cells = []
        for name in measures:
            gain = gains[card.name, name]
            sure = gain.estimate.low is not None and gain.estimate.low > 0
            wins = f"{gain.better} of {gain.cells}" if gain.cells else ""
            cells.append(Cell(_signed(gain.estimate.value), f"{_interval_text(gain.estimate)}\n{wins}".strip(), sure))
        rows.append(Row(f"against {card.name}", False, tuple(cells)))
    return Table(
        caption=f"How much better {result.own} is (above 0 is better, whichever direction the measure has): mean "
        "difference, paired 95 % interval, and on how many test sets it is better; sure gains are marked.",
        head=tuple(_unbroken(name) for name in measures),
        rows=tuple(rows),
    )


def _estimate_text(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate.value is None else _plain(estimate.value)


def _interval_text(estimate: Estimate | None) -> str:
    if estimate is None or estimate.low is None or estimate.high is None:
        return ""
    return f"{_plain(estimate.low)} to {_plain(estimate.high)}"


def _plain(value: float) -> str:
    """Three decimals, without the nought that every value would begin with."""
    return re.sub(r"^(\D?)0\.", r"\1.", f"{round(value, 3) + 0.0:.3f}").replace("-", "−")


def _unbroken(head: str) -> str:
    """A column's head that breaks between words only."""
    return head.replace("-", "\u2011").replace(" %", "\u00a0%")


def _signed(value: float | None) -> str:
    return "–" if value is None else ("+" if round(value, 3) > 0 else "") + _plain(value)


def _verdict_class(verdict: Verdict) -> str:
    return {"reached": "yes", "not reached": "no"}.get(verdict.outcome, "open")


# -- figures -----------------------------------------------------------------------------------


def _setting_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    names = [card.name for card in result.methods]
    if not any(score.estimate.value is not None for score in setting.scores):
        return []
    pictures = [
        Picture(
            "Methods side by side",
            "Dots are means over test sets, bars their 95 % intervals; best at the top by the first panel. Intervals "
            "that overlap can still hide a sure difference, since methods share their answers: see the table of gains.",
            Markup(figures.dots(setting, result.methods, result.own, [each.name for each in TRANSFER_MEASURES])),
        )
    ]
    if setting.setting == PAIRWISE:
        pictures += _transfer_pictures(result, setting)
    if any(each.name == result.own for each in setting.curves):
        pictures.append(
            Picture(
                "Risk and coverage",
                "From left to right fewer answers are accepted, the least doubtful ones; the lower a line, the fewer "
                "of them are wrong. Dotted: a score that knows every label; dashed: accepting at random.",
                Markup(figures.risk_coverage(setting, result.own, names[: _IN_SIGHT + 1])),
            )
        )
        pictures += _reliability_pictures(result, setting)
    return pictures


def _shift_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    """Of one of several shifts: all of them side by side at the first, each one's own figures in a fold."""
    several = [each for each in result.settings if each.setting.startswith(f"{SHIFT}: ")]
    if setting not in several or len(several) < 2:
        return []
    own = [replace(each, folded=True) for each in _setting_pictures(result, setting)]
    if setting is not several[0]:
        return own
    run = {score.method for score in setting.scores}
    names = [card.name for card in result.methods if card.name in run]
    guide = (
        "One line a precision or engine that the model was tested on; fitted on the same records throughout. "
        "Dots are means over test sets, bars their 95 % intervals."
    )
    measures = [each.name for each in TRANSFER_MEASURES]
    return [Picture("Shifts side by side", guide, Markup(figures.shifts(several, result.own, names, measures))), *own]


def _transfer_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    recorded = [
        card.name
        for card in result.methods
        if any(each.method == card.name and each.value is not None for each in setting.per_cell)
    ]
    guide = (
        "Row: fitted on; column: tested on; the darker, the better. The diagonal (bold) is within a set. A column that "
        "stays dark is a set on which every training serves."
    )
    return [
        Picture(title, guide, Markup(figures.transfer(result, part)), folded)
        for title, part, folded in _in_sight("Transfer", recorded)
    ]


def _reliability_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    guide = (
        "Each dot is a tenth of the answers: on the diagonal, stated probabilities come true; above it, answers "
        "are wrong more often than stated."
    )
    return [
        Picture(title, guide, Markup(figures.reliability_diagrams(setting, result.own, part)), folded)
        for title, part, folded in _in_sight("Reliability", [each.method for each in setting.reliability])
    ]


def _in_sight(title: str, names: Sequence[str]) -> list[tuple[str, Sequence[str], bool]]:
    """The first methods, and the rest for a fold, each with a title."""
    first, rest = names[:_IN_SIGHT], names[_IN_SIGHT:]
    parts: list[tuple[str, Sequence[str], bool]] = [(title, first, False)] if first else []
    return [*parts, (f"{title} of {', '.join(rest)}", rest, True)] if rest else parts


def _model_pictures(result: ModelResult) -> list[Picture]:
    pictures = []
    if any(each.gain.estimate.value is not None for each in result.groups):
        pictures.append(
            Picture(
                "What each group of features adds",
                "The gain of the whole over the whole without the group, with paired 95 % intervals; right of the line "
                "the group helps.",
                Markup(figures.group_gains(result.groups)),
            )
        )
    if result.importance is not None:
        pictures.append(
            Picture(
                "Which layers count",
                "Each place is one ordered pair of layers; bars in the margins add up a column or a row.",
                Markup(figures.layer_map(result.importance)),
            )
        )
    dearest = result.setting(LEAVE_ONE_OUT) or result.setting(WITHIN)
    judged = [] if dearest is None else [score for score in dearest.scores if score.measure == AUROC.name]
    if dearest is not None and any(score.estimate.value is not None for score in judged):
        pictures.append(
            Picture(
                "Cost and quality",
                "Model passes from left to right, quality upwards; measured time for one answer's score stands beside "
                "a method where it was taken.",
                Markup(figures.cost(dearest, result.methods, result.own)),
            )
        )
    return pictures


def slug(text: str) -> str:
    """A text as an anchor of the page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
