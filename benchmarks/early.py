"""What would early decisions save, and what would they cost?

    python benchmarks/early.py ask kept --data set1.jsonl.gz --data set2.jsonl.gz [--limit 100] [--max-tokens 32]
    python benchmarks/early.py measure kept [--calibrated] [--left-out] [--out early.json]

`ask` lets the embedded model (or --model) answer, and keeps what guard's score could read after the first token, and
after every few tokens of the answer so far: log-probabilities, and the activations of the first and the latest token
and their mean, in files of a folder: what is there is not asked again. A model without a chat template continues a text
with solved examples. `measure` fits a score of its own for each of
these stages, and for the whole answer, on four fifths of the questions, and applies it to the rest, five times; with
--left-out, on all sets but one, and to that one. With --calibrated there is one score, of complete answers, which is
calibrated at each stage, as `guard calibrate --early` does. An answer is stopped at the first stage whose score is
above a threshold. Printed are the share of generated tokens that this saves, counted up to where the model stopped by
itself or at its limit, for answers that are in the end wrong and right apart, and the share of the right answers that
the whole answer's score would have accepted, and that are lost.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, versions
from numpy.typing import NDArray
from scipy.special import expit

from guard.calibration.early_fit import SPREAD, STAGES
from guard.calibration.fitting import Examples, fit_model
from guard.calibration.platt import platt_scaling
from guard.data.graders import grade
from guard.data.in_order import in_order
from guard.data.labelling import is_wrong
from guard.data.prompts import completion_prompt, question_prompt
from guard.data.question_sets import read_sets, round_robin
from guard.data.questions import Question, question_identity
from guard.engines import EMBEDDED, load_engine
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.engines.tokenizing import TokenizingEngine
from guard.errors import CalibrationError
from guard.evaluation.protocol import assign_folds
from guard.records import Doubles, Floats, Limits, Prompt, Signals, Signature
from guard.runtime.base_models import COMPLETION_STOP
from guard.scoring.metrics import Ranked, auroc, brier
from guard.scoring.probe import InnerProducts, inner_products
from guard.scoring.scorer import model_log_odds
from guard.scoring.scorer_file import Calibration
from guard.scoring.signature import FeatureSchema, feature_vector

#: Above which an answer is stopped.
THRESHOLDS = (0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99)
FOLDS = 5
#: Questions that are asked before their answers are written.
CHUNK = 26
GROUPS = ("logprob", "margin", "length")


class StageObserver:
    """Keeps the latest activations and their mean so far at each stage, and at the end."""

    def __init__(self) -> None:
        self.kept: list[Floats] = []
        self._count, self._sum = 0, np.zeros(0)
        self._first = self._last = np.zeros(0, np.float32)

    def observe(self, activations: Floats) -> None:
        """Take one token's activations."""
        self._last = activations.copy()
        self._first = self._last if not self._count else self._first
        self._sum = self._last.astype(np.float64) if not self._count else self._sum + self._last
        self._count += 1
        if self._count in STAGES:
            self.kept.append(self._now())

    def _now(self) -> Floats:
        return np.stack([self._first, self._last, self._sum / self._count]).astype(np.float16)

    def stages(self) -> list[Floats]:
        """Return what was kept, shape (3, L, D) each; the last is the whole answer."""
        return [*self.kept, self._now()]


# -- asking ------------------------------------------------------------------------------------


def ask(asked: argparse.Namespace) -> None:
    """Ask the questions, and keep the answers."""
    rows = [(name, row) for name, row in round_robin(read_sets(asked.data, limit=asked.limit, seed=0))]
    questions = [(name, row) for name, row in rows if isinstance(row, Question)]
    asked.kept.mkdir(exist_ok=True)
    with load_engine(asked.model, threads=asked.threads, trial_load=False) as engine:
        assert isinstance(engine, TokenizingEngine)
        for start in range(0, len(questions), CHUNK):
            if not (asked.kept / f"{start:05}.npz").exists():
                _ask_some(engine, questions[start : start + CHUNK], asked, asked.kept / f"{start:05}.npz")


