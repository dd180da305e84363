"""Layer activations -> pairwise KL divergences between layers -> named features.

An implementation of the signature of ILIS (Badash, Belinkov, Freiman, "Between the Layers Lies the Truth",
arXiv:2603.22299), with further signals of the same pass. Pure except for the observer, which aggregates tokens as they
arrive, so that memory does not grow with the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import CaptureError, InputError, did_you_mean
from guard.records import Floats, Signals, Signature

#: Version of the features; incremented when the meaning or the order of any feature changes.
SCHEMA_VERSION = 1

#: Aggregates over an answer's tokens, and what each is called where people read.
AGGREGATE_WORDS = {
    "first": "first token",
    "last": "last token",
    "mean": "mean over tokens",
    "max": "maximum over tokens",
}
AGGREGATES = tuple(AGGREGATE_WORDS)

#: Tokens whose activations are stored.
ACTIVATION_TOKENS = ("first", "last", "mean")

#: Multiply-adds of a matrix product below which OpenBLAS uses one thread (it begins at 4 x 65,536).
_BLAS_STAYS_SERIAL = 200_000

#: Feature groups, in the order in which they stand in the vector, and what each is called where people read.
WORDS = {
    "logprob": "log-probabilities",
    "margin": "margins",
    "length": "length",
    "norms": "norms",
    "map": "signature",
    "extremes": "least log-probability and greatest entropy",
}
GROUPS = tuple(WORDS)


@dataclass(frozen=True, slots=True)
class FeatureSchema:
    """The features and their order. Part of every artefact.

    Attributes:
        layers: number of layers (L).
        temperatures: temperatures of the softmax over the hidden dimension.
        aggregates: aggregates over the answer's tokens; a subset of `AGGREGATES`.
        groups: a subset of `GROUPS`.
        version: version of the features.

    Examples:
        >>> FeatureSchema(layers=30, aggregates=("last",), groups=("length", "norms")).size
        31
    """

    layers: int
    temperatures: tuple[float, ...] = (1.0,)
    aggregates: tuple[str, ...] = ("first", "last", "mean", "max")
    groups: tuple[str, ...] = GROUPS
    version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check_known("aggregate", self.aggregates, AGGREGATES)
        _check_known("feature group", self.groups, GROUPS)
        _check_temperatures(self.temperatures)
        if self.version != SCHEMA_VERSION:
            raise InputError(
                f"The features are of schema version {self.version}", why=f"this guard makes version {SCHEMA_VERSION}"
            )

    @property
    def size(self) -> int:
        """The number of features, computed without their names."""
        rows, layers = len(self.aggregates), self.layers
        sizes = {
            "logprob": len(_LOGPROB_NAMES),
            "margin": len(_MARGIN_NAMES),
            "length": 1,
            "norms": rows * layers,
            "map": len(self.temperatures) * rows * layers * (layers - 1),
            "extremes": len(_EXTREMES_NAMES),
        }
        return sum(sizes[group] for group in self.groups)

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names, in the order of the vector: ``group.what``."""
        names: list[str] = []
        for group in self.groups:
            names += [f"{group}.{name}" for name in _NAMERS[group](self)]
        return tuple(names)

    @property
    def signature_tokens(self) -> tuple[str, ...]:
        """The aggregates whose maps and norms are features; may be empty."""
        return self.aggregates if {"norms", "map"} & set(self.groups) else ()

    def columns(self, groups: Iterable[str], aggregates: Iterable[str] = AGGREGATES) -> NDArray[np.intp]:
        """Return positions of the features of some groups, and of some aggregates in them, in the vector."""
        wanted, tokens = set(groups), set(aggregates)
        kinds = [_kind(name) for name in self.names]
        kept = [at for at, kind in enumerate(kinds) if kind.group in wanted and kind.aggregate in (None, *tokens)]
        return np.array(kept, np.intp)

    def narrowed(self, columns: Iterable[int]) -> tuple[FeatureSchema, NDArray[np.intp]]:
        """Return the smallest schema with some of the features, and the position of each feature in it.

        Args:
            columns: positions of the features that are needed.

        Returns:
            the schema, and the new positions of all features, shape (size,); -1 for features that it lacks.
        """
        names = self.names
        kinds = [_kind(names[at]) for at in columns]
        groups, tokens = {kind.group for kind in kinds}, {kind.aggregate for kind in kinds}
        heats = {kind.temperature for kind in kinds}
        small = replace(
            self,
            groups=tuple(name for name in self.groups if name in groups) or self.groups[:1],
            aggregates=tuple(name for name in self.aggregates if name in tokens) or self.aggregates[:1],
            temperatures=tuple(tau for tau in self.temperatures if f"{tau:g}" in heats) or self.temperatures[:1],
        )
        at = {name: position for position, name in enumerate(small.names)}
        return small, np.array([at.get(name, -1) for name in names], np.intp)


