"""``/v1/models``, ``/health``, ``/ready`` and ``/metrics``."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guard.serve.request_errors import RequestError
from guard.serve.served_models import model_entry
from guard.serve.server import Server
from guard.serve.strict_route import StrictRoute


def model_router(server: Server) -> APIRouter:
    """Return the router of models, health and metrics."""
    router = APIRouter(route_class=StrictRoute)

    @router.get("/v1/models", summary="List the models, each with each route")
    async def models(request: Request) -> dict[str, Any]:
        await server.caller(request)
        entries = [model_entry(target, server.started) for target in server.models.targets()]
        return {"object": "list", "data": entries}

    @router.get("/v1/models/{model_id:path}", summary="Describe a model")
    async def model(request: Request, model_id: str) -> dict[str, Any]:
        await server.caller(request)
        for target in server.models.targets():
            if target.id == model_id:
                return model_entry(target, server.started)
        raise RequestError(f"There is no model '{model_id:.100}'", status=404, code="model_not_found", param="model")

    @router.get("/health", summary="Check whether the process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/ready", summary="Check whether the server takes requests")
    async def ready() -> Response:
        full = server.responder.admission.is_full
        gone = any(each.backends is not None and not each.backends.is_up for each in server.models)
        status = "stopping" if not server.ready else "full" if full else "no back end" if gone else "ready"
        return JSONResponse({"status": status}, 200 if status == "ready" else 503)

    @router.get("/metrics", summary="Metrics for Prometheus")
    async def metrics(request: Request) -> Response:
        if not server.settings.open_metrics:
            await server.caller(request)
        text = await asyncio.to_thread(server.metrics.text)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
