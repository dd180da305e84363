"""The compared methods; each predicts whether answers are wrong.

All methods are trained on the same answers and return probabilities. Selection (the layer of a probe, the weights of
guard's regressions) uses the training answers only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from guard.calibration.back_off import choose_back_off
from guard.calibration.fitting import Examples, FittedModel, fit_model, schema_for
from guard.data.answers import Answers
from guard.data.normalised import normalise
from guard.errors import CalibrationError, InputError
from guard.evaluation.controls import (
    LEAST_TOKEN_PROBABILITY,
    SEQUENCE_PROBABILITY,
    TextMethod,
    attention_uncertainty,
    question_categories,
    self_judgement,
)
from guard.evaluation.protocol import AnswerTable, FittedMethod, Method, MethodKind
from guard.records import Doubles
from guard.scores import ScoreName
from guard.scoring.labels import Labels, has_both_kinds, rather_wrong, weighted
from guard.scoring.ood import OodDetector, fit_ood_in_parts
from guard.scoring.scorer import model_log_odds
from guard.scoring.scorer_file import BackOff, Model
from guard.scoring.signature import FeatureSchema

#: Candidate depths of the linear probe; the best is selected on the training answers.
PROBE_DEPTHS = (0.4, 0.55, 0.7, 0.85)
#: Inverse of the ridge penalty: of few standardised features, of many, and of a layer's activations.
FEW, MANY, PROBE = 1.0, 1e-2, 1e-3


# -- guard's own, and its parts ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GuardMethod:
    """A score that `guard calibrate` fits."""

    name: str = "guard"
    score: ScoreName = "guard"
    without: tuple[str, ...] = ()
    kind: MethodKind = "guard"
    passes: float = 1.0

    def fit(self, table: AnswerTable, *, seed: int) -> FittedMethod:
        """Fit all parts and the back-off; see `guard.calibration.scorer_fit`."""
        answers = _answers(table)
        schema = schema_for(layers=answers.layers, temperatures=(1.0,))
        read = self.score == "guard" and "activations" not in self.without
        examples = Examples(
            x=answers.features(schema),
            wrong=answers.wrong,
            dataset=answers.dataset,
            activations=answers.activations if read else None,
            products=answers.products if read else None,
        )
        try:
            fitted = fit_model(examples, schema, score=self.score, without=self.without, seed=seed)
        except CalibrationError as error:
            raise InputError(str(error)) from error
        far = _fit_back_off(examples, schema, fitted, self.without, seed) if fitted.model.probe else None
        return _FittedGuardMethod(fitted.model, schema, far)


@dataclass(frozen=True, slots=True)
class _FittedBackOff:
    back_off: BackOff
    other: Model
    detector: OodDetector


def _fit_back_off(
    examples: Examples, schema: FeatureSchema, own: FittedModel, without: tuple[str, ...], seed: int
) -> _FittedBackOff | None:
    """Fit what `guard calibrate` fits: the log-probabilities, the choice, and the detector of all answers."""
    try:
        other = fit_model(examples, schema, score="log-probabilities", seed=seed)
    except CalibrationError:
        return None
    chosen = choose_back_off(examples, {"guard": own, "log-probabilities": other}, without=without, seed=seed)
    if chosen is None:
        return None
    assert examples.activations is not None
    return _FittedBackOff(chosen, other.model, fit_ood_in_parts(examples.activations, seed=seed))


@dataclass(frozen=True, slots=True)
class _FittedGuardMethod:
    model: Model
    schema: FeatureSchema
    far: _FittedBackOff | None

    def p_wrong(self, table: AnswerTable) -> Doubles:
        answers, far = _answers(table), self.far
        x, activations = answers.features(self.schema), answers.activations
        log_odds = model_log_odds(self.model, x, activations)
        if far is not None:
            other = model_log_odds(far.other, x, activations)
            log_odds = far.back_off.mix(log_odds, other, far.detector.ood_scores(activations))
        return _probability(log_odds)


# -- one logistic regression on some columns ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class RegressionMethod:
    """Logistic regression on standardised columns of an answer's signals.

    Attributes:
        columns: returns the columns, shape (n, k); raises InputError where they were not recorded.
        inverse_penalty: inverse ridge penalty.
    """

    name: str
    columns: Callable[[Answers], Doubles]
    kind: MethodKind = "baseline"
    passes: float = 1.0
    inverse_penalty: float = FEW

    def fit(self, table: AnswerTable, *, seed: int) -> FittedMethod:
        """Fit the regression; the seed is not used."""
        del seed
        model = _regression(self.inverse_penalty)
        _train(model, self.columns(_answers(table)), table.wrong)
        return _FittedRegression(model, self.columns)


@dataclass(frozen=True, slots=True)
class _FittedRegression:
    model: Pipeline
    columns: Callable[[Answers], Doubles]

    def p_wrong(self, table: AnswerTable) -> Doubles:
        return np.asarray(self.model.predict_proba(self.columns(_answers(table)))[:, 1])


def log_probabilities(answers: Answers) -> Doubles:
    """Return mean, least, first and last log-probability, and mean, largest and first entropy."""
    return _group(answers, "logprob")


def entropies(answers: Answers) -> Doubles:
    """Return mean, largest and first entropy."""
    return _group(answers, "logprob")[:, 4:]


def margins(answers: Answers) -> Doubles:
    """Return mean, least and first margin between the two most likely tokens."""
    return _group(answers, "margin")


def lengths(answers: Answers) -> Doubles:
    """Return the logarithm of the number of tokens."""
    return _group(answers, "length")


def log_maps(answers: Answers) -> Doubles:
    """Return the signature's logarithm at temperature 1, of the first and the last token."""
    schema = FeatureSchema(layers=answers.layers, aggregates=("first", "last"), groups=("map",))
    return answers.features(schema).astype(np.float64)


