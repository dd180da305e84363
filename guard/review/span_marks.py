"""Marks of spans: which lines, list items and sentences of an answer a reviewer calls wrong, and which right.

A mark belongs to a stored span of the answer that the verdict is about. A span without a mark has no label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from guard.errors import ReviewError
from guard.scores import any_wrong


@dataclass(frozen=True, slots=True)
class SpanMark:
    """A reviewer's mark of one span.

    Attributes:
        start, end: places of the span's first character and of the one after its last, as the case stores them.
        wrong: whether the span is wrong; otherwise it is right.
    """

    start: int
    end: int
    wrong: bool

    @property
    def place(self) -> tuple[int, int]:
        """Where the span is."""
        return self.start, self.end


def span_places(attempts: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, int], ...]:
    """Return the places of the spans of the last attempt, in order; their numbers count from 1 in this order.

    Examples:
        >>> span_places([{"spans": [{"start": 7, "end": 12}, {"start": 0, "end": 6}]}])
        ((0, 6), (7, 12))
    """
    kept = attempts[-1].get("spans") if attempts else None
    return tuple(sorted({(int(each["start"]), int(each["end"])) for each in kept or ()}))


def any_span_wrong(attempt: Mapping[str, Any]) -> float | None:
    """Return the probability that any span of a stored attempt is wrong; None if it has fewer than two.

    Examples:
        >>> any_span_wrong({"spans": [{"p_wrong": 0.5}, {"p_wrong": 0.2}]})
        0.6
    """
    found = [float(each["p_wrong"]) for each in attempt.get("spans") or () if each.get("p_wrong") is not None]
    return any_wrong(found) if len(found) > 1 else None


def numbered_marks(
    attempts: Sequence[Mapping[str, Any]], *, wrong: Iterable[int] = (), right: Iterable[int] = ()
) -> tuple[SpanMark, ...]:
    """Return the marks of spans by their numbers, from 1, as ``guard review show`` lists them.

    Args:
        attempts: of the case.
        wrong, right: numbers of spans of the last attempt's answer.

    Raises:
        ReviewError: it has no span with such a number.

    Examples:
        >>> numbered_marks([{"spans": [{"start": 0, "end": 6}, {"start": 7, "end": 12}]}], wrong=[2])
        (SpanMark(start=7, end=12, wrong=True),)
    """
    places = span_places(attempts)
    named = [*((each, True) for each in wrong), *((each, False) for each in right)]
    for number, _ in named:
        if not 1 <= number <= len(places):
            raise _unknown(f"number {number}", places)
    return tuple(SpanMark(*places[number - 1], is_wrong) for number, is_wrong in named)


def checked_marks(attempts: Sequence[Mapping[str, Any]], marks: Iterable[SpanMark]) -> tuple[SpanMark, ...]:
    """Return marks in the order of their spans.

    Raises:
        ReviewError: a mark has no stored span, or a span has two marks.
    """
    places, found = span_places(attempts), sorted(marks, key=lambda mark: mark.place)
    for mark in found:
        if mark.place not in places:
            raise _unknown(f"from {mark.start} to {mark.end}", places)
    for mark, after in pairwise(found):
        if mark.place == after.place:
            number = places.index(mark.place) + 1
            raise ReviewError(f"Span {number} has two marks", fix="Mark it once, wrong or right")
    return tuple(found)


def common_marks(opinions: Iterable[Iterable[SpanMark]]) -> tuple[SpanMark, ...]:
    """Return the marks of several reviewers without the spans that they mark differently.

    Examples:
        >>> ann = [SpanMark(0, 6, True), SpanMark(7, 12, True)]
        >>> common_marks([ann, [SpanMark(7, 12, False), SpanMark(13, 20, False)]])
        (SpanMark(start=0, end=6, wrong=True), SpanMark(start=13, end=20, wrong=False))
    """
    found = {mark for marks in opinions for mark in marks}
    given = [mark.place for mark in found]
    return tuple(sorted((mark for mark in found if given.count(mark.place) == 1), key=lambda mark: mark.place))


def describe_marks(marks: Sequence[SpanMark]) -> str:
    """Return marks in words; empty without any.

    Examples:
        >>> describe_marks([SpanMark(0, 6, True), SpanMark(7, 12, False), SpanMark(13, 20, False)])
        '1 span marked wrong, 2 right'
        >>> describe_marks([SpanMark(0, 6, False)])
        '1 span marked right'
    """
    counts = {"wrong": sum(mark.wrong for mark in marks), "right": sum(not mark.wrong for mark in marks)}
    given = [(count, label) for label, count in counts.items() if count]
    if not given:
        return ""
    (count, label), *more = given
    first = f"{count} span{'' if count == 1 else 's'} marked {label}"
    return ", ".join([first, *(f"{count} {label}" for count, label in more)])


def marks_to_json(marks: Iterable[SpanMark]) -> list[dict[str, Any]] | None:
    """Return marks as they are stored; None without any."""
    return [asdict(mark) for mark in marks] or None


def marks_from_json(stored: Any) -> tuple[SpanMark, ...]:
    """Return stored marks.

    Raises:
        KeyError, TypeError, ValueError: they have a form that guard never writes.
    """
    return tuple(SpanMark(int(each["start"]), int(each["end"]), bool(each["wrong"])) for each in stored or ())


def _unknown(which: str, places: Sequence[tuple[int, int]]) -> ReviewError:
    stored = ", ".join(f"{number}: {start}-{end}" for number, (start, end) in enumerate(places[:20], 1))
    return ReviewError(
        f"The answer has no span {which}",
        why=f"its spans are {stored}{', ...' if len(places) > 20 else ''}" if places else "no spans are stored with it",
        fix="Mark one that guard review show lists" if places else "Decide it without marks",
    )
