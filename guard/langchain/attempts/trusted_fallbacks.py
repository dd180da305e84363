"""Fallbacks whose answers are final without a score, since their owner says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Trusted:
    """A fallback that is declared to be trusted. Build one with `trusted`.

    Attributes:
        step: what answers.
    """

    step: Any


def trusted(step: Any) -> Trusted:
    """Declare that what a fallback says is final although no model of guard's has scored it.

        guarded(chain, policy="policy.yaml", fallbacks={"book": trusted(look_up)})

    Without this an answer that no scored model has given is a failure of scoring, and ``on_error`` decides. A
    scored model in a trusted fallback is still decided on.

    Args:
        step: for `guarded` anything that LangChain can run; for `GuardMiddleware` a chat model.
    """
    return Trusted(step)


def steps_of(fallbacks: Mapping[str, Any]) -> dict[str, Any]:
    """The fallbacks without their declarations."""
    return {name: step.step if isinstance(step, Trusted) else step for name, step in fallbacks.items()}


def trusted_names(fallbacks: Mapping[str, Any]) -> frozenset[str]:
    """Names of the fallbacks that are declared to be trusted."""
    return frozenset(name for name, step in fallbacks.items() if isinstance(step, Trusted))
