"""The migrations, one module a revision; Alembic finds them by their files."""

from __future__ import annotations

__all__: list[str] = []  # internal as a whole
