"""A comparison as a picture (SVG): what becomes of the calls, and how many accepted answers are wrong."""

from __future__ import annotations

from html import escape

from guard.policy.bounds import Interval
from guard.replay.comparison import PolicyComparison
from guard.replay.deciding import CallEnding
from guard.replay.figures import PolicyFigures

_WIDTH, _LEFT, _RIGHT, _BAR = 680, 24, 656, 34
_SPAN = _RIGHT - _LEFT

#: What becomes of calls, in words.
WORDS: dict[CallEnding, str] = {
    "accept": "accepted",
    "text": "fixed text",
    "escalate": "to people",
    "abstain": "abstained",
    "unknown": "would ask again",
}

_STYLE = """svg{color-scheme:light dark}
.bg{fill:#fff;stroke:#d9d8d2}.t{fill:#1a1b1f}.t2{fill:#64666f}.ln{stroke:#d9d8d2}.mark{stroke:#1a1b1f}
.accept{fill:#0b7156}.escalate{fill:#b86200}.text{fill:#5b3c9c}.abstain{fill:#8a8c96}.unknown{fill:#d9d8d2}
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif;font-size:17px}
.b{font-weight:650}.s{font-size:15px}
@media (prefers-color-scheme:dark){.bg{fill:#16181d;stroke:#333740}.t{fill:#ececf0}.t2{fill:#a3a6b2}.ln{stroke:#333740}
.mark{stroke:#ececf0}.accept{fill:#5fcfab}.escalate{fill:#f0a94a}.text{fill:#c9b4f5}.abstain{fill:#7d808c}
.unknown{fill:#333740}}"""


def picture(found: PolicyComparison) -> str:
    """Return the SVG of a comparison; its description repeats every figure."""
    rows = (("Now", found.present), ("Proposed", found.proposed))
    height = 484
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" '
            f'height="{height}" role="img" aria-labelledby="t d">',
            f'<title id="t">{escape(_title(found))}</title>',
            f'<desc id="d">{escape(" ".join(_sentence(name, each) for name, each in rows))}</desc>',
            f"<style>{_STYLE}</style>",
            f'<rect class="bg" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="14"/>',
            _text(_LEFT, 38, "t b", _title(found)),
            *(_endings(name, each, 74 + 92 * number) for number, (name, each) in enumerate(rows)),
            _legend(262),
            _text(_LEFT, 316, "t b", "Wrong among the accepted"),
            *_errors(rows, 340),
            "</svg>\n",
        ]
    )


def _title(found: PolicyComparison) -> str:
    where = "" if found.route is None else f", route {found.route}"
    return f"{found.present.calls:,} calls of the last {found.days:.3g} days{where}"


def _endings(name: str, figures: PolicyFigures, top: int) -> str:
    parts = [_text(_LEFT, top + 18, "t", f"{name}: {figures.name[:40]}"), _right(top + 18, _work(figures))]
    at = float(_LEFT)
    for ending, count in figures.endings.items():
        width = _SPAN * count / figures.calls
        if count:
            parts.append(f'<rect class="{ending}" x="{at:.1f}" y="{top + 28}" width="{width:.1f}" height="{_BAR}"/>')
        at += width
    _, low, high = figures.coverage
    ends = (_LEFT + _SPAN * low, _LEFT + _SPAN * high)
    parts.append(_whisker(*ends, top + 28 + _BAR + 8))
    return "\n".join(parts)


def _work(figures: PolicyFigures) -> str:
    minutes = "" if figures.minutes_a_day is None else f", {figures.minutes_a_day:,.0f} min"
    return f"{figures.coverage[0]:.1%} accepted; {figures.reviews_a_day:,.1f} reviews a day{minutes}"


def _legend(y: int) -> str:
    parts, x = [], _LEFT
    for ending, word in WORDS.items():
        parts.append(f'<rect class="{ending}" x="{x}" y="{y - 12}" width="14" height="14" rx="3"/>')
        parts.append(_text(x + 20, y, "t2 s", word))
        x += 38 + 8 * len(word)
    return "\n".join(parts)


def _errors(rows: tuple[tuple[str, PolicyFigures], ...], top: int) -> list[str]:
    known = [(name, _best(each)) for name, each in rows]
    largest = max([1.0, *(interval[2] for _, interval in known if interval is not None)])
    parts = []
    for number, (name, interval) in enumerate(known):
        y = top + 56 * number
        if interval is None:
            parts.append(_text(_LEFT, y + 18, "t", f"{name}: not known"))
            continue
        middle, low, high = (_LEFT + _SPAN * value / largest for value in interval)
        words = f"{name}: {interval[0]:,.1f} ({interval[1]:,.1f} to {interval[2]:,.1f})"
        parts.append(_text(_LEFT, y + 18, "t", words))
        parts.append(f'<line class="ln" x1="{_LEFT}" x2="{_RIGHT}" y1="{y + 34}" y2="{y + 34}"/>')
        parts.append(_whisker(low, high, y + 34))
        parts.append(f'<circle class="t" cx="{middle:.1f}" cy="{y + 34}" r="5"/>')
    return parts


def _best(figures: PolicyFigures) -> Interval | None:
    return figures.errors.by_verdicts or figures.errors.by_scores


def _whisker(low: float, high: float, y: int) -> str:
    ends = "".join(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{y + 4}"/>' for x in (low, high))
    return f'<line class="mark" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>{ends}'


def _sentence(name: str, figures: PolicyFigures) -> str:
    endings = ", ".join(f"{count} {WORDS[ending]}" for ending, count in figures.endings.items() if count)
    best = _best(figures)
    wrong = "not known" if best is None else f"{best[0]:.1f}, from {best[1]:.1f} to {best[2]:.1f}"
    return f"{name}, {figures.name}: {endings}; {_work(figures)}; wrong among the accepted: {wrong}."


def _text(x: int, y: int, style: str, text: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{escape(text)}</text>'


def _right(y: int, text: str) -> str:
    return f'<text class="t2 s" x="{_RIGHT}" y="{y}" text-anchor="end">{escape(text)}</text>'
