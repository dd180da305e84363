"""The demo as a picture (SVG): large letters, the reader's own font, light and dark, and a text for screen readers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from guard.cli.demo_questions import Shown, worth
from guard.cli.terminal import one_line
from guard.records import Attempt
from guard.runtime.call_state import OWN_ENGINE

#: Width in units of the picture; at half this size it fits a phone's screen.
_WIDTH, _TOP, _ROW, _FOOT = 680, 92, 82, 104
#: Longest question and answer that fit, in characters.
_QUESTION, _ANSWER = 56, 36

_STYLE = """svg{color-scheme:light dark}
.bg{fill:#fff;stroke:#d9d8d2}.t{fill:#1a1b1f}.t2{fill:#64666f}.ln{stroke:#e3e2dd}.tr{fill:#ecebe6}.fi{fill:#b86200}
.right{stroke:#0b7156;fill:none}.right-t{fill:#0b7156}.wrong{stroke:#b4231b;fill:none}.wrong-t{fill:#b4231b}.sum{fill:#f3f3f0}
.accept{fill:#e3f4ee}.accept-t{fill:#0b6049}.escalate{fill:#fdf2e1}.escalate-t{fill:#8a4900}
.fallback{fill:#f1ecfa}.fallback-t{fill:#5b3c9c}.abstain{fill:#ececee}.abstain-t{fill:#4d4f58}
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif;font-size:20px}
.b{font-weight:650}.n{font-variant-numeric:tabular-nums}.s{font-size:18px}.q{font-size:19px}
@media (prefers-color-scheme:dark){.bg{fill:#16181d;stroke:#333740}.t{fill:#ececf0}.t2{fill:#a3a6b2}.ln{stroke:#2c2f37}
.tr{fill:#2a2d35}.fi{fill:#f0a94a}.right{stroke:#5fcfab}.right-t{fill:#5fcfab}.wrong{stroke:#ff968c}.wrong-t{fill:#ff968c}
.sum{fill:#0f1014}.accept{fill:#12302a}.accept-t{fill:#7fe0c0}.escalate{fill:#35270f}.escalate-t{fill:#f5be75}
.fallback{fill:#2a2340}.fallback-t{fill:#c9b4f5}.abstain{fill:#2b2d34}.abstain-t{fill:#c2c4cd}}"""

#: The marks in front of an answer.
_MARKS = {"right": "m2 -6l5 5 9 -10", "wrong": "m3 -12l11 11m0 -11l-11 11"}


def picture(done: Sequence[Shown], title: str) -> str:
    """Return the SVG of a demo.

    Args:
        done: the questions with their outcomes.
        title: the model and the policy.
    """
    height = _TOP + _ROW * len(done) + _FOOT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" aria-labelledby="t d">',
        f'<title id="t">{len(done)} questions to a small model, guarded</title>',
        f'<desc id="d">{_safe(_description(done))}</desc>',
        f"<style>{_STYLE}</style>",
        f'<rect class="bg" x=".5" y=".5" width="{_WIDTH - 1}" height="{height - 1}" rx="14"/>',
        _text(24, 38, "t b", "A small model answers, guard decides"),
        _text(24, 66, "t2 s", f"{title}; p(wrong) and action"),
        *(_row(each, _TOP + _ROW * number) for number, each in enumerate(done)),
        _foot(done, _TOP + _ROW * len(done)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _row(each: Shown, top: int) -> str:
    attempt = _decided_on(each)
    verdict = "right" if each.right(attempt) else "wrong"
    action, score = each.outcome.action.value, attempt.score.p_wrong if attempt.score else None
    answer = _end(attempt.answer or "(nothing)", _ANSWER)
    return "\n".join(
        [
            f'<line class="ln" x1="24" x2="656" y1="{top}" y2="{top}"/>',
            _text(24, top + 33, "t2 q", _cut(each.question.question, _QUESTION)),
            f'<rect class="{action}" x="556" y="{top + 10}" width="100" height="32" rx="16"/>',
            f'<text class="{action}-t s b" x="606" y="{top + 32}" text-anchor="middle">{action}</text>',
            f'<path class="{verdict}" stroke-width="2.6" stroke-linecap="round" stroke-linejoin="round" '
            f'd="M24 {top + 66}{_MARKS[verdict]}"/>',
            f'<text class="t q" x="50" y="{top + 67}"><tspan>{_safe(answer)}</tspan>'
            f'<tspan class="{verdict}-t s" dx="10">{verdict}</tspan></text>',
            _text(486, top + 67, "t b n", "-" if score is None else f"{score:.2f}"),
            f'<rect class="tr" x="546" y="{top + 55}" width="110" height="10" rx="3"/>',
            f'<rect class="fi" x="546" y="{top + 55}" width="{110 * (score or 0):.1f}" height="10" rx="3"/>',
        ]
    )


def _foot(done: Sequence[Shown], top: int) -> str:
    value = worth(done)
    edge = f"M1 {top}h{_WIDTH - 2}v{_FOOT - 14}a13 13 0 0 1 -13 13h-{_WIDTH - 28}a13 13 0 0 1 -13 -13z"
    lines = [("Without guard:", value.without()), ("With guard:", value.with_guard())]
    texts = [
        f'<text class="t" x="24" y="{top + 42 + 34 * number}"><tspan class="b">{label}</tspan> {rest}.</text>'
        for number, (label, rest) in enumerate(lines)
    ]
    return "\n".join([f'<path class="sum" d="{edge}"/>', *texts])


def _description(done: Sequence[Shown]) -> str:
    """Describe the picture in text, for screen readers."""
    value, lines = worth(done), []
    for each in done:
        attempt = _decided_on(each)
        score = f"{attempt.score.p_wrong:.2f}" if attempt.score else "no score"
        verdict = "right" if each.right(attempt) else "wrong"
        answer = _cut(attempt.answer or "nothing", 60)
        lines.append(f"{each.question.question} {answer}, {verdict}, {score}, {each.outcome.action}.")
    return " ".join([*lines, f"Without guard {value.without()}. With guard {value.with_guard()}."])


def _decided_on(each: Shown) -> Attempt:
    """Return the model's own last answer."""
    return [attempt for attempt in each.outcome.attempts if attempt.source == OWN_ENGINE][-1]


def _text(x: int, y: int, style: str, text: str) -> str:
    return f'<text class="{style}" x="{x}" y="{y}">{_safe(text)}</text>'


def _cut(text: str, letters: int) -> str:
    line = one_line(text)
    return line if len(line) <= letters else f"{line[: letters - 1].rstrip()}…"


def _end(text: str, letters: int) -> str:
    """Return the end of a text's first clause, where a sentence says what was asked for."""
    line = one_line(text)
    if len(line) > letters:
        line = line.partition(",")[0]
    return line if len(line) <= letters else f"…{line[1 - letters :].lstrip()}"


def _safe(text: str) -> str:
    return escape(one_line(text))
