"""What guard understands of vLLM and its models, and what it refuses, before vLLM is imported."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from guard.engines.loading import load_engine
from guard.engines.vllm import versions
from guard.engines.vllm.settings import check_architecture, check_options, check_share, check_weights, given_options
from guard.errors import EngineError, InputError, MissingExtraError, ModelFileError, UnsupportedArchitectureError


@pytest.mark.parametrize("found", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.0.dev1+gabc"])
def test_every_build_of_a_known_version_has_its_adapter(found: str) -> None:
    assert versions.adapter_name(found) == "guard.engines.vllm.v0_32"


@pytest.mark.parametrize("found", ["0.31.9", "0.33.0", "1.0.0", "0.3.2"])
def test_another_version_is_refused_with_those_that_are_understood(found: str) -> None:
    with pytest.raises(EngineError, match=rf"vLLM {found} is not understood.*0\.32.*pip install 'vllm==0\.32\.\*'"):
        versions.adapter_name(found)


@pytest.mark.torch
def test_without_vllm_the_engine_names_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(versions, "_DISTRIBUTIONS", ("no-such-vllm",))
    with pytest.raises(MissingExtraError, match=r"pip install 'ilis-guard\[vllm\]'"):
        load_engine(tmp_path, engine="vllm")


@pytest.mark.torch
def test_neither_the_engines_nor_this_one_import_vllm_before_it_is_used() -> None:
    code = "import sys, guard.engines.vllm.engine; assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


@pytest.mark.torch
@pytest.mark.parametrize("option", ["device", "gguf_file", "gpu_layers", "base_url", "tensor_paralel"])
def test_options_of_other_engines_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"The engine vllm has no option '{option}'"):
        load_engine(tmp_path, engine="vllm", **{option: 1})


def test_an_architecture_that_was_not_compared_is_refused() -> None:
    with pytest.raises(UnsupportedArchitectureError, match=r"'Gemma3ForCausalLM' on vLLM.*Qwen3ForCausalLM"):
        check_architecture(SimpleNamespace(architectures=["Gemma3ForCausalLM"]))
    with pytest.raises(UnsupportedArchitectureError, match="'none'"):
        check_architecture(SimpleNamespace())


def test_options_that_are_not_understood_are_refused_by_name() -> None:
    known = {"dtype", "seed"}
    check_options("vLLM's engine", ["dtype"], known)
    with pytest.raises(InputError, match=r"options of vLLM's engine: --lora-modules, --quantization: "):
        check_options("vLLM's engine", ["dtype", "lora_modules", "quantization"], known)


@dataclass
class MadeOptions:
    dtype: str = "auto"
    adapters: bool = False
    template: str | None = None
    origins: list[str] = field(default_factory=lambda: ["*"])


def test_options_are_given_where_they_differ_from_their_defaults() -> None:
    assert given_options(MadeOptions(), MadeOptions()) == []
    assert given_options(MadeOptions("auto", True, "{{ x }}", ["me"]), MadeOptions()) == [
        "adapters",
        "template",
        "origins",
    ]
    written = SimpleNamespace(dtype="", adapters=None, template=None)  # as a command line has what was not given
    assert given_options(written, MadeOptions()) == []


def test_weights_beside_those_that_are_hashed_are_refused(tmp_path: Path) -> None:
    hashed, decoy = tmp_path / "model.safetensors", tmp_path / "other.safetensors"
    hashed.touch()
    check_weights(tmp_path, [hashed])
    decoy.touch()
    with pytest.raises(ModelFileError, match=r"vLLM would load other\.safetensors"):
        check_weights(tmp_path, [hashed])


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="no weights in safetensors"):
        check_weights(tmp_path, [tmp_path / "pytorch_model.bin"])


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan"), True])
def test_a_share_of_memory_is_a_share(share: float) -> None:
    with pytest.raises(InputError, match="gpu_memory must be"):
        check_share("gpu_memory", share)