def lens_entropies(answers: Answers) -> Doubles:
    """Return the entropy of the logit lens at each layer, first and last token (TriLens, residual stream)."""
    return _recorded(answers.lens, "lens")[:, :, 0].reshape(len(answers), -1).astype(np.float64)


def lens_agreement(answers: Answers) -> Doubles:
    """Return the generated token's log-probability in the logit lens of each layer, and whether it ranks first."""
    return _recorded(answers.lens, "lens")[:, :, 1:].reshape(len(answers), -1).astype(np.float64)


def embedding_path(answers: Answers) -> Doubles:
    """Return lengths and angles of the steps between layers, last token and mean (chain-of-embedding)."""
    return _recorded(answers.path, "path").reshape(len(answers), -1).astype(np.float64)


def update_geometry(answers: Answers) -> Doubles:
    """Return the angle of each MLP update to the sum of those before it, and its relative size (arXiv:2605.22864)."""
    columns = []
    for token in (0, 1):
        updates = answers.activations[:, token].astype(np.float32)
        sums = np.cumsum(updates, axis=1)
        before, step = sums[:, :-1], updates[:, 1:]
        lengths_before = np.linalg.norm(before, axis=2)
        lengths_step = np.linalg.norm(step, axis=2)
        cosines = np.einsum("nld,nld->nl", before, step) / (lengths_before * lengths_step)
        columns += [cosines, np.log(lengths_step / lengths_before)]
    return np.hstack(columns).astype(np.float64)


# -- the linear probe --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinearProbeMethod:
    """Logistic regression on one layer's activations of the first and last token.

    The layer is the one of `PROBE_DEPTHS` with the best AUROC over folds of the training answers.
    """

    name: str = "linear probe"
    kind: MethodKind = "baseline"
    passes: float = 1.0

    def fit(self, table: AnswerTable, *, seed: int) -> FittedMethod:
        """Select the layer and fit."""
        answers = _answers(table)
        layers = sorted({int(depth * (answers.layers - 1)) for depth in PROBE_DEPTHS})
        best = max(layers, key=lambda layer: _cross_validated(_LayerColumns(layer)(answers), table.wrong, seed))
        return RegressionMethod(self.name, _LayerColumns(best), inverse_penalty=PROBE).fit(table, seed=seed)


@dataclass(frozen=True, slots=True)
class _LayerColumns:
    layer: int

    def __call__(self, answers: Answers) -> Doubles:
        return answers.activations[:, :2, self.layer].reshape(len(answers), -1).astype(np.float64)


def _cross_validated(columns: Doubles, labels: Labels, seed: int) -> float:
    wrong = rather_wrong(labels)
    folds = min(3, int(wrong.sum()), int((~wrong).sum()))
    if folds < 2:
        return 0.5
    scores = []
    for learn, out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(columns, wrong):
        model = _regression(PROBE)
        _train(model, columns[learn], labels[learn])
        scores.append(roc_auc_score(wrong[out], model.decision_function(columns[out])))
    return float(np.mean(scores))


