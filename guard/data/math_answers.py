"""Final answers in LaTeX, as in competition mathematics: found in a text, and compared by their notation.

Written here as the fast first test: math-verify takes about a hundred times as long for a pair. Nothing is computed:
two answers are equivalent when their normalised notation is the same, or when both are plain numbers of the same value.
`guard.data.computed_answers` computes the rest, if the extra ``math`` is installed.
Numbers are read here and not by `guard.data.stated_number`, which knows no ``\\frac`` and compares as floats.
"""

from __future__ import annotations

import re
from fractions import Fraction

from guard.data.doubts import doubted

#: Words that join the parts of a list of solutions.
_LISTED = ("or", "oder", "ou")
#: Longer final answers are compared without normalisation.
MAX_ANSWER = 400

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_MARK = re.compile(r"\banswer\s*(?:is\b|:|=)\s*:?", re.IGNORECASE)
_MATH = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE_END = re.compile(r"\n|\.(?=\s|$)")
_WORD = re.compile(r"(?<![\\A-Za-z])(?!(?:and|or)\b)[A-Za-z]{2,}")
_PLAIN_NUMBER = re.compile(r"-?(?<![\w.])\d[\d,]*(?:\.\d+)?(?:/\d+)?(?![\w^\\])")


def boxed(text: str) -> str | None:
    """Return the content of the last ``\\boxed{...}``; None without one, or where its end is missing."""
    found = list(_BOX.finditer(text))
    if not found:
        return None
    start = found[-1].end()
    if not text.startswith("{", start):  # \boxed 5
        bare = re.match(r"[^\s$]+", text[start:])
        return bare[0] if bare else None
    depth = 0
    for at in range(start, len(text)):
        if text[at] in "{}" and text[at - 1] != "\\":
            depth += 1 if text[at] == "{" else -1
            if depth == 0:
                return text[start + 1 : at]
    return None


def final_answer(text: str) -> str | None:
    """Return the answer that a text ends with, or None.

    The last box counts; else what follows the last "answer is" or "answer:" in its sentence; else
    the last formula of the last line, or that line. Of words around a single number the number is
    the answer. A box that is cut off is no answer, nor is what is denied.
    """
    boxes = list(_BOX.finditer(text))
    if boxes:
        return None if _is_denied(text, boxes) else boxed(text)
    marks = list(_MARK.finditer(text))
    if marks:
        said = text[marks[-1].end() :].lstrip(" *\n")
        formula = _MATH.match(said)
        return _inside(formula) if formula else _stated(_SENTENCE_END.split(said, maxsplit=1)[0])
    lines = text.strip().splitlines()
    if not lines:
        return None
    formulas = list(_MATH.finditer(lines[-1]))
    if not formulas:
        return _stated(lines[-1])
    return None if doubted(_MATH.sub(" ", lines[-1]), allowed=_LISTED) else _inside(formulas[-1])


def _is_denied(text: str, boxes: list[re.Match[str]]) -> bool:
    """Return whether the words around the last box deny it, or offer it beside another one."""
    box = boxes[-1]
    before = re.split(r"[.,;:\n]", text[: box.start()])[-1]
    after = re.split(r"[.,;:\n]", text[box.end() :].partition("}")[2])[0]
    return doubted(re.sub(r"\\[A-Za-z]+|[{}$]", " ", f"{before} {after}"))


def equivalent(one: str, other: str) -> bool:
    """Return whether two final answers are equivalent in notation."""
    if one.strip() == other.strip():
        return bool(one.strip())
    if max(len(one), len(other)) > MAX_ANSWER:
        return False
    return _same(normalise_latex(one), normalise_latex(other))


def _stated(sentence: str) -> str:
    """Return the only number of a sentence; the whole sentence without one, or if a word puts it in doubt."""
    numbers = _PLAIN_NUMBER.findall(sentence) if not doubted(sentence) else []
    return numbers[0] if len(numbers) == 1 and _WORD.search(sentence) else sentence.strip(" *")


def _inside(formula: re.Match[str]) -> str:
    return next(part for part in formula.groups() if part is not None).strip()


# -- notation ------------------------------------------------------------------------------------

