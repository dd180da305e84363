"""What guarded calls share: who answers, and who takes the cases that are escalated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guard.policy.policy import Policy
from guard.review.handlers import Handler, ReviewQueue, check_handlers, log_handler
from guard.runtime.sources import FallbackFunction, Source

if TYPE_CHECKING:
    from guard.review.store import Store


@dataclass(frozen=True, slots=True)
class Resources:
    """What a guarded call works with; shared by all calls of a guard.

    Attributes:
        own: the guard's own model and its scorer.
        fallbacks: by the names that the policy knows them by.
        handlers: of escalations, by name.
        handler_timeout_s: deadline of each handler, in seconds.
    """

    own: Source
    fallbacks: Mapping[str, Source | FallbackFunction]
    handlers: Mapping[str, Handler]
    handler_timeout_s: float


def all_handlers(
    policy: Policy, given: Mapping[str, Handler], open_store: Callable[[], Store], *, others: Collection[str] = ()
) -> dict[str, Handler]:
    """Return the handlers by name: those given, ``log``, and ``review`` where the policy escalates to it.

    Args:
        policy: names the handlers. In shadow mode it hands nothing over, so none is checked or made.
        given: by the caller; they take the place of built-in ones.
        open_store: opens the store for ``review``; called only where that is needed.
        others: names that the policy may use for something that is no handler.

    Raises:
        InputError: the policy names a handler that is not there or cannot be called.
    """
    handlers: dict[str, Handler] = {"log": log_handler, **given}
    if policy.mode == "shadow":
        return handlers
    named = [name for name in policy.handler_names() if name not in others]
    if "review" in named and "review" not in given:
        handlers["review"] = ReviewQueue(open_store())
    check_handlers(named, handlers)
    return handlers
