"""The measures of the evaluation, each with direction, unit and source.

The formulas are in `guard.scoring.metrics`, which calibration uses, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError, did_you_mean
from guard.scoring import metrics
from guard.scoring.labels import Labels
from guard.scoring.metrics import Probabilities, Ranked

Direction = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of the probabilities that answers are wrong, against labels.

    Attributes:
        name: name in tables.
        direction: whether ``higher`` or ``lower`` is better.
        unit: unit of the value for the report, such as ``chance`` or ``share``.
        function: returns one value for each row of ranked answers, shape (draws,).
        meaning: one sentence for the reader of a report.
        source: source of the definition.
        inflated: whether resamples, which repeat answers, increase the value (as for gaps in bins); the bootstrap
            then shifts its draws back to the value.
    """

    name: str
    direction: Direction
    unit: str
    function: Callable[[Ranked], Probabilities]
    meaning: str
    source: str
    inflated: bool = False

    @property
    def sign(self) -> int:
        """1 if higher is better, else -1; a difference times this is a gain."""
        return 1 if self.direction == "higher" else -1

    @property
    def arrow(self) -> str:
        """The direction as one character."""
        return "↑" if self.direction == "higher" else "↓"

    def value(self, p_wrong: Probabilities, wrong: Labels) -> float:
        """Return the measure of one score, from arrays of shape (n,); nan if it is undefined.

        Raises:
            InputError: no answers, shapes that differ, or a score that is not a number.
        """
        return float(self.function(Ranked.from_scores(p_wrong, wrong))[0])


AUROC = Measure(
    name="AUROC",
    direction="higher",
    unit="chance",
    function=metrics.auroc,
    meaning="Chance that a wrong answer scores above a right one, ties counting half; 0.5 is guessing.",
    source="Hanley and McNeil 1982",
)
AUPRC_WRONG = Measure(
    name="AUPRC (wrong)",
    direction="higher",
    unit="precision",
    function=metrics.average_precision_wrong,
    meaning="Average precision of finding the wrong answers; guessing gives the share of wrong answers.",
    source="Davis and Goadrich 2006, as average precision (no interpolation)",
)
AUPRC_RIGHT = Measure(
    name="AUPRC (right)",
    direction="higher",
    unit="precision",
    function=metrics.average_precision_right,
    meaning="Average precision of finding the right answers; guessing gives the share of right answers.",
    source="Davis and Goadrich 2006, as average precision (no interpolation)",
)
BRIER = Measure(
    name="Brier",
    direction="lower",
    unit="squared probability",
    function=metrics.brier,
    meaning="Mean squared error of the probability. The ILIS paper prints 1 minus this and calls it Brier.",
    source="Brier 1950",
)
ECE = Measure(
    name="ECE",
    direction="lower",
    unit="probability",
    function=metrics.calibration_error,
    meaning="Mean gap between stated probability and share wrong, over ten equally filled bins.",
    source="Naeini et al. 2015; bins as in Nguyen and O'Connor 2015",
    inflated=True,
)
# With right and wrong as the only errors, the ratio of the areas under the curve of remaining errors
# (Malinin et al. 2017) is exactly 2 AUROC - 1; the retained answers' mean quality is what says more.
PRR = Measure(
    name="PRR",
    direction="higher",
    unit="share of the oracle's gain",
    function=metrics.prediction_rejection_ratio,
    meaning="Area gained by rejecting in the score's order, from 0 (random) to 1 (the oracle).",
    source="Malinin et al. 2017; areas of the retained answers' risk, as in LM-Polygraph (Fadeeva et al. 2023)",
)
EQUAL_WIDTH_ECE = Measure(
    name="ECE (equal width)",
    direction="lower",
    unit="probability",
    function=metrics.equal_width_calibration_error,
    meaning="Mean gap between stated probability and share wrong, over ten bins of equal width, as in most papers.",
    source="Guo et al. 2017",
    inflated=True,
)
HALF_PRR = Measure(
    name="PRR to one half",
    direction="higher",
    unit="share of the oracle's gain",
    function=metrics.half_rejection_ratio,
    meaning="PRR where at most half of the answers is rejected, from 0 (random) to 1 (the oracle).",
    source="as LM-Polygraph prints it since 0.5 (Vashurin et al. 2025)",
)
AURC = Measure(
    name="AURC",
    direction="lower",
    unit="share wrong",
    function=metrics.aurc,
    meaning="Share wrong among accepted answers, averaged over all coverages.",
    source="Geifman and El-Yaniv 2017; expected over the order of equal scores",
)
E_AURC = Measure(
    name="E-AURC",
    direction="lower",
    unit="share wrong",
    function=metrics.excess_aurc,
    meaning="AURC above that of the oracle, which knows every label.",
    source="Geifman, Uziel and El-Yaniv 2019",
)


