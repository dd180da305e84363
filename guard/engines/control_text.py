"""Message contents are plain text: text that looks like a control token in a message, a tool's result or an option is
not one.

A tokenizer that may read control tokens, as the text of a chat template needs, reads them in a user's
words too. So contents are rendered with a stand-in for the first character of each such text; what then
still reads like a control token was written by the template. Ordinary contents hold no such text, and
are rendered and tokenized as if this module was not there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from guard.errors import ChatTemplateError, InputError, did_you_mean
from guard.records import Prompt

#: Roles that every chat template is asked with; others must occur in the template's own text.
ROLES = ("system", "user", "assistant", "tool")
_STAND_INS = range(0xE000, 0xF8FF)  # Unicode's area for private use


class Piece(NamedTuple):
    """Part of a prompt's text.

    Attributes:
        text: never empty.
        control: whether control tokens are read in it; otherwise it is plain text throughout.
    """

    text: str
    control: bool


class ControlTexts:
    """The texts that a tokenizer reads as control tokens."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(filter(None, texts))
        #: Their first characters, each once.
        self.firsts = sorted({text[0] for text in self._texts})
        self._first = re.compile("|".join(map(re.escape, self.firsts)) or "(?!)")
        self._lengths = sorted(set(map(len, self._texts)), reverse=True)

    def at(self, text: str, start: int) -> int:
        """Length of the longest control text there; 0 for none."""
        return next((length for length in self._lengths if text[start : start + length] in self._texts), 0)

    def starts(self, text: str) -> Iterator[int]:
        """Return positions where a control text may begin, by its first character."""
        return (found.start() for found in self._first.finditer(text))

    def count(self, text: str) -> int:
        """Return how many control tokens a tokenizer reads in a text, from left to right."""
        found, end = 0, 0
        for start in self.starts(text):
            if start >= end and (length := self.at(text, start)):
                found, end = found + 1, start + length
        return found

    def dangerous(self, text: str) -> list[int]:
        """Return positions where a control text begins, or where one could form with the following text."""
        return [start for start in self.starts(text) if self.at(text, start) or self._is_cut(text, start)]

    def _is_cut(self, text: str, start: int) -> bool:
        return len(text) - start < self._lengths[0] and text[start:] in self._beginnings

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(text[:length] for text in self._texts for length in range(1, len(text)))


def split_prompt(prompt: Prompt, template: str, controls: ControlTexts, render: Callable[..., str]) -> list[Piece]:
    """Return a chat prompt as text, cut where a content's text must not be read as control tokens.

    Args:
        prompt: with messages.
        template: the chat template's text.
        controls: of the tokenizer.
        render: renders messages, and ``tools=``, by the template; ``options=`` in place of the prompt's.

    Raises:
        ChatTemplateError: a role that the template does not know, and what rendering raises.
        InputError: a content has a control token's text, and the template changes how it is written.
    """
    messages, tools = prompt.messages or (), prompt.tools
    _check_roles(messages, template)
    texts = collect_texts([messages, tools, prompt.template_options])
    if not any(map(controls.dangerous, texts)):
        return _whole(render(messages, tools=tools))
    stand_ins = _stand_ins(controls.firsts, template.join(texts))
    replaced = [_replaced(message, controls, stand_ins) for message in messages]
    plain_tools = [_replaced(tool, controls, stand_ins) for tool in tools]
    options = {name: _replaced(value, controls, stand_ins) for name, value in prompt.template_options.items()}
    text = render(replaced, tools=plain_tools, **({"options": options} if options else {}))
    return _cut(text, controls, {stand_in: first for first, stand_in in stand_ins.items()})


def _check_roles(messages: Iterable[Mapping[str, Any]], template: str) -> None:
    for message in messages:
        role = message.get("role")
        if role not in ROLES and not _is_named(role, template):
            raise ChatTemplateError(
                f"The chat template does not know the role {role!r:.60}", fix=did_you_mean(str(role)[:60], ROLES)
            )


def _is_named(role: object, template: str) -> bool:
    """Return whether a template's text has a role as a word in quotes."""
    return isinstance(role, str) and bool(re.fullmatch(r"[\w-]+", role) and re.search(rf"""['"]{role}['"]""", template))


def collect_texts(value: Any) -> list[str]:
    """Return all texts in JSON values, keys included."""
    try:
        return list(_walk(value))
    except RecursionError as error:
        raise InputError("The messages are nested too deeply") from error


def _walk(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for pair in value.items():
            yield from _walk(pair)
    elif isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        for item in value:
            yield from _walk(item)


def _stand_ins(firsts: Iterable[str], taken: str) -> dict[str, str]:
    """Return a character for each first character of a control text, none of which is in use."""
    used = set(taken)
    free = [chr(code) for code in _STAND_INS if chr(code) not in used]
    if len(free) < len(set(firsts)):
        raise InputError("The messages use up Unicode's area for private use", fix="Take its characters out")
    return dict(zip(firsts, free, strict=False))


def _replaced(value: Any, controls: ControlTexts, stand_ins: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        characters = list(value)
        for start in controls.dangerous(value):
            characters[start] = stand_ins[characters[start]]
        return "".join(characters)
    if isinstance(value, Mapping):
        return {_replaced(key, controls, stand_ins): _replaced(value[key], controls, stand_ins) for key in value}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_replaced(item, controls, stand_ins) for item in value]
    return value


def _cut(text: str, controls: ControlTexts, firsts: Mapping[str, str]) -> list[Piece]:
    """Restore the first characters, and split the text around what the template has not written itself."""
    if any(f"\\u{ord(stand_in):04x}" in text.lower() for stand_in in firsts):
        raise InputError(
            "The messages hold the text of a control token, which this chat template writes with escapes",
            fix="Remove such texts from the messages, documents and tools",
        )
    restored = "".join(firsts.get(character, character) for character in text)
    marks: list[tuple[int, int]] = []
    contents: list[int] = []
    at = 0
    for start in controls.starts(restored):
        length = controls.at(restored, start)
        if start < at or not length:
            continue
        if text[start] in firsts:
            contents.append(start)
        else:
            at = start + length
            marks.append((start, at))
    return list(_pieces(restored, marks, contents)) if contents else _whole(restored)


def _pieces(text: str, marks: Sequence[tuple[int, int]], contents: Sequence[int]) -> Iterator[Piece]:
    """Runs between two marks that hold a content's control text are plain; all else stays together."""
    at = 0
    ends = [0, *(end for _, end in marks)]
    starts = [*(start for start, _ in marks), len(text)]
    for begin, end in zip(ends, starts, strict=True):
        if any(begin <= content < end for content in contents):
            yield from (piece for piece in (Piece(text[at:begin], True), Piece(text[begin:end], False)) if piece.text)
            at = end
    yield from _whole(text[at:])


def _whole(text: str) -> list[Piece]:
    return [Piece(text, True)] if text else []