#: Placeholders for ``\{`` and ``\}``, which are signs, and for ``\\``, which ends a matrix row.
_OPEN, _CLOSE, _ROW = "⦃", "⦄", "¶"
_SIGNS = {
    **{"\\\\": _ROW, "\\{": _OPEN, "\\}": _CLOSE, "\\lbrace": _OPEN, "\\rbrace": _CLOSE, "\\$": "", "$": ""},
    **{"−": "-", "–": "-", "∞": "\\infty", "π": "\\pi", "√": "\\sqrt", "×": "*", "·": "*", "≤": "<=", "≥": ">="},
    **{"²": "^2", "³": "^3", "°": "", "½": "\\frac12", "¼": "\\frac14", "¾": "\\frac34", "∪": "\\cup"},
}
_COMMANDS = [
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|quad|qquad)(?![A-Za-z])"), " "),
    (re.compile(r",\\!(?=\d)|\{,\}"), ""),
    (re.compile(r"\\[!,;:> ]|~|\\\(|\\\)|\\\[|\\\]"), " "),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:cdot|times)(?![A-Za-z])"), "*"),
    (re.compile(r"\\(?:leq?)(?![A-Za-z])"), "<="),
    (re.compile(r"\\(?:geq?)(?![A-Za-z])"), ">="),
    (re.compile(r"\\ldots(?![A-Za-z])"), r"\\dots"),
    (re.compile(r"\\(begin|end)\s*\{[pb]matrix\}"), r"\\\1{matrix}"),
    (re.compile(r"\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree(?![A-Za-z])"), ""),
    (re.compile(r"\s*\\?%"), ""),
]
_TEXT = r"\\(?:text|mbox|textbf|textit|textrm|textnormal|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}"
_AND = re.compile(r"\\(?:text|mbox)\s*\{\s*(?:,?\s*and|,?\s*or)\s*\}|,?\s*(?<![A-Za-z\\])(?:and|or)(?![A-Za-z])")
#: Words that may follow a number without changing it. No single letters: those are variables.
_UNIT_WORDS = (
    r"(?:square|sq|cubic|cu|cm|mm|km|ft|in|inch|inches|feet|foot|yards?|miles?|met(?:er|re)s?|centimet(?:er|re)s?"
    r"|units?|degrees?|dollars?|cents?|percent|hours?|minutes?|seconds?|days?|weeks?|months?|years?|mph|kg|grams?"
    r"|pounds?|ways|people|students)"
)
_UNITS = re.compile(
    rf"(?<=[\d}})])\s*(?:{_TEXT}|{_UNIT_WORDS}(?:\s+{_UNIT_WORDS})*)\s*(?:\^\s*\{{?\s*[23]\s*\}}?)?\s*$"
)
#: The left-hand side before an answer: ``x =``, ``f(x) =``, ``x \in``.
NAMED = re.compile(r"^[A-Za-z](?:_\{?\w\}?)?(?:\([A-Za-z]\))?(?:=|\\in(?![A-Za-z]))(?=[^=]*$)")


def normalise_latex(answer: str) -> str:
    """Return an answer in one notation, without spaces, units and names."""
    text = re.sub("|".join(map(re.escape, _SIGNS)), lambda at: _SIGNS[at[0]], answer)
    for pattern, better in _COMMANDS:
        text = pattern.sub(better, text)
    text = _UNITS.sub("", text.strip().rstrip(".,;: "))
    text = re.sub(_TEXT, r"\1", _AND.sub(",", text))
    text = re.sub(r"\s+", "", text)
    token = r"(\\[A-Za-z]+|[0-9A-Za-z])"
    text = re.sub(rf"\\frac{token}", r"\\frac{\1}", text)
    text = re.sub(rf"(\\frac\{{[^{{}}]*\}}){token}", r"\1{\2}", text)
    text = re.sub(r"\\sqrt([0-9A-Za-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"([\^_])\{(\w)\}", r"\1\2", text)
    if re.fullmatch(r"[-+]?\d{1,3}(?:,\d{3})+(?:\.\d+)?", text):
        text = text.replace(",", "")
    return text.rstrip(".,;")


# -- comparing -----------------------------------------------------------------------------------

_PLAIN = r"(?:\d+(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)(?:(?P<plain>{_PLAIN})|(?P<whole>\d*)\\frac\{{(?P<over>-?{_PLAIN})\}}\{{(?P<under>-?{_PLAIN})\}})"
)
_SIDE = r"(\([^()]+\)|[^-+/,=()&]+)"
_SLASHED = re.compile(rf"(?!\\begin)(-?){_SIDE}/{_SIDE}")


