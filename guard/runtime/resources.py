"""Resources that guarded calls share: engines, fallbacks and escalation handlers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.policy.policy import Policy
from guard.records import Escalation
from guard.review.handlers import Handler, ReviewQueue, aescalate, check_handlers, escalate, log_handler
from guard.runtime.sources import FallbackFunction, Source
from guard.runtime.steps import Step

if TYPE_CHECKING:
    from guard.audit.log import AuditLog
    from guard.monitoring.acceptance import AcceptanceMonitor
    from guard.review.store import Store


@dataclass(frozen=True, slots=True)
class Resources:
    """The engines and handlers of a guarded call; shared by all calls of a guard.

    Attributes:
        own: the guard's own model and its scorer.
        fallbacks: fallbacks by their names in the policy.
        handlers: escalation handlers by name.
        handler_timeout_s: deadline of each handler, in seconds.
        audit_log: gets every decision; None keeps none.
        monitor: watches the policy's guarantees and draws audit cases; None where it has no ``audit`` section.
    """

    own: Source
    fallbacks: Mapping[str, Source | FallbackFunction]
    handlers: Mapping[str, Handler]
    handler_timeout_s: float
    audit_log: AuditLog | None = None
    monitor: AcceptanceMonitor | None = None


def all_handlers(
    policy: Policy, given: Mapping[str, Handler], open_store: Callable[[], Store], *, others: Collection[str] = ()
) -> dict[str, Handler]:
    """Return the handlers by name: the given ones, ``log``, and ``review`` if the policy escalates to it.

    Args:
        policy: names the handlers. A shadow policy escalates nothing, so its handlers are neither checked nor made.
        given: handlers of the caller; they replace built-in ones.
        open_store: opens the store for ``review``; called only if needed.
        others: names that the policy may use although they name no handler.

    Raises:
        InputError: the policy names a handler that is missing or not callable.
    """
    handlers: dict[str, Handler] = {"log": log_handler, **given}
    if policy.mode == "shadow":
        return handlers
    named = [name for name in policy.handler_names() if name not in others]
    if "review" in named and "review" not in given:
        handlers["review"] = ReviewQueue(open_store())
    check_handlers(named, handlers)
    return handlers


def open_store(store: Store | str | Path | None) -> Store:
    """Return a store that was passed in, or open it; by default the one in the user's data folder."""
    from guard.review.store import Store

    return store if isinstance(store, Store) else Store.open(store)


def escalation_step(case: Escalation, handlers: Mapping[str, Handler], to: Sequence[str], timeout_s: float) -> Step:
    """Return the step that passes a case to handlers and gives the `Delivery`; errors as for
    `guard.review.handlers.escalate`.
    """
    options: dict[str, Any] = {"handlers": handlers, "to": to, "timeout_s": timeout_s}
    return Step(partial(escalate, case, **options), partial(aescalate, case, **options))
