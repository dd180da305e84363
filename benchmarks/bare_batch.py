"""A bare batched generation loop on llama.cpp's low-level API: what continuous batching costs without guard.

Slots are refilled as they become free; each prompt is read in one piece beside the running answers; tokens are chosen
greedily. No text, no signals, no deadlines.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

BATCH_TOKENS = 512


@dataclass
class _Running:
    number: int
    fed: list[int]
    position: int
    left: int


class BareBatch:
    """A model with as many sequences as there are clients."""

    def __init__(self, model: Path, *, slots: int, cells: int, threads: int) -> None:
        parameters = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(model), parameters)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_seq_max, context.kv_unified = cells, slots, True
        context.n_batch = context.n_ubatch = BATCH_TOKENS
        context.n_threads = context.n_threads_batch = threads
        self._context: Any = llama_cpp.llama_init_from_model(self._model, context)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch = llama_cpp.llama_batch_init(BATCH_TOKENS, 0, 1)
        self._slots = slots

    def close(self) -> None:
        llama_cpp.llama_batch_free(self._batch)
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def run(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[list[int]]:
        """Continue each prompt by as many tokens as wanted; return the tokens."""
        waiting = deque(range(len(prompts)))
        answers: list[list[int]] = [[] for _ in prompts]
        running: dict[int, _Running] = {}
        llama_cpp.llama_memory_clear(self._memory, False)
        while waiting or running:
            for slot in range(self._slots):
                if slot not in running and waiting and self._room(running, len(prompts[waiting[0]])):
                    number = waiting.popleft()
                    running[slot] = _Running(number, list(prompts[number]), 0, lengths[number])
            for slot, token in self._step(running):
                one = running[slot]
                answers[one.number].append(token)
                one.fed, one.left = [token], one.left - 1
                if not one.left:
                    del running[slot]
                    llama_cpp.llama_memory_seq_rm(self._memory, slot, -1, -1)
        return answers

    def _room(self, running: dict[int, _Running], tokens: int) -> bool:
        return sum(len(one.fed) for one in running.values()) + tokens <= BATCH_TOKENS

    def _step(self, running: dict[int, _Running]) -> list[tuple[int, int]]:
        """Feed each sequence what it is continued by; return its slot and its next token."""
        rows = []
        batch, at = self._batch, 0
        for slot, one in running.items():
            for token in one.fed:
                batch.token[at], batch.pos[at] = token, one.position
                batch.n_seq_id[at], batch.seq_id[at][0], batch.logits[at] = 1, slot, False
                one.position, at = one.position + 1, at + 1
            batch.logits[at - 1] = True
            rows.append((slot, at - 1))
        batch.n_tokens = at
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"llama_decode gave {status}")
        return [(slot, self._best(row)) for slot, row in rows]

    def _best(self, row: int) -> int:
        pointer = llama_cpp.llama_get_logits_ith(self._context, row)
        return int(np.ctypeslib.as_array(pointer, shape=(self._vocabulary,)).argmax())
