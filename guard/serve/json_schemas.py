"""Whether an answer's JSON follows the schema that the request gives. A stranger wrote the schema."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from guard.errors import missing_extra
from guard.serve.request_errors import RequestError

#: Not looked at: a regular expression of a stranger's may take forever.
NOT_CHECKED = ("pattern", "patternProperties", "format")


@cache
def _validator() -> Any:
    """Return the class that checks all but `NOT_CHECKED`."""
    try:
        from jsonschema import Draft202012Validator
        from jsonschema.validators import extend
    except ImportError as error:
        raise missing_extra("jsonschema", "serve") from error
    return extend(Draft202012Validator, dict.fromkeys(NOT_CHECKED, _unchecked))


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
        _validator().check_schema(schema)
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
    except (Unresolvable, RecursionError):
        return False
    except Exception as error:  # jsonschema wraps what it cannot resolve in a class of its own
        if "Resolv" in type(error).__name__:
            return False
        raise
