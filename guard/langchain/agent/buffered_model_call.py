"""Runs an agent's model call with its callbacks buffered until its answer is released."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import AsyncCallbackManager, BaseCallbackHandler, BaseCallbackManager
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import (
    ensure_config,
    get_async_callback_manager_for_config,
    get_callback_manager_for_config,
    patch_config,
)

from guard.langchain.attempts.attempt_run import AttemptResult, attempt_steps
from guard.langchain.attempts.attempt_settings import AttemptSettings
from guard.runtime.steps import Step, Steps

if TYPE_CHECKING:
    from langchain.agents.middleware import ModelRequest, ModelResponse

    # Only here, since the oldest of these classes take no parameters.
    Handler = Callable[[ModelRequest[Any]], ModelResponse[Any]]
    AsyncHandler = Callable[[ModelRequest[Any]], Awaitable[ModelResponse[Any]]]


def model_call_steps(
    handler: Handler | AsyncHandler,
    request: ModelRequest[Any],
    attempt: AttemptSettings,
    *,
    buffered: bool,
    name: str,
) -> Steps[AttemptResult]:
    """Call the model within an agent's step.

    Args:
        handler: calls the model; a coroutine function where `adrive` runs the steps.
        request: passed to the handler.
        attempt: settings of the attempt, with what is left of the budget.
        buffered: hold back callbacks; False sends them at once.
        name: of the attempt's source, for the error of a late one.
    """
    config = ensure_config()
    manager = yield Step(partial(get_callback_manager_for_config, config), partial(_async_manager, config))
    config = patch_config(config, callbacks=manager)
    input = _without_callbacks(request) if buffered else request
    result = yield from attempt_steps(
        _ModelStep(handler), input, config, attempt, stream=False, options={}, buffered=buffered, name=name
    )
    return _with_model_handlers(result, request) if buffered else result


async def _async_manager(config: RunnableConfig) -> AsyncCallbackManager:
    return get_async_callback_manager_for_config(config)


class _ModelStep(Runnable[Any, Any]):
    """An agent's model call as a runnable without its own run in traces."""

    def __init__(self, handler: Callable[[Any], Any]) -> None:
        self._handler = handler

    def invoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        return self._handler(input)

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **_: Any) -> Any:
        return await self._handler(input)


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
