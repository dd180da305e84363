"""What traces show of guarding: tags and metadata of the guard's own runs and events.

They are not handed down, so the runs of a guarded chain have their own tags and metadata and no others.
"""

from __future__ import annotations

from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_callback_manager_for_config

from guard.policy.policy import Policy
from guard.records import Action

#: Tag of the guard's runs and events; events have one for their action too, such as ``guard:accept``.
TAG = "guard"


def marked_run(config: RunnableConfig | None, policy: Policy, route: str | None) -> RunnableConfig:
    """The config of a guarded run, whose traces say by what it is decided."""
    config = ensure_config(config)
    manager = get_callback_manager_for_config(config)
    manager.add_tags([TAG], inherit=False)
    about = {"guard_policy": policy.name, "guard_mode": policy.mode}
    manager.add_metadata(about if route is None else {**about, "guard_route": route}, inherit=False)
    return {**config, "callbacks": manager}  # not by patch_config, which would drop the run's name and id


def marked_event(config: RunnableConfig, action: Action) -> RunnableConfig:
    """The config for the event of a decision."""
    return {**config, "tags": [*(config.get("tags") or ()), TAG, f"{TAG}:{action}"]}


def escalation_metadata(config: RunnableConfig) -> dict[str, str | int | float | bool | None]:
    """The plain values of a run's metadata, without those that LangChain's own machinery puts there."""
    return {
        key: value
        for key, value in (config.get("metadata") or {}).items()
        if (value is None or isinstance(value, str | int | float | bool)) and not key.startswith(_MACHINERY)
    }


#: How the names of such values begin.
_MACHINERY = ("__", "langgraph_", "checkpoint_", "ls_", "lc_")
