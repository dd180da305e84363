"""Whether an answer's JSON follows the schema that the request gives. A stranger wrote the schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from guard.errors import missing_extra
from guard.serve.request_errors import RequestError

#: Not looked at: a regular expression of a stranger's may take forever.
NOT_CHECKED = ("pattern", "patternProperties", "format")

#: Keywords that are evaluated for one answer. References let a few lines of a schema ask for billions.
MOST_STEPS = 50_000


class _TooManyStepsError(Exception):
    """A schema takes more than `MOST_STEPS`."""


def _validator() -> Any:
    """Return a class that checks all but `NOT_CHECKED`, in `MOST_STEPS` at most."""
    draft, left = _draft(), iter(range(MOST_STEPS))
    from jsonschema.validators import extend

    bounded = {name: _bounded(check, left) for name, check in draft.VALIDATORS.items()}
    return extend(draft, {**bounded, **dict.fromkeys(NOT_CHECKED, _unchecked)})


def _bounded(check: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    def step(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise _TooManyStepsError
        return check(*arguments)

    return step


def _draft() -> Any:
    try:
        from jsonschema import Draft202012Validator
    except ImportError as error:
        raise missing_extra("jsonschema", "serve") from error
    return Draft202012Validator


def _unchecked(*_: Any) -> None:
    """Find no fault."""


def checker(schema: Mapping[str, Any]) -> Any:
    """Return what checks answers; references to other documents are not followed.

    Raises:
        RequestError: the schema is none.
    """
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    try:
        _draft().check_schema(schema)
    except (SchemaError, RecursionError) as error:
        why = getattr(error, "message", "it nests too deeply")
        raise RequestError("The JSON Schema is not valid", why=f"{why:.200}", param="response_format") from error
    return _validator()(schema, registry=Registry())


def follows(value: Any, schema: Mapping[str, Any]) -> bool:
    """Return whether a value follows a schema; False where that cannot be found out.

    Examples:
        >>> follows({"dose": 150}, {"type": "object", "properties": {"dose": {"type": "integer"}}})
        True
        >>> follows({"dose": 150}, {"$ref": "https://example.org/elsewhere.json"})
        False
    """
    from referencing.exceptions import Unresolvable

    try:
        return bool(checker(schema).is_valid(value))
    except (Unresolvable, RecursionError, _TooManyStepsError):
        return False
    except Exception as error:  # jsonschema wraps what it cannot resolve in a class of its own
        if "Resolv" in type(error).__name__:
            return False
        raise
