"""Run the protocols and methods of an evaluation, and test its claims."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from guard.checked import checked_seed, whole_number
from guard.data.answers import Answers
from guard.errors import InputError
from guard.evaluation.methods import GuardMethod, LinearProbeMethod, RegressionMethod, log_maps, methods_for
from guard.evaluation.predictions import (
    HELD_OUT,
    LEAVE_ONE_OUT,
    PAIRWISE,
    PROTOCOLS,
    SAMPLED,
    SAMPLES,
    SHIFT,
    WITHIN,
    Predictions,
)
from guard.evaluation.protocol import (
    Method,
    StepCallback,
    held_out_datasets,
    leave_one_dataset_out,
    pairwise_transfer,
    shift,
    within_dataset,
)
from guard.evaluation.result import Ablation, Claim, Importance, ModelCard, ModelResult
from guard.evaluation.summary import summarise
from guard.scoring.labels import has_both_kinds

OWN = "guard"


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """The parts of an evaluation.

    Attributes:
        protocols: some of `PROTOCOLS`. Pairwise transfer, whose cost is quadratic, and shifts use the methods of
            `CROSSED` only.
        parts: whether to fit guard's own score with each of its parts left out.
        folds: number of folds within sets.
        draws: number of bootstrap resamples.
        seed: seed of folds, methods and resamples.
    """

    protocols: tuple[str, ...] = PROTOCOLS
    parts: bool = True
    folds: int = 5
    draws: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        whole_number("folds", self.folds, least=2)
        whole_number("draws", self.draws, least=1)


#: Fewest answers with samples for an evaluation of methods that use these.
MIN_SAMPLED = 200

#: Methods for pairwise transfer and shifts.
CROSSED = (OWN, "log-probabilities", "linear probe", "ILIS")


def evaluate(
    table: Answers,
    plan: EvaluationPlan,
    *,
    new: Answers | None = None,
    shifted: Mapping[str, Answers] | None = None,
    progress: StepCallback | None = None,
) -> ModelResult:
    """Run all protocols on one model's records.

    Args:
        table: recorded answers with labels.
        plan: the parts to run.
        new: records of the same model on other data sets.
        shifted: records of the same questions under another precision or engine, by name.
        progress: called before each piece of work.

    Raises:
        InputError: there are fewer than two data sets for transfer, a data set has fewer questions than folds, or
            there is nothing to run.
    """
    methods = methods_for("all")
    whole = not plan.parts or LEAVE_ONE_OUT not in plan.protocols
    parts = () if whole else tuple(each for each in methods_for("parts") if each.name != OWN)
    seed, run = plan.seed, plan.protocols
    predictions = _predictions(table, plan, methods, parts, new, shifted or {}, progress)
    again = _sampled(table, seed=seed, progress=progress) if SAMPLES in run else []
    if not predictions and not again:
        raise InputError(
            "There is nothing to evaluate",
            why=f"{', '.join(run)} need --new with new questions, --shift, or {MIN_SAMPLED} answers with samples",
        )
    settings = {each.setting for each in predictions}
    changed = [name for name, other in (shifted or {}).items() if model_card(other) != model_card(table)]
    everything = {method.name: method for method in (*methods, *parts, *(methods_for("sampling") if again else ()))}
    run_at_all = {name for each in (*predictions, *again) for name in (*each.p_wrong, *each.missing)}
    listed = [each for name, each in everything.items() if name in run_at_all]
    return summarise(
        [*predictions, *again],
        listed,
        model=model_card(table),
        records=_digest(table),
        own=OWN,
        hidden=[part.name for part in parts],
        seconds=_seconds(table, listed, seed=seed),
        ablations=[Ablation(part.name.removeprefix("guard without "), OWN, part.name) for part in parts],
        importance=_importance(table, seed=seed) if LEAVE_ONE_OUT in run else None,
        claims=[each for each in claims(shifts=changed) if each.setting in settings],
        draws=plan.draws,
        seed=seed,
    )


def _predictions(
    table: Answers,
    plan: EvaluationPlan,
    methods: Sequence[Method],
    parts: Sequence[Method],
    new: Answers | None,
    shifted: Mapping[str, Answers],
    progress: StepCallback | None,
) -> list[Predictions]:
    """Return the results of all protocols except the samples."""
    crossed = [method for method in methods if method.name in CROSSED]
    seed, run = plan.seed, plan.protocols
    found: list[Predictions] = []
    if LEAVE_ONE_OUT in run:
        found += leave_one_dataset_out(table, (*methods, *parts), seed=seed, progress=progress)
    if WITHIN in run:
        found += within_dataset(table, methods, folds=plan.folds, seed=seed, progress=progress)
    if PAIRWISE in run:
        found += pairwise_transfer(table, crossed, seed=seed, progress=progress)
    if HELD_OUT in run and new is not None:
        found += held_out_datasets(table, new, methods, seed=seed, progress=progress)
    if SHIFT in run and shifted:
        found += shift(table, shifted, crossed, folds=plan.folds, seed=seed, progress=progress)
    return found


def claims(*, shifts: Sequence[str] = ()) -> tuple[Claim, ...]:
    """Return the claims about guard's own score."""
    rivals = ("log-probabilities", "linear probe", "ILIS")
    beats = [
        Claim(f"better than {rival} on {sets} ({measure})", setting, measure, rival)
        for setting, sets in ((LEAVE_ONE_OUT, "unseen data sets"), (HELD_OUT, "new data sets"))
        for rival in rivals
        for measure in ("AUROC", "AUPRC (wrong)")
    ]
    calibrated = [
        Claim(f"Brier score no worse than that of {rival}{where}", setting, "Brier", rival, margin=-1e-9, certain=False)
        for setting, where in ((LEAVE_ONE_OUT, ""), (HELD_OUT, " on new data sets"))
        for rival in rivals
    ]
    probe = LinearProbeMethod().name
    paper = [
        Claim(
            "the paper's transfer margin over a probe: 2.86 points of AUPRC",
            LEAVE_ONE_OUT,
            "AUPRC (wrong)",
            probe,
            0.0286,
        ),
        Claim("the paper's transfer margin over a probe: 21 points of Brier", LEAVE_ONE_OUT, "Brier", probe, 0.2102),
    ]
    for name in shifts:
        setting = f"{SHIFT}: {name}"
        paper += [
            Claim(f"{name}: 1.94 points of AUPRC over a probe", setting, "AUPRC (wrong)", probe, 0.0194),
            Claim(f"{name}: 5.33 points of Brier over a probe", setting, "Brier", probe, 0.0533),
        ]
    near = [
        Claim("within sets, on average, at most .01 AUROC below the best", WITHIN, "AUROC", None, -0.01, certain=False),
        Claim(
            "within each single set, at most .01 AUROC below the best",
            WITHIN,
            "AUROC",
            None,
            -0.01,
            certain=False,
            everywhere=True,
        ),
    ]
    return (*beats, *calibrated, *near, *paper)


