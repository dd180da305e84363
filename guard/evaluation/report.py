"""Render an evaluation as one HTML file: tables, figures, verdicts, provenance; nothing is loaded from elsewhere.

The page is made from the result alone. Each table and figure has a sentence that explains it, and missing results
are listed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from guard.evaluation import figures
from guard.evaluation.bootstrap import Estimate
from guard.evaluation.measures import AUROC, MEASURES, TRANSFER_MEASURES, Measure
from guard.evaluation.predictions import HELD_OUT, LEAVE_ONE_OUT, PAIRWISE, SAMPLED, SHIFT, WITHIN
from guard.evaluation.result import (
    ClaimVerdict,
    EvaluationResult,
    MethodCard,
    Missing,
    ModelResult,
    Pooled,
    SettingResult,
)
from guard.evaluation.same_sets import SameSets, same_sets

#: Number of methods in figures with a panel per method; further methods are in a collapsed section.
_IN_SIGHT = 6

_GUIDES = {
    WITHIN: "Cross-validation within each data set; no question is in two folds.",
    LEAVE_ONE_OUT: "Fitted on all data sets but one, tested on that one: the quality on a new kind of question.",
    PAIRWISE: "Fitted on one data set, tested on each other one: the hardest and noisiest transfer.",
    HELD_OUT: "Fitted on all data sets, tested on further ones that were recorded separately.",
    SAMPLED: "Leave-one-dataset-out on the answers with further samples, for methods that use these.",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table: the value, its interval, and whether it is the best of its column."""

    text: str
    interval: str
    best: bool


@dataclass(frozen=True, slots=True)
class PageRow:
    """One line of a table; ``own`` marks guard's method."""

    label: str
    own: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class PageTable:
    """A table of the page: column heads with the better direction, and rows."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[PageRow, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure with a sentence that explains it; folded where it is one of many."""

    title: str
    guide: str
    svg: Markup
    folded: bool = False


