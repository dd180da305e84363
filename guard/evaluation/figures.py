"""The figures of the report, each as SVG text for the page.

All figures share one style: light background, few lines, direct labels. guard's own method is blue; other methods are
grey, or have the colour-blind safe colours of Okabe and Ito if lines must be distinguished. Text stays text
(searchable, in the reader's font), so boxes leave room for wider fonts.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import missing_extra
from guard.evaluation.bootstrap import Estimate
from guard.evaluation.measures import ReliabilityBin, measure_named
from guard.evaluation.predictions import PAIRWISE, SHIFT, WITHIN
from guard.evaluation.result import (
    COVERAGES,
    Curve,
    GroupGain,
    Importance,
    MethodCard,
    ModelResult,
    Pooled,
    SettingResult,
)

try:
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
except ImportError as error:
    raise missing_extra("matplotlib", "evaluate") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN, INK, MUTED, FAINT, GROUND = "#0072b2", "#22272e", "#6b7480", "#d9dde2", "#ffffff"
#: For lines beside guard's own: vermilion, green, purple, ochre, sky (after Okabe and Ito), then grey.
OTHERS = ("#d55e00", "#009e73", "#aa4499", "#b07d00", "#4d9fcf", "#8a8f98")
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "svg.fonttype": "none",
    # The same result gives the same bytes, and a dollar sign in a name is not a formula.
    "svg.hashsalt": "guard",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.axisbelow": True,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "figure.facecolor": GROUND,
}
_BLUES = LinearSegmentedColormap.from_list("paper to blue", ["#f7f5ef", "#bcd7e6", "#4a94c1", "#0b4a75"]).with_extremes(
    under="#f3d2bd", bad="#eceef0"
)


def dots(setting: SettingResult, methods: Sequence[MethodCard], own: str, measures: Sequence[str]) -> str:
    """Draw methods as dots with intervals, one panel for each measure, sorted by the first."""
    sign = measure_named(measures[0]).sign

    def rank(card: MethodCard) -> float:
        score = setting.score(card.name, measures[0])
        return -np.inf if score is None or score.estimate.value is None else sign * score.estimate.value

    run = {score.method for score in setting.scores}
    ordered = sorted((card for card in methods if card.name in run), key=rank)
    labels = [_counted(card.name, setting, measures[0]) for card in ordered]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 0.9 + 0.34 * len(ordered)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(measures), sharey=True))
        for axis, name in zip(axes, measures, strict=True):
            for row, card in enumerate(ordered):
                score = setting.score(card.name, name)
                _interval(axis, row, score.estimate if score else None, own=card.name == own)
            axis.set_title(f"{name} {measure_named(name).arrow}", fontsize=10.5)
            axis.grid(axis="x")
            axis.margins(x=0.08)
            _bare_side(axis)
        _rows(axes[0], labels, own)
        return _svg(figure, f"{setting.setting}: methods by {', '.join(measures)}")


def _counted(name: str, setting: SettingResult, measure: str) -> str:
    score = setting.score(name, measure)
    if score is None or not score.cells:
        return f"{name} (not recorded)"
    return name if score.cells == setting.cells else f"{name} ({score.cells} of {setting.cells})"


def _rows(axis: Axes, labels: Sequence[str], own: str) -> None:
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(-0.6, len(labels) - 0.4)
    for tick, label in zip(axis.get_yticklabels(), labels, strict=True):
        mine = label == own or label.startswith(f"{own} (")
        tick.set(color=OWN if mine else INK, fontweight="bold" if mine else "normal")


def _bare_side(axis: Axes) -> None:
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _interval(axis: Axes, row: float, estimate: Estimate | None, *, own: bool) -> None:
    if estimate is None or estimate.value is None:
        return
    colour = OWN if own else MUTED
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2.2, alpha=0.45)
    axis.plot([estimate.value], [row], "o", color=colour, markersize=6.5 if own else 5.5)


def transfer(result: ModelResult, methods: Sequence[str], measure: str = "AUROC") -> str:
    """Draw train x test heatmaps, one for each method, on one colour scale; the diagonal is within sets."""
    sets = [each.name for each in result.datasets]
    grids = [_grid(result, method, measure, sets) for method in methods]
    columns = min(3, len(methods))
    lines = -(-len(methods) // columns)
    side = 0.5 + 0.29 * max(5, len(sets))
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.6 + columns * side, 1.5 + lines * (side + 0.3)), layout="compressed")
        axes = figure.subplots(lines, columns, squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place >= len(methods):
                axis.set_axis_off()
                continue
            image = axis.imshow(np.ma.masked_invalid(grids[place]), cmap=_BLUES, vmin=0.5, vmax=1.0)
            off = grids[place][~np.eye(len(sets), dtype=bool)]
            mean = f"transfer mean {np.nanmean(off):.3f}" if np.isfinite(off).any() else "not recorded"
            axis.set_title(f"{methods[place]}\n", color=OWN if methods[place] == result.own else INK)
            axis.text(0, 1.02, mean, transform=axis.transAxes, color=MUTED, fontsize=9.5, va="bottom")
            _matrix_labels(axis, sets, left=place % columns == 0, bottom=place + columns >= len(methods))
            _cell_texts(axis, grids[place])
        figure.supxlabel("tested on", color=MUTED, fontsize=10.5)
        figure.supylabel("trained on", color=MUTED, fontsize=10.5)
        bar = figure.colorbar(image, ax=axes, shrink=min(1.0, 2.6 / (lines * side)), aspect=18, extend="min", pad=0.02)
        bar.set_label(f"{measure} (0.5 is guessing)")
        bar.outline.set_visible(False)
        return _svg(figure, f"{measure} by training set and test set for {', '.join(methods)}")


def _grid(result: ModelResult, method: str, measure: str, sets: Sequence[str]) -> NDArray[np.float64]:
    grid = np.full((len(sets), len(sets)), np.nan)
    for name in (WITHIN, PAIRWISE):
        setting = result.setting(name)
        for each in setting.per_cell if setting else ():
            if (each.method, each.measure) == (method, measure) and each.value is not None:
                grid[sets.index(each.train), sets.index(each.test)] = each.value
    return grid


def _matrix_labels(axis: Axes, sets: Sequence[str], *, left: bool, bottom: bool) -> None:
    axis.set_xticks(range(len(sets)), sets if bottom else [], rotation=45, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(sets)), sets if left else [])
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _cell_texts(axis: Axes, grid: NDArray[np.float64]) -> None:
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            text = f"{value:.2f}".removeprefix("0")
            colour = "white" if value > 0.82 else INK
            weight = "bold" if row == column else "normal"
            drawn = axis.text(
                column, row, text, ha="center", va="center", color=colour, fontsize=7.8, fontweight=weight
            )
            # Inside its cell anyway: computing the layout of hundreds of them takes seconds.
            drawn.set_in_layout(False)


def risk_coverage(setting: SettingResult, own: str, methods: Sequence[str]) -> str:
    """Draw the share of wrong answers among the accepted over the coverage."""
    drawn = [each for each in setting.curves if each.name in methods]
    coverage = np.array(COVERAGES) * 100
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        axis = figure.subplots()
        ends: list[tuple[float, str, str]] = []
        colours = _colours([each.name for each in drawn], own)
        for curve in sorted(drawn, key=lambda each: each.name == own):
            width = 2.6 if curve.name == own else 1.5
            axis.plot(coverage, np.array(curve.risk) * 100, color=colours[curve.name], linewidth=width)
            ends.append((curve.risk[0] * 100, curve.name, colours[curve.name]))
        for bound, style in ((setting.random, "--"), (setting.oracle, ":")):
            if bound is not None:
                axis.plot(coverage, np.array(bound.risk) * 100, color=MUTED, linestyle=style, linewidth=1.3)
                ends.append((bound.risk[0] * 100, bound.name, MUTED))
        top = 1.08 * max(100 * max(each.risk) for each in (*drawn, *_present(setting.random)))
        axis.set(xlim=(100, 5), ylim=(0, top), xlabel="coverage: share of answers accepted, %")
        axis.set_ylabel("risk: share wrong among them, %")
        axis.grid(axis="y")
        _end_labels(axis, ends, own=own, top=top)
        return _svg(figure, f"{setting.setting}: risk against coverage")


def one_threshold(pooled: Pooled) -> str:
    """Draw risk over coverage with the headline's point; narrow, for phones."""
    coverage = np.array(COVERAGES) * 100
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(5.6, 3.9), layout="constrained")
        axis = figure.subplots()
        axis.plot(coverage, np.array(pooled.oracle.risk) * 100, color=MUTED, linestyle=":", linewidth=1.5)
        axis.axhline(pooled.wrong * 100, color=MUTED, linestyle="--", linewidth=1.3)
        axis.plot(coverage, np.array(pooled.curve.risk) * 100, color=OWN, linewidth=2.6)
        top = 118 * max(pooled.wrong, *pooled.curve.risk, 0.01)
        axis.text(40, pooled.wrong * 100 + 0.02 * top, "without a score", color=MUTED)
        axis.text(60, 100 * pooled.curve.risk[55] + 0.04 * top, "this score", color=OWN, ha="right", fontweight="bold")
        axis.text(99, 0.02 * top, "best possible", color=MUTED, ha="right")
        if (point := pooled.headline) is not None and point.coverage.value is not None:
            x, y = 100 * point.coverage.value, 100 * point.risk
            axis.plot([x, x], [0, y], color=INK, linewidth=1, linestyle=":")
            axis.plot([x], [y], "o", color=OWN, markersize=8, markeredgecolor=GROUND, zorder=3)
            axis.annotate(
                f"{x:.0f} % at {y:.0f} % wrong", (x, y), (x + 2, max(y - 0.09 * top, 0.03 * top)), fontweight="bold"
            )
        axis.set(xlim=(0, 100), ylim=(0, top), xlabel="share of answers accepted, %")
        axis.set_ylabel("share wrong among them, %")
        axis.grid(axis="y")
        return _svg(figure, "Share wrong among accepted answers, by the share accepted")


