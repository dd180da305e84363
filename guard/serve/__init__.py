"""An OpenAI-compatible server whose answers are guarded: ``guard serve``.

`create_application` returns the ASGI application of a `Server`, which is built from loaded guards, keys and settings.
Only the names below are public.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guard._faces import lazy_face

if TYPE_CHECKING:
    from guard.serve.application import (
        create_application,
    )
    from guard.serve.served_models import (
        ServedModel,
        ServedModels,
    )
    from guard.serve.server import (
        Server,
    )
    from guard.serve.settings import (
        ServeSettings,
    )

__all__ = [
    "ServeSettings",
    "ServedModel",
    "ServedModels",
    "Server",
    "create_application",
]

__getattr__, __dir__ = lazy_face(
    __name__,
    {
        "application": ("create_application",),
        "served_models": (
            "ServedModel",
            "ServedModels",
        ),
        "server": ("Server",),
        "settings": ("ServeSettings",),
    },
)
