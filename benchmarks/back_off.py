"""Is it better to trust the layers less where an input is out of distribution?

    python benchmarks/back_off.py records.parquet [--new other.parquet] [--unlike unlike.parquet] [--out back-off.json]

guard's own score, that of the log-probabilities and the out-of-distribution detector are fitted on all sets but one, as
`guard calibrate` does, which also chooses there whether the score backs off. On the set that was left out, printed are
AUROC and Brier score without a back-off, as chosen, and with several of them always; and how far out each set is. With
``--new``, the same on sets that nothing is fitted on. With ``--unlike``, the mean p_wrong of answers to inputs that are
unlike questions (recorded from the sets that `unlike_inputs.py` writes), and how many are accepted.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, versions
from numpy.typing import NDArray
from scipy.special import expit
from signature_views import cells

from guard.calibration.back_off import CANDIDATE, choose_back_off
from guard.calibration.fitting import Examples, FittedModel, fit_model, schema_for
from guard.data.answers import Answers, concatenate
from guard.records import Doubles
from guard.scores import ScoreName
from guard.scoring.ood import fit_ood_in_parts
from guard.scoring.probe import InnerProducts
from guard.scoring.scorer import model_log_odds
from guard.scoring.scorer_file import BackOff

#: Below which an answer to an unlike input counts as accepted: the threshold of the policy ``permissive``.
ACCEPT = 0.6
#: Back-offs that are used always, to compare with the choice.
ALWAYS = (CANDIDATE, BackOff(start=0.0, most=1.0), BackOff(start=0.9, most=0.5), BackOff(start=0.9, most=1.0))
WITHOUT, CHOSEN, OTHER = "without", "as chosen", "log-probabilities"


@dataclass(slots=True)
class BackedOff:
    """What was found of each answer, shape (n,) each.

    Attributes:
        log_odds: by the name of what was done.
        ood: ood_scores.
        chosen: for each division, whether the score backs off.
    """

    log_odds: dict[str, Doubles]
    ood: Doubles
    chosen: dict[str, bool]

    def judge(self, name: str, examples: Examples, learn: NDArray[np.intp], out: NDArray[np.intp]) -> None:
        """Fit to some answers, and judge others."""
        part, shown = taken(examples, learn), taken(examples, out)
        assert part.activations is not None
        assert shown.activations is not None
        fitted = fit(part)
        chosen = choose_back_off(part, fitted, seed=0)
        self.ood[out] = fit_ood_in_parts(part.activations, seed=0).ood_scores(shown.activations)
        own, other = (model_log_odds(each.model, shown.x, shown.activations) for each in fitted.values())
        found = {WITHOUT: own, CHOSEN: chosen.mix(own, other, self.ood[out]) if chosen else own, OTHER: other}
        found |= {label(each): each.mix(own, other, self.ood[out]) for each in ALWAYS}
        for what, values in found.items():
            self.log_odds.setdefault(what, np.full(len(examples), np.nan))[out] = values
        self.chosen[name] = chosen is not None


def label(back_off: BackOff) -> str:
    """Return how a back-off is called."""
    return f"always, from {back_off.start:g}, at most {back_off.most:g}"


def taken(examples: Examples, rows: NDArray[np.intp]) -> Examples:
    """Return some of the answers."""
    assert examples.products is not None
    assert examples.activations is not None
    products = InnerProducts(examples.products.between(rows, rows))
    x, wrong, dataset = examples.x[rows], examples.wrong[rows], examples.dataset[rows]
    return Examples(x, wrong, dataset, examples.activations[rows], products)


def fit(examples: Examples) -> dict[ScoreName, FittedModel]:
    """Fit guard's own score and the log-probabilities."""
    assert examples.activations is not None
    schema = schema_for(layers=examples.activations.shape[2], temperatures=(1.0,))
    plain = replace(examples, activations=None, products=None)
    return {
        "guard": fit_model(examples, schema),
        "log-probabilities": fit_model(plain, schema, score="log-probabilities"),
    }


def show(title: str, found: BackedOff, answers: Answers, rows: NDArray[np.bool_]) -> dict[str, list[str]]:
    """Print and return AUROC (mean of sets, pooled) and Brier score."""
    print(f"\n{title} | AUROC, mean of sets | pooled | Brier\n--- | --- | --- | ---")
    table = {what: cells(np.asarray(expit(values)), answers, rows) for what, values in found.log_odds.items()}
    for what, figures in table.items():
        print(" | ".join([what, *figures]), flush=True)
    return table


def show_unlike(found: BackedOff, names: NDArray[np.str_], rows: NDArray[np.bool_]) -> dict[str, list[str]]:
    """Print for each kind of unlike inputs the mean p_wrong and how many are accepted."""
    print("\nunlike | above .99 | " + " | ".join(found.log_odds) + "\n--- | ---" + " | ---" * len(found.log_odds))
    table = {}
    for name in np.unique(names[rows]):
        own = rows & (names == name)
        values = [expit(each[own]) for each in found.log_odds.values()]
        figures = [f"{p.mean():.3f}, {(p < ACCEPT).sum()} of {own.sum()}" for p in values]
        table[str(name)] = [f"{(found.ood[own] > 0.99).mean():.0%}", *figures]
        print(" | ".join([str(name), *table[str(name)]]))
    return table


def main() -> None:
    """Fit, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path)
    parser.add_argument("--new", type=Path, help="answers to sets that nothing is fitted on")
    parser.add_argument("--unlike", type=Path, help="answers to inputs that are unlike questions")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    tables = [Answers.read(path) for path in (asked.records, asked.new, asked.unlike) if path]
    joined, names = concatenate(tables) if len(tables) > 1 else tables[0], [np.unique(each.dataset) for each in tables]
    known = np.isin(joined.dataset, names[0])
    unlike = np.isin(joined.dataset, names[-1] if asked.unlike else [])
    schema = schema_for(layers=joined.layers, temperatures=(1.0,))
    features = joined.features(schema).astype(np.float32)
    examples = Examples(features, joined.wrong, joined.dataset, joined.activations, joined.products)
    found = BackedOff({}, np.full(len(joined), np.nan), {})
    divisions = {str(name): joined.dataset == name for name in names[0]}
    if not known.all():
        divisions["further sets"] = ~known
    for name, out in divisions.items():
        found.judge(name, examples, np.flatnonzero(known & ~out), np.flatnonzero(out))
        far = found.ood[out]
        print(
            f"{name}: {'backs off' if found.chosen[name] else 'does not back off'}, ood_score above .99 in "
            f"{(far > 0.99).mean():.0%}",
            flush=True,
        )
    report: dict[str, Any] = {"chosen": found.chosen}
    for title, rows in (("left out", known), ("new", ~known & ~unlike)):
        if rows.any():
            report[title] = show(title, found, joined, rows)
    if unlike.any():
        report["unlike"] = show_unlike(found, joined.dataset, unlike)
    if asked.out:
        about = {"machine": machine(), "versions": versions(), "records": [asked.records.name], "answers": len(joined)}
        asked.out.write_text(json.dumps({**about, **report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
