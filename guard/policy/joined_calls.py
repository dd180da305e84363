"""The section of a policy that says which scores decide if a guarded call makes several model calls."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from guard.policy.strict import Name, Strict


class Calls(Strict):
    """Which scores decide if one guarded call makes several model calls, as chains do."""

    model_config = ConfigDict(
        json_schema_extra=lambda schema: schema.update(
            anyOf=[{"enum": ["worst", "last"]}, {"type": schema.pop("type"), "minProperties": 1}]
        )
    )

    join: Literal["worst", "last"] = Field(
        default="worst", description="worst: the highest p_wrong decides; last: that of the call that ended last."
    )
    tag: Name | None = Field(default=None, description="Only calls of steps that have this tag count.")

    @model_validator(mode="before")
    @classmethod
    def _write_out(cls, value: Any) -> Any:
        """Expand the short form: ``last`` means ``{join: last}``."""
        return {"join": value} if isinstance(value, str) else value
