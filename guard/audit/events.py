"""Events as the log stores them: canonical JSON with salted hashes in place of texts.

A salted hash commits to a text without revealing it: anyone with the salt and the text can show that they belong to the
entry. Once the salt is erased, nobody can guess the text from its hash.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from guard.errors import InputError
from guard.files.stored_text import stored_text

#: Removes what must not be kept from a text, given its field's name; None keeps the hash alone.
Redaction = Callable[[str, str], str | None]


@dataclass(frozen=True, slots=True)
class TextOpening:
    """What opens one commitment.

    Attributes:
        field: of the event, such as ``answer``.
        salt: 32 bytes, as hexadecimal digits.
        content: the text, where texts are kept.
    """

    field: str
    salt: str
    content: str | None


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event, ready for the log.

    Attributes:
        subject: what the event is about, such as a decision's id; the log can be searched by it.
        canonical: the event as canonical JSON (RFC 8785).
        openings: openings of the texts' commitments.
    """

    subject: str
    canonical: str
    openings: tuple[TextOpening, ...]


def build_event(
    kind: str,
    subject: str,
    fields: Mapping[str, Any],
    *,
    texts: Mapping[str, str | None],
    keep_text: bool = False,
    redaction: Redaction | None = None,
) -> LogEvent:
    """Build an event.

    Args:
        kind: of the event: ``decision``, ``case``, ``verdict``, ``policy`` or ``certificate``.
        subject: what it is about.
        fields: plain data, stored in the log unchanged; no prompts or answers.
        texts: prompts, answers and notes; the log gets salted hashes of them, None stays None.
        keep_text: whether to store the texts beside the log.
        redaction: applied to a text before it is stored. The hash covers the stored text, else the whole text.

    Raises:
        InputError: a field has no form in JSON.
    """
    hashes: dict[str, str | None] = dict.fromkeys(texts)
    openings = []
    for name, text in texts.items():
        if text is None:
            continue
        kept = _kept(name, text, redaction) if keep_text else None
        openings.append(TextOpening(name, secrets.token_hex(32), kept))
        hashes[name] = commitment(openings[-1].salt, text if kept is None else kept)
    event = {**fields, "kind": kind, "subject": subject, "texts": hashes}
    return LogEvent(subject, canonical_json(event), tuple(openings))


def canonical_json(value: Any) -> str:
    """Return the canonical JSON of a value (RFC 8785).

    >>> canonical_json({"b": 1.0, "a": "x"})
    '{"a":"x","b":1}'

    Raises:
        InputError: the value has no form in JSON.
    """
    try:
        return rfc8785.dumps(value).decode()
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise InputError("The audit log cannot hold this value", why=str(error) or type(error).__name__) from error


def commitment(salt: str, text: str) -> str:
    """Return the salted hash of a text: HMAC-SHA-256 with the salt as its key, as hexadecimal digits."""
    return hmac.new(bytes.fromhex(salt), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _kept(name: str, text: str, redaction: Redaction | None) -> str | None:
    """Return what the database keeps of a text."""
    kept = redaction(name, text) if redaction else text
    return None if kept is None else stored_text(kept)
