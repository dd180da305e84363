"""The protocols: training and test answers of methods. Pure: tables in, probabilities out.

The protocols, from friendly to hard:

    within-dataset cross-validation    folds of one data set; no question is in two folds
    pairwise transfer                  fitted on one data set, tested on each other one
    leave-one-dataset-out              fitted on all data sets but one, tested on that one
    held-out datasets                  fitted on all data sets, tested on separately recorded ones
    shift                              fitted on one precision or engine, tested on another; no question in both

The result has the probability of each answer, so that methods can be compared answer by answer. It has no texts;
numbers identify the question of each row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from guard.checked import checked_seed
from guard.errors import InputError, ScorerError
from guard.evaluation.predictions import HELD_OUT, LEAVE_ONE_OUT, PAIRWISE, SHIFT, WITHIN, Predictions
from guard.scoring.labels import Labels, has_both_kinds

MethodKind = Literal["guard", "baseline", "control", "reference"]

#: Probabilities are rounded to this step, so that files are small and exact.
DECIMALS = 7


class AnswerTable(Protocol):
    """Recorded answers as columns."""

    @property
    def dataset(self) -> NDArray[np.str_]:
        """Name of each answer's data set, shape (n,)."""

    @property
    def wrong(self) -> Labels:
        """Whether each answer is wrong, or how wrong, shape (n,)."""

    @property
    def group(self) -> NDArray[np.str_]:
        """Identity of each answer's question, shape (n,); folds keep answers to the same question together."""

    def __len__(self) -> int: ...

    def take(self, index: NDArray[np.intp]) -> Self:
        """Return the rows of these indices, in this order."""


TableT = TypeVar("TableT", bound=AnswerTable)


class FittedMethod(Protocol):
    """A method after training."""

    def p_wrong(self, table: AnswerTable) -> NDArray[np.float64]:
        """Return the calibrated probability that each answer is wrong, shape (n,).

        Raises:
            InputError: the table lacks a signal of the method.
        """


class Method(Protocol):
    """A method that predicts whether answers are wrong."""

    @property
    def name(self) -> str:
        """Short label, unique in a run."""

    @property
    def kind(self) -> MethodKind:
        """guard's own score, a baseline, a control (expected to be poor), or a costly reference."""

    @property
    def passes(self) -> float:
        """Model passes in units of one answer: 1 costs nothing more, 6 means five further samples."""

    def fit(self, table: AnswerTable, *, seed: int) -> FittedMethod:
        """Train on labelled answers.

        Raises:
            InputError: the table lacks a signal of the method, or has too few answers.
        """


@dataclass(frozen=True, slots=True)
class ProtocolStep:
    """The state that a progress callback gets before each piece of work.

    Attributes:
        setting: the protocol, as in `Predictions`.
        method: name of the method.
        test: the next test set; ``all other sets`` where one fit serves several.
        done: number of finished pieces.
        total: number of pieces in this protocol.
    """

    setting: str
    method: str
    test: str
    done: int
    total: int


StepCallback = Callable[[ProtocolStep], None]


# -- protocols ---------------------------------------------------------------------------------


def within_dataset(
    table: AnswerTable,
    methods: Sequence[Method],
    *,
    folds: int = 5,
    seed: int = 0,
    progress: StepCallback | None = None,
) -> tuple[Predictions, ...]:
    """Cross-fit every method within each data set.

    Args:
        table: labelled answers of one model.
        methods: the methods to compare.
        folds: parts of each set; each part is scored by a fit on the others.
        seed: seed of folds and methods.
        progress: called before each piece of work.

    Returns:
        one record for each data set, in the order of their names.

    Raises:
        InputError: a data set has fewer questions than folds, or two methods have the same name.
        ScorerError: a method returned values that are not probabilities.
    """
    sets = dataset_names(table)
    report = _reporter(progress, WITHIN, len(sets) * len(_checked(methods)))
    out = []
    for name in sets:
        part = table.take(np.flatnonzero(table.dataset == name))
        fold = assign_folds(part.group, part.wrong, folds=folds, seed=seed)
        score = partial(_cross_fitted, train=part, train_fold=fold, test=part, test_fold=fold, seed=seed)
        out.append(_predictions(WITHIN, name, name, part, methods, score, report))
    return tuple(out)


