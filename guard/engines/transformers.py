"""The Hugging Face engine: decoder-only causal language models, through transformers.

Activations come from forward hooks that exist only while a request runs. A model object that the
user has loaded is left exactly as it was: no hook, flag, setting or weight is changed for longer
than a request.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

from guard.checked import whole_number
from guard.engines.base import BaseEngine
from guard.engines.batch import Feed, PassRow, Start
from guard.engines.chat_template import after_answer, clock, reads_the_clock, render
from guard.engines.control_text import ControlTexts, Piece, pieces_of
from guard.engines.detokenizer import Detokenizer
from guard.engines.system_role import with_system_placed
from guard.errors import (
    ChatTemplateError,
    EngineError,
    InputError,
    did_you_mean,
    missing_extra,
)
from guard.records import CapturePoint, ModelInfo, Prompt

try:
    import torch
    import transformers
except ImportError as error:
    raise missing_extra(error.name or "transformers", "transformers") from error

from guard.engines import checkpoint
from guard.engines.kept_caches import KeptCaches
from guard.engines.model_request import LayerRecorder, ModelRequest
from guard.engines.passes import PREFILL_TOKENS

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

#: Conversations whose tokens are kept.
DEFAULT_SLOTS = 4


class TransformersEngine(BaseEngine):
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
        whole_number("slots", slots, least=1)
        self.slots, self.reuse = (1, "nothing") if deterministic else (slots, "copy")
        self._caches = KeptCaches()
        self._cells = 0 if cache_tokens is None else whole_number("cache_tokens", cache_tokens, least=1)
        self._owned, self._version = owned, 0
        self._tokenizer = tokenizer
        self._now = clock(template_date)
        self._tokenizing = threading.RLock()  # prompts are encoded by many threads; reading plain text sets a switch
        self._layers = checkpoint.layer_names(lm, capture_point)
        # In inference mode a model may keep tensors that autograd refuses later: a user's model
        # may be trained further must not have any.
        self._no_grad = torch.inference_mode if owned else torch.no_grad
        vocabulary = tokenizer.get_vocab()
        self._ends, self._end = checkpoint.end_tokens(lm, tokenizer, vocabulary, self._after_answer())
        self._info = ModelInfo(
            name=name,
            engine="transformers",
            architecture=lm.config.model_type,
            quantization=quantization,
            weights_sha256=weights,
            tokenizer_sha256=checkpoint.tokenizer_sha256(tokenizer, vocabulary),
            chat_template_sha256=checkpoint.template_sha256(tokenizer),
            layers=len(self._layers) // len(capture_point.split("+")),
            width=lm.config.get_text_config().hidden_size,
            context_tokens=checkpoint.context_limit(lm.config, context_tokens),
            template_date=f"{self._now:%Y-%m-%d}" if reads_the_clock(checkpoint.template_text(tokenizer)) else None,
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

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template, of all of them where there are several; None without one."""
        templates = self._tokenizer.chat_template
        return "\n".join(templates.values()) if isinstance(templates, dict) else templates

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        A chat template writes its special tokens itself, and contents are plain text in it; a raw prompt
        gets the tokenizer's usual ones.

        Raises:
            ChatTemplateError: the model has no chat template, or it refuses the messages.
            InputError: the text cannot be tokenized.
        """
        if prompt.messages is None:
            text = prompt.text or ""
            ids = self._ids(text, add_special_tokens=True)
            more = prompt.plain and self._controls(ids) > self._controls(self._ids("", add_special_tokens=True))
            return self._plain_ids(text, add_special_tokens=True) if more else ids
        return [
            token
            for piece in self._pieces(prompt)
            for token in (self._marked_ids(piece.text) if piece.control else self._plain_ids(piece.text))
        ]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of answer, without special tokens."""
        return self._ids(text)

    def _token_id(self, text: str) -> int | None:
        token = self._tokenizer.get_added_vocab().get(text)
        return token if isinstance(token, int) else None

    def _free(self) -> None:
        """Let go of the model; what `load` loaded is freed, a wrapped model stays with its owner."""
        self._lm = None
        self._caches.forget(None)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- what the decoding loop asks for -------------------------------------------------------

    def _detokenizer(self) -> Detokenizer:
        return _Detokenizer(self._tokenizer)

    def _is_end(self, token: int) -> bool:
        return token in self._ends

    def _grammar_vocabulary(self) -> Any:
        self._end_token()  # raises where there is none
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise missing_extra("llguidance", "grammar") from error
        if not isinstance(self._tokenizer, transformers.PreTrainedTokenizerFast):
            raise InputError(
                "This tokenizer cannot be used with a response format",
                why="llguidance reads fast tokenizers only, of the tokenizers package",
            )
        with self._tokenizing:  # a copy is made, and reading plain text sets a switch meanwhile
            return from_tokenizer(self._tokenizer, eos_token=sorted(self._ends))

    def _end_token(self) -> int:
        if self._end is None:
            raise EngineError(
                "The tokenizer and the model name no end token",
                why="a completion ends with it",
                fix="Set tokenizer.eos_token before building the engine",
            )
        return self._end

    @property
    def cache_tokens(self) -> int:
        """Tokens that all slots have room for together."""
        return max(self._cells, self._info.context_tokens)

    @property
    def batch_tokens(self) -> int:
        """Tokens of the prompt that one pass may have; the request that runs knows."""
        return self._current.part_tokens if self._current is not None else PREFILL_TOKENS

    def _begin(self, start: Start) -> int:
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
        if request is not None:
            request.detach()
            self._caches.keep(slot, *request.cache)

    def _forget(self, slot: int | None) -> None:
        self._caches.forget(slot)

    def _open(self) -> Any:
        if self._lm is None:
            raise EngineError("The engine is closed", fix="Build a new one")
        return self._lm

    # -- text to tokens ------------------------------------------------------------------------

    def _pieces(self, prompt: Prompt) -> list[Piece]:
        tokenizer = self._tokenizer
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                f"The model '{self._info.name}' has no chat template",
                fix="Pass Prompt.raw with a text in the form that the model was trained on",
            )
        template = tokenizer.get_chat_template(tools=[dict(tool) for tool in prompt.tools] or None)
        asked = self._asked(template, prompt.template_options)
        bos, eos = self._bos_and_eos()
        placed = with_system_placed(prompt, template, bos_token=bos, eos_token=eos)
        return pieces_of(placed, template, self._control_texts, asked)

    def _asked(self, template: str, options: Mapping[str, Any] | None = None) -> partial[str]:
        """`render` with a template of this tokenizer's and its texts."""
        bos, eos = self._bos_and_eos()
        return partial(render, template, bos_token=bos, eos_token=eos, options=options, now=self._now)

    def _bos_and_eos(self) -> tuple[str, str]:
        return self._tokenizer.bos_token or "", self._tokenizer.eos_token or ""

    def _after_answer(self) -> int | None:
        """Return the control token that the chat template writes behind an answer."""
        if not self._tokenizer.chat_template:
            return None
        try:
            text = after_answer(self._asked(self._tokenizer.get_chat_template(tools=None)))
            first = next(iter(self._ids(text.lstrip())), None)
        except (InputError, ValueError):  # a tokenizer that cannot read it, or has no default among its templates
            return None
        return first if first in self._control_ids() else None

    def _control_ids(self) -> set[int]:
        added = self._tokenizer.added_tokens_decoder.items()
        return {number for number, token in added if token.special}.union(self._tokenizer.all_special_ids)

    @cached_property
    def _control_texts(self) -> ControlTexts:
        added = self._tokenizer.added_tokens_decoder.values()
        return ControlTexts([*(token.content for token in added if token.special), *self._tokenizer.all_special_tokens])

    def _marked_ids(self, text: str) -> list[int]:
        """Token ids of a text with control tokens: no more than it has, since normalising can make some of contents."""
        ids = self._ids(text)
        if self._controls(ids) > self._control_texts.count(text):
            raise _unreadable()
        return ids

    def _controls(self, ids: Iterable[int]) -> int:
        """Return how many of some tokens are control tokens."""
        return sum(map((self._control_ids() - {self._tokenizer.unk_token_id}).__contains__, ids))

    def _plain_ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text in which no control token is read, between those that the tokenizer adds itself."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        with self._tokenizing:
            before = getattr(backend, "encode_special_tokens", None)
            try:
                ids = self._ids(text, split_special_tokens=True, add_special_tokens=add_special_tokens)
                added = self._ids("", add_special_tokens=True) if add_special_tokens else []
            finally:
                if before is not None:
                    backend.encode_special_tokens = before
        if self._controls(ids) > self._controls(added):
            raise _unreadable()
        return ids

    def _ids(self, text: str, *, add_special_tokens: bool = False, **options: bool) -> list[int]:
        try:
            with self._tokenizing:
                read = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, **options)
            ids: list[int] = read["input_ids"]
        except Exception as error:  # tokenizers in Python and in Rust each have errors of their own
            why = f"{type(error).__name__}: {error}"
            raise InputError("The text cannot be tokenized", why=why) from error
        rows = self._open().get_input_embeddings().weight.shape[0]
        if ids and max(ids) >= rows:
            raise InputError(
                f"The tokenizer gives token {max(ids)}, the model knows {rows} tokens",
                fix="Use the tokenizer that belongs to the model",
            )
        return ids


def _unreadable() -> InputError:
    return InputError(
        "The messages hold the text of a control token, which this tokenizer cannot read as plain text",
        fix="Take it out of the messages, documents and tools",
    )


class _Detokenizer:
    """Decodes a short window that ends with the newest token, and gives what is new in it.

    Text depends on neighbours (spaces of sentencepiece, characters of several byte tokens), so the
    window begins with the tokens of the piece given last, and waits while it ends in half a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._context_tokens = 0
        self._context_text = ""

    def push(self, token: int) -> str:
        """Text that this token completes."""
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) <= len(self._context_text) or text.endswith(_REPLACEMENT):
            return ""
        new = text[len(self._context_text) :]
        self._window = self._window[self._context_tokens :]
        self._context_tokens = len(self._window)
        self._context_text = self._decode(self._window)
        return new

    def flush(self) -> str:
        """Return what is left, with replacement characters for what never became a character."""
        return self._decode(self._window)[len(self._context_text) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
