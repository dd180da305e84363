"""Which characters of an answer each of its tokens writes, exactly, whatever the tokens are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class TokenText:
    """What one token adds to a text.

    Attributes:
        text: the characters that it completes; empty within a character, and of an end token.
        within: whether it ends within a character, which a later token completes.
    """

    text: str
    within: bool = False


def token_offsets(tokens: Sequence[TokenText], in_answer: Sequence[bool], text: str) -> NDArray[np.int32] | None:
    """Return the characters of an answer that each token writes.

    A token that ends within a character also writes the characters of the token that completes it.

    Args:
        tokens: what each token adds to the text, in order.
        in_answer: whether each token belongs to the answer.
        text: the answer: a part of what these tokens write, since thoughts and stop strings are cut off.

    Returns:
        shape (T, 2), from and to; equal for a token that writes no character of the answer. None where the answer is
        not what the tokens write, as where a format was rewritten.

    Examples:
        >>> tokens = [TokenText("5 "), TokenText("", within=True), TokenText("\u20ac"), TokenText("")]
        >>> token_offsets(tokens, [True] * 4, "5 \u20ac").tolist()
        [[0, 2], [2, 3], [2, 3], [3, 3]]
        >>> token_offsets(tokens, [True] * 4, "five euros") is None
        True
    """
    pieces = [token.text if kept else "" for token, kept in zip(tokens, in_answer, strict=True)]
    begin = "".join(pieces).find(text)
    if begin < 0:
        return None
    ends = np.cumsum([0, *map(len, pieces)])
    offsets = np.stack([ends[:-1], ends[1:]], axis=1)
    completed = int(ends[-1])
    for at in reversed(range(len(pieces))):
        if pieces[at]:
            first, completed = completed, int(ends[at + 1])
        else:
            first = completed
        if in_answer[at] and tokens[at].within:
            offsets[at, 1] = first
    return np.asarray(np.clip(offsets - begin, 0, len(text)), np.int32)
