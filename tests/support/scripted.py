"""An engine whose answers, confidence and layers a test decides, and a scorer that reads that confidence."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from guard.engines.base import BaseEngine
from guard.engines.batch import Feed, PassRow, Start
from guard.engines.constraint import build_vocabulary
from guard.engines.detokenizer import BytesDetokenizer, Detokenizer
from guard.records import CapturePoint, Floats, ModelInfo, Prompt
from guard.scoring.provenance import Binding, Prompting
from guard.scoring.scorer import Scorer
from guard.scoring.scorer_file import (
    FORMAT_VERSION,
    Artefact,
    Calibration,
    EarlyModel,
    EarlyStage,
    Linear,
    LinearProbe,
    Model,
    Schema,
    SpanModel,
    Trees,
)
from guard.scoring.signature import ACTIVATION_TOKENS, AGGREGATES, GROUPS, FeatureSchema

END = 256
LAYERS, WIDTH = 3, 8

#: The logit over zeros of a character that the engine is unsure of: a log-probability of about -2.
UNSURE_LOGIT = 4.0

#: Log-odds of being wrong = INTERCEPT + SLOPE x mean log-probability, in `confidence_scorer`.
INTERCEPT, SLOPE = -4.0, -4.0

Script = Callable[[Prompt, int], tuple[str, float]]


def scripted_model(**changes: object) -> ModelInfo:
    fields = {
        "name": "scripted",
        "engine": "scripted",
        "architecture": "none",
        "quantization": "none",
        "weights_sha256": "a" * 64,
        "tokenizer_sha256": "b" * 64,
        "chat_template_sha256": "c" * 64,
        "layers": LAYERS,
        "width": WIDTH,
        "context_tokens": 400,
    }
    return ModelInfo(**{**fields, **changes})  # type: ignore[arg-type]


class ByteEngine(BaseEngine):
    """An engine whose tokens 0 to 255 are bytes; 256 ends an answer."""

    def encode(self, prompt: Prompt) -> list[int]:
        return [*prompt.question.encode()]

    def encode_text(self, text: str) -> list[int]:
        return [*text.encode()]

    def _detokenizer(self) -> Detokenizer:
        return BytesDetokenizer(lambda token: bytes([token]))

    def _is_end(self, token: int) -> bool:
        return token == END

    def _grammar_vocabulary(self) -> Any:
        return build_vocabulary([*(bytes([byte]) for byte in range(END)), b""], [END], self.encode_text)

    def _end_token(self) -> int:
        return END


class AnsweringEngine(ByteEngine):
    """Answers by a script: from the prompt and the number of the request to a text and its p_wrong.

    ``unsure`` are parts of answers in whose characters it has little confidence. ``on_feed`` runs before each pass with
    its number within the request, ``activations_at`` gives each pass's layers; tests fail and wait there.
    """

    capture_point: CapturePoint = "mlp"

    def __init__(self, script: Script, *, model: ModelInfo | None = None) -> None:
        super().__init__()
        self.script = script
        self.asked: list[Prompt] = []
        self.closed = 0
        self.unsure: tuple[str, ...] = ()
        self.on_feed: Callable[[int], None] = lambda number: None
        self.activations_at: Callable[[Prompt, int], Floats] = layers_of
        self._info = model or scripted_model()
        self._answers: dict[int, _ScriptedAnswer] = {}

    @property
    def model(self) -> ModelInfo:
        return self._info

    @property
    def batch_tokens(self) -> int:
        return 10**6

    def _begin(self, start: Start) -> int:
        assert len(self._answers) < self.slots, "too many requests at once"
        self._answers[start.slot] = _ScriptedAnswer(self)
        return 0

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        return [row for feed in feeds if (row := self._answers[feed.slot].feed(feed))]

    def _release(self, slot: int) -> None:
        del self._answers[slot]

    def close(self) -> None:
        self.closed += 1

    def _free(self) -> None:
        """Nothing was loaded."""


class _ScriptedAnswer:
    def __init__(self, engine: AnsweringEngine) -> None:
        self.engine, self.passes = engine, 0
        self.read: list[int] = []

    def feed(self, feed: Feed) -> PassRow | None:
        engine = self.engine
        self.read += feed.tokens
        if not feed.chooses:
            return None
        if self.passes == 0:
            self.prompt = Prompt.raw(bytes(self.read).decode())
            engine.asked.append(self.prompt)
            text, p_wrong = engine.script(self.prompt, len(engine.asked) - 1)
            self.tokens, self.logit = [*text.encode(), END], logit_for(p_wrong)
            self.unsure = unsure_bytes(text, engine.unsure)
        engine.on_feed(self.passes)
        self.passes += 1
        return self

    def logits(self) -> Floats:
        logits = np.zeros(END + 1, np.float32)
        at = min(self.passes - 1, len(self.tokens) - 1)
        logits[self.tokens[at]] = UNSURE_LOGIT if at in self.unsure else self.logit
        return logits

    def activations(self) -> Floats:
        return self.engine.activations_at(self.prompt, self.passes - 1)


def unsure_bytes(text: str, parts: Sequence[str]) -> set[int]:
    """The bytes of a text that belong to one of these parts of it."""
    places = [(len(text[: text.index(part)].encode()), len(part.encode())) for part in parts if part in text]
    return {at for start, length in places for at in range(start, start + length)}


def layers_of(prompt: Prompt, number: int) -> Floats:
    """Activations of one pass, the same for the same prompt."""
    seed = hashlib.sha256(f"{prompt.question}\0{number}".encode()).digest()
    return np.random.default_rng([*seed]).normal(size=(LAYERS, WIDTH)).astype(np.float32)


def logit_for(p_wrong: float) -> float:
    """The logit over zeros whose log-probability makes `confidence_scorer` say p_wrong."""
    logprob = (math.log(p_wrong / (1 - p_wrong)) - INTERCEPT) / SLOPE
    assert -math.log(END + 1) < logprob < 0, f"p_wrong {p_wrong} is out of reach"
    return math.log(END * math.exp(logprob) / -math.expm1(logprob))


def tiny_artefact(
    model: ModelInfo,
    capture_point: CapturePoint = "mlp",
    *,
    trees: Trees | None = None,
    ilis: Model | None = None,
    groups: tuple[str, ...] = GROUPS,
    aggregates: tuple[str, ...] = AGGREGATES,
    temperatures: tuple[float, ...] = (1.0,),
) -> Artefact:
    """A made artefact: log-odds from the mean log-probability, and the given trees; ILIS where a model is given."""
    schema = FeatureSchema(layers=model.layers, temperatures=temperatures, aggregates=aggregates, groups=groups)
    start = Linear(features=[0], mean=[0.0], scale=[1.0], coefficients=[SLOPE], intercept=INTERCEPT)
    calibration = Calibration(slope=1.0, intercept=0.0)
    return Artefact(
        format="guard-scorer",
        format_version=FORMAT_VERSION,
        binding=Binding.from_model(model, capture_point),
        schema=Schema.from_schema(schema),
        feature_names=list(schema.names),
        prompting=Prompting(system="Answer with as few words as possible. No explanation.", max_tokens=16),
        data=[],
        split_sizes={},
        seed=0,
        settings={},
        versions={},
        metrics={},
        scores={
            "guard": Model(base=start, probe=None, trees=trees, calibration=calibration),
            "log-probabilities": Model(base=start, probe=None, trees=None, calibration=calibration),
            **({"ilis": ilis} if ilis else {}),
        },
        ood_detector=None,
    )


def span_model(**changes: Any) -> SpanModel:
    """A model by which a span is wrong whose claim has an unsure character, and right else."""
    fields = {
        "rules": 1,
        "linear": Linear(
            features=[0, 1, 2], mean=[0.0] * 3, scale=[1.0] * 3, coefficients=[3.0, 0.0, 0.0], intercept=0.0
        ),
        "calibration": Calibration(slope=1.0, intercept=0.0),
        **{"answers": 10, "spans": 60, "wrong": 20, "max_tokens": 256, "data": [], "metrics": {}},
    }
    return SpanModel(**{**fields, **changes})


def with_spans(scorer: Scorer) -> Scorer:
    """The scorer with that model of spans."""
    return Scorer(scorer.artefact.model_copy(update={"spans": span_model()}))


def with_early(scorer: Scorer, *tokens: int, shift: float = 0.0) -> Scorer:
    """The scorer with stages after given numbers of tokens, where its log-odds count as they are, or shifted."""
    calibration = Calibration(slope=1.0, intercept=shift)
    calibrations = dict.fromkeys(scorer.artefact.scores, calibration)
    stages = [
        EarlyStage(tokens=each, calibrations=calibrations, answers=60, wrong=30, metrics={})
        for each in tokens or (2, 4)
    ]
    early = EarlyModel(stages=stages, answers=60, max_tokens=16, data=[])
    return Scorer(scorer.artefact.model_copy(update={"early": early}))


def confidence_scorer(model: ModelInfo | None = None) -> Scorer:
    """The scorer that reads a script's p_wrong back; its own score reads the layers, without any weight."""
    artefact = tiny_artefact(model or scripted_model())
    nothing = np.zeros((len(ACTIVATION_TOKENS), artefact.binding.layers, artefact.binding.width), np.float32)
    own = artefact.scores["guard"].model_copy(update={"probe": LinearProbe.from_array(nothing)})
    return Scorer(artefact.model_copy(update={"scores": {**artefact.scores, "guard": own}}))


def base_scorer(model: ModelInfo | None = None, *, max_tokens: int = 16) -> Scorer:
    """The same of a base model, which was calibrated on questions behind solved examples."""
    prompting = Prompting(system="", max_tokens=max_tokens, completion=True)
    return Scorer(confidence_scorer(model).artefact.model_copy(update={"prompting": prompting}))


def base_model() -> ModelInfo:
    """A scripted model without a chat template, with room for the solved examples."""
    return scripted_model(chat_template_sha256=hashlib.sha256(b"").hexdigest(), context_tokens=2000)
