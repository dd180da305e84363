"""What a guarded vLLM is started with: every option that guard does not know is refused by its name.

Runs where vLLM is installed (`nox -s vllm`).
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import fields

import needs_vllm  # noqa: F401 - skips this module where vLLM is not installed

# isort: split
import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.launchers.cli_args import FrontendArgs

from guard.engines.vllm import v0_32_served as served
from guard.engines.vllm.settings import check_options, given_options
from guard.errors import InputError

pytestmark = pytest.mark.torch

MODEL = EngineArgs(model="folder")


def is_refused(name: str) -> bool:
    """Whether the option is refused; the message names it."""
    options = EngineArgs(model="folder")
    setattr(options, name, object())
    if name in served.ENGINE_OPTIONS:
        check_options("vLLM's engine", given_options(options, MODEL), served.ENGINE_OPTIONS)
        return False
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
        check_options("vLLM's engine", given_options(options, MODEL), served.ENGINE_OPTIONS)
    return True


def test_every_option_of_the_engine_is_known_or_refused() -> None:
    names = {field.name for field in fields(EngineArgs)}
    assert names >= served.ENGINE_OPTIONS, "a name that vLLM does not have"
    assert {name for name in names if not is_refused(name)} == served.ENGINE_OPTIONS


@pytest.mark.parametrize(
    "name",
    [
        *("pipeline_parallel_size", "enable_lora", "speculative_config", "quantization", "hf_overrides", "tokenizer"),
        *("data_parallel_rank", "data_parallel_external_lb", "_api_process_count", "worker_cls", "load_format"),
        *("logits_processors", "enable_expert_parallel", "kv_cache_dtype", "reasoning_parser"),
    ],
)
def test_options_that_would_change_what_guard_reads_are_not_known(name: str) -> None:
    assert is_refused(name)


def test_every_option_of_the_server_is_known_or_refused() -> None:
    names = {field.name for field in fields(FrontendArgs)}
    assert names >= served.SERVER_OPTIONS, "a name that vLLM does not have"
    for name in names - served.SERVER_OPTIONS:
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
            served.check_server_options(Namespace(**{**vars(FrontendArgs()), name: object()}))
    served.check_server_options(Namespace(**{**vars(FrontendArgs()), "port": 1234}))
