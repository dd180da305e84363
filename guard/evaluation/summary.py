"""Summarise predictions: means with intervals, gains, curves, verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from guard.errors import InputError, did_you_mean
from guard.evaluation.bootstrap import Bootstrap, Estimate, bootstrap
from guard.evaluation.measures import MEASURES, TRANSFER_MEASURES, reliability, risk_curve
from guard.evaluation.pooled import pooled
from guard.evaluation.predictions import PAIRWISE, Predictions
from guard.evaluation.protocol import Method
from guard.evaluation.result import (
    COVERAGES,
    Ablation,
    CellScore,
    Claim,
    ClaimOutcome,
    ClaimVerdict,
    Comparison,
    Curve,
    DatasetCard,
    GroupGain,
    Importance,
    MethodCard,
    MethodScore,
    Missing,
    ModelCard,
    ModelResult,
    Reliability,
    SettingResult,
)
from guard.scoring.labels import Labels
from guard.scoring.metrics import Probabilities


def summarise(
    predictions: Sequence[Predictions],
    methods: Sequence[Method],
    *,
    model: ModelCard,
    own: str,
    records: str = "",
    hidden: Collection[str] = (),
    seconds: Mapping[str, float] | None = None,
    ablations: Sequence[Ablation] = (),
    importance: Importance | None = None,
    claims: Sequence[Claim] = (),
    draws: int = 1000,
    seed: int = 0,
) -> ModelResult:
    """Summarise the predictions of one model under all protocols.

    Args:
        predictions: predictions under all protocols.
        methods: the compared methods.
        model: the model of the answers.
        own: name of guard's own method.
        records: digest of the evaluated answers, for joining their results.
        hidden: methods for ablations only, which are left out of tables.
        seconds: measured time of a score, by method.
        ablations: pairs of methods that differ in one group of features.
        importance: importance of the layer pairs.
        claims: the claims to test.
        draws: number of bootstrap resamples.
        seed: seed of the resamples.

    Raises:
        InputError: there are no predictions, or a name belongs to no method.
    """
    compared = [name for pair in ablations for name in (pair.full, pair.without)]
    claimed = [claim.against for claim in claims if claim.against is not None]
    _check_names((own, *hidden, *(seconds or ()), *compared, *claimed), methods)
    cards = _cards([each for each in methods if each.name not in hidden], own, seconds or {})
    settings, groups, judged = [], [], {}
    for setting in dict.fromkeys(each.setting for each in predictions):
        cells = [each for each in predictions if each.setting == setting]
        measures = TRANSFER_MEASURES if setting == PAIRWISE else MEASURES
        found = judged[setting] = bootstrap(cells, measures, draws=draws, seed=seed)
        run = {name for cell in cells for name in (*cell.p_wrong, *cell.missing)}
        settings.append(_setting(setting, cells, found, [card.name for card in cards if card.name in run], own))
        groups += _group_gains(setting, found, [each for each in ablations if {each.full, each.without} <= run])
    return ModelResult(
        model=model,
        records=records,
        own=own,
        datasets=_datasets(predictions),
        methods=cards,
        settings=tuple(settings),
        groups=tuple(groups),
        importance=importance,
        verdicts=tuple(_verdict(claim, judged.get(claim.setting), cards, own) for claim in claims),
        draws=draws,
        pooled=pooled(predictions, own, seed=seed),
    )


def _cards(methods: Sequence[Method], own: str, seconds: Mapping[str, float]) -> tuple[MethodCard, ...]:
    """Return the cards of the methods in tables, guard's own first."""
    return tuple(
        MethodCard(each.name, each.kind, float(each.passes), seconds.get(each.name))
        for each in sorted(methods, key=lambda method: method.name != own)
    )


def _check_names(used: Collection[str], methods: Sequence[Method]) -> None:
    names = [method.name for method in methods]
    for name in used:
        if name not in names:
            raise InputError(f"There is no method {name!r}", fix=did_you_mean(name, names))


def _datasets(predictions: Sequence[Predictions]) -> tuple[DatasetCard, ...]:
    """Return the largest version of each test set: pairwise transfer leaves shared questions out."""
    largest: dict[str, Predictions] = {}
    for each in predictions:
        if each.test not in largest or len(each.wrong) > len(largest[each.test].wrong):
            largest[each.test] = each
    return tuple(DatasetCard(name, len(each.wrong), float(each.wrong.mean())) for name, each in sorted(largest.items()))


