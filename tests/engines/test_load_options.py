"""How a model is loaded: options that reach llama.cpp, and options that are refused."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp
from tiny_gguf import write_tiny_gguf

from guard.engines import load_engine
from guard.engines.ggml_types import CACHE_TYPES, TENSOR_TYPES
from guard.engines.llama_cpp import LlamaCppEngine
from guard.engines.llama_settings import set_attention
from guard.engines.loading import ONLY_OF
from guard.errors import InputError, ScorerMismatchError
from guard.records import Limits, Prompt
from guard.runtime.guard import Guard
from guard.scoring.scorer import shipped_scorer


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("load-options") / "tiny.gguf")


def context_with(**options: Any) -> Any:
    context = llama_cpp.llama_context_default_params()
    set_attention(context, **{"flash_attention": None, "type_k": "f16", "type_v": "f16", **options})
    return context


def test_flash_attention_is_llama_cpps_choice_unless_it_is_chosen() -> None:
    default = llama_cpp.llama_context_default_params().flash_attn_type
    chosen = [context_with(flash_attention=each).flash_attn_type for each in (None, True, False)]
    assert chosen == [default, llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED]


@pytest.mark.parametrize("name", CACHE_TYPES)
def test_a_cache_type_has_ggmls_number(name: str) -> None:
    context = context_with(type_k=name, type_v=name)
    assert {TENSOR_TYPES[number][0] for number in (context.type_k, context.type_v)} == {name.upper()}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"flash_attention": "on"}, "flash_attention must be True, False or None, got 'on'"),
        ({"type_k": "q8"}, "Unknown type_k 'q8'. Did you mean 'q8_0'"),
        ({"type_v": 8}, "Unknown type_v '8'"),
        ({"type_v": "q8_0", "flash_attention": False}, "type_v 'q8_0' needs flash attention"),
        ({"gpu_layers": -2}, "gpu_layers must be at least -1, got -2"),
        ({"gpu_layers": "all"}, "gpu_layers must be a whole number, got 'all'"),
        ({"threads": True}, "threads must be a whole number, got True"),
        ({"context_tokens": 1.5}, "context_tokens must be a whole number, got 1.5"),
    ],
)
def test_an_option_out_of_its_range_is_refused(tiny_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        load_engine(tiny_path, **options)


@pytest.mark.parametrize("options", [{"flash_attention": True}, {"flash_attention": False}, {"type_k": "f32"}])
def test_a_model_answers_with_each_way_of_attention(tiny_path: Path, options: dict[str, Any]) -> None:
    with load_engine(tiny_path, threads=1, **options) as engine:
        assert engine.generate(Prompt.raw("Hi the"), limits=Limits(max_tokens=4)).completion_tokens == 4


def test_a_coarser_cache_is_part_of_the_quantization(tiny_path: Path) -> None:
    with load_engine(tiny_path, threads=1) as usual, load_engine(tiny_path, threads=1, type_k="f32") as other:
        assert other.model.quantization == f"{usual.model.quantization}, cache f32/f16"


@pytest.mark.model
def test_a_scorer_does_not_fit_a_model_with_a_coarser_cache(smollm2_path: Path) -> None:
    del smollm2_path
    with pytest.raises(ScorerMismatchError, match="cache q8_0/q8_0"):
        Guard.load(policy="shadow", engine_options={"threads": 1, "type_k": "q8_0", "type_v": "q8_0"})


@pytest.mark.model
def test_a_wrapped_llama_keeps_the_cache_type_of_its_owner(smollm2_path: Path) -> None:
    llama = llama_cpp.Llama(str(smollm2_path), n_ctx=256, n_threads=1, type_k=CACHE_TYPES["q8_0"], verbose=False)
    with LlamaCppEngine.wrap(llama) as engine:
        assert engine.model.quantization.endswith(", cache q8_0/f16")
    llama.close()


def test_a_misspelt_option_is_refused_with_the_nearest_one(tiny_path: Path) -> None:
    with pytest.raises(InputError, match=r"llama\.cpp has no option 'gpu_layer'\. Did you mean 'gpu_layers'"):
        load_engine(tiny_path, gpu_layer=3)
    with pytest.raises(InputError, match=r"llama\.cpp has no option 'n_threads'"):
        Guard.load(str(tiny_path), scorer=shipped_scorer(), engine_options={"n_threads": 3})


@pytest.mark.torch
def test_transformers_refuses_a_misspelt_option(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(InputError, match=r"transformers has no option 'devise'\. Did you mean 'device'"):
        load_engine(tmp_path, devise="cpu")


@pytest.mark.parametrize("option", ONLY_OF["llama.cpp"])
def test_transformers_says_what_only_llama_cpp_has(tmp_path: Path, option: str) -> None:
    with pytest.raises(InputError, match=rf"transformers has no option '{option}': only llama\.cpp has it"):
        load_engine(tmp_path, **{option: 1})


def test_llama_cpp_says_what_only_transformers_has(tiny_path: Path) -> None:
    with pytest.raises(InputError, match=r"llama\.cpp has no option 'device': only transformers has it"):
        load_engine(tiny_path, device="cuda:0")


@pytest.mark.torch
def test_the_options_of_one_engine_only_are_listed_whole() -> None:
    pytest.importorskip("transformers")
    from guard.engines.transformers import TransformersEngine

    llama, transformers = (
        set(inspect.signature(each.load).parameters) for each in (LlamaCppEngine, TransformersEngine)
    )
    assert ({*ONLY_OF["llama.cpp"]}, {*ONLY_OF["transformers"]}) == (llama - transformers, transformers - llama)