def model_card(table: Answers) -> ModelCard:
    """Return the card of the model of the answers."""
    names = ("name", "engine", "architecture", "quantization", "weights_sha256", "layers", "width")
    return ModelCard(**{name: table.metadata[f"model.{name}"] for name in names})


def _digest(table: Answers) -> str:
    """Return the description of the evaluated answers and labels."""
    lines = (f"{key} {wrong}\n" for key, wrong in zip(table.key, table.wrong.tolist(), strict=True))
    return sha256("".join(sorted(lines)).encode()).hexdigest()


def _sampled(table: Answers, *, seed: int, progress: StepCallback | None) -> list[Predictions]:
    """Compare sampling methods with single-pass methods, on the answers with samples."""
    asked = _asked_again(table)
    if len(asked) < MIN_SAMPLED:
        return []
    found = leave_one_dataset_out(asked, methods_for("sampling"), seed=seed, progress=progress)
    return [replace(each, setting=SAMPLED) for each in found]


def _asked_again(table: Answers) -> Answers:
    return table.take(np.flatnonzero([bool(each) for each in table.samples]))


def _seconds(table: Answers, methods: Sequence[Method], *, seed: int) -> dict[str, float]:
    """Return the measured cost of a score: its further passes over an answer and its own computation."""
    rows = np.random.default_rng(seed).permutation(len(table))[:400]
    some = table.take(np.sort(rows))
    asked = _asked_again(table)
    answer = float(np.median(table.seconds))
    costs = {}
    for method in methods:
        sample = asked if method.kind == "reference" and len(asked) else some
        if not has_both_kinds(sample.wrong) or (isinstance(method, GuardMethod) and method.without):
            continue
        try:
            fitted = method.fit(sample, seed=seed)
            started = time.perf_counter()
            fitted.p_wrong(sample)
        except InputError:  # the protocols report it with the reason
            continue
        further = max(0.0, method.passes - 1)  # a control of the texts alone needs none of the answer's own
        costs[method.name] = (time.perf_counter() - started) / len(sample) + further * answer
    return costs


def _importance(table: Answers, *, seed: int) -> Importance:
    """Return weights of the linear model over the signature's logarithm, first and last token together."""
    fitted = RegressionMethod("map", log_maps, inverse_penalty=1e-4).fit(table, seed=seed)
    weights = np.abs(fitted.model[-1].coef_[0]).reshape(2, -1).sum(axis=0)  # type: ignore[attr-defined]
    values = np.zeros((table.layers, table.layers))
    values[~np.eye(table.layers, dtype=bool)] = weights
    meaning = "size of the standardised weights of a linear model over the signature's logarithm"
    return Importance(meaning, tuple(tuple(float(x) for x in row) for row in values.round(6)))
