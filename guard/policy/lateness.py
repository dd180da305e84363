"""What the caller gets of a case that nobody decides in time."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from guard.policy.strict import OneAction, Strict, Text, or_bare
from guard.review_terms import LateAction


class LateAbstain(Strict):
    """Give no answer, or a fixed text that is none."""

    text: Text | None = Field(default=None, description="What the caller gets in place of an answer.")


class LateFallback(Strict):
    """Give a fixed text."""

    text: Text = Field(description="The answer that the caller gets.")


class Late(OneAction):
    """What the caller gets of a case that nobody decided in time. Never the answer itself: nobody has looked at it."""

    model_config = ConfigDict(json_schema_extra=or_bare("abstain"))

    abstain: LateAbstain | None = None
    fallback: LateFallback | None = None

    @property
    def terms(self) -> LateAction:
        """The action as reviews keep it."""
        return LateAction("abstain" if self.abstain else "fallback", self.settings.text)
