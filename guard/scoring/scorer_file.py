"""The contents of a scorer file: numbers whose shapes and values are checked before use.

One JSON file: for each score an optional linear model, linear probe of the layers' activations, regression trees and
calibration curve; and an optional out-of-distribution detector.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    FailFast,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from guard.records import Floats
from guard.scores import SERVED, ScoreName
from guard.scoring.answer_bounds import AnswerBounds, count_lines
from guard.scoring.arrays import array_from_text, array_to_text
from guard.scoring.ood import StoredOodDetector
from guard.scoring.provenance import Binding, Card, DataSet, Part, PlainDict, Prompting, Rebound
from guard.scoring.signature import ACTIVATION_TOKENS, AGGREGATE_WORDS, WORDS, FeatureSchema

FORMAT: Literal["guard-scorer"] = "guard-scorer"
FORMAT_VERSION = 5

#: Limits on untrusted files; larger ones are refused before they are processed.
MAX_BYTES, MAX_TREES, MAX_DEPTH = 32 * 2**20, 20_000, 64

Number = Annotated[float, Field(allow_inf_nan=False)]
Numbers = Annotated[list[Number], FailFast()]  # otherwise a million invalid items are a million errors
LogOddsT = TypeVar("LogOddsT", float, NDArray[np.float64])
Integers = Annotated[list[int], FailFast()]


class Schema(Part):
    """The stored form of a `FeatureSchema`."""

    layers: Annotated[int, Field(ge=0, le=1024)]
    temperatures: Annotated[list[Number], Field(min_length=1, max_length=16)]
    aggregates: Annotated[list[str], Field(min_length=1, max_length=8)]
    groups: Annotated[list[str], Field(min_length=1, max_length=16)]
    version: int

    @classmethod
    def from_schema(cls, schema: FeatureSchema) -> Self:
        """Return the stored form of a schema."""
        return cls(
            layers=schema.layers,
            temperatures=list(schema.temperatures),
            aggregates=list(schema.aggregates),
            groups=list(schema.groups),
            version=schema.version,
        )


class Linear(Part):
    """Log-odds = intercept + sum over features of coefficient x (value - mean) / scale."""

    features: Integers
    mean: Numbers
    scale: Annotated[list[Annotated[Number, Field(gt=0)]], FailFast()]
    coefficients: Numbers
    intercept: Number

    @model_validator(mode="after")
    def _same_lengths(self) -> Self:
        if len({len(self.features), len(self.mean), len(self.scale), len(self.coefficients)}) != 1:
            raise ValueError("features, mean, scale and coefficients differ in length")
        return self


class Trees(Part):
    """Regression trees, all nodes in one table. A leaf has feature -1; children follow their parent."""

    roots: Integers
    feature: Integers
    threshold: Numbers
    left: Integers
    right: Integers
    value: Numbers

    @model_validator(mode="after")
    def _well_formed(self) -> Self:
        size = len(self.feature)
        if {len(self.threshold), len(self.left), len(self.right), len(self.value)} - {size}:
            raise ValueError("the node columns differ in length")
        if len(self.roots) > MAX_TREES:
            raise ValueError(f"there are more than {MAX_TREES} trees")
        if any(not 0 <= node < size for column in (self.roots, self.left, self.right) for node in column):
            raise ValueError("a root or a child is not a node")
        depths = [0] * size
        for node, feature in enumerate(self.feature):
            if feature < 0:
                continue
            for child in (self.left[node], self.right[node]):
                if child <= node:
                    raise ValueError(f"node {node} has a child that does not follow it")
                depths[child] = max(depths[child], depths[node] + 1)
        if max(depths, default=0) > MAX_DEPTH:
            raise ValueError(f"a tree is deeper than {MAX_DEPTH} levels")
        return self


class LinearProbe(Part):
    """Log-odds = sum over tokens, layers and coordinates of weight x normalised activation.

    The tokens are those of `Signature.activations`; see `guard.scoring.probe.normalised`.

    Attributes:
        tokens, layers, width: shape of the weights.
        weights: little-endian float32 values, in base64.
    """

    tokens: Annotated[int, Field(ge=1, le=16)]
    layers: Annotated[int, Field(ge=2, le=1024)]
    width: Annotated[int, Field(ge=1, le=2**17)]
    weights: str

    @classmethod
    def from_array(cls, weights: Floats) -> Self:
        """From an array of shape (tokens, layers, width)."""
        tokens, layers, width = weights.shape
        return cls(tokens=tokens, layers=layers, width=width, weights=array_to_text(weights))

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.array  # noqa: B018 - reading it checks it
        return self

    @cached_property
    def array(self) -> Floats:
        """Shape (tokens, layers, width)."""
        shape = (self.tokens, self.layers, self.width)
        return array_from_text(self.weights, math.prod(shape)).reshape(shape)


class Calibration(Part):
    """Probability = logistic(slope x log-odds + intercept), fitted on held-out answers (Platt)."""

    slope: Annotated[Number, Field(gt=0)]
    intercept: Number

    def log_odds(self, raw: LogOddsT) -> LogOddsT:
        """Return calibrated log-odds, of one answer or of an array."""
        return self.slope * raw + self.intercept


class Model(Part):
    """Log-odds of a linear base model, a linear probe of the layers and trees, summed, then calibrated.

    Any part may be missing.
    """

    base: Linear | None
    probe: LinearProbe | None
    trees: Trees | None
    calibration: Calibration

    @property
    def features_used(self) -> set[int]:
        """Positions of the features that the base model or a tree reads."""
        return {*(self.base.features if self.base else []), *(at for at in self.nodes if at >= 0)}

    @property
    def nodes(self) -> list[int]:
        """The feature of each node of the trees; -1 of a leaf."""
        return self.trees.feature if self.trees else []


class BackOff(Part):
    """How guard's own score backs off from the layers where an input is out of distribution.

    Its log-odds are mixed with those of the log-probabilities. Their share is 0 up to an ood_score of ``start``, and
    rises from there to ``most`` at an ood_score of 1.
    """

    start: Annotated[Number, Field(ge=0, lt=1)]
    most: Annotated[Number, Field(gt=0, le=1)]

    def mix(self, own: LogOddsT, other: LogOddsT, ood_score: LogOddsT) -> LogOddsT:
        """Return mixed log-odds, of one answer or of arrays.

        Args:
            own, other: log-odds of guard's own score, and of the log-probabilities.
            ood_score: from 0 to 1.

        Examples:
            >>> BackOff(start=0.9, most=0.5).mix(2.0, 0.0, 0.9), BackOff(start=0.9, most=0.5).mix(2.0, 0.0, 1.0)
            (2.0, 1.0)
        """
        far = np.clip((ood_score - self.start) / (1.0 - self.start), 0.0, 1.0)
        share = self.most * (far if isinstance(ood_score, np.ndarray) else float(far))
        return (1.0 - share) * own + share * other


class SpanModel(Part):
    """Log-odds that a span is wrong, of `guard.scoring.span_scores.COLUMNS`, calibrated.

    Attributes:
        rules: version of the rules that find spans and claims; the figures hold for these only.
        linear: of the columns, in order.
        answers, spans, wrong: what it was fitted on: answers, labelled spans of them, and wrong ones of these.
        max_tokens: token limit of these answers.
        data: the labelled data.
        metrics: on held-out answers.
    """

    rules: Literal[1]
    linear: Linear
    calibration: Calibration
    answers: Annotated[int, Field(ge=1)]
    spans: Annotated[int, Field(ge=1)]
    wrong: Annotated[int, Field(ge=0)]
    max_tokens: Annotated[int, Field(ge=1)]
    data: Annotated[list[DataSet], FailFast()]
    metrics: PlainDict

    @model_validator(mode="after")
    def _three_columns(self) -> Self:
        if self.linear.features != [0, 1, 2]:
            raise ValueError("the model of spans does not read its three columns")
        return self


class EarlyStage(Part):
    """How the scores of an answer so far tell whether the whole answer will be wrong, at one number of tokens.

    Attributes:
        tokens: number of tokens of the answer so far.
        calibrations: of each score's log-odds, by its name.
        answers, wrong: what it was fitted on: answers that are longer, and how many of these are wrong in the end.
        metrics: of each score on held-out answers, by its name.
    """

    tokens: Annotated[int, Field(ge=1)]
    calibrations: Annotated[dict[ScoreName, Calibration], Field(min_length=1)]
    answers: Annotated[int, Field(ge=1)]
    wrong: Annotated[int, Field(ge=0)]
    metrics: PlainDict


class EarlyModel(Part):
    """The stages at which a growing answer can be judged.

    Attributes:
        stages: by rising number of tokens.
        answers: labelled answers that they were fitted on.
        max_tokens: token limit of these answers.
        data: the labelled data.
    """

    stages: Annotated[list[EarlyStage], Field(min_length=1, max_length=32)]
    answers: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    data: Annotated[list[DataSet], FailFast()]

    @model_validator(mode="after")
    def _rising(self) -> Self:
        tokens = [stage.tokens for stage in self.stages]
        if tokens != sorted(set(tokens)):
            raise ValueError("the numbers of tokens of the early stages do not rise")
        return self


class Artefact(Part):
    """The whole file.

    Attributes:
        schema_: the features that the models number.
        scores: the model of each score; guard's own is always there.
        settings: how each score was fitted, by its name.
        metrics: of each score on held-out questions, by its name.
        card: information for users, if any.
        back_off: how guard's own score uses the ood_score, where it does.
        rebound: the record of the move, if the scorer was fitted on another precision or engine of the model.
        spans: the model of spans of longer answers, where it was fitted.
        early: the stages at which a growing answer can be stopped, where they were fitted.
        answer_bounds: bounds of the answers that it was fitted on; None in files that do not say.
        signals: over which distribution log-probabilities and entropies are taken; None in files that do not say, whose
            signals are those before a grammar's mask, too.
    """

    format: Literal["guard-scorer"]
    format_version: int
    binding: Binding
    schema_: Schema = Field(alias="schema")
    feature_names: Annotated[list[str], FailFast()]
    prompting: Prompting
    data: Annotated[list[DataSet], FailFast()]
    split_sizes: dict[str, int]
    seed: int
    settings: PlainDict
    versions: dict[str, str]
    metrics: PlainDict
    scores: dict[ScoreName, Model]
    ood_detector: StoredOodDetector | None
    card: Card | None = None
    back_off: BackOff | None = None
    rebound: Rebound | None = None
    spans: SpanModel | None = None
    early: EarlyModel | None = None
    answer_bounds: AnswerBounds | None = None
    signals: Literal["before-mask"] | None = None

    @model_serializer(mode="wrap")
    def _as_written(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What a scorer has not, and what older files did not say, is left out: their checksums hold."""
        optional = ("back_off", "spans", "early", "answer_bounds", "signals")
        return {name: value for name, value in dump(self).items() if value is not None or name not in optional}

    def why_unlike(self, text: str, tokens: int) -> str | None:
        """Return why an answer has more tokens or more lines than those of the calibration; None if it has not.

        A file without bounds still says how many tokens an answer could have; it bounds no lines.
        """
        if self.answer_bounds is not None:
            return self.answer_bounds.why_unlike(text, tokens)
        return AnswerBounds(tokens=self.prompting.max_tokens, lines=max(1, count_lines(text))).why_unlike(text, tokens)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.schema_.layers != self.binding.layers:
            raise ValueError("schema.layers differs from binding.layers")
        # Counted first: a small file must not create millions of names.
        if self.feature_schema.size != len(self.feature_names):
            raise ValueError("feature_names are not as many as the schema's features")
        if list(self.feature_schema.names) != self.feature_names:
            raise ValueError("feature_names do not follow from the schema")
        if self.default_score not in self.scores:
            raise ValueError(f"the score '{self.default_score}' is missing")
        if any(stage.calibrations.keys() - self.scores.keys() for stage in (self.early.stages if self.early else ())):
            raise ValueError("an early stage calibrates a score that is missing")
        if self.card and self.card.data.keys() != {each.name for each in self.data}:
            raise ValueError("the card's data sets are not those of the calibration")
        if self.back_off and (self.ood_detector is None or not {"guard", "log-probabilities"} <= self.scores.keys()):
            raise ValueError("the back-off lacks the out-of-distribution detector or one of its two scores")
        shape = (len(ACTIVATION_TOKENS), self.binding.layers, self.binding.width)
        for model in self.scores.values():
            probe = model.probe
            if probe and (probe.tokens, probe.layers, probe.width) != shape:
                raise ValueError("the linear probe does not have the shape of the model's activations")
        detector = self.ood_detector
        if detector and (max(detector.layers) >= self.binding.layers or detector.width != self.binding.width):
            raise ValueError("the out-of-distribution detector's layers or width are not the model's")
        for model in self.scores.values():
            if any(not -1 <= at < len(self.feature_names) for at in (*model.features_used, *model.nodes)):
                raise ValueError("a feature index is out of range")
            if model.base and min(model.base.features, default=0) < 0:
                raise ValueError("a feature index is negative")
        return self

    @property
    def default_score(self) -> ScoreName:
        """The score that decides: guard's own, or of a model that shows no layers that of its log-probabilities."""
        return "guard" if self.binding.layers else "log-probabilities"

    @cached_property
    def feature_schema(self) -> FeatureSchema:
        """The schema in the form that the signature module takes."""
        schema = self.schema_
        return FeatureSchema(
            layers=schema.layers,
            temperatures=tuple(schema.temperatures),
            aggregates=tuple(schema.aggregates),
            groups=tuple(schema.groups),
            version=schema.version,
        )

    def reads(self, name: ScoreName) -> tuple[str, ...]:
        """Return what of an answer a score is made of, in words."""
        model = self.scores[name]
        schema, _ = self.feature_schema.narrowed(model.features_used)
        groups = schema.groups if model.features_used else ()
        words = [WORDS[group] if self.binding.layers or group != "logprob" else SERVED for group in groups]
        if schema.signature_tokens and groups:
            words[-1] += f" ({', '.join(AGGREGATE_WORDS[each] for each in schema.aggregates)})"
        far = name == "guard" and self.back_off is not None
        return (*words, *(("activations",) if model.probe else ()), *(("out-of-distribution score",) if far else ()))


def make_linear(
    features: NDArray[np.intp],
    mean: NDArray[np.floating],
    scale: NDArray[np.floating],
    coefficients: NDArray[np.floating],
    intercept: float,
) -> Linear:
    """Return a `Linear` from arrays, each shape (features,)."""
    return Linear(
        features=[int(at) for at in features],
        mean=[float(x) for x in mean],
        scale=[float(x) for x in scale],
        coefficients=[float(x) for x in coefficients],
        intercept=float(intercept),
    )
