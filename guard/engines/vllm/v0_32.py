"""What guard knows of vLLM 0.32, in guard's own process: how its engine is built, asked and stepped.

What runs in its workers is in `guard.engines.vllm.v0_32_worker`.
"""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, cast

from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor import Executor

from guard.engines.request import Request
from guard.engines.vllm.settings import VllmSettings
from guard.engines.vllm.watching import News, Watched, end_lost, lost_error

#: Settings of the process that vLLM reads: nothing is sent anywhere, workers are fresh processes, the first runner, and
#: names of requests with random characters behind them.
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "0",
}

WORKER = "guard.engines.vllm.v0_32_worker.TappedWorker"


class Stepper:
    """vLLM's engine, whose scheduler runs in guard's process and whose workers run in their own."""

    def __init__(self, settings: VllmSettings) -> None:
        os.environ.update(ENVIRONMENT)
        config = EngineArgs(**engine_args(settings)).create_engine_config()
        self._llm = LLMEngine(config, Executor.get_class(config), log_stats=False, multiprocess_mode=False)
        self._names = request_names()
        self._running: set[str] = set()
        self.dtype = str(config.model_config.dtype).removeprefix("torch.")

    def begin(self, requests: Sequence[Request]) -> list[str]:
        """Put requests in; return a key for each."""
        named = {next(self._names): request for request in requests}
        self._running |= named.keys()
        try:
            self._ask("guard_begin", packed(named))
            for name, request in named.items():
                self._llm.add_request(name, cast("Any", prompt_of(request)), sampling_params(request))
        except BaseException:
            self.drop([*named])
            raise
        return [*named]

    def step(self) -> Mapping[str, News]:
        """Make one step for all requests; return what has become of each."""
        finished = {output.request_id for output in self._llm.step() if output.finished}
        news: dict[str, News] = pickle.loads(self._ask("guard_news"))  # noqa: S301 - of our own worker
        news = end_lost(news, {key: lost_error() for key in self._running & finished})
        self.drop([key for key, each in news.items() if each.is_last])
        return news

    def drop(self, keys: Sequence[str]) -> None:
        """End requests, complete or not, so that nothing of them stays in the workers."""
        running = self._running.intersection(keys)
        if running:
            self._running -= running
            self._llm.abort_request([*running])
            self._ask("guard_drop", [*running])

    def watched(self) -> int:
        """Return how many requests the workers hold anything of."""
        return int(self._ask("guard_watched"))

    def close(self) -> None:
        """End the workers; harmless when done twice."""
        self._llm.engine_core.shutdown()

    def _ask(self, method: str, *args: Any) -> Any:
        """Call a method of every worker; return what the first says."""
        return self._llm.collective_rpc(method, args=args)[0]


def runs_on_cpu() -> bool:
    """Return whether this vLLM was built for CPUs."""
    return bool(current_platform.is_cpu())


def engine_args(settings: VllmSettings) -> dict[str, Any]:
    """Return what vLLM's engine is started with."""
    chosen = {
        "model": str(settings.folder),
        "skip_tokenizer_init": True,
        "load_format": "safetensors",
        "dtype": settings.dtype,
        "max_model_len": settings.context_tokens,
        "max_num_seqs": settings.slots,
        "max_num_batched_tokens": settings.batch_tokens,
        "tensor_parallel_size": settings.tensor_parallel,
        "data_parallel_size": settings.data_parallel,
        "kv_cache_memory_bytes": settings.cache_bytes,
        "gpu_memory_utilization": settings.gpu_memory,
        "enforce_eager": settings.eager,
        "enable_prefix_caching": settings.prefix_caching,
    }
    return {
        **{name: value for name, value in chosen.items() if value is not None},
        "distributed_executor_backend": "mp",
        "enable_chunked_prefill": True,
        "async_scheduling": False,
        "worker_cls": WORKER,
        # Part of what vLLM names its compiled graphs by: those of a bare vLLM have other outputs.
        "additional_config": {"guard": settings.capture_point},
    }


def request_names() -> Iterator[str]:
    """Yield names for requests that nobody can guess, who might ask vLLM past guard."""
    yield from (f"{secrets.token_hex(16)}-{number}" for number in count())


def prompt_of(request: Request) -> dict[str, Any]:
    """Return a prompt in vLLM's form."""
    salted = {} if request.prompt.cache_key is None else {"cache_salt": request.prompt.cache_key}
    return {"prompt_token_ids": request.tokens, **salted}


def sampling_params(request: Request) -> SamplingParams:
    """Return how vLLM chooses the tokens of an answer."""
    sampling = request.sampling
    greedy = sampling.is_greedy or request.forced is not None
    return SamplingParams(
        temperature=0.0 if greedy else sampling.temperature,
        top_p=1.0 if greedy else sampling.top_p,
        top_k=0 if greedy else sampling.top_k,
        seed=None if greedy else sampling.seed,
        max_tokens=request.max_tokens,
        ignore_eos=True,  # the workers know guard's ends, and guard ends the request
        detokenize=False,
    )


def packed(requests: Mapping[str, Request]) -> bytes:
    """Return what the workers need to know of some requests, pickled."""
    return pickle.dumps({name: _watched(request) for name, request in requests.items()})


def _watched(request: Request) -> Watched:
    return Watched(
        prompt_end=tuple(request.tokens[-64:]),
        prompt_tokens=len(request.tokens),
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stop=request.limits.stop,
        tools=bool(request.prompt.tools),
        observer=None if request.reader is None else pickle.dumps(request.reader),
        forced=None if request.forced is None else tuple(request.forced),
        response_format=None if request.forced is not None else request.prompt.response_format,
        live=request.on_token is not None,
    )
