"""Reads the text of a policy: strict YAML to plain data with the position of every value.

Policies use a small, safe subset of YAML. Anchors, tags and duplicate keys are refused, and only plain decimal notation
is a number. Notations on which YAML 1.1 and 1.2 disagree (``yes``, ``010``, ``1:30``, ``0x1F``, ``.nan``) stay text, so
they are refused where a number or a boolean belongs and never silently become another value. PyYAML parses; values are
built here, because its constructors keep no positions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from guard.errors import PolicyError

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 20_000
#: Most problems that are listed; the rest are only counted.
MAX_PROBLEMS = 100

#: Location of a value: ``("rules", 0, "accept", "below")``.
Location = tuple[str | int, ...]
#: Line and column, both from 1.
Position = tuple[int, int]

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_AMBIGUOUS = re.compile(r"[-+]?0[0-9]+")
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
#: Most digits of a number; longer ones make no sense, and Python refuses very long ones.
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a policy.

    Attributes:
        where: name of the source.
        line: from 1.
        column: from 1.
        message: what is wrong and what to do, in one or two sentences.
        location: the value's place in the document, as ``rules[0].accept.below``; may be empty.
    """

    where: str
    line: int
    column: int
    message: str
    location: str = ""

    def __str__(self) -> str:
        # One line each, and no control character of the file reaches the terminal.
        message = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.message)
        return f"{self.where}:{self.line}:{self.column}: {message}"


class InvalidPolicyError(PolicyError):
    """A policy's text is wrong. The first problem is in ``what``, all of them in ``problems``.

    Attributes:
        problems: in the order of the text; at most `MAX_PROBLEMS`.
    """

    problems: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, problems: Iterable[Problem]) -> InvalidPolicyError:
        """Make the error that reports all these problems at once (at least one)."""
        found = sorted(problems, key=lambda problem: (problem.line, problem.column))
        shown, unshown = found[:MAX_PROBLEMS], len(found) - MAX_PROBLEMS
        others = [f"\n  {problem}" for problem in shown[1:]]
        if unshown > 0:
            others.append(f"\n  and {unshown} more")
        more = f"{len(found) - 1} more problem{'s' if len(found) > 2 else ''}:{''.join(others)}"
        error = cls(str(shown[0]), fix=more if others else "")
        error.problems = tuple(shown)
        return error


@dataclass(frozen=True, slots=True)
class YamlSource:
    """A policy's data and where each part of it stands in the text.

    Attributes:
        where: name of the source.
        data: dicts, tuples, strings, numbers, booleans and None.
        values: position of each value.
        keys: position of each key of a mapping, under the location of its value.
        problems: what was wrong, but did not keep the text from being read.
    """

    where: str
    data: Any = None
    values: dict[Location, Position] = field(default_factory=dict)
    keys: dict[Location, Position] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, location: Location, message: str, *, at_key: bool = False) -> Problem:
        """Return a problem with the value (or the key) at a location, or with the nearest one around it."""
        marks = self.keys if at_key and location in self.keys else self.values
        around = location
        while around and around not in marks:
            around = around[:-1]
        line, column = marks.get(around, (1, 1))
        return Problem(self.where, line, column, message, location_text(location))

    def without_value(self) -> Iterator[Location]:
        """Return the keys that have no value."""
        for location in self.keys:
            value = self.data
            for step in location:
                value = value[step]
            if value is None:
                yield location


def location_text(location: Location) -> str:
    """Write a location as ``rules[0].accept.below``."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in location]
    return "".join(steps).removeprefix(".")


def read_text(path: Path) -> str:
    """Read a policy file.

    Raises:
        PolicyError: it is missing, unreadable, too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PolicyError(f"Cannot read the policy file '{path}'", why=reason) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(content) > MAX_BYTES:
            raise _too_large(str(path)) from error
        line = content.count(b"\n", 0, error.start) + 1
        column = len(content[: error.start].rpartition(b"\n")[2].decode()) + 1
        problem = Problem(str(path), line, column, "this is not UTF-8. Save the file as UTF-8")
        raise InvalidPolicyError.of([problem]) from error


def read_yaml(
    text: str, *, where: str, wanted: str = "a policy is a mapping with 'version', 'name' and 'rules'"
) -> YamlSource:
    """Read the YAML of a policy, or of another file that is checked like one.

    Args:
        text: one YAML document, a mapping.
        where: name of the source in messages.
        wanted: what the document should be, in messages.

    Raises:
        InvalidPolicyError: the text is too large, too deep, not YAML, or not one mapping. Smaller
            problems (anchors, tags, duplicate keys) are in the result's ``problems``.
    """
    if len(text) > MAX_BYTES or len(text.encode(errors="replace")) > MAX_BYTES:
        raise _too_large(where)
    root, problems = _compose(text, where)
    if not isinstance(root, yaml.MappingNode):
        found = "it is empty" if root is None else f"found {_kind(root)}"
        line, column = (1, 1) if root is None else _position(root.start_mark)
        message = f"{wanted}; {found}"
        raise InvalidPolicyError.of([*problems, Problem(where, line, column, message)])
    source = YamlSource(where, {}, problems=problems)
    source.data.update(_plain(root, (), source))
    return source