# -- asking again ------------------------------------------------------------------------------


def agreement(answers: Answers) -> Doubles:
    """Return the share of the sampled answers that equal the given one (self-consistency)."""
    pairs = zip(answers.answer, _sampled(answers), strict=True)
    return np.array([[np.mean([_same(text, other) for other in others])] for text, others in pairs])


def sampled_entropy(answers: Answers) -> Doubles:
    """Return the entropy of the sampled answers, with equal texts in one class.

    Semantic entropy has one class per meaning; for answers of a few words, that is nearly one class per text.
    """
    shares = [np.array(list(Counter(map(normalise, others)).values())) / len(others) for others in _sampled(answers)]
    return np.array([[-float(share @ np.log(share))] for share in shares])


def _same(text: str, other: str) -> bool:
    return normalise(text) == normalise(other)


def _sampled(answers: Answers) -> Sequence[tuple[str, ...]]:
    if not all(answers.samples):
        raise InputError("There are answers without samples", fix="Record with --samples, and evaluate those rows")
    return answers.samples


# -- which there are ---------------------------------------------------------------------------

Which = Literal["all", "parts", "sampling"]


def methods_for(which: Which) -> tuple[Method, ...]:
    """Return the methods of a comparison.

    Args:
        which: ``all`` single-pass methods; ``parts``: guard's own with each part left out;
            ``sampling``: sampling methods, and those for comparison.

    Examples:
        >>> methods_for("all")[0].name
        'guard'
    """
    own, base = GuardMethod(), RegressionMethod("log-probabilities", log_probabilities)
    if which == "parts":
        return own, *(
            GuardMethod(f"guard without {label}", without=without, kind="baseline")
            for label, without in (
                ("the all-layer probe", ("activations",)),
                ("the signature", ("map", "norms")),
                ("margins and length", ("margin", "length")),
                ("log-probabilities", ("logprob", "margin", "length")),
            )
        )
    if which == "sampling":
        again = (("self-consistency (5 samples)", agreement), ("answer entropy (5 samples)", sampled_entropy))
        return own, base, *(RegressionMethod(name, columns, kind="reference", passes=6.0) for name, columns in again)
    return (
        own,
        base,
        RegressionMethod("entropy", entropies),
        RegressionMethod("margin", margins),
        LinearProbeMethod(),
        GuardMethod("ILIS", score="ilis", kind="baseline"),
        RegressionMethod("ILIS map, linear", log_maps, inverse_penalty=1e-4),
        RegressionMethod("lens entropies", lens_entropies, inverse_penalty=MANY),
        RegressionMethod("lens agreement", lens_agreement, inverse_penalty=MANY),
        RegressionMethod("chain of embedding", embedding_path, inverse_penalty=MANY),
        RegressionMethod("update geometry", update_geometry, inverse_penalty=MANY),
        SEQUENCE_PROBABILITY,
        LEAST_TOKEN_PROBABILITY,
        RegressionMethod("P(true)", self_judgement, kind="reference", passes=2.0),
        RegressionMethod("RAUQ", attention_uncertainty, kind="reference", passes=2.0),
        RegressionMethod("length", lengths, kind="control"),
        RegressionMethod("question category", question_categories, kind="control"),
        TextMethod(),
    )


# -- parts -------------------------------------------------------------------------------------


def _answers(table: AnswerTable) -> Answers:
    if not isinstance(table, Answers):
        raise InputError(f"These methods read recorded answers, got {type(table).__name__}")
    return table


def _group(answers: Answers, group: str) -> Doubles:
    return answers.features(FeatureSchema(layers=answers.layers, groups=(group,))).astype(np.float64)


def _recorded(array: NDArray[np.float32] | None, what: str) -> NDArray[np.float32]:
    if array is None:
        raise InputError(f"The records have no '{what}'", fix="Record with the logit lens (a GGUF on llama.cpp)")
    return array


def _regression(inverse_penalty: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000))


def _train(model: Pipeline, columns: Doubles, labels: Labels) -> None:
    if not has_both_kinds(labels):
        raise InputError("All training answers are right, or all are wrong")
    made, inputs = weighted(labels), model[0].fit_transform(columns)
    model[-1].fit(inputs[made.rows], made.wrong, sample_weight=made.weights)


def _probability(log_odds: Doubles) -> Doubles:
    return np.asarray(expit(log_odds))
