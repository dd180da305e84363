"""Makes a scorer file from recorded answers, without a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from guard.calibration.procedure import CalibrationResult
from guard.calibration.scorer_fit import Labelled, check_parts, fit_scorer
from guard.calibration.splits import SPLIT_SHARES
from guard.checked import checked_seed
from guard.data.answers import Answers, find_run
from guard.data.questions import choose_split
from guard.data.recording import Record
from guard.errors import InputError
from guard.files.output_file import check_writable
from guard.scoring.labels import number_wrong
from guard.scoring.provenance import DataSet


def calibrate_records(
    records: str | Path, *, out: str | Path, without: Sequence[str] = (), seed: int = 0
) -> CalibrationResult:
    """Fit a scorer on answers that `guard.record` has recorded, and test it on held-out questions.

    ``guard calibrate --records`` calls this function. The file equals that of `guard.calibrate` for the same
    questions: the splits depend on the texts of the questions only.

    Args:
        records: the Parquet file; its labels are used.
        out: the scorer file to write, JSON.
        without: parts of guard's own score to leave out, such as ``map`` or ``activations``.
        seed: of splits and trees, from 0 to 2**31 - 1.

    Raises:
        InputError: the records or the output cannot be used.
        CalibrationError: there are too few labels, or guard's own score carries no signal.
        MissingExtraError: pyarrow is not installed.

    Examples:
        >>> import guard
        >>> guard.calibrate_records("answers.parquet", out="scorer.json").fitted.metrics["guard"]  # doctest: +SKIP
        Metrics(n=1580, wrong=0.82, auroc=0.84, auprc=0.96, brier=0.11, ece=0.04)
        >>> guard.calibrate_records("no.parquet", out="scorer.json")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    out = Path(out)
    check_parts(without)
    check_writable(out, "scorer")
    checked_seed(seed)
    answers = in_set_order(Answers.read(records))
    fitted = fit_scorer(
        split_answers(answers, seed=seed), run=find_run(answers), data=_data_sets(answers), without=without, seed=seed
    )
    fitted.scorer.save(out)
    return CalibrationResult(out, fitted, (), (), {}, int(answers.truncated.sum()))


def in_set_order(answers: Answers) -> Answers:
    """Return the answers set by set, the order in which calibration reads files; a recording alternates the sets."""
    names = list(dict.fromkeys(answers.dataset.tolist()))
    return answers.take(np.argsort([names.index(name) for name in answers.dataset.tolist()], kind="stable"))


def split_answers(answers: Answers, *, seed: int) -> dict[str, list[Labelled]]:
    """Return the answers by split, as `guard.calibration.scorer_fit.split_labelled` divides them by question."""
    splits: dict[str, list[Labelled]] = {name: [] for name in SPLIT_SHARES}
    for at, text in enumerate(answers.split_text.tolist()):
        labelled = Labelled(_record(answers, at), answers.wrong[at].item())
        splits[choose_split(text, seed=seed, shares=SPLIT_SHARES)].append(labelled)
    return splits


def _record(answers: Answers, at: int) -> Record:
    """Return one answer as a journal record with the fields that fitting needs."""
    return Record(
        key=str(answers.key[at]),
        dataset=str(answers.dataset[at]),
        question=str(answers.question[at]),
        answer=str(answers.answer[at]),
        signals=answers.signals(at),
        seconds=float(answers.seconds[at]),
        finish_reason=answers.finish_reason[at].item() or None,
    )


def _data_sets(answers: Answers) -> list[DataSet]:
    names = list(dict.fromkeys(answers.dataset.tolist()))
    unknown = [name for name in names if not answers.metadata.get(f"data.{name}.sha256")]
    if unknown:
        raise InputError(
            f"The recorded answers do not state which file '{unknown[0]}' was",
            why="certification has to know which questions a scorer was fitted on",
            fix="Give a file of guard record",
        )
    return [
        DataSet(
            name=name,
            sha256=str(answers.metadata[f"data.{name}.sha256"]),
            rows=int((answers.dataset == name).sum()),
            wrong=number_wrong(answers.wrong[answers.dataset == name]),
        )
        for name in names
    ]