class SignatureObserver:
    """Aggregates the activations of one answer, token by token, into its `Signature`.

    All tokens count, from the pass that chose the first token to the pass that chose the end of the answer.

    A map costs a matrix product, so only the needed maps are computed: those of the first and the last token when the
    signature is read, those of every token for the mean and the maximum.

    Attributes:
        temperatures: temperatures of the maps.
        aggregates: the aggregates whose maps and norms are read; may be empty.
        reads_layers: False if nothing of the layers is read; guard's engines then record none.

    Examples:
        >>> observer = SignatureObserver(aggregates=("last",))
        >>> for token in np.random.default_rng(0).standard_normal((5, 3, 8)):  # 5 tokens, 3 layers, width 8
        ...     observer.observe(token)
        >>> observer.signature().maps.shape  # temperatures, aggregates, layers, layers
        (1, 1, 3, 3)
    """

    def __init__(
        self,
        *,
        temperatures: tuple[float, ...] = (1.0,),
        aggregates: tuple[str, ...] = AGGREGATES,
        reads_layers: bool = True,
    ) -> None:
        _check_temperatures(temperatures)
        if aggregates:
            _check_known("aggregate", aggregates, AGGREGATES)
        self.reads_layers = reads_layers
        self.temperatures = temperatures
        self.aggregates = aggregates
        self._reads_every_token = bool({"mean", "max"} & set(aggregates))
        self._tokens = 0
        self._maps = _Fold(aggregates)
        self._norms = _Fold(aggregates)
        self._activations = _Fold(ACTIVATION_TOKENS)

    def observe(self, activations: Floats) -> None:
        """Add the activations of one token, shape (L, D)."""
        if not self.reads_layers:  # the engine records them anyway
            return
        norms = log_rms(activations)
        if not np.isfinite(norms).all():
            raise _unusable(self._tokens)
        if self._reads_every_token:
            self._maps.add(self._token_maps(activations, self._tokens))
        self._norms.add(norms)
        self._activations.add(activations.copy())
        self._tokens += 1

    def signature(self) -> Signature:
        """Return the signature of the tokens so far; without layers if none is read.

        Raises:
            CaptureError: there was no token.
        """
        if not self.reads_layers:
            return _NOTHING_READ
        if self._tokens == 0:
            raise CaptureError("No token's activations were recorded")
        activations = self._activations.aggregate()
        maps = self._maps.aggregate() if self._reads_every_token else self._end_maps(activations)
        return Signature(
            maps=np.ascontiguousarray(maps.swapaxes(0, 1)),
            norms=self._norms.aggregate(),
            activations=activations,
            temperatures=self.temperatures,
            aggregates=self.aggregates,
            tokens=self._tokens,
        )

    def _end_maps(self, activations: Floats) -> Floats:
        """Return the maps of the first and the last token that are read, shape (aggregates, taus, L, L)."""
        layers, at = activations.shape[1], {"first": 0, "last": self._tokens - 1}
        ends = [self._token_maps(activations[ACTIVATION_TOKENS.index(name)], at[name]) for name in self.aggregates]
        return np.array(ends, np.float32).reshape(len(ends), len(self.temperatures), layers, layers)

    def _token_maps(self, activations: Floats, token: int) -> Floats:
        """Return one token's maps, shape (temperatures, L, L)."""
        maps = np.stack([pairwise_kl(activations, temperature=tau) for tau in self.temperatures])
        if not np.isfinite(maps).all():
            raise _unusable(token)
        return maps


#: Stands for layers that no score reads; a read raises CaptureError.
_NOTHING_READ = Signature(
    maps=np.empty((0, 0, 0, 0), np.float32),
    norms=np.empty((0, 0), np.float32),
    activations=np.empty((0, 0, 0), np.float32),
    temperatures=(),
    aggregates=(),
    tokens=0,
)


def _unusable(token: int) -> CaptureError:
    return CaptureError(f"Token {token} has activations that are not finite or all zero")


