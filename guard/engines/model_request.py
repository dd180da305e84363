"""One request on a Hugging Face model: its passes, and the layers that hooks record while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from guard.engines import checkpoint
from guard.engines.batch import Feed, PassRow
from guard.engines.passes import Passes
from guard.engines.sampling import checked_logits
from guard.errors import CaptureError
from guard.records import Floats


class LayerRecorder:
    """Keeps each layer's output at the last position, for the passes that it is armed for."""

    def __init__(self, names: Sequence[str], width: int) -> None:
        self._names = names
        self._rows = torch.empty(len(names), width, dtype=torch.float32)
        self._seen: set[int] = set()
        self._failure: tuple[str, Exception] | None = None
        self._armed = False

    def arm(self, armed: bool) -> None:
        """Set whether the next pass is recorded, and discard what the last one recorded."""
        self._armed = armed
        self._seen.clear()
        self._failure = None

    def hook(self, layer: int) -> Callable[[Any, Any, Any], None]:
        """A forward hook that changes nothing and never raises."""

        def record(_module: Any, _inputs: Any, output: Any) -> None:
            if not self._armed:
                return
            try:
                hidden = output[0] if isinstance(output, tuple | list) else output
                self._rows[layer].copy_(hidden.detach()[..., -1, :].reshape(-1))
                self._seen.add(layer)
            except Exception as error:  # noqa: BLE001 - the answer is still generated; activations() raises
                self._failure = self._failure or (self._names[layer], error)

        return record

    def hooks(self, lm: Any) -> Iterator[Any]:
        """Register a hook at each layer of a model."""
        for layer, name in enumerate(self._names):
            yield lm.get_submodule(name).register_forward_hook(self.hook(layer))

    def rows(self) -> Floats:
        """Shape (L, D); the same memory for every pass."""
        if self._failure is not None:
            name, error = self._failure
            raise CaptureError(f"The output of '{name}' could not be recorded", why=f"{error}") from error
        if len(self._seen) < len(self._names):
            unused = next(name for layer, name in enumerate(self._names) if layer not in self._seen)
            raise CaptureError(f"'{unused}' had no part in the forward pass")
        rows: Floats = self._rows.numpy()
        return rows


class ModelRequest:
    """One request's passes through a model, with its key-value cache."""

    def __init__(
        self, lm: Any, recorder: LayerRecorder | None, no_grad: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        self._lm, self._recorder, self._no_grad = lm, recorder, no_grad
        self._passes: Any = None
        self._logits: Any = None
        self._hooks: list[Any] = []
        # Each flag by itself, not lm.eval(): parts may be frozen in eval mode, and train() may be
        # overridden to do more than set flags.
        self._training = [module for module in lm.modules() if module.training]

    @property
    def part_tokens(self) -> int:
        """See `Passes`."""
        return int(self._passes.part_tokens)

    @property
    def cache(self) -> tuple[Any, int]:
        """The cache, and how many tokens it has read; None and 0 before `begin` is done."""
        return (None, 0) if self._passes is None else (self._passes.cache, self._passes.fed)

    def begin(self, prompt: Sequence[int], cache: Any, kept: int) -> int:
        """Switch dropout off, add hooks where an observer reads the layers, and prepare the first pass.

        Args:
            prompt: all of its tokens.
            cache: of its first tokens; None for an empty one.
            kept: how many these are.

        Returns:
            how many of them need not be read again.
        """
        for module in self._training:
            module.training = False
        if self._recorder is not None:
            for hook in self._recorder.hooks(self._lm):
                self._hooks.append(hook)
        with checkpoint.run_errors(), self._no_grad():
            device = self._lm.get_input_embeddings().weight.device
            self._passes = Passes(self._lm, device, prompt, cache=cache, kept=kept)
        return int(self._passes.fed)

    def detach(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()
        for module in self._training:
            module.training = True

    def evaluate(self, feed: Feed) -> PassRow:
        """Run tokens through the model; what it says is valid until the next call."""
        with checkpoint.run_errors(), self._no_grad():
            arguments = self._passes.of(feed.tokens)
            if self._recorder is not None:
                self._recorder.arm(feed.capture)
            output = self._lm(**{**arguments, "return_dict": True})
            self._passes.after(output)
            self._logits = output.logits[0, -1]
        return self

    def logits(self) -> Floats:
        """Return the last position's logits; see `guard.engines.batch.PassRow`."""
        with checkpoint.run_errors(), self._no_grad():
            logits = self._logits.float().cpu().numpy()
        return checked_logits(logits, fix="Load it with dtype float32 or bfloat16")

    def activations(self) -> Floats:
        """Return the last pass's activations; see `guard.engines.batch.PassRow`."""
        if self._recorder is None:
            raise CaptureError("Nothing is recorded in a request without an observer")
        return self._recorder.rows()
