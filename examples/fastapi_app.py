"""A web service that returns only answers that its policy accepts.

uvicorn fastapi_app:app
curl -s localhost:8000/ask -H 'content-type: application/json' -d '{"question": "Who wrote Faust?"}'
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from guard import Guard, GuardError, Limits, parse_policy
from guard.errors import EngineTimeoutError, InputError

POLICY = """
version: 1
name: service
rules:
  - accept: {below: 0.5}
  - abstain: {text: I do not know.}
on_error:
  abstain: {text: I do not know.}
routes:
  careful:
    rules: [accept: {below: 0.1}, abstain: {text: I do not know.}]
budget: {attempts: 1, seconds: 20}
"""


class AskRequest(BaseModel):
    """What is asked."""

    question: str = Field(min_length=1, max_length=2000)
    route: str | None = None


class Answer(BaseModel):
    """What is answered.

    Attributes:
        answer: the model's text, or the policy's in its place.
        action: what the guard did.
        p_wrong: probability that the model's text is wrong; None where it could not be scored.
        decision_id: to be found in the log again.
    """

    answer: str | None
    action: str
    p_wrong: float | None
    decision_id: str


def create_app(scorer: Any = None) -> FastAPI:
    """The service; the model is loaded when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Guard.load("smollm2", scorer=scorer, policy=parse_policy(POLICY)) as guard:
            app.state.guard = guard
            yield

    service = FastAPI(title="Guarded questions", lifespan=lifespan)

    @service.exception_handler(GuardError)
    async def refuse(_: Request, error: GuardError) -> JSONResponse:
        code = 504 if isinstance(error, EngineTimeoutError) else 422 if isinstance(error, InputError) else 503
        return JSONResponse({"error": str(error)}, status_code=code)

    @service.post("/ask")
    async def ask(asked: AskRequest, request: Request) -> Answer:
        guard: Guard = request.app.state.guard
        outcome = await guard.aask(asked.question, route=asked.route, limits=Limits(max_tokens=32))
        return Answer(
            answer=outcome.answer,
            action=outcome.action.value,
            p_wrong=outcome.p_wrong,
            decision_id=outcome.decision_id,
        )

    return service


app = create_app()
