"""Reading and writing files: checksummed JSON, JSON Lines, and files that only their owner can read.

Internal. Scorers and certificates use it; it does not know their meaning.
"""

from __future__ import annotations

__all__: list[str] = []  # internal as a whole
