"""guard's own endpoints: scores of given answers, decisions, reviews; and LiteLLM's guardrail API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.requests import Request
from starlette.responses import Response

from guard.errors import CaptureError, ReviewError
from guard.outcome_export import readings, span_list
from guard.policy.cuts import released_text
from guard.policy.defects import find_defects
from guard.records import Action, Attempt, Decision, Limits, Prompt, Sampling
from guard.review.results import ReviewResult
from guard.runtime.call_state import OWN_ENGINE, CallState
from guard.runtime.decision_log import log_decision
from guard.runtime.guard import PromptLike
from guard.runtime.monitored import audit_steps, watch_step
from guard.runtime.steps import adrive
from guard.scores import Score
from guard.serve.asked import chat_turns, check_length
from guard.serve.bodies import Body, GuardOptions, MessageBody
from guard.serve.callers import Caller
from guard.serve.calls_seen import CallsSeen
from guard.serve.event_stream import unless_left
from guard.serve.fitted_questions import check_question
from guard.serve.request_errors import RequestError
from guard.serve.served_models import ModelRoute
from guard.serve.server import KEY_METADATA, Server
from guard.serve.strict_route import StrictRoute


class ScoreBody(Body):
    """``POST /v1/score``: score a given answer."""

    model: str = Field(min_length=1, max_length=300)
    messages: list[MessageBody] | None = Field(default=None, min_length=1, max_length=2000)
    question: str | None = Field(default=None, min_length=1)
    answer: str = Field(min_length=1)
    guard: GuardOptions = Field(default_factory=GuardOptions)


class GuardrailOptions(Body):
    """Options for guard in LiteLLM's configuration."""

    model: str | None = Field(default=None, min_length=1, max_length=300)
    route: str | None = Field(default=None, max_length=100)
    policy: str | None = Field(default=None, max_length=100)


class GuardrailBody(BaseModel):
    """LiteLLM's generic guardrail request; fields that guard does not use are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    texts: list[str] = Field(default_factory=list, max_length=1000)
    structured_messages: list[dict[str, JsonValue]] | None = None
    input_type: Literal["request", "response"]
    litellm_call_id: str | None = Field(default=None, max_length=300)
    tool_calls: list[JsonValue] | None = None
    images: list[JsonValue] | None = None
    additional_provider_specific_params: GuardrailOptions = Field(default_factory=GuardrailOptions)


def guard_router(server: Server) -> APIRouter:
    """Return the router of guard's own endpoints."""
    router = APIRouter(route_class=StrictRoute)
    calls = CallsSeen(server.memory)

    @router.post("/v1/score", summary="Score a given answer")
    async def score(request: Request, response: Response, body: ScoreBody) -> dict[str, Any]:
        caller = await _admitted(server, request, response)
        target = server.route(request, body.model, body.guard, caller)
        try:
            scored = await unless_left(request, _scored(server, target, caller, _question(body, server), body.answer))
        except CaptureError as error:  # its text may name layers
            raise RequestError("The answer cannot be scored", status=422, code="unscored_answer") from error
        return _score_body(target, _decided(await _current(target), body.answer, scored.score), scored.score)

    @router.get("/v1/guard/decisions/{decision_id}", summary="Look up a decision")
    async def decision(request: Request, decision_id: str) -> Mapping[str, Any]:
        caller = await server.caller(request)
        said = await server.responder.decisions.find(decision_id, caller.id)
        if said is None:
            raise _missing("decision", decision_id)
        return {"object": "guard.decision", **said}

    @router.get("/v1/guard/reviews/{name}", summary="Get a person's decision, or wait for it")
    async def review(
        request: Request, name: str, wait: Annotated[float, Query(ge=0, le=600, allow_inf_nan=False)] = 0.0
    ) -> dict[str, Any]:
        caller = await server.caller(request)
        with server.waits.admitted():
            await asyncio.to_thread(_check_owner, server, name, caller)
            assert server.store is not None
            seconds = min(wait, server.settings.review_seconds)
            return _review_body(await unless_left(request, server.store.wait_async(name, timeout_s=seconds)))

    @router.post("/beta/litellm_basic_guardrail_api", summary="LiteLLM's generic guardrail API")
    async def guardrail(request: Request, response: Response, body: GuardrailBody) -> dict[str, Any]:
        caller = await _admitted(server, request, response)
        options = body.additional_provider_specific_params
        own = GuardOptions(route=options.route, policy=options.policy)
        name = options.model or next(iter(server.models)).name
        target = server.route(request, name, own, caller)
        if body.input_type == "request":
            return await _asked(server, body, calls, caller)
        return await unless_left(request, _guardrail(server, target, body, calls, caller))

    return router


