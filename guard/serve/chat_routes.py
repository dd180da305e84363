"""``/v1/chat/completions`` and ``/v1/completions``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guard.serve.asked import Asked, asked_chat, asked_completion
from guard.serve.bodies import ChatBody, CompletionBody, Hold, StreamOptions
from guard.serve.callers import Caller
from guard.serve.chat_bodies import chat_body, chat_events, completion_body, completion_events
from guard.serve.event_stream import EventStream, cancelled, first_seconds, held_events, unless_left
from guard.serve.request_errors import RequestError
from guard.serve.responder import ServedAnswer
from guard.serve.server import Server
from guard.serve.strict_route import StrictRoute
from guard.serve.verdict import verdict_headers

#: Writes an answer that has been decided on as events.
EventWriter = Callable[[ServedAnswer], Iterable[str]]


def chat_router(server: Server) -> APIRouter:
    """Return the routes that answer questions."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat(request: Request, body: ChatBody) -> Response:
        caller, limits = await admitted(server, request)
        target = server.target(request, body, caller)
        bounds, metadata = server.settings.bounds, server.metadata(body, caller)
        asked = asked_chat(body, target, bounds=bounds, key=caller.id, metadata=metadata)
        events = _writer(chat_events, body.stream_options)
        return await respond(server, request, asked, caller, _held(body, server), chat_body, events, limits)

    @router.post("/v1/completions", summary="Continue a text")
    async def complete(request: Request, body: CompletionBody) -> Response:
        caller, limits = await admitted(server, request)
        target = server.target(request, body, caller)
        bounds, metadata = server.settings.bounds, server.metadata(body, caller)
        asked = asked_completion(body, target, bounds=bounds, key=caller.id, metadata=metadata)
        events = _writer(completion_events, body.stream_options)
        return await respond(server, request, asked, caller, _held(body, server), completion_body, events, limits)

    return router


async def admitted(server: Server, request: Request) -> tuple[Caller, dict[str, str]]:
    """Return who asks, and the headers about what is left of their limits."""
    caller = await server.caller(request)
    return caller, server.responder.rates.take(caller)


async def respond(
    server: Server,
    request: Request,
    asked: Asked,
    caller: Caller,
    hold: Hold | None,
    body: Callable[[ServedAnswer], dict[str, Any]],
    events: EventWriter,
    headers: dict[str, str],
) -> Response:
    """Answer a request, whole or as a stream that is held until its decision.

    Args:
        server: that answers.
        request: watched for the client's leaving.
        asked: what is asked.
        caller: who asks.
        hold: what a stream sends before its decision; None where no stream is wanted.
        body: writes the answer as a whole.
        events: writes it as events.
        headers: of the response, beside the verdict.
    """
    work = server.responder.answer(asked, caller)
    if hold is None:
        answered = await unless_left(request, work)
        return JSONResponse(body(answered), headers={**headers, **verdict_headers(answered.said)})
    task, every = asyncio.create_task(work), server.settings.comment_seconds
    try:
        decided = await unless_left(request, first_seconds(task, None if hold == "headers" else every))
        said = verdict_headers(task.result().said) if decided else {}
    except BaseException:
        await cancelled(task)
        raise
    return EventStream(held_events(task, every, events), {**headers, **said})


def _held(body: ChatBody | CompletionBody, server: Server) -> Hold | None:
    if body.stream_options is not None and not body.stream:
        raise RequestError("stream_options is allowed with stream: true only", param="stream_options")
    return (body.guard.hold or server.settings.hold) if body.stream else None


def _writer(
    events: Callable[..., Iterable[str]], options: StreamOptions | None
) -> Callable[[ServedAnswer], Iterable[str]]:
    include_usage = options is not None and options.include_usage
    return lambda answered: events(answered, include_usage=include_usage)