def _present(curve: Curve | None) -> tuple[Curve, ...]:
    return () if curve is None else (curve,)


def _colours(names: Sequence[str], own: str) -> dict[str, str]:
    others = [name for name in names if name != own]
    return {own: OWN} | {name: OTHERS[min(place, len(OTHERS) - 1)] for place, name in enumerate(others)}


def _end_labels(axis: Axes, ends: Sequence[tuple[float, str, str]], *, own: str, top: float) -> None:
    """Label the lines at their right ends, without overlap."""
    ordered = sorted(ends)
    places = spread([value for value, _, _ in ordered], gap=0.052 * top, low=0.01 * top, high=0.99 * top)
    for (value, name, colour), place in zip(ordered, places, strict=True):
        axis.annotate(
            name,
            xy=(1, value),
            xytext=(1.035, place),
            xycoords=("axes fraction", "data"),
            textcoords=("axes fraction", "data"),
            color=colour,
            va="center",
            fontweight="bold" if name == own else "normal",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def spread(values: Sequence[float], *, gap: float, low: float, high: float) -> list[float]:
    """Return label positions near ascending values, at least ``gap`` apart, within ``low`` .. ``high`` if possible."""
    # Without the gaps this is isotonic regression: neighbours that would overlap are pooled, and a pool is placed where
    # its members are closest to their values.
    pools: list[tuple[float, int]] = []
    for place, value in enumerate(values):
        mean, size = value - place * gap, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (mean * size + before * count) / (size + count), size + count
        pools.append((mean, size))
    top = max(low, high - gap * (len(values) - 1))
    level = [min(max(mean, low), top) for mean, size in pools for _ in range(size)]
    return [each + place * gap for place, each in enumerate(level)]


def reliability_diagrams(setting: SettingResult, own: str, methods: Sequence[str]) -> str:
    """Draw observed over stated probability, one panel for each method; a dot's area is the number of answers."""
    drawn = sorted(
        (each for each in setting.reliability if each.method in methods), key=lambda each: each.method != own
    )
    columns = min(3, len(drawn))
    lines = -(-len(drawn) // columns)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(2.9 * columns, 3.1 * lines + 0.3), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
        for axis in axes.flat[len(drawn) :]:
            axis.set_axis_off()
        for place, (axis, each) in enumerate(zip(axes.flat, drawn, strict=False)):
            axis.xaxis.set_tick_params(labelbottom=place + columns >= len(drawn))
            colour = OWN if each.method == own else MUTED
            stated, observed, n = (np.array(column) for column in zip(*_points(each.bins), strict=True))
            axis.plot([0, 100], [0, 100], color=FAINT, linewidth=1.2, zorder=1)
            axis.vlines(stated, stated, observed, color=colour, alpha=0.35, linewidth=1.5)
            axis.scatter(stated, observed, s=10 + 70 * n / n.max(), color=colour, linewidth=0, zorder=3)
            axis.set_title(each.method, color=OWN if each.method == own else INK, fontsize=10)
            sizes = f"{n.min()} to {n.max()}" if n.min() < n.max() else f"{n.max()}"
            counts = f"{n.sum()} answers, {sizes} a dot"
            axis.text(0.98, 0.03, counts, transform=axis.transAxes, ha="right", fontsize=7.5, color=MUTED)
            axis.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
        figure.supxlabel("stated probability of being wrong, %", color=MUTED, fontsize=10.5)
        figure.supylabel("observed share wrong, %", color=MUTED, fontsize=10.5)
        return _svg(figure, f"{setting.setting}: reliability of {', '.join(each.method for each in drawn)}")


def _points(bins: Sequence[ReliabilityBin]) -> list[tuple[float, float, int]]:
    return [(100 * each.p_wrong, 100 * each.wrong, each.n) for each in bins]


def layer_map(importance: Importance) -> str:
    """Draw the importance of each ordered pair of layers, and of each layer in the margins."""
    values = np.array(importance.values)
    layers = len(values)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 6.4), layout="constrained")
        parts = figure.subplots(2, 2, width_ratios=(5, 1), height_ratios=(1, 5), sharex="col", sharey="row")
        above, corner, main, side = parts[0, 0], parts[0, 1], parts[1, 0], parts[1, 1]
        corner.set_axis_off()
        image = main.imshow(values, cmap=_BLUES, vmin=0, vmax=values.max() or 1, aspect="auto")
        main.set(xlabel="layer j", ylabel="layer i, of KL(i || j)")
        ticks = np.arange(0, layers, 5 if layers > 12 else 2)
        main.set_xticks(ticks)
        main.set_yticks(ticks)
        above.bar(range(layers), values.sum(axis=0), color=OWN, alpha=0.55, width=0.85)
        side.barh(range(layers), values.sum(axis=1), color=OWN, alpha=0.55, height=0.85)
        for axis in (above, side):
            axis.set_yticks([]) if axis is above else axis.set_xticks([])
            axis.tick_params(length=0)
            for spine in axis.spines.values():
                spine.set_visible(False)
        bar = figure.colorbar(image, ax=parts, shrink=0.6, aspect=22, pad=0.02)
        bar.set_label(importance.meaning)
        bar.outline.set_visible(False)
        return _svg(figure, f"importance of layer pairs: {importance.meaning}")


