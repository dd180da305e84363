"""The newest decisions of this server by id: verdicts without texts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any


class RecentDecisions:
    """Verdicts of a server, each seen by the key that asked only.

    Args:
        most: that are kept; the oldest are dropped.

    Examples:
        >>> recent = RecentDecisions(1)
        >>> recent.add("key", {"decision_id": "a", "action": "accept"})
        >>> recent.find("a", "key")["action"], recent.find("a", "another key")
        ('accept', None)
        >>> recent.add("key", {"decision_id": "b", "action": "abstain"})
        >>> recent.find("a", "key") is None
        True
    """

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._verdicts: OrderedDict[str, tuple[str, Mapping[str, Any]]] = OrderedDict()

    def add(self, owner: str, said: Mapping[str, Any]) -> None:
        """Keep a verdict."""
        self._verdicts[said["decision_id"]] = (owner, said)
        while len(self._verdicts) > self._most:
            self._verdicts.popitem(last=False)

    def find(self, decision_id: str, owner: str) -> Mapping[str, Any] | None:
        """Return a verdict; None where there is none that this key asked for."""
        kept = self._verdicts.get(decision_id)
        return kept[1] if kept is not None and kept[0] == owner else None
