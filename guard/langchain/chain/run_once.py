"""Steps that run once in a guarded call, however often its chain is retried.

    chain = {"context": once(retriever), "question": itemgetter("question")} | prompt | model

A retry runs the whole chain again, and with it every step. Wrap a step that costs money, has side effects or must
return the same result: in one guarded call it runs once per input, and later attempts get the first result. Outside
guarded calls a wrapped step is unchanged.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar, overload

from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import ConfigurableFieldSpec, Input, Output
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict, Field

from guard.errors import CancelledError, InputError
from guard.langchain.attempts.attempt_run import join_chunks
from guard.langchain.attempts.attempt_settings import ATTEMPT
from guard.runtime.steps import Step, Steps, adrive, drive

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Tool = TypeVar("_Tool", bound=StructuredTool)


class RunOnce(RunnableSerializable[Input, Output]):
    """A step whose results are cached for one guarded call. Create one with `once`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    bound: Any
    """The step."""
    step_id: str = Field(default_factory=lambda: uuid.uuid4().hex)
    """Identifies the step; copies and pickles of it are the same step."""

    def invoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        """Run the step, or return its earlier result for this input."""
        output: Output = drive(self._result(input, config, kwargs))
        return output

    async def ainvoke(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Output:
        """`invoke` without blocking the event loop."""
        output: Output = await adrive(self._result(input, config, kwargs))
        return output

    def _result(self, input: Input, config: RunnableConfig | None, kwargs: dict[str, Any]) -> Steps[Output]:
        async def ainvoke() -> list[Output]:
            return [await self.bound.ainvoke(input, config, **kwargs)]

        run = Step(lambda: [self.bound.invoke(input, config, **kwargs)], ainvoke)
        output: Output = join_chunks((yield from _once(self.step_id, (input, kwargs), run)))
        return output

    def stream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Output]:
        """Stream the step the first time; later yield the same chunks."""
        yield from drive(self._chunks(input, config, kwargs))

    async def astream(self, input: Input, config: RunnableConfig | None = None, **kwargs: Any) -> AsyncIterator[Output]:
        """`stream` without blocking the event loop."""
        for chunk in await adrive(self._chunks(input, config, kwargs)):
            yield chunk

    def _chunks(self, input: Input, config: RunnableConfig | None, kwargs: dict[str, Any]) -> Steps[list[Output]]:
        async def astream() -> list[Output]:
            return [chunk async for chunk in self.bound.astream(input, config, **kwargs)]

        run = Step(lambda: list(self.bound.stream(input, config, **kwargs)), astream)
        return _once(self.step_id, (input, kwargs), run)

    @property
    def InputType(self) -> Any:
        """The step's input type."""
        return self.bound.InputType

    @property
    def OutputType(self) -> Any:
        """The step's output type."""
        return self.bound.OutputType

    def get_input_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Return the input schema of the step."""
        schema: type[BaseModel] = self.bound.get_input_schema(config)
        return schema

    def get_output_schema(self, config: RunnableConfig | None = None) -> type[BaseModel]:
        """Return the output schema of the step."""
        schema: type[BaseModel] = self.bound.get_output_schema(config)
        return schema

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The step's config specs."""
        specs: list[ConfigurableFieldSpec] = self.bound.config_specs
        return specs


@overload
def once(step: _Tool) -> _Tool: ...  # type: ignore[overload-overlap] # tools are runnables too
@overload
def once(step: Runnable[Input, Output]) -> Runnable[Input, Output]: ...
@overload
def once(step: _Function) -> _Function: ...
def once(step: Any) -> Any:
    """Return a step that runs once per input in a guarded call.

    Args:
        step: a runnable (such as a retriever), a tool made with ``@tool``, or the function of a `RunnableLambda` or a
            tool, plain or ``async``.

    Returns:
        A step of the same type. Later attempts get the same object as the first. The result of a step that fails is
        not kept.

    Raises:
        InputError: the tool is not made from a function, or the step cannot be run.

    Examples:
        >>> from langchain_core.runnables import RunnableLambda
        >>> retriever = once(RunnableLambda(lambda question: [f"a document about {question}"]))
        >>> retriever.invoke("Paris")
        ['a document about Paris']
    """
    if isinstance(step, StructuredTool):
        functions = {"func": step.func, "coroutine": step.coroutine}
        wrapped = {name: _function_once(one) for name, one in functions.items() if one is not None}
        return step.model_copy(update=wrapped)
    if isinstance(step, BaseTool):
        raise InputError(
            f"once() cannot wrap the tool '{step.name}'",
            why=f"a {type(step).__name__} is not made from a function",
            fix="Wrap the function that does the work",
        )
    if isinstance(step, Runnable):
        return RunOnce(bound=step)
    if callable(step):
        return _function_once(step)
    raise InputError(f"once() takes a runnable, a tool or a function, got {type(step).__name__}")


def _function_once(function: Callable[..., Any]) -> Callable[..., Any]:
    step = uuid.uuid4().hex
    signature = inspect.signature(function)

    def make_key(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the arguments by name, without those that LangChain adds for each run."""
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        added = ("config", "run_manager", "callbacks")
        return {name: value for name, value in bound.arguments.items() if name not in added}

    def calling(*args: Any, **kwargs: Any) -> Step:
        call = functools.partial(function, *args, **kwargs)
        return Step(call, call)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return drive(_once(step, make_key(args, kwargs), calling(*args, **kwargs)))

    @functools.wraps(function)
    async def acall(*args: Any, **kwargs: Any) -> Any:
        return await adrive(_once(step, make_key(args, kwargs), calling(*args, **kwargs)))

    return acall if inspect.iscoroutinefunction(function) else call


# -- caching -----------------------------------------------------------------------------------


def _once(step: str, key: Any, run: Step) -> Steps[Any]:
    """Run a step, or wait for the result of the run that has reserved it in this guarded call."""
    attempt = ATTEMPT.get()
    if attempt is None:
        return (yield run)
    result: Future[Any]
    result, reserved = attempt.once_cache.get_or_reserve(step, key)
    if reserved:
        with _producing(step, result):
            result.set_result((yield run))
    return (yield Step(result.result, lambda: asyncio.shield(asyncio.wrap_future(result))))


@contextmanager
def _producing(step: str, result: Future[Any]) -> Iterator[None]:
    """Produce a reserved result. If that fails, waiting runs fail too, and the next run tries again."""
    try:
        yield
    except BaseException as error:
        attempt = ATTEMPT.get()
        assert attempt is not None
        attempt.once_cache.discard(step, result)
        cancelled = CancelledError("The step was cancelled while another run waited for its result")
        result.set_exception(error if isinstance(error, Exception) else cancelled)
        raise
