"""Moves a scorer to the same weights in another precision or engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from guard import engines
from guard.calibration.alignment import align, aligned_model
from guard.calibration.same_weights import check_same_weights
from guard.data.graders import choose_grader
from guard.data.labelling import is_wrong
from guard.data.prompts import fitted_prompt
from guard.data.question_sets import DataSpecs, list_rows, read_sets
from guard.data.questions import Question
from guard.engines.asked import RequestEngine
from guard.errors import CalibrationError, CaptureError, InputError, ScorerMismatchError
from guard.files.output_file import check_writable
from guard.records import Signals
from guard.runtime.base_models import fitted_limits
from guard.runtime.sources import find_capture_point, loading_options
from guard.scoring.metrics import compute_metrics
from guard.scoring.ood import StoredOodDetector, fit_ood_in_parts
from guard.scoring.provenance import Binding, Rebound
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.signature import SignatureObserver

#: Fields of a binding that may differ between precisions and engines.
_MAY_DIFFER = {"engine", "quantization", "weights_sha256"}
#: Fewest labelled answers for a check, and fewest right and wrong ones among them.
MIN_CHECKED, MIN_CLASS = 100, 10


@dataclass(frozen=True, slots=True)
class ReboundScorer:
    """A scorer for another precision or engine of its model.

    Attributes:
        out: the scorer file.
        scorer: the scorer; its ``artefact.rebound`` records the move.
        forced: metrics of each score on the labelled answers without the alignment; empty without a check.
    """

    out: Path
    scorer: Scorer
    forced: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, eq=False)
class _BothModels:
    """Signals of the old model's answers in both models, and of the new model's own answers, with labels."""

    old: Sequence[Signals]
    new: Sequence[Signals]
    own: Sequence[Signals]
    wrong: Sequence[bool]


def rebind(
    scorer: str | Path,
    data: DataSpecs,
    *,
    model: str | Path,
    to: str | Path,
    out: str | Path,
    to_engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    check: bool = True,
    limit: int | None = 300,
    seed: int = 0,
) -> ReboundScorer:
    """Move a scorer to another precision or engine of the model that it was fitted on.

    The old model answers the questions. Both models read these answers, and the layers of the new model are aligned
    with those of the old one, coordinate by coordinate, without labels. With ``check``, the new model answers the
    questions, too, and the scorer is refused if its probabilities are worse than one number for all answers.

    Args:
        scorer: a scorer that was fitted on ``model``.
        data: questions with accepted answers, which only the check uses.
        model: ``smollm2``, a GGUF file, or a model folder.
        to: the same weights in another precision; the same file for another engine.
        out: the new scorer file.
        to_engine: engine of the new model; by default the scorer's.
        engine_options: load options for both models.
        check: whether to check on labels; otherwise the scores are marked as uncalibrated.
        limit: maximal number of questions of each data set.
        seed: seed of the sample of questions.

    Raises:
        ScorerMismatchError: the scorer was not fitted on ``model``, or the models differ in more than precision or
            engine, such as after fine-tuning.
        CalibrationError: there are too few answers or labels, or the scores do not hold on the new model.
        InputError: the data or the output cannot be used.

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
    questions = _questions(data, limit=limit, seed=seed)
    _check_files(model, to)
    options, fitted_on = loading_options(fitted, engine_options), fitted.artefact.binding
    with engines.load_engine(model, engine=fitted_on.engine, **options) as engine:
        fitted.for_model(engine.model, find_capture_point(engine))
        answers = [_ask(engine, fitted, question) for question in questions]
    texts = [text for text, _ in answers]
    with engines.load_engine(to, engine=to_engine or fitted_on.engine, **options) as engine:
        binding = _checked_binding(fitted_on, Binding.from_model(engine.model, find_capture_point(engine)))
        new = [_ask(engine, fitted, question, text)[1] for question, text in zip(questions, texts, strict=True)]
        own = [_ask(engine, fitted, question) for question in questions] if check else []
    grade, _ = choose_grader(None)
    wrong = [is_wrong(question, text, grade) for question, (text, _) in zip(questions, own, strict=check)]
    asked = _BothModels([signals for _, signals in answers], new, [signals for _, signals in own], wrong)
    made, forced = _rebound(fitted, binding, asked, seed=seed)
    made.save(out)
    return ReboundScorer(out, made, forced)


