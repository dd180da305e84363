"""Checks of values when they are set: what Python would accept as a number although it is none is refused."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from guard.errors import InputError, did_you_mean

#: Largest seed of folds and trees: LightGBM takes 31 bits.
MAX_SEED = 2**31 - 1


def whole_number(name: str, value: Any, *, least: int, most: int = 2**63 - 1) -> int:
    """Return a whole number within its range.

    Raises:
        InputError: it is a boolean, a text, a fraction, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InputError(f"{name} must be a whole number, got {value!r:.60}")
    number = int(value)
    if not least <= number <= most:
        wanted = f"at most {most}" if number > most else _range(least, most)
        raise InputError(f"{name} must be {wanted}, got {str(number)[:60]}")
    return number


def real_number(name: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        InputError: it is a boolean, a text, infinite or NaN.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise InputError(f"{name} must be a number, got {value!r:.60}")
    return float(value)


def checked_seed(seed: Any) -> int:
    """Return a seed of splits, folds, trees or resamples; errors as for `whole_number`."""
    return whole_number("seed", seed, least=0, most=MAX_SEED)


def _range(least: int, most: int) -> str:
    return f"at least {least}" if most >= 2**63 - 1 else f"from {least} to {most}"


def checked_choice(name: str, value: str, known: Sequence[str]) -> str:
    """Return a value after checking that it is one of the known ones.

    Raises:
        InputError: it is none of them.
    """
    if value not in known:
        raise InputError(f"Unknown {name} '{value}'", fix=did_you_mean(value, known))
    return value
