"""Hugging Face models: reading from disk, and the properties of a loaded one.

Used by the transformers engine only, which sees to it that torch and transformers are there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from guard.engines.gguf import read_gguf
from guard.engines.layer_names import BLOCK_TEMPLATES, MLP_TEMPLATES, find_layers
from guard.engines.weight_files import refuse_redirection, weight_files
from guard.engines.weights import weights_sha256
from guard.errors import (
    EngineError,
    GuardError,
    InputError,
    ModelFileError,
    OutOfMemoryError,
    UnsupportedArchitectureError,
    did_you_mean,
    missing_extra,
)
from guard.records import CapturePoint

#: The context of a model that says nothing about it, and the most that is taken without being asked for.
DEFAULT_CONTEXT_TOKENS = 4096
MAX_DEFAULT_CONTEXT_TOKENS = 32_768

#: Weights that share a scale in 4-bit quantization on a CPU.
INT4_GROUP = 32
_INT4_ROWS = 16  # the CPU kernel wants a multiple of this

_MAX_LAYERS = 1000

#: What an engine can be asked for, and the type that its other weights then have.
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int4": torch.bfloat16,
}

#: Model types that load and would not be answered or recorded as they should be, and why.
_PICTURES = "its layers of cross-attention run only with a picture, so that they cannot be recorded"
_REFUSED = {"mllama": _PICTURES, "mllama_text_model": _PICTURES}

#: What wrappers (PEFT, torch.compile) put in front of a model's own names.
_WRAPPERS = ("base_model.model.", "_orig_mod.")

#: Where configurations keep the longest input.
_CONTEXT_KEYS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "seq_length", "n_positions")


# -- reading -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that was read from disk.

    Attributes:
        model: in evaluation mode, on its device.
        tokenizer: its tokenizer.
        name: of the folder or the file.
        weights_sha256: of the weight file; of several, of their list with names.
    """

    model: Any
    tokenizer: Any
    name: str
    weights_sha256: str


