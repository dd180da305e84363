"""Moves a scorer to the same weights in another precision or engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from guard import engines
from guard.calibration.alignment import MIN_ANSWERS, align, aligned_model
from guard.calibration.both_models import BothModels, ModelLoader, ask_both
from guard.calibration.same_weights import check_same_weights
from guard.data.graders import Grader, choose_grader
from guard.data.labelling import is_wrong
from guard.data.question_sets import DataSpecs, list_bad_rows, list_rows, read_sets
from guard.data.questions import Question
from guard.data.sets import DataSource, OnBad
from guard.errors import CalibrationError, InputError
from guard.files.output_file import check_writable
from guard.records import Signals
from guard.runtime.sources import loading_options
from guard.scoring.metrics import compute_metrics
from guard.scoring.ood import StoredOodDetector, fit_ood_in_parts
from guard.scoring.provenance import Rebound
from guard.scoring.scorer import Scorer, load_scorer

#: Fewest labelled answers for a check, and fewest right and wrong ones among them.
MIN_CHECKED, MIN_CLASS = 100, 10
#: Parts of a scorer that may stay behind.
_PARTS = ("ood_detector", "back_off", "spans", "early")


@dataclass(frozen=True, slots=True)
class ReboundScorer:
    """A scorer for another precision or engine of its model.

    Attributes:
        out: the scorer file.
        scorer: the scorer; its ``artefact.rebound`` records the move.
        forced: metrics of each score on the labelled answers without the alignment; empty without a check.
        dropped: parts of the old scorer that the new one lacks, by their names in ``artefact``, such as ``spans``.
        left_out: rows that were not used, each with its reason.
    """

    out: Path
    scorer: Scorer
    forced: Mapping[str, Mapping[str, Any]]
    dropped: tuple[str, ...]
    left_out: tuple[str, ...]


def rebind(
    scorer: str | Path,
    data: DataSpecs,
    *,
    model: str | Path,
    to: str | Path,
    out: str | Path,
    to_engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    to_engine_options: Mapping[str, Any] | None = None,
    check: bool = True,
    grader: str | Grader | None = None,
    on_bad: OnBad = "stop",
    limit: int | None = 300,
    seed: int = 0,
) -> ReboundScorer:
    """Move a scorer to the same weights in another precision or engine than those that it was fitted on.

    The old model answers the questions. Both models read these answers, and the layers of the new model are aligned
    with those of the old one, coordinate by coordinate, without labels. With ``check``, the new model answers the
    questions that have labels, too, and the scorer is refused if its probabilities are worse than one number for all
    answers. Where the two engines differ, both must read each prompt and answer as the same tokens.

    Args:
        scorer: a scorer that was fitted on ``model``.
        data: questions. Only the check uses their accepted answers, so questions without any can be among them.
        model: ``smollm2``, a GGUF file, or a model folder.
        to: the same weights in another precision; the same file for another engine.
        out: the new scorer file.
        to_engine: engine of the new model; by default the scorer's.
        engine_options: load options for ``model``, and for ``to`` where the engine stays the same.
        to_engine_options: load options for ``to`` alone; they take precedence there.
        check: whether to check on labels; otherwise the scores are marked as uncalibrated.
        grader: of the check, as for `guard.calibrate`.
        on_bad: ``stop`` raises if a row cannot be used, ``skip`` leaves the row out.
        limit: maximal number of questions of each data set.
        seed: seed of the sample of questions.

    Raises:
        ScorerMismatchError: the scorer was not fitted on ``model``, or the models differ in more than precision or
            engine, such as after fine-tuning, or their engines read a row as different tokens.
        CalibrationError: there are too few answers or labels, or the scores do not hold on the new model.
        InputError: the data, the options or the output cannot be used.

    Examples:
        >>> import guard
        >>> guard.rebind(  # doctest: +SKIP
        ...     "scorer.json", "questions.jsonl", model="m.Q4_1.gguf", to="m.Q8_0.gguf", out="q8.json"
        ... ).scorer.artefact.rebound.checked
        300
        >>> guard.rebind("no.json", "no.jsonl", model="a.gguf", to="b.gguf", out="c.json")
        Traceback (most recent call last):
        guard.errors.ScorerError: ...
    """
    fitted, out = load_scorer(scorer), Path(out)
    check_writable(out, "scorer")
    grade = _grader(grader, check=check)
    sources = read_sets(data, on_bad=on_bad, limit=limit, seed=seed, unlabelled=True)
    questions = _questions(sources)
    labelled = [each for each in questions.values() if each.answers] if check else []
    _check_enough(len(questions), len(labelled), check=check)
    _check_files(model, to)
    old, new = _loads(fitted, model, to, to_engine, engine_options or {}, to_engine_options or {})
    asked = ask_both(fitted, questions, labelled, old=old, new=new)
    wrong = [is_wrong(row, text, grade) for row, (text, _) in zip(labelled, asked.own, strict=True)]
    made, forced = _rebound(fitted, asked, wrong, seed=seed)
    made.save(out)
    return ReboundScorer(out, made, forced, _dropped(fitted, made), _left_out(sources))


def _grader(grader: str | Grader | None, *, check: bool) -> Grader:
    if grader is not None and not check:
        raise InputError("There is nothing to grade without a check", fix="Leave out the grader, or check on labels")
    return choose_grader(grader)[0]


def _questions(sources: Sequence[DataSource]) -> dict[str, Question]:
    rows = {f"{name}/{row.id}": row for name, row in list_rows(sources) if isinstance(row, Question)}
    if not rows:
        raise InputError("There are no questions", why="given responses are not answers of both models")
    return rows


def _check_enough(questions: int, labelled: int, *, check: bool) -> None:
    """Refuse too few rows before anything is loaded."""
    if questions < MIN_ANSWERS:
        raise CalibrationError(
            f"{questions} questions are too few to align the layers", why=f"at least {MIN_ANSWERS} are needed"
        )
    if check and labelled < MIN_CHECKED:
        raise _too_few(f"{labelled} of {questions} questions have accepted answers")


def _too_few(there: str) -> CalibrationError:
    return CalibrationError(
        "Too few labels to check the scorer on its new model",
        why=f"{there}; at least {MIN_CHECKED} are needed, {MIN_CLASS} right and {MIN_CLASS} wrong",
        fix="Give more questions, or leave out the check (--no-check) and use uncalibrated scores",
    )


def _loads(
    scorer: Scorer,
    model: str | Path,
    to: str | Path,
    to_engine: str | None,
    options: Mapping[str, Any],
    to_options: Mapping[str, Any],
) -> tuple[ModelLoader, ModelLoader]:
    """Return what loads the old model, and what loads the new one: an engine has its own options."""
    engine = scorer.artefact.binding.engine
    shared = options if to_engine in (None, engine) else {}
    old, new = (loading_options(scorer, each) for each in (options, {**shared, **to_options}))
    return (
        partial(engines.load_engine, model, engine=engine, **old),
        partial(engines.load_engine, to, engine=to_engine or engine, **new),
    )


def _left_out(sources: Sequence[DataSource]) -> tuple[str, ...]:
    bad = [f"{file}:{row.line}: {row.reason}" for file, row in list_bad_rows(sources)]
    given = sum(not isinstance(row, Question) for _, row in list_rows(sources))
    return (*bad, *([f"{given} given responses, which are not answers of both models"] if given else []))


def _dropped(old: Scorer, new: Scorer) -> tuple[str, ...]:
    """Return the parts that the old scorer has and the new one lacks."""
    had, has = ({name for name in _PARTS if getattr(each.artefact, name) is not None} for each in (old, new))
    return tuple(name for name in _PARTS if name in had - has)


def _check_files(model: str | Path, to: str | Path) -> None:
    """Refuse models whose weights cannot be compared, or differ by more than rounding."""
    old, new = (engines.embedded_model() if str(each) == engines.EMBEDDED else Path(each) for each in (model, to))
    if old.resolve() == new.resolve():
        return
    for path in (old, new):
        if path.suffix != ".gguf" or not path.is_file():
            raise InputError(
                f"The weights of '{path}' cannot be compared",
                why="a scorer can move between two GGUF files, or to another engine on the same file",
                fix="Fit a scorer for this model with guard calibrate",
            )
    check_same_weights(old, new)


def _rebound(scorer: Scorer, asked: BothModels, wrong: Sequence[bool], *, seed: int) -> tuple[Scorer, dict[str, Any]]:
    """Return the moved scorer, and the metrics of each score on the labelled answers before the move."""
    artefact = scorer.artefact
    alignment = align(asked.old, asked.new, artefact.feature_schema)
    scores = {name: aligned_model(model, alignment) for name, model in artefact.scores.items()}
    detector = _ood_detector(asked.new, seed)
    changed = {"binding": asked.binding, "scores": scores, "ood_detector": detector, "metrics": {}}
    changed["back_off"] = artefact.back_off if detector else None
    changed |= {"spans": None, "early": None}  # nothing has checked these on the new model
    moved = Scorer(artefact.model_copy(update=changed))
    before = _p_wrong(scorer, asked.old)
    own = [signals for _, signals in asked.own]
    metrics, forced = _metrics(moved, own, wrong), _metrics(scorer, own, wrong)
    _check_holds(metrics)
    rebound = Rebound(
        fitted_on=artefact.binding,
        answers=len(asked.old),
        difference_before=float(np.abs(_p_wrong(scorer, asked.new) - before).mean()),
        difference_after=float(np.abs(_p_wrong(moved, asked.new) - before).mean()),
        checked=len(own),
        metrics=metrics,
    )
    return Scorer(moved.artefact.model_copy(update={"rebound": rebound, "metrics": metrics})), forced


def _p_wrong(scorer: Scorer, signals: Sequence[Signals]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([scorer.score(each).p_wrong for each in signals])


def _metrics(scorer: Scorer, own: Sequence[Signals], labels: Sequence[bool]) -> dict[str, Any]:
    """Return the metrics of each score on the new model's own answers; empty if there are none.

    Raises:
        CalibrationError: there are too few right or wrong answers.
    """
    if not own:
        return {}
    wrong = np.array(labels, np.bool_)
    if min(wrong.sum(), (~wrong).sum()) < MIN_CLASS:
        raise _too_few(f"there are {len(wrong)} answers, {int(wrong.sum())} of them wrong")
    scores = [scorer.score(each).scores for each in own]
    return {
        name: asdict(compute_metrics(np.array([each[name].p_wrong for each in scores]), wrong))
        for name in scorer.artefact.scores
    }


def _check_holds(metrics: Mapping[str, Any]) -> None:
    """Refuse scores that predict the new model's answers worse than their share of wrong answers does."""
    own = metrics.get("guard")
    if own and (own["auroc"] <= 0.5 or own["brier"] > own["wrong"] * (1 - own["wrong"])):
        raise CalibrationError(
            "The scorer does not work on the new model",
            why=f"on {own['n']} answers its AUROC is {own['auroc']:.3f} and its Brier score {own['brier']:.3f}, "
            f"where one number for all answers has {own['wrong'] * (1 - own['wrong']):.3f}",
            fix="Fit a scorer for this model with guard calibrate",
        )


def _ood_detector(signals: Sequence[Signals], seed: int) -> StoredOodDetector | None:
    """Refit the detector on the new model's layers, which needs no labels."""
    try:
        return fit_ood_in_parts([each.signature.activations for each in signals], seed=seed).stored()
    except CalibrationError:
        return None
