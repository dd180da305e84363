"""Tables and methods whose truth is known, for the tests of the evaluation: no model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from guard.errors import InputError
from guard.evaluation.protocol import MethodKind


@dataclass(frozen=True)
class MadeTable:
    """Answers with named signals."""

    dataset: NDArray[np.str_]
    wrong: NDArray[np.bool_]
    group: NDArray[np.str_]
    signals: dict[str, NDArray[np.float64]]

    def __len__(self) -> int:
        return len(self.wrong)

    def take(self, index: NDArray[np.intp]) -> MadeTable:
        signals = {name: values[index] for name, values in self.signals.items()}
        return MadeTable(self.dataset[index], self.wrong[index], self.group[index], signals)


def made_table(sets: Sequence[str], *, n: int, seed: int = 0, answers: int = 1, noise: float = 1.0) -> MadeTable:
    """Answers of which ``output`` and ``layers`` each know a part, and ``local`` only within one set.

    Args:
        sets: names; each has another share of wrong answers.
        n: questions in each set.
        seed: of everything.
        answers: for each question.
        noise: of the signals; 1 gives an AUROC of about .8 to output and layers together.
    """
    rng = np.random.default_rng(seed)
    parts: dict[str, list[NDArray[np.float64]]] = {"wrong": [], "output": [], "layers": [], "local": []}
    for place in range(len(sets)):
        wrong = rng.random(n * answers) < 0.15 + 0.6 * place / max(1, len(sets) - 1)
        parts["wrong"].append(wrong)
        parts["output"].append(wrong + noise * rng.normal(size=len(wrong)))
        parts["layers"].append(0.7 * wrong + noise * rng.normal(size=len(wrong)))
        parts["local"].append((-1) ** place * 1.2 * wrong + noise * rng.normal(size=len(wrong)))
    group = np.array([f"{name}/{number}" for name in sets for number in range(n) for _ in range(answers)])
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    wrong_column = columns.pop("wrong").astype(bool)
    return MadeTable(np.repeat(np.array(sets), n * answers), wrong_column, group, columns)


@dataclass(frozen=True)
class MadeFitted:
    """A logistic regression on some signals."""

    columns: tuple[str, ...]
    model: LogisticRegression

    def p_wrong(self, table: MadeTable) -> NDArray[np.float64]:
        return np.asarray(self.model.predict_proba(signals_of(table, self.columns))[:, 1], np.float64)


@dataclass(frozen=True)
class MadeMethod:
    """Fits a logistic regression; refuses tables that lack one of its signals."""

    name: str
    columns: tuple[str, ...]
    kind: MethodKind = "baseline"
    passes: float = 1.0
    seen: list[frozenset[str]] = field(default_factory=list)

    def fit(self, table: MadeTable, *, seed: int) -> MadeFitted:
        self.seen.append(frozenset(table.group))
        return MadeFitted(self.columns, LogisticRegression().fit(signals_of(table, self.columns), table.wrong))


def signals_of(table: MadeTable, columns: Sequence[str]) -> NDArray[np.float64]:
    for name in columns:
        if name not in table.signals:
            raise InputError(f"The records hold no signal {name!r}", fix="Record the answers again with it.")
    return np.column_stack([table.signals[name] for name in columns])