def _ask_some(
    engine: TokenizingEngine, rows: Sequence[tuple[str, Question]], asked: argparse.Namespace, path: Path
) -> None:
    completion = not engine.chat_template
    limits = Limits(max_tokens=asked.max_tokens, stop=COMPLETION_STOP if completion else ())

    def answered(row: tuple[str, Question], _: object) -> tuple[str, Floats, list[Floats], str]:
        prompt = completion_prompt(row[1]) if completion else question_prompt(row[1], system=asked.system)
        return _answer(engine, prompt, limits)

    found = in_order(answered, rows, at_once=8)
    texts, signals, activations, ended = zip(*found, strict=True)
    wrong = [is_wrong(row, text, grade) for (_, row), text in zip(rows, texts, strict=True)]
    about = {"model": engine.model.name, "quantization": engine.model.quantization, "max_tokens": asked.max_tokens}
    print(f"{path.stem}: {np.mean(wrong):.0%} wrong, {np.mean([len(x) for x in signals]):.1f} tokens", flush=True)
    np.savez(
        path,
        about=json.dumps(about),
        wrong=np.array(wrong, np.bool_),
        dataset=np.array([name for name, _ in rows]),
        group=np.array([question_identity(row) for _, row in rows]),
        cut=np.array([each == "length" for each in ended], np.bool_),
        tokens=np.array([len(each) for each in signals]),
        signals=np.concatenate(signals),
        stages=np.array([len(each) for each in activations]),
        activations=np.concatenate([np.stack(each) for each in activations]),
    )


def _answer(engine: TokenizingEngine, prompt: Prompt, limits: Limits) -> tuple[str, Floats, list[Floats], str]:
    observer = StageObserver()
    generation = engine.generate(prompt, limits=limits, observer=observer)
    signals = np.stack([generation.logprobs, generation.entropies, generation.margins], axis=1)
    return generation.text, signals, observer.stages(), generation.finish_reason


# -- what was kept -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class StagedAnswers:
    """Answers with what a score can read at each stage.

    Attributes:
        wrong, dataset, group, tokens: shape (n,).
        signals: of each answer, shape (tokens, 3): log-probability, entropy, margin.
        activations: of each answer, shape (stages, 3, L, D); the last stage is the whole answer.
    """

    about: dict[str, Any]
    wrong: NDArray[np.bool_]
    dataset: NDArray[np.str_]
    group: NDArray[np.str_]
    tokens: NDArray[np.intp]
    signals: list[Floats]
    activations: list[Floats]

    @classmethod
    def read(cls, path: Path) -> StagedAnswers:
        """Read what `ask` wrote."""
        parts = [np.load(file) for file in sorted(path.glob("*.npz"))]
        found = {name: np.concatenate([np.atleast_1d(part[name]) for part in parts]) for name in parts[0].files}
        ends, stage_ends = np.cumsum(found["tokens"]), np.cumsum(found["stages"])
        return cls(
            about=json.loads(str(found["about"][0])),
            wrong=found["wrong"],
            dataset=found["dataset"],
            group=found["group"],
            tokens=found["tokens"],
            signals=np.split(found["signals"], ends[:-1]),
            activations=np.split(found["activations"], stage_ends[:-1]),
        )

    def reached(self, stage: int | None) -> NDArray[np.intp]:
        """Return the answers that are longer than a stage: at its last token there is nothing to stop."""
        return np.arange(len(self.wrong)) if stage is None else np.flatnonzero(self.tokens > stage)

    def examples(self, stage: int | None) -> tuple[Examples, FeatureSchema]:
        """Return what the answers that reach a stage show there; None is the whole answer."""
        rows = self.reached(stage)
        at = -1 if stage is None else STAGES.index(stage)
        activations = np.stack([self.activations[row][at] for row in rows])
        schema = FeatureSchema(layers=activations.shape[2], groups=GROUPS)
        x = np.array([feature_vector(self._signals(row, stage), schema) for row in rows], np.float32)
        products = InnerProducts(inner_products(activations))
        return Examples(x, self.wrong[rows], self.dataset[rows], activations, products), schema

    def _signals(self, row: int, stage: int | None) -> Signals:
        logprobs, entropies, margins = self.signals[row][:stage].T
        return Signals(logprobs, entropies, margins, _NOTHING)


_NOTHING = Signature(*(np.empty((0, 0, 0), np.float32),) * 3, (), (), 0)


# -- fitting and stopping ----------------------------------------------------------------------


def p_wrong_at(kept: StagedAnswers, stage: int | None, *, left_out: bool) -> Doubles:
    """Return the cross-fitted probability that each answer will be wrong, as a stage sees it.

    Returns:
        shape (n,); nan for answers that do not reach the stage, or where too few did to fit a score.
    """
    rows = kept.reached(stage)
    found = np.full(len(kept.wrong), np.nan)
    if len(rows) < 50:
        return found
    examples, schema = kept.examples(stage)
    for learn, out in _divisions(kept, rows, left_out=left_out):
        try:
            found[rows[out]] = fitted_probabilities(examples, schema, learn, out)
        except CalibrationError:
            continue  # too few answers of one kind got so far
    return found


