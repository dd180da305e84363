"""A llama.cpp context: sequences that share one cache, and the pass that continues several of them at once."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from guard.engines.batch import Feed, Start
from guard.engines.llama_log import captured_log, memory_or_engine_error
from guard.engines.llama_tap import RowPlace, Tap
from guard.engines.sampling import checked_logits
from guard.engines.slots import Reuse
from guard.errors import EngineError
from guard.records import Floats

#: Tokens that are evaluated in one pass.
BATCH_TOKENS = 512


class LlamaContext:
    """A context of our own, made from a model's weights.

    Args:
        model: llama.cpp's handle.
        params: for the context; ``n_ctx`` is the number of cells that all sequences share.
        slots: how many sequences there are. Models with a recurrent state have one.
    """

    def __init__(self, model: Any, params: Any, slots: int) -> None:
        self.tap = Tap(llama_cpp.llama_model_n_embd(model))
        self._vocabulary_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.slots = min(slots, params.n_ctx or slots) if _rows_keep_order(model, params) else 1
        self.handle = self._make(model, params)
        self.tap.repeats = _graph_reuse_counter(self.handle)
        # llama.cpp ends the process when a batch is larger than its own idea of it.
        self.batch_tokens: int = llama_cpp.llama_n_batch(self.handle)
        self.cells: int = llama_cpp.llama_n_ctx(self.handle)  # rounded up to whole blocks
        self._batch = _Batch(self.batch_tokens)
        self._window = 0 if getattr(params, "swa_full", False) else llama_cpp.llama_model_n_swa(model)

    def _make(self, model: Any, params: Any) -> Any:
        params.n_batch = params.n_ubatch = BATCH_TOKENS
        params.n_seq_max = self.slots
        params.kv_unified = True  # sequences share cells, and rows keep the batch's order
        # A Llama that was built for embeddings attends and answers differently.
        params.embeddings = False
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_UNSPECIFIED
        params.attention_type = llama_cpp.LLAMA_ATTENTION_TYPE_UNSPECIFIED
        params.cb_eval = self.tap.callback
        with captured_log() as log:
            context = llama_cpp.llama_init_from_model(model, params)
        if not context:
            raise memory_or_engine_error(log, f"llama.cpp made no context of {params.n_ctx} tokens")
        return context

    @property
    def _memory(self) -> Any:
        return llama_cpp.llama_get_memory(self.handle)

    def free(self) -> None:
        """Free the context; harmless when done twice."""
        handle, self.handle = self.handle, None
        if handle is not None:
            llama_cpp.llama_free(handle)

    def inspect(self, token: int) -> tuple[Sequence[str], Reuse]:
        """Return the names of the graph's nodes, in its order, and what of a sequence can be used again.

        Some states have no beginning that could be kept without the rest: recurrent ones, and sliding windows that
        hold only the last tokens. The model shows it, evaluating two tokens: in a thread that ends, since llama.cpp's
        workers stay as long as the thread that called it, and hold up those of the engine's own thread.
        """
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._inspected, token).result()

    def _inspected(self, token: int) -> tuple[Sequence[str], Reuse]:
        tokens = [token] * min(2, self.batch_tokens)
        with self.tap.listing() as names:
            self.evaluate([Feed(0, tokens, 0, chooses=True, capture=False)])
        drops = len(tokens) > 1 and llama_cpp.llama_memory_seq_rm(self._memory, 0, 1, -1)
        self.forget(None)
        return names, "copy" if drops and not self._window else "continuation"

    def begin(self, start: Start) -> int:
        """Let a slot hold a prompt's first tokens; return how many it holds."""
        memory, slot, keep = self._memory, start.slot, start.keep
        if start.source is not None:
            self.forget(slot)
            llama_cpp.llama_memory_seq_cp(memory, start.source, slot, 0, keep)
            return keep
        if llama_cpp.llama_memory_seq_rm(memory, slot, keep, -1):
            return keep
        self.forget(slot)
        return 0

    def forget(self, slot: int | None) -> None:
        """Drop the tokens of a slot, or of all for None."""
        if slot is None:
            llama_cpp.llama_memory_clear(self._memory, False)
        else:
            llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def evaluate(self, feeds: Sequence[Feed]) -> list[LlamaRow]:
        """Continue sequences in one pass; return what the model says after those that choose a token."""
        batch, rows = self._batch.of(feeds), self._rows(feeds)
        self.tap.start([row.place for row in rows if row.capture], batch.n_tokens, len(rows))
        with self.tap.evaluating():
            status = llama_cpp.llama_decode(self.handle, batch)
        if status != 0:
            what = f"llama.cpp could not evaluate {batch.n_tokens} tokens"
            raise EngineError(what, why=f"llama_decode gave {status}")
        return rows

    def _rows(self, feeds: Sequence[Feed]) -> list[LlamaRow]:
        rows, end, captured = list[LlamaRow](), 0, 0
        for feed in feeds:
            end += len(feed.tokens)
            if feed.chooses:
                rows.append(LlamaRow(self, RowPlace(end - 1, len(rows)), feed.capture, captured))
                captured += feed.capture
        return rows

    def logits(self, at: int) -> Floats:
        """Return the logits of the batch's token at a position, shape (V,), overwritten by the next pass."""
        pointer = llama_cpp.llama_get_logits_ith(self.handle, at)
        if not pointer:
            raise EngineError("llama.cpp gave no logits")
        logits = np.ctypeslib.as_array(pointer, shape=(self._vocabulary_size,))
        return checked_logits(logits, fix="Check the file, or use another quantization of the model")


