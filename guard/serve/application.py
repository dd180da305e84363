"""The ASGI application: all routes and the middleware in front of them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from guard.serve.body_limits import BodyLimits
from guard.serve.chat_routes import chat_router
from guard.serve.guard_routes import guard_router
from guard.serve.model_routes import model_router
from guard.serve.server import Server
from guard.serve.strict_route import error_response


def create_application(server: Server) -> FastAPI:
    """Return the ASGI application of a server.

    Examples:
        >>> from guard.serve.served_models import ServedModels
        >>> from guard.serve.settings import ServeSettings
        >>> create_application(Server.build(ServedModels({}), ServeSettings())).title
        'guard serve'
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        server.ready = False

    # Their pages load scripts from elsewhere.
    application = FastAPI(title="guard serve", docs_url=None, redoc_url=None, lifespan=lifespan)
    application.router.redirect_slashes = False
    for router in (chat_router(server), model_router(server), guard_router(server)):
        application.include_router(router)

    if server.console is not None:
        application.mount("/console", server.console)

    @application.exception_handler(HTTPException)
    async def no_route(_: Request, error: HTTPException) -> JSONResponse:
        return error_response(error)

    settings = server.settings
    application.add_middleware(BodyLimits, most_bytes=settings.body_bytes, seconds=settings.body_seconds)
    return application
