"""Whether the equations that a text writes out are true, such as ``3 * 14 = 42``."""

from __future__ import annotations

import re
from fractions import Fraction

_NUMBER = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?"
_TERM = rf"[$\u20ac\u00a3]?\s?(?:{_NUMBER})\s?%?"
_OPERATOR = r"[-+*/\u00d7\u00f7\u2212\u00b7x]"
_EQUATION = re.compile(
    rf"(?<![\w.,)(/*+-])(?P<left>{_TERM}(?:\s*{_OPERATOR}\s*{_TERM})+)\s*=\s*(?P<right>{_TERM})"
    rf"(?!\d|[.,]\d|\s*[(*/+\u00d7\u00f7\u00b7]|\s*[-\u2212]\s*\d)"
)
_PART = re.compile(rf"(?P<number>{_NUMBER})|(?P<operator>{_OPERATOR})|(?P<percent>%)")
_SIGNS = {"\u2212": "-", "\u00d7": "*", "x": "*", "\u00b7": "*", "\u00f7": "/"}
#: Longest text of one equation.
MAX_EQUATION = 200


def equations_hold(text: str) -> bool | None:
    """Return whether all equations in a text are true; None where there is none of the form ``a op b ... = c``.

    A result may be rounded to the decimals that are written. Signs, brackets and percentages are not read.

    Examples:
        >>> equations_hold("So 3 * 14 = 42 apples."), equations_hold("2 + 2 = 5"), equations_hold("It is 42.")
        (True, False, None)
        >>> equations_hold("2 / 3 = 0.67")
        True
    """
    found = [match for match in _EQUATION.finditer(text) if len(match.group()) <= MAX_EQUATION]
    results = [_holds(match["left"], match["right"]) for match in found]
    known = [result for result in results if result is not None]
    return all(known) if known and len(known) == len(results) else None


def _holds(left: str, right: str) -> bool | None:
    value = _value(left)
    if value is None or "%" in right:
        return None
    (written,) = re.findall(_NUMBER, right)
    decimals = len(written.partition(".")[2])
    rounding = Fraction(1, 2 * 10**decimals) if decimals else Fraction(0)
    return abs(value - _plain(written)) <= max(rounding, abs(value) / 10**9)


def _value(expression: str) -> Fraction | None:
    """Return the value of a chain of operations, products first; None for a percentage or a division by zero."""
    parts = [match.groupdict() for match in _PART.finditer(expression)]
    if any(part["percent"] for part in parts):
        return None
    terms = [_plain(parts[0]["number"])]
    for operator, number in zip(parts[1::2], parts[2::2], strict=True):
        sign, value = _SIGNS.get(operator["operator"], operator["operator"]), _plain(number["number"])
        if sign in "+-":
            terms.append(value if sign == "+" else -value)
        elif sign == "/" and not value:
            return None
        else:
            terms[-1] = terms[-1] * value if sign == "*" else terms[-1] / value
    return sum(terms, Fraction(0))


def _plain(number: str) -> Fraction:
    return Fraction(number.replace(",", ""))
