"""Find a threshold with a risk guarantee from scores and labels. Pure; needs NumPy only.

The guarantee: at most a share ``risk`` of the accepted answers is wrong, with the given ``confidence``. The method is
fixed-sequence testing (Bauer 1991; Angelopoulos et al., "Learn then Test", arXiv:2110.01052; Jung et al., "Trust or
Escalate", arXiv:2407.18370). Thresholds are fixed in advance, from strict to lax, and tested in turn on fresh labels,
each against the hypothesis that its risk is too high. The sequence ends at the first test that fails; the last
threshold that passed is certified. The probability of certifying a threshold whose risk is too high is at most
1 - confidence, whatever the quality of the scores.

The thresholds come from the scores of a small part of the rows, whose labels are not used.

Not from a library, because MAPIE has no retries and fallbacks; without these it selects the same threshold (see tests).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from guard.checked import checked_seed
from guard.errors import InputError
from guard.policy.bounds import least_accepted, lower_bound, passes, percent, upper_bound
from guard.records import Doubles

Flags = NDArray[np.bool_]

# The next six were selected by simulation, on scores of real and synthetic models, for coverage with 300 to 5,000
# labels (measured by benchmarks/risk_guarantee.py). The guarantee holds for any choice.

#: Share of the rows for the grid of thresholds, whose labels are not used.
GRID_SHARE = 0.1
#: Ratio of the numbers of answers that two neighbouring thresholds accept.
GRID_STEP = 1.02
#: The sequence starts where at least this share of the answers is accepted, and at least this many of the grid rows
#: (the position of the very first of them is mostly chance) ...
START_SHARE, START_RANK = 0.03, 3
#: ... and where this many of them may be wrong, unless that accepts more than the second share.
START_ERRORS, START_SHARE_OF_ERRORS = 4, 0.1

#: Offset of a threshold above the score at which it is placed: above rounding, below differences of scores.
ABOVE_TIES = 1 + 1e-9

#: Step size of the search for the smallest risk that could be certified.
RISK_STEP = 0.005
#: Fewest rows for a certificate; half of them make the grid.
MIN_ROWS = 20
#: Probability that the estimated number of labels suffices at one threshold, in standard deviations (80 %).
_LIKELY = 0.84
#: A number of labels is likely sufficient if 48 of 60 sets of that size, drawn from the present labels, pass.
LIKELY, DRAWS = 48, 60
#: Least confidence of the statement that no number of labels would suffice.
SURE = 0.95
#: Largest number of labels for this estimate.
MOST_LABELS = 20_000


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """All attempts of the whole procedure at each question, for any threshold.

    Attributes:
        p_wrong: shape (n, attempts); score of each attempt in turn, infinity if there is none.
        wrong: shape (n, attempts); whether its answer is wrong; true where there is none.
        released: shape (n, attempts); whether the caller gets the answer regardless of its score, such as that of a
            fallback that is trusted without one.

    Examples:
        >>> trials = Trials.from_scores([0.1, 0.2, 0.7], [False, True, True])
        >>> trials.at(0.5)  # two answers are accepted, one of them wrong
        (2, 1)
    """

    p_wrong: Doubles
    wrong: Flags
    released: Flags

    def __post_init__(self) -> None:
        shapes = {self.p_wrong.shape, self.wrong.shape, self.released.shape}
        if len(shapes) != 1 or self.p_wrong.ndim != 2 or self.p_wrong.shape[1] < 1:
            raise InputError(f"Trials need three arrays of one shape (n, attempts), got {sorted(shapes)}")
        scored = self.p_wrong[np.isfinite(self.p_wrong)]
        if np.isnan(self.p_wrong).any() or (self.p_wrong < 0).any() or (scored > 1).any():
            raise InputError("A score in the trials is not a probability from 0 to 1")

    @classmethod
    def from_scores(cls, p_wrong: Sequence[float] | Doubles, wrong: Sequence[bool] | Flags) -> Self:
        """Make trials of one attempt each from scores and labels of shape (n,)."""
        scores = np.asarray(p_wrong, np.float64).reshape(-1, 1)
        return cls(scores, np.asarray(wrong, np.bool_).reshape(-1, 1), np.zeros(scores.shape, np.bool_))

    def __len__(self) -> int:
        return len(self.p_wrong)

    def take(self, rows: NDArray[np.intp]) -> Trials:
        """Return some of the rows, in the given order."""
        return Trials(self.p_wrong[rows], self.wrong[rows], self.released[rows])

    def at(self, threshold: float) -> tuple[int, int]:
        """Return how many questions get an accepted answer at a threshold, and how many of these answers are wrong.

        The first attempt with ``p_wrong < threshold`` is accepted, as in `guard.policy.policy.decide` where the accept
        rule comes first; later attempts are never made.
        """
        accepted = (self.p_wrong < threshold) | self.released
        some = accepted.any(axis=1)
        first = accepted.argmax(axis=1)
        wrong = self.wrong[np.arange(len(self)), first]
        return int(some.sum()), int((some & wrong).sum())

    @property
    def never_right(self) -> int:
        """Number of questions whose every attempt is wrong."""
        return int(self.wrong.all(axis=1).sum())

    @property
    def scores(self) -> Doubles:
        """The threshold above which each question gets an answer, shape (n,); 0 if it always does."""
        lowest = np.where(self.released, 0.0, self.p_wrong).min(axis=1)
        return np.asarray(np.minimum(lowest, 1.0), np.float64)


@dataclass(frozen=True, slots=True)
class Certified:
    """A threshold with a risk guarantee.

    Attributes:
        threshold: answers with ``p_wrong`` below it are accepted.
        n: number of fresh labelled questions in the test.
        accepted: number of these with an accepted answer.
        errors: number of accepted answers that are wrong.
        bound: upper end of the one-sided Clopper-Pearson interval of the share of wrong answers among the accepted,
            at this confidence; at most ``risk``.
        risk: the guaranteed share.
        confidence: confidence of the guarantee.
        grid_rows: number of further questions, used to place the thresholds.
        tested: number of tested thresholds, including the one that failed.
    """

    threshold: float
    n: int
    accepted: int
    errors: int
    bound: float
    risk: float
    confidence: float
    grid_rows: int
    tested: int

    @property
    def coverage(self) -> float:
        """Share of the questions that get an accepted answer."""
        return self.accepted / self.n


@dataclass(frozen=True, slots=True)
class NotCertifiable:
    """These labels certify no threshold.

    Attributes:
        risk, confidence, n, grid_rows: as in `Certified`.
        possible_risk: smallest risk that these labels would certify at this confidence, in steps of `RISK_STEP`; None
            if there is none below 1. It is selected on these labels, so it is a hint and not a guarantee: certify it
            with fresh ones.
        labels_needed: estimated number of fresh labels, above the present one, that would likely certify ``risk`` if
            future answers are like these: at least `LIKELY` of `DRAWS` sets of this size, drawn from these labels, do.
            None if no threshold has a low enough share of wrong answers, no tried size is sufficient, or no estimate
            was requested.
        needed_accepted, needed_errors: the accepted and the wrong answers at the most favourable threshold, on which
            the estimate is based; 0 without an estimate. The true share is often higher.
        needed_bound: upper end of the one-sided interval of that share, at this confidence; 1 without an estimate.
        best_error_rate: lowest share of wrong answers at any threshold that accepts enough answers to estimate it.
        best_coverage: share of the questions that is accepted there.
        hopeless: no number of labels would suffice: at every such threshold the share of wrong answers is above
            ``risk`` even at the lower end of its one-sided interval, at this confidence or `SURE`.
    """

    risk: float
    confidence: float
    n: int
    grid_rows: int
    possible_risk: float | None
    labels_needed: int | None
    needed_accepted: int
    needed_errors: int
    needed_bound: float
    best_error_rate: float
    best_coverage: float
    hopeless: bool

    def explain(self) -> str:
        """Return the result in a few sentences."""
        sentences = [
            f"Not certifiable: {self.n + self.grid_rows:,} labels certify no threshold for a risk of "
            f"{percent(self.risk)} at confidence {percent(self.confidence)}."
        ]
        if self.possible_risk is not None:
            sentences.append(f"The smallest risk that these same labels pass is {percent(self.possible_risk)}.")
        if self.labels_needed is not None:
            sentences.append(self._explain_estimate(self.labels_needed))
        else:
            verdict = "No number of labels would suffice" if self.hopeless else "More labels may or may not suffice"
            sentences.append(
                f"{verdict}: of the best {percent(self.best_coverage)} of the answers, "
                f"{percent(self.best_error_rate)} are wrong."
            )
        return " ".join(sentences)

    def _explain_estimate(self, labels: int) -> str:
        share = percent(self.needed_accepted / (self.n + self.grid_rows))
        estimate = (
            f"A fresh set of about {labels:,} would likely pass at {percent(self.risk)} if all answers are like these, "
            f"of which the best {share} are wrong in {self.needed_errors} of {self.needed_accepted} cases"
        )
        if self.needed_bound <= self.risk:
            return f"{estimate}."
        return f"{estimate}. That is uncertain: up to {percent(self.needed_bound)} of the best may be wrong."


def find_threshold(
    trials: Trials,
    *,
    risk: float,
    confidence: float,
    seed: int = 0,
    ceiling: float = math.inf,
    estimate: bool = True,
) -> Certified | NotCertifiable:
    """Find the laxest threshold with a risk guarantee.

    Args:
        trials: fresh labelled questions from the distribution of future ones; the scorer was not fitted or calibrated
            on any of them.
        risk: largest share of wrong answers among the accepted, between 0 and 1.
        confidence: confidence of the guarantee, at least 0.5 and below 1.
        seed: decides which rows make the grid of thresholds.
        ceiling: upper limit of thresholds: the start of the policy's next rule.
        estimate: whether to estimate the number of labels needed if nothing is certified, which takes some seconds.

    Raises:
        InputError: a value is out of range, or there are fewer than `MIN_ROWS` rows.

    Examples:
        >>> wrong = np.arange(2000) >= 1500
        >>> found = find_threshold(Trials.from_scores(np.linspace(0, 1, 2000), wrong), risk=0.1, confidence=0.95)
        >>> 0.7 < found.threshold < 0.85
        True
    """
    checked_seed(seed)
    check_guarantee(risk, confidence)
    if len(trials) < MIN_ROWS:
        raise InputError(f"A certificate needs at least {MIN_ROWS} labelled answers, got {len(trials)}")
    order = np.random.default_rng(seed).permutation(len(trials))
    scores, fresh = _divided(trials, order)
    found = _walk(fresh, grid(scores, len(fresh), risk, confidence, ceiling), risk, confidence, len(scores))
    return found or _not_certifiable(trials, scores, fresh, risk, confidence, ceiling, estimate)


def _divided(trials: Trials, order: NDArray[np.intp]) -> tuple[Doubles, Trials]:
    """Return the scores of the grid rows, and the rows of the test."""
    size = max(MIN_ROWS // 2, round(GRID_SHARE * len(order)))
    return trials.take(order[:size]).scores, trials.take(order[size:])


def check_guarantee(risk: float, confidence: float) -> None:
    """Raise InputError if these numbers are not a valid risk guarantee."""
    if not 0.0 < risk < 1.0:
        raise InputError(f"A risk is a share above 0 and below 1, got {risk}", fix="Write 0.05 for 5 %")
    if not 0.5 <= confidence < 1.0:
        raise InputError(f"A confidence is at least 0.5 and below 1, got {confidence}", fix="Write 0.9 for 90 %")


def grid(scores: Doubles, n: int, risk: float, confidence: float, ceiling: float = math.inf) -> Doubles:
    """Return thresholds from strict to lax, for n labels that are independent of these scores.

    Args:
        scores: shape (grid rows,).
        n: number of labels in the test.
        risk, confidence, ceiling: as for `find_threshold`.

    Returns:
        thresholds, shape (thresholds,), ascending: quantiles of the scores, interpolated in log-odds, slightly
        increased so that they accept answers with exactly this score.
    """
    counts = list(_expected_counts(n, len(scores), risk, confidence))
    log_odds = _log_odds(np.sort(scores))
    ranks = np.array(counts) / n * (len(scores) + 1) - 1
    quantiles = 1 / (1 + np.exp(-np.interp(ranks, np.arange(len(scores)), log_odds)))
    thresholds = np.minimum(quantiles * ABOVE_TIES, 1.0)
    below = thresholds[thresholds < ceiling]
    if len(below) < len(thresholds):  # the laxest threshold below the ceiling
        below = np.append(below, np.nextafter(ceiling, 0.0))
    return np.unique(below)


def _expected_counts(n: int, grid_rows: int, risk: float, confidence: float) -> Iterator[float]:
    """Yield the expected number of accepted answers at each threshold.

    A sequence that starts too early ends at one early error; one that starts too late has nothing to test.
    """
    some_errors = 1.1 * least_accepted(START_ERRORS, risk, confidence)
    start = max(
        least_accepted(1, risk, confidence),
        min(some_errors, START_SHARE_OF_ERRORS * n),
        START_SHARE * n,
        START_RANK / (grid_rows + 1) * n,
    )
    expected = float(start)
    while expected < n:
        yield expected
        expected = max(expected + 1, expected * GRID_STEP)
    yield float(n)


def _log_odds(p_wrong: Doubles) -> Doubles:
    inside = np.clip(p_wrong, 1e-12, 1 - 1e-12)
    return np.asarray(np.log(inside) - np.log1p(-inside), np.float64)


def _walk(fresh: Trials, thresholds: Doubles, risk: float, confidence: float, grid_rows: int) -> Certified | None:
    """Test thresholds in turn until one fails; return the last that passed."""
    deployed: tuple[float, int, int] | None = None
    tested = 0
    for threshold in thresholds.tolist():
        accepted, errors = fresh.at(threshold)
        tested += 1
        if not passes(errors, accepted, risk, confidence):
            break
        deployed = threshold, accepted, errors
    if deployed is None:
        return None
    threshold, accepted, errors = deployed
    bound = upper_bound(errors, accepted, confidence)
    return Certified(threshold, len(fresh), accepted, errors, bound, risk, confidence, grid_rows, tested)


def _not_certifiable(
    trials: Trials, scores: Doubles, fresh: Trials, risk: float, confidence: float, ceiling: float, estimate: bool
) -> NotCertifiable:
    curve = list(_curve(trials, ceiling))
    best = min(curve, key=lambda point: (point[1] / point[0], -point[0]))
    least, needed = _labels_needed(curve, len(trials), risk, confidence)
    labels = _likely_enough(trials, least, risk, confidence, ceiling) if estimate and least is not None else None
    return NotCertifiable(
        risk=risk,
        confidence=confidence,
        n=len(fresh),
        grid_rows=len(scores),
        possible_risk=_possible_risk(scores, fresh, risk, confidence, ceiling),
        labels_needed=labels,
        needed_accepted=needed[0] if labels is not None else 0,
        needed_errors=needed[1] if labels is not None else 0,
        needed_bound=upper_bound(needed[1], needed[0], confidence) if labels is not None else 1.0,
        best_error_rate=best[1] / best[0],
        best_coverage=best[0] / len(trials),
        hopeless=all(lower_bound(errors, accepted, max(confidence, SURE)) > risk for accepted, errors in curve),
    )


def _curve(trials: Trials, ceiling: float) -> Iterator[tuple[int, int]]:
    """Yield numbers of accepted and wrong answers at thresholds that accept enough answers for an estimate."""
    fewest = max(MIN_ROWS // 2, round(START_SHARE * len(trials)))
    ordered = np.sort(trials.scores)
    step = max(1, len(trials) // 100)
    for rank in [*range(fewest, len(trials), step), len(trials)]:
        above = ordered[rank] if rank < len(trials) else math.inf
        accepted, errors = trials.at(min(float(above), ceiling))
        if accepted:
            yield accepted, errors
    if not trials.at(ceiling)[0]:  # the policy's next rule takes every answer
        yield len(trials), int(trials.wrong[:, 0].sum())


def _possible_risk(scores: Doubles, fresh: Trials, risk: float, confidence: float, ceiling: float) -> float | None:
    for step in range(math.floor(risk / RISK_STEP) + 1, round(1 / RISK_STEP)):
        larger = round(step * RISK_STEP, 6)
        if _walk(fresh, grid(scores, len(fresh), larger, confidence, ceiling), larger, confidence, len(scores)):
            return larger
    return None


def _labels_needed(
    curve: list[tuple[int, int]], rows: int, risk: float, confidence: float
) -> tuple[int | None, tuple[int, int]]:
    """Return the fewest labels, above the present number, for some point of the curve to pass, and that point.

    That point would likely pass its own test. The sequence may end before it.
    """
    needed: list[tuple[float, tuple[int, int]]] = []
    for accepted, errors in curve:
        rate = (errors + 0.5) / (accepted + 1)  # an observed rate of 0 is not 0
        if rate < risk:
            fresh = _accepted_needed(rate, risk, confidence) * rows / accepted
            needed.append((max(fresh + MIN_ROWS // 2, fresh / (1 - GRID_SHARE)), (accepted, errors)))
    if not needed:
        return None, (0, 0)
    labels, point = min(needed)
    return _two_digits(max(rows + 1, math.ceil(labels))), point


def _likely_enough(trials: Trials, least: int, risk: float, confidence: float, ceiling: float) -> int | None:
    """Return a number of labels, at least the given one, of which most sets drawn from these trials are certified."""
    rng = np.random.default_rng(0)
    labels = least
    while labels <= min(MOST_LABELS, 30 * least):
        failed = 0
        for _ in range(DRAWS):
            scores, fresh = _divided(trials, rng.integers(0, len(trials), labels))
            thresholds = grid(scores, len(fresh), risk, confidence, ceiling)
            failed += _walk(fresh, thresholds, risk, confidence, len(scores)) is None
            if failed > DRAWS - LIKELY:
                break
        else:
            return labels
        labels = _two_digits(math.ceil(labels * 1.25))
    return None


def _two_digits(number: int) -> int:
    """Return the number rounded up to two significant digits, since it is an estimate."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit


def _accepted_needed(rate: float, risk: float, confidence: float) -> int:
    """Return the number of accepted answers for a true error rate below the risk to likely pass."""

    def suffices(accepted: int) -> bool:
        likely = accepted * rate + _LIKELY * math.sqrt(accepted * rate * (1 - rate))
        return passes(math.ceil(likely), accepted, risk, confidence)

    high = 1
    while not suffices(high):
        high *= 2
        if high > 1e9:
            return high
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if suffices(middle) else (middle, high)
    return high
