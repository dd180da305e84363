"""From scores and labels to a threshold that keeps a promise; pure, and no statistics library needed.

The promise: of the answers that are accepted, at most a share ``risk`` is wrong, with the given
``confidence``. It is made by fixed-sequence testing (Bauer 1991; Angelopoulos et al., "Learn then
Test", arXiv:2110.01052; Jung et al., "Trust or Escalate", arXiv:2407.18370): thresholds are fixed in
advance, from strict to lax, and tested one after the other on fresh labels, each against the
hypothesis that it breaks the promise. The first that cannot be shown to keep it ends the walk, and
the last that passed is deployed. A threshold that breaks the promise is then deployed with a
probability of at most 1 - confidence, whatever the scores are worth.

The thresholds come from the scores of a small part of the rows, whose labels are not used.
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

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

# The next six were chosen by simulation, on scores of real and made-up models, for the coverage that
# is reached at 300 to 5,000 labels (benchmarks/promise.py measures it). Any choice keeps the promise.

#: Share of the rows that only give the grid of thresholds.
GRID_SHARE = 0.1
#: Each threshold accepts about this many times as many answers as the one before.
GRID_STEP = 1.02
#: The walk begins where at least this share of the answers is accepted, or so many of the rows that give
#: the grid (the place of the very first of them is mostly chance) ...
START_SHARE, START_RANK = 0.03, 3
#: ... and where so many of them may be wrong, as long as that is not more than the second share.
START_ERRORS, START_SHARE_OF_ERRORS = 4, 0.1

#: Steps in which the smallest risk that could be certified is looked for.
RISK_STEP = 0.005
#: Fewest rows that make a certificate: half of them for the grid, and that is no grid.
MIN_ROWS = 20
#: Chance that the number of labels named for a next time suffices, in standard deviations (80 %).
_LIKELY = 0.84


@dataclass(frozen=True, slots=True, eq=False)
class Trials:
    """What the whole procedure did with each question, whatever the threshold: all its attempts.

    Attributes:
        p_wrong: shape (n, attempts); score of each attempt in turn, infinity where there is none.
        wrong: shape (n, attempts); whether its answer is wrong.
        released: shape (n, attempts); given to the caller whatever its score, as the answer of a
            fallback that is trusted without one.
    """

    p_wrong: Doubles
    wrong: Flags
    released: Flags

    def __post_init__(self) -> None:
        shapes = {self.p_wrong.shape, self.wrong.shape, self.released.shape}
        if len(shapes) != 1 or self.p_wrong.ndim != 2 or self.p_wrong.shape[1] < 1:
            raise InputError(f"Trials need three arrays of one shape (n, attempts), got {sorted(shapes)}")
        scored = self.p_wrong[np.isfinite(self.p_wrong)]
        if np.isnan(self.p_wrong).any() or ((scored < 0) | (scored > 1)).any():
            raise InputError("A score in the trials is no probability from 0 to 1")

    @classmethod
    def from_scores(cls, p_wrong: Sequence[float] | Doubles, wrong: Sequence[bool] | Flags) -> Self:
        """Trials of one attempt each, from scores and labels of shape (n,)."""
        scores = np.asarray(p_wrong, np.float64).reshape(-1, 1)
        return cls(scores, np.asarray(wrong, np.bool_).reshape(-1, 1), np.zeros(scores.shape, np.bool_))

    def __len__(self) -> int:
        return len(self.p_wrong)

    def take(self, rows: NDArray[np.intp]) -> Trials:
        """Some of the rows, in the given order."""
        return Trials(self.p_wrong[rows], self.wrong[rows], self.released[rows])

    def at(self, threshold: float) -> tuple[int, int]:
        """How many questions get an accepted answer at a threshold, and how many of these a wrong one.

        The first attempt with ``p_wrong < threshold`` is accepted, as `guard.policy.policy.decide` does where
        the accept rule comes first; later attempts are then never made.
        """
        accepted = (self.p_wrong < threshold) | self.released
        some = accepted.any(axis=1)
        first = accepted.argmax(axis=1)
        wrong = self.wrong[np.arange(len(self)), first]
        return int(some.sum()), int((some & wrong).sum())

    @property
    def scores(self) -> Doubles:
        """Shape (n,): the threshold above which a question gets an answer; 0 where it always does."""
        lowest = np.where(self.released, 0.0, self.p_wrong).min(axis=1)
        return np.asarray(np.minimum(lowest, 1.0), np.float64)


@dataclass(frozen=True, slots=True)
class Certified:
    """A threshold that keeps the promise.

    Attributes:
        threshold: answers with ``p_wrong`` below it are accepted.
        n: fresh labelled questions that it was tested on.
        accepted: how many of them got an accepted answer.
        errors: how many of those were wrong.
        bound: upper end of the one-sided Clopper-Pearson interval of the share of wrong answers among
            the accepted, at this confidence; at most ``risk``.
        risk: the promised share.
        confidence: of the promise.
        grid_rows: further questions, used to place the thresholds.
        tested: thresholds that were tested, the one that ended the walk included.
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
    """No threshold can be shown to keep the promise with these labels.

    Attributes:
        risk, confidence, n, grid_rows: as in `Certified`.
        possible_risk: smallest risk that these labels would have certified at this confidence, in steps
            of `RISK_STEP`; None if none below 1. Chosen with the labels in hand, so it is a hint and no
            promise: certify it with fresh ones.
        labels_needed: labels, more than there were, that would likely suffice if answers stay as they were here;
            None where no threshold had a low enough share of wrong answers.
        best_error_rate: lowest share of wrong answers at any threshold that accepts enough to tell.
        best_coverage: share of the questions that is accepted there.
        hopeless: no number of labels would do: at every such threshold the share of wrong answers is above
            ``risk`` even at the lower end of its one-sided interval.
    """

    risk: float
    confidence: float
    n: int
    grid_rows: int
    possible_risk: float | None
    labels_needed: int | None
    best_error_rate: float
    best_coverage: float
    hopeless: bool

    def explain(self) -> str:
        """What the numbers say, in a few sentences."""
        told = [
            f"Not certifiable: with {self.n + self.grid_rows:,} labels no threshold can be shown to let through at "
            f"most {percent(self.risk)} wrong answers at confidence {percent(self.confidence)}."
        ]
        if self.possible_risk is not None:
            told.append(f"The smallest risk that these labels could certify is {percent(self.possible_risk)}.")
        if self.labels_needed is not None:
            told.append(
                f"About {self.labels_needed:,} labels would likely suffice, if those answers are as good as these."
            )
        else:
            verdict = "No number of labels would" if self.hopeless else "These are too few to say whether more would do"
            told.append(
                f"{verdict}: the best {percent(self.best_coverage)} of the answers are "
                f"wrong in {percent(self.best_error_rate)} of the cases."
            )
        return " ".join(told)


