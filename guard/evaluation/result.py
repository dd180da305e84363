"""What is kept of an evaluation: every number that the report shows, and where it comes from.

A result is small (no answer, no single probability) and is read back from its JSON exactly, so that
the report can be made anew, or two runs compared, long after the records are gone.
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
from guard.evaluation.bootstrap import Estimate, Gain
from guard.evaluation.measures import ReliabilityBin
from guard.evaluation.protocol import Kind

Outcome = Literal["reached", "not shown", "not reached", "not recorded"]

#: Where risk-coverage curves are drawn; below five in a hundred a few answers decide.
COVERAGES = tuple(round(0.01 * each, 2) for each in range(5, 101))

_LIBRARIES = ("numpy", "scipy", "scikit-learn", "lightgbm", "torch", "transformers", "llama-cpp-python")


@dataclass(frozen=True, slots=True)
class MethodCard:
    """A method, for the reader.

    Attributes:
        name: short label.
        kind: guard's own, a baseline, a control, or a costly reference.
        passes: model passes in units of one answer.
        seconds: measured cost of one answer's score, generation of extra answers included; None
            where it was not measured.
    """

    name: str
    kind: Kind
    passes: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class DatasetCard:
    """A data set: how many answers, and the share of them that is wrong."""

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
class Score:
    """One measure of one method, mean over the cells of a protocol (``cells`` of them)."""

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
    """How much better guard's own method is than another."""

    against: str
    measure: str
    gain: Gain


@dataclass(frozen=True, slots=True)
class Missing:
    """A method that could not be fitted or applied, and why."""

    method: str
    train: str
    test: str
    reason: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Share wrong at each of `COVERAGES`, mean over the test sets."""

    name: str
    risk: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Reliability:
    """Stated against observed, over the answers of all test sets together."""

    method: str
    bins: tuple[ReliabilityBin, ...]


@dataclass(frozen=True, slots=True)
class SettingResult:
    """All of one protocol.

    Attributes:
        setting: as in `Predictions`.
        cells: how many (train, test) pairs.
        scores: mean over cells, by method and measure.
        per_cell: the values behind the means.
        comparisons: guard's own method against each other one.
        missing: what was not recorded.
        curves: of the methods that were recorded on every cell; empty for pairwise transfer.
        oracle, random: the curves of a score that knows all labels, and of none.
        reliability: of the same methods as the curves.
    """

    setting: str
    cells: int
    scores: tuple[Score, ...]
    per_cell: tuple[CellScore, ...]
    comparisons: tuple[Comparison, ...]
    missing: tuple[Missing, ...]
    curves: tuple[Curve, ...]
    oracle: Curve | None
    random: Curve | None
    reliability: tuple[Reliability, ...]

    def score(self, method: str, measure: str) -> Score | None:
        """The mean of one measure of one method; None where there is none."""
        found = (each for each in self.scores if (each.method, each.measure) == (method, measure))
        return next(found, None)


@dataclass(frozen=True, slots=True)
class Ablation:
    """Two methods whose difference is what a group of features adds.

    Attributes:
        group: name of the features.
        full: method that has them.
        without: the same method without them.
    """

    group: str
    full: str
    without: str


@dataclass(frozen=True, slots=True)
class GroupGain:
    """What a group of features adds in one protocol."""

    group: str
    setting: str
    measure: str
    gain: Gain


@dataclass(frozen=True, slots=True)
class Importance:
    """How much each ordered pair of layers counts.

    Attributes:
        meaning: of a value, such as ``sum of the trees' gains``.
        values: shape (L, L); row i, column j belongs to KL(layer i || layer j).
    """

    meaning: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that the evaluation has to show of guard's own method.

    Attributes:
        text: for the reader.
        setting: the protocol it speaks of.
        measure: the measure it speaks of.
        against: a method, or None for the best baseline by this measure.
        margin: the least gain, in the measure's unit; below 0 it is what may be lost.
        certain: whether the whole interval must lie above the margin, not only the value.
        everywhere: whether each single cell must reach the margin; the worst one is told, with its own interval.
    """

    text: str
    setting: str
    measure: str
    against: str | None = None
    margin: float = 0.0
    certain: bool = True
    everywhere: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: the claim.
        against: the method it was compared with.
        estimate: the gain; of the worst cell where the claim speaks of every cell.
        outcome: ``reached``; ``not shown`` where the value is above the margin but its interval is
            not; ``not reached``; ``not recorded``.
    """

    claim: Claim
    against: str
    estimate: Estimate
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ModelResult:
    """All that was found with one model.

    Attributes:
        model: the model.
        records: digest of the answers that were evaluated, and of their labels.
        own: name of guard's own method.
        datasets: what was tested on.
        methods: in the order of tables, guard's own first.
        settings: by protocol.
        groups: what each group of features adds.
        importance: of the layer pairs, where the method has such a thing.
        verdicts: what became of the claims.
        draws: bootstrap resamples behind each interval.
    """

    model: ModelCard
    records: str
    own: str
    datasets: tuple[DatasetCard, ...]
    methods: tuple[MethodCard, ...]
    settings: tuple[SettingResult, ...]
    groups: tuple[GroupGain, ...]
    importance: Importance | None
    verdicts: tuple[Verdict, ...]
    draws: int

    def setting(self, name: str) -> SettingResult | None:
        """One protocol's results; None where it was not run."""
        return next((each for each in self.settings if each.setting == name), None)

    @property
    def answers(self) -> int:
        """Recorded answers of all data sets."""
        return sum(each.n for each in self.datasets)

    def joined(self, other: ModelResult) -> ModelResult:
        """This and what other protocols found with the same records.

        Raises:
            InputError: a protocol is in both, or the number of resamples is another.
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
        )


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where the numbers come from.

    Attributes:
        created: ISO 8601, UTC.
        commands: that make the result anew, in order.
        versions: of Python and the libraries that matter.
        seeds: by what they are for.
        machine: processor and operating system; no name of the machine.
    """

    created: str
    commands: tuple[str, ...]
    versions: Mapping[str, str]
    seeds: Mapping[str, int]
    machine: str

    @classmethod
    def here(cls, *, commands: Sequence[str], seeds: Mapping[str, int]) -> Provenance:
        """Of this process, now."""
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
    """A finding in words: what was tried and did not work, say."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class EvaluationResult:
    """One evaluation, ready to be kept and shown.

    Attributes:
        title: of the report.
        models: one for each model.
        did_not_work: what was tried in vain.
        provenance: how it was made.
    """

    title: str
    models: tuple[ModelResult, ...]
    did_not_work: tuple[Note, ...]
    provenance: Provenance

    def to_json(self) -> str:
        """As JSON text, for keeping; `from_json` gives an equal result back."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str) -> EvaluationResult:
        """Read what `to_json` gave.

        Raises:
            InputError: not JSON, or not an evaluation; the text names the field.
        """
        try:
            return _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise InputError(
                "This is no result of guard evaluate", why=f"{where}: {first['msg']}".lstrip(": ")
            ) from error


_ADAPTER = TypeAdapter(EvaluationResult)
