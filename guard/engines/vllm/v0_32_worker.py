"""What guard adds to a worker of vLLM 0.32: it keeps the layers' outputs, and hands rows to the answers they belong to.

Each decoder of vLLM that can serve EAGLE drafts calls `_maybe_add_hidden_state` after each layer, with the MLP's output
(reduced over all ranks) and the residual stream apart. Kept there, they are outputs of the compiled graph: no hook and
no eager mode. The first model runner is used; rows belong to requests by its batch and its scheduler's counts.

Imported by vLLM, in each of its worker processes.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vllm.model_executor.models.interfaces import EagleModelMixin
from vllm.platforms import current_platform

from guard.engines import checkpoint
from guard.engines.constraint import Grammars
from guard.engines.growing import AnswerReader
from guard.engines.hub_tokenizer import HubTokenizer
from guard.engines.sampling import checked_logits
from guard.engines.vllm.row_signals import RowSignals
from guard.engines.vllm.watching import Watch, WatchedAnswer, silence, take_row
from guard.errors import EngineError
from guard.records import Floats

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as _Worker
else:
    from vllm.v1.worker.gpu_worker import Worker as _Worker


class TappedWorker(_Worker):  # type: ignore[misc]
    """The platform's worker. Methods that begin with ``guard_`` are called by `guard.engines.vllm.v0_32`."""

    def load_model(self, *args: Any, **options: Any) -> None:
        """Load the model so that its layers' outputs are kept."""
        point = self.vllm_config.additional_config["guard"]
        EagleModelMixin._maybe_add_hidden_state = _KEEPERS[point]
        super().load_model(*args, **options)
        runner = self.model_runner
        model = self.vllm_config.model_config
        layers = model.hf_text_config.num_hidden_layers
        runner.get_model().set_aux_hidden_state_layers(tuple(range(1, layers + 1)))
        runner.use_aux_hidden_state_outputs = True
        self._points = len(point.split("+"))
        tokens = _tokenizer(Path(model.model))
        self._watch, self._end = _watch(tokens), min(tokens.ends, default=0)

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> Any:
        """Let vLLM choose the next tokens, and hand them to the answers that are watched.

        What nobody watches gets no text: a request that came to vLLM past guard ends at once.
        """
        state = self.model_runner.execute_model_state
        if state is None:
            return super().sample_tokens(grammar_output)
        batch = _SampledPass(self.model_runner, state, self._watch, self._points)
        batch.silence(self._end)
        batch.prepare()
        output = super().sample_tokens(grammar_output)
        batch.hand_over(output)
        return output

    def guard_begin(self, requests: bytes) -> None:
        """Watch some requests from now on: `Watched` by name, pickled, since vLLM carries bytes between processes."""
        self._watch.begin(pickle.loads(requests))  # noqa: S301 - guard's own

    def guard_news(self) -> bytes:
        """Return what has become of each request since the last call: `News` by name, pickled."""
        return pickle.dumps(self._watch.news())

    def guard_drop(self, keys: Sequence[str]) -> None:
        """Forget some requests."""
        self._watch.drop(keys)

    def guard_watched(self) -> int:
        """Return how many requests are watched."""
        return len(self._watch)


def _tokenizer(folder: Path) -> HubTokenizer:
    read = checkpoint.read_settings(folder)
    return HubTokenizer(
        read.tokenizer, read, name=read.name, template_date=None, rows=lambda: int(read.config.vocab_size)
    )


def _watch(tokens: HubTokenizer) -> Watch:
    reader = AnswerReader(tokens.chat_template or "", tokens.token_id, tokens.detokenizer, tokens.ends.__contains__)
    return Watch(reader, Grammars(tokens.grammar_vocabulary).constraint)


