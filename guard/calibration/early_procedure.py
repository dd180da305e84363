"""From labelled questions to a scorer with early stages: ask, score while answers grow, calibrate, save."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from guard import engines
from guard.calibration.early_fit import STAGES, GrownAnswers, Saving, fit_early, savings
from guard.calibration.fresh import fresh_rows
from guard.calibration.kept_answers import KeptAnswers
from guard.checked import checked_seed
from guard.data.graders import Grader, choose_grader
from guard.data.in_order import in_order
from guard.data.labelling import is_wrong
from guard.data.progress import Progress, ProgressCallback, ignore_progress
from guard.data.prompts import fitted_prompt
from guard.data.question_sets import DataSpecs, data_sets, read_sets
from guard.data.questions import Question, Row
from guard.data.recording import Run, resumed_options
from guard.data.sets import OnBad
from guard.data.sqlite_journal import asked_digest, row_key
from guard.engines import EMBEDDED
from guard.engines.asked import RequestEngine
from guard.engines.sampling import TokenSignals
from guard.errors import CaptureError, InputError, PromptTooLongError
from guard.files.output_file import check_writable, choose_journal
from guard.records import CapturePoint, Generation, ModelInfo, Prompt
from guard.runtime.base_models import fitted_limits
from guard.runtime.growing_score import GrowingScore
from guard.runtime.sources import find_capture_point, loading_options, score_generation
from guard.scores import ScoreName
from guard.scoring.early_scores import log_odds_so_far
from guard.scoring.scorer import Scorer, load_scorer
from guard.scoring.scorer_file import EarlyModel


@dataclass(frozen=True, slots=True)
class EarlyCalibration:
    """A scorer with early stages.

    Attributes:
        out: the scorer file.
        scorer: with its stages, ``scorer.artefact.early``.
        savings: what stopping above some limits saves and loses, on held-out answers.
        left_out: questions that were not used, each with its reason.
    """

    out: Path
    scorer: Scorer
    savings: tuple[Saving, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _AskedAnswer:
    """A question, with p_wrong of its answer at each stage by score, and of the whole."""

    name: str
    row: Question
    text: str
    tokens: int
    whole: float
    stages: Mapping[int, Mapping[ScoreName, float]]

    @property
    def content(self) -> dict[str, Any]:
        """What a journal keeps."""
        return {"text": self.text, "tokens": self.tokens, "whole": self.whole, "stages": self.stages}

    @classmethod
    def read(cls, name: str, row: Question, content: Mapping[str, Any], journal: KeptAnswers) -> _AskedAnswer:
        """Read what a journal has; raise InputError where it is damaged."""
        try:
            stages = {int(stage): dict(scores) for stage, scores in content["stages"].items()}
            return cls(name, row, str(content["text"]), int(content["tokens"]), float(content["whole"]), stages)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise journal.damaged(error) from error


def calibrate_early(
    data: DataSpecs,
    *,
    scorer: str | Path,
    out: str | Path,
    model: str | Path = EMBEDDED,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    grader: str | Grader | None = None,
    on_bad: OnBad = "stop",
    limit: int | None = None,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: ProgressCallback = ignore_progress,
) -> EarlyCalibration:
    """Add early stages to a scorer: ask questions that it was not fitted on, score the answers while they grow, fit.

    ``guard calibrate --early --scorer SCORER`` calls this function. The scorer's other scores stay; its checksum
    changes, so certify after this, with other questions. What the scores read of each answer is kept in a journal, one
    transaction per question, so that an interrupted run can be resumed without asking anything twice.

    Args:
        data: one or several JSON Lines files or named sets; questions that the scorer was fitted on are left out.
        scorer: a scorer of the model: a file, or a name on the shelf. Its prompting is used.
        out: the scorer file to write, JSON.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        engine: ``llama.cpp`` or ``transformers``, where both can load the model.
        engine_options: for the engine's ``load``.
        grader: as for `guard.calibrate`.
        on_bad: ``stop`` raises if a row cannot be used, ``skip`` leaves the row out.
        limit: maximal number of rows of each data set, drawn by ``seed``.
        seed: seed of samples.
        journal: the file for answers; by default ``OUT.journal``.
        progress: called with a `guard.Progress` before the first question and after each answer.

    Raises:
        InputError: data, output, options or journal cannot be used, or rows are given responses.
        ScorerMismatchError: the scorer was fitted on another model.
        CalibrationError: there are too few labels, or the scores of answers so far show no signal.

    Examples:
        >>> import guard
        >>> guard.calibrate_early("fresh.jsonl", scorer="s.json", out="t.json", model="m.gguf")  # doctest: +SKIP
        >>> guard.calibrate_early("no.jsonl", scorer="s.json", out="t.json")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    out = Path(out)
    check_writable(out, "scorer")
    grade, _ = choose_grader(grader)
    sources = read_sets(data, on_bad=on_bad, limit=limit, seed=checked_seed(seed))
    fitted = with_early(load_scorer(scorer), None)
    rows, left_out = fresh_rows(sources, fitted)
    questions = [(name, _question(row)) for name, row in rows]
    kept = choose_journal(out, journal)
    options = resumed_options(loading_options(fitted, engine_options), kept)
    with engines.load_engine(model, engine=engine or fitted.artefact.binding.engine, **options) as loaded:
        point = find_capture_point(loaded)
        bound = fitted.for_model(loaded.model, point)
        with KeptAnswers(kept, _header(fitted, loaded.model, point)) as answers:
            asked = list(_answers(loaded, bound, questions, answers, progress))
    answered = [each for each in asked if isinstance(each, _AskedAnswer)]
    left_out += [each for each in asked if isinstance(each, str)]
    labels = [is_wrong(each.row, each.text, grade) for each in answered]
    staged = _staged(answered, labels, fitted)
    names = zip((each.name for each in answered), labels, strict=True)
    max_tokens = fitted.artefact.prompting.max_tokens
    made = with_early(fitted, fit_early(staged, data=data_sets(sources, names), max_tokens=max_tokens))
    made.save(out)
    return EarlyCalibration(out, made, tuple(savings(staged, fitted.artefact.default_score)), tuple(left_out))


