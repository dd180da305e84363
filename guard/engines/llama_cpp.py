"""llama.cpp, through llama-cpp-python: GGUF files of decoder-only models.

Activations come from the scheduler's evaluation callback: llama.cpp asks for each node of its
graph whether we want it, and stops there with the data ready. Node names are the layer templates
(``ffn_out-{n}``); a model whose graph does not have them is refused when the engine is built.

The engine always decodes in a context of its own, made from the model's weights. A `Llama` that
the user has already loaded is therefore never touched: not its context, its cache or its settings.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

from guard.engines.base import BaseEngine
from guard.engines.batch import Feed, PassRow, Start
from guard.engines.chat_template import after_answer, clock, reads_the_clock, render
from guard.engines.constraint import build_vocabulary
from guard.engines.control_text import split_prompt
from guard.engines.cores import usable_cores
from guard.engines.detokenizer import BytesDetokenizer, Detokenizer
from guard.engines.engine_loop import closed_error
from guard.engines.gguf import GgufHeader, read_gguf
from guard.engines.slots import Reuse
from guard.engines.system_role import with_system_placed
from guard.engines.trial_load import check_survives
from guard.engines.weights import weight_file, weights_sha256
from guard.errors import (
    ChatTemplateError,
    EngineError,
    InputError,
    UnsupportedArchitectureError,
    did_you_mean,
    missing_extra,
)
from guard.records import CapturePoint, ModelInfo, Prompt

try:
    import llama_cpp
except ImportError as error:
    raise missing_extra("llama-cpp-python", "llama") from error

from guard.engines.llama_context import LlamaContext
from guard.engines.llama_log import captured_log, load_error
from guard.engines.llama_nodes import find_nodes
from guard.engines.llama_settings import (
    DEFAULT_CACHE_TYPE,
    check_settings,
    precision,
    set_attention,
    set_wrapped_attention,
)
from guard.engines.llama_vocabulary import Vocabulary

DEFAULT_CONTEXT_TOKENS = 4096

#: Requests that are answered at the same time, and conversations that are remembered.
DEFAULT_SLOTS = 16


class LlamaCppEngine(BaseEngine):
    """A GGUF model on llama.cpp.

    Build one with `LlamaCppEngine.load` (from a file) or `LlamaCppEngine.wrap` (around a `Llama`).
    """

    def __init__(
        self,
        *,
        model: Any,
        header: GgufHeader,
        path: Path,
        context_params: Any,
        capture_point: CapturePoint,
        chat_template: str | None,
        owner: Any = None,
        template_date: str | None = None,
        slots: int = DEFAULT_SLOTS,
        cache_tokens: int | None = None,
        deterministic: bool = False,
    ) -> None:
        super().__init__()
        if capture_point not in get_args(CapturePoint):
            raise InputError(
                f"Unknown capture point '{capture_point}'", fix=did_you_mean(capture_point, get_args(CapturePoint))
            )
        self.capture_point = capture_point
        self._now = clock(template_date)
        # Nothing may use the model's memory once it is freed, and nothing may free it while it is used.
        self._handles = threading.RLock()
        self._model = model
        self._owner = owner  # the user's Llama: kept alive, closed by nobody but the user
        self._path = path
        self._vocabulary = Vocabulary(llama_cpp.llama_model_get_vocab(model), self._open)
        self._template = chat_template if chat_template is not None else header.chat_template
        room = context_params.n_ctx  # 0 is what the model was trained on
        context_params.n_ctx = max(room, cache_tokens or 0) if room else room
        self._context: LlamaContext | None = LlamaContext(model, context_params, 1 if deterministic else slots)
        self.slots, self._cells, self._batch_tokens = (
            self._context.slots,
            self._context.cells,
            self._context.batch_tokens,
        )
        try:
            self.reuse = self._find_nodes(header)
            quantization = precision(header.quantization, context_params)
            info = self._describe(header, quantization, min(self._context.cells, room or self._context.cells))
            self._info = replace(info, deterministic=deterministic)
        except BaseException:
            self._context.free()
            self._context = None
            raise
        if deterministic:
            self.reuse = "nothing"
        if owner is not None:
            _close_before(owner, self)

    # -- building ------------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        context_tokens: int = DEFAULT_CONTEXT_TOKENS,
        threads: int | None = None,
        gpu_layers: int = -1,
        flash_attention: bool | None = None,
        type_k: str = DEFAULT_CACHE_TYPE,
        type_v: str = DEFAULT_CACHE_TYPE,
        capture_point: CapturePoint = "mlp",
        chat_template: str | None = None,
        template_date: str | None = None,
        trial_load: bool = True,
        slots: int = DEFAULT_SLOTS,
        cache_tokens: int | None = None,
        deterministic: bool = False,
    ) -> LlamaCppEngine:
        """Load a GGUF file.

        Args:
            path: the file, or the first file of a split model.
            context_tokens: room for prompt and answer of one request; at most what the model was trained on.
            threads: of llama.cpp; by default `guard.engines.cores.usable_cores`.
            gpu_layers: layers put on a GPU where llama.cpp was built with one; -1 is all.
            flash_attention: by default llama.cpp uses it where model and device support it.
            type_k, type_v: of the key-value cache: ``f16``, or ``f32``, ``bf16``, ``q8_0``, ``q5_1``, ``q5_0``,
                ``q4_1``, ``q4_0``, ``iq4_nl``. Part of the model's quantization, which a scorer is bound to.
            capture_point: ``mlp`` (the MLP's output before the residual add), ``block`` or ``mlp+block``.
            chat_template: Jinja text to use in place of the file's own.
            template_date: what a chat template that writes the date writes, as 2026-11-25; by default today.
            trial_load: load a file in a child process first, once, since llama.cpp ends the process over some
                damaged files; False for files that you trust.
            slots: requests that are answered at the same time, and conversations whose tokens are kept.
            cache_tokens: room that all of these have together; by default, and at least, context_tokens.
            deterministic: answer one request at a time, each from an empty cache. Scores then are the same to the
                last bit whatever else is asked; otherwise they depend on it by rounding.

        Raises:
            InputError: an option out of its range, a cache type or capture point that is not known.
            ModelFileError: missing, truncated, not a GGUF that llama.cpp reads, or one that ends the process.
            UnsupportedArchitectureError: the layers were not found in the model's graph.
            OutOfMemoryError: the model or its context does not fit.
        """
        check_settings(context_tokens=context_tokens, threads=threads, gpu_layers=gpu_layers)
        context = llama_cpp.llama_context_default_params()
        attention: dict[str, Any] = {"flash_attention": flash_attention, "type_k": type_k, "type_v": type_v}
        set_attention(context, **attention)
        _check_positive(slots=slots, cache_tokens=cache_tokens)
        file = weight_file(path)
        header = read_gguf(file)
        if trial_load:
            check_survives(
                file,
                weights_sha256=_split_sha256(file),
                binding_version=llama_cpp.__version__,
                options={"context_tokens": context_tokens, "gpu_layers": gpu_layers, "capture_point": capture_point}
                | attention,
            )
        model = _load_model(file, gpu_layers)
        context.n_ctx = min(context_tokens, llama_cpp.llama_model_n_ctx_train(model))
        context.n_threads = context.n_threads_batch = threads or usable_cores()
        try:
            return cls(
                model=model,
                header=header,
                path=file,
                context_params=context,
                capture_point=capture_point,
                chat_template=chat_template,
                template_date=template_date,
                slots=slots,
                cache_tokens=cache_tokens,
                deterministic=deterministic,
            )
        except BaseException:
            llama_cpp.llama_model_free(model)
            raise

    @classmethod
    def wrap(
        cls,
        llama: llama_cpp.Llama,
        *,
        flash_attention: bool | None = None,
        capture_point: CapturePoint = "mlp",
        chat_template: str | None = None,
        template_date: str | None = None,
        slots: int = DEFAULT_SLOTS,
        cache_tokens: int | None = None,
        deterministic: bool = False,
    ) -> LlamaCppEngine:
        """Use the weights of a `Llama` that is loaded already.

        The engine makes a context of its own with the same settings (and so needs memory for a
        second KV cache); the `Llama` stays exactly as it is and can be used in between. Closing it
        closes the engine first, and requests that are being answered end with an error.

        Args:
            llama: with its weights.
            flash_attention: by default on where the `Llama` has it on, and otherwise as in `load`: off is only the
                default of a `Llama`, which looks the same as a choice, and moves p_wrong by some hundredths.
            capture_point, chat_template, template_date, slots, cache_tokens, deterministic: as for `load`.

        Raises:
            InputError: not a `Llama`, or one that is closed, has no weights, or carries a LoRA
                adapter, which belongs to its own context and would be missing here.
        """
        _check_positive(slots=slots, cache_tokens=cache_tokens)
        if not isinstance(llama, llama_cpp.Llama):
            raise InputError(f"Expected a llama_cpp.Llama, got {type(llama).__name__}")
        if llama._model.model is None or llama.model_params.vocab_only:
            raise InputError("This Llama has no weights loaded", fix="Build it without vocab_only, and do not close it")
        if getattr(llama, "lora_path", None):
            raise InputError(
                "This Llama carries a LoRA adapter, which guard's own context would not apply",
                fix="Merge the adapter into the GGUF",
            )
        context = type(llama.context_params).from_buffer_copy(llama.context_params)
        set_wrapped_attention(context, flash_attention)
        return cls(
            model=llama.model,
            header=read_gguf(Path(llama.model_path)),
            path=Path(llama.model_path),
            context_params=context,
            capture_point=capture_point,
            chat_template=chat_template,
            owner=llama,
            template_date=template_date,
            slots=slots,
            cache_tokens=cache_tokens,
            deterministic=deterministic,
        )

    def _find_nodes(self, header: GgufHeader) -> Reuse:
        self._check_kind(header)
        context = self._opened()
        names, reuse = context.inspect(max(self._vocabulary.bos, 0))
        layers = llama_cpp.llama_model_n_layer(self._model)
        points = self.capture_point.split("+")
        context.tap.want([node for point in points for node in find_nodes(names, point, layers)], rows=self.slots)
        return reuse

    def _check_kind(self, header: GgufHeader) -> None:
        """Refuse what does not write one token after another."""
        kinds = {
            "has an encoder": llama_cpp.llama_model_has_encoder(self._model),
            "writes by diffusion": llama_cpp.llama_model_is_diffusion(self._model),
            "attends to what follows": header.metadata.get(f"{header.architecture}.attention.causal") is False,
        }
        for what in (what for what, found in kinds.items() if found):
            raise UnsupportedArchitectureError(
                f"'{header.architecture}' {what}; guard reads decoder-only models, which write token by token"
            )

    def _describe(self, header: GgufHeader, quantization: str, context_tokens: int) -> ModelInfo:
        template = self._template or ""
        return ModelInfo(
            name=str(header.metadata.get("general.name") or self._path.stem),
            engine="llama.cpp",
            architecture=header.architecture,
            quantization=quantization,
            weights_sha256=_split_sha256(self._path),
            tokenizer_sha256=header.tokenizer_sha256,
            chat_template_sha256=sha256(template.encode()).hexdigest(),
            layers=llama_cpp.llama_model_n_layer(self._model),
            width=llama_cpp.llama_model_n_embd(self._model),
            context_tokens=context_tokens,
            template_date=f"{self._now:%Y-%m-%d}" if reads_the_clock(template) else None,
        )

    # -- the engine ----------------------------------------------------------------------------

    @property
    def model(self) -> ModelInfo:
        """What is loaded."""
        return self._info

    @property
    def path(self) -> Path:
        """The model's file."""
        return self._path

    @property
    def chat_template(self) -> str | None:
        """The Jinja template that messages go through; None where the model has none."""
        return self._template

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; messages go through the model's own chat template, and are plain text in it."""
        if prompt.messages is None:
            return [*self._vocabulary.begin(), *self._vocabulary.tokenize(prompt.text or "", control=not prompt.plain)]
        if not self._template:
            raise ChatTemplateError(
                f"'{self._info.name}' has no chat template",
                fix="Pass Prompt.raw(text), or chat_template= when building the engine",
            )
        bos, eos = self._vocabulary.bos_and_eos()
        placed = with_system_placed(prompt, self._template, bos_token=bos, eos_token=eos)
        pieces = split_prompt(
            placed, self._template, self._vocabulary.control_texts, self._asked(prompt.template_options)
        )
        # A template that writes the beginning-of-text token itself must not get a second one.
        twice = bool(bos) and any(piece.control and piece.text.startswith(bos) for piece in pieces[:1])
        tokens = [] if twice else self._vocabulary.begin()
        for piece in pieces:
            tokens += self._vocabulary.tokenize(piece.text, control=piece.control)
        return tokens

    def _asked(self, options: Mapping[str, Any] | None = None) -> partial[str]:
        """`render` with this model's template and texts."""
        bos, eos = self._vocabulary.bos_and_eos()
        return partial(render, self._template or "", bos_token=bos, eos_token=eos, options=options, now=self._now)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of answer, without special tokens."""
        return self._vocabulary.tokenize(text, control=False)

    def _token_id(self, text: str) -> int | None:
        tokens = self._vocabulary.tokenize(text, control=True)
        return tokens[0] if len(tokens) == 1 and self._vocabulary.token_text(tokens[0]) == text else None

    @property
    def cache_tokens(self) -> int:
        """Tokens that all slots have room for together."""
        return self._cells

    @property
    def batch_tokens(self) -> int:
        """Tokens that one pass may have, at most."""
        return self._batch_tokens

    def _free(self) -> None:
        with self._handles:
            context, self._context = self._context, None
            if context is None:
                return
            if self._owner is None:
                context.free()
                llama_cpp.llama_model_free(self._model)
            elif self._owner._model.model is not None:
                # Once the user has freed the model, its context cannot be freed safely any more.
                context.free()

    def __del__(self) -> None:
        if getattr(self, "_context", None) is not None:
            self.close()

    # -- what the decoding loop needs ------------------------------------------------------------

    def _detokenizer(self) -> Detokenizer:
        return BytesDetokenizer(self._vocabulary.piece)

    def _is_end(self, token: int) -> bool:
        return self._vocabulary.is_end(token)

    def _end_token(self) -> int:
        """Return what the chat template writes behind an answer, since that is what the model has learnt.

        The file's end-of-text token otherwise. llama.cpp's own end-of-turn token is a guess by name,
        which in models that have several is not always the one that they end with.
        """
        written = after_answer(self._asked()) if self._template else ""
        after = self._vocabulary.tokenize(written, control=True)[:1]
        if after and self._is_end(after[0]):
            return after[0]
        end = self._vocabulary.eos
        if end < 0:
            raise EngineError(f"'{self._info.name}' names no end token", why="a completion ends with it")
        return end

    def _grammar_vocabulary(self) -> Any:
        with self._open():
            pieces, ends = self._vocabulary.pieces(), self._vocabulary.ends()
        return build_vocabulary(pieces, ends, self.encode_text)

    @contextmanager
    def _open(self) -> Iterator[None]:
        """Keep the model from being closed meanwhile."""
        with self._handles:
            self._opened()
            yield

    def _opened(self) -> LlamaContext:
        if self._context is None or (self._owner is not None and self._owner._model.model is None):
            raise closed_error()
        return self._context

    def _begin(self, start: Start) -> int:
        return self._opened().begin(start)

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        return self._opened().evaluate(feeds)

    def _forget(self, slot: int | None) -> None:
        self._opened().forget(slot)


def _close_before(owner: Any, engine: LlamaCppEngine) -> None:
    """Close an engine before its `Llama` frees the model; a running pass would read memory that is gone.

    Contexts of llama-cpp-python's own are closed in the same way.
    """
    held = weakref.ref(engine)

    def close() -> None:
        if (engine := held()) is not None:
            engine.close()

    owner._model._exit_stack.callback(close)


def _check_positive(**numbers: int | None) -> None:
    for what, number in numbers.items():
        if number is not None and number < 1:
            raise InputError(f"{what} must be at least 1, got {number}")


def _load_model(file: Path, gpu_layers: int) -> Any:
    params = llama_cpp.llama_model_default_params()
    params.n_gpu_layers = gpu_layers
    if has_amx_kernels():
        params.use_extra_bufts = False
    llama_cpp.llama_backend_init()
    model = None
    try:
        with captured_log() as log:
            model = llama_cpp.llama_model_load_from_file(os.fsencode(file), params)
    except BaseException:  # Ctrl-C while it was loading
        if model:
            llama_cpp.llama_model_free(model)
        raise
    if not model:
        raise load_error(file, log)
    return model


def cpu_features() -> dict[str, str]:
    """CPU features that this build of llama.cpp uses, such as ``{"AVX2": "1"}``."""
    info = llama_cpp.llama_print_system_info().decode(errors="replace")
    return dict(re.findall(r"(\w+) = (\w+)", info))


def has_amx_kernels() -> bool:
    """Return whether this build of llama.cpp has AMX kernels, which engines keep it from using.

    Compiled by GCC 12, they end the process: it drops most of the tile configuration as never read (llama.cpp's
    issue 20824 and pull request 26954). Weights in buffers of the ordinary kind never reach them.
    """
    return cpu_features().get("AMX_INT8") == "1"


def _split_sha256(path: Path) -> str:
    """Hash of the weights: of the file, or over the hashes of all parts of a split model."""
    match = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", path.name)
    if not match:
        return weights_sha256(path)
    stem, count = match.groups()
    parts = [path.with_name(f"{stem}-{n:05d}-of-{count}.gguf") for n in range(1, int(count) + 1)]
    return sha256("".join(map(weights_sha256, parts)).encode()).hexdigest()
