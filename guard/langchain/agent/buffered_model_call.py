"""Runs an agent's model call with its callbacks buffered until its answer is released."""

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

from guard.langchain.attempts.attempt_run import AttemptResult, arun_attempt, run_attempt
from guard.langchain.attempts.attempt_settings import AttemptSettings

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelRequest, ModelResponse

    # Only here, since the oldest of these classes take no parameters.
    Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
    AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


def call_model(
    handler: Handler, request: ModelRequest[Any], attempt: AttemptSettings, *, buffered: bool
) -> AttemptResult:
    """Call the model within an agent's step.

    Args:
        handler: calls the model.
        request: passed to the handler.
        attempt: settings of the attempt, with what is left of the budget.
        buffered: hold back callbacks; False sends them at once.
    """
    config = ensure_config()
    config = patch_config(config, callbacks=get_callback_manager_for_config(config))
    input = _without_callbacks(request) if buffered else request
    result = run_attempt(_ModelStep(handler), input, config, attempt, stream=False, options={}, buffered=buffered)
    return _with_model_handlers(result, request) if buffered else result


async def acall_model(
    handler: AsyncHandler, request: ModelRequest[Any], attempt: AttemptSettings, *, buffered: bool
) -> AttemptResult:
    """`call_model` without blocking the event loop."""
    config = ensure_config()
    config = patch_config(config, callbacks=get_async_callback_manager_for_config(config))
    input = _without_callbacks(request) if buffered else request
    result = await arun_attempt(
        _AsyncModelStep(handler), input, config, attempt, stream=False, options={}, buffered=buffered
    )
    return _with_model_handlers(result, request) if buffered else result


class _ModelStep(Runnable[Any, Any]):
    """An agent's model call as a runnable without its own run in traces."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        return self._handler(input)


class _AsyncModelStep(_ModelStep):
    """`_ModelStep` for an agent that runs on an event loop."""

    def __init__(self, handler: AsyncHandler) -> None:
        self._async_handler = handler

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> ModelResponse[Any]:
        return await self._async_handler(input)


def _without_callbacks(request: ModelRequest[Any]) -> ModelRequest[Any]:
    """Return the request with a copy of its model that has no callbacks; the model itself is unchanged."""
    if not request.model.callbacks:
        return request
    return request.override(model=request.model.model_copy(update={"callbacks": None}))


def _with_model_handlers(result: AttemptResult, request: ModelRequest[Any]) -> AttemptResult:
    """Return the result with the model's own callback handlers added to those of its buffer."""
    callbacks = request.model.callbacks
    own = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or []
    handlers: list[BaseCallbackHandler] = result.buffer.handlers
    handlers.extend(one for one in own if not any(one is known for known in handlers))
    return result
