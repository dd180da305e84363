"""The route and the policy that one call names, whichever way LangChain has for it.

    safe.invoke(question, route="medication")
    safe.invoke(question, config={"configurable": {"route": "medication"}})
    safe.with_config(configurable={"route": "medication"})
    safe.bind(route="medication")

A name that is misspelt is refused. A route that is ignored would answer under the wrong rules.
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

#: What a call may name.
NAMES = ("route", "policy")

#: What a misspelt key is compared with, and the name that was meant.
_CONFUSED = {"route": "route", "routes": "route", "policy": "policy", "policies": "policy"}

#: A key that is this similar to one of ours is taken for a misspelling of it.
_SIMILAR = 0.8

#: What `config_schema` shows of a runnable that takes a route and a policy.
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
    """What one call names.

    Attributes:
        route: a section of the policy; None where the call names none.
        policy: in place of the runnable's own; None where the call names none.
    """

    route: str | None = None
    policy: str | Policy | None = None

    def __bool__(self) -> bool:
        return self.route is not None or self.policy is not None

    def changes(self) -> dict[str, Any]:
        """The named settings, for a copy of the runnable."""
        return {name: getattr(self, name) for name in NAMES if getattr(self, name) is not None}


def split_options(options: Mapping[str, Any], *, own: Collection[str] = ()) -> tuple[Named, dict[str, Any]]:
    """Take route and policy out of a call's keyword arguments.

    Args:
        options: of the call.
        own: settings that are fixed when the runnable is made, so that a call cannot change them.

    Raises:
        InputError: a misspelt name, or a setting that is no call's.
    """
    for name in options:
        if name in own and name not in NAMES:
            raise InputError(f"A call takes no '{name}'", why="it is a setting of the guarded runnable")
        _refuse_misspelt(name, "keyword argument", taken=())
    rest = {name: value for name, value in options.items() if name not in NAMES}
    return _read(options), rest


def read_config(config: RunnableConfig | None, *, taken: Collection[str] = ()) -> Named:
    """What the ``configurable`` part of a call's config names.

    Args:
        config: of the call; that of the run around it is read too, as everywhere in LangChain.
        taken: keys that belong to others, however similar to ours.

    Raises:
        InputError: a misspelt name.
    """
    return read_mapping(ensure_config(config).get("configurable") or {}, "configurable key", taken=taken)


def read_mapping(given: Mapping[str, Any], kind: str, *, taken: Collection[str] = ()) -> Named:
    """What a mapping names, whose other keys belong to others.

    Args:
        given: such as the context of an agent's run.
        kind: of its keys, for errors.
        taken: keys that belong to others, however similar to ours.

    Raises:
        InputError: a misspelt name.
    """
    for key in given:
        _refuse_misspelt(key, kind, taken=taken)
    return _read(given)


def joined(*several: Named) -> Named:
    """One name out of several places.

    Raises:
        InputError: two places name different things.
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
        raise InputError("A route is named by a text", why=f"got {type(route).__name__}")
    return Named(route, policy)


def _refuse_misspelt(key: Any, kind: str, *, taken: Collection[str]) -> None:
    if key in NAMES or key in taken or not isinstance(key, str):
        return
    plain = key.casefold().removeprefix("guard").strip("_- ")
    near = difflib.get_close_matches(plain, _CONFUSED, n=1, cutoff=_SIMILAR)
    if near:
        raise InputError(
            f"There is no {kind} '{key:.40}'",
            why="a route or a policy that is misspelt would be ignored",
            fix=f"Did you mean '{_CONFUSED[near[0]]}'? A key that the chain declares (config_specs) passes",
        )
