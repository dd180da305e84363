"""Fallbacks whose answers are final without a score, because the caller declares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class TrustedFallback:
    """A fallback that is declared trusted. Create one with `trusted`.

    Attributes:
        step: runnable or chat model that answers.
    """

    step: Any


def trusted(step: Any) -> TrustedFallback:
    """Declare that a fallback's answer is final although guard has not scored it.

        guarded(chain, policy="policy.yaml", fallbacks={"book": trusted(look_up)})

    Without this declaration an unscored answer is a scoring failure, and ``on_error`` decides. The policy still decides
    about a scored model inside a trusted fallback.

    Args:
        step: anything that LangChain can run, for `guarded`; a chat model, for `GuardMiddleware`.

    Examples:
        >>> fallback = trusted(lambda question: "See the handbook.")
        >>> fallback.step("What is the code?")
        'See the handbook.'
    """
    return TrustedFallback(step)


def fallback_steps(fallbacks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fallbacks by name, without their declarations."""
    return {name: step.step if isinstance(step, TrustedFallback) else step for name, step in fallbacks.items()}


def trusted_names(fallbacks: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the trusted fallbacks."""
    return frozenset(name for name, step in fallbacks.items() if isinstance(step, TrustedFallback))
