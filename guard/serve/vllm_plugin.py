"""What ``VLLM_PLUGINS=guard vllm serve MODEL`` loads: vLLM's own server with answers that are guarded.

vLLM starts even where a plugin cannot be imported, so that this module imports nothing that may be missing; what it
needs is imported where vLLM lets errors through.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.serve.vllm_routes import GuardedRoutes

#: Name of the plugin in ``VLLM_PLUGINS``.
NAME = "guard"


def prepare() -> None:
    """Let vLLM keep its layers for guard; entry point of ``vllm.general_plugins``, in each of vLLM's processes.

    Does nothing unless ``VLLM_PLUGINS`` names guard: vLLM loads every installed plugin where it names none.

    Raises:
        EngineError: a version of vLLM that is not understood.
    """
    if NAME in os.environ.get("VLLM_PLUGINS", "").split(","):
        from guard.engines.vllm.versions import load_served_adapter
        from guard.serve.vllm_config import capture_point

        load_served_adapter().prepare(capture_point)


class GuardPlugin:
    """Takes over the routes of vLLM's server that answer; entry point of ``vllm.endpoint_plugins``."""

    name = NAME
    #: All: a server of another task has routes that answer, too, and no engine that guard reads.
    required_tasks = None

    def __init__(self) -> None:
        self._routes: GuardedRoutes | None = None

    def attach_router(self, app: Any) -> None:
        """Take away all routes that might answer.

        Args:
            app: vLLM's application, with its own routes.
        """
        from guard.serve.vllm_routes import GuardedRoutes

        self._routes = GuardedRoutes(app)

    async def init_state(self, engine_client: Any, state: Any, args: Any) -> None:
        """Load policy and scorer, and add the routes of ``guard serve``.

        Args:
            engine_client: vLLM's engine.
            state: of the application.
            args: of the command line.

        Raises:
            GuardError: something is missing or not understood; the server does not start.
        """
        assert self._routes is not None
        await self._routes.open(engine_client, args)
