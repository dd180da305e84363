"""Charts as inline SVG: relative shapes, text of fixed size, colours as classes, no styles and no scripts.

Each chart has a title and a description; the template adds a table of the same figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10

from markupsafe import Markup, escape


@dataclass(frozen=True, slots=True)
class Said:
    """The texts of a chart.

    Attributes:
        id: unique on the page.
        title: what the chart shows.
        finding: the main result.
    """

    id: str
    title: str
    finding: str


def bar(value: float, fill: str = "fi") -> Markup:
    """Return a probability as a bar without text; the page shows the number next to it.

    Args:
        value: probability from 0 to 1.
        fill: class of the colour.
    """
    shape = rect("tr", 0, 1, 0, 1, "2") + rect(fill, 0, max(min(value, 1.0), 0.012), 0, 1, "2")
    return _markup(f'<svg class="bar" aria-hidden="true">{shape}</svg>')


def shares(parts: Sequence[tuple[str, float]], label: str) -> Markup:
    """Return a stacked bar.

    Args:
        parts: pairs of colour class and share from 0 to 1, in order.
        label: description in words.
    """
    shapes, at = "", 0.0
    for fill, width in parts:
        if width > 0:
            shapes += rect(fill, at, max(width - 0.004, 0.002), 0, 1)
        at += width
    return _markup(f'<svg class="bar bar-l" role="img" aria-label="{escape(label)}">{shapes}</svg>')


def stacked(days: Sequence[str], series: Sequence[tuple[str, str, Sequence[int]]], said: Said) -> Markup:
    """Return one stacked bar per day.

    Args:
        days: labels.
        series: name, colour class, and one number for each day.
        said: texts of the chart.
    """
    top = max([1, *(sum(values[day] for _, _, values in series) for day in range(len(days)))]) * 1.06
    body, width = y_axis(top), 1 / len(days)
    for day in range(len(days)):
        base = 0.0
        for _, fill, values in series:
            height = values[day] / top
            if height > 0:
                body += rect(fill, day * width + 0.12 * width, 0.76 * width, 1 - base - height, height)
            base += height
    every = max(1, len(days) // 5)
    body += x_axis([((day + 0.5) * width, label) for day, label in enumerate(days) if day % every == 0])
    return svg(body, said, "plot-h plot-pad")


def histogram(bins: Sequence[int], said: Said) -> Markup:
    """Return the histogram of p(wrong), in bins of equal width from 0 to 1."""
    top = max([1, *bins]) * 1.12
    body, width = y_axis(top), 1 / len(bins)
    for place, count in enumerate(bins):
        body += rect("hist-doubt", place * width + 0.004, width - 0.008, 1 - count / top, count / top)
    body += x_axis([(at, f"{at:g}") for at in (0, 0.25, 0.5, 0.75, 1)])
    return svg(body, said, "plot-h plot-pad")


#: Where a scale of shares may end, so that its quarters are whole percents.
_TOPS = (0.04, 0.08, 0.2, 0.4, 0.6, 0.8, 1.0)


def lines(labels: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]], said: Said) -> Markup:
    """Return shares over days, from 0 up, each as a line with gaps where nothing is known.

    Args:
        labels: of the days.
        series: class of the colour, and one share for each day, or None.
        said: its words.
    """
    top = _top([value for _, values in series for value in values if value is not None])
    body, width = _share_axis(top), 1 / len(labels)
    paths = "".join(
        _line(fill, [(i + 0.5) * width for i in range(len(values))], values, top) for fill, values in series
    )
    body += _stretched(paths)
    for fill, values in series:
        for place, value in enumerate(values):
            if value is not None:
                centre = f'cx="{_percent((place + 0.5) * width)}" cy="{_percent(1 - value / top)}"'
                body += f'<circle class="dot {fill}" {centre} r="2.5"/>'
    every = max(1, len(labels) // 5)
    return svg(
        body + x_axis([((at + 0.5) * width, labels[at]) for at in range(0, len(labels), every)]),
        said,
        "plot-m plot-pad",
    )


@dataclass(frozen=True, slots=True)
class PlottedPoint:
    """A point with its intervals.

    Attributes:
        name: the text beside it.
        fill: class of its colour.
        x, y: each the estimate, low and high.
    """

    name: str
    fill: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]


def trade_off(marks: Sequence[PlottedPoint], said: Said) -> Markup:
    """Return points of two shares, x from 0 to 1 and y from 0 up, each with the intervals of both."""
    top = _top([mark.y[2] for mark in marks])
    body = _share_axis(top)
    for number, mark in enumerate(marks):
        body += _point(mark, top, above=not number)
    return svg(body + x_axis([(at, f"{100 * at:.0f} %") for at in (0, 0.25, 0.5, 0.75, 1)]), said, "plot-h plot-pad")


def _point(mark: PlottedPoint, top: float, *, above: bool) -> str:
    (x, left, right), (y, low, high) = mark.x, (1 - value / top for value in mark.y)
    across = f'x1="{_percent(left)}" x2="{_percent(right)}" y1="{_percent(y)}" y2="{_percent(y)}"'
    upright = f'x1="{_percent(x)}" x2="{_percent(x)}" y1="{_percent(high)}" y2="{_percent(low)}"'
    lines_ = "".join(f'<line class="ln ln-2" {place}/>' for place in (across, upright))
    centre = f'cx="{_percent(x)}" cy="{_percent(y)}"'
    anchor, dx = ("end", -10) if x > 0.5 else ("start", 10)
    place = f'x="{_percent(x)}" y="{_percent(y)}" dx="{dx}" dy="{-9 if above else 18}" text-anchor="{anchor}"'
    return f'{lines_}<circle class="{mark.fill}" {centre} r="6"/><text class="lab" {place}>{escape(mark.name)}</text>'


#: The scale of evidence begins here; less speaks as clearly for a guarantee. Marks on it, and shapes at most.
_LEAST, _EVIDENCE, _SHAPES = 0.01, (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0), 300


def evidence(path: Sequence[float], wrong: Sequence[int], limit: float, said: Said) -> Markup:
    """Return running evidence against a guarantee on a logarithmic scale.

    Args:
        path: the evidence after each label, at least one.
        wrong: places of wrong answers in it; many are not drawn one by one.
        limit: at which the guarantee counts as broken.
        said: texts of the chart.
    """
    top = 1.6 * max(limit, *path)
    heights = [_height_of(value, top) for value in path]
    body = "".join(_level(mark, f"{mark:g}", top, "grid") for mark in _EVIDENCE if mark <= top)
    at = _percent(1 - _height_of(limit, top))
    body += f'<line class="limit" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
    body += f'<text class="limit-t" x="0" y="{at}" dx="4" dy="-5">limit {limit:g}</text>'
    step = max(1, -(-len(path) // _SHAPES))
    places = sorted({*range(0, len(path), step), len(path) - 1})
    body += _stretched(_line("ln-wrong" if path[-1] >= limit else "", *_places(places, heights, len(path)), 1.0))
    for place in wrong if len(wrong) <= _SHAPES else ():
        centre = f'cx="{_percent(_across(place, len(path)))}" cy="{_percent(1 - heights[place])}"'
        body += f'<circle class="pt-wrong" {centre} r="3.5"/>'
    return svg(body + x_axis([(0, "1"), (1, f"{len(path):,} audited")]), said, "plot-m plot-pad")


def _height_of(value: float, top: float) -> float:
    """Return the height of evidence on its scale, from 0 to 1."""
    return log10(max(value, _LEAST) / _LEAST) / log10(top / _LEAST)


def _level(value: float, label: str, top: float, fill: str) -> str:
    at = _percent(1 - _height_of(value, top))
    line = f'<line class="{fill}" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
    return f'{line}<text x="0" y="{at}" dx="-8" dy="4" text-anchor="end">{label}</text>'


def _across(place: int, number: int) -> float:
    return place / max(number - 1, 1)


def _places(places: Sequence[int], heights: Sequence[float], number: int) -> tuple[list[float], list[float]]:
    return [_across(place, number) for place in places], [heights[place] for place in places]


def _stretched(shapes: str) -> str:
    """Return shapes of a box of a thousand by a thousand that takes the size of the chart."""
    return f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" width="100%" height="100%">{shapes}</svg>'


def _top(values: Sequence[float]) -> float:
    """Return where a scale of shares ends that has room for these values."""
    return next(each for each in _TOPS if each >= max([0.0, *values]))


def _share_axis(top: float) -> str:
    """Return an axis of shares from 0, in quarters of its top."""
    marks = ""
    for part in range(5):
        at, share = _percent(1 - part / 4), top * part / 4
        marks += f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
        marks += f'<text x="0" y="{at}" dx="-8" dy="4" text-anchor="end">{100 * share:.0f} %</text>'
    return marks


def _line(fill: str, xs: Sequence[float], values: Sequence[float | None], top: float) -> str:
    path, pen = "", "M"
    for x, value in zip(xs, values, strict=True):
        if value is None:
            pen = "M"
            continue
        path += f"{pen}{1000 * x:.1f} {1000 * (1 - value / top):.1f}"
        pen = "L"
    return f'<path class="ln {fill}" d="{path}"/>' if path else ""


# -- parts -------------------------------------------------------------------------------------


def svg(body: str, said: Said, kind: str) -> Markup:
    """Return a chart around its shapes; `kind` is its classes."""
    title, finding = f"{said.id}-t", f"{said.id}-d"
    return _markup(
        f'<svg class="plot {kind}" role="img" aria-labelledby="{title} {finding}"><title id="{title}">'
        f'{escape(said.title)}</title><desc id="{finding}">{escape(said.finding)}</desc>{body}</svg>'
    )


def rect(fill: str, x: float, width: float, y: float, height: float, radius: str = "1") -> str:
    """Return a rectangle; places and sizes are shares of the chart, from 0 to 1."""
    place = f'x="{_percent(x)}" width="{_percent(width)}" y="{_percent(y)}" height="{_percent(height)}"'
    return f'<rect class="{fill}" {place} rx="{radius}"/>'


def y_axis(top: float) -> str:
    """Return an axis of whole numbers from 0, with at most five marks."""
    step = max(1.0, 10 ** int(log10(top)) / 5)
    step = next(size for size in (step * scale for scale in (1, 2, 5, 10)) if top / size <= 5)
    marks = ""
    for tick in range(int(top / step) + 1):
        at = _percent(1 - tick * step / top)
        marks += f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
        marks += f'<text x="0" y="{at}" dx="-8" dy="4" text-anchor="end">{tick * step:,.0f}</text>'
    return marks


def x_axis(ticks: Sequence[tuple[float, str]]) -> str:
    """Return an axis with labels, each at its place from 0 to 1."""
    marks = '<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>'
    for at, label in ticks:
        anchor = "start" if at < 0.02 else "end" if at > 0.98 else "middle"
        marks += f'<text x="{_percent(at)}" y="100%" dy="18" text-anchor="{anchor}">{escape(label)}</text>'
    return marks


def _percent(value: float) -> str:
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") + "%"


def _markup(text: str) -> Markup:
    return Markup(text)
