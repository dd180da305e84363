"""Draw the packages and their imports, from the code, as docs/explanation/architecture.svg.

An arrow that follows from others is left out: where a imports b, b imports c and a imports c, there is no a to c.

python docs/explanation/draw_architecture.py
"""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]
OUT = Path(__file__).with_name("architecture.svg")
#: Faces on top, what everything stands on at the bottom: the layers of pyproject.toml's import contract.
ROWS = (
    ("faces", ("cli", "langchain", "serve", "console")),
    ("laboratory", ("recalibration",)),
    ("laboratory", ("evaluation", "certification", "calibration", "data")),
    ("production", ("replay",)),
    ("production", ("runtime", "access")),
    ("production", ("monitoring",)),
    ("production", ("review",)),
    ("production", ("policy", "scoring")),
    ("production", ("engines",)),
    ("ground", ("files", "records", "errors")),
)
_EVERYWHERE = ("records", "errors")
WIDTH, ROW, BOX, GAP = 960, 124, 84, 18
_COLOURS = {"faces": "#dfe7fd", "laboratory": "#fdf0d5", "production": "#d8f3dc", "ground": "#eeeeee"}


def sentence_of(package: str) -> str:
    """Return the first sentence of a package's or module's docstring."""
    path = ROOT / "guard" / package
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    text = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("`", "").split(". ")[0].rstrip(".")


def imports() -> set[tuple[str, str]]:
    """Return which package imports which directly, without records and errors, which all import."""
    graph = grimp.build_graph("guard", exclude_type_checking_imports=True)
    packages = [name for _, names in ROWS for name in names]
    found = set()
    for one in packages:
        for other in packages:
            ends = {"importer": f"guard.{one}", "imported": f"guard.{other}"}
            if one != other and other not in _EVERYWHERE and graph.direct_import_exists(**ends, as_packages=True):
                found.add((one, other))
    return found


def not_implied(arrows: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return the arrows that no longer way makes superfluous (the transitive reduction)."""

    def reached_from(name: str) -> set[str]:
        after = {end for start, end in arrows if start == name}
        return after.union(*map(reached_from, after))

    return {
        (start, end)
        for start, end in arrows
        if not any(end in reached_from(other) for begin, other in arrows if begin == start and other != end)
    }


def places() -> dict[str, tuple[float, float, float]]:
    """Return the left edge, top and width of each box."""
    found = {}
    for row, (_, names) in enumerate(ROWS):
        width = (WIDTH - GAP * (len(names) + 1)) / len(names)
        for column, name in enumerate(names):
            found[name] = (GAP + column * (width + GAP), GAP + row * ROW, width)
    return found


def _box(name: str, kind: str, place: tuple[float, float, float]) -> str:
    x, y, width = place
    words, lines = sentence_of(name).split(), [""]
    for word in words:
        if len(lines[-1]) + len(word) > width / 6.6:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    text = "".join(
        f'<text x="{x + 10:.0f}" y="{y + 37 + 14 * n:.0f}" class="says">{escape(line)}</text>'
        for n, line in enumerate(lines[:4])
    )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{BOX}" rx="6" fill="{_COLOURS[kind]}"/>'
        f'<text x="{x + 10:.0f}" y="{y + 20:.0f}" class="name">{name}</text>{text}'
    )


def _arrow(start: tuple[float, float, float], end: tuple[float, float, float]) -> str:
    (x1, y1, w1), (x2, y2, w2) = start, end
    if y1 == y2:  # neighbours in a row
        left_to_right = x1 < x2
        a, b = (x1 + w1, x2) if left_to_right else (x1, x2 + w2)
        return f'<path d="M{a:.0f},{y1 + BOX / 2:.0f} L{b:.0f},{y2 + BOX / 2:.0f}"/>'
    middle = (x1 + w1 / 2 + x2 + w2 / 2) / 2
    a, b = _within(middle, x1, w1), _within(middle, x2, w2)
    return f'<path d="M{a:.0f},{y1 + BOX:.0f} L{b:.0f},{y2:.0f}"/>'


def _within(x: float, left: float, width: float) -> float:
    return min(max(x, left + 14), left + width - 14)


def drawing() -> str:
    """Return the picture as SVG text."""
    at = places()
    boxes = [_box(name, kind, at[name]) for kind, names in ROWS for name in names]
    arrows = [_arrow(at[one], at[other]) for one, other in sorted(not_implied(imports()))]
    height = GAP + ROW * len(ROWS) - (ROW - BOX) + GAP
    style = (
        "text{font-family:system-ui,sans-serif;fill:#1b1b1b}.name{font-size:15px;font-weight:600}.says{font-size:12px}"
        "path{stroke:#55606e;stroke-opacity:.45;fill:none;marker-end:url(#tip)}"
    )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" style="fill:#55606e;stroke:none"/></marker></defs>'
    )
    parts = "\n".join((*arrows, *boxes))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Packages of guard and their imports">\n<style>{style}</style>{tip}\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n{parts}\n</svg>\n'
    )


if __name__ == "__main__":
    OUT.write_text(drawing(), encoding="utf-8")