def _too_large(where: str) -> InvalidPolicyError:
    return InvalidPolicyError.of([Problem(where, 1, 1, f"a policy may have at most {MAX_BYTES:,} bytes")])


class _Composer(yaml.SafeLoader):
    """SafeLoader that stops at bombs and notes what policies do not allow."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.refused: list[tuple[Position, str]] = []
        self._nodes = 0
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_NODES:,} values", mark)
        if self._depth >= MAX_DEPTH:
            raise yaml.MarkedYAMLError(None, None, f"more than {MAX_DEPTH} levels deep", mark)
        if isinstance(event, yaml.AliasEvent):
            self.get_event()  # type: ignore[no-untyped-call]
            self._refuse(mark, f"aliases are not allowed (*{event.anchor}). Write the value out")
            return yaml.ScalarNode("", "", mark, mark)
        self._clean(event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def _clean(self, event: Any) -> None:
        """Note an anchor or a tag, and drop it: neither means anything in a policy."""
        if event.anchor is not None:
            self._refuse(event.start_mark, f"anchors are not allowed (&{event.anchor}). Remove it")
            event.anchor = None
        if event.tag is not None:
            self._refuse(event.start_mark, f"tags are not allowed ({event.tag}). Remove it")
            event.tag, event.implicit = None, (True, True)

    def _refuse(self, mark: Any, message: str) -> None:
        self.refused.append((_position(mark), message))


def _compose(text: str, where: str) -> tuple[yaml.Node | None, list[Problem]]:
    fatal: tuple[Position, str]
    composer: _Composer | None = None
    try:
        composer = _Composer(text)
        root = composer.get_single_node()
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        position = (before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1)
        fatal = position, f"the character U+{ord(text[error.position]):04X} is not allowed in YAML"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # An unclosed bracket is found at the end of the text; report where it was opened.
        if mark is not None and mark.index >= len(text) and error.context_mark is not None:
            mark = error.context_mark
        fatal = _position(mark), f"not valid here: {_reason(error)}"
    except (ValueError, OverflowError):  # PyYAML hands escapes like \UFFFFFFFF to chr() unchecked
        mark = composer.get_mark() if composer else None
        fatal = _position(mark), "not valid here: an escape that stands for no character"
    else:
        return root, [Problem(where, *position, message) for position, message in composer.refused]
    refused = composer.refused if composer else []
    raise InvalidPolicyError.of(Problem(where, *position, message) for position, message in [*refused, fatal])


def _reason(error: yaml.MarkedYAMLError) -> str:
    reason = ", ".join(part for part in (error.context, error.problem) if part)
    if "'\\t'" in reason:
        reason += ". Indent with spaces"
    if "single document" in reason:
        reason += ". Keep one policy a file, without a second '---'"
    return reason


def _position(mark: Any) -> Position:
    return (mark.line + 1, mark.column + 1) if mark is not None else (1, 1)


def _kind(node: yaml.Node) -> str:
    match node:
        case yaml.SequenceNode():
            return "a list"
        case yaml.MappingNode():
            return "a mapping"
    return "a single value"


def _plain(node: yaml.Node, location: Location, source: YamlSource) -> Any:
    """Turn a node into plain data; lists become tuples, since policies are frozen."""
    source.values[location] = _position(node.start_mark)
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, location, source)
    if isinstance(node, yaml.MappingNode):
        return _mapping(node, location, source)
    return tuple(_plain(item, (*location, number), source) for number, item in enumerate(node.value))


def _mapping(node: yaml.MappingNode, location: Location, source: YamlSource) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        position = _position(key_node.start_mark)
        if not isinstance(key_node, yaml.ScalarNode):
            message = f"a key must be a name, found {_kind(key_node)}"
            source.problems.append(Problem(source.where, *position, message))
            continue
        key, here = key_node.value, (*location, key_node.value)
        if key in values:
            message = f"'{key:.60}' is given twice, first in line {source.keys[here][0]}. Remove one"
            source.problems.append(Problem(source.where, *position, message, location_text(here)))
            continue
        if _has_surrogate(key):
            source.problems.append(Problem(source.where, *position, _SURROGATE))
            continue
        source.keys[here] = position
        values[key] = _plain(value_node, here, source)
    return values


_SURROGATE = "an escape stands for half a character (a lone surrogate). Write the whole character"


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _scalar(node: yaml.ScalarNode, location: Location, source: YamlSource) -> str | int | float | bool | None:
    text: str = node.value
    if node.style is not None:  # quoted or a block: text, whatever it looks like
        if _has_surrogate(text):
            source.problems.append(source.problem(location, _SURROGATE))
            return ""
        return text
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    is_integer = _INTEGER.fullmatch(text) is not None
    if _AMBIGUOUS.fullmatch(text) or not (is_integer or _DECIMAL.fullmatch(text)):
        return text
    if is_integer and len(text.lstrip("+-")) > _MAX_DIGITS:
        message = f"a number with more than {_MAX_DIGITS} digits. Put it in quotes if it is text"
        source.problems.append(source.problem(location, message))
        return 0
    return int(text) if is_integer else float(text)
