"""How a chat model answers: by an engine and a scorer, or by a guard."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGenerationChunk

from guard.engines.asked import RequestEngine
from guard.engines.callback_errors import is_from_signal_handler
from guard.engines.protocols import Engine
from guard.engines.witness import accounted
from guard.langchain.attempts.attempt_settings import ATTEMPT
from guard.langchain.chat.answer_messages import (
    ChatRequest,
    content_chunks,
    last_chunk,
    parse_answer,
    text_chunk,
    usage,
)
from guard.langchain.metadata import KEY, decision_metadata, score_metadata
from guard.policy.cuts import released_spans
from guard.records import Generation, Outcome, Signals, Signature
from guard.runtime.call_state import OWN_ENGINE, describe_error
from guard.runtime.sources import generation_step, score_generation
from guard.runtime.steps import END, Pieces, Step, Steps, Stream
from guard.scores import Score
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

if TYPE_CHECKING:
    from guard.runtime.guard import Guard


@dataclass(frozen=True, slots=True)
class ChatRuntime:
    """The loaded parts of a chat model, shared by its copies.

    Attributes:
        engine: generates the answers.
        scorer: scorer for the engine's model.
        guard: guard of a model that decides by its own policy, or None.
    """

    engine: Engine
    scorer: Scorer
    guard: Guard | None

    @property
    def decides(self) -> bool:
        """Whether a policy of its own decides what leaves the model; a shadow policy only records."""
        return self.guard is not None and self.guard.policy.mode == "enforce"

    def answer(self, request: ChatRequest) -> Steps[AIMessage]:
        """Generate and score an answer."""
        observer = self._observer()
        generation = yield generation_step(
            self.engine, request.prompt, sampling=request.sampling, limits=request.limits, observer=observer
        )
        return self._message(request, generation, observer)

    def stream(self, request: ChatRequest, emit: Callable[[ChatGenerationChunk], Stream]) -> Stream:
        """Emit an answer as chunks; the last ones have the tool calls, if there are any, and the score.

        Args:
            request: what is asked.
            emit: emits one chunk.
        """
        observer = self._observer()
        options = {**self._stream_options(request, observer), "observer": observer}
        pieces = Pieces(
            partial(self.engine.stream, request.prompt, **options),
            partial(self.engine.astream, request.prompt, **options),
        )
        yield pieces.open
        try:
            while (chunk := (yield pieces.next)) is not END:
                if chunk.generation is not None:
                    for last in self._last_chunks(request, chunk.generation, observer):
                        yield from emit(last)
                elif not request.tools:
                    yield from emit(text_chunk(chunk.text))
        finally:
            yield pieces.close

    def decided(self, request: ChatRequest, route: str | None) -> Steps[AIMessage]:
        """Return the message that the guard's policy decides on."""
        guard, scorer = self._recording_guard()
        options: dict[str, Any] = {"route": route, "sampling": request.sampling, "limits": request.limits}
        with nullcontext() if self.decides else accounted():
            outcome = yield Step(
                partial(guard.ask, request.prompt, **options), partial(guard.aask, request.prompt, **options)
            )
        return self._decided_message(request, outcome, scorer.signature)

    # -- parts of an answer --------------------------------------------------------------------

    def _observer(self) -> SignatureObserver:
        return self.scorer.observer()

    def _stream_options(self, request: ChatRequest, observer: SignatureObserver) -> dict[str, Any]:
        """Return the options of a stream, with a monitor if a guarded chain around the model streams live.

        Engines that are no `RequestEngine` take no ``on_token``; their answers are scored at the end only.
        """
        options: dict[str, Any] = {"sampling": request.sampling, "limits": request.limits}
        attempt = ATTEMPT.get()
        if attempt is None or attempt.monitor is None or not isinstance(self.engine, RequestEngine):
            return options
        return {**options, "on_token": attempt.monitor.for_answer(self.scorer, observer)}

    def _recording_guard(self) -> tuple[Guard, _RecordingScorer]:
        """Return the guard with a scorer that keeps the last signature, for one call."""
        assert self.guard is not None
        scorer = _RecordingScorer(self.scorer)
        return self.guard.with_scorer(scorer), scorer

    def _message(self, request: ChatRequest, generation: Generation, observer: SignatureObserver) -> AIMessage:
        content = parse_answer(request, generation.text, generation.reasoning)
        return AIMessage(
            content.pop("content"),
            **content,
            usage_metadata=usage(generation.prompt_tokens, generation.completion_tokens),
            response_metadata=self._metadata(request, generation, observer),
        )

    def _last_chunks(
        self, request: ChatRequest, generation: Generation, observer: SignatureObserver
    ) -> Iterator[ChatGenerationChunk]:
        """Yield what follows the text: the answer of a model with tools, which is parsed as a whole, and the end."""
        parsed = parse_answer(request, generation.text, generation.reasoning)
        # Without tools the text has already been streamed.
        yield from content_chunks(parsed if request.tools else {**parsed, "content": ""})
        tokens = usage(generation.prompt_tokens, generation.completion_tokens)
        yield last_chunk(tokens, self._metadata(request, generation, observer))

    def _metadata(self, request: ChatRequest, generation: Generation, observer: SignatureObserver) -> dict[str, Any]:
        score, error = self._score(request, generation, observer)
        signature = None if generation.capture_error or error else observer.signature()
        scored = score_metadata(
            model=self.engine.model.name,
            score=score,
            error=error,
            tokens=generation.completion_tokens,
            prompt_tokens=generation.prompt_tokens,
            signature=signature,
            sampling=generation.sampling,
            finish_reason=generation.finish_reason,
        )
        return {**self._model_metadata(), "finish_reason": generation.finish_reason, KEY: scored}

    def _score(
        self, request: ChatRequest, generation: Generation, observer: SignatureObserver
    ) -> tuple[Score | None, str | None]:
        """Return the score or the reason why there is none; a scoring failure never loses the answer."""
        try:
            return score_generation(generation, observer, self.scorer, request.prompt), None
        except Exception as error:  # fail closed: there is no score
            if is_from_signal_handler(error):
                raise
            return None, describe_error(error)

    def _model_metadata(self) -> dict[str, Any]:
        return {"model_name": self.engine.model.name, "model_provider": "guard"}

    def _decided_message(self, request: ChatRequest, outcome: Outcome, signature: Signature | None) -> AIMessage:
        assert self.guard is not None
        last, attempts = outcome.attempts[-1], outcome.attempts
        own = last.source == OWN_ENGINE
        scored = score_metadata(
            model=self.engine.model.name if own else last.source,
            score=last.score and replace(last.score, spans=released_spans(outcome)),
            error=None if last.score else last.error,
            tokens=last.completion_tokens,
            prompt_tokens=last.prompt_tokens,
            signature=signature if own else None,
            sampling=last.sampling,
            finish_reason=last.finish_reason,
            decision=decision_metadata(
                outcome, decision_id=outcome.decision_id, route=outcome.route, policy=self.guard.policy.name
            ),
        )
        text = outcome.answer or ""
        # A policy's own text calls no tools; only a model's answer is parsed.
        is_models = outcome.answer == last.answer
        content = parse_answer(request, text, outcome.reasoning) if is_models else {"content": text}
        return AIMessage(
            content.pop("content"),
            **content,
            usage_metadata=usage(
                sum(attempt.prompt_tokens for attempt in attempts),
                sum(attempt.completion_tokens for attempt in attempts),
            ),
            response_metadata={**self._model_metadata(), "finish_reason": last.finish_reason, KEY: scored},
        )


class _RecordingScorer(Scorer):
    """A scorer for one call that delegates to another and keeps the last signature; outcomes have only scores."""

    def __init__(self, scorer: Scorer) -> None:
        self.artefact, self.calibrated, self.sha256 = scorer.artefact, scorer.calibrated, scorer.sha256
        self.signature: Signature | None = None
        self._scorer = scorer

    def observer(self) -> SignatureObserver:
        return self._scorer.observer()

    def score(self, signals: Signals) -> Score:
        self.signature = signals.signature
        return self._scorer.score(signals)
