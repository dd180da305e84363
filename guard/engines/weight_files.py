"""Which files of a Hugging Face model folder hold its weights, and what in it would lead elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from guard.errors import ModelFileError

#: Where transformers looks for weights, in this order; each may come in shards with an index.
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads a model folder's weights from, in its own order of preference.

    The hash of exactly these binds scorers and certificates, so that no file beside them can stand for them.

    Raises:
        ModelFileError: there are none, or an index names a file outside of the folder.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(index)
    raise ModelFileError(f"{folder} has no weights", why=f"there is none of {', '.join(_WEIGHTS)}, whole or in shards")


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name or name in ("", "..")]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = type(error).__name__
        raise ModelFileError(f"{index} cannot be read", why=why, fix="Fetch the model again") from error
    if outside:
        raise ModelFileError(f"{index} names weights outside of its folder", why=f"'{outside[0]:.100}'")
    return [index.with_name(name) for name in names]


def refuse_redirection(folder: Path, config: Any) -> None:
    """Check that a folder's settings name no weights outside of it and no code.

    Args:
        folder: of the model.
        config: content of its ``config.json``.

    Raises:
        ModelFileError: they do.
    """
    if not isinstance(config, dict):
        raise ModelFileError(f"{folder} cannot be read as a model", why="config.json is not an object")
    if config.get("transformers_weights") is not None:
        raise ModelFileError(f"{folder / 'config.json'} names a weight file of its own", fix=f"Rename it {_WEIGHTS[0]}")
    if (folder / "adapter_config.json").exists():
        raise ModelFileError(
            f"{folder} holds an adapter",
            why="its base model is in another place, where no scorer is bound to it",
            fix="Merge the two (merge_and_unload in PEFT) and save the result",
        )
    if kernel := _hub_kernel(config):
        raise ModelFileError(
            f"{folder / 'config.json'} names code on a hub", why=f"'{kernel:.100}'", fix="Remove the setting"
        )


def _hub_kernel(settings: Any) -> str | None:
    """Return the kernel that settings such as ``attn_implementation`` name by its repository; parts have their own."""
    if not isinstance(settings, dict):
        return None
    for key, value in settings.items():
        named = [value, *value.values()] if isinstance(value, dict) else [value]
        found = [each for each in named if isinstance(each, str) and "/" in each]
        if key.endswith("_implementation") and found:
            return found[0]
        if inner := _hub_kernel(value):
            return inner
    return None