class _Fold:
    """Aggregates of a sequence of arrays (first, last, mean, maximum), in constant memory."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._count = 0
        self._first = self._last = self._max = self._sum = np.empty(0)

    def add(self, array: NDArray[Any]) -> None:
        if self._count == 0:
            self._first, self._max, self._sum = array, array.copy(), array.astype(np.float64)
        else:
            if "max" in self._names:
                np.maximum(self._max, array, out=self._max)
            self._sum += array
        self._last = array
        self._count += 1

    def aggregate(self) -> Floats:
        values: dict[str, NDArray[Any]] = {
            "first": self._first,
            "last": self._last,
            "max": self._max,
            "mean": self._sum / self._count,
        }
        return np.array([values[name].astype(np.float32) for name in self._names], np.float32)


def pairwise_kl(activations: NDArray[Any], *, temperature: float = 1.0) -> NDArray[Any]:
    """Return the directed KL divergences between the layers' softmaxed activations.

    KL(p_i || p_j) = A_j - A_i - p_i . (z_j - z_i), with z = x / temperature and A = logsumexp(z):
    one matrix product, and no clamping with an epsilon.

    Args:
        activations: shape (L, D); float32, or float64 for more precision.
        temperature: above 0.

    Returns:
        shape (L, L), nats, non-negative, zero diagonal; entry i, j is KL(p_i || p_j).

    Examples:
        >>> layers = np.log([[0.5, 0.5], [0.75, 0.25]])
        >>> pairwise_kl(layers).round(4).tolist()
        [[0.0, 0.1438], [0.1308, 0.0]]
    """
    if not activations.size:  # of a model that shows no layers
        return np.zeros((0, 0), activations.dtype)
    z = activations / activations.dtype.type(temperature)
    z -= z.max(axis=1, keepdims=True)
    p = np.exp(z)
    totals = p.sum(axis=1)
    p /= totals[:, None]
    log_totals = np.log(totals)
    cross = _product(p, z)
    kl = (log_totals[None, :] - log_totals[:, None]) - cross + np.diag(cross)[:, None]
    # Rounding can leave a divergence of nearly equal layers just below zero.
    np.maximum(kl, 0, out=kl)
    np.fill_diagonal(kl, 0)
    return np.asarray(kl)


def _product(p: NDArray[Any], z: NDArray[Any]) -> NDArray[Any]:
    """p @ z.T for (L, D) arrays, in blocks so small that BLAS stays on this thread.

    The engine's own threads spin between tokens. BLAS threads beside them doubled the time of each
    token on two cores (Qwen2.5-1.5B: 47 ms a token without, 92 to 212 ms with them).
    """
    width = max(1, _BLAS_STAYS_SERIAL // len(p) ** 2)
    blocks = range(0, p.shape[1], width)
    return np.asarray(sum(p[:, at : at + width] @ z[:, at : at + width].T for at in blocks))


def log_rms(activations: NDArray[Any]) -> Floats:
    """Natural log of each layer's root mean square, shape (L,) from (L, D)."""
    with np.errstate(divide="ignore"):  # an all-zero layer gives -inf, which the observer refuses
        mean_squares = np.einsum("ij,ij->i", activations, activations) / max(activations.shape[1], 1)
        return np.asarray(0.5 * np.log(mean_squares), np.float32)


def last_map(signature: Signature) -> Floats | None:
    """Return the last token's map at temperature 1, shape (L, L); None where it was not computed."""
    if "last" not in signature.aggregates or 1.0 not in signature.temperatures:
        return None
    found: Floats = signature.maps[signature.temperatures.index(1.0), signature.aggregates.index("last")]
    return found


def feature_vector(signals: Signals, schema: FeatureSchema) -> Floats:
    """Return the features of one answer, shape (len(schema.names),), float32, in the schema's order.

    Raises:
        CaptureError: the signature lacks a layer, temperature or aggregate that the schema names.
    """
    if not len(signals.logprobs):
        raise CaptureError("The answer has no token")
    parts = [_BUILDERS[group](signals, schema) for group in schema.groups]
    vector = np.concatenate(parts).astype(np.float32)
    if not np.isfinite(vector).all():
        raise CaptureError("A feature is not finite", why=schema.names[int(np.argmin(np.isfinite(vector)))])
    return vector


# -- feature groups: a namer and a builder each ------------------------------------------------


@dataclass(frozen=True, slots=True)
class _FeatureKind:
    """The parts of a feature's name: group, aggregate and temperature."""

    group: str
    aggregate: str | None = None
    temperature: str | None = None


def _kind(name: str) -> _FeatureKind:
    group, *parts = name.split(".")
    if group == "norms":
        return _FeatureKind(group, parts[0])
    if group == "map":
        *heat, aggregate, _ = parts  # a temperature may contain a point
        return _FeatureKind(group, aggregate, ".".join(heat))
    return _FeatureKind(group)


_LOGPROB_NAMES = ("mean", "min", "first", "last", "entropy_mean", "entropy_max", "entropy_first")


def _logprob_names(_: FeatureSchema) -> tuple[str, ...]:
    return _LOGPROB_NAMES


