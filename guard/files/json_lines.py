"""JSON Lines files, plain or gzip-compressed, and the recognition of other kinds of files."""

from __future__ import annotations

import codecs
import gzip
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from guard.errors import InputError, did_you_mean

#: Longest line in bytes; a longer one counts as damage.
MAX_LINE_BYTES = 2**20
#: Largest ratio of unpacked to gzip data: real rows shrink to a fifth or a tenth, a bomb to a thousandth.
_MOST_TIMES, _MOST_ANYWAY = 200, 2**22


def read_lines(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """Yield line numbers from 1 and contents, without blank lines; None for a line that is too long."""
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] == b"\x1f\x8b":
                with gzip.open(file) as unpacked:
                    yield from split_lines(unpacked, most=max(_MOST_ANYWAY, _MOST_TIMES * path.stat().st_size))
            else:
                yield from split_lines(file)
    except FileNotFoundError as error:
        near = [other.name for other in path.parent.glob("*.json*")] if path.parent.is_dir() else []
        raise InputError(f"There is no file {path}", fix=did_you_mean(path.name, near)) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path} is damaged gzip data", why=str(error), fix="Copy the file again") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Cannot read {str(path)!r}", why=why) from error


def split_lines(stream: IO[bytes] | gzip.GzipFile, *, most: float = math.inf) -> Iterator[tuple[int, bytes | None]]:
    """Yield the same as `read_lines` for an open file of at most `most` bytes.

    Raises:
        InputError: the file holds more.
    """
    number = read = 0
    while content := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        read += len(content)
        if number == 1:
            content = content.removeprefix(b"\xef\xbb\xbf")
        too_long = len(content) > MAX_LINE_BYTES
        while not content.endswith(b"\n") and (rest := stream.readline(MAX_LINE_BYTES)):
            content, too_long = rest, True
            read += len(rest)
            _check_size(read, most)
        _check_size(read, most)
        if too_long:
            yield number, None
        elif content.strip():
            yield number, content.rstrip(b"\r\n")


def _check_size(read: int, most: float) -> None:
    if read > most:
        raise InputError(
            f"The gzip data unpacks to more than {_MOST_TIMES} times its size",
            why="no file of questions does; it may be made to fill the memory",
            fix="Unpack it yourself if you trust it",
        )


# -- files of other kinds ---------------------------------------------------------------------

_BEGINNING = 4096
_CSV_HEADER = re.compile(rb"[\w \"'-]+(?:[,;\t][\w \"'-]*)+\r?\n?")


def check_json_lines(path: Path) -> None:
    """Refuse a file of another known kind, whose lines would all be bad rows.

    Raises:
        InputError: the file is a JSON document of several lines, CSV, UTF-16, UTF-32, Parquet or a zip archive.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_BEGINNING)
        if start[:2] == b"\x1f\x8b":
            with gzip.open(path) as unpacked:
                start = unpacked.read(_BEGINNING)
    except (OSError, ValueError, EOFError, zlib.error):
        return  # reading reports it better
    kind = _other_kind(start.removeprefix(codecs.BOM_UTF8))
    if kind:
        what, fix = kind
        raise InputError(f"{path} is {what}, and not one JSON object a line", fix=fix)


def _other_kind(start: bytes) -> tuple[str, str] | None:
    """Return the kind of a file by its beginning, and a fix; None for JSON Lines and unknown kinds."""
    first = start.lstrip().split(b"\n", 1)[0].rstrip()
    if start[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE) or b"\0\0\0" in (start[:3], start[1:4]):
        return "UTF-32", "Convert it: iconv -f UTF-32 -t UTF-8 FILE"
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) or start[1:4:2] == b"\0\0" or start[:4:2] == b"\0\0":
        return "UTF-16", "Convert it: iconv -f UTF-16 -t UTF-8 FILE"
    if start.startswith(b"PAR1"):
        return "Parquet", "Convert it, or read it as a named set: NAME@FOLDER"
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive", "Unpack it; gzip is read as it is"
    if first.startswith(b"["):
        return "a JSON list", "Write each of its objects on a line of its own: jq -c '.[]' FILE"
    if first == b"{":
        return "pretty-printed JSON", "Write each object on one line: jq -c . FILE"
    if not first.startswith((b"{", b"[")) and _CSV_HEADER.fullmatch(first):
        return "CSV", 'Write each row as an object: {"question": "...", "answers": ["..."]}'
    return None
