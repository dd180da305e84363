"""Validation of an answer's JSON against the schema of the request, which is untrusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from guard.errors import missing_extra
from guard.serve.request_errors import RequestError

#: Keywords that are not checked: an untrusted regular expression can take exponential time.
NOT_CHECKED = ("pattern", "patternProperties", "format")

#: Largest number of keywords that are evaluated for one answer. With references, a short schema can need billions.
MOST_STEPS = 50_000


class _TooManyStepsError(Exception):
    """Validation exceeds `MOST_STEPS`."""


def _validator() -> Any:
    """Return a validator class that ignores `NOT_CHECKED` and stops after `MOST_STEPS`."""
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
    """Accept any value."""


def checker(schema: Mapping[str, Any]) -> Any:
    """Return a validator of a schema; references to other documents are not followed.

    Raises:
        RequestError: the schema is invalid.
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
    """Return whether a value follows a schema; False if that cannot be determined.

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
    except Exception as error:  # jsonschema wraps unresolvable references in its own class
        if "Resolv" in type(error).__name__:
            return False
        raise
