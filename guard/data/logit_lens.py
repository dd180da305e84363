"""Signals of the residual stream by layer: logit lens and path geometry.

guard's own score does not use them. They are recorded for other methods (`guard.evaluation.methods`), and only where
an engine captures ``mlp+block``.

Sources: logit-lens entropies as in TriLens (arXiv:2606.01033), of whose three streams this reads
the residual one; step lengths and angles as in chain-of-embedding (arXiv:2410.13640).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from guard.engines.protocols import Engine, Observer
from guard.errors import CaptureError, InputError, missing_extra
from guard.records import Floats, Limits, Prompt

#: The logit lens at each layer: its entropy in nats, the log-probability of the generated token, and whether that
#: token is the layer's most likely one.
LENS_SIGNALS = ("entropy", "logprob", "agrees")

#: Tolerance in nats between the lens at the last layer and the engine's own output: quantised engines round the
#: activations of their last product, the lens does not.
_TOLERANCE = 0.15


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """Signals of the residual stream of one answer.

    Attributes:
        lens: shape (2, 3, L), float32; of the first and the last token, as in `LENS_SIGNALS`.
        path: shape (2, 2, L), float32; of the last token and of the mean over tokens: the length
            (relative to the stream's own at that layer) and the angle in radians of the step from
            each layer to the next; the last entry is the whole way from the first layer.
    """

    lens: Floats
    path: Floats


class Lens:
    """The model's own mapping from the residual stream to token probabilities.

    Args:
        norm: weights of the last RMS norm, shape (D,).
        unembedding: shape (V, D).
        epsilon: epsilon of the norm.
        softcap: 0, or the bound that the model's logits are squashed to.
        scale: divisor of the model's logits.
    """

    def __init__(
        self, norm: Floats, unembedding: Floats, *, epsilon: float, softcap: float = 0.0, scale: float = 1.0
    ) -> None:
        self._norm, self._unembedding = norm, unembedding
        self._epsilon, self._softcap, self._scale = epsilon, softcap, scale

    @classmethod
    def load(cls, engine: Engine, path: Path) -> Self:
        """Read the lens of a GGUF model, and check it against the engine's own output.

        Args:
            engine: the loaded model, with capture point ``mlp+block``.
            path: its file.

        Raises:
            InputError: the model does not end with an RMS norm and an unembedding.
        """
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise missing_extra("gguf", "evaluate") from error
        lens = cls._from_reader(GGUFReader(path))
        seen = ResidualObserver(None, layers=engine.model.layers)
        given = engine.generate(Prompt.raw("The answer is"), limits=Limits(max_tokens=1), observer=seen)
        ours = seen.residual(lens, tokens=(given.token_ids[0],) * 2).lens[1, :2, -1]
        theirs = given.entropies[0], given.logprobs[0]
        if not np.abs(ours - theirs).max() < _TOLERANCE:
            names = LENS_SIGNALS[:2]
            each = [f"{name} {a:.3f}, the model {b:.3f}" for name, a, b in zip(names, ours, theirs, strict=True)]
            raise InputError(
                f"The logit lens of '{path.name}' does not match the model",
                why=f"at the last layer the lens has {'; '.join(each)}",
                fix="Record without it",
            )
        return lens

    @classmethod
    def _from_reader(cls, reader: Any) -> Self:
        from gguf import dequantize

        tensors = {tensor.name: tensor for tensor in reader.tensors}
        head = tensors.get("output.weight", tensors.get("token_embd.weight"))
        norm = tensors.get("output_norm.weight")
        if head is None or norm is None or "output_norm.bias" in tensors or "output.bias" in tensors:
            raise InputError("The model does not end by an RMS norm and an unembedding", fix="Record without the lens")
        numbers = _header_numbers(
            reader, ("attention.layer_norm_rms_epsilon", "final_logit_softcapping", "logit_scale")
        )
        return cls(
            np.asarray(dequantize(norm.data, norm.tensor_type), np.float32),
            np.asarray(dequantize(head.data, head.tensor_type), np.float32),
            epsilon=numbers.get("attention.layer_norm_rms_epsilon", 1e-6),
            softcap=numbers.get("final_logit_softcapping", 0.0),
            scale=numbers.get("logit_scale", 1.0),
        )

    def logits(self, states: Floats) -> Floats:
        """Return the token logits, shape (n, V), of residual states, shape (n, D)."""
        rms = np.sqrt(np.mean(np.square(states, dtype=np.float64), axis=1) + self._epsilon)
        logits: Floats = (states / rms[:, None].astype(np.float32) * self._norm) @ self._unembedding.T / self._scale
        return self._softcap * np.tanh(logits / self._softcap) if self._softcap else logits

    def signals(self, states: Floats, token: int) -> Floats:
        """Return the `LENS_SIGNALS` of one token's states, shape (L, D) -> (3, L)."""
        logits = self.logits(states)  # all layers at once, so the matrix is read from memory only once
        return np.array([_signals(row, token) for row in logits], np.float32).T


class ResidualObserver:
    """Splits an engine's ``mlp+block`` activations: MLPs go to the signature's observer, blocks are kept here."""

    def __init__(self, mlp: Observer | None, *, layers: int) -> None:
        self._mlp, self._layers = mlp, layers
        self._tokens = 0
        self._first = self._last = np.empty((0, 0), np.float32)
        self._sum: NDArray[np.float64] = np.zeros((0, 0))

    def observe(self, activations: Floats) -> None:
        """Record one token's activations, shape (2 L, D)."""
        if self._mlp is not None:
            self._mlp.observe(activations[: self._layers])
        self._last = activations[self._layers :].copy()
        if not self._tokens:
            self._first, self._sum = self._last, np.zeros_like(self._last, np.float64)
        self._sum += self._last
        self._tokens += 1

    def residual(self, lens: Lens, *, tokens: tuple[int, int]) -> Residual:
        """Return the signals of the recorded tokens, given the ids of the first and the last.

        Raises:
            CaptureError: the stream is not finite or all zero at a layer.
        """
        ends = [lens.signals(states, token) for states, token in zip((self._first, self._last), tokens, strict=True)]
        mean = np.asarray(self._sum / self._tokens, np.float32)
        return Residual(np.stack(ends), np.stack([path_geometry(self._last), path_geometry(mean)]))


def path_geometry(states: Floats) -> Floats:
    """Return lengths and angles of the steps between layers, shape (L, D) -> (2, L); see `Residual`.

    Raises:
        CaptureError: a state has no length or no direction.
    """
    states = states.astype(np.float64)
    norms = np.linalg.norm(states, axis=1)
    if not (np.isfinite(norms).all() and norms.all()):
        raise CaptureError("The residual stream is not finite or all zero at a layer")
    starts = np.concatenate([states[:-1], states[:1]])
    ends = np.concatenate([states[1:], states[-1:]])
    before, after = np.concatenate([norms[:-1], norms[:1]]), np.concatenate([norms[1:], norms[-1:]])
    lengths = np.linalg.norm(ends - starts, axis=1) / before
    cosines = np.einsum("ld,ld->l", starts, ends) / (before * after)
    return np.stack([lengths, np.arccos(np.clip(cosines, -1, 1))]).astype(np.float32)


def _signals(logits: Floats, token: int) -> Sequence[float]:
    shifted = logits - logits.max()
    probabilities = np.exp(shifted)
    total = float(probabilities.sum(dtype=np.float64))
    entropy = np.log(total) - float(probabilities @ shifted) / total
    return entropy, float(shifted[token]) - np.log(total), float(shifted[token] == 0)


def _header_numbers(reader: Any, names: Sequence[str]) -> Mapping[str, float]:
    """Return numbers of the header by name, without the architecture's prefix."""
    fields = {name.partition(".")[2]: field for name, field in reader.fields.items()}
    return {name: float(fields[name].contents()) for name in names if name in fields}
