"""The result of an evaluation: every number in the report, and its provenance.

A result is small (no answer, no single probability) and is read back from its JSON exactly, so that
the report can be rendered again, or two runs compared, after the records are gone.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from guard.errors import InputError
from guard.evaluation.bootstrap import Estimate, PairedGain
from guard.evaluation.measures import ReliabilityBin
from guard.evaluation.protocol import MethodKind
from guard.scoring.metrics import ByEnding

ClaimOutcome = Literal["reached", "not shown", "not reached", "not recorded"]

#: Where risk-coverage curves are drawn; below five in a hundred a few answers decide.
COVERAGES = tuple(round(0.01 * each, 2) for each in range(5, 101))
#: Least share of accepted answers that a headline names.
LEAST_COVERAGE = 0.05

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "lightgbm", "torch", "transformers", "llama-cpp-python")


@dataclass(frozen=True, slots=True)
class MethodCard:
    """A method as it is listed in a report.

    Attributes:
        name: short label.
        kind: guard's own, a baseline, a control, or a costly reference.
        passes: model passes in units of one answer.
        seconds: measured time of one answer's score, including the generation of extra answers; None where it was not
            measured.
    """

    name: str
    kind: MethodKind
    passes: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """A data set: its number of answers and the share of wrong ones."""

    name: str
    n: int
    wrong: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The model that gave the answers; the fields are those of `guard.records.ModelInfo`."""

    name: str
    engine: str
    architecture: str
    quantization: str
    weights_sha256: str
    layers: int
    width: int


@dataclass(frozen=True, slots=True)
class MethodScore:
    """One measure of one method: the mean over the cells of a protocol, whose number is ``cells``."""

    method: str
    measure: str
    estimate: Estimate
    cells: int


@dataclass(frozen=True, slots=True)
class CellScore:
    """One measure of one method on one cell; None where it is not defined."""

    train: str
    test: str
    method: str
    measure: str
    value: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The gain of guard's own method over another."""

    against: str
    measure: str
    gain: PairedGain


@dataclass(frozen=True, slots=True)
class Missing:
    """A method that could not be fitted or applied, with the reason."""

    method: str
    train: str
    test: str
    reason: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Share of wrong answers at each of `COVERAGES`, mean over the test sets."""

    name: str
    risk: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted against observed error rates, over the answers of all test sets together."""

    method: str
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class SettingResult:
    """All results of one protocol.

    Attributes:
        setting: as in `Predictions`.
        cells: number of (train, test) pairs.
        scores: means over cells, by method and measure.
        per_cell: the values of single cells.
        comparisons: guard's own method against each other one.
        missing: methods without results.
        curves: of the methods that were recorded on every cell; empty for pairwise transfer.
        oracle, random: the curves of a score that knows all labels, and of accepting at random.
        reliability: reliability of the same methods as the curves.
    """

    setting: str
    cells: int
    scores: tuple[MethodScore, ...]
    per_cell: tuple[CellScore, ...]
    comparisons: tuple[Comparison, ...]
    missing: tuple[Missing, ...]
    curves: tuple[Curve, ...]
    oracle: Curve | None
    random: Curve | None
    reliability: tuple[Reliability, ...]

    def score(self, method: str, measure: str) -> MethodScore | None:
        """Return the mean of one measure of one method; None where there is none."""
        found = (each for each in self.scores if (each.method, each.measure) == (method, measure))
        return next(found, None)


@dataclass(frozen=True, slots=True)
class Ablation:
    """Two methods that differ in one group of features.

    Attributes:
        group: name of the features.
        full: method with these features.
        without: the same method without them.
    """

    group: str
    full: str
    without: str


@dataclass(frozen=True, slots=True)
class GroupGain:
    """The gain from a group of features in one protocol."""

    group: str
    setting: str
    measure: str
    gain: PairedGain


