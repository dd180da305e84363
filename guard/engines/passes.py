"""The arguments of each forward pass of a Hugging Face model: exactly those that its own ``generate()`` passes.

Positions, masks, the kind of cache, and when a cache is thrown away differ between architectures and
between versions of transformers. None of it is guessed here: `generate` itself prepares a request (its
decoding loop is replaced by a function that keeps what was prepared), and the model's own
``prepare_inputs_for_generation`` makes each pass's arguments, as in generate's loop.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers

#: Tokens of a prompt that run at once, where they need not all; between them a request can be cancelled.
PREFILL_TOKENS = 512

#: Rotary embeddings that turn a position in the same way however long the text is. With others
#: (longrope, dynamic) a prompt that runs in parts is read differently from the same prompt at once.
_STATIC_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}

#: Model types that read a prompt in parts otherwise, or not at all, and do not say so of themselves.
_AT_ONCE = {"dory"}

#: Names of the cache among a model's arguments, by version of transformers.
_CACHE_NAMES = ("cache", "past_key_values", "cache_params")


class Passes:
    """The arguments of a request's forward passes, in order; each is made when the pass before it has run.

    Args:
        lm: the model.
        device: where its tokens have to be.
        prompt: all tokens of the prompt.
        cache: what an earlier request left, which has read the first tokens of the prompt.
        kept: how many of them.

    Raises:
        Exception: whatever the model's own preparation raises, here and in the methods.
    """

    def __init__(
        self, lm: Any, device: torch.device, prompt: Sequence[int], *, cache: Any = None, kept: int = 0
    ) -> None:
        self._lm = lm
        self._ids = torch.tensor([list(prompt)], dtype=torch.long, device=device)
        self._prompt_tokens = len(prompt)
        self._settings = _prepared(lm, self._ids)
        self._positions = self._settings.get("position_ids")
        self._whole = lm.prepare_inputs_for_generation(self._ids, is_first_iteration=True, **self._settings)
        may_split = _may_split(lm, self._whole)
        #: Largest number of prompt tokens per pass: all of them if the model reads parts differently.
        self.part_tokens = PREFILL_TOKENS if may_split else len(prompt)
        #: How many tokens the cache has read. A prefix that is there already is a part that was read before.
        self.fed = kept if may_split and self._takes(cache) else 0

    @property
    def cache(self) -> Any:
        """The cache that the passes have filled; None if the model has none."""
        return self._settings.get(self._cache_name or "")

    @property
    def _cache_name(self) -> str | None:
        return next((name for name in _CACHE_NAMES if self._settings.get(name) is not None), None)

    def _takes(self, cache: Any) -> bool:
        """Put a cache in the place of the empty one that was prepared, if it is of the same kind."""
        name = self._cache_name
        if name is None or type(cache) is not type(self._settings[name]):
            return False
        self._settings = {**self._settings, name: cache}
        return True

    def of(self, tokens: Sequence[int]) -> dict[str, Any]:
        """Return the arguments of the pass that reads these tokens after those before."""
        start, self.fed = self.fed, self.fed + len(tokens)
        if len(tokens) == self._prompt_tokens and start == 0:
            return dict(self._whole)
        return self._part(start, self.fed) if self.fed <= self._prompt_tokens else self._following(tokens)

    def after(self, output: Any) -> None:
        """Record the result of a pass: its cache, and, once the prompt is read, that one token follows."""
        if self.fed >= self._prompt_tokens:
            self._settings = self._lm._update_model_kwargs_for_generation(output, self._settings)

    def _part(self, start: int, end: int) -> dict[str, Any]:
        part = self._settings
        if self._positions is not None:
            part = {**part, "position_ids": self._positions[..., start:end]}
        return dict(self._lm.prepare_inputs_for_generation(self._ids[:, start:end], is_first_iteration=True, **part))

    def _following(self, tokens: Sequence[int]) -> dict[str, Any]:
        added = torch.tensor([list(tokens)], dtype=torch.long, device=self._ids.device)
        self._ids = torch.cat([self._ids, added], dim=1)
        new = added.shape[1] if self._settings.get("use_cache") else None
        prepared = self._lm.prepare_inputs_for_generation(self._ids, next_sequence_length=new, **self._settings)
        return dict(prepared)


def _prepared(lm: Any, ids: torch.Tensor) -> dict[str, Any]:
    """Return what generate() prepares for a prompt: cache, positions, masks."""
    kept: dict[str, Any] = {}

    def keep(_model: Any, input_ids: torch.Tensor, *_: Any, **prepared: Any) -> torch.Tensor:
        kept.update(prepared)
        return input_ids

    # Where the model's settings name a cache of fixed size, one that grows: how long the answer gets is not known.
    named = getattr(getattr(lm, "generation_config", None), "cache_implementation", None)
    make: Any = transformers.GenerationConfig
    config = make(
        max_new_tokens=1,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        cache_implementation=named and "dynamic",
        pad_token_id=0,
    )
    lm.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config, custom_generate=keep)
    for name in ("logits_processor", "stopping_criteria", "generation_config", "synced_gpus", "streamer"):
        kept.pop(name, None)
    return kept


def _may_split(lm: Any, whole: Mapping[str, Any]) -> bool:
    """Return whether a prompt that runs in parts is read as by one pass with these arguments."""
    taken = inspect.signature(lm.forward).parameters  # some old models are handed a cache and leave it alone
    has_cache = any(whole.get(name) is not None and name in taken for name in _CACHE_NAMES)
    at_once = getattr(lm, "_is_stateful", False) or lm.config.model_type in _AT_ONCE
    return has_cache and not at_once and _rope_types(lm.config) <= _STATIC_ROPE


def _rope_types(config: Any) -> set[str]:
    """Return the kinds of rotary embedding in a configuration: one, one for each kind of layer, or none."""
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    each = [part for part in rope.values() if isinstance(part, Mapping)] or [rope]
    return {str(part.get("rope_type") or part.get("type") or "default") for part in each}
