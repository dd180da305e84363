"""The embedded model as a model folder of transformers, its weights dequantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from embedded_model import smollm2_file


def export_smollm2(place: Path) -> Path:
    """Write the embedded model's weights, tokenizer and settings into a folder; return it."""
    file = smollm2_file()
    source: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    read = transformers.AutoModelForCausalLM.from_pretrained(file.parent, dtype="float32", **source)
    config = read.config
    if hasattr(config, "quantization_config"):  # transformers refuses to save what was quantized once
        del config.quantization_config
    model = transformers.AutoModelForCausalLM.from_config(config, dtype="float32")
    model.load_state_dict(read.state_dict())
    model.save_pretrained(place)
    transformers.AutoTokenizer.from_pretrained(file.parent, **source).save_pretrained(place)
    return place
