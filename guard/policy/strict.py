"""Parts that a policy's models are made of: strict mappings, and mappings of exactly one action."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from guard.records import Action

#: A text for people.
Text = Annotated[str, Field(min_length=1, max_length=10_000)]

NAME_SCHEMA = {
    "type": "string",
    "minLength": 1,
    "maxLength": 100,
    "pattern": r"^[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]*[^\s\x00-\x1f\x7f])?$",
}
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_SCHEMA["pattern"])]


class Strict(BaseModel):
    """A mapping whose keys are all known, and whose values are not converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def or_bare(*bare: str) -> Callable[[dict[str, Any]], None]:
    """Amend the schema of a one-action mapping to allow the action's bare name and missing settings."""

    def amend(schema: dict[str, Any]) -> None:
        actions = schema["properties"]
        for action in bare:
            actions[action] = {"anyOf": [actions[action], {"type": "null"}]}
        mapping = {**schema, "minProperties": 1, "maxProperties": 1}
        schema.clear()
        schema.update(anyOf=[{"enum": list(bare)}, mapping])

    return amend


class OneAction(Strict):
    """A mapping of one action to its settings; an action that needs none can stand alone."""

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, value: Any) -> Any:
        """Expand the short forms: ``abstain`` and ``abstain:`` mean ``abstain: {}``."""
        if isinstance(value, str):
            return {value: {}}
        if isinstance(value, Mapping):
            return {key: {} if settings is None else settings for key, settings in value.items()}
        return value

    @model_validator(mode="after")
    def _exactly_one(self) -> OneAction:
        if len(self.model_fields_set) != 1:
            found = " and ".join(f"'{name}'" for name in sorted(self.model_fields_set)) or "none"
            message = "there must be exactly one action here, found {found}"
            raise PydanticCustomError("guard", message, {"found": found})
        return self

    @property
    def action(self) -> Action:
        """The one action."""
        (name,) = self.model_fields_set
        return Action(name)

    @property
    def settings(self) -> Any:
        """The settings of the action."""
        (name,) = self.model_fields_set
        return getattr(self, name)
