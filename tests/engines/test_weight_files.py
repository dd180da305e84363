"""The weights that are hashed are the weights that are loaded, and no setting of a folder leads elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.engines.weight_files import refuse_redirection, weight_files
from guard.errors import ModelFileError


def write(folder: Path, *names: str, index: str | None = None, shards: tuple[str, ...] = ()) -> Path:
    for name in names:
        (folder / name).write_bytes(b"weights")
    if index is not None:
        content = {"weight_map": {f"layer.{number}": shard for number, shard in enumerate(shards)}}
        (folder / index).write_text(json.dumps(content))
    return folder


def test_files_are_those_that_transformers_prefers_and_no_others(tmp_path: Path) -> None:
    shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    write(tmp_path, "pytorch_model.bin", "decoy.safetensors", *shards)
    assert [file.name for file in weight_files(tmp_path)] == ["pytorch_model.bin"]
    write(tmp_path, index="model.safetensors.index.json", shards=(*reversed(shards), shards[0]))
    assert [file.name for file in weight_files(tmp_path)] == list(shards)
    write(tmp_path, "model.safetensors")
    assert [file.name for file in weight_files(tmp_path)] == ["model.safetensors"]


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "sub/model.safetensors", "", ".."])
def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, shard: str) -> None:
    write(tmp_path, "decoy.safetensors", index="model.safetensors.index.json", shards=("decoy.safetensors", shard))
    with pytest.raises(ModelFileError, match="names weights outside of its folder"):
        weight_files(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 5}}'])
def test_an_index_that_is_none_is_one_clear_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ModelFileError, match="cannot be read"):
        weight_files(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"transformers_weights": "sub/other.safetensors"}, "names a weight file of its own"),
        ({"attn_implementation": "someone/kernel"}, "names code on a hub.*someone/kernel"),
        ({"_attn_implementation": {"text_config": "someone/kernel@v1"}}, "names code on a hub"),
        ({"text_config": {"_experts_implementation": "someone/kernel:call"}}, "names code on a hub"),
        ([], "is not an object"),
    ],
)
def test_settings_that_lead_to_other_weights_or_to_code_are_refused(tmp_path: Path, config: Any, words: str) -> None:
    with pytest.raises(ModelFileError, match=words):
        refuse_redirection(tmp_path, config)


def test_an_adapter_is_refused_and_ordinary_settings_are_not(tmp_path: Path) -> None:
    refuse_redirection(tmp_path, {"_attn_implementation": "sdpa", "_name_or_path": "org/model", "vocab_size": 5})
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelFileError, match=r"holds an adapter.*merge_and_unload"):
        refuse_redirection(tmp_path, {})


# -- on real folders -----------------------------------------------------------------------------


def _bin_beside_a_decoy(folder: Path, other: Path) -> None:
    import torch
    from safetensors.torch import load_file

    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    torch.save(load_file(other / "model.safetensors"), folder / "pytorch_model.bin")


def _index_to_another_folder(folder: Path, other: Path) -> None:
    from safetensors import safe_open

    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    with safe_open(other / "model.safetensors", "pt") as file:
        names = dict.fromkeys(file.keys(), "../other/model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def _named_in_the_settings(folder: Path, other: Path) -> None:
    (folder / "sub").mkdir()
    shutil.copy(other / "model.safetensors", folder / "sub" / "other.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "transformers_weights": "sub/other.safetensors"}))


@pytest.mark.torch
@pytest.mark.parametrize("swap", [_bin_beside_a_decoy, _index_to_another_folder, _named_in_the_settings])
def test_other_weights_are_never_loaded_under_the_hash_of_these(
    tmp_path: Path, swap: Callable[[Path, Path], None]
) -> None:
    """Else a scorer or a certificate that is bound to the one would hold for the other."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tiny_models import byte_tokenizer, tiny_model

    from guard.engines.transformers import TransformersEngine

    folder, other = tmp_path / "model", tmp_path / "other"
    for place, size in ((folder, 64), (other, 64)):
        model = tiny_model("llama", intermediate_size=size)
        if place is other:
            model.get_output_embeddings().weight.data.add_(1.0)
        model.save_pretrained(place)
        byte_tokenizer().save_pretrained(place)
    own = TransformersEngine.load(folder).model.weights_sha256
    swap(folder, other)
    try:
        loaded = TransformersEngine.load(folder).model.weights_sha256
    except ModelFileError:
        return
    assert loaded != own
