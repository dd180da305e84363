"""The engine over vLLM: it tokenizes prompts, vLLM answers them in batches, and vLLM's workers observe the answers."""

from __future__ import annotations

import asyncio
import pickle
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

from guard.checked import checked_choice, whole_number
from guard.engines import checkpoint
from guard.engines.hub_tokenizer import HubTokenEngine, HubTokenizer
from guard.engines.request import Request
from guard.engines.vllm.loop import SteppedLoop
from guard.engines.vllm.settings import (
    DEFAULT_BATCH_TOKENS,
    DEFAULT_SLOTS,
    EngineSettings,
    VllmSettings,
    cache_bytes,
    check_architecture,
    check_dtype,
    check_share,
    check_weights,
)
from guard.engines.vllm.versions import load_adapter, load_replica_adapter, load_served_adapter
from guard.engines.weight_files import weight_files
from guard.errors import EngineError, GuardError, InputError
from guard.records import CapturePoint, ModelInfo

#: Contexts that the cache of a CPU has room for, where nobody says how many tokens.
_CONTEXTS_ON_CPU = 8


class VllmEngine(HubTokenEngine):
    """A Hugging Face model on vLLM. Build one with `load`."""

    def __init__(
        self, stepper: Any, settings: EngineSettings, read: checkpoint.Settings, template_date: str | None
    ) -> None:
        """
        Args:
            stepper: vLLM, by an adapter.
            settings: what it was loaded with.
            read: the model's settings and tokenizer.
            template_date: what a chat template that writes the date writes.
        """
        loop = SteppedLoop(stepper, settings.slots)
        super().__init__(loop)
        self._stepper, self._slots = stepper, settings.slots
        self.capture_point = settings.capture_point
        size = int(read.config.vocab_size)
        self._tokens = HubTokenizer(
            read.tokenizer, read, name=read.name, template_date=template_date, rows=lambda: size
        )
        self._info = _describe(read, settings, self._tokens, stepper.dtype)
        # An engine that nobody uses any more leaves no workers behind.
        weakref.finalize(self, loop.close, stepper.close)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "auto",
        context_tokens: int | None = None,
        capture_point: CapturePoint = "mlp",
        template_date: str | None = None,
        slots: int = DEFAULT_SLOTS,
        cache_tokens: int | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        gpu_memory: float | None = None,
        prefix_caching: bool = True,
        eager: bool = False,
    ) -> VllmEngine:
        """Load a model folder on vLLM, whose workers are processes of their own; nothing is ever downloaded.

        A program that loads one needs ``if __name__ == "__main__":``, since workers import it.

        Args:
            path: a model folder with weights in safetensors.
            dtype: ``auto`` (the checkpoint's), ``bfloat16``, ``float16`` or ``float32``.
            context_tokens: tokens of prompt and answer together; by default as for transformers.
            capture_point: where activations are read.
            template_date: what a chat template that writes the date writes, as 2026-11-25; by default today.
            slots: number of concurrent requests, on all replicas together.
            cache_tokens: token capacity that the requests of a replica share; by default, what fits into
                ``gpu_memory`` on a GPU, and eight times the context on a CPU.
            batch_tokens: largest number of tokens of one step, over all requests of a replica.
            tensor_parallel: workers that share each layer.
            data_parallel: replicas of the model, among which vLLM shares requests out.
            gpu_memory: share of a GPU's memory that vLLM takes; by default vLLM's own.
            prefix_caching: whether prompts with the same cache key share their common prefix.
            eager: run without compiled graphs, which starts sooner and answers more slowly.

        Raises:
            MissingExtraError: vLLM is not installed.
            EngineError: the version of vLLM is not supported, or vLLM cannot load the model.
            ModelFileError: a file is missing, or not of a kind that vLLM loads as it is hashed.
            UnsupportedArchitectureError: layers that guard cannot read on vLLM.
            InputError: an option that cannot be used.
        """
        checked_choice("capture point", capture_point, get_args(CapturePoint))
        adapter = load_adapter()
        read = checkpoint.read_settings(path)
        check_architecture(read.config)
        check_weights(read.folder, weight_files(read.folder))
        context = checkpoint.context_limit(read.config, context_tokens)
        cached = _cached_tokens(cache_tokens, context, on_cpu=adapter.runs_on_cpu())
        settings = VllmSettings(
            folder=read.folder,
            capture_point=capture_point,
            dtype=check_dtype(dtype),
            context_tokens=context,
            slots=whole_number("slots", slots, least=1, most=4096),
            batch_tokens=whole_number("batch_tokens", batch_tokens, least=128),
            tensor_parallel=whole_number("tensor_parallel", tensor_parallel, least=1, most=64),
            data_parallel=whole_number("data_parallel", data_parallel, least=1, most=64),
            cache_bytes=None if cached is None else cache_bytes(read.config, cached, dtype) // tensor_parallel,
            gpu_memory=None if gpu_memory is None else check_share("gpu_memory", gpu_memory),
            prefix_caching=prefix_caching,
            eager=eager,
        )
        with _load_errors(read.folder):
            replicated = settings.data_parallel > 1
            stepper = load_replica_adapter().ReplicaStepper(settings) if replicated else adapter.Stepper(settings)
        return cls(stepper, settings, read, template_date)

    @classmethod
    def of_server(cls, client: Any, loop: asyncio.AbstractEventLoop, *, template_date: str | None) -> VllmEngine:
        """Return an engine over the one of a running ``vllm serve``, which outlives it. Its prompts are tokenized here.

        Args:
            client: vLLM's engine client, whose process has been prepared by the adapter.
            loop: the event loop on which the client runs; this is called in another thread.
            template_date: as for `load`.
        """
        adapter = load_served_adapter()
        settings: EngineSettings = adapter.settings_of(client)
        read = checkpoint.read_settings(settings.folder)
        return cls(adapter.ServedStepper(client, loop), settings, read, template_date)

    @property
    def model(self) -> ModelInfo:
        """What is loaded."""
        return self._info

    @property
    def at_once(self) -> int:
        """How many requests are answered at the same time."""
        return self._slots

    def _encode(self, request: Request) -> None:
        """Tokenize in the caller's thread, and check that the observer can be sent to the workers."""
        super()._encode(request)
        try:
            pickle.dumps(request.reader)
        except Exception as error:  # code of others may fail in any way
            raise InputError(
                f"The observer {type(request.reader).__name__} cannot be sent to vLLM's workers",
                why=f"it cannot be pickled: {type(error).__name__}",
                fix="Use a SignatureObserver, or a class at the top of a module",
            ) from error

    def _free(self) -> None:
        """End the workers."""
        self._stepper.close()