@dataclass(frozen=True, slots=True)
class Importance:
    """The importance of each ordered pair of layers.

    Attributes:
        meaning: meaning of a value, such as ``sum of the trees' gains``.
        values: shape (L, L); row i, column j belongs to KL(layer i || layer j).
    """

    meaning: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim about guard's own method that the evaluation tests.

    Attributes:
        text: the claim in words.
        setting: the protocol.
        measure: the measure.
        against: the other method, or None for the best baseline by this measure.
        margin: the least gain, in the measure's unit; below 0 it is the largest loss.
        certain: whether the whole interval must lie above the margin, not only the value.
        everywhere: whether each single cell must reach the margin; the verdict then has the worst cell's gain.
    """

    text: str
    setting: str
    measure: str
    against: str | None = None
    margin: float = 0.0
    certain: bool = True
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class ClaimVerdict:
    """The result of testing a claim.

    Attributes:
        claim: the claim.
        against: the method of the comparison.
        estimate: the gain, of the worst cell where the claim is about every cell.
        outcome: ``reached``; ``not shown`` where the value is above the margin but its interval is not;
            ``not reached``; ``not recorded``.
    """

    claim: Claim
    against: str
    estimate: Estimate
    outcome: ClaimOutcome


@dataclass(frozen=True, slots=True)
class PooledPoint:
    """The largest share of answers that one threshold accepts with at most this share of wrong ones."""

    risk: float
    coverage: Estimate


@dataclass(frozen=True, slots=True)
class Pooled:
    """What one threshold on guard's own score gives over the answers of all test sets together.

    Attributes:
        setting: the protocol.
        sets: number of test sets.
        answers: number of answers.
        wrong: share of wrong answers.
        points: accepted shares, by rising risk.
        curve: share wrong among the accepted, by coverage.
        oracle: the same of a score that knows every label.
        by_ending: the score on truncated and on complete answers; None where not recorded.
    """

    setting: str
    sets: int
    answers: int
    wrong: float
    points: tuple[PooledPoint, ...]
    curve: Curve
    oracle: Curve
    by_ending: ByEnding | None = None

    @property
    def headline(self) -> PooledPoint | None:
        """The point of least risk that accepts one answer in twenty at least; None where none does."""
        return next((each for each in self.points if (each.coverage.value or 0.0) >= LEAST_COVERAGE), None)


@dataclass(frozen=True, slots=True)
class ModelResult:
    """All results of one model.

    Attributes:
        model: the model.
        records: digest of the evaluated answers and their labels.
        own: name of guard's own method.
        datasets: the test sets.
        methods: the methods in the order of tables, guard's own first.
        settings: results by protocol.
        groups: gains from each group of features.
        importance: importance of the layer pairs, where the method has one.
        verdicts: results of the claims.
        draws: number of bootstrap resamples behind each interval.
        pooled: one threshold over all test sets; None where no protocol has predictions of guard's own method.
    """

    model: ModelCard
    records: str
    own: str
    datasets: tuple[DatasetCard, ...]
    methods: tuple[MethodCard, ...]
    settings: tuple[SettingResult, ...]
    groups: tuple[GroupGain, ...]
    importance: Importance | None
    verdicts: tuple[ClaimVerdict, ...]
    draws: int
    pooled: Pooled | None = None

    def setting(self, name: str) -> SettingResult | None:
        """Return one protocol's results; None where it was not run."""
        return next((each for each in self.settings if each.setting == name), None)

    @property
    def answers(self) -> int:
        """Number of recorded answers of all data sets."""
        return sum(each.n for each in self.datasets)

    def joined(self, other: ModelResult) -> ModelResult:
        """Return this result joined with other protocols' results of the same records.

        Raises:
            InputError: a protocol is in both, or the numbers of resamples differ.
        """
        if self.draws != other.draws:
            raise InputError(f"Two results of {self.model.name} have {self.draws} and {other.draws} draws")
        both = {each.setting for each in self.settings} & {each.setting for each in other.settings}
        if both:
            raise InputError(f"Two results of {self.model.name} have the protocol '{min(both)}'", fix="Leave one out")
        largest = {each.name: each for each in sorted((*other.datasets, *self.datasets), key=lambda data: data.n)}
        methods = {each.name: each for each in self.methods}
        methods |= {each.name: each for each in other.methods if each.name not in methods}
        return replace(
            self,
            datasets=tuple(largest[name] for name in sorted(largest)),
            methods=tuple(methods.values()),
            settings=self.settings + other.settings,
            groups=self.groups + other.groups,
            importance=self.importance or other.importance,
            verdicts=self.verdicts + other.verdicts,
            pooled=self.pooled or other.pooled,
        )


@dataclass(frozen=True, slots=True)
class Provenance:
    """The origin of the numbers.

    Attributes:
        created: ISO 8601, UTC.
        commands: commands that reproduce the result, in order.
        versions: versions of Python and the relevant libraries.
        seeds: seeds by purpose.
        machine: processor and operating system, without the name of the machine.
    """

    created: str
    commands: tuple[str, ...]
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    machine: str

    @classmethod
    def here(cls, *, commands: Sequence[str], seeds: Mapping[str, int]) -> Provenance:
        """Return the provenance of a result that this process makes now."""
        versions = {"Python": platform.python_version()}
        for library in ("ilis-guard", *_LIBRARIES):
            try:
                versions[library] = version(library)
            except PackageNotFoundError:
                continue
        machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(now, tuple(commands), versions, dict(seeds), machine)


@dataclass(frozen=True, slots=True)
class Note:
    """A finding in words, such as a negative result."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One evaluation, ready to be stored and shown.

    Attributes:
        title: title of the report.
        models: the results of each model.
        did_not_work: negative results.
        provenance: origin of the numbers.
    """

    title: str
    models: tuple[ModelResult, ...]
    did_not_work: tuple[Note, ...]
    provenance: Provenance

    def to_json(self) -> str:
        """Return the result as JSON text; `from_json` returns an equal result."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str) -> EvaluationResult:
        """Read the JSON text of `to_json`.

        Raises:
            InputError: the text is not JSON or not an evaluation; the message names the field.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(
                "This is not a result of guard evaluate", why=f"{where}: {first['msg']}".lstrip(": ")
            ) from error


_ADAPTER = TypeAdapter(EvaluationResult)