def leave_one_dataset_out(
    table: AnswerTable, methods: Sequence[Method], *, seed: int = 0, progress: StepCallback | None = None
) -> tuple[Predictions, ...]:
    """Train on all data sets but one, test on that one.

    Questions of the test set that also occur in other sets are left out of the training. Arguments, result and errors
    are those of `within_dataset`, without folds; at least two sets are needed.
    """
    sets = _several(table)
    report = _reporter(progress, LEAVE_ONE_OUT, len(sets) * len(_checked(methods)))
    out = []
    for name in sets:
        test = table.take(np.flatnonzero(table.dataset == name))
        train = table.take(np.flatnonzero((table.dataset != name) & ~np.isin(table.group, test.group)))
        score = partial(_trained_and_tested, train=train, test=test, seed=seed)
        out.append(_predictions(LEAVE_ONE_OUT, "all other sets", name, test, methods, score, report))
    return tuple(out)


def pairwise_transfer(
    table: AnswerTable, methods: Sequence[Method], *, seed: int = 0, progress: StepCallback | None = None
) -> tuple[Predictions, ...]:
    """Train on one data set, test on each other set; the diagonal is the result of `within_dataset`.

    Questions that also occur in the training set are left out of the test, so a cell can have fewer answers than its
    set; empty cells are left out. Arguments, result (one record for each ordered pair) and errors are those of
    `within_dataset`, without folds; at least two sets are needed.
    """
    sets = _several(table)
    report = _reporter(progress, PAIRWISE, len(sets) * len(_checked(methods)))
    out: list[Predictions] = []
    for source in sets:
        train = table.take(np.flatnonzero(table.dataset == source))
        fits = _fits(methods, train, report, seed=seed)
        others = table.take(np.flatnonzero(table.dataset != source))
        out += _tested(PAIRWISE, source, train, others, methods, fits)
    return tuple(out)


def held_out_datasets(
    table: AnswerTable,
    new: AnswerTable,
    methods: Sequence[Method],
    *,
    seed: int = 0,
    progress: StepCallback | None = None,
) -> tuple[Predictions, ...]:
    """Train on all data sets, test on each data set of another table.

    Questions that also occur in the training sets are left out of the test. Arguments, result (one record for each new
    set) and errors are those of `within_dataset`, without folds; a set in both tables is an error.
    """
    both = set(dataset_names(table)) & set(dataset_names(new))
    if both:
        raise InputError(
            f"The data set {min(both)!r} is in the records and in the new ones",
            why="a held-out data set must not be used for fitting",
            fix="Leave it out of one of them, or rename it",
        )
    fits = _fits(_checked(methods), table, _reporter(progress, HELD_OUT, len(methods)), seed=seed)
    return tuple(_tested(HELD_OUT, "all sets", table, new, methods, fits))


def shift(
    train: AnswerTable,
    shifted: Mapping[str, AnswerTable],
    methods: Sequence[Method],
    *,
    folds: int = 5,
    seed: int = 0,
    progress: StepCallback | None = None,
) -> tuple[Predictions, ...]:
    """Train on records of one precision or engine, test on those of others, within each data set.

    The tables usually have the same questions. The fit for a question has not seen it under any precision. One fit
    serves all tests.

    Args:
        train: labelled answers of the model as it was calibrated.
        shifted: labelled answers of the model as it is used, by name of the shift (``Q8_0 to Q4_K_M``).
        methods: the methods to compare.
        folds: parts of each set.
        seed: seed of folds and methods.
        progress: called before each piece of work.

    Returns:
        one record for each data set and each shift that has it.

    Raises:
        InputError: the tables have no data set in common, a data set has fewer questions than folds, or two methods
            have one name.
        ScorerError: a method returned other values than probabilities.
    """
    sets = dataset_names(train)
    for name, test in shifted.items():
        if not set(sets) & set(dataset_names(test)):
            known = ", ".join(sets)
            raise InputError(f"The tables of the shift {name!r} have no data set in common", why=f"trained on: {known}")
    cells: dict[str, list[tuple[str, AnswerTable]]] = {}
    for each in sets:
        parts = [(name, test.take(np.flatnonzero(test.dataset == each))) for name, test in shifted.items()]
        cells[each] = [(name, part) for name, part in parts if len(part)]
    report = _reporter(progress, SHIFT, sum(map(len, cells.values())) * len(_checked(methods)))
    out = []
    for each, tests in cells.items():
        if not tests:
            continue
        seen = train.take(np.flatnonzero(train.dataset == each))
        fold = assign_folds(seen.group, seen.wrong, folds=folds, seed=seed)
        fits: dict[tuple[str, int], FittedMethod | InputError] = {}
        for name, new in tests:
            same = _folds_like(seen.group, fold, new.group)
            score = partial(_cross_fitted, train=seen, train_fold=fold, test=new, test_fold=same, seed=seed, fits=fits)
            out.append(_predictions(f"{SHIFT}: {name}", f"{each} ({name})", each, new, methods, score, report))
    return tuple(out)


