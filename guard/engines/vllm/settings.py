"""How a model is loaded on vLLM: what guard sets, whatever the version. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from guard.checked import real_number
from guard.errors import InputError, ModelFileError, UnsupportedArchitectureError, did_you_mean
from guard.records import CapturePoint

#: Requests at the same time.
DEFAULT_SLOTS = 32
#: Tokens of one step, of all requests together. Layers' outputs of all of them are kept until the step ends.
DEFAULT_BATCH_TOKENS = 2048

#: Architectures whose decoder in vLLM hands over its MLP's output as transformers' module gives it, by their names in
#: ``config.json``. Others put a norm or a factor between.
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")

#: What vLLM calls a type, and how many bytes a number of it takes in the cache.
DTYPE_BYTES = {"auto": 2, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What guard needs to know of a vLLM, whoever has started it.

    Attributes:
        folder: of the model.
        capture_point: where activations are read.
        dtype: of the weights; ``auto`` takes the checkpoint's.
        context_tokens: of prompt and answer together.
        slots: requests at the same time, on all replicas together.
    """

    folder: Path
    capture_point: CapturePoint
    dtype: str
    context_tokens: int
    slots: int


@dataclass(frozen=True, slots=True)
class VllmSettings(EngineSettings):
    """What guard starts vLLM with.

    Attributes:
        batch_tokens: of one step.
        tensor_parallel: workers that share each layer.
        data_parallel: replicas of the model, each with workers of its own.
        cache_bytes: of the key-value cache, for each worker; None leaves it to ``gpu_memory``.
        gpu_memory: share of a device's memory that vLLM takes; None leaves it to vLLM.
        prefix_caching: whether prompts share what they have in common.
        eager: whether the model runs without compiled graphs.
    """

    batch_tokens: int
    tensor_parallel: int
    data_parallel: int
    cache_bytes: int | None
    gpu_memory: float | None
    prefix_caching: bool
    eager: bool


def check_architecture(config: Any) -> None:
    """Refuse a model whose layers vLLM does not hand over as transformers gives them.

    Args:
        config: of transformers.

    Raises:
        UnsupportedArchitectureError: the text names those that can be used.
    """
    named = getattr(config, "architectures", None) or ["none"]
    if named[0] not in ARCHITECTURES:
        raise UnsupportedArchitectureError(
            f"guard does not read the layers of '{named[0]}' on vLLM",
            why=f"it knows those of {', '.join(ARCHITECTURES)}",
            fix="Use engine='transformers' for this model",
        )


def check_options(of: str, given: Iterable[str], known: Container[str]) -> None:
    """Refuse options that guard does not understand, since answers might differ from what it scores.

    Args:
        of: what has the options.
        given: their names.
        known: names of those that guard understands.

    Raises:
        InputError: names the others.

    Examples:
        >>> check_options("vLLM's engine", ["dtype", "lora_modules"], {"dtype"})
        Traceback (most recent call last):
        guard.errors.InputError: guard does not understand these options of vLLM's engine: --lora-modules. ...
    """
    others = [f"--{name.replace('_', '-')}" for name in given if name not in known]
    if others:
        raise InputError(
            f"guard does not understand these options of {of}: {', '.join(others)}",
            why="answers might be others than those that it scores",
            fix="Leave them out, or take guard out of VLLM_PLUGINS",
        )


def given_options(options: Any, defaults: Any) -> list[str]:
    """Return the names of options that differ from their defaults.

    Args:
        options: of a command line, where None and an empty text stand for what was not given; missing ones were not.
        defaults: a dataclass with all options.
    """
    names = [field.name for field in fields(defaults)]
    values = {name: getattr(options, name, None) for name in names}
    return [name for name in names if values[name] not in (None, "") and values[name] != getattr(defaults, name)]


def check_dtype(dtype: str) -> str:
    """Return a dtype that vLLM takes.

    Raises:
        InputError: it is another one.

    Examples:
        >>> check_dtype("float32")
        'float32'
    """
    if dtype not in DTYPE_BYTES:
        raise InputError(f"There is no dtype '{dtype}' for vllm", fix=did_you_mean(str(dtype), DTYPE_BYTES))
    return dtype


def check_share(name: str, value: float) -> float:
    """Return a share above 0 and at most 1.

    Raises:
        InputError: it is none.

    Examples:
        >>> check_share("gpu_memory", 0.5)
        0.5
    """
    share = real_number(name, value)
    if not 0 < share <= 1:
        raise InputError(f"{name} must be above 0 and at most 1, got {share:g}")
    return share


def check_weights(folder: Path, hashed: list[Path]) -> None:
    """Refuse a folder from which vLLM might load other weights than those that are hashed.

    Raises:
        ModelFileError: it has other files of weights beside them, or none in safetensors.
    """
    beside = sorted(set(folder.glob("*.safetensors")) - set(hashed))
    if beside:
        raise ModelFileError(
            f"{folder} has weights that belong to no model in it",
            why=f"vLLM would load {beside[0].name}, too",
            fix="Move the file away",
        )
    if not all(file.suffix == ".safetensors" for file in hashed):
        raise ModelFileError(f"{folder} has no weights in safetensors", fix="Save them with save_pretrained")


def cache_bytes(config: Any, tokens: int, dtype: str) -> int:
    """Return the bytes of keys and values of some tokens.

    Args:
        config: of transformers, for text.
        tokens: of all requests together.
        dtype: of the weights.

    Examples:
        >>> from types import SimpleNamespace
        >>> heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
        >>> config = SimpleNamespace(num_hidden_layers=30, hidden_size=576, **heads)
        >>> cache_bytes(config, 1000, "float32")  # 30 layers x 2 x 3 heads x 64 numbers x 4 bytes each
        46080000
    """
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(tokens * config.num_hidden_layers * 2 * heads * width * DTYPE_BYTES[dtype])
