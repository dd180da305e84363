"""The route and the policy that a call names, in any of LangChain's ways.

    safe.invoke(question, route="medication")
    safe.invoke(question, config={"configurable": {"route": "medication"}})
    safe.with_config(configurable={"route": "medication"})
    safe.bind(route="medication")

Misspelt names are refused: an ignored route would apply the wrong rules.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config
from langchain_core.runnables.utils import ConfigurableFieldSpec

from guard.errors import InputError
from guard.policy.policy import Policy

#: Names that a call may set.
NAMES = ("route", "policy")

#: Words that a misspelt key is compared with, and the name that each stands for.
_CONFUSED = {
    **dict.fromkeys(("route", "routes", "route_name", "policy_route", ""), "route"),  # "": the key 'guard'
    **dict.fromkeys(("policy", "policies", "policy_name", "policy_file", "policy_path"), "policy"),
}

#: Similarity from which a key counts as a misspelling.
_SIMILAR = 0.8

#: Config specs of a runnable that accepts a route and a policy.
SPECS = (
    ConfigurableFieldSpec(
        id="route", annotation=str | None, name="Route", description="Section of the policy.", default=None
    ),
    ConfigurableFieldSpec(
        id="policy", annotation=Any, name="Policy", description="File, built-in name or Policy.", default=None
    ),
)


@dataclass(frozen=True, slots=True)
class Named:
    """The route and the policy that one call names.

    Attributes:
        route: section of the policy, or None.
        policy: replaces the runnable's own; None keeps that.
    """

    route: str | None = None
    policy: str | Policy | None = None

    def __bool__(self) -> bool:
        return self.route is not None or self.policy is not None

    def changes(self) -> dict[str, Any]:
        """Return the named settings, for a copy of the runnable."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}


def split_options(options: Mapping[str, Any], *, own: Collection[str] = ()) -> tuple[Named, dict[str, Any]]:
    """Split a call's keyword arguments into route and policy, and the rest.

    Args:
        options: keyword arguments of the call.
        own: settings of the runnable that a call cannot change.

    Raises:
        InputError: a misspelt name, or a setting that a call cannot change.
    """
    for name in options:
        if name in own and name not in NAMES:
            raise InputError(f"A call cannot set '{name}'", why="it is a setting of the guarded runnable")
        _refuse_misspelt(name, "keyword argument", taken=())
    rest = {name: value for name, value in options.items() if name not in NAMES}
    return _read(options), rest


def read_config(config: RunnableConfig | None, *, taken: Collection[str] = ()) -> Named:
    """Return what the ``configurable`` part of a call's config names.

    Args:
        config: config of the call; that of the enclosing run is read too, as everywhere in LangChain.
        taken: keys of other runnables, which are never misspellings.

    Raises:
        InputError: a misspelt name.
    """
    return read_mapping(ensure_config(config).get("configurable") or {}, "configurable key", taken=taken)


def read_mapping(given: Mapping[str, Any], kind: str, *, taken: Collection[str] = ()) -> Named:
    """Return what a mapping names; its other keys belong to others.

    Args:
        given: mapping, such as the context of an agent's run.
        kind: kind of its keys, for errors.
        taken: keys of other runnables, which are never misspellings.

    Raises:
        InputError: a misspelt name.
    """
    for key in given:
        _refuse_misspelt(key, kind, taken=taken)
    return _read(given)


def merged(*several: Named) -> Named:
    """Merge what several places name.

    Raises:
        InputError: two places name different values.
    """
    chosen: dict[str, Any] = {}
    for name in NAMES:
        values = [value for one in several if (value := getattr(one, name)) is not None]
        if any(value != values[0] for value in values):
            raise InputError(f"The call names two different values of '{name}'", fix="Name it in one place")
        chosen[name] = values[0] if values else None
    return Named(**chosen)


def _read(given: Mapping[str, Any]) -> Named:
    route, policy = given.get("route"), given.get("policy")
    if route is not None and not isinstance(route, str):
        raise InputError("A route must be a text", why=f"got {type(route).__name__}")
    return Named(route, policy)


def _refuse_misspelt(key: Any, kind: str, *, taken: Collection[str]) -> None:
    if key in NAMES or key in taken or not isinstance(key, str):
        return
    plain = key.casefold().removeprefix("guard").strip("_-.: ")
    near = difflib.get_close_matches(plain, _CONFUSED, n=1, cutoff=_SIMILAR)
    if near:
        raise InputError(
            f"There is no {kind} '{key:.40}'",
            why="a misspelt route or policy would be ignored",
            fix=f"Did you mean '{_CONFUSED[near[0]]}'? A key that the chain declares (config_specs) passes",
        )