async def _admitted(server: Server, request: Request, response: Response) -> Caller:
    """Return the caller, whose request is counted; the response gets the rate limit headers."""
    caller = await server.caller(request)
    response.headers.update(await server.responder.rates.take(caller))
    return caller


# -- scores ------------------------------------------------------------------------------------


def _question(body: ScoreBody, server: Server) -> PromptLike:
    if (body.messages is None) == (body.question is None):
        raise RequestError("Send either 'messages' or 'question'", param="messages")
    prompt = Prompt.chat(body.question if body.question is not None else chat_turns(body.messages or []))
    check_length(prompt, server.settings.bounds)
    return prompt if body.question is None else body.question


@dataclass(frozen=True, slots=True)
class _Scored:
    """The score of a given answer, and the tokens that were read for it: of the prompt, and of the answer."""

    score: Score
    prompt_tokens: int
    answer_tokens: int


async def _scored(server: Server, target: ModelRoute, caller: Caller, question: PromptLike, answer: str) -> _Scored:
    """Score an answer, and charge its tokens. The engine schedules the pass like any request."""
    guard = target.guard
    check_length(Prompt.raw(answer), server.settings.bounds, param="answer")
    if isinstance(question, Prompt) and question.messages is not None:
        system = guard.scorer.artefact.prompting.system
        question = Prompt.chat(question.messages, system=system, template_options=guard.template_options)
    check_question(question if isinstance(question, Prompt) else Prompt.chat(question), target)
    with server.responder.admission.admitted():
        limits = Limits(timeout_s=server.settings.bounds.seconds)
        score, generation = await guard.aread_answer(question, answer, cache_key=caller.id, limits=limits)
    scored = _Scored(score, generation.prompt_tokens, generation.completion_tokens)
    await server.responder.rates.charge(caller, scored.prompt_tokens + scored.answer_tokens)
    return scored


async def _current(target: ModelRoute) -> CallState:
    """Return the state of a call on a route, with the policy as it holds now."""
    state = CallState(target.guard.policy, target.route)
    await adrive(watch_step(target.guard.monitor, state))
    return state


def _decided(state: CallState, answer: str, scored: Score, *, last: bool = False) -> Decision:
    """Return what the policy says of a given answer.

    Args:
        state: with the policy and the route.
        answer: the text.
        scored: the score of the answer.
        last: whether no further attempt is possible, so that rules for retries and fallbacks are skipped.
    """
    state.note_use(last=last)
    return state.decide(scored, defects=find_defects(answer, None))


def _score_body(target: ModelRoute, decision: Decision, scored: Score) -> dict[str, Any]:
    return {
        "object": "guard.score",
        "model": target.id,
        "p_wrong": scored.p_wrong,
        "decides": scored.decides,
        "scores": readings(scored.scores),
        "spans": span_list(scored.spans),
        "p_any_wrong": scored.p_any_wrong,
        "ood_score": scored.ood_score,
        "calibrated": scored.calibrated,
        "decision": {"action": decision.action.value, "rule": decision.rule, "reason": decision.reason},
    }


# -- reviews -----------------------------------------------------------------------------------


def _check_owner(server: Server, name: str, caller: Caller) -> None:
    """Raise the error of a missing case for a case of another key."""
    if server.store is None:
        raise _missing("review", name)
    try:
        review = server.store.review(name)
        if review.kind == "audit":  # nobody waits for it, and that it was drawn is not the caller's to know
            raise _missing("review", name)
        asked = [review.metadata, *(repeat.metadata for repeat in server.store.repeats(name))]
    except ReviewError as error:
        raise _missing("review", name) from error
    if not any(metadata.get(KEY_METADATA) == caller.id for metadata in asked):
        raise _missing("review", name)


