"""Arrays as text, for artefacts in JSON: little-endian float32 in base64. ScoreReading trusts nothing."""

from __future__ import annotations

import base64
import binascii
import math

import numpy as np

from guard.records import Floats


def array_to_text(array: Floats) -> str:
    """Return an array's values in C order; the shape is not kept."""
    return base64.b64encode(array.astype("<f4").tobytes()).decode("ascii")


def array_from_text(text: str, size: int) -> Floats:
    """Return the values of `array_to_text`, shape (size,).

    Raises:
        ValueError: the text is not base64, or has another number of values or values that are not finite.
    """
    if len(text) != 4 * math.ceil(4 * size / 3):
        raise ValueError("an array is not as long as it should be")
    try:
        data = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"an array is not in base64: {error}") from error
    if len(data) != 4 * size:
        raise ValueError("an array does not have as many numbers as it should")
    array = np.frombuffer(data, "<f4")
    if not np.isfinite(array).all():
        raise ValueError("an array has a number that is not finite")
    return array