# -- parts of tables ---------------------------------------------------------------------------


def dataset_names(table: AnswerTable) -> tuple[str, ...]:
    """Return the names of the data sets of a table, sorted.

    Raises:
        InputError: the table has no rows.
    """
    if not len(table):
        raise InputError("There are no labelled answers to evaluate")
    return tuple(str(name) for name in np.unique(table.dataset))


def capped(table: TableT, *, per_set: int, seed: int = 0) -> TableT:
    """Return at most this many answers of each set, drawn question by question, in their original order.

    Questions are taken in random order while all their answers still fit.

    Raises:
        InputError: the cap is below 1, or the table has no rows.
    """
    if per_set < 1:
        raise InputError(f"The cap per set must be at least 1, got {per_set}")
    rng = np.random.default_rng(seed)
    kept = []
    for name in dataset_names(table):
        rows = np.flatnonzero(table.dataset == name)
        groups, group = np.unique(table.group[rows], return_inverse=True)
        order = rng.permutation(len(groups))
        sizes = np.bincount(group)[order]
        kept.append(rows[np.isin(group, order[np.cumsum(sizes) <= per_set])])
    return table.take(np.sort(np.concatenate(kept)))


def assign_folds(group: NDArray[np.str_], wrong: Labels, *, folds: int, seed: int) -> NDArray[np.intp]:
    """Return the fold of each row, shape (n,); rows of one group share it.

    Groups are shuffled, ordered by their share of wrong answers, and distributed in turn, so that folds differ by at
    most one group of each kind.

    Raises:
        InputError: fewer than two folds, or fewer groups than folds.
    """
    checked_seed(seed)
    names, index = np.unique(group, return_inverse=True)
    if not 2 <= folds <= len(names):
        raise InputError(
            f"{len(names)} different questions cannot be split into {folds} folds",
            fix="Take at least 2 folds, and at least as many questions of each set as folds.",
        )
    share_wrong = np.bincount(index, wrong) / np.bincount(index)
    shuffled = np.random.default_rng(seed).permutation(len(names))
    dealt = shuffled[np.argsort(share_wrong[shuffled], kind="stable")]
    fold = np.empty(len(names), np.intp)
    fold[dealt] = np.arange(len(names)) % folds
    return np.asarray(fold[index])


def _folds_like(group: NDArray[np.str_], fold: NDArray[np.intp], other: NDArray[np.str_]) -> NDArray[np.intp]:
    """Return the folds of other rows: that of the same question, or any for a new question."""
    known = dict(zip(group.tolist(), fold.tolist(), strict=True))
    return np.array([known.get(name, 0) for name in other.tolist()], np.intp)


def _several(table: AnswerTable) -> tuple[str, ...]:
    sets = dataset_names(table)
    if len(sets) < 2:
        raise InputError(
            f"Transfer between data sets needs two or more of them, got only {sets[0]!r}",
            fix="Record another set, or evaluate within sets only.",
        )
    return sets


# -- fitting and scoring -----------------------------------------------------------------------


def _checked(methods: Sequence[Method]) -> Sequence[Method]:
    names = [method.name for method in methods]
    twice = {name for name in names if names.count(name) > 1}
    if twice or not names:
        what = f"Two methods are called {min(twice)!r}" if twice else "There is no method to evaluate"
        raise InputError(what, fix="Give each method a name of its own." if twice else "")
    return methods


def _reporter(progress: StepCallback | None, setting: str, total: int) -> Callable[[str, str], None]:
    done = 0

    def report(method: str, test: str) -> None:
        nonlocal done
        if progress is not None:
            progress(ProtocolStep(setting=setting, method=method, test=test, done=done, total=total))
        done += 1

    return report