def read_checkpoint(path: str | Path, *, gguf_file: str | None, dtype: str, device: str | None) -> Checkpoint:
    """Load a model folder or a GGUF file; see `TransformersEngine.load`."""
    if dtype not in _DTYPES:
        raise InputError(f"There is no dtype '{dtype}'", fix=did_you_mean(str(dtype), _DTYPES))
    target = _device(device)
    folder, gguf = _locate(path, gguf_file)
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if gguf is not None:
        read_gguf(gguf)  # a damaged header has one clear error, whatever transformers makes of it
        # Whole, since transformers looks for a bare name in the working directory first.
        source["gguf_file"] = str(gguf.resolve())
    weights = [gguf] if gguf is not None else weight_files(folder)
    with _read_errors(gguf or folder):
        config = _config(folder, source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
        model = _weights(folder, source, config, dtype, target)
    return Checkpoint(
        model=model,
        tokenizer=tokenizer,
        name=gguf.stem if gguf is not None else folder.resolve().name,
        weights_sha256=_files_sha256(weights),
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """A model folder without its weights, for an engine that loads these itself.

    Attributes:
        folder: the model's.
        config: of transformers.
        generation_config: what the folder says of answers; None where it says nothing.
        tokenizer: its tokenizer.
        name: of the folder.
        weights_sha256: as in `Checkpoint`.
    """

    folder: Path
    config: Any
    generation_config: Any
    tokenizer: Any
    name: str
    weights_sha256: str


def read_settings(path: str | Path) -> Settings:
    """Read a model folder's settings and tokenizer, and hash its weights; errors as for `read_checkpoint`."""
    folder, _ = _locate(path, None)
    source: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    weights = weight_files(folder)
    has_generation = (folder / "generation_config.json").is_file()
    with _read_errors(folder):
        generation = transformers.GenerationConfig.from_pretrained(folder, **source) if has_generation else None
        return Settings(
            folder=folder.resolve(),
            config=_config(folder, source).get_text_config(),
            generation_config=generation,
            tokenizer=transformers.AutoTokenizer.from_pretrained(folder, **source),
            name=folder.resolve().name,
            weights_sha256=_files_sha256(weights),
        )


def _device(name: str | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"There is no device '{name}'", why=_why(error), fix="Use cpu or cuda") from error
    return device


def _locate(path: str | Path, gguf_file: str | None) -> tuple[Path, Path | None]:
    """Return the model's folder, and the GGUF file in it that was asked for."""
    place = Path(path).expanduser()
    if place.suffix == ".gguf" and not place.is_dir():
        if gguf_file is not None:
            raise InputError(f"Both {place} and gguf_file '{gguf_file}' name a file", fix="Leave one out")
        return place.parent, place
    if not place.is_dir():
        what = f"{place} is not a folder" if place.exists() else f"There is no folder {place}"
        raise ModelFileError(what, fix="Give the path of a model folder or a .gguf file; guard downloads nothing")
    if gguf_file is not None:
        return place, place / gguf_file
    if not (place / "config.json").is_file():
        found = sorted(file.name for file in place.glob("*.gguf"))
        fix = f"Pass gguf_file, such as '{found[0]}'" if found else "Give the folder that has config.json"
        raise ModelFileError(f"{place} is not a model folder", why="it has no config.json", fix=fix)
    return place, None


def _files_sha256(files: Sequence[Path]) -> str:
    hashes = [weights_sha256(file) for file in files]
    if len(files) == 1:
        return hashes[0]
    return _sha256("".join(f"{digest} {file.name}\n" for digest, file in zip(hashes, files, strict=True)))


def _config(folder: Path, source: Mapping[str, Any]) -> Any:
    """Return the configuration of a decoder-only model that this transformers knows."""
    if "gguf_file" not in source:
        stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        refuse_redirection(folder, stated)
        kind = stated.get("model_type")
        if kind not in transformers.CONFIG_MAPPING:
            raise UnsupportedArchitectureError(
                f"transformers {transformers.__version__} knows no model type '{kind}'",
                fix=did_you_mean(str(kind), transformers.CONFIG_MAPPING.keys()).partition(", ")[0],
            )
    config = transformers.AutoConfig.from_pretrained(folder, **source)
    _check_decoder(config)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if layers > _MAX_LAYERS:  # building them would take hours before the weights are found to be missing
        raise ModelFileError(f"{folder} says that it has {layers} layers", fix="Check its config.json")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedArchitectureError(
            f"'{config.model_type}' is not a language model that answers text",
            fix="Use a decoder-only language model",
        )
    return config


def _check_decoder(config: Any) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(
            f"'{config.model_type}' is an encoder-decoder", fix="Use a decoder-only language model"
        )
    if config.model_type in _REFUSED:
        raise UnsupportedArchitectureError(
            f"'{config.model_type}' is not supported", why=_REFUSED[config.model_type], fix="Use another model"
        )


def _weights(folder: Path, source: Mapping[str, Any], config: Any, dtype: str, device: torch.device) -> Any:
    options: dict[str, Any] = {**source, "config": config, "dtype": _DTYPES[dtype]}
    if dtype == "int4" and device.type != "cpu":
        options |= _bitsandbytes(source, device)
    elif "gguf_file" in source and hasattr(transformers, "GgufConfig"):
        # Else newer versions may fetch kernels that work on the packed weights.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loader: Any = transformers.AutoModelForCausalLM
    model, report = loader.from_pretrained(folder, output_loading_info=True, **options)
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would draw them at random
        raise ModelFileError(
            f"The weights in {folder} lack {len(missing)} tensors",
            why=f"the first is {missing[0]}",
            fix="Check that the weights belong to config.json and are complete",
        )
    if dtype == "int4" and device.type == "cpu":
        _quantize_on_cpu(model)
    elif dtype != "int4":
        model.to(device)
    return model.eval()


def _bitsandbytes(source: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    if device.type != "cuda" or "gguf_file" in source:
        raise EngineError(
            f"int4 on '{device.type}' needs CUDA and a model folder",
            fix="Use device='cpu', or another dtype",
        )
    if find_spec("bitsandbytes") is None:
        raise EngineError("bitsandbytes is not installed", fix="Run: pip install bitsandbytes")
    make: Any = transformers.BitsAndBytesConfig
    settings = make(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    return {"quantization_config": settings, "device_map": {"": device}}


def _quantize_on_cpu(model: Any) -> None:
    """Pack the weights of linear layers into 4 bits, all but the head, as bitsandbytes does."""
    try:
        from torchao.quantization import quantize_
    except ImportError as error:
        raise missing_extra("torchao", "int4") from error
    head = model.get_output_embeddings()
    packed = []

    def wanted(module: Any, name: str) -> bool:
        fits = (
            isinstance(module, torch.nn.Linear)
            and module is not head
            and module.in_features % INT4_GROUP == 0
            and module.out_features % _INT4_ROWS == 0
        )
        if fits:
            packed.append(name)
        return fits

    quantize_(model, _int4_settings(), wanted)
    if not packed:
        raise EngineError(
            "int4 found no layer to pack",
            why=f"the kernel needs widths that are multiples of {INT4_GROUP} and {_INT4_ROWS}",
            fix="Use dtype bfloat16",
        )


def _int4_settings() -> Any:
    """Return the weight-only setting whose kernel runs on a CPU; torchao moved it in 0.17."""
    try:
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig
    except ImportError:
        from torchao.quantization import Int4WeightOnlyConfig

        return Int4WeightOnlyConfig(group_size=INT4_GROUP, int4_packing_format="opaque", set_inductor_config=False)
    return PrototypeInt4WeightOnlyConfig(group_size=INT4_GROUP, set_inductor_config=False)


# -- what a loaded model is --------------------------------------------------------------------


def layer_names(model: Any, capture_point: CapturePoint) -> list[str]:
    """Return names of the modules whose output is recorded, one a layer and capture point.

    Raises:
        UnsupportedArchitectureError: an encoder-decoder, no language modelling head, or unknown names.
    """
    _check_decoder(model.config)
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    found = [name for point in capture_point.split("+") for name in _layers_at(model, point, layers)]
    if model.get_output_embeddings() is None:
        raise UnsupportedArchitectureError(
            f"A {type(model).__name__} has no language modelling head",
            fix="Load it with AutoModelForCausalLM",
        )
    return found


def _layers_at(model: Any, point: str, layers: int | None) -> list[str]:
    names = {_own_name(name): name for name, _ in model.named_modules()}
    if point == "mlp":
        # Experts and a shared MLP beside them are each a part only of what is added to the residual stream.
        split = {name.removesuffix("shared_mlp") for name in names if name.endswith(".shared_mlp")}
        split = {block for block in split if f"{block}block_sparse_moe" in names}
        parts = {f"{block}{part}" for block in split for part in ("shared_mlp", "block_sparse_moe")}
        names = {own: name for own, name in names.items() if own not in parts}
    found = find_layers(names, MLP_TEMPLATES if point == "mlp" else BLOCK_TEMPLATES, layers)
    return [names[name] for name in found]


def _own_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def context_limit(config: Any, asked: int | None) -> int:
    """Return tokens of prompt and answer together; see `TransformersEngine.load`."""
    text = config.get_text_config()
    stated = [getattr(text, key, None) for key in _CONTEXT_KEYS]
    own = next((value for value in stated if isinstance(value, int) and value > 0), None)
    if asked is None:
        return DEFAULT_CONTEXT_TOKENS if own is None else min(own, MAX_DEFAULT_CONTEXT_TOKENS)
    if asked < 1:
        raise InputError(f"context_tokens must be at least 1, got {asked}")
    if own is not None and asked > own:
        raise InputError(f"context_tokens is {asked}, the model was made for {own}", fix="Ask for fewer")
    return asked


def quantization_name(model: Any) -> str:
    """Return the type that the weights are kept in, or the method that quantized them."""
    return packing_name(model.config) or str(next(model.parameters()).dtype).removeprefix("torch.")


def packing_name(config: Any) -> str | None:
    """Return the method that quantized a model's weights; None where none did."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return None
    method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
    return str(getattr(method, "value", method))


def tensors_sha256(model: Any) -> str:
    """Of every tensor's name, type, shape and bytes, in the order of names.

    Raises:
        EngineError: a tensor is not in memory.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        for part, plain in _plain_tensors(name, tensor):
            if plain.device.type == "meta":
                raise EngineError(
                    f"The weights '{part}' are not in memory",
                    why="they cannot be hashed, and a scorer is bound to that hash",
                    fix="Load the model without offloading to disk",
                )
            digest.update(f"{part} {plain.dtype} {tuple(plain.shape)}\n".encode())
            # As bytes, since NumPy has no bfloat16.
            digest.update(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def model_version(model: Any) -> int:
    """Return a number that changes when a parameter is written to, added or replaced, or a hook is."""
    tensors = [(id(each), 0 if each.is_inference() else each._version) for each in model.parameters()]
    hooks = [
        (*module._forward_hooks, *module._forward_pre_hooks, id(module.__dict__.get("forward")))
        for module in model.modules()
    ]
    return hash((*tensors, *hooks))


def _plain_tensors(name: str, tensor: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Return a tensor, or the tensors that a quantized one consists of. Other state (settings) is left out."""
    if hasattr(tensor, "__tensor_flatten__"):
        parts, _ = tensor.__tensor_flatten__()
        for part in sorted(parts):
            yield from _plain_tensors(f"{name}.{part}", getattr(tensor, part))
    elif isinstance(tensor, torch.Tensor):
        yield name, tensor


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


# -- errors ------------------------------------------------------------------------------------


@contextmanager
def run_errors() -> Iterator[None]:
    """Whatever stops a model while it runs, as a guard error."""
    try:
        yield
    except GuardError:
        raise
    except Exception as error:
        if _is_memory(error):
            raise _out_of_memory() from error
        raise EngineError("The model failed in a forward pass", why=_why(error)) from error


@contextmanager
def _read_errors(path: Path) -> Iterator[None]:
    """Whatever stops transformers from reading a model, as a guard error."""
    try:
        yield
    except GuardError:
        raise
    except ImportError as error:
        raise EngineError(f"Loading {path} needs a package that is not installed", why=_why(error)) from error
    except Exception as error:
        if _is_memory(error):
            raise _out_of_memory() from error
        if "architecture" in str(error):
            raise UnsupportedArchitectureError(f"transformers cannot load {path}", why=_why(error)) from error
        raise ModelFileError(
            f"{path} cannot be read as a model",
            why=_why(error),
            fix="Check that all files are complete, or fetch the model again",
        ) from error


def _is_memory(error: Exception) -> bool:
    text = str(error)
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text)
    )


def _out_of_memory() -> OutOfMemoryError:
    return OutOfMemoryError(
        "There is not enough memory for the model and its context",
        fix="Use dtype bfloat16 or int4, a shorter prompt, or a smaller model",
    )


def _why(error: Exception) -> str:
    """Return the first line of a foreign error; some libraries print pages."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]