def find_threshold(
    trials: Trials, *, risk: float, confidence: float, seed: int = 0, ceiling: float = math.inf
) -> Certified | NotCertifiable:
    """Find the laxest threshold that keeps the promise.

    Args:
        trials: fresh labelled questions, drawn like those that will be asked, none of which the scorer
            was fitted or calibrated on.
        risk: largest share of wrong answers among the accepted, between 0 and 1.
        confidence: probability with which the promise holds, at least 0.5 and below 1.
        seed: decides which rows give the thresholds.
        ceiling: thresholds stay below it: where the policy's next rule begins.

    Raises:
        InputError: a value out of range, or fewer than `MIN_ROWS` rows.
    """
    checked_seed(seed)
    check_promise(risk, confidence)
    if len(trials) < MIN_ROWS:
        raise InputError(f"A certificate needs at least {MIN_ROWS} labelled answers, got {len(trials)}")
    order = np.random.default_rng(seed).permutation(len(trials))
    size = max(MIN_ROWS // 2, round(GRID_SHARE * len(trials)))
    scores, fresh = trials.take(order[:size]).scores, trials.take(order[size:])
    found = _walk(fresh, grid(scores, len(fresh), risk, confidence, ceiling), risk, confidence, size)
    return found or _not_certifiable(trials, scores, fresh, risk, confidence, ceiling)


def check_promise(risk: float, confidence: float) -> None:
    """Raise InputError where a promise cannot be made of these numbers."""
    if not 0.0 < risk < 1.0:
        raise InputError(f"A risk is a share above 0 and below 1, got {risk}", fix="Write 0.05 for 5 %")
    if not 0.5 <= confidence < 1.0:
        raise InputError(f"A confidence is at least 0.5 and below 1, got {confidence}", fix="Write 0.9 for 90 %")


def grid(scores: Doubles, n: int, risk: float, confidence: float, ceiling: float = math.inf) -> Doubles:
    """Thresholds from strict to lax, for n labels that are independent of these scores.

    Args:
        scores: shape (grid rows,).
        n: labels that the thresholds will be tested on.
        risk, confidence, ceiling: as for `find_threshold`.

    Returns:
        Shape (thresholds,), rising; at quantiles of the scores, interpolated in log-odds.
    """
    counts = list(_expected_counts(n, len(scores), risk, confidence))
    log_odds = _log_odds(np.sort(scores))
    ranks = np.array(counts) / n * (len(scores) + 1) - 1
    thresholds = 1 / (1 + np.exp(-np.interp(ranks, np.arange(len(scores)), log_odds)))
    below = thresholds[thresholds < ceiling]
    if len(below) < len(thresholds):  # the laxest that the policy leaves room for
        below = np.append(below, np.nextafter(ceiling, 0.0))
    return np.unique(below)


def _expected_counts(n: int, grid_rows: int, risk: float, confidence: float) -> Iterator[float]:
    """Acceptances that are expected at each threshold.

    A walk that begins too early ends by one early error; one that begins too late has nothing to test.
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
    """Test thresholds in turn until one fails; the last that passed."""
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
    trials: Trials, scores: Doubles, fresh: Trials, risk: float, confidence: float, ceiling: float
) -> NotCertifiable:
    curve = list(_curve(trials, ceiling))
    best = min(curve, key=lambda point: (point[1] / point[0], -point[0]))
    return NotCertifiable(
        risk=risk,
        confidence=confidence,
        n=len(fresh),
        grid_rows=len(scores),
        possible_risk=_possible_risk(scores, fresh, risk, confidence, ceiling),
        labels_needed=_labels_needed(curve, len(trials), risk, confidence),
        best_error_rate=best[1] / best[0],
        best_coverage=best[0] / len(trials),
        hopeless=all(lower_bound(errors, accepted, confidence) > risk for accepted, errors in curve),
    )


def _curve(trials: Trials, ceiling: float) -> Iterator[tuple[int, int]]:
    """Accepted and wrong answers at thresholds that accept enough of them to tell."""
    fewest = max(MIN_ROWS // 2, round(START_SHARE * len(trials)))
    ordered = np.sort(trials.scores)
    step = max(1, len(trials) // 100)
    for rank in [*range(fewest, len(trials), step), len(trials)]:
        above = ordered[rank] if rank < len(trials) else math.inf
        accepted, errors = trials.at(min(float(above), ceiling))
        if accepted:
            yield accepted, errors
    if not trials.at(ceiling)[0]:  # the policy's other rules leave no room for any answer
        yield len(trials), int(trials.wrong[:, 0].sum())


def _possible_risk(scores: Doubles, fresh: Trials, risk: float, confidence: float, ceiling: float) -> float | None:
    for step in range(math.floor(risk / RISK_STEP) + 1, round(1 / RISK_STEP)):
        larger = round(step * RISK_STEP, 6)
        if _walk(fresh, grid(scores, len(fresh), larger, confidence, ceiling), larger, confidence, len(scores)):
            return larger
    return None


def _labels_needed(curve: list[tuple[int, int]], rows: int, risk: float, confidence: float) -> int | None:
    """The fewest labels, more than there were, with which some point of the risk-coverage curve would likely pass."""
    needed: list[float] = []
    for accepted, errors in curve:
        rate = (errors + 0.5) / (accepted + 1)  # an observed rate of 0 is not 0
        if rate < risk:
            fresh = _accepted_needed(rate, risk, confidence) * rows / accepted
            needed.append(max(fresh + MIN_ROWS // 2, fresh / (1 - GRID_SHARE)))
    if not needed:
        return None
    return _two_digits(max(rows + 1, math.ceil(min(needed))))


def _two_digits(number: int) -> int:
    """The next number, rounded up, whose digits but two are zeros: it is an estimate."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit


def _accepted_needed(rate: float, risk: float, confidence: float) -> int:
    """Accepted answers with which a true error rate below the risk would likely pass."""

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
