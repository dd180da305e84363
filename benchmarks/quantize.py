"""Make other precisions of a GGUF by llama.cpp's own quantizer: what `guard evaluate --shift` compares.

    python benchmarks/quantize.py OUT_FOLDER                   # of the embedded SmolLM2
    python benchmarks/quantize.py OUT_FOLDER --model other.gguf --types Q8_0 Q4_K_M

All files are made from the same weights: those of the given file, dequantised to float32 first where
they are not floats. Rows that a K-quant's blocks of 256 do not divide (SmolLM2's width is 576, Gemma's
640) fall back to a format with blocks of 32; what a file holds in the end is printed.
"""

from __future__ import annotations

import argparse
import ctypes
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import llama_cpp

from guard.engines import embedded_model
from guard.engines.ggml_types import FILE_TYPES
from guard.engines.gguf import read_gguf

TYPES = ("Q8_0", "Q6_K", "Q4_K_M", "Q4_1", "Q3_K_M", "Q2_K")
_NUMBERS = {name: number for number, name in FILE_TYPES.items()}


def quantize(source: Path, target: Path, file_type: str) -> None:
    """Write the weights of one file in another format; a file that is there is kept."""
    if target.exists():
        return
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.allow_requantize = _NUMBERS[file_type], os.cpu_count() or 1, True
    scratch = target.with_suffix(".part")
    failed = llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(scratch), ctypes.byref(settings))
    if failed:
        raise SystemExit(f"llama.cpp could not make {target.name} of {source}")
    scratch.replace(target)


def precisions(model: Path, folder: Path, types: Sequence[str]) -> list[Path]:
    """Files of these types in the folder, made from one float32 copy."""
    folder.mkdir(parents=True, exist_ok=True)
    name = model.stem.removesuffix(f".{read_gguf(model).quantization}")
    floats = folder / f"{name}.F32.gguf"
    quantize(model, floats, "F32")
    files = [folder / f"{name}.{file_type}.gguf" for file_type in types]
    for file, file_type in zip(files, types, strict=True):
        quantize(floats, file, file_type)
    return files


def contents(file: Path) -> str:
    """What the matrices of a file are stored in, commonest first."""
    kinds = Counter(tensor.type for tensor in read_gguf(file).tensors if len(tensor.shape) > 1)
    return ", ".join(f"{kind} x {count}" for kind, count in kinds.most_common())


def main() -> None:
    """Make the files, print what is in them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=None, help="a GGUF; by default the embedded SmolLM2")
    parser.add_argument("--types", nargs="+", choices=sorted(_NUMBERS), default=TYPES)
    asked = parser.parse_args()
    for file in precisions(asked.model or embedded_model(), asked.folder, asked.types):
        print(f"{file}  {file.stat().st_size / 1e6:.0f} MB  {contents(file)}")


if __name__ == "__main__":
    main()
