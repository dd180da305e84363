"""The review console: web pages on which people decide on escalated cases and follow the queue.

`create_app` returns the application, which runs alone (``guard console``) or mounted in another one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.console.app import create_app
    from guard.console.settings import ConsoleSettings

__all__ = ["ConsoleSettings", "create_app"]

__getattr__, __dir__ = lazy_face(__name__, {"app": ("create_app",), "settings": ("ConsoleSettings",)})