def with_early(scorer: Scorer, model: EarlyModel | None) -> Scorer:
    """Return a scorer with these early stages in place of its own; without any, their questions are fresh again."""
    return Scorer(scorer.artefact.model_copy(update={"early": model}), calibrated=scorer.calibrated)


def _question(row: Row) -> Question:
    if not isinstance(row, Question):
        raise InputError(
            f"Row {row.id!r} is a given response, and early stages are fitted on answers as the model writes them",
            fix="Give questions with accepted answers",
        )
    return row


# -- asking ------------------------------------------------------------------------------------


def _header(scorer: Scorer, model: ModelInfo, point: CapturePoint) -> dict[str, str]:
    """Return what the answers in a journal depend on."""
    prompting = scorer.artefact.prompting
    run = Run(
        model,
        point,
        prompting.system,
        prompting.max_tokens,
        completion=prompting.completion,
        template_options=prompting.template_options,
    )
    return {"journal": "early", "stages": json.dumps(STAGES), "scorer": scorer.sha256, **run.fields()}


def _answers(
    engine: RequestEngine,
    scorer: Scorer,
    rows: Sequence[tuple[str, Question]],
    journal: KeptAnswers,
    progress: ProgressCallback,
) -> Iterator[_AskedAnswer | str]:
    """Yield each answer, asked or from the journal, or why there is none, in the order of the questions."""
    known = journal.answered()
    new = [each for each in rows if _key(each) not in known]

    def answered(each: tuple[str, Question], cancel: threading.Event) -> _AskedAnswer | str:
        return _answer(engine, scorer, *each, cancel=cancel)

    progress(Progress("asking", 0, len(rows)))
    at_once = getattr(engine, "at_once", 1)
    with contextlib.closing(in_order(answered, new, at_once=at_once)) as found:
        for done, each in enumerate(rows, start=1):
            yield _kept(journal, each) if _key(each) in known else _keeping(journal, each, next(found))
            progress(Progress("asking", done, len(rows)))


def _key(each: tuple[str, Question]) -> str:
    return f"{row_key(*each)} {asked_digest(each[1])}"


def _kept(journal: KeptAnswers, each: tuple[str, Question]) -> _AskedAnswer:
    return _AskedAnswer.read(*each, journal.content(_key(each)), journal)


def _keeping(journal: KeptAnswers, each: tuple[str, Question], answer: _AskedAnswer | str) -> _AskedAnswer | str:
    """Keep an answer; why there is none is not kept, so that the next run asks again."""
    if isinstance(answer, _AskedAnswer):
        journal.keep(_key(each), answer.content)
    return answer


def _answer(
    engine: RequestEngine, scorer: Scorer, name: str, row: Question, *, cancel: threading.Event
) -> _AskedAnswer | str:
    prompting = scorer.artefact.prompting
    prompt, limits = fitted_prompt(row, prompting), fitted_limits(prompting)
    observer = scorer.observer()
    recorder = _StageRecorder(GrowingScore(scorer, observer))
    try:
        generation = _last(engine, prompt, limits=limits, observer=observer, cancel=cancel, on_token=recorder.add)
        score = score_generation(generation, observer, scorer, prompt)
    except (PromptTooLongError, CaptureError) as error:
        return f"{name}/{row.id}: {error}"
    return _AskedAnswer(name, row, generation.text, len(recorder.so_far), score.p_wrong, recorder.stages)


def _last(engine: RequestEngine, prompt: Prompt, **options: Any) -> Generation:
    generations = [chunk.generation for chunk in engine.stream(prompt, **options) if chunk.generation is not None]
    return generations[-1]


@dataclass(slots=True)
class _StageRecorder:
    """Keeps the scores of one answer at each stage."""

    so_far: GrowingScore
    stages: dict[int, Mapping[ScoreName, float]] = field(default_factory=dict)

    def add(self, signals: TokenSignals) -> None:
        self.so_far.add(signals)
        if len(self.so_far) in STAGES and (score := self.so_far.now()) is not None:
            self.stages[len(self.so_far)] = {name: each.p_wrong for name, each in score.scores.items()}


def _staged(answered: Sequence[_AskedAnswer], labels: Sequence[bool], scorer: Scorer) -> GrownAnswers:
    """Return the answers as arrays."""
    tokens = np.array([each.tokens for each in answered], np.intp)
    columns = {
        stage: {name: _column(answered, stage, name) for name in scorer.gives}
        for stage in STAGES
        if (tokens > stage).any()
    }
    whole = np.array([each.whole for each in answered], np.float64)
    return GrownAnswers(tokens, np.array(labels, np.bool_), whole, columns)


def _column(answered: Sequence[_AskedAnswer], stage: int, name: ScoreName) -> np.ndarray:
    """Return the log-odds of the answers that are longer than a stage; nan of the others."""
    scores = [each.stages.get(stage) if each.tokens > stage else None for each in answered]
    return np.array([log_odds_so_far(score[name]) if score else np.nan for score in scores], np.float64)