def _divisions(
    kept: StagedAnswers, rows: NDArray[np.intp], *, left_out: bool
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    fold = _folds(kept, left_out=left_out)
    for number in np.unique(fold):
        yield np.flatnonzero(fold[rows] != number), np.flatnonzero(fold[rows] == number)


def _folds(kept: StagedAnswers, *, left_out: bool) -> NDArray[np.intp]:
    if left_out:
        return np.unique(kept.dataset, return_inverse=True)[1]
    return assign_folds(kept.group, kept.wrong, folds=FOLDS, seed=0)


def fitted_probabilities(
    examples: Examples, schema: FeatureSchema, learn: NDArray[np.intp], out: NDArray[np.intp]
) -> Doubles:
    """Return probabilities of some answers, by guard's own score of others."""
    assert examples.activations is not None
    products = examples.products
    part = Examples(
        examples.x[learn],
        examples.wrong[learn],
        examples.dataset[learn],
        examples.activations[learn],
        None if products is None else InnerProducts(products.between(learn, learn)),
    )
    model = fit_model(part, schema, without=("map", "norms")).model
    return np.asarray(expit(model_log_odds(model, examples.x[out], examples.activations[out])))


# -- the complete answer's score, calibrated at each stage, as guard does ----------------------


def calibrated_stages(kept: StagedAnswers, *, left_out: bool) -> dict[int | None, Doubles]:
    """Return the same by one score for all stages: fitted on complete answers, calibrated at each stage on others.

    Of the folds beside the one that is judged, a quarter calibrates.
    """
    parts = {stage: kept.examples(stage) for stage in (*STAGES, None) if len(kept.reached(stage)) >= 50}
    found = {stage: np.full(len(kept.wrong), np.nan) for stage in (*STAGES, None)}
    fold = _folds(kept, left_out=left_out)
    numbers = np.unique(fold)
    for number in numbers:
        calibrates = [(number + step) % len(numbers) for step in range(1, 1 + max(1, len(numbers) // 4))]
        learn = np.flatnonzero((fold != number) & ~np.isin(fold, calibrates))
        score = _whole_score(*parts[None], learn)
        for stage, (examples, _) in parts.items():
            rows = kept.reached(stage)
            odds, mine = score(examples), fold[rows] == number
            found[stage][rows[mine]] = expit(odds[mine])
            if stage is not None:
                others = np.isin(fold[rows], calibrates)
                calibration = _stage_calibration(odds[others], kept.wrong[rows][others])
                found[stage][rows[mine]] = expit(calibration.log_odds(odds[mine])) if calibration else np.nan
    return found


def _whole_score(examples: Examples, schema: FeatureSchema, learn: NDArray[np.intp]) -> Callable[[Examples], Doubles]:
    """Return a function that gives the log-odds of answers by a score of some complete ones."""
    assert examples.activations is not None
    assert examples.products is not None
    products = InnerProducts(examples.products.between(learn, learn))
    part = Examples(
        examples.x[learn], examples.wrong[learn], examples.dataset[learn], examples.activations[learn], products
    )
    model = fit_model(part, schema, without=("map", "norms")).model

    def log_odds(of: Examples) -> Doubles:
        assert of.activations is not None
        return model_log_odds(model, of.x, of.activations)

    return log_odds


def _stage_calibration(odds: Doubles, wrong: NDArray[np.bool_]) -> Calibration | None:
    if not len(odds):
        return None
    try:
        return platt_scaling(odds, wrong, spread=SPREAD)
    except CalibrationError:
        return None


@dataclass(frozen=True, slots=True)
class StageQuality:
    """How well a stage knows how an answer will end."""

    tokens: int | None
    answers: int
    auroc: float
    brier: float


@dataclass(frozen=True, slots=True)
class SavedTokens:
    """What stopping above a threshold does.

    Attributes:
        above: the threshold.
        stages: from how many tokens on a stage may stop.
        saved, of_wrong, of_right: share of generated tokens that is saved.
        stopped: share of the answers.
        right_stopped: share of the right answers.
        accepted_lost: share of the right answers that would have been accepted.
        accepted: number of these.
    """

    above: float
    stages: str
    saved: float
    of_wrong: float
    of_right: float
    stopped: float
    right_stopped: float
    accepted_lost: float
    accepted: int


def saved_by(
    kept: StagedAnswers, early: dict[int, Doubles], whole: Doubles, *, above: float, accept: float, stages: str
) -> SavedTokens:
    """Stop each answer at the first stage whose score is above the threshold."""
    read = kept.tokens.copy()
    for stage in sorted(early, reverse=True):
        read = np.where(np.nan_to_num(early[stage], nan=0.0) > above, stage, read)
    left, wrong = kept.tokens - read, kept.wrong
    stopped, accepted = left > 0, ~wrong & (whole < accept)
    return SavedTokens(
        above=above,
        stages=stages,
        saved=left.sum() / kept.tokens.sum(),
        of_wrong=left[wrong].sum() / kept.tokens[wrong].sum(),
        of_right=left[~wrong].sum() / max(1, kept.tokens[~wrong].sum()),
        stopped=float(stopped.mean()),
        right_stopped=float(stopped[~wrong].mean()),
        accepted_lost=float(stopped[accepted].mean()) if accepted.any() else 0.0,
        accepted=int(accepted.sum()),
    )


def measure(asked: argparse.Namespace) -> None:
    """Fit, stop, print."""
    kept = StagedAnswers.read(asked.kept)
    if asked.calibrated:
        scores = calibrated_stages(kept, left_out=asked.left_out)
    else:
        scores = {stage: p_wrong_at(kept, stage, left_out=asked.left_out) for stage in (*STAGES, None)}
    early = {stage: score for stage, score in scores.items() if stage is not None and _tells(score, kept.wrong)}
    stages = [_stage(kept, stage, scores[stage]) for stage in (*early, None)]
    whole = np.nan_to_num(scores[None], nan=1.0)
    rules = {
        "the first token": {1: early[1]},
        "from the second on": {x: early[x] for x in early if x > 1},
        "all": early,
    }
    found = [
        saved_by(kept, part, whole, above=above, accept=asked.accept, stages=name)
        for name, part in rules.items()
        for above in THRESHOLDS
    ]
    print(f"{kept.about}: {len(kept.wrong)} answers, {kept.wrong.mean():.0%} wrong, {kept.tokens.mean():.1f} tokens")
    for each in stages:
        name = "the whole answer" if each.tokens is None else f"{each.tokens} tokens"
        print(f"{name:>17}: {each.answers} answers, AUROC {each.auroc:.3f}, Brier {each.brier:.3f}")
    for line in found:
        print(
            f"{line.stages:>18} above {line.above:.3f}: {line.saved:6.1%} of tokens saved (of wrong answers' "
            f"{line.of_wrong:6.1%}, of right ones' {line.of_right:6.1%}); {line.stopped:6.1%} of answers stopped, "
            f"{line.right_stopped:6.1%} of right ones, {line.accepted_lost:6.1%} of {line.accepted} accepted right ones"
        )
    if asked.out:
        report = {"machine": machine(), "versions": versions(), "about": kept.about}
        report |= {"left_out": asked.left_out, "calibrated": asked.calibrated}
        report["accept_below"] = asked.accept
        report |= {"answers": len(kept.wrong), "wrong": float(kept.wrong.mean()), "tokens": float(kept.tokens.mean())}
        report |= {"stages": [asdict(each) for each in stages], "saved": [asdict(each) for each in found]}
        asked.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _tells(score: Doubles, wrong: NDArray[np.bool_]) -> bool:
    """Return whether right and wrong answers were judged; a stage that only wrong ones reach shows nothing."""
    return len(np.unique(wrong[~np.isnan(score)])) == 2


def _stage(kept: StagedAnswers, stage: int | None, score: Doubles) -> StageQuality:
    rows = np.flatnonzero(~np.isnan(score))
    ranked = Ranked.from_scores(score[rows], kept.wrong[rows])
    return StageQuality(stage, len(rows), float(auroc(ranked)[0]), float(brier(ranked)[0]))


def main() -> None:
    """Ask or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    asking = commands.add_parser("ask")
    asking.add_argument("kept", type=Path)
    asking.add_argument("--data", action="append", required=True)
    asking.add_argument("--model", default=EMBEDDED)
    asking.add_argument("--limit", type=int, default=100)
    asking.add_argument("--max-tokens", type=int, default=32)
    asking.add_argument("--system", default=SHORT_ANSWER_SYSTEM)
    asking.add_argument("--threads", type=int, default=2)
    asking.set_defaults(run=ask)
    measuring = commands.add_parser("measure")
    measuring.add_argument("kept", type=Path)
    measuring.add_argument("--left-out", action="store_true", help="fit on all sets but one, and test on that one")
    measuring.add_argument(
        "--calibrated",
        action="store_true",
        help="one score of complete answers, calibrated at each stage, as guard does",
    )
    measuring.add_argument("--accept", type=float, default=0.25, help="below which the whole answer's score accepts")
    measuring.add_argument("--out", type=Path)
    measuring.set_defaults(run=measure)
    asked = parser.parse_args()
    asked.run(asked)


if __name__ == "__main__":
    main()
