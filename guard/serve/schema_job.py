"""What runs in a process of its own: checks of a request's JSON Schema, and of an answer against it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import attrs
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import extend
from referencing import Registry

#: Keywords that are not checked: jsonschema reads them by Python's rules, not by those of JSON Schema.
NOT_CHECKED = ("pattern", "patternProperties", "format")


def _unchecked(*_: Any) -> None:
    """Accept any value."""


_Validator: Any = extend(Draft202012Validator, dict.fromkeys(NOT_CHECKED, _unchecked))
# A "$schema" in a part of a schema would choose another validator for that part.
_Validator.evolve = attrs.evolve


@dataclass(frozen=True, slots=True)
class SchemaCheck:
    """Whether a schema is one; the text of its result is empty, or says why not."""

    schema: Mapping[str, Any]

    def run(self) -> tuple[dict[str, Any], str]:
        """Check the schema."""
        try:
            Draft202012Validator.check_schema(self.schema)
        except (SchemaError, RecursionError) as error:
            return {}, f"{getattr(error, 'message', 'it nests too deeply'):.200}"
        return {}, ""


@dataclass(frozen=True, slots=True)
class AnswerCheck:
    """Whether a value follows a schema; references to other documents are not followed."""

    value: Any
    schema: Mapping[str, Any]

    def run(self) -> tuple[dict[str, Any], str]:
        """Check the value; it does not follow a schema that cannot be evaluated."""
        try:
            return {"follows": _Validator(self.schema, registry=Registry()).is_valid(self.value)}, ""
        except Exception:  # noqa: BLE001 - references to elsewhere, expressions that are none, circles: fail closed
            return {"follows": False}, ""