def _value(text: str) -> Fraction | None:
    """Return a plain number's value: a decimal, a fraction or a mixed number."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    if match["plain"]:
        value = Fraction(match["plain"].rstrip("."))
    elif not (under := Fraction(match["under"].rstrip("."))):
        return None
    else:
        value = int(match["whole"] or 0) + Fraction(match["over"].rstrip(".")) / under
    return -value if match["sign"] == "-" else value


def _same(one: str, other: str) -> bool:
    """Compare normalised texts."""
    one, other = (_single(_unwrapped(NAMED.sub("", text))) for text in (one, other))
    if one == other:
        return one != ""
    values = _value(one), _value(other)
    if None not in values:
        return values[0] == values[1]
    if one.isalpha() and other.isalpha() and len(one) > 1:
        return one.casefold() == other.casefold()
    return _same_matrices(one, other) or _same_lists(one, other)


def _single(text: str) -> str:
    """``A/B`` as ``\\frac{A}{B}``, and a fraction's minus sign in front of it."""
    sides = _SLASHED.fullmatch(text)
    if sides and sides[2].count("{") == sides[2].count("}"):
        text = f"{sides[1]}\\frac{{{_unwrapped(sides[2])}}}{{{_unwrapped(sides[3])}}}"
    return re.sub(r"^\\frac\{-(?=[^{}+-]*\}\{[^{}]*\}$)", r"-\\frac{", text)


def _same_matrices(one: str, other: str) -> bool:
    found = [re.fullmatch(r"\\begin\{matrix\}(.*?)¶?\\end\{matrix\}", text) for text in (one, other)]
    if found[0] is None or found[1] is None:
        return False
    (cells, signs), (other_cells, other_signs) = (
        (re.split(f"[&{_ROW}]", each[1]), re.findall(f"[&{_ROW}]", each[1])) for each in (found[0], found[1])
    )
    return signs == other_signs and all(_same(*pair) for pair in zip(cells, other_cells, strict=True))


def _same_lists(one: str, other: str) -> bool:
    """Compare lists: tuples and intervals in order and with their brackets, sets and bare lists in any order."""
    (kind, items), (other_kind, other_items) = _items(one), _items(other)
    if kind != other_kind or len(items) != len(other_items) or (items == [one] and other_items == [other]):
        return False
    if kind:
        return all(_same(*pair) for pair in zip(items, other_items, strict=True))
    left = list(other_items)
    for item in items:
        found = next((at for at, candidate in enumerate(left) if _same(item, candidate)), None)
        if found is None:
            return False
        del left[found]
    return True


def _items(text: str) -> tuple[str, list[str]]:
    """Return the brackets around a list, none for a set or a bare list, and its parts."""
    if text[:1] in ("(", "[", _OPEN) and _closing(text) == len(text) - 1:
        kind = "" if text[0] == _OPEN else text[0] + text[-1]
        return kind, _parts(text[1:-1])
    return "", _parts(text)


def _parts(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "([{" or sign == _OPEN) - (sign in ")]}" or sign == _CLOSE)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def _unwrapped(text: str) -> str:
    """Return a text without brackets around a single item."""
    while text[:1] + text[-1:] in ("()", "{}"):
        inside = text[1:-1]
        if _closing(text) != len(text) - 1 or len(_parts(inside)) > 1:
            break
        text = inside
    return text


def _closing(text: str) -> int:
    """Return the position at which a text's first bracket closes; an interval may close with another kind."""
    depth = 0
    for at, sign in enumerate(text):
        depth += (sign in "([{" or sign == _OPEN) - (sign in ")]}" or sign == _CLOSE)
        if depth == 0:
            return at
    return -1
