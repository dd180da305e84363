"""Predictions of methods on test sets, and the names of the protocols."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import InputError
from guard.scoring.labels import Labels, label_array

#: The protocols.
LEAVE_ONE_OUT, WITHIN, PAIRWISE, HELD_OUT, SHIFT, SAMPLES = PROTOCOLS = (
    "leave-one-dataset-out",
    "within-dataset cross-validation",
    "pairwise transfer",
    "held-out datasets",
    "shift",
    "samples",
)
#: The setting of the last protocol's results: the first protocol on the answers with samples.
SAMPLED = f"{LEAVE_ONE_OUT}, answers that were sampled again"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The predictions of all methods on one test set after one kind of training.

    Attributes:
        setting: one of `PROTOCOLS`; ``shift: NAME`` of a shift, `SAMPLED` of samples.
        train: the training data set(s) or precision.
        test: the test data set.
        wrong: shape (n,), whether each answer is wrong; of graded answers, how wrong.
        group: shape (n,), the same number for answers to the same question.
        p_wrong: predictions by method, shape (n,), of fits without the row's question.
        missing: reasons by method, for methods that could not be fitted or applied.
        truncated: shape (n,), whether each answer was truncated at its token limit; None if not recorded.
    """

    setting: str
    train: str
    test: str
    wrong: Labels
    group: NDArray[np.intp]
    p_wrong: Mapping[str, NDArray[np.float64]]
    missing: Mapping[str, str]
    truncated: NDArray[np.bool_] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values; `from_json` returns exactly the same record."""
        return {
            "setting": self.setting,
            "train": self.train,
            "test": self.test,
            "wrong": self.wrong.tolist(),
            "group": self.group.tolist(),
            "p_wrong": {name: values.tolist() for name, values in self.p_wrong.items()},
            "missing": dict(self.missing),
            "truncated": None if self.truncated is None else self.truncated.astype(int).tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Predictions:
        """Read the values of `to_json`.

        Raises:
            InputError: a field is missing, or the columns differ in length.
        """
        try:
            wrong = label_array(value["wrong"])
            group = np.array(value["group"], np.intp)
            truncated = None if value["truncated"] is None else np.array(value["truncated"], np.bool_)
            p_wrong = {str(name): np.array(each, np.float64) for name, each in value["p_wrong"].items()}
            names = {name: str(value[name]) for name in ("setting", "train", "test")}
            missing = {str(name): str(reason) for name, reason in value["missing"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("These are not predictions of guard evaluate", why=repr(error)) from error
        if {each.shape for each in (wrong, group, *([] if truncated is None else [truncated]), *p_wrong.values())} != {
            (len(wrong),)
        }:
            raise InputError(f"Predictions on {names['test']!r} have columns of different lengths")
        return cls(wrong=wrong, group=group, p_wrong=p_wrong, missing=missing, truncated=truncated, **names)


def predictions_to_json(predictions: Sequence[Predictions]) -> str:
    """Return all predictions as one JSON text."""
    return json.dumps([each.to_json() for each in predictions], allow_nan=False)


def predictions_from_json(text: str) -> tuple[Predictions, ...]:
    """Read the text of `predictions_to_json`.

    Raises:
        InputError: the text is not JSON, or not predictions.
    """
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError("The predictions are not JSON", why=str(error)) from error
    if not isinstance(values, list):
        raise InputError("The predictions must be a list", why=f"got {type(values).__name__}")
    return tuple(Predictions.from_json(each) for each in values)
