"""JSON files with a format, a version and a checksum: scorers and certificates. Files are not trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from guard.errors import GuardError

#: Most keys of one object; a million would take long before anything is checked.
MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of file.

    Attributes:
        name: name in messages, such as ``scorer``.
        format: value of the ``format`` key.
        version: of the format.
        max_bytes: a larger file is refused before it is parsed.
        error: class of the errors.
        missing: fix if the file does not exist.
        broken: fix if the file cannot be used.
        outdated: fix if the file has another version.
    """

    name: str
    format: str
    version: int
    max_bytes: int
    error: type[GuardError]
    missing: str
    broken: str
    outdated: str


def read_bytes(path: str | Path, kind: Kind) -> bytes:
    """Return a file's bytes; raise the kind's error if the file does not exist or is too large."""
    try:
        file = Path(path).expanduser()
        if file.exists() and not file.is_file():
            raise kind.error(f"'{file}' is not a file", fix=kind.missing)
        with file.open("rb") as stream:
            data = stream.read(kind.max_bytes + 1)
    except (OSError, ValueError, RuntimeError) as error:  # ValueError: a NUL byte; RuntimeError: no such user
        why = getattr(error, "strerror", None) or str(error)
        raise kind.error(f"Cannot read the {kind.name} {str(path)!r}", why=why, fix=kind.missing) from error
    if len(data) > kind.max_bytes:
        raise kind.error(
            f"'{file}' is too large for a {kind.name}", why=f"over {kind.max_bytes >> 20} MiB", fix=kind.missing
        )
    return data


def parse(data: bytes, kind: Kind, *, where: str) -> tuple[dict[str, Any], Any]:
    """Return the content and its stated checksum, to be compared with `digest` of the parsed content."""
    try:
        text = data.decode("utf-8")
        content = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_few_keys)
        if "\\u" in text:  # half of a surrogate pair is valid JSON but not text
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise kind.error(f"'{where}' is not a {kind.name}", why=f"no valid JSON: {error}", fix=kind.broken) from error
    if not isinstance(content, dict) or content.get("format") != kind.format:
        raise kind.error(f"'{where}' is not a {kind.name}", why=f'no "format": "{kind.format}" in it', fix=kind.broken)
    if content.get("format_version") != kind.version:
        raise kind.error(
            f"'{where}' has format version {content.get('format_version')!r:.40}",
            why=f"this guard reads version {kind.version}",
            fix=kind.outdated,
        )
    return content, content.pop("sha256", None)


def invalid(error: Exception, kind: Kind, *, where: str) -> GuardError:
    """Return the error for invalid content of the right kind."""
    return kind.error(f"'{where}' is not a valid {kind.name}", why=_first_problem(error), fix=kind.broken)


def damaged(kind: Kind, *, where: str) -> GuardError:
    """Return the error for content that does not match its checksum."""
    return kind.error(f"'{where}' is damaged", why="its checksum does not match its content", fix=kind.broken)


def digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content in hex, independent of the order of keys."""
    canonical = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _few_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise ValueError(f"an object has more than {MAX_KEYS} keys")
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("an object has the same key twice")
    return values


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the file"
        return f"{place:.100}: {problem['msg']:.200}"
    return f"{error!s:.300}"
