"""The models of a server by their names for clients; each has one engine and several policies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from guard.errors import did_you_mean
from guard.runtime.guard import Guard
from guard.serve.request_errors import RequestError

if TYPE_CHECKING:
    from guard.serve.backends import BackendPool

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model with its policies.

    Attributes:
        name: as clients write it.
        guards: a guard for each policy, by the name that clients may give; all share one engine. Of a model with back
            ends those of one of them.
        policy: name of the policy of requests that name none.
        background: route of clients' side requests; None where they are questions like others.
        max_tokens: of an answer where the request names no limit; None for that of the calibration.
        backends: that answer; None for a model with one engine.
    """

    name: str
    guards: Mapping[str, Guard]
    policy: str
    background: str | None = None
    max_tokens: int | None = None
    backends: BackendPool | None = None

    async def ask(self, key: str, guard: Guard, ask: Callable[[Guard], Awaitable[_T]]) -> _T:
        """Make a guarded call: with the guard, or where the model has back ends with that of one that can answer.

        Args:
            key: of prompts that begin alike.
            guard: one of this model's, whose policy decides.
            ask: the call.
        """
        if self.backends is None:
            return await ask(guard)
        policy = next(name for name, each in self.guards.items() if each is guard)
        return await self.backends.ask(key, policy, ask)

    def guard(self, policy: str | None) -> Guard:
        """Return the guard with a policy (None: the default).

        Raises:
            RequestError: the model has no such policy.
        """
        name = self.policy if policy is None else policy
        if name not in self.guards:
            raise RequestError(
                f"The model '{self.name}' has no policy '{name:.60}' here",
                fix=did_you_mean(name, self.guards),
                code="policy_not_found",
                param="guard.policy",
            )
        return self.guards[name]


@dataclass(frozen=True, slots=True)
class ModelRoute:
    """The model that answers a request, and the rules that decide.

    Attributes:
        model: the model.
        guard: the guard of the model with the policy.
        route: the section of the policy, or None.
    """

    model: ServedModel
    guard: Guard
    route: str | None

    @property
    def id(self) -> str:
        """The model's id as ``/v1/models`` lists it."""
        return self.model.name if self.route is None else f"{self.model.name}:{self.route}"


class ServedModels:
    """All models of a server."""

    def __init__(self, models: Mapping[str, ServedModel]) -> None:
        self._models = dict(models)

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def targets(self) -> Iterator[ModelRoute]:
        """Yield each model with each route of its own policy, and without one."""
        for model in self:
            guard = model.guard(None)
            for route in (None, *guard.policy.routes):
                yield ModelRoute(model, guard, route)

    def find(self, name: str, *, policy: str | None = None, routes: Mapping[str, str | None]) -> ModelRoute:
        """Return the model and the rules for a request.

        Args:
            name: name of the model, optionally followed by a colon and the route.
            policy: name of the policy; None for the default.
            routes: the route by its place in the request; None if the place names none.

        Raises:
            RequestError: the model, policy or route does not exist, or two places name different routes.
        """
        model, named = self._split(name)
        route = _agreed({"model": named, **routes})
        guard = model.guard(policy)
        if route is not None and route not in guard.policy.routes:
            raise RequestError(
                f"The policy '{guard.policy.name}' has no route '{route:.60}'",
                fix=did_you_mean(route, guard.policy.routes) or "It has no routes: leave the route out",
                code="route_not_found",
                param="guard.route",
            )
        return ModelRoute(model, guard, route)

    def _split(self, name: str) -> tuple[ServedModel, str | None]:
        if name in self._models:
            return self._models[name], None
        before, colon, route = name.rpartition(":")
        if colon and before in self._models:
            return self._models[before], route
        raise RequestError(
            f"There is no model '{name:.100}'",
            fix=did_you_mean(before or name, self._models),
            status=404,
            code="model_not_found",
            param="model",
        )


def _agreed(routes: Mapping[str, str | None]) -> str | None:
    """Return the only route that is named."""
    given = {place: route for place, route in routes.items() if route is not None}
    if len(set(given.values())) > 1:
        raise RequestError(
            "The request names two different routes", why=", ".join(given), fix="Name it in one place", param="route"
        )
    return next(iter(given.values()), None)


def model_entry(target: ModelRoute, created: int) -> dict[str, Any]:
    """Return the entry of a model in ``/v1/models``."""
    return {
        "id": target.id,
        "object": "model",
        "created": created,
        "owned_by": "guard",
        "guard": {"policy": target.guard.policy.name, "route": target.route, "policies": sorted(target.model.guards)},
    }
