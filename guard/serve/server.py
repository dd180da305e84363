"""The parts of a server, and the steps that all endpoints share."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from guard.errors import did_you_mean
from guard.serve.admission import Admission, RateLimits
from guard.serve.bodies import AskingBody, GuardOptions
from guard.serve.callers import Caller, find_caller
from guard.serve.memory import ServerMemory
from guard.serve.metrics import ServeMetrics
from guard.serve.recent_decisions import RecentDecisions
from guard.serve.request_errors import RequestError
from guard.serve.responder import Responder, Watcher
from guard.serve.served_models import ModelRoute, ServedModels
from guard.serve.settings import ServeSettings
from guard.serve.side_requests import KnownConversations

if TYPE_CHECKING:
    from guard.access import Access
    from guard.review.store import Store

#: Prompts and answers are never logged.
log = logging.getLogger("guard.serve")

#: Header that names the route, for clients that can set headers only.
ROUTE_HEADER = "x-guard-route"

#: Metadata entry with the API key of a case; a request cannot set it.
KEY_METADATA = "guard_key"


@dataclass(slots=True)
class Server:
    """The parts of a server.

    Attributes:
        models: the models.
        settings: the settings of the operator.
        access: API keys; None if the server needs none.
        store: escalated cases; None if no policy escalates to ``review``.
        responder: answers requests.
        metrics: for Prometheus.
        memory: of answers, together with other servers where the store is a PostgreSQL database.
        waits: requests that look for a person's decision, or wait for it; counted apart from those that are answered.
        console: the review console, an ASGI application; None where it is not wanted.
        started: seconds since 1970.
        ready: whether new requests should be sent here.
    """

    models: ServedModels
    settings: ServeSettings
    access: Access | None
    store: Store | None
    responder: Responder
    metrics: ServeMetrics
    memory: ServerMemory
    waits: Admission
    console: Any = None
    started: int = field(default_factory=lambda: int(time.time()))
    ready: bool = True

    @classmethod
    def build(
        cls,
        models: ServedModels,
        settings: ServeSettings,
        *,
        access: Access | None = None,
        store: Store | None = None,
        watchers: Iterable[Watcher] = (),
    ) -> Server:
        """Return a server of these parts. The caller closes them.

        Args:
            models: the models.
            settings: the settings of the operator.
            access, store: as in `Server`.
            watchers: observe every answer and error.
        """
        admission = Admission(settings.most_requests)
        metrics = ServeMetrics(admission, store)
        memory = ServerMemory(store.short_lived() if store is not None else None)
        responder = Responder(
            admission=admission,
            rates=RateLimits(access.keys if access is not None else None),
            decisions=RecentDecisions(memory),
            watchers=(*watchers, metrics),
            content_filter=settings.content_filter,
            conversations=KnownConversations(memory) if settings.unguarded_keys else None,
        )
        waits = Admission(settings.most_requests)
        return cls(models, settings, access, store, responder, metrics, memory, waits)

    async def caller(self, request: Request) -> Caller:
        """Return who makes a request; errors as for `guard.serve.callers.find_caller`."""
        return await find_caller(request, self.access)

    def target(self, request: Request, body: AskingBody, caller: Caller) -> ModelRoute:
        """Return who answers a request; errors as for `route`."""
        return self.route(request, body.model, body.guard, caller)

    def route(self, request: Request, model: str, options: GuardOptions, caller: Caller) -> ModelRoute:
        """Return the model and the route that a request names.

        Raises:
            RequestError: there is no such model, policy or route, or the key may not ask there.
        """
        _check_places(request)
        named = request.headers.getlist(ROUTE_HEADER)
        if len(named) > 1:
            raise RequestError(f"The request has {len(named)} headers {ROUTE_HEADER}", fix="Send one", param="route")
        routes = {"guard.route": options.route, ROUTE_HEADER: named[0] if named else None}
        target = self.models.find(model, policy=options.policy, routes=routes)
        caller.check_may_ask(target.route)
        return target

    def metadata(self, body: AskingBody, caller: Caller) -> dict[str, Any]:
        """Return what the queue learns of a request beside its prompt."""
        if KEY_METADATA in (body.metadata or {}):
            raise RequestError(f"metadata may not have the key '{KEY_METADATA}'", param="metadata")
        return {KEY_METADATA: caller.id, **({"user": body.user} if body.user else {})}


def _check_places(request: Request) -> None:
    """Refuse routes and policies where nobody reads them: in the URL, and in a header of guard's under another name.

    Raises:
        RequestError: names the option or the header.
    """
    fix = 'Put it into the body: {"guard": {"route": ..., "policy": ...}}'
    for option in request.query_params:
        raise RequestError(f"There is no option '{option:.100}' in the URL", fix=fix, code="unknown_parameter")
    for header in request.headers:
        if header.startswith("x-guard-") and header != ROUTE_HEADER:
            hint = did_you_mean(header, [ROUTE_HEADER])
            raise RequestError(f"There is no header '{header:.100}'", fix=f"{fix}. {hint}", code="unknown_parameter")
