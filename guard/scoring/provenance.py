"""The provenance of a scorer: model, prompts and data. Part of scorer files and certificates; loads no numpy."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from guard.records import CapturePoint, ModelInfo


class Part(BaseModel):
    """Base class of file parts, which refuse unknown keys, wrong types and mutation."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _plain(value: Any, depth: int = 0) -> Any:
    """Refuse values that cannot be written: infinities and very deep nesting."""
    if depth > 8:
        raise ValueError("nested too deeply")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number is not finite")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        _plain(part, depth + 1)
    return value


#: JSON values for people and other tools; scoring does not read them.
PlainDict = Annotated[dict[str, Any], AfterValidator(_plain)]


class Binding(Part):
    """The binding of a scorer file: the fields of `ModelInfo` that must match, and the capture point.

    Name and context length of the loaded model may differ from those in calibration.
    """

    engine: str
    architecture: str
    quantization: str
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str
    layers: int
    width: int
    capture_point: CapturePoint
    template_date: str | None = None
    served: str | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Most templates write no date and most models are not served, and their scorers' files do not speak of it."""
        return {name: value for name, value in dump(self).items() if value is not None}

    @property
    def engine_options(self) -> dict[str, str]:
        """The load options with which an engine records and asks as in calibration."""
        point = {"capture_point": str(self.capture_point)} if self.capture_point != "mlp" else {}
        return {**point, "template_date": self.template_date} if self.template_date else point

    @classmethod
    def from_model(cls, model: ModelInfo, capture_point: CapturePoint) -> Self:
        """Return the binding of a loaded model."""
        fields = {name: getattr(model, name) for name in cls.model_fields if name != "capture_point"}
        return cls(**fields, capture_point=capture_point)


class Prompting(Part):
    """The form of the prompts in calibration, which `guard ask` uses, too."""

    system: str
    max_tokens: Annotated[int, Field(ge=1)]
    #: Variables of the model's chat template, such as ``{"enable_thinking": false}``.
    template_options: PlainDict = Field(default_factory=dict)
    #: Asked by a text to continue, as base models are (see `guard.data.prompts.completion_text`).
    completion: bool = False

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without options there is no entry for them, nor one for chat messages."""
        written: dict[str, Any] = write(self)
        return {k: v for k, v in written.items() if v or k not in ("template_options", "completion")}


class Rebound(Part):
    """The record of a move to another precision or engine of the model.

    Attributes:
        fitted_on: the model that the scorer was fitted on.
        answers: number of answers for the alignment of the layers, which uses no labels.
        difference_before, difference_after: mean absolute difference of p_wrong between the two models on the same
            answers, without and with the alignment.
        checked: number of labelled answers of the new model that it was checked on; 0 leaves it unchecked, and its
            scores are marked as uncalibrated.
        metrics: of each score on these answers.
    """

    fitted_on: Binding
    answers: Annotated[int, Field(ge=1)]
    difference_before: Annotated[float, Field(ge=0, le=1)]
    difference_after: Annotated[float, Field(ge=0, le=1)]
    checked: Annotated[int, Field(ge=0)]
    metrics: PlainDict = Field(default_factory=dict)


class Card(Part):
    """Information for users of a scorer. People write it; scoring does not read it.

    Attributes:
        title: such as ``SmolLM2-135M-Instruct (Q4_1, llama.cpp), short answers``.
        licence: of the scorer file.
        data: licence of each data set of the calibration, by the set's name.
        limits: where the scorer should not be trusted, one sentence each.
        figures: measurements on other data than the calibration data, one sentence each.
    """

    title: Annotated[str, Field(min_length=1, max_length=200)]
    licence: Annotated[str, Field(min_length=1, max_length=200)]
    data: dict[str, Annotated[str, Field(min_length=1, max_length=200)]]
    limits: Annotated[list[str], Field(min_length=1, max_length=50)]
    figures: Annotated[list[str], Field(max_length=50)] = Field(default_factory=list)


class DataSet(Part):
    """One file of calibration data."""

    name: str
    sha256: str
    rows: int
    wrong: int | float
