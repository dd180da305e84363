"""Reading and writing files: checksummed JSON, JSON Lines, files for their owner's eyes only.

Internal. Scorers and certificates are kept with it; it knows nothing of what they mean.
"""

from __future__ import annotations

__all__: list[str] = []  # internal as a whole
