"""Signals -> probability of being wrong. Loads and applies a fitted artefact; `guard.calibration` fits them.

The artefact (`guard.scoring.scorer_file`) is read into plain arrays and evaluated here, so that an untrusted file
cannot execute code, and scoring needs no machine-learning library.
"""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from guard.errors import CaptureError, InputError, ScorerError, ScorerMismatchError
from guard.files import checked_json
from guard.files.write_whole import write_whole
from guard.records import CapturePoint, Doubles, ModelInfo, Signals
from guard.scores import Score, ScoreName, ScoreReading
from guard.scoring.ood import OodDetector
from guard.scoring.probe import normalised
from guard.scoring.provenance import Binding
from guard.scoring.scorer_file import FORMAT, FORMAT_VERSION, MAX_BYTES, Artefact, Linear, LinearProbe, Model, Trees
from guard.scoring.shelf import scorer_path, shipped_folder
from guard.scoring.signature import SignatureObserver, feature_vector, last_map


class Scorer:
    """A fitted scorer. Immutable and safe under threads.

    Attributes:
        artefact: the contents of the file, including origin and metrics.
        gives: names of the scores that it computes: all scores of the file, or those that `giving` selected.
        calibrated: False when it was forced onto a model that it was not fitted on, or rebound and not checked.
        sha256: checksum of the file's contents; certificates and audits refer to it.
    """

    def __init__(self, artefact: Artefact, *, calibrated: bool = True) -> None:
        self.artefact = artefact
        self.calibrated = calibrated and (artefact.rebound is None or artefact.rebound.checked > 0)
        self.sha256 = checked_json.digest(_content(artefact))
        detector = artefact.ood_detector
        self._choose(tuple(artefact.scores), OodDetector.from_stored(detector) if detector else None)

    def _choose(self, gives: tuple[ScoreName, ...], detector: OodDetector | None) -> None:
        """Compute these scores, and the ood_score where there is a detector."""
        models = {name: self.artefact.scores[name] for name in gives}
        used = {at for model in models.values() for at in model.features_used}
        self.gives, self._ood_detector = gives, detector
        self._schema, positions = self.artefact.feature_schema.narrowed(used)
        self._models = {
            name: (_Calibrated(model, positions), self.artefact.reads(name)) for name, model in models.items()
        }
        self._reads_layers = detector is not None or any(self._layers_read(name) for name in gives)

    @property
    def gives_ood_score(self) -> bool:
        """Whether scores have an ood_score."""
        return self._ood_detector is not None

    def resolved(self, name: ScoreName) -> ScoreName:
        """Return the score that a name stands for: of a served model, which shows no layers, ``guard`` is its only one.

        Examples:
            >>> load_scorer(shipped_scorer()).resolved("guard")
            'guard'
        """
        return name if name in self.artefact.scores or name != "guard" else self.artefact.default_score

    def giving(self, name: ScoreName, *, ood_score: bool = False) -> Self:
        """Return this scorer for callers who decide on one score, without the work for other scores.

        It computes that score, and other scores that read little more of the layers. If no layer is read, guard's
        engines record none.

        Args:
            name: name of a score of the scorer.
            ood_score: whether the caller needs the ood_score, which is always computed if layers are read.

        Examples:
            >>> scorer = load_scorer(shipped_scorer())
            >>> scorer.giving("log-probabilities").observer().reads_layers
            False
            >>> scorer.giving("log-probabilities").gives, scorer.giving("guard").gives
            (('log-probabilities',), ('guard', 'ilis', 'log-probabilities'))
        """
        read = self._layers_read(self.resolved(name)) | (_LAYERS if ood_score else frozenset())
        kept = tuple(each for each in self.gives if self._layers_read(each) <= read)
        if kept == self.gives and (read or self._ood_detector is None):
            return self
        narrowed = copy.copy(self)
        narrowed._choose(kept, self._ood_detector if read else None)
        return narrowed

    def _layers_read(self, name: ScoreName) -> frozenset[str]:
        """Return what a score reads of the layers: nothing, the layers, or also maps of every token.

        The map of the first or the last token alone is one matrix product an answer, and leaves no score out.
        """
        model = self.artefact.scores[name]
        schema, _ = self.artefact.feature_schema.narrowed(model.features_used)
        tokens = schema.signature_tokens if model.features_used else ()
        every = [token for token in tokens if token in ("mean", "max")]
        maps = {f"{token} at {tau:g}" for token in every for tau in schema.temperatures}
        return frozenset(maps) | (_LAYERS if tokens or model.probe else frozenset())

    def observer(self) -> SignatureObserver:
        """Return an observer of one answer, which computes the maps of the tokens that the scores read, and no other.

        Examples:
            >>> load_scorer(shipped_scorer()).observer().aggregates  # one map an answer, which ILIS reads
            ('last',)
        """
        schema = self._schema
        return SignatureObserver(
            temperatures=schema.temperatures, aggregates=schema.signature_tokens, reads_layers=self._reads_layers
        )

    def score(self, signals: Signals) -> Score:
        """Return the probabilities that an answer is wrong; guard's own decides, or the first where it is left out.

        Raises:
            CaptureError: the signals lack inputs of the scorer's features.
            ScorerError: the artefact's numbers are so large that the score is not a number.
        """
        started = time.perf_counter()
        vector = feature_vector(signals, self._schema).astype(np.float64)
        activations = signals.signature.activations
        log_odds = {name: model.log_odds(vector, activations) for name, (model, _) in self._models.items()}
        ood_score = self._ood_detector.ood_score(signals) if self._ood_detector else None
        back_off = self.artefact.back_off
        if back_off and ood_score is not None and "guard" in log_odds:
            log_odds["guard"] = back_off.mix(log_odds["guard"], log_odds["log-probabilities"], ood_score)
        scores = {name: ScoreReading(logistic(log_odds[name]), reads) for name, (_, reads) in self._models.items()}
        seconds = time.perf_counter() - started
        decides: ScoreName = "guard" if "guard" in scores else next(iter(scores))
        layer_map = last_map(signals.signature)
        return Score(scores[decides].p_wrong, self.calibrated, seconds, ood_score, scores, decides, layer_map)

    def for_model(self, model: ModelInfo, capture_point: CapturePoint, *, force: bool = False) -> Scorer:
        """Return this scorer for a loaded model.

        Args:
            model: the loaded model.
            capture_point: where its engine records activations.
            force: use it anyway, with every score marked as uncalibrated. The number of layers must still match, and
                their width, where the scorer reads it.

        Raises:
            ScorerMismatchError: the scorer was fitted on another model; the message names each field that differs.
        """
        fitted, given = self.artefact.binding, Binding.from_model(model, capture_point)
        if fitted.layers and not given.layers:
            raise ScorerMismatchError(
                f"This scorer reads layers, which '{model.name}' does not show",
                why="a server gives log-probabilities only",
                fix="Run guard calibrate on the served model: its scorer reads these alone",
            )
        differing = [name for name in Binding.model_fields if getattr(fitted, name) != getattr(given, name)]
        if not differing:
            return self
        if force and not self._has_other_shape(differing):
            return Scorer(self.artefact, calibrated=False)
        forcing = ", or force the scorer and take its scores as uncalibrated"
        if self._has_other_shape(differing):
            forcing = f"; forcing the scorer cannot help, since it reads {fitted.layers} layers of width {fitted.width}"
        details = [f"{name}: fitted on {_short(fitted, name)}, got {_short(given, name)}" for name in differing]
        raise ScorerMismatchError(
            "This scorer was fitted on another model",
            why="; ".join(details),
            fix=f"Run guard calibrate for this model{forcing}",
        )

    def _has_other_shape(self, differing: Sequence[str]) -> bool:
        """Return whether a model's layers have another shape than this scorer reads: features count the layers."""
        scores, detector = self.artefact.scores.values(), self.artefact.ood_detector
        reads_width = detector is not None or any(model.probe for model in scores)
        return "layers" in differing or ("width" in differing and reads_width)

    def save(self, path: str | Path) -> None:
        """Write the artefact atomically."""
        content = {**_content(self.artefact), "sha256": self.sha256}
        try:
            write_whole(Path(path), json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")
        except OSError as error:
            raise InputError(f"Cannot write the scorer to '{path}'", why=error.strerror or str(error)) from error


def load_scorer(path: str | Path) -> Scorer:
    """Read a scorer artefact.

    Args:
        path: the file, or the name of a scorer on the shelf (see `guard.scoring.shelf`).

    Raises:
        ScorerError: the file is missing, damaged, of another format, or inconsistent.

    Examples:
        >>> from guard.scoring import shipped_scorer
        >>> sorted(load_scorer(shipped_scorer()).artefact.scores)
        ['guard', 'ilis', 'log-probabilities']
    """
    return parse_scorer(checked_json.read_bytes(scorer_path(path), _KIND), where=str(path))


def parse_scorer(data: bytes, *, where: str = "<scorer>") -> Scorer:
    """Build a scorer from an artefact's bytes; see `load_scorer`.

    Examples:
        >>> from guard.scoring import shipped_scorer
        >>> parse_scorer(shipped_scorer().read_bytes()).artefact.reads("log-probabilities")
        ('log-probabilities',)
    """
    content, claimed = checked_json.parse(data, _KIND, where=where)
    try:
        scorer = Scorer(Artefact.model_validate(content))
    except (ValidationError, InputError, OverflowError) as error:
        raise checked_json.invalid(error, _KIND, where=where) from error
    if claimed != scorer.sha256:
        raise checked_json.damaged(_KIND, where=where)
    return scorer


def shipped_scorer() -> Path:
    """Return the path of the scorer for the embedded model (SmolLM2-135M-Instruct, Q4_1, on llama.cpp).

    Examples:
        >>> shipped_scorer().name
        'smollm2-135m-instruct-q4_1.json'
    """
    return shipped_folder() / "smollm2-135m-instruct-q4_1.json"


#: Inputs of scores that read layers.
_LAYERS = frozenset({"layers"})
_REFIT = "Fit it again with guard calibrate, or fetch the file again"
_KIND = checked_json.Kind(
    name="scorer",
    format=FORMAT,
    version=FORMAT_VERSION,
    max_bytes=MAX_BYTES,
    error=ScorerError,
    missing="Give the file that guard calibrate --out wrote",
    broken=_REFIT,
    outdated="Upgrade guard, or fit the scorer again",
)


class Evaluator:
    """Evaluates the parts of a model to log-odds."""

    def __init__(
        self,
        base: Linear | None,
        trees: Trees | None,
        probe: LinearProbe | None = None,
        *,
        positions: NDArray[np.intp] | None = None,
    ) -> None:
        """
        Args:
            base: the linear model.
            trees: the regression trees.
            probe: the linear probe.
            positions: where each feature of the model stands in the vectors; by default where the model says.
        """
        self._base = base
        if base:
            self._at = _placed(base.features, positions)
            with np.errstate(over="ignore", invalid="ignore"):  # huge numbers make a score that is refused
                self._weights = np.array(base.coefficients, np.float64) / np.array(base.scale, np.float64)
                self._offset = base.intercept - float(self._weights @ np.array(base.mean, np.float64))
        self._trees = _Forest(trees, positions) if trees and trees.roots else None
        self._probe = probe.array if probe else None

    def log_odds(self, vector: NDArray[np.float64], activations: NDArray[np.floating] | None = None) -> float:
        """Return the log-odds of one answer, before calibration.

        Args:
            vector: features of the answer, shape (features,).
            activations: shape (A, L, D); only needed with a linear probe.

        Raises:
            CaptureError: the activations are missing, invalid, or of another shape.
        """
        total = float(self._weights @ vector[self._at]) + self._offset if self._base else 0.0
        if self._probe is not None:
            if activations is None or activations.shape != self._probe.shape:
                shape = None if activations is None else activations.shape
                raise CaptureError(f"The linear probe needs activations of shape {self._probe.shape}, got {shape}")
            total += float(np.einsum("tld,tld->", normalised(activations), self._probe, dtype=np.float64))
        return total + self._trees.total(vector) if self._trees else total


def model_log_odds(model: Model, x: NDArray[np.floating], activations: NDArray[np.floating]) -> Doubles:
    """Return calibrated log-odds of many answers, shape (n,).

    Args:
        model: one score's model.
        x: all features of the answers, shape (n, features).
        activations: shape (n, A, L, D).

    Raises:
        CaptureError: as for `Evaluator.log_odds`.
    """
    evaluator = Evaluator(model.base, model.trees, model.probe)
    pairs = zip(x.astype(np.float64), activations, strict=True)
    return np.asarray(model.calibration.log_odds(np.array([evaluator.log_odds(*each) for each in pairs])))


class _Calibrated:
    """A `Model` ready to evaluate."""

    def __init__(self, model: Model, positions: NDArray[np.intp]) -> None:
        self._evaluator = Evaluator(model.base, model.trees, model.probe, positions=positions)
        self._calibration = model.calibration

    def log_odds(self, vector: NDArray[np.float64], activations: NDArray[np.floating]) -> float:
        with np.errstate(over="ignore", invalid="ignore"):  # looked at below
            log_odds = self._evaluator.log_odds(vector, activations)
        calibrated = self._calibration.log_odds(log_odds)
        if not math.isfinite(calibrated):
            raise ScorerError("The score is not finite", why="the scorer's numbers are too large", fix=_REFIT)
        return calibrated


def _placed(features: Sequence[int], positions: NDArray[np.intp] | None) -> NDArray[np.intp]:
    """Return where the features of a model stand in a vector."""
    at = np.array(features, np.intp)
    return at if positions is None else positions[at]


class _Forest:
    """All trees walked at once, a level at a time."""

    def __init__(self, trees: Trees, positions: NDArray[np.intp] | None) -> None:
        self._roots = np.array(trees.roots, np.intp)
        feature = np.array(trees.feature, np.intp)
        self._feature = np.where(feature < 0, -1, _placed(trees.feature, positions))
        self._threshold = np.array(trees.threshold, np.float64)
        self._left = np.array(trees.left, np.intp)
        self._right = np.array(trees.right, np.intp)
        self._value = np.array(trees.value, np.float64)

    def total(self, vector: NDArray[np.float64]) -> float:
        nodes = self._roots
        while True:
            features = self._feature[nodes]
            inner = features >= 0
            if not inner.any():
                return float(self._value[nodes].sum())
            goes_left = vector[features] <= self._threshold[nodes]
            nodes = np.where(inner, np.where(goes_left, self._left[nodes], self._right[nodes]), nodes)


def logistic(log_odds: float) -> float:
    """1 / (1 + exp(-x)) without overflow."""
    if log_odds >= 0:
        return 1.0 / (1.0 + math.exp(-log_odds))
    odds = math.exp(max(log_odds, -700.0))
    return odds / (1.0 + odds)


def to_log_odds(p_wrong: float) -> float:
    """Return the inverse of `logistic`, for p strictly between 0 and 1."""
    return math.log(p_wrong) - math.log1p(-p_wrong)


def _content(artefact: Artefact) -> dict[str, Any]:
    return artefact.model_dump(by_alias=True, mode="json")


def _short(binding: Binding, name: str) -> str:
    value = str(getattr(binding, name))
    return f"{value[:12]}..." if len(value) == 64 else value
