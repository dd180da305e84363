"""Maps of layers as inline SVG, in steps of one colour; see `guard.console.charts` for what all charts keep to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from guard.console.charts import Said, rect, svg, x_axis
from guard.records import Floats

#: Steps of a map's colours, and of a difference's.
STEPS, STEPS_OF_DIFFERENCE = 9, 7

#: Differences of logarithms beyond this have the last colour.
_FAR = 3.0

#: Bars end here; beyond `UNLIKE` standard deviations they take colour.
_TALLEST, UNLIKE = 4.0, 2.0


def layer_map(logarithms: Floats, among: Sequence[Floats], said: Said) -> Markup:
    """Return a map; its colours have the same meaning as in the others.

    Args:
        logarithms: shape (L, L).
        among: the maps that it stands beside, itself included.
        said: its words.
    """
    off = ~np.eye(len(logarithms), dtype=bool)
    lowest, highest = np.quantile(np.concatenate([each[off] for each in among]), (0.02, 0.98))
    return _heat(_in_steps(logarithms, float(lowest), float(highest), STEPS), "h", said)


def difference_map(one: Floats, other: Floats, said: Said) -> Markup:
    """Return one map less another, both logarithms."""
    return _heat(_in_steps(one - other, -_FAR, _FAR, STEPS_OF_DIFFERENCE), "d", said)


def ramp(steps: int, prefix: str) -> Markup:
    """Return the colours of a map from one end to the other."""
    shapes = "".join(f'<rect class="{prefix}{step}" x="{step}" width="1.02" height="1"/>' for step in range(steps))
    return Markup(
        f'<svg class="ramp" viewBox="0 0 {steps} 1" preserveAspectRatio="none" aria-hidden="true">{shapes}</svg>'
    )


def layer_bars(distances: Floats, said: Said) -> Markup:
    """Return one bar a layer around zero, in standard deviations."""
    body, count = "", len(distances)
    for mark in (-2, 0, 2):
        at = f"{100 * (1 - _height(mark)):.2f}%"
        label = f"{mark:+d}".replace("-", "\u2212") if mark else "0"
        body += f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>'
        body += f'<text x="0" y="{at}" dx="-8" dy="4" text-anchor="end">{label}</text>'
    for layer, value in enumerate(map(float, distances)):
        fill = "zbar" if abs(value) < UNLIKE else "zbar-more" if value > 0 else "zbar-less"
        low, high = sorted((_height(0), _height(value)))
        body += rect(fill, (layer + 0.14) / count, 0.72 / count, 1 - high, max(high - low, 0.004))
    every = max(1, count // 3)
    ticks = [(0.5 / count, "layer 1"), *(((at - 0.5) / count, str(at)) for at in range(every, count, every) if at > 1)]
    return svg(body + x_axis([*ticks[:3], (1, str(count))]), said, "plot-m plot-pad")


def _height(value: float) -> float:
    return (max(-_TALLEST, min(_TALLEST, value)) + _TALLEST) / (2 * _TALLEST)


def _in_steps(values: Floats, lowest: float, highest: float, steps: int) -> NDArray[np.int_]:
    scaled = (values - lowest) / max(highest - lowest, 1e-6) * steps
    found: NDArray[np.int_] = np.clip(scaled, 0, steps - 1).astype(np.int_)
    return found


def _heat(levels: NDArray[np.int_], prefix: str, said: Said) -> Markup:
    """Return squares; equal neighbours in a row are one shape, so that a map of 30 layers takes about 8 kB."""
    shapes: dict[int, list[str]] = {}
    for row, line in enumerate(levels.tolist()):
        for begin, end in _runs(line, row):
            shapes.setdefault(line[begin], []).append(f"M{begin} {row}h{end - begin}v1h-{end - begin}z")
    body = "".join(f'<path class="{prefix}{level}" d="{"".join(paths)}"/>' for level, paths in sorted(shapes.items()))
    title, finding, size = f"{said.id}-t", f"{said.id}-d", len(levels)
    return Markup(
        f'<svg class="heat" role="img" viewBox="0 0 {size} {size}" aria-labelledby="{title} {finding}">'
        f'<title id="{title}">{escape(said.title)}</title><desc id="{finding}">{escape(said.finding)}</desc>{body}'
        "</svg>"
    )


def _runs(line: Sequence[int], diagonal: int) -> list[tuple[int, int]]:
    """Return where equal neighbours begin and end; the diagonal, where a layer meets itself, is left out."""
    runs: list[tuple[int, int]] = []
    for at, level in enumerate(line):
        if at == diagonal:
            continue
        if runs and runs[-1][1] == at and line[runs[-1][0]] == level:
            runs[-1] = (runs[-1][0], at + 1)
        else:
            runs.append((at, at + 1))
    return runs
