"""The console that commands print with."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from guard.cli.terminal import visible


class Screen(Console):
    """A rich console whose every piece of text is `visible`, whoever wrote it and however it came here."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render with the codes of hidden characters in their place; rich's own controls stay as they are."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)