def _predictions(
    setting: str,
    train: str,
    test: str,
    rows: AnswerTable,
    methods: Sequence[Method],
    score: Callable[[Method], NDArray[np.float64]],
    report: Callable[[str, str], None] | None,
) -> Predictions:
    """Score the rows by each method; one that cannot is written down with its reason."""
    p_wrong: dict[str, NDArray[np.float64]] = {}
    missing: dict[str, str] = {}
    for method in methods:
        if report is not None:
            report(method.name, test)
        try:
            p_wrong[method.name] = score(method)
        except InputError as error:
            missing[method.name] = str(error)
    group = np.unique(rows.group, return_inverse=True)[1].astype(np.intp)
    truncated = getattr(rows, "truncated", None)
    return Predictions(
        setting, train, test, wrong=rows.wrong, group=group, p_wrong=p_wrong, missing=missing, truncated=truncated
    )


def _fit(method: Method, train: AnswerTable, *, seed: int) -> FittedMethod:
    if not has_both_kinds(train.wrong):
        kind = "wrong" if train.wrong.any() else "right"
        raise InputError(
            "A score cannot be fitted on this training set",
            why=f"all of its {len(train)} answers are {kind}" if len(train) else "it is empty",
        )
    return method.fit(train, seed=seed)


def _fit_or_reason(method: Method, train: AnswerTable, *, seed: int) -> FittedMethod | InputError:
    try:
        return _fit(method, train, seed=seed)
    except InputError as error:
        return error


def _fits(
    methods: Sequence[Method], train: AnswerTable, report: Callable[[str, str], None], *, seed: int
) -> dict[str, FittedMethod | InputError]:
    """Return one training of each method, for tests on several sets."""
    fits: dict[str, FittedMethod | InputError] = {}
    for method in methods:
        report(method.name, "all other sets")
        fits[method.name] = _fit_or_reason(method, train, seed=seed)
    return fits


def _tested(
    setting: str,
    source: str,
    train: AnswerTable,
    tests: AnswerTable,
    methods: Sequence[Method],
    fits: Mapping[str, FittedMethod | InputError],
) -> Iterator[Predictions]:
    """What these fits say of each set of a table, without the questions of their training; none where none remain."""
    new = tests.take(np.flatnonzero(~np.isin(tests.group, train.group)))
    for target in np.unique(new.dataset).tolist():
        test = new.take(np.flatnonzero(new.dataset == target))
        yield _predictions(setting, source, target, test, methods, partial(_applied, fitted=fits, test=test), None)


def _applied(
    method: Method, *, fitted: Mapping[str, FittedMethod | InputError], test: AnswerTable
) -> NDArray[np.float64]:
    found = fitted[method.name]
    if isinstance(found, InputError):
        raise found
    return _scores(method, found, test)


def _trained_and_tested(method: Method, *, train: AnswerTable, test: AnswerTable, seed: int) -> NDArray[np.float64]:
    return _scores(method, _fit(method, train, seed=seed), test)


def _cross_fitted(
    method: Method,
    *,
    train: AnswerTable,
    train_fold: NDArray[np.intp],
    test: AnswerTable,
    test_fold: NDArray[np.intp],
    seed: int,
    fits: dict[tuple[str, int], FittedMethod | InputError] | None = None,
) -> NDArray[np.float64]:
    """Score each fold by a fit on the others; fits that serve several tests are kept in ``fits``."""
    kept = {} if fits is None else fits
    p_wrong = np.full(len(test), np.nan)
    for fold in np.unique(test_fold).tolist():
        if (method.name, fold) not in kept:
            kept[method.name, fold] = _fit_or_reason(method, train.take(np.flatnonzero(train_fold != fold)), seed=seed)
        rows = np.flatnonzero(test_fold == fold)
        p_wrong[rows] = _applied(method, fitted={method.name: kept[method.name, fold]}, test=test.take(rows))
    return p_wrong


def _scores(method: Method, fitted: FittedMethod, test: AnswerTable) -> NDArray[np.float64]:
    p_wrong = np.asarray(fitted.p_wrong(test), np.float64)
    if p_wrong.shape != (len(test),) or not ((p_wrong >= 0) & (p_wrong <= 1)).all():
        raise ScorerError(
            f"The method {method.name!r} must give one probability from 0 to 1 for each of {len(test)} answers",
            why=f"got shape {p_wrong.shape}, values {p_wrong.ravel()[:3]} ..",
        )
    return np.round(p_wrong, DECIMALS)