@dataclass(frozen=True, slots=True)
class PageSection:
    """One protocol of one model on the page."""

    anchor: str
    title: str
    guide: str
    tables: tuple[PageTable, ...]
    pictures: tuple[Picture, ...]
    per_set: tuple[PageTable, ...]
    missing: tuple[Missing, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """What a reader sees first of a model: one sentence and one picture.

    Attributes:
        accept, wrong: the two numbers of the sentence as text; None where no threshold is worth naming.
        lead: what stands below it.
        svg: the picture.
        truncated: sentences on the score of truncated and of complete answers; empty if no answer is truncated.
    """

    accept: str | None
    wrong: str | None
    lead: str
    svg: Markup
    truncated: str = ""


@dataclass(frozen=True, slots=True)
class Chapter:
    """One model's records on the page; the title has the number of answers, since a model can be there twice."""

    anchor: str
    title: str
    result: ModelResult
    sections: tuple[PageSection, ...]
    pictures: tuple[Picture, ...]
    opening: Opening | None


def render(result: EvaluationResult) -> str:
    """Render the report as one HTML text.

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
        signed=_signed, duration=figures.duration, interval=_interval_text, verdict=_verdict_class, moment=_moment
    )
    chapters = [_chapter(number, model) for number, model in enumerate(result.models, start=1)]
    return environment.get_template("report.html.j2").render(result=result, chapters=chapters, measures=MEASURES)


def _chapter(number: int, result: ModelResult) -> Chapter:
    anchor = slug(f"{number} {result.model.name} {result.model.quantization}")
    sections = tuple(_section(anchor, result, setting) for setting in result.settings)
    title = f"{result.model.name} {result.model.quantization}, {result.answers:,} answers"
    return Chapter(anchor, title, result, sections, tuple(_model_pictures(result)), _opening(result))


def _opening(result: ModelResult) -> Opening | None:
    """Make the headline: what one threshold over all test sets accepts."""
    pooled = result.pooled
    if pooled is None:
        return None
    lead = f"Of all {pooled.answers:,} answers to {pooled.sets} test sets, {_percent(pooled.wrong)} are wrong."
    svg = Markup(figures.one_threshold(pooled))
    point = pooled.headline
    if point is None or point.coverage.value is None:
        least = _percent(pooled.points[-1].risk)
        return Opening(
            None, None, f"{lead} No threshold keeps the share of wrong answers at {least}.", svg, _truncated(pooled)
        )
    low, high = (_percent(each or 0.0) for each in (point.coverage.low, point.coverage.high))
    how = f"{lead} One threshold for all of them, chosen in hindsight (95\u00a0% interval {low} to {high})"
    lead = f"{how}; guard certify guarantees a rate for new answers."
    return Opening(_percent(point.coverage.value), _percent(point.risk), lead, svg, _truncated(pooled))


def _truncated(pooled: Pooled) -> str:
    """Return one sentence about truncated and one about complete answers; empty if no answer is truncated."""
    found = pooled.by_ending
    if found is None or found.truncated is None:
        return ""
    parts = (("truncated at their token limit", found.truncated), ("complete", found.complete))
    said = [
        f"{part.n:,} answers are {name}: {_percent(part.wrong)} of them wrong, mean p(wrong) {_percent(part.p_wrong)}"
        for name, part in parts
        if part is not None
    ]
    return ". ".join(said) + "."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}\u00a0%"


def _section(anchor: str, result: ModelResult, setting: SettingResult) -> PageSection:
    measures = TRANSFER_MEASURES if setting.setting == PAIRWISE else MEASURES
    shifted = "Fitted on one precision or engine, tested on another, within each data set; no question is in both."
    return PageSection(
        anchor=f"{anchor}-{slug(setting.setting)}",
        title=setting.setting[0].upper() + setting.setting[1:],
        guide=_GUIDES.get(setting.setting, shifted),
        tables=(*_means(result, setting, measures), _gains(result, setting)),
        pictures=tuple(_shift_pictures(result, setting) or _setting_pictures(result, setting)),
        per_set=()
        if setting.setting == PAIRWISE
        else tuple(_per_set(result, setting, each) for each in TRANSFER_MEASURES),
        missing=_merged(setting.missing),
    )


def _merged(missing: Sequence[Missing]) -> tuple[Missing, ...]:
    """Merge the entries of one method and one reason into one, with all their test sets."""
    tests: dict[tuple[str, str], list[str]] = {}
    for each in missing:
        tests.setdefault((each.method, each.reason), []).append(each.test)
    return tuple(Missing(name, "", ", ".join(dict.fromkeys(sets)), why) for (name, why), sets in tests.items())


# -- tables ------------------------------------------------------------------------------------


def _means(result: ModelResult, setting: SettingResult, measures: Sequence[Measure]) -> Iterator[PageTable]:
    """Make a table of the methods with results on all sets, and one of those that lack some."""
    for group in same_sets(result, setting, [measure.name for measure in measures]):
        cards = [card for card in result.methods if card.name in group.methods]
        columns = [
            _column([_mean(setting, group, card.name, measure) for card in cards], cards, measure)
            for measure in measures
        ]
        yield PageTable(
            caption=_caption(setting, group),
            head=tuple(_unbroken(f"{measure.name}\u00a0{measure.arrow}") for measure in measures),
            rows=_rows(cards, result.own, columns),
        )


def _mean(setting: SettingResult, group: SameSets, method: str, measure: Measure) -> Estimate | None:
    """Return a mean over a group's sets; intervals are known for means over all sets."""
    if not group.whole:
        return Estimate(group.mean(setting, method, measure.name), None, None)
    score = setting.score(method, measure.name)
    return score.estimate if score else None


def _caption(setting: SettingResult, group: SameSets) -> str:
    cells = "pairs of training and test set" if setting.setting == PAIRWISE else "test sets"
    if group.whole:
        over = f"{len(group.cells)} of {setting.cells}" if len(group.cells) < setting.cells else f"{setting.cells}"
        return f"Mean over {over} {cells} with 95 % intervals; the best one-pass value is bold."
    over = f"the {len(group.cells)} of {setting.cells} {cells} that all of them have"
    return f"Methods that lack some sets: mean over {over}."


def _per_set(result: ModelResult, setting: SettingResult, measure: Measure) -> PageTable:
    """Make the table of one measure by test set."""
    values = {(each.method, each.test): each.value for each in setting.per_cell if each.measure == measure.name}
    sets = list(dict.fromkeys(each.test for each in setting.per_cell))
    run = {score.method for score in setting.scores}
    cards = [card for card in result.methods if card.name in run]
    columns = [
        _column([Estimate(values.get((card.name, name)), None, None) for card in cards], cards, measure)
        for name in sets
    ]
    return PageTable(
        caption=f"{measure.name} {measure.arrow} by test set",
        head=tuple(sets),
        rows=_rows(cards, result.own, columns),
    )


def _column(estimates: Sequence[Estimate | None], methods: Sequence[MethodCard], measure: Measure) -> list[Cell]:
    """Make the cells of one measure; only one-pass methods compete for the best value."""
    cheap = [
        round(each.value, 3)
        for each, card in zip(estimates, methods, strict=True)
        if each is not None and each.value is not None and card.kind != "reference"
    ]
    best = (max if measure.direction == "higher" else min)(cheap, default=None)
    cells = []
    for each, card in zip(estimates, methods, strict=True):
        value = None if each is None or each.value is None else round(each.value, 3)
        marked = value is not None and value == best and card.kind != "reference"
        cells.append(Cell(_estimate_text(each), _interval_text(each), marked))
    return cells


def _rows(methods: Sequence[MethodCard], own: str, columns: Sequence[Sequence[Cell]]) -> tuple[PageRow, ...]:
    return tuple(
        PageRow(card.name, card.name == own, tuple(column[place] for column in columns))
        for place, card in enumerate(methods)
    )


def _gains(result: ModelResult, setting: SettingResult) -> PageTable:
    """Make the table of gains of guard's own method; a gain is bold where its interval is above zero."""
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
        rows.append(PageRow(f"against {card.name}", False, tuple(cells)))
    return PageTable(
        caption=f"Gain of {result.own} over each method (above 0 is better, for any measure): mean "
        "difference, paired 95 % interval, and number of test sets with a gain; bold where the interval is above 0.",
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
    """Format with three decimals, without the leading zero."""
    return re.sub(r"^(\D?)0\.", r"\1.", f"{round(value, 3) + 0.0:.3f}").replace("-", "−")


def _unbroken(head: str) -> str:
    """Format a column head that breaks between words only."""
    return head.replace("-", "\u2011").replace(" %", "\u00a0%")


def _signed(value: float | None) -> str:
    return "–" if value is None else ("+" if round(value, 3) > 0 else "") + _plain(value)


def _moment(created: str) -> str:
    """Format a time in words and in UTC."""
    when = datetime.fromisoformat(created).astimezone(UTC)
    return f"{when.day} {when:%B %Y, %H:%M} UTC"


def _verdict_class(verdict: ClaimVerdict) -> str:
    return {"reached": "yes", "not reached": "no"}.get(verdict.outcome, "open")


# -- figures -----------------------------------------------------------------------------------


def _setting_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    names = [card.name for card in result.methods]
    if not any(score.estimate.value is not None for score in setting.scores):
        return []
    pictures = [
        Picture(
            "Comparison of methods",
            "Dots are means over test sets, bars are 95 % intervals, sorted by the first panel. Overlapping intervals "
            "do not exclude a significant difference, since methods share their answers: see the table of gains.",
            Markup(figures.dots(setting, result.methods, result.own, [each.name for each in TRANSFER_MEASURES])),
        )
    ]
    if setting.setting == PAIRWISE:
        pictures += _transfer_pictures(result, setting)
    if any(each.name == result.own for each in setting.curves):
        pictures.append(
            Picture(
                "Risk and coverage",
                "The share of wrong answers among the accepted, by coverage; lower is better. Dotted: a score that "
                "knows every label; dashed: accepting at random.",
                Markup(figures.risk_coverage(setting, result.own, names[: _IN_SIGHT + 1])),
            )
        )
        pictures += _reliability_pictures(result, setting)
    return pictures


def _shift_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    """Make the figures of one of several shifts: the first has the comparison of all, each has its own in a fold."""
    several = [each for each in result.settings if each.setting.startswith(f"{SHIFT}: ")]
    if setting not in several or len(several) < 2:
        return []
    own = [replace(each, folded=True) for each in _setting_pictures(result, setting)]
    if setting is not several[0]:
        return own
    run = {score.method for score in setting.scores}
    names = [card.name for card in result.methods if card.name in run]
    guide = (
        "One line for each precision or engine in the test; all methods are fitted on the same records. Dots are means "
        "over test sets, bars are 95 % intervals."
    )
    measures = [each.name for each in TRANSFER_MEASURES]
    return [Picture("Comparison of shifts", guide, Markup(figures.shifts(several, result.own, names, measures))), *own]


def _transfer_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    recorded = [
        card.name
        for card in result.methods
        if any(each.method == card.name and each.value is not None for each in setting.per_cell)
    ]
    guide = (
        "Rows: training set; columns: test set; darker is better. The diagonal (bold) is within-dataset "
        "cross-validation."
    )
    return [
        Picture(title, guide, Markup(figures.transfer(result, part)), folded)
        for title, part, folded in _in_sight("Transfer", recorded)
    ]


def _reliability_pictures(result: ModelResult, setting: SettingResult) -> list[Picture]:
    guide = (
        "Each dot is a tenth of the answers. On the diagonal, predicted probabilities match the observed error rate; "
        "above it, answers are wrong more often than predicted."
    )
    return [
        Picture(title, guide, Markup(figures.reliability_diagrams(setting, result.own, part)), folded)
        for title, part, folded in _in_sight("Reliability", [each.method for each in setting.reliability])
    ]


def _in_sight(title: str, names: Sequence[str]) -> list[tuple[str, Sequence[str], bool]]:
    """Divide methods into the first ones and the rest, for a fold, each with a title."""
    first, rest = names[:_IN_SIGHT], names[_IN_SIGHT:]
    parts: list[tuple[str, Sequence[str], bool]] = [(title, first, False)] if first else []
    return [*parts, (f"{title} of {', '.join(rest)}", rest, True)] if rest else parts


def _model_pictures(result: ModelResult) -> list[Picture]:
    pictures = []
    if any(each.gain.estimate.value is not None for each in result.groups):
        pictures.append(
            Picture(
                "Contribution of each group of features",
                "The gain of the full score over the score without the group, with paired 95 % intervals; right of the "
                "line the group helps.",
                Markup(figures.group_gains(result.groups)),
            )
        )
    if result.importance is not None:
        pictures.append(
            Picture(
                "Importance of layers",
                "Each cell is one ordered pair of layers; bars in the margins are sums of a column or a row.",
                Markup(figures.layer_map(result.importance)),
            )
        )
    dearest = result.setting(LEAVE_ONE_OUT) or result.setting(WITHIN)
    judged = [] if dearest is None else [score for score in dearest.scores if score.measure == AUROC.name]
    if dearest is not None and any(score.estimate.value is not None for score in judged):
        pictures.append(
            Picture(
                "Cost and quality",
                "Quality by number of model passes, with the measured time of one answer's score where there is one.",
                Markup(figures.cost(dearest, result.methods, result.own)),
            )
        )
    return pictures


def slug(text: str) -> str:
    """Return a text as an anchor of the page."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
