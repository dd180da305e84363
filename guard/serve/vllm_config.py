"""The configuration of a guarded ``vllm serve``: ``GUARD_CONFIG`` names a file of ``guard serve`` with one model."""

from __future__ import annotations

import os
from typing import Any

from guard.errors import InputError
from guard.records import CapturePoint
from guard.scoring.provenance import Binding
from guard.scoring.scorer import load_scorer
from guard.serve.config import ListenSection, ModelSection, ServeConfig, load_config

ENVIRONMENT = "GUARD_CONFIG"

#: What vLLM's command line says, by where it would stand in the file.
_OF_VLLM = {
    "listen": "--host and --port",
    "metrics": "nothing: its /metrics has guard's, too, and needs no key",
    "model": "its first argument",
    "engine_options": "its own options",
    "backends": "nothing: it has one engine",
}

_EMPTY = ServeConfig(version=1, models={"model": ModelSection()})


def read_config() -> ServeConfig:
    """Read the file that ``GUARD_CONFIG`` names.

    Raises:
        InputError: it names none, or one that does not fit a server with one engine of vLLM's.
        PolicyError: it cannot be read, or is invalid.
    """
    path = os.environ.get(ENVIRONMENT)
    if not path:
        raise InputError(
            f"VLLM_PLUGINS names guard, and {ENVIRONMENT} names no configuration",
            why="without policy and scorer, answers would not be guarded",
            fix=f"Set {ENVIRONMENT} to a file of guard serve with one model, or take guard out of VLLM_PLUGINS",
        )
    config = load_config(path)
    if len(config.models) != 1:
        raise InputError(f"{path} has {len(config.models)} models, and vllm serve has one", fix="Keep one")
    (model,) = config.models.values()
    for part, default in ((config, _EMPTY), (model, ModelSection())):
        for name in _OF_VLLM.keys() & type(part).model_fields:
            if getattr(part, name) != getattr(default, name):
                raise InputError(f"{path} sets '{name}'", why=f"vllm serve has {_OF_VLLM[name]}", fix="Leave it out")
    _check_model(path, model)
    return config


def _check_model(path: str, model: ModelSection) -> None:
    if model.engine not in (None, "vllm"):
        raise InputError(f"{path} has the engine '{model.engine}'", why="vllm serve answers", fix="Leave it out")
    if model.scorer is None:
        raise InputError(
            f"{path} names no scorer",
            fix="Fit one: guard calibrate --engine vllm --model MODEL --data QUESTIONS.jsonl --out scorer.json",
        )


def scorer_binding() -> Binding:
    """Return what the scorer is bound to; errors as for `read_config`."""
    (model,) = read_config().models.values()
    assert model.scorer is not None
    return load_scorer(model.scorer).artefact.binding


def capture_point() -> CapturePoint:
    """Return where the scorer reads activations; errors as for `read_config`."""
    return scorer_binding().capture_point


def config_for(args: Any) -> ServeConfig:
    """Return the configuration with the address of vLLM's command line.

    Args:
        args: of the command line.

    Raises:
        InputError: the server has names for the model that are not the file's; and as for `read_config`.
    """
    config = read_config()
    (name,) = config.models
    if args.served_model_name not in (None, name, [name]):
        raise InputError(
            f"--served-model-name is not the model's name in {os.environ[ENVIRONMENT]}",
            fix=f"Leave it out: clients write '{name}'",
        )
    # Without --host, vLLM listens on every address.
    listen = ListenSection(host=args.host or "0.0.0.0", port=args.port)
    return config.model_copy(update={"listen": listen})
