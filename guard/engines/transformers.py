"""The Hugging Face engine: decoder-only causal language models, through transformers.

Activations come from forward hooks that exist only while a request runs. A model object that the
user has loaded is left exactly as it was: no hook, flag, setting or weight is changed for longer
than a request.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from guard.checked import whole_number
from guard.engines.base import BaseEngine
from guard.engines.batch import Feed, PassRow, Start
from guard.errors import (
    EngineError,
    InputError,
    did_you_mean,
    missing_extra,
)
from guard.records import CapturePoint, Floats, ModelInfo, Prompt

try:
    import torch
    import transformers
except ImportError as error:
    raise missing_extra(error.name or "transformers", "transformers") from error

from guard.engines import checkpoint
from guard.engines.attention import attention_to_latest
from guard.engines.hub_tokenizer import HubTokenEngine, HubTokenizer
from guard.engines.kept_caches import KeptCaches
from guard.engines.model_request import LayerRecorder, ModelRequest
from guard.engines.passes import PREFILL_TOKENS

#: Conversations whose tokens are kept.
DEFAULT_SLOTS = 4


class TransformersEngine(HubTokenEngine, BaseEngine):
    """A Hugging Face model as an engine. Build one with `load` or `wrap`."""

    one_at_a_time = True

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        *,
        name: str,
        quantization: str,
        weights: str,
        context_tokens: int | None,
        capture_point: CapturePoint,
        owned: bool,
        template_date: str | None = None,
        slots: int = DEFAULT_SLOTS,
        cache_tokens: int | None = None,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        if capture_point not in get_args(CapturePoint):
            raise InputError(
                f"There is no capture point '{capture_point}'",
                fix=did_you_mean(str(capture_point), get_args(CapturePoint)),
            )
        self.capture_point = capture_point
        self._lm = lm
        self._current: ModelRequest | None = None
        self._in_use = threading.Lock()  # a request runs in the engine's thread, `attention` in its caller's
        whole_number("slots", slots, least=1)
        self.slots, self.reuse = (1, "nothing") if deterministic else (slots, "copy")
        self._caches = KeptCaches()
        self._cells = 0 if cache_tokens is None else whole_number("cache_tokens", cache_tokens, least=1)
        self._owned, self._version = owned, 0
        self._layers = checkpoint.layer_names(lm, capture_point)
        # In inference mode a model may keep tensors that autograd refuses later: a user's model
        # may be trained further must not have any.
        self._no_grad = torch.inference_mode if owned else torch.no_grad
        self._tokens = HubTokenizer(tokenizer, lm, name=name, template_date=template_date, rows=self._known_tokens)
        self._info = ModelInfo(
            name=name,
            engine="transformers",
            architecture=lm.config.model_type,
            quantization=quantization,
            weights_sha256=weights,
            tokenizer_sha256=self._tokens.sha256,
            chat_template_sha256=self._tokens.template_sha256,
            layers=len(self._layers) // len(capture_point.split("+")),
            width=lm.config.get_text_config().hidden_size,
            context_tokens=checkpoint.context_limit(lm.config, context_tokens),
            template_date=self._tokens.template_date,
            deterministic=deterministic,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        gguf_file: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
        context_tokens: int | None = None,
        capture_point: CapturePoint = "mlp",
        threads: int | None = None,
        template_date: str | None = None,
        slots: int = DEFAULT_SLOTS,
        cache_tokens: int | None = None,
        deterministic: bool = False,
    ) -> TransformersEngine:
        """Load a model from disk; nothing is ever downloaded and no code of the model's is run.

        Args:
            path: a model folder, or a ``.gguf`` file (its weights are dequantized).
            gguf_file: name of a ``.gguf`` file in the folder.
            dtype: ``float32``, ``bfloat16``, ``float16``, or ``int4`` (weights of linear layers in 4
                bits, by bitsandbytes on CUDA and by torchao on a CPU; the rest in bfloat16).
            device: such as ``cpu`` or ``cuda:0``; by default CUDA where there is one.
            context_tokens: tokens of prompt and answer together; by default what the model says, at
                most 32,768; 4,096 if it says nothing.
            capture_point: where activations are read.
            threads: CPU threads of torch, for the whole process.
            template_date: what a chat template that writes the date writes, as 2026-11-25; by default today.
            slots: conversations whose tokens are kept; requests are answered one at a time.
            cache_tokens: tokens of all these together, at most; by default, and at least, those of the context.
            deterministic: answer each request from an empty cache, so that scores are the same to the bit.

        Raises:
            ModelFileError: a file is missing, truncated or of another kind.
            UnsupportedArchitectureError: not a decoder-only language model whose layers are known.
            OutOfMemoryError, MissingExtraError, InputError.
        """
        if threads is not None:
            if threads < 1:
                raise InputError(f"threads must be at least 1, got {threads}")
            torch.set_num_threads(threads)
        read = checkpoint.read_checkpoint(path, gguf_file=gguf_file, dtype=dtype, device=device)
        return cls(
            read.model,
            read.tokenizer,
            name=read.name,
            quantization=dtype,
            weights=read.weights_sha256,
            context_tokens=context_tokens,
            capture_point=capture_point,
            owned=True,
            template_date=template_date,
            slots=slots,
            cache_tokens=cache_tokens,
            deterministic=deterministic,
        )

    @classmethod
    def wrap(
        cls,
        model: Any,
        tokenizer: Any,
        *,
        capture_point: CapturePoint = "mlp",
        name: str | None = None,
        context_tokens: int | None = None,
        template_date: str | None = None,
        slots: int = DEFAULT_SLOTS,
        cache_tokens: int | None = None,
        deterministic: bool = False,
    ) -> TransformersEngine:
        """Use a model that is loaded already, and leave it as it is. Reads all weights once, to hash them.

        Args:
            model: a decoder-only model with its language modelling head; in training mode it is run
                with dropout off, and the mode is put back after each request.
            tokenizer: its tokenizer.
            capture_point: where activations are read.
            name: for people; by default the name that the model was loaded by.
            context_tokens, template_date, slots, cache_tokens, deterministic: as for `load`.

        Raises:
            InputError: not a model, or not a tokenizer.
            UnsupportedArchitectureError: not a decoder-only language model whose layers are known.
        """
        if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
            raise InputError(
                f"A {type(model).__name__} is not a Hugging Face model",
                fix="Hand over the model object, or use TransformersEngine.load with a path",
            )
        if not isinstance(tokenizer, transformers.PreTrainedTokenizerBase):
            raise InputError(
                f"A {type(tokenizer).__name__} is not a Hugging Face tokenizer",
                fix="Hand over the model's tokenizer (of a processor, its .tokenizer)",
            )
        return cls(
            model,
            tokenizer,
            name=name or Path(getattr(model.config, "_name_or_path", "")).name or type(model).__name__,
            quantization=checkpoint.quantization_name(model),
            weights=checkpoint.tensors_sha256(model),
            context_tokens=context_tokens,
            capture_point=capture_point,
            owned=False,
            template_date=template_date,
            slots=slots,
            cache_tokens=cache_tokens,
            deterministic=deterministic,
        )

    @property
    def model(self) -> ModelInfo:
        """What is loaded."""
        return self._info

    def attention(self, prompt: Prompt, answer: Sequence[int]) -> Floats:
        """Read the attention over an answer in one pass more; see `guard.engines.protocols.AttentionEngine.attention`.

        Requests wait meanwhile; an observer or ``on_token``, for which a request would wait, is refused.
        """
        self._loop.refuse_own_thread()
        tokens = self.encode(prompt)
        with self._in_use, checkpoint.run_errors(), self._no_grad():
            return attention_to_latest(self._open(), [*tokens, *answer], prompt_tokens=len(tokens))

    def _free(self) -> None:
        """Let go of the model; what `load` loaded is freed, a wrapped model stays with its owner."""
        self._lm = None
        self._caches.forget(None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- what the decoding loop asks for -------------------------------------------------------

    @property
    def cache_tokens(self) -> int:
        """Tokens that all slots have room for together."""
        return max(self._cells, self._info.context_tokens)

    @property
    def batch_tokens(self) -> int:
        """Tokens of the prompt that one pass may have; the request that runs knows."""
        return self._current.part_tokens if self._current is not None else PREFILL_TOKENS

    def _begin(self, start: Start) -> int:
        self._in_use.acquire()
        recorder = LayerRecorder(self._layers, self._info.width) if start.capture else None
        self._current = ModelRequest(self._open(), recorder, self._no_grad)
        self._check_version()
        with checkpoint.run_errors(), self._no_grad():
            cache = self._caches.beginning(start)
        return self._current.begin(start.prompt, cache, start.keep)

    def _check_version(self) -> None:
        """Drop what was computed with other weights or hooks: an owner may change a wrapped model in between."""
        version = 0 if self._owned else checkpoint.model_version(self._open())
        if version != self._version:
            self._caches.forget(None)
        self._version = version

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        self._open()
        assert self._current is not None
        return [self._current.evaluate(feed) for feed in feeds][: feeds[-1].chooses]

    def _release(self, slot: int) -> None:
        request, self._current = self._current, None
        try:
            if request is not None:
                request.detach()
                self._caches.keep(slot, *request.cache)
        finally:
            self._in_use.release()

    def _forget(self, slot: int | None) -> None:
        self._caches.forget(slot)

    def _known_tokens(self) -> int:
        return int(self._open().get_input_embeddings().weight.shape[0])

    def _open(self) -> Any:
        if self._lm is None:
            raise EngineError("The engine is closed", fix="Build a new one")
        return self._lm
