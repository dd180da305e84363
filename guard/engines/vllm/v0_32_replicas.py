"""Replicas of a model on vLLM 0.32, each with processes of its own; vLLM itself shares requests out among them."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Any

from vllm.engine.arg_utils import EngineArgs
from vllm.v1.engine.async_llm import AsyncLLM

from guard.engines.vllm.settings import VllmSettings
from guard.engines.vllm.v0_32 import ENVIRONMENT, engine_args
from guard.engines.vllm.v0_32_served import ServedStepper


class ReplicaStepper(ServedStepper):
    """vLLM's asynchronous client over several engines, on an event loop of its own."""

    def __init__(self, settings: VllmSettings) -> None:
        """
        Args:
            settings: with the number of replicas.
        """
        os.environ.update(ENVIRONMENT)
        self._own = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._own.run_forever, name="guard-vllm-replicas", daemon=True)
        self._thread.start()
        try:
            client = asyncio.run_coroutine_threadsafe(_started(settings), self._own).result()
        except BaseException:
            self._end_loop()
            raise
        super().__init__(client, self._own)

    def close(self) -> None:
        """End the replicas; a second call has no effect."""
        if self._thread.is_alive():
            super().close()
            self._own.call_soon_threadsafe(self._client.shutdown)
            self._end_loop()

    def _end_loop(self) -> None:
        self._own.call_soon_threadsafe(self._own.stop)
        self._thread.join()


async def _started(settings: VllmSettings) -> Any:
    config = EngineArgs(**engine_args(settings)).create_engine_config()
    return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
