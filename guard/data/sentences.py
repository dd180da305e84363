"""The end of an answer's first sentence."""

from __future__ import annotations

import re

_END = re.compile(r"(?<=\w{4}[.!?])\s+|(?<=[!?])\s+|(?<=^yes\.)\s+|(?<=^no\.)\s+|(?<=[。！？])", re.IGNORECASE)


def first_sentence(answer: str) -> tuple[str, str]:
    """Return the answer up to its first line end or full stop, and the rest. A short word (``Dr.``) ends no sentence.

    Examples:
        >>> first_sentence("Dr. Jekyll came home. Or Mr. Hyde.")
        ('Dr. Jekyll came home.', 'Or Mr. Hyde.\\n')
    """
    line, _, more = answer.strip().partition("\n")
    parts = _END.split(line, maxsplit=1)
    return parts[0], f"{parts[1] if len(parts) > 1 else ''}\n{more}"
