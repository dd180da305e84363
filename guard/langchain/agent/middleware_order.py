"""Checks the position of the guard in an agent's middleware list when the agent is built.

Middleware that wraps the model more closely than the guard sees answers before they are decided and can change the
request. ``after_model`` hooks run from the last middleware to the first: one after the guard runs before the guard has
inserted a reviewed answer, so that a redaction or an approval would miss it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain.agents.middleware import AgentMiddleware

from guard.errors import InputError
from guard.langchain.upstream_internals import middleware_being_built

#: Hooks that no middleware after the guard may have.
_HOOKS = ("wrap_model_call", "awrap_model_call", "after_model", "aafter_model")


def refuse_wrong_order(guard: AgentMiddleware[Any, Any]) -> None:
    """Check the middleware list of the agent that is being built, if there is one.

    Raises:
        InputError: a middleware after the guard wraps the model or reads its answer.
    """
    middleware = middleware_being_built()
    if middleware is not None:
        _check(guard, middleware)


def _check(guard: AgentMiddleware[Any, Any], middleware: Sequence[Any]) -> None:
    places = [place for place, one in enumerate(middleware) if one is guard]
    after = middleware[places[0] + 1 :] if places else ()
    for one in after:
        hooks = [name for name in _HOOKS if getattr(type(one), name, None) is not getattr(AgentMiddleware, name)]
        if hooks:
            own, other = type(guard).__name__, type(one).__name__
            raise InputError(
                f"{other} comes after {own} in the list of middleware",
                why=f"its {hooks[0]} would see undecided answers, or miss answers that a person reviewed",
                fix=f"Put {own} last: middleware=[..., {other}(...), {own}(...)]",
            )