def group_gains(groups: Sequence[GroupGain], measures: Sequence[str] = ("AUROC", "Brier")) -> str:
    """Draw the gain of each group of features, one panel for each measure, one row for each protocol."""
    labels = list(dict.fromkeys(each.group for each in groups))
    settings = list(dict.fromkeys(each.setting for each in groups))
    colours = dict(zip(settings, (OWN, *OTHERS, *[MUTED] * len(settings)), strict=False))
    step = 0.62 / max(1, len(settings) - 1)
    with mpl.rc_context(_STYLE):
        height = 1.1 + len(labels) * (0.28 + 0.16 * len(settings))
        figure = Figure(figsize=(10, height), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(measures), sharey=True))
        for axis, measure in zip(axes, measures, strict=True):
            axis.axvline(0, color=INK, linewidth=1)
            for each in (each for each in groups if each.measure == measure):
                row = len(labels) - 1 - labels.index(each.group) + 0.31 - step * settings.index(each.setting)
                _gain(axis, row if len(settings) > 1 else row - 0.31, each.gain.estimate, colours[each.setting])
            axis.set_title(f"gain in {measure}", fontsize=10.5)
            axis.grid(axis="x")
            axis.margins(x=0.1)
            _bare_side(axis)
        _rows(axes[0], labels[::-1], own="")
        handles = [axes[0].plot([], [], "o-", color=colours[name], label=name)[0] for name in settings]
        if len(settings) > 1:
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(settings)), frameon=False)
        return _svg(figure, "what each group of features adds")


