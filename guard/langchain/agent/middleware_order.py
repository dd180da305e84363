"""The guard's place in an agent's list of middleware, checked when the agent is built.

What wraps the model more closely than the guard sees answers before they are decided on, and can change the
request. And `after_model` hooks run from the last of the list to the first: one that comes after the guard in
the list runs before the guard has put a reviewed answer in its place, so that a redaction or an approval of it
never looks at that answer.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from langchain.agents.middleware import AgentMiddleware

from guard.errors import InputError

#: Hooks that must not come after the guard, in both kinds of code.
_HOOKS = ("wrap_model_call", "awrap_model_call", "after_model", "aafter_model")


def refuse_wrong_order(guard: AgentMiddleware[Any, Any]) -> None:
    """Look at the list of the agent that is being built, if one is.

    LangChain gives a middleware no list to look at. But ``create_agent`` asks each for its name while it has
    the list in hand, so the list is found in the calling frame, under the name of the public parameter.

    Raises:
        InputError: a middleware after the guard wraps the model or looks at its answer.
    """
    for frame in _callers():
        middleware = frame.f_locals.get("middleware")
        if frame.f_code.co_name == "create_agent" and isinstance(middleware, Sequence):
            _check(guard, middleware)
            return


def _check(guard: AgentMiddleware[Any, Any], middleware: Sequence[Any]) -> None:
    places = [place for place, one in enumerate(middleware) if one is guard]
    after = middleware[places[0] + 1 :] if places else ()
    for one in after:
        hooks = [name for name in _HOOKS if getattr(type(one), name, None) is not getattr(AgentMiddleware, name)]
        if hooks:
            own, other = type(guard).__name__, type(one).__name__
            raise InputError(
                f"{other} comes after {own} in the list of middleware",
                why=f"its {hooks[0]} would see answers that are not decided on, or miss those that a person reviewed",
                fix=f"Put {own} last: middleware=[..., {other}(...), {own}(...)]",
            )


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(2)
    for _ in range(4):  # a comprehension has a frame of its own before Python 3.12, a subclass its `name`
        if frame is None:
            return
        yield frame
        frame = frame.f_back
