"""Search all output for secret texts, whole or in any longer piece.

Used by the public test helpers `guard.langchain.testing` and `guard.serve.testing`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from guard.errors import InputError

#: Number of characters from which a piece of a secret counts as a leak.
PIECE = 12

_MAX_DEPTH = 14


@dataclass(slots=True)
class Seen:
    """All texts that left a runnable.

    Attributes:
        texts: texts by channel and place, in order; the place names the event and the keys.
    """

    texts: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, channel: str, place: str, value: Any) -> None:
        """Add every text in a value."""
        for where, text in _texts(value, place, _MAX_DEPTH, set()):
            self.texts[channel, where].append(text)

    def leaks(self, secrets: Iterable[str], *, allowed: Iterable[str] = ()) -> Iterator[str]:
        """Yield the places of secrets and pieces of them; texts that were streamed are joined first."""
        known = "\n".join(allowed)
        pieces = {piece for secret in secrets for piece in _pieces(secret) if piece not in known}
        for (channel, place), texts in self.texts.items():
            whole = "".join(texts)
            for piece in sorted(pieces):
                if piece in whole:
                    yield f"{channel}: {piece!r} at {place}"
                    break

    def check(self, secrets: Iterable[str], *, allowed: Iterable[str]) -> None:
        """Raise if a secret has leaked.

        Raises:
            AssertionError: something leaked; the text names what, and where.
            InputError: there is no secret that differs from what is allowed.
        """
        hidden, known = [*secrets], [*allowed]
        if not any(piece not in "\n".join(known) for secret in hidden for piece in _pieces(secret)):
            why = "none is given, or all are part of what may come out"
            raise InputError("There is no secret to look for", why=why)
        if leaks := [*self.leaks(hidden, allowed=known)]:
            raise AssertionError("Rejected text left:\n  " + "\n  ".join(leaks))


def all_texts(value: Any) -> list[str]:
    """Return every text in a value."""
    return [text for _, text in _texts(value, "", _MAX_DEPTH, set())]


def _pieces(secret: str) -> list[str]:
    """Return a secret's pieces of `PIECE` characters; the whole secret if it is shorter."""
    secret = secret.strip()
    if len(secret) <= PIECE:
        return [secret] if secret else []
    return [secret[at : at + PIECE] for at in range(len(secret) - PIECE + 1)]


def _texts(value: Any, place: str, depth: int, above: set[int]) -> Iterator[tuple[str, str]]:
    """Yield every text in a value with its place."""
    if isinstance(value, str):
        yield place, value
        return
    if depth == 0 or id(value) in above or value is None or isinstance(value, int | float | type):
        return
    inside = above | {id(value)}
    for key, part in _parts(value):
        yield from _texts(part, f"{place}.{key}" if key else place, depth - 1, inside)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield "keys", key
            yield str(key), part
    elif isinstance(value, list | tuple | set | frozenset):
        for part in value:
            yield "", part
    elif isinstance(value, BaseException):
        yield "text", str(value)
        yield "args", value.args
        yield "notes", getattr(value, "__notes__", ())
        yield "cause", value.__cause__
        yield "context", value.__context__
        yield from vars(value).items()
    elif is_dataclass(value):
        for one in fields(value):
            yield one.name, getattr(value, one.name, None)
    elif not callable(value):
        yield from getattr(value, "__dict__", {}).items()
