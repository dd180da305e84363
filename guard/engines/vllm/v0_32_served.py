"""What guard knows of ``vllm serve`` 0.32: the options that it understands, and how its running engine is asked.

vLLM's server has its engine in a process of its own, and steps it. guard's requests are added to it, and its workers
say what has become of them.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from vllm.engine.arg_utils import EngineArgs
from vllm.usage.usage_lib import UsageContext

from guard.engines import checkpoint
from guard.engines.request import CANCEL_POLL_S, Request
from guard.engines.vllm.settings import (
    EngineSettings,
    check_architecture,
    check_options,
    check_weights,
    given_options,
)
from guard.engines.vllm.v0_32 import ENVIRONMENT, WORKER, packed, prompt_of, request_names, sampling_params
from guard.engines.vllm.watching import News, end_lost, lost_error, merge_news
from guard.engines.weight_files import weight_files
from guard.errors import EngineError, InputError
from guard.records import CapturePoint

#: Options of vLLM's engine that change nothing that guard reads. Any other is refused.
ENGINE_OPTIONS = frozenset(
    {
        *("model", "served_model_name", "dtype", "max_model_len", "seed", "disable_log_stats", "logging_config"),
        *("max_num_seqs", "max_num_batched_tokens", "enable_prefix_caching", "block_size"),
        *("tensor_parallel_size", "data_parallel_size", "kv_cache_memory_bytes", "gpu_memory_utilization"),
        *("enforce_eager", "optimization_level", "compilation_config", "shutdown_timeout"),
    }
)

#: Options of vLLM's HTTP server that leave its answers as they are. Any other is refused.
SERVER_OPTIONS = frozenset(
    {
        *("host", "port", "root_path", "uvicorn_log_level", "disable_uvicorn_access_log", "enable_request_id_headers"),
        *("disable_access_log_for_endpoints", "disable_fastapi_docs", "h11_max_incomplete_event_size"),
        *("allow_credentials", "allowed_origins", "allowed_methods", "allowed_headers", "h11_max_header_count"),
        *("ssl_keyfile", "ssl_certfile", "ssl_ca_certs", "enable_ssl_refresh", "ssl_cert_reqs", "ssl_ciphers"),
    }
)

#: Seconds in which vLLM's workers answer guard.
_ANSWERS_S = 60.0


def prepare(capture_point: Callable[[], CapturePoint]) -> None:
    """Let every engine that this process configures keep its layers' outputs for guard.

    Args:
        capture_point: says where activations are read; called once an engine is configured.
    """
    os.environ.update(ENVIRONMENT)
    configure = EngineArgs.create_engine_config

    def create_engine_config(self: Any, usage_context: Any = None, *args: Any, **options: Any) -> Any:
        if self.worker_cls != WORKER:  # guard's own engine has set all this
            _check_use(usage_context)
            check_options("vLLM's engine", given_options(self, type(self)(model=self.model)), ENGINE_OPTIONS)
            _check_model(Path(self.model))
            _set_up(self, capture_point())
        return configure(self, usage_context, *args, **options)

    EngineArgs.create_engine_config = create_engine_config


def check_server_options(args: Any) -> None:
    """Refuse options of vLLM's HTTP server that guard does not understand.

    Args:
        args: of the command line.

    Raises:
        InputError: names them.
    """
    from vllm.entrypoints.launchers.cli_args import FrontendArgs  # workers, too, import this module, and have no server

    check_options("vLLM's server", given_options(args, FrontendArgs()), SERVER_OPTIONS)


def settings_of(client: Any) -> EngineSettings:
    """Return what a running vLLM was started with."""
    config = client.vllm_config
    return EngineSettings(
        folder=Path(config.model_config.model),
        capture_point=config.additional_config["guard"],
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        context_tokens=config.model_config.max_model_len,
        slots=config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size,
    )


class ServedStepper:
    """vLLM's running server in place of an engine of guard's own; its steps are vLLM's."""

    def __init__(self, client: Any, loop: asyncio.AbstractEventLoop) -> None:
        """
        Args:
            client: vLLM's engine client.
            loop: on which it runs.
        """
        self._client, self._loop = client, loop
        self._names = request_names()
        self._running: dict[str, Future[None]] = {}
        self._stepped = threading.Event()
        self.dtype = settings_of(client).dtype

    def begin(self, requests: Sequence[Request]) -> list[str]:
        """Put requests in; return a key for each."""
        named = {next(self._names): request for request in requests}
        self._ask("guard_begin", packed(named))
        for name, request in named.items():
            self._running[name] = asyncio.run_coroutine_threadsafe(self._follow(name, request), self._loop)
        return [*named]

    def step(self) -> Mapping[str, News]:
        """Wait for vLLM's next step; return what has become of each request."""
        self._stepped.wait(CANCEL_POLL_S)
        self._stepped.clear()
        ended = {name: _why(future) for name, future in self._running.items() if future.done()}
        replies = [pickle.loads(reply) for reply in self._ask("guard_news")]  # noqa: S301 - of guard's own workers
        news = end_lost(merge_news(replies), ended)
        self.drop([name for name, each in news.items() if each.is_last])
        return news

    def drop(self, keys: Sequence[str]) -> None:
        """End requests, complete or not, so that nothing of them stays in the workers."""
        running = [name for name in keys if name in self._running]
        for name in running:
            self._running.pop(name).cancel()
        if running:
            self._ask("guard_drop", running)

    def watched(self) -> int:
        """Return how many requests the workers hold anything of."""
        return max(map(int, self._ask("guard_watched")))

    def close(self) -> None:
        """End guard's requests; vLLM itself keeps running."""
        for future in self._running.values():
            future.cancel()

    async def _follow(self, name: str, request: Request) -> None:
        """Wait for each of an answer's steps."""
        try:
            async for _ in self._client.generate(cast("Any", prompt_of(request)), sampling_params(request), name):
                self._stepped.set()
        finally:
            self._stepped.set()

    def _ask(self, method: str, *args: Any) -> list[Any]:
        """Call a method of every worker of every replica; return what the first worker of each replica says.

        The client's own ``collective_rpc`` returns what the first replica says.
        """
        core = self._client.engine_core
        call: Coroutine[Any, Any, list[list[Any]]] = core.call_utility_all_async(
            "collective_rpc", method, None, args, None
        )
        replies = asyncio.run_coroutine_threadsafe(call, self._loop).result(_ANSWERS_S)
        return [workers[0] for workers in replies]


def _why(future: Future[None]) -> Exception:
    """Return the error of a request that vLLM has ended and guard has not."""
    error = None if future.cancelled() else future.exception()
    if error is None:
        return lost_error()
    return EngineError("vLLM refused a request", why=f"{type(error).__name__}: {error}"[:300])


def _check_use(context: Any) -> None:
    if context is not UsageContext.OPENAI_API_SERVER:
        raise InputError(
            "With VLLM_PLUGINS=guard, vLLM runs as a server only",
            why="other uses would answer past guard",
            fix="Use vllm serve, or take guard out of VLLM_PLUGINS",
        )


def _check_model(folder: Path) -> None:
    """Refuse a model whose layers or weights guard would not know."""
    read = checkpoint.read_settings(folder)
    check_architecture(read.config)
    check_weights(folder, weight_files(folder))


def _set_up(engine: Any, capture_point: CapturePoint) -> None:
    engine.worker_cls = WORKER
    engine.async_scheduling = False
    engine.enable_chunked_prefill = True
    engine.load_format = "safetensors"
    engine.distributed_executor_backend = "mp"
    engine.additional_config = {"guard": capture_point}
