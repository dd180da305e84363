"""The pages of the documentation."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).parents[2]

PAGES = [*sorted(_ROOT.glob("*.md")), *sorted((_ROOT / "docs").rglob("*.md"))]
NAMES = [page.relative_to(_ROOT).as_posix() for page in PAGES]
