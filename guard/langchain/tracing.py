"""Tags, metadata and names of the guard's own runs and events in traces.

They are not inherited: the runs inside a guarded chain keep their own tags and metadata.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config

from guard.policy.policy import Policy
from guard.records import Action
from guard.runtime.steps import Step

#: Tag of the guard's runs and events; events also have a tag for their action, such as ``guard:accept``.
TAG = "guard"

#: Names of the custom events of a guarded call.
DECISION_EVENT = "guard_decision"
RETRACTED_EVENT = "guard_retracted"


def marked_run(config: RunnableConfig | None, policy: Policy, route: str | None) -> RunnableConfig:
    """Return the config of a guarded run, with its policy, mode and route in the traces."""
    config = ensure_config(config)
    manager = get_callback_manager_for_config(config)
    manager.add_tags([TAG], inherit=False)
    metadata = {"guard_policy": policy.name, "guard_mode": policy.mode}
    manager.add_metadata(metadata if route is None else {**metadata, "guard_route": route}, inherit=False)
    return {**config, "callbacks": manager}  # not by patch_config, which would drop the run's name and id


def marked_event(config: RunnableConfig, action: Action) -> RunnableConfig:
    """Return the config for the event of a decision."""
    return {**config, "tags": [*(config.get("tags") or ()), TAG, f"{TAG}:{action}"]}


def event_step(name: str, event: dict[str, Any], config: RunnableConfig) -> Step:
    """Send an event to the callbacks of a config."""
    return Step(
        partial(dispatch_custom_event, name, event, config=config),
        partial(adispatch_custom_event, name, event, config=config),
    )


def escalation_metadata(config: RunnableConfig) -> dict[str, str | int | float | bool | None]:
    """Return the plain values of a run's metadata, without those that LangChain adds itself."""
    return {
        key: value
        for key, value in (config.get("metadata") or {}).items()
        if (value is None or isinstance(value, str | int | float | bool)) and not key.startswith(_OWN_PREFIXES)
    }


#: Prefixes of the keys that LangChain adds.
_OWN_PREFIXES = ("__", "langgraph_", "checkpoint_", "ls_", "lc_")
