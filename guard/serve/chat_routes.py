"""``/v1/chat/completions``, ``/v1/completions`` and ``/v1/responses``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from guard.serve.asked import Asked, WantedForm, asked_chat, asked_completion, chat_turns
from guard.serve.bodies import ChatBody, CompletionBody, Hold, StreamOptions
from guard.serve.callers import Caller
from guard.serve.chat_bodies import LiveWriter, chat_body, chat_events, completion_body, completion_events
from guard.serve.event_stream import (
    EventStream,
    cancelled,
    event,
    first_seconds,
    held_events,
    live_events,
    next_piece,
    unless_left,
)
from guard.serve.json_schemas import beside_the_loop, check_schema
from guard.serve.request_errors import RequestError
from guard.serve.responder import ServedAnswer
from guard.serve.responses_answer import ResponseWriter
from guard.serve.responses_body import ResponsesBody
from guard.serve.server import Server
from guard.serve.side_requests import find_side_request
from guard.serve.strict_route import StrictRoute
from guard.serve.verdict import verdict_headers

#: The default route of side requests.
BACKGROUND = "background"


def chat_router(server: Server) -> APIRouter:
    """Return the router of the endpoints that answer questions."""
    router = APIRouter(route_class=StrictRoute)

    @router.post("/v1/chat/completions", summary="Answer a conversation")
    async def chat(request: Request, body: ChatBody) -> Response:
        caller, limits = await admitted(server, request)
        asked = await _asked_chat(server, request, body, caller)
        hold = _held(body, server)
        if _is_live(asked, body):
            writer = LiveWriter(asked.target.id, "chat.completion.chunk", body.stream_options)
            return await respond_live(server, request, asked, caller, writer, limits)
        form = AnswerForm.of_chat(chat_body, chat_events, body.stream_options)
        return await respond(server, request, asked, caller, hold, form, limits)

    @router.post("/v1/completions", summary="Continue a text")
    async def complete(request: Request, body: CompletionBody) -> Response:
        caller, limits = await admitted(server, request)
        target = server.target(request, body, caller)
        bounds, metadata = server.settings.bounds, server.metadata(body, caller)
        asked = asked_completion(body, target, bounds=bounds, key=caller.id, metadata=metadata)
        hold = _held(body, server)
        if _is_live(asked, body):
            writer = LiveWriter(asked.target.id, "text_completion", body.stream_options)
            return await respond_live(server, request, asked, caller, writer, limits)
        form = AnswerForm.of_chat(completion_body, completion_events, body.stream_options)
        return await respond(server, request, asked, caller, hold, form, limits)

    @router.post("/v1/responses", summary="Answer a conversation, in the form of Responses")
    async def responses(request: Request, body: ResponsesBody) -> Response:
        caller, limits = await admitted(server, request)
        chat_request = body.to_chat()
        asked = await _asked_chat(server, request, chat_request, caller)
        form = AnswerForm.of_responses(ResponseWriter(body))
        return await respond(server, request, asked, caller, _held(chat_request, server), form, limits)

    return router


async def _asked_chat(server: Server, request: Request, body: ChatBody, caller: Caller) -> Asked:
    """Return the request to a guard for a conversation in either API."""
    target = server.target(request, body, caller)
    bounds, metadata = server.settings.bounds, server.metadata(body, caller)
    asked = asked_chat(body, target, bounds=bounds, key=caller.id, metadata=metadata)
    if asked.form.schema:  # an invalid one is reported before anything is generated
        with server.responder.admission.admitted():
            await beside_the_loop(partial(check_schema, asked.form.schema))
    return await as_side_request(asked, body, server, caller)


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The output format of an API.

    Attributes:
        body: returns the answer as one body.
        events: returns the answer as events, after its decision.
        error: returns the event of an error.
    """

    body: Callable[[ServedAnswer], dict[str, Any]]
    events: Callable[[ServedAnswer], Iterable[str]]
    error: Callable[[RequestError], str]

    @classmethod
    def of_chat(
        cls,
        body: Callable[[ServedAnswer], dict[str, Any]],
        events: Callable[..., Iterable[str]],
        options: StreamOptions | None,
    ) -> AnswerForm:
        """Return the form of Chat Completions and Completions."""
        include_usage = options is not None and options.include_usage
        return cls(body, partial(events, include_usage=include_usage), lambda error: event(error.body()))

    @classmethod
    def of_responses(cls, writer: ResponseWriter) -> AnswerForm:
        """Return the form of Responses."""
        return cls(writer.whole, writer.events, writer.error)