AUGRC = Measure(
    name="AUGRC",
    direction="lower",
    unit="share of all answers",
    function=metrics.augrc,
    meaning="Share of all answers that are accepted and wrong, averaged over all coverages.",
    source="Traub et al. 2024",
)


def coverage_at(risk: float) -> Measure:
    """Return the measure: the largest share of answers that can be accepted with at most this share of wrong ones.

    The threshold is selected on the same answers. It gives no guarantee for new ones; certificates do.

    Raises:
        InputError: the risk is not between 0 and 1.
    """
    _check_share("risk", risk)
    return Measure(
        name=f"Coverage at {risk * 100:g} % risk",
        direction="higher",
        unit="share of answers",
        function=partial(metrics.coverage_at_risk, risk=risk),
        meaning=f"Largest share of answers that a threshold accepts with at most {risk * 100:g} % of them wrong.",
        source="Geifman and El-Yaniv 2017",
    )


def risk_at(coverage: float) -> Measure:
    """Return the measure: the share of wrong answers when this share of the answers, by lowest score, is accepted.

    Raises:
        InputError: the coverage is not between 0 and 1.
    """
    _check_share("coverage", coverage)
    return Measure(
        name=f"Risk at {coverage * 100:g} % coverage",
        direction="lower",
        unit="share wrong",
        function=partial(metrics.risk_at_coverage, coverage=coverage),
        meaning=f"Share wrong among the {coverage * 100:g} % least doubtful answers.",
        source="El-Yaniv and Wiener 2010; expected over the order of equal scores",
    )


def _check_share(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise InputError(f"{name} must be above 0 and at most 1, got {value}")


#: The measures of tables, in order.
MEASURES: tuple[Measure, ...] = (
    *(AUROC, AUPRC_WRONG, AUPRC_RIGHT, BRIER, ECE, EQUAL_WIDTH_ECE, PRR, HALF_PRR, AURC, E_AURC, AUGRC),
    *(coverage_at(0.05), coverage_at(0.1), coverage_at(0.2), risk_at(0.8)),
)

#: The measures of the transfer matrix.
TRANSFER_MEASURES: tuple[Measure, ...] = (AUROC, AUPRC_WRONG, BRIER)


def measure_named(name: str) -> Measure:
    """Return a measure by its name.

    Raises:
        InputError: the measure does not exist.

    Examples:
        >>> measure_named("AUROC").name
        'AUROC'
    """
    for measure in MEASURES:
        if measure.name == name:
            return measure
    raise InputError(f"There is no measure {name!r}", fix=did_you_mean(name, (each.name for each in MEASURES)))


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin of a reliability diagram.

    Attributes:
        p_wrong: mean probability of being wrong.
        wrong: share of wrong answers.
        n: answers in the bin.
    """

    p_wrong: float
    wrong: float
    n: int


def reliability(p_wrong: Probabilities, wrong: Labels, *, bins: int = 10) -> tuple[ReliabilityBin, ...]:
    """Return the non-empty bins of ECE; arrays have shape (n,).

    Raises:
        InputError: no answers, shapes that differ, or a score that is not a number.
    """
    ranked = Ranked.from_scores(p_wrong, wrong)
    edges = metrics.bin_edges(ranked, bins=bins)[0]
    total, errors = ranked.total[0], ranked.wrong[0]
    return tuple(
        ReliabilityBin(
            p_wrong=float(ranked.scores[begin:end] @ total[begin:end] / total[begin:end].sum()),
            wrong=float(errors[begin:end].sum() / total[begin:end].sum()),
            n=int(total[begin:end].sum()),
        )
        for begin, end in itertools.pairwise(edges)
        if end > begin
    )


def risk_curve(p_wrong: Probabilities, wrong: Labels, coverages: NDArray[np.float64]) -> Probabilities:
    """Return the share of wrong answers at each coverage, in expectation over the order of equal scores.

    The result has the shape of ``coverages``.

    Raises:
        InputError: no answers, shapes that differ, or a score that is not a number.
    """
    ranked = Ranked.from_scores(p_wrong, wrong)
    return np.array([metrics.risk_at_coverage(ranked, coverage=float(each))[0] for each in coverages])