def _gain(axis: Axes, row: float, estimate: Estimate, colour: str) -> None:
    if estimate.value is None:
        return
    if estimate.low is not None and estimate.high is not None:
        axis.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2, alpha=0.5)
    axis.plot([estimate.value], [row], "o", color=colour, markersize=5)


def shifts(settings: Sequence[SettingResult], own: str, methods: Sequence[str], measures: Sequence[str]) -> str:
    """Draw shifts as rows, one panel for each measure, methods as coloured dots."""
    colours = _colours(methods, own)
    step = 0.6 / max(1, len(methods) - 1)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(11, 1.3 + 0.55 * len(settings)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(1, len(measures), sharey=True))
        for axis, measure in zip(axes, measures, strict=True):
            for row, setting in enumerate(reversed(settings)):
                for place, name in enumerate(methods):
                    score = setting.score(name, measure)
                    if score is not None:
                        _gain(axis, row + 0.3 - step * place, score.estimate, colours[name])
            axis.set_title(f"{measure} {measure_named(measure).arrow}", fontsize=10.5)
            axis.grid(axis="x")
            axis.margins(x=0.08)
            _bare_side(axis)
        _rows(axes[0], [setting.setting.removeprefix(f"{SHIFT}: ") for setting in reversed(settings)], own="")
        handles = [axes[0].plot([], [], "o-", color=colours[name], label=name)[0] for name in methods]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(methods), frameon=False)
        return _svg(figure, f"shifts: {', '.join(measures)}")


