"""Text that every database can hold."""

from __future__ import annotations


def stored_text(text: str) -> str:
    r"""Return a text without what databases refuse: lone surrogates (UTF-8) and NUL (PostgreSQL).

    Examples:
        >>> stored_text("a\ud800b")
        'a?b'
    """
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode("utf-8")
