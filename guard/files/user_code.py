"""The user's own functions, named as ``module:function`` by the person who runs a command (never by a data row)."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

from guard.errors import InputError, did_you_mean


def load_function(name: str, what: str, known: Iterable[str] = ()) -> Callable[..., Any]:
    """Import a function.

    Args:
        name: ``module:function``.
        what: purpose of the function, such as ``grader``, for errors.
        known: built-in names, for errors.

    Raises:
        InputError: the name has no colon, or there is no such module or function.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon:
        raise InputError(f"Unknown {what} {name!r}", fix=did_you_mean(name, [*known, "module:function"]))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise InputError(
            f"Cannot import the module of the {what} {name!r}",
            why=f"{type(error).__name__}: {error}",
            fix="Check its name; a module in the current folder is found with PYTHONPATH=.",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        near = [other for other in vars(module) if callable(getattr(module, other)) and other[0] != "_"]
        raise InputError(
            f"The module {module_name!r} has no function {function_name!r}",
            fix=did_you_mean(function_name, near),
        )
    return function  # type: ignore[no-any-return]