class _SampledPass:
    """One pass: which rows of its outputs belong to which answers."""

    def __init__(self, runner: Any, state: Any, watch: Watch, points: int) -> None:
        """
        Args:
            runner: vLLM's model runner.
            state: what its forward pass has left for sampling.
            watch: the answers.
            points: capture points of a layer.
        """
        self._keys: list[str] = [*runner.input_batch.req_ids]
        chooses = ~runner.discard_request_mask.np[: len(self._keys)]
        # vLLM puts random characters behind the name that a request was given.
        names = [key.rpartition("-")[0] for key in self._keys]
        self._answers = {at: answer for at, answer in watch.watched(names).items() if chooses[at]}
        scheduled = state.scheduler_output.num_scheduled_tokens
        self._last = [end - 1 for end in accumulate(scheduled[key] for key in self._keys)]
        self._logits, self._outputs, self._points = state.logits, state.aux_hidden_states, points

    def silence(self, end: int) -> None:
        """Leave only the end token to requests without a growing answer."""
        silence(self._logits, len(self._keys), self._answers, end)

    def prepare(self) -> None:
        """Keep what the logits say, and rule out what must not be chosen."""
        if not self._answers:
            return
        rows = torch.tensor([*self._answers], device=self._logits.device)
        self._rows = RowSignals(self._logits.index_select(0, rows).float())
        for row, (at, answer) in enumerate(self._answers.items()):
            try:
                self._restrict(row, at, answer)
            except EngineError as error:
                answer.fail(error)

    def _restrict(self, row: int, at: int, answer: WatchedAnswer) -> None:
        checked_logits(self._rows.largest[row : row + 1], fix="Load it with dtype bfloat16 or float32")
        if answer.forced is not None:
            self._logits[at].fill_(-torch.inf)
            self._logits[at, answer.forced] = 0.0
        elif answer.constraint is not None:
            masked = answer.mask(self._logits[at].float().cpu().numpy())
            if masked is not None:
                self._logits[at].copy_(torch.from_numpy(masked))

    def hand_over(self, output: Any) -> None:
        """Hand the chosen tokens, their signals and their layers to the answers."""
        if not self._answers:
            return
        taken = [output.sampled_token_ids[output.req_id_to_index[self._keys[at]]] for at in self._answers]
        signals = self._rows.of([each[0] if len(each) else 0 for each in taken])
        for found, (at, answer), tokens in zip(signals, self._answers.items(), taken, strict=True):
            # One token at most: speculative decoding is refused.
            take_row(answer, tokens, found, partial(self._layers_at, at))

    def _layers_at(self, at: int) -> Floats:
        return self._layers[at]

    @cached_property
    def _layers(self) -> dict[int, Floats]:
        """The layers of the answers that somebody reads, shape (L, D) each."""
        read = [at for at, answer in self._answers.items() if answer.observer is not None]
        rows = torch.tensor([self._last[at] for at in read], device=self._outputs[0].device)
        kept = [
            layer.index_select(0, rows)
            for first in range(self._points)
            for layer in self._outputs[first :: self._points]
        ]
        stacked = torch.stack(kept, 1).float().cpu().numpy()
        return dict(zip(read, np.ascontiguousarray(stacked), strict=True))


# -- where a layer's output is kept; these run inside of compiled graphs -----------------------


def _keep_mlp(self: Any, kept: list[Any], layer: int, hidden_states: Any, residual: Any) -> list[Any]:
    if layer in self.aux_hidden_state_layers:
        kept.append(hidden_states.clone())  # the next layer's norm works in place
    return kept


def _keep_block(self: Any, kept: list[Any], layer: int, hidden_states: Any, residual: Any) -> list[Any]:
    if layer in self.aux_hidden_state_layers:
        kept.append(hidden_states + residual)
    return kept


def _keep_both(self: Any, kept: list[Any], layer: int, hidden_states: Any, residual: Any) -> list[Any]:
    if layer in self.aux_hidden_state_layers:
        kept.append(hidden_states.clone())
        kept.append(hidden_states + residual)
    return kept


_KEEPERS = {"mlp": _keep_mlp, "block": _keep_block, "mlp+block": _keep_both}
