"""Asks the model that a scorer was fitted on, and the one that it moves to: answers of the old one, read by both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from guard.calibration.same_tokens import ToRead, check_same_tokens, read_tokens
from guard.data.prompts import fitted_prompt
from guard.data.questions import Question
from guard.engines.asked import RequestEngine
from guard.errors import CaptureError, InputError, ScorerMismatchError
from guard.records import Signals
from guard.runtime.base_models import fitted_limits
from guard.runtime.sources import find_capture_point
from guard.scoring.provenance import Binding
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

#: Fields of a binding that may differ between precisions and engines.
_MAY_DIFFER = frozenset({"engine", "quantization", "weights_sha256"})

#: Loads a model; the caller closes it.
ModelLoader = Callable[[], RequestEngine]


@dataclass(frozen=True, slots=True, eq=False)
class BothModels:
    """Signals of the old model's answers in both models, and of the new model's own answers, with their texts."""

    binding: Binding
    old: Sequence[Signals]
    new: Sequence[Signals]
    own: Sequence[tuple[str, Signals]]


def ask_both(
    scorer: Scorer, questions: Mapping[str, Question], own: Sequence[Question], *, old: ModelLoader, new: ModelLoader
) -> BothModels:
    """Ask both models; what cannot move is refused before the old one answers anything.

    One model is loaded at a time, so the new one is loaded twice.

    Args:
        scorer: was fitted on the old model.
        questions: by their names; the old model answers them, and both read the answers.
        own: questions that the new model answers itself.
        old, new: load the two models.

    Raises:
        ScorerMismatchError: the scorer was not fitted on the old model, the models differ in more than precision or
            engine, or their engines read a row as different tokens.
        InputError: the scorer is bound to the new model already.
        CaptureError: the layers of an answer were not recorded.
    """
    prompts: ToRead = {name: (fitted_prompt(each, scorer.artefact.prompting), None) for name, each in questions.items()}
    with new() as engine:
        across = _new_binding(scorer, engine).engine != scorer.artefact.binding.engine
        tokens = read_tokens(engine, prompts) if across else {}
    with old() as engine:
        scorer.for_model(engine.model, find_capture_point(engine))
        if across:
            check_same_tokens(read_tokens(engine, prompts), tokens)
        answers = {name: _ask(engine, scorer, each) for name, each in questions.items()}
        read: ToRead = {name: (prompts[name][0], text) for name, (text, _) in answers.items()}
        tokens = read_tokens(engine, read) if across else {}
    with new() as engine:
        binding = _new_binding(scorer, engine)
        if across:
            check_same_tokens(tokens, read_tokens(engine, read))
        signals = [_ask(engine, scorer, each, answers[name][0])[1] for name, each in questions.items()]
        answered = [_ask(engine, scorer, each) for each in own]
    return BothModels(binding, [each for _, each in answers.values()], signals, answered)


def _new_binding(scorer: Scorer, engine: RequestEngine) -> Binding:
    """Return the binding of the new model, which differs from the scorer's in precision or engine only.

    Between engines the hash of the tokenizer may differ, and the tokens themselves are compared.
    """
    fitted, given = scorer.artefact.binding, Binding.from_model(engine.model, find_capture_point(engine))
    differing = [name for name in Binding.model_fields if getattr(fitted, name) != getattr(given, name)]
    may = _MAY_DIFFER | {"tokenizer_sha256"} if "engine" in differing else _MAY_DIFFER
    if more := [name for name in differing if name not in may]:
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