def _review_body(result: ReviewResult) -> dict[str, Any]:
    return {
        "object": "guard.review",
        "id": result.review_id,
        "decision_id": result.decision_id,
        "state": result.state,
        "verdict": result.verdict.value if result.verdict else None,
        "answer": result.answer,
        "decided_at": result.decided_at,
        "due_at": result.due_at,
        "ready_at": result.ready_at,
    }


def _missing(what: str, name: str) -> RequestError:
    return RequestError(f"There is no {what} '{name:.60}'", status=404, code=f"{what}_not_found")


# -- LiteLLM -----------------------------------------------------------------------------------


async def _asked(server: Server, body: GuardrailBody, calls: CallsSeen, caller: Caller) -> dict[str, Any]:
    """Keep what a call asks. If that fails, an earlier question with its id must not stand for it."""
    kept = not body.litellm_call_id or await calls.add(caller.id, body.litellm_call_id, _litellm_prompt(body, server))
    return {"action": "NONE"} if kept else _blocked("guard cannot keep the question of this call")


def _litellm_prompt(body: GuardrailBody, server: Server) -> Prompt | None:
    """Return the conversation of a request, or None if it is not text."""
    try:
        turns = chat_turns([MessageBody.model_validate(message) for message in body.structured_messages or ()])
        prompt = Prompt.chat(turns)
        check_length(prompt, server.settings.bounds)
    except Exception:  # noqa: BLE001 - an answer without a prompt is blocked later
        return None
    return prompt


async def _guardrail(
    server: Server, target: ModelRoute, body: GuardrailBody, calls: CallsSeen, caller: Caller
) -> dict[str, Any]:
    """Decide on a model's answer. What is not accepted as it is, not known or not one text is blocked.

    LiteLLM could put another text in its place (``GUARDRAIL_INTERVENED``), but drops that text where it streams.
    """
    prompt = await calls.find(caller.id, body.litellm_call_id) if body.litellm_call_id else None
    if prompt is None:
        return _blocked("guard does not know the question of this answer (use mode: [pre_call, post_call])")
    if len(body.texts) != 1 or body.tool_calls or body.images or not body.texts[0].strip():
        return _blocked("guard scores exactly one text")
    answer = body.texts[0]
    try:
        scored = await _scored(server, target, caller, prompt, answer)
    except CaptureError:
        return _blocked("the answer cannot be scored")
    state = await _current(target)
    decision = _decided(state, answer, scored.score, last=True)
    await _recorded(target, state, prompt, answer, scored, decision)
    whole = decision.action is Action.ACCEPT and released_text(answer, decision) == answer
    if target.guard.policy.mode == "shadow" or whole:
        return {"action": "NONE"}
    text = getattr(decision.settings, "text", None) or getattr(decision.settings, "reply", None)
    name, rule = target.guard.policy.name, decision.rule
    return _blocked(text or f"The policy '{name}' does not accept the answer as it is ({rule})")


async def _recorded(
    target: ModelRoute, state: CallState, prompt: Prompt, answer: str, scored: _Scored, decision: Decision
) -> None:
    """Write the decision about another server's answer to the audit log, and draw it for an audit like any other."""
    guard = target.guard
    score, tokens = scored.score, (scored.prompt_tokens, scored.answer_tokens)
    state.keep(Attempt(answer, OWN_ENGINE, score, decision, *tokens, score.seconds, Sampling()))
    about: dict[str, Any] = {
        "question": prompt.question,
        "prompt": prompt,
        "model": guard.engine.model.name,
        "metadata": {},
    }
    find_case = partial(state.escalation, **about)
    await adrive(log_decision(guard.audit_log, state, find_case))
    await adrive(audit_steps(guard.monitor, state, find_case))


def _blocked(why: str) -> dict[str, Any]:
    return {"action": "BLOCKED", "blocked_reason": why}
