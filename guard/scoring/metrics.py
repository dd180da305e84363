"""Metrics of a score against labels. Positive class: the answer is wrong.

Metrics read answers only through `Ranked`: the distinct scores in order, with the numbers of right and wrong answers at
each. Equal scores form one pool, so the order of the answers does not matter. One `Ranked` has many resamples of the
same answers (rows of counts), so a bootstrap sorts only once.

A metric that needs both right and wrong answers is nan if one kind is missing. A graded answer
counts by its share of either kind (`guard.scoring.labels`); even the best Brier score is then above 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from guard.errors import InputError
from guard.scoring.labels import Labels, are_graded, has_both_kinds

Probabilities = NDArray[np.float64]
Counts = NDArray[np.int64]
#: Of wrong answers, or the sums of graded labels.
Errors = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Metrics:
    """Metrics of a score on labelled answers.

    Attributes:
        n: number of answers.
        wrong: share of wrong answers, the base rate of AUPRC.
        auroc: probability that a wrong answer scores above a right one; higher is better, 0.5 is chance.
        auprc: average precision for wrong answers; higher is better, ``wrong`` is chance.
        brier: mean squared error of the probability; lower is better.
        ece: expected calibration error over 10 equally filled bins; lower is better.
    """

    n: int
    wrong: float
    auroc: float
    auprc: float
    brier: float
    ece: float


def compute_metrics(p_wrong: Probabilities, wrong: Labels) -> Metrics:
    """Return the metrics of one score that calibration shows, from arrays of shape (n,).

    AUROC and AUPRC are nan if all answers are right or all are wrong.

    Raises:
        InputError: a score is not a probability from 0 to 1.
    """
    ece = expected_calibration_error(p_wrong, wrong)
    if are_graded(wrong):
        ranked = Ranked.from_scores(p_wrong, wrong)
        rank, precision, squares = (float(each(ranked)[0]) for each in (auroc, average_precision_wrong, brier))
        return Metrics(len(wrong), float(wrong.mean()), rank, precision, squares, ece)
    # Computed by scikit-learn: existing artefacts have these numbers to the last digit, and a fit on the same data
    # must give the same file. The functions below agree with it up to rounding.
    both = 0 < wrong.sum() < len(wrong)
    return Metrics(
        n=len(wrong),
        wrong=float(wrong.mean()),
        auroc=float(roc_auc_score(wrong, p_wrong)) if both else float("nan"),
        auprc=float(average_precision_score(wrong, p_wrong)) if both else float("nan"),
        brier=float(brier_score_loss(wrong, p_wrong)),
        ece=ece,
    )


@dataclass(frozen=True, slots=True)
class BrierGain:
    """The advantage of one score over another on the same answers, with a 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``no significant difference`` where the interval includes 0."""
        if self.low <= 0 <= self.high:
            return "no significant difference"
        return "better" if self.value > 0 else "worse"


def brier_gain(p_wrong: Probabilities, other: Probabilities, wrong: Labels) -> BrierGain:
    """Return the paired difference of the Brier scores of two scores; arrays of shape (n,).

    The interval is the normal interval of a mean: differences of squared errors are bounded by 1.
    """
    gains = (other - wrong) ** 2 - (p_wrong - wrong) ** 2  # of graded labels, too: the rest is the same in both
    value, error = float(gains.mean()), float(gains.std(ddof=1) / np.sqrt(len(gains)))
    return BrierGain(value, value - 1.96 * error, value + 1.96 * error)


@dataclass(frozen=True, slots=True)
class PartOfAnswers:
    """A score on a part of the answers.

    Attributes:
        n: number of answers.
        wrong: share of wrong answers.
        p_wrong: mean score.
        auroc: AUROC; None if all answers are right or all are wrong.
    """

    n: int
    wrong: float
    p_wrong: float
    auroc: float | None


@dataclass(frozen=True, slots=True)
class ByEnding:
    """Truncated and complete answers; None if there are none of a kind."""

    truncated: PartOfAnswers | None
    complete: PartOfAnswers | None


def by_ending(p_wrong: Probabilities, wrong: Labels, truncated: NDArray[np.bool_]) -> ByEnding:
    """Return the score on truncated and on complete answers, from arrays of shape (n,)."""
    return ByEnding(_part(p_wrong[truncated], wrong[truncated]), _part(p_wrong[~truncated], wrong[~truncated]))


def _part(p_wrong: Probabilities, wrong: Labels) -> PartOfAnswers | None:
    if not len(wrong):
        return None
    rank = float(auroc(Ranked.from_scores(p_wrong, wrong))[0]) if has_both_kinds(wrong) else None
    return PartOfAnswers(len(wrong), float(wrong.mean()), float(p_wrong.mean()), rank)


def expected_calibration_error(p_wrong: Probabilities, wrong: Labels, *, bins: int = 10) -> float:
    """`calibration_error` of one score, from arrays of shape (n,)."""
    return float(calibration_error(Ranked.from_scores(p_wrong, wrong), bins=bins)[0])


@dataclass(frozen=True, eq=False)
class Ranked:
    """Answers in the order of their scores, ascending; one row for each resample.

    Attributes:
        scores: shape (G,), the distinct scores, ascending.
        total: shape (draws, G), number of answers with each score.
        wrong: shape (draws, G), number of wrong answers among these.
        ideal: the same answers in the order of their labels, where these are graded; else None.
    """

    scores: Probabilities
    total: Counts
    wrong: Errors
    ideal: Ranked | None = None

    @classmethod
    def from_scores(cls, p_wrong: Probabilities, wrong: Labels, *, counts: NDArray[np.int32] | None = None) -> Ranked:
        """Rank n answers.

        Args:
            p_wrong: shape (n,), any real score that grows with doubt.
            wrong: shape (n,), boolean or graded.
            counts: shape (draws, n), how often each answer is in each resample; by default one
                row of ones, that is the answers as they are.

        Raises:
            InputError: there are no answers, shapes differ, or a score is not a number.
        """
        if p_wrong.ndim != 1 or p_wrong.shape != wrong.shape or not len(p_wrong):
            raise InputError(
                "A metric needs one score and one label for each answer, and at least one answer",
                why=f"got scores of shape {p_wrong.shape} and labels of shape {wrong.shape}",
            )
        if not np.isfinite(p_wrong).all():
            raise InputError("A metric needs scores that are numbers", why=f"got {p_wrong[~np.isfinite(p_wrong)][0]}")
        ideal = cls._in_order(wrong.astype(np.float64), wrong, counts) if are_graded(wrong) else None
        return replace(cls._in_order(p_wrong, wrong, counts), ideal=ideal)

    @classmethod
    def _in_order(cls, p_wrong: Probabilities, wrong: Labels, counts: NDArray[np.int32] | None) -> Ranked:
        order = np.argsort(p_wrong, kind="stable")
        ranked = p_wrong[order]
        starts = np.flatnonzero(np.concatenate(([True], ranked[1:] != ranked[:-1])))
        total = np.ones((1, len(order)), np.int64) if counts is None else counts[:, order].astype(np.int64)
        errors = total * wrong[order]
        if len(starts) < len(order):
            total, errors = (np.add.reduceat(each, starts, axis=1) for each in (total, errors))
        return cls(scores=np.asarray(ranked[starts], np.float64), total=total, wrong=errors)

    @cached_property
    def accepted(self) -> Counts:
        """Answers with at most this score, shape (draws, G)."""
        return np.cumsum(self.total, axis=1)

    @cached_property
    def accepted_wrong(self) -> Errors:
        """Wrong answers with at most this score, shape (draws, G)."""
        return np.cumsum(self.wrong, axis=1)

    @cached_property
    def risk(self) -> Probabilities:
        """Share wrong among answers with at most this score, shape (draws, G); nan where there are none."""
        return _ratio(self.accepted_wrong, self.accepted)

    @cached_property
    def mean_risk(self) -> Probabilities:
        """`aurc`, shape (draws,); kept here since three metrics build on it."""
        before, errors_before = self.accepted - self.total, self.accepted_wrong - self.wrong
        share = _ratio(self.wrong, self.total, empty=0.0)
        harmonic = _harmonic(int(self.n.max()))
        pooled = self.wrong + (errors_before - share * before) * (harmonic[self.accepted] - harmonic[before])
        return np.asarray(pooled.sum(axis=1) / self.n)

    @property
    def n(self) -> Counts:
        """Answers in each resample, shape (draws,)."""
        return self.accepted[:, -1]

    @property
    def n_wrong(self) -> Errors:
        """Wrong answers in each resample, shape (draws,)."""
        return self.accepted_wrong[:, -1]


def _ratio(above: NDArray[np.number], below: NDArray[np.number], *, empty: float = np.nan) -> Probabilities:
    """Return quotients, with a given value for a zero divisor."""
    out = np.full(np.broadcast_shapes(above.shape, below.shape), empty)
    np.divide(above, below, out=out, where=below > 0)
    return out


def auroc(ranked: Ranked) -> Probabilities:
    """Chance that a wrong answer scores above a right one, equal scores counting half."""
    right = ranked.total - ranked.wrong
    right_below = np.cumsum(right, axis=1) - right / 2
    return _ratio((ranked.wrong * right_below).sum(axis=1), ranked.n_wrong * (ranked.n - ranked.n_wrong))


def average_precision_wrong(ranked: Ranked) -> Probabilities:
    """Average precision of finding wrong answers, by descending score; each distinct score is a threshold."""
    flagged = ranked.n[:, None] - ranked.accepted + ranked.total
    found = ranked.n_wrong[:, None] - ranked.accepted_wrong + ranked.wrong
    mean = _ratio((ranked.wrong * _ratio(found, flagged, empty=0.0)).sum(axis=1), ranked.n_wrong)
    return np.where(ranked.n_wrong < ranked.n, mean, np.nan)


def average_precision_right(ranked: Ranked) -> Probabilities:
    """Average precision of finding right answers, by ascending score; each distinct score is a threshold."""
    right = ranked.total - ranked.wrong
    precision = 1 - np.nan_to_num(ranked.risk, nan=1.0)
    mean = _ratio((right * precision).sum(axis=1), ranked.n - ranked.n_wrong)
    return np.where(ranked.n_wrong > 0, mean, np.nan)


def brier(ranked: Ranked) -> Probabilities:
    """Mean squared error of the probability of being wrong.

    Raises:
        InputError: a score is not a probability.
    """
    p = _probabilities(ranked)
    squares = (ranked.wrong * (1 - p) ** 2).sum(axis=1) + ((ranked.total - ranked.wrong) * p**2).sum(axis=1)
    return np.asarray(squares / ranked.n)


def _probabilities(ranked: Ranked) -> Probabilities:
    """Return the scores, which must be probabilities from 0 to 1."""
    outside = ranked.scores[(ranked.scores < 0) | (ranked.scores > 1)]
    if len(outside):
        raise InputError(
            "Brier score and calibration error are for probabilities from 0 to 1",
            why=f"got {outside[0]:g}",
            fix="Calibrate the score first, or judge its ranking alone: AUROC, AUPRC",
        )
    return ranked.scores


def calibration_error(ranked: Ranked, *, bins: int = 10) -> Probabilities:
    """Mean over bins of |mean probability - share wrong|, weighted by the bins' sizes.

    Bins hold equally many answers (adaptive binning, Nguyen and O'Connor 2015): with few answers,
    bins of equal width are mostly empty. Equal probabilities stay in one bin, so that the order of
    the answers does not matter.

    Raises:
        InputError: a score is not a probability.
    """
    _probabilities(ranked)
    edges = bin_edges(ranked, bins=bins)
    excess = np.cumsum(ranked.total * ranked.scores - ranked.wrong, axis=1)
    excess = np.concatenate((np.zeros((len(excess), 1)), excess), axis=1)
    at_edges = np.take_along_axis(excess, edges, axis=1)
    return np.asarray(np.abs(np.diff(at_edges, axis=1)).sum(axis=1) / ranked.n)


def equal_width_calibration_error(ranked: Ranked, *, bins: int = 10) -> Probabilities:
    """Return `calibration_error` over bins of equal width, as most papers and libraries print it.

    Raises:
        InputError: a score is not a probability.
    """
    _probabilities(ranked)
    bin_of = np.minimum((ranked.scores * bins).astype(np.intp), bins - 1)
    excess = ranked.total * ranked.scores - ranked.wrong
    gaps = [np.abs(excess[:, bin_of == number].sum(axis=1)) for number in range(bins)]
    return np.asarray(np.sum(gaps, axis=0) / ranked.n)


def bin_edges(ranked: Ranked, *, bins: int) -> NDArray[np.intp]:
    """Return the edges of equally filled bins, as indices of distinct scores, shape (draws, bins + 1).

    The first ``n % bins`` bins have one more answer. A bin whose answers all share the score of an earlier bin is
    empty.
    """
    number = np.arange(bins)
    first = number * (ranked.n // bins)[:, None] + np.minimum(number, (ranked.n % bins)[:, None])
    begins = np.stack([(ranked.accepted <= first[:, [each]]).sum(axis=1) for each in number], axis=1)
    return np.concatenate((begins, np.full((len(begins), 1), len(ranked.scores))), axis=1)


def aurc(ranked: Ranked) -> Probabilities:
    """Mean, over k = 1 .. n, of the share wrong among the k least doubtful answers.

    Answers of equal score come in random order; this is the expectation over it. With K answers and
    E errors before a pool of m answers and e errors, the j-th of them is met at risk
    (E + j e/m) / (K + j) = e/m + (E - K e/m) / (K + j), so harmonic numbers sum a whole pool.
    """
    return ranked.mean_risk


def augrc(ranked: Ranked) -> Probabilities:
    """Mean, over k = 1 .. n, of the share of all answers that are wrong and among the k least doubtful.

    Unlike `aurc`, it does not give the first answers the largest weight (Traub et al. 2024). Ties as in `aurc`.
    """
    errors_before = ranked.accepted_wrong - ranked.wrong
    pooled = ranked.total * errors_before + ranked.wrong * (ranked.total + 1) / 2
    return np.asarray(pooled.sum(axis=1) / ranked.n.astype(np.float64) ** 2)


def oracle_aurc(ranked: Ranked) -> Probabilities:
    """Return the least `aurc` that any score could have: all right answers before all wrong ones."""
    if ranked.ideal is not None:
        return ranked.ideal.mean_risk
    harmonic = _harmonic(int(ranked.n.max()))
    right = np.asarray(ranked.n - ranked.n_wrong, np.int64)
    return np.asarray((ranked.n_wrong - right * (harmonic[ranked.n] - harmonic[right])) / ranked.n)


def excess_aurc(ranked: Ranked) -> Probabilities:
    """`aurc` above the oracle's."""
    return aurc(ranked) - oracle_aurc(ranked)


def prediction_rejection_ratio(ranked: Ranked) -> Probabilities:
    """Return the area gained over random rejection (0), relative to the oracle (1)."""
    random = ranked.n_wrong / ranked.n
    return _ratio(random - aurc(ranked), random - oracle_aurc(ranked))


def half_rejection_ratio(ranked: Ranked) -> Probabilities:
    """Return `prediction_rejection_ratio` for rejections of at most half of the answers."""
    begin = -(-ranked.n // 2)
    harmonic, count = _harmonic(int(ranked.n.max())), ranked.n - begin + 1
    oracle = _oracle_risk_from(ranked, begin, harmonic) / count
    random = ranked.n_wrong / ranked.n
    return _ratio(random - _mean_risk_from(ranked, begin, harmonic) / count, random - oracle)


def _oracle_risk_from(ranked: Ranked, begin: Counts, harmonic: Probabilities) -> Probabilities:
    """Return `_mean_risk_from` of a score that knows all labels."""
    if ranked.ideal is not None:
        return _mean_risk_from(ranked.ideal, begin, harmonic)
    right = np.asarray(ranked.n - ranked.n_wrong, np.int64)
    first = np.maximum(begin, right + 1)
    # The oracle accepts all right answers first: the k-th answer beyond them has risk (k - right) / k.
    met = np.maximum(ranked.n - first + 1, 0)
    return np.asarray(met - right * np.where(met > 0, harmonic[ranked.n] - harmonic[first - 1], 0.0))


def _mean_risk_from(ranked: Ranked, begin: Counts, harmonic: Probabilities) -> Probabilities:
    """Return the sum, over k = begin .. n, of the share wrong among the k least doubtful; see `aurc` for ties."""
    before, errors_before = ranked.accepted - ranked.total, ranked.accepted_wrong - ranked.wrong
    share = _ratio(ranked.wrong, ranked.total, empty=0.0)
    first = np.clip(begin[:, None], before + 1, ranked.accepted + 1)
    summed = share * (ranked.accepted - first + 1)
    summed = summed + (errors_before - share * before) * (harmonic[ranked.accepted] - harmonic[first - 1])
    return np.asarray(summed.sum(axis=1))


def coverage_at_risk(ranked: Ranked, *, risk: float) -> Probabilities:
    """Largest share of answers that a threshold can accept with at most this share wrong; 0 if none can.

    A threshold cannot separate equal scores, so only whole pools are accepted.
    """
    # The risk of no answer is nan, which is not below anything.
    return np.asarray(np.where(ranked.risk <= risk, ranked.accepted, 0).max(axis=1) / ranked.n)


def risk_at_coverage(ranked: Ranked, *, coverage: float) -> Probabilities:
    """Share wrong among the least doubtful answers, at least this share of all (expected over ties)."""
    wanted = np.maximum(1, np.ceil(coverage * ranked.n - 1e-9).astype(np.int64))
    pool = (ranked.accepted < wanted[:, None]).sum(axis=1)[:, None]
    accepted, accepted_wrong, total, wrong = (
        np.take_along_axis(each, pool, axis=1)[:, 0]
        for each in (ranked.accepted, ranked.accepted_wrong, ranked.total, ranked.wrong)
    )
    return np.asarray((accepted_wrong - (accepted - wanted) * (wrong / total)) / wanted)


def _harmonic(n: int) -> Probabilities:
    """H(0) .. H(n), the sums of 1/k."""
    return np.concatenate(([0.0], np.cumsum(1 / np.arange(1, n + 1))))
