"""The routes of a guarded ``vllm serve``: those of ``guard serve`` answer, and vLLM's own that might answer do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.routing import BaseRoute

from guard.engines.vllm import VllmEngine
from guard.engines.vllm.versions import load_served_adapter
from guard.errors import InputError
from guard.serve.body_limits import BodyLimits
from guard.serve.chat_routes import chat_router
from guard.serve.guard_routes import guard_router
from guard.serve.loading import loaded_server
from guard.serve.model_routes import model_router
from guard.serve.request_errors import RequestError
from guard.serve.running import log_decisions
from guard.serve.server import Server
from guard.serve.strict_route import StrictRoute
from guard.serve.vllm_config import config_for, read_config, scorer_binding

#: Paths of vLLM's that give no answer of a model. All others are taken away, whatever a later version adds.
KEPT = frozenset(
    {"/health", "/load", "/metrics", "/ping", "/version", "/tokenize", "/detokenize"}
    | {"/docs", "/docs/oauth2-redirect", "/openapi.json", "/redoc"}
)


class GuardedRoutes:
    """The routes of vLLM's application."""

    def __init__(self, app: FastAPI) -> None:
        """Take away all routes that might answer.

        Args:
            app: vLLM's.

        Raises:
            GuardError: there is no configuration, or it cannot be used.
        """
        self._app, self._opened = app, ExitStack()
        self._own: list[BaseRoute] = []
        settings = read_config().settings()
        app.add_middleware(BodyLimits, most_bytes=settings.body_bytes, seconds=settings.body_seconds)
        self._run_with(app)
        self._keep()

    async def open(self, client: Any, args: Any) -> None:
        """Load policy and scorer, and add guard's routes.

        Args:
            client: vLLM's engine client.
            args: of the command line.

        Raises:
            GuardError: something is missing or not understood.
        """
        load_served_adapter().check_server_options(args)
        loop, date = asyncio.get_running_loop(), scorer_binding().template_date
        engine = await asyncio.to_thread(VllmEngine.of_server, client, loop, template_date=date)
        self._opened.callback(engine.close)
        server = await asyncio.to_thread(self._opened.enter_context, loaded_server(config_for(args), engine=engine))
        log_decisions()
        self.add(server)

    def add(self, server: Server) -> None:
        """Put guard's routes first.

        Args:
            server: what answers them.
        """
        from prometheus_client import REGISTRY

        # Clients of vLLM's /metrics read both.
        REGISTRY.register(server.metrics.registry)
        routers = (chat_router(server), model_router(server), guard_router(server))
        routes = [route for router in routers for route in router.routes]
        self._own[:0] = [route for route in routes if getattr(route, "path", None) not in KEPT]
        if server.console is not None:
            self._app.mount("/console", server.console)
            self._own.append(self._app.router.routes[-1])
        self._keep()
        self._app.openapi_schema = None

    def _keep(self) -> None:
        """Leave guard's routes and those that do not answer; the others say that they do not."""
        taken = [route for route in self._app.router.routes if not self._is_kept(route)]
        kept = [route for route in self._app.router.routes if route not in self._own and route not in taken]
        refusing = [each for route in taken if isinstance(route, APIRoute) for each in _refusing(route)]
        self._own += refusing
        self._app.router.routes[:] = [*self._own, *kept]

    def _is_kept(self, route: BaseRoute) -> bool:
        return route in self._own or getattr(route, "path", None) in KEPT

    def _run_with(self, app: FastAPI) -> None:
        """Look at the routes once more when the server starts, and close guard's parts when it stops."""
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def lifespan(running: Any) -> AsyncIterator[Any]:
            for route in app.router.routes:
                if not self._is_kept(route):
                    raise InputError(f"The route {getattr(route, 'path', '')} of another plugin is not guarded")
            async with inner(running) as state:
                try:
                    yield state
                finally:
                    await asyncio.to_thread(self._opened.close)

        app.router.lifespan_context = lifespan


def _refusing(route: APIRoute) -> list[BaseRoute]:
    """Return a route that says that vLLM's own is not guarded."""
    router = APIRouter(route_class=StrictRoute)

    async def refuse(_: Request) -> None:
        raise RequestError(
            f"'{route.path}' gives no answer here",
            why="guard does not see what it would answer",
            fix="Ask /v1/chat/completions, /v1/completions or /v1/responses",
            status=404,
            code="unguarded_url",
        )

    router.add_api_route(route.path, refuse, methods=sorted(route.methods or ()), include_in_schema=False)
    return [*router.routes]