async def as_side_request(asked: Asked, body: ChatBody, server: Server, caller: Caller) -> Asked:
    """Return what to do with a chat program's own request; questions are returned as they are.

    Raises:
        RequestError: it is a side request, and no route or key allows an answer.
    """
    turns = chat_turns(body.messages)
    found = find_side_request(turns)
    if found is None:
        return asked
    known = server.responder.conversations
    allowed = caller.name in server.settings.unguarded_keys and not asked.form.tools
    if allowed and known is not None and found.conversation and await known.has(caller.id, found.conversation):
        return replace(asked, unguarded=True)
    route = asked.target.model.background or BACKGROUND
    if route not in asked.target.guard.policy.routes:
        raise RequestError(
            "This is a chat program's own request (for a title, tags or follow-ups), which this server does not answer",
            fix=f"Turn it off there, or write a route '{route}' into the policy",
            status=422,
            kind="guard_side_request",
            code="side_request",
        )
    caller.check_may_ask(route)
    return replace(asked, target=replace(asked.target, route=route))


async def admitted(server: Server, request: Request) -> tuple[Caller, dict[str, str]]:
    """Return the caller and the rate limit headers."""
    caller = await server.caller(request)
    return caller, await server.responder.rates.take(caller)


async def respond(
    server: Server,
    request: Request,
    asked: Asked,
    caller: Caller,
    hold: Hold | None,
    form: AnswerForm,
    headers: dict[str, str],
) -> Response:
    """Answer a request, as one body or as a stream that is held until the decision.

    Args:
        server: the server.
        request: the HTTP request, watched for a disconnect.
        asked: the request to the guard.
        caller: the caller.
        hold: what a stream sends before the decision; None for an answer in one body.
        form: the output format.
        headers: response headers in addition to those of the verdict.
    """
    work = server.responder.answer(asked, caller)
    if hold is None:
        answered = await unless_left(request, work)
        return JSONResponse(form.body(answered), headers={**headers, **verdict_headers(answered.said)})
    task, every = asyncio.create_task(work), server.settings.comment_seconds
    try:
        decided = await unless_left(request, first_seconds(task, None if hold == "headers" else every))
        said = verdict_headers(task.result().said) if decided else {}
    except BaseException:
        await cancelled(task)
        raise
    return EventStream(held_events(task, every, form.events, form.error), {**headers, **said})


async def respond_live(
    server: Server, request: Request, asked: Asked, caller: Caller, writer: LiveWriter, headers: dict[str, str]
) -> Response:
    """Answer a request as a stream that is sent before its decision; arguments as for `respond`.

    An error before the first piece of text has a status of its own.
    """
    pieces, every = server.responder.live(asked, caller), server.settings.comment_seconds
    first = next_piece(pieces)
    try:
        if await unless_left(request, first_seconds(first, every)):
            first.result()
    except BaseException:
        await cancelled(first)
        await pieces.aclose()
        raise
    events = live_events(pieces, first, every, writer.events, lambda error: event(error.body()))
    return EventStream(events, {**headers, "x-guard-streaming": "live"})


def _is_live(asked: Asked, body: ChatBody | CompletionBody) -> bool:
    """Return whether an answer is sent as it grows: its policy says so, and nothing of the request needs it whole."""
    whole = not body.stream or body.guard.hold is not None or asked.unguarded or asked.form != WantedForm()
    return not whole and asked.target.model.backends is None and asked.target.guard.policy.streaming == "live"


def _held(body: ChatBody | CompletionBody, server: Server) -> Hold | None:
    """Return what a stream sends before its decision, or None for an answer in one body.

    Raises:
        RequestError: the request has an option of streams, but asks for none.
    """
    given = {"stream_options": body.stream_options, "guard.hold": body.guard.hold}
    for option, value in given.items():
        if value is not None and not body.stream:
            raise RequestError(f"{option} requires stream: true", param=option)
    return (body.guard.hold or server.settings.hold) if body.stream else None