def _questions(data: DataSpecs, *, limit: int | None, seed: int) -> list[Question]:
    rows = [row for _, row in list_rows(read_sets(data, limit=limit, seed=seed)) if isinstance(row, Question)]
    if not rows:
        raise InputError("There are no questions", why="given responses are not answers of both models")
    return rows


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


def _checked_binding(fitted: Binding, given: Binding) -> Binding:
    differing = [name for name in Binding.model_fields if getattr(fitted, name) != getattr(given, name)]
    more = [name for name in differing if name not in _MAY_DIFFER]
    if more:
        raise ScorerMismatchError(
            "A scorer can only move to another precision or engine of its model",
            why=f"these fields differ, too: {', '.join(more)}",
            fix="Fit a scorer for this model with guard calibrate",
        )
    if not differing:
        raise InputError(
            "The scorer is already bound to this model", fix="Name another file with --to, or another --to-engine"
        )
    return given


def _ask(engine: RequestEngine, scorer: Scorer, question: Question, answer: str | None = None) -> tuple[str, Signals]:
    """Return an answer and its signals. A given answer is scored, not generated."""
    prompting, schema = scorer.artefact.prompting, scorer.artefact.feature_schema
    observer = SignatureObserver(temperatures=schema.temperatures, aggregates=schema.aggregates)
    prompt, limits = fitted_prompt(question, prompting), fitted_limits(prompting)
    found = engine.generate(prompt, limits=limits, observer=observer, completion=answer)
    if found.capture_error:
        raise CaptureError(found.capture_error)
    return found.text, found.signals(observer.signature())


def _rebound(scorer: Scorer, binding: Binding, asked: _BothModels, *, seed: int) -> tuple[Scorer, dict[str, Any]]:
    """Return the moved scorer, and the metrics of each score on the labelled answers before the move."""
    artefact = scorer.artefact
    alignment = align(asked.old, asked.new, artefact.feature_schema)
    scores = {name: aligned_model(model, alignment) for name, model in artefact.scores.items()}
    detector = _ood_detector(asked.new, seed)
    changed = {"binding": binding, "scores": scores, "ood_detector": detector, "metrics": {}}
    changed["back_off"] = artefact.back_off if detector else None
    changed |= {"spans": None, "early": None}  # nothing has checked these on the new model
    moved = Scorer(artefact.model_copy(update=changed))
    before = _p_wrong(scorer, asked.old)
    metrics, forced = _metrics(moved, asked), _metrics(scorer, asked)
    _check_holds(metrics)
    rebound = Rebound(
        fitted_on=artefact.binding,
        answers=len(asked.old),
        difference_before=float(np.abs(_p_wrong(scorer, asked.new) - before).mean()),
        difference_after=float(np.abs(_p_wrong(moved, asked.new) - before).mean()),
        checked=len(asked.own),
        metrics=metrics,
    )
    return Scorer(moved.artefact.model_copy(update={"rebound": rebound, "metrics": metrics})), forced


def _p_wrong(scorer: Scorer, signals: Sequence[Signals]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([scorer.score(each).p_wrong for each in signals])


def _metrics(scorer: Scorer, asked: _BothModels) -> dict[str, Any]:
    """Return the metrics of each score on the new model's own answers; empty if there are none.

    Raises:
        CalibrationError: there are too few labels.
    """
    if not asked.own:
        return {}
    wrong = np.array(asked.wrong, np.bool_)
    if len(wrong) < MIN_CHECKED or min(wrong.sum(), (~wrong).sum()) < MIN_CLASS:
        raise CalibrationError(
            "Too few labels to check the scorer on its new model",
            why=f"there are {len(wrong)} answers, {int(wrong.sum())} of them wrong; at least {MIN_CHECKED} are needed, "
            f"{MIN_CLASS} right and {MIN_CLASS} wrong",
            fix="Give more questions, or leave out the check and use uncalibrated scores",
        )
    scores = [scorer.score(each).scores for each in asked.own]
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