def _rows_keep_order(model: Any, params: Any) -> bool:
    """Return whether the rows of a batch with several sequences keep its order.

    Batches of recurrent and hybrid models are split by sequence, and so are all where sequences cannot share cells.
    """
    recurrent = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
    return hasattr(params, "kv_unified") and not recurrent


def _graph_reuse_counter(handle: Any) -> Callable[[], int] | None:
    """Return what counts the evaluations of a context that use the graph of the one before; None in older bindings."""
    if not hasattr(llama_cpp.llama_perf_context_data, "n_reused"):
        return None
    return lambda: int(llama_cpp.llama_perf_context(handle).n_reused)


@dataclass(frozen=True, slots=True)
class LlamaRow:
    """See `guard.engines.batch.PassRow`.

    Attributes:
        context: that has evaluated it.
        place: of its token in the batch.
        capture: whether the layers were read.
        number: among the rows whose layers were read.
    """

    context: LlamaContext
    place: RowPlace
    capture: bool
    number: int

    def logits(self) -> Floats:
        return self.context.logits(self.place.token)

    def activations(self) -> Floats:
        return self.context.tap.read(self.number)


class _Batch:
    """llama.cpp's batch in memory of ours, which is filled again for each pass."""

    def __init__(self, size: int) -> None:
        self._tokens, self._positions, self._slots = (np.zeros(size, np.int32) for _ in range(3))
        self._counts, self._chooses = np.ones(size, np.int32), np.zeros(size, np.int8)
        # Each token has a list of its sequences; here it has one.
        self._lists = self._slots.ctypes.data + self._slots.itemsize * np.arange(size, dtype=np.uintp)
        arrays: dict[str, NDArray[Any]] = {
            "token": self._tokens,
            "pos": self._positions,
            "n_seq_id": self._counts,
            "seq_id": self._lists,
            "logits": self._chooses,
        }
        types: dict[str, Any] = dict(field[:2] for field in llama_cpp.llama_batch._fields_)
        pointers = {name: ctypes.cast(array.ctypes.data, types[name]) for name, array in arrays.items()}
        self._batch = llama_cpp.llama_batch(n_tokens=0, **pointers)

    def of(self, feeds: Sequence[Feed]) -> Any:
        """Return the batch with these tokens, valid until the next call."""
        start = 0
        for feed in feeds:
            end = start + len(feed.tokens)
            self._tokens[start:end] = feed.tokens
            self._positions[start:end] = np.arange(feed.position, feed.position + len(feed.tokens))
            self._slots[start:end] = feed.slot
            self._chooses[start:end] = False
            self._chooses[end - 1] = feed.chooses
            start = end
        self._batch.n_tokens = start
        return self._batch