def cost(setting: SettingResult, methods: Sequence[MethodCard], own: str, measure: str = "AUROC") -> str:
    """Draw quality over model passes; the upper left is good and cheap."""
    found = [(card, setting.score(card.name, measure)) for card in methods]
    known = [(card, score.estimate) for card, score in found if score and score.estimate.value is not None]
    passes = sorted({card.passes for card, _ in known})
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(9.2, 4.6), layout="constrained")
        axis = figure.subplots()
        bounds = [bound for _, each in known for bound in (each.low, each.value, each.high) if bound is not None]
        height = (max(bounds) - min(bounds)) or 0.1
        low, high = min(bounds) - 0.08 * height, max(bounds) + 0.08 * height
        for place, each in enumerate(passes):
            same = sorted(
                ((card, e) for card, e in known if card.passes == each), key=lambda pair: pair[1].value or 0.0
            )
            at = spread([e.value or 0.0 for _, e in same], gap=0.062 * (high - low), low=low, high=high)
            for (card, estimate), where in zip(same, at, strict=True):
                _cost_point(axis, place, card, estimate, where, own=card.name == own)
        axis.set_xticks(range(len(passes)), [f"{each:g}" for each in passes])
        axis.set(xlim=(-0.3, len(passes) - 0.2), ylim=(low, high), xlabel="model passes, in units of one answer")
        axis.set_ylabel(f"{measure} {measure_named(measure).arrow}, {setting.setting}")
        axis.grid(axis="y")
        return _svg(figure, f"{measure} against cost")


def _cost_point(axis: Axes, place: int, card: MethodCard, estimate: Estimate, where: float, *, own: bool) -> None:
    colour = OWN if own else MUTED
    if estimate.low is not None and estimate.high is not None:
        axis.plot([place, place], [estimate.low, estimate.high], color=colour, linewidth=1.6, alpha=0.3)
    axis.plot([place], [estimate.value or 0.0], "o", color=colour, markersize=7 if own else 5.5)
    measured = "" if card.seconds is None else f"  {duration(card.seconds)}"
    axis.annotate(
        card.name + measured,
        xy=(place + 0.02, estimate.value or 0.0),
        xytext=(place + 0.09, where),
        color=OWN if own else INK,
        fontweight="bold" if own else "normal",
        fontsize=9.5,
        va="center",
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.6, "shrinkA": 1, "shrinkB": 2},
    )


def duration(seconds: float) -> str:
    """Return seconds or milliseconds, to three digits at most."""
    return f"{seconds:.1f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _svg(figure: Figure, title: str) -> str:
    """Return the figure as an ``svg`` element with a title, and ids of its own so that a page can hold many."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    prefix = f"figure-{zlib.crc32((title + text).encode()):08x}"
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{_attribute(title)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