def _setting(
    setting: str, cells: Sequence[Predictions], found: Bootstrap, methods: Sequence[str], own: str
) -> SettingResult:
    measures = [measure.name for measure in found.measures]
    everywhere = [name for name in methods if all(name in cell.p_wrong for cell in cells)]
    drawn = [] if setting == PAIRWISE else everywhere
    labels: list[Labels] = [cell.wrong for cell in cells]
    every: Any = np.concatenate(labels)
    oracle = [(wrong.astype(np.float64), wrong) for wrong in labels]
    constant = [(np.zeros(len(wrong)), wrong) for wrong in labels]
    return SettingResult(
        setting=setting,
        cells=len(cells),
        scores=tuple(MethodScore(name, each, *found.mean(name, each)) for name in methods for each in measures),
        per_cell=tuple(
            CellScore(cell.train, cell.test, name, each, found.value(name, (cell.train, cell.test), each))
            for cell in cells
            for name in methods
            for each in measures
        ),
        comparisons=tuple(
            Comparison(name, each, found.gain(own, name, each)) for name in methods if name != own for each in measures
        ),
        missing=tuple(
            Missing(name, cell.train, cell.test, reason) for cell in cells for name, reason in cell.missing.items()
        ),
        curves=tuple(_curve(name, [(cell.p_wrong[name], cell.wrong) for cell in cells]) for name in drawn),
        oracle=_curve("oracle", oracle) if drawn else None,
        random=_curve("random", constant) if drawn else None,
        reliability=tuple(
            Reliability(name, reliability(np.concatenate([cell.p_wrong[name] for cell in cells]), every))
            for name in drawn
        ),
    )


def _curve(name: str, scored: Sequence[tuple[Probabilities, Labels]]) -> Curve:
    curves = [risk_curve(p_wrong, wrong, np.array(COVERAGES)) for p_wrong, wrong in scored]
    return Curve(name, tuple(round(float(each), 6) for each in np.mean(curves, axis=0)))


def _group_gains(setting: str, found: Bootstrap, ablations: Sequence[Ablation]) -> list[GroupGain]:
    return [
        GroupGain(each.group, setting, measure.name, found.gain(each.full, each.without, measure.name))
        for each in ablations
        for measure in TRANSFER_MEASURES
    ]


def _verdict(claim: Claim, found: Bootstrap | None, methods: Sequence[MethodCard], own: str) -> ClaimVerdict:
    """Compare the gain with the claim's margin; among several other methods, use the best one."""
    rivals = [claim.against] if claim.against else [card.name for card in methods if card.kind == "baseline"]
    gains = {name: found.gain(own, name, claim.measure).estimate for name in rivals} if found else {}
    recorded = {name: gain.value for name, gain in gains.items() if gain.value is not None}
    if found is None or not recorded:
        return ClaimVerdict(claim, claim.against or "best baseline", Estimate(None, None, None), "not recorded")
    if claim.everywhere:
        gain, against = _worst_cell(found, own, rivals, claim.measure)
        return ClaimVerdict(claim, against, gain, _outcome(claim, gain))
    against = min(recorded, key=lambda name: recorded[name])
    return ClaimVerdict(claim, against, gains[against], _outcome(claim, gains[against]))


def _outcome(claim: Claim, gain: Estimate) -> ClaimOutcome:
    if gain.value is None or gain.value <= claim.margin:
        return "not reached"
    surest = gain.low if claim.certain else gain.value
    return "reached" if surest is not None and surest > claim.margin else "not shown"


def _worst_cell(found: Bootstrap, own: str, rivals: Sequence[str], measure: str) -> tuple[Estimate, str]:
    """Return the least gain over any other method on any cell, and that method and test set in words.

    The interval is that of this one comparison, without a correction for selecting the worst of many.
    """
    gains = [
        (found.gain(own, name, measure, cell=cell).estimate, f"{name} on {cell[1]}")
        for name in rivals
        for cell in found.cells
    ]
    return min(gains, key=lambda gain: np.inf if gain[0].value is None else gain[0].value)