def _logprob_features(signals: Signals, _: FeatureSchema) -> Floats:
    logprobs, entropies = signals.logprobs, signals.entropies
    values = [logprobs.mean(), logprobs.min(), logprobs[0], logprobs[-1]]
    values += [entropies.mean(), entropies.max(), entropies[0]]
    return np.array(values, np.float32)


_EXTREMES_NAMES = ("log_surprisal_max", "log_entropy_max")
#: Value of an answer whose tokens are all certain; smaller differences are noise.
_CERTAIN = 1e-4


def _extremes_names(_: FeatureSchema) -> tuple[str, ...]:
    return _EXTREMES_NAMES


def _extremes_features(signals: Signals, _: FeatureSchema) -> Floats:
    # On sets that were left out: a slightly better Brier score than the statistics' own, see docs/evidence/ilis.md.
    return np.log(np.maximum(np.array([-signals.logprobs.min(), signals.entropies.max()], np.float32), _CERTAIN))


_MARGIN_NAMES = ("mean", "min", "first")


def _margin_names(_: FeatureSchema) -> tuple[str, ...]:
    return _MARGIN_NAMES


def _margin_features(signals: Signals, _: FeatureSchema) -> Floats:
    # A model may exclude a token (-inf); differences beyond 50 nats mean nothing.
    margins = np.minimum(signals.margins, 50.0)
    return np.array([margins.mean(), margins.min(), margins[0]], np.float32)


def _length_names(_: FeatureSchema) -> list[str]:
    return ["log_tokens"]


def _length_features(signals: Signals, _: FeatureSchema) -> Floats:
    return np.log(np.array([len(signals.logprobs)], np.float32))


def _norms_names(schema: FeatureSchema) -> list[str]:
    return [f"{aggregate}.{layer}" for aggregate, layer in product(schema.aggregates, range(schema.layers))]


def _norms_features(signals: Signals, schema: FeatureSchema) -> Floats:
    norms = signals.signature.norms[_aggregate_rows(signals.signature, schema)]
    # Each layer against the mean of all: a ratio of norms, free of the model's overall scale.
    relative: Floats = norms - norms.mean(axis=1, keepdims=True)
    return relative.ravel()


def _map_names(schema: FeatureSchema) -> list[str]:
    pairs = [(i, j) for i, j in product(range(schema.layers), repeat=2) if i != j]
    kinds = product(schema.temperatures, schema.aggregates, pairs)
    return [f"{tau:g}.{aggregate}.{i}>{j}" for tau, aggregate, (i, j) in kinds]


def _map_features(signals: Signals, schema: FeatureSchema) -> Floats:
    signature = signals.signature
    missing = [tau for tau in schema.temperatures if tau not in signature.temperatures]
    if missing:
        raise CaptureError(f"The signature was not made at temperature {missing[0]:g}")
    rows = [signature.temperatures.index(tau) for tau in schema.temperatures]
    maps = signature.maps[rows][:, _aggregate_rows(signature, schema)]
    off_diagonal = ~np.eye(schema.layers, dtype=bool)
    # Linear models and figures need the logarithm; trees do not depend on it.
    features: Floats = np.log(maps[:, :, off_diagonal] + np.float32(1e-6)).ravel()
    return features


def _aggregate_rows(signature: Signature, schema: FeatureSchema) -> list[int]:
    if signature.maps.shape[-1] != schema.layers:
        raise CaptureError(f"The signature has {signature.maps.shape[-1]} layers, the scorer expects {schema.layers}")
    missing = [name for name in schema.aggregates if name not in signature.aggregates]
    if missing:
        raise CaptureError(f"The signature has no aggregate '{missing[0]}'")
    return [signature.aggregates.index(name) for name in schema.aggregates]


_NAMERS = {
    "logprob": _logprob_names,
    "margin": _margin_names,
    "length": _length_names,
    "norms": _norms_names,
    "map": _map_names,
    "extremes": _extremes_names,
}
_BUILDERS = {
    "logprob": _logprob_features,
    "margin": _margin_features,
    "length": _length_features,
    "norms": _norms_features,
    "map": _map_features,
    "extremes": _extremes_features,
}


def _check_temperatures(temperatures: tuple[float, ...]) -> None:
    if not temperatures or not all(0 < tau < 1e6 for tau in temperatures):
        raise InputError(f"Temperatures must be above 0 and below a million, got {temperatures}")
    # Features are named by them.
    if len({f"{tau:g}" for tau in temperatures}) < len(temperatures):
        raise InputError(f"Temperatures must differ in their first six digits, got {temperatures}")


def _check_known(what: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise InputError(f"Unknown {what} '{name}'", fix=did_you_mean(name, known))
    if not names or len(set(names)) != len(names):
        raise InputError(f"Give each {what} once, and at least one; got {names}")
