"""Runs an agent's model call so that nobody hears of its answer before it is released."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    patch_config,
)

from guard.langchain.attempts.attempt_settings import AttemptSettings
from guard.langchain.attempts.buffered_run import Ran, arun_held, run_held

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelRequest, ModelResponse

    # Only here, since the oldest of these classes take no parameters.
    Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
    AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


def call_model(handler: Handler, request: ModelRequest[Any], attempt: AttemptSettings, *, hold: bool) -> Ran:
    """Call the model within an agent's step.

    Args:
        handler: calls it.
        request: for it.
        attempt: what is left of the budget.
        hold: whether listeners wait for the tape; otherwise they hear everything at once.
    """
    config = ensure_config()
    config = patch_config(config, callbacks=get_callback_manager_for_config(config))
    asked = _without_callbacks(request) if hold else request
    ran = run_held(_Step(handler), asked, config, attempt, stream=False, options={}, hold=hold)
    return _with_own_listeners(ran, request) if hold else ran


async def acall_model(
    handler: AsyncHandler, request: ModelRequest[Any], attempt: AttemptSettings, *, hold: bool
) -> Ran:
    """`call_model` without blocking the event loop."""
    config = ensure_config()
    config = patch_config(config, callbacks=get_async_callback_manager_for_config(config))
    asked = _without_callbacks(request) if hold else request
    ran = await arun_held(_AsyncStep(handler), asked, config, attempt, stream=False, options={}, hold=hold)
    return _with_own_listeners(ran, request) if hold else ran


class _Step(Runnable[Any, Any]):
    """The agent's model call as a runnable, without a run of its own in traces."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        return self._handler(input)


class _AsyncStep(_Step):
    """`_Step` for an agent that runs on an event loop."""

    def __init__(self, handler: AsyncHandler) -> None:
        self._async_handler = handler

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> ModelResponse[Any]:
        return await self._async_handler(input)


def _without_callbacks(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """The request for a copy of the model that nobody listens to; the model itself stays as it is."""
    if not request.model.callbacks:
        return request
    return request.override(model=request.model.model_copy(update={"callbacks": None}))


def _with_own_listeners(ran: Ran, request: ModelRequest[Any]) -> Ran:
    """Let listeners that are attached to the model itself hear the tape too."""
    callbacks = request.model.callbacks
    own = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or []
    listeners: list[BaseCallbackHandler] = ran.tape.listeners
    listeners.extend(one for one in own if not any(one is known for known in listeners))
    return ran
