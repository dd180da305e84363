"""Which accepted answers people check: a keyed hash of the decision's id, so that nobody without the key can tell."""

from __future__ import annotations

import hashlib
import hmac


def hash_share(key: bytes, purpose: str, decision_id: str) -> float:
    """Return a number from 0 to below 1, the same for the same decision, and uniform over decisions.

    Args:
        key: known to the store alone.
        purpose: numbers for different purposes are independent.
        decision_id: of a guarded call.

    Examples:
        >>> hash_share(b"key", "audit", "a decision") == hash_share(b"key", "audit", "a decision")
        True
    """
    digest = hmac.new(key, f"{purpose}\0{decision_id}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:6]) / 2**48


def is_drawn(key: bytes, decision_id: str, rate: float) -> bool:
    """Return whether an accepted answer is drawn to be checked.

    Args:
        key: known to the store alone.
        decision_id: of the guarded call.
        rate: share that is drawn, from 0 to 1.

    Examples:
        >>> is_drawn(b"key", "a decision", 1.0), is_drawn(b"key", "a decision", 0.0)
        (True, False)
    """
    return hash_share(key, "audit", decision_id) < rate