def _cached_tokens(asked: int | None, context: int, *, on_cpu: bool) -> int | None:
    """Return how many tokens the cache has room for; None leaves it to the share of a GPU's memory."""
    if asked is not None:
        return whole_number("cache_tokens", asked, least=context)
    return _CONTEXTS_ON_CPU * context if on_cpu else None


def _describe(read: checkpoint.Settings, settings: EngineSettings, tokens: HubTokenizer, dtype: str) -> ModelInfo:
    return ModelInfo(
        name=read.name,
        engine="vllm",
        architecture=read.config.model_type,
        quantization=checkpoint.packing_name(read.config) or dtype,
        weights_sha256=read.weights_sha256,
        tokenizer_sha256=tokens.sha256,
        chat_template_sha256=tokens.template_sha256,
        layers=read.config.num_hidden_layers,
        width=read.config.hidden_size,
        context_tokens=settings.context_tokens,
        template_date=tokens.template_date,
    )


@contextmanager
def _load_errors(folder: Path) -> Iterator[None]:
    """Whatever stops vLLM from loading a model, as a guard error."""
    try:
        yield
    except GuardError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise EngineError(
            f"vLLM cannot load {folder}",
            why=f"{type(error).__name__}: {lines[0]}"[:300],
            fix="Its workers write the cause to stderr; a program needs if __name__ == '__main__'",
        ) from error
