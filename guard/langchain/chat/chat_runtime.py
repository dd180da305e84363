"""How a chat model's answer comes about: an engine and a scorer, or a guard, and a message in the end."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from guard.engines.protocols import Engine
from guard.errors import GuardError, error_text
from guard.langchain.attempts.attempt_settings import ATTEMPT
from guard.langchain.attempts.complete_json import unmendable
from guard.langchain.chat.tool_calls import HERMES, ToolFormat, parse_tool_calls
from guard.langchain.messages import REASONING
from guard.langchain.metadata import KEY, decision_metadata, score_metadata
from guard.records import Generation, Limits, Outcome, Prompt, Sampling, Score, Signals, Signature
from guard.runtime.call_state import OWN_ENGINE
from guard.runtime.sources import score_of
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

if TYPE_CHECKING:
    from guard.runtime.guard import Guard


@dataclass(frozen=True, slots=True)
class Asked:
    """One call, ready for an engine.

    Attributes:
        prompt: with whatever the call adds to it.
        sampling: how tokens are chosen.
        limits: of the answer.
        tools: names of the tools that the model may call.
        form: how it writes its calls.
        demanded: whether it is told to make one.
    """

    prompt: Prompt
    sampling: Sampling
    limits: Limits
    tools: tuple[str, ...]
    form: ToolFormat = HERMES
    demanded: bool = False


@dataclass(frozen=True, slots=True)
class Runtime:
    """What a chat model answers with; shared by its copies.

    Attributes:
        engine: answers.
        scorer: bound to the engine's model.
        guard: where the model decides by a policy of its own.
    """

    engine: Engine
    scorer: Scorer
    guard: Guard | None

    def answer(self, asked: Asked) -> AIMessage:
        """Generate and score."""
        observer = self._observer()
        generation = self.engine.generate(asked.prompt, sampling=asked.sampling, limits=asked.limits, observer=observer)
        return self._message(asked, generation, observer)

    async def aanswer(self, asked: Asked) -> AIMessage:
        """`answer` without blocking the event loop."""
        observer = self._observer()
        generation = await self.engine.agenerate(
            asked.prompt, sampling=asked.sampling, limits=asked.limits, observer=observer
        )
        return self._message(asked, generation, observer)

    def stream(self, asked: Asked) -> Iterator[ChatGenerationChunk]:
        """Generate piece by piece; the last chunk has the score, and the tool calls if there are any."""
        observer = self._observer()
        pieces = self._stream_engine(observer).stream(
            asked.prompt, sampling=asked.sampling, limits=asked.limits, observer=observer
        )
        with closing(pieces) as chunks:  # type: ignore[type-var] # every engine's stream is a generator
            for chunk in chunks:
                if chunk.generation is not None:
                    yield from self._last_chunks(asked, chunk.generation, observer)
                elif not asked.tools:
                    yield _text_chunk(chunk.text)

    async def astream(self, asked: Asked) -> AsyncGenerator[ChatGenerationChunk, None]:
        """`stream` without blocking the event loop."""
        observer = self._observer()
        pieces = self._stream_engine(observer).astream(
            asked.prompt, sampling=asked.sampling, limits=asked.limits, observer=observer
        )
        async with aclosing(pieces) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                if chunk.generation is not None:
                    for last in self._last_chunks(asked, chunk.generation, observer):
                        yield last
                elif not asked.tools:
                    yield _text_chunk(chunk.text)

    def decided(self, asked: Asked, route: str | None) -> AIMessage:
        """Let the guard answer: its policy decides, and the message is what that gives."""
        guard, keeper = self._keeping_signature()
        outcome = guard.ask(asked.prompt, route=route, sampling=asked.sampling, limits=asked.limits)
        return self._decided_message(asked, outcome, keeper.signature)

    async def adecided(self, asked: Asked, route: str | None) -> AIMessage:
        """`decided` without blocking the event loop."""
        guard, keeper = self._keeping_signature()
        outcome = await guard.aask(asked.prompt, route=route, sampling=asked.sampling, limits=asked.limits)
        return self._decided_message(asked, outcome, keeper.signature)

    # -- parts of an answer --------------------------------------------------------------------

    def _observer(self) -> SignatureObserver:
        return SignatureObserver(temperatures=self.scorer.schema.temperatures)

    def _stream_engine(self, observer: SignatureObserver) -> Engine:
        """The engine; watched where a guarded chain around the model streams live."""
        attempt = ATTEMPT.get()
        if attempt is None or attempt.watch is None:
            return self.engine
        return attempt.watch.over(self.engine, self.scorer, observer)

    def _keeping_signature(self) -> tuple[Guard, _SignatureKeeper]:
        """The guard, with a scorer of this one call that remembers the signature it has read."""
        assert self.guard is not None
        keeper = _SignatureKeeper(self.scorer)
        return self.guard.with_scorer(keeper), keeper

    def _message(self, asked: Asked, generation: Generation, observer: SignatureObserver) -> AIMessage:
        content = _parsed(asked, generation.text, generation.reasoning)
        return AIMessage(
            content.pop("content"),
            **content,
            usage_metadata=_usage(generation),
            response_metadata=self._metadata(asked, generation, observer),
        )

    def _last_chunks(
        self, asked: Asked, generation: Generation, observer: SignatureObserver
    ) -> Iterator[ChatGenerationChunk]:
        """What follows the text: the answer of a model with tools, which is read as a whole, and the end.

        The metadata goes on the last chunk only: LangChain adds up what is on several.
        """
        parsed = _parsed(asked, generation.text, generation.reasoning)
        # Without tools the text has been shown as it came.
        yield from _content_chunks(parsed if asked.tools else {**parsed, "content": ""})
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content="",
                usage_metadata=_usage(generation),
                response_metadata=self._metadata(asked, generation, observer),
                chunk_position="last",
            )
        )

    def _metadata(self, asked: Asked, generation: Generation, observer: SignatureObserver) -> dict[str, Any]:
        score, error = self._score(asked, generation, observer)
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
        return {**self._named(), "finish_reason": generation.finish_reason, KEY: scored}

    def _score(
        self, asked: Asked, generation: Generation, observer: SignatureObserver
    ) -> tuple[Score | None, str | None]:
        """A failure to score is data for a policy, never the loss of the answer."""
        try:
            return score_of(generation, observer, self.scorer, asked.prompt), None
        except GuardError as error:
            return None, str(error)
        except Exception as error:  # noqa: BLE001 - fail closed: whatever it was, there is no score
            return None, f"{type(error).__name__}: {error_text(error)}"

    def _named(self) -> dict[str, Any]:
        return {"model_name": self.engine.model.name, "model_provider": "guard"}

    def _decided_message(self, asked: Asked, outcome: Outcome, signature: Signature | None) -> AIMessage:
        last = outcome.attempts[-1]
        own = last.source == OWN_ENGINE
        scored = score_metadata(
            model=self.engine.model.name if own else last.source,
            score=last.score,
            error=None if last.score else last.error,
            tokens=last.completion_tokens,
            prompt_tokens=last.prompt_tokens,
            signature=signature if own else None,
            sampling=last.sampling,
            finish_reason=last.finish_reason,
            decision=decision_metadata(
                outcome, decision_id=outcome.decision_id, route=outcome.route, policy=self._policy_name()
            ),
        )
        used = outcome.attempts
        # The policy's own texts call no tools; only what a model has said is read.
        said = outcome.answer == last.answer
        content = _parsed(asked, outcome.answer or "", outcome.reasoning) if said else {"content": outcome.answer or ""}
        return AIMessage(
            content.pop("content"),
            **content,
            usage_metadata=_tokens(
                sum(attempt.prompt_tokens for attempt in used), sum(attempt.completion_tokens for attempt in used)
            ),
            response_metadata={**self._named(), "finish_reason": last.finish_reason, KEY: scored},
        )

    def _policy_name(self) -> str:
        assert self.guard is not None
        return self.guard.policy.name


class _SignatureKeeper(Scorer):
    """A scorer for one call, which keeps the last signature: an outcome has scores only."""

    def __init__(self, scorer: Scorer) -> None:
        self.__dict__.update(scorer.__dict__)
        self.signature: Signature | None = None

    def score(self, signals: Signals) -> Score:
        self.signature = signals.signature
        return super().score(signals)


def whole_chunks(message: AIMessage) -> Iterator[ChatGenerationChunk]:
    """A whole message as a stream: what it says, and its end."""
    yield from _content_chunks(
        {
            "content": message.content,
            "tool_calls": message.tool_calls,
            "invalid_tool_calls": message.invalid_tool_calls,
            "additional_kwargs": message.additional_kwargs,
        }
    )
    yield ChatGenerationChunk(
        message=AIMessageChunk(
            content="",
            usage_metadata=message.usage_metadata,
            response_metadata=message.response_metadata,
            chunk_position="last",
        )
    )


def _parsed(asked: Asked, text: str, reasoning: str | None) -> dict[str, Any]:
    """The parts of a message that an answer's text stands for; the thought before it is kept apart."""
    thought = {REASONING: reasoning} if reasoning else {}
    if not asked.tools:
        return {"content": text, "additional_kwargs": thought}
    answer = parse_tool_calls(text, asked.tools, asked.form, tools=asked.prompt.tools, demanded=asked.demanded)
    found = bool(answer.calls or answer.invalid)
    return {
        "content": answer.text,
        "tool_calls": list(answer.calls),
        "invalid_tool_calls": list(answer.invalid),
        "additional_kwargs": {**thought, **({"raw_text": text} if found else {})},
    }


def _text_chunk(text: str) -> ChatGenerationChunk:
    return ChatGenerationChunk(message=AIMessageChunk(content=text))


def _content_chunks(content: dict[str, Any]) -> Iterator[ChatGenerationChunk]:
    invalid = ({**call, "args": unmendable(call["args"])} for call in content.get("invalid_tool_calls", ()))
    calls = [*content.get("tool_calls", ()), *invalid]
    chunks = [
        tool_call_chunk(
            name=call["name"],
            args=json.dumps(call["args"], ensure_ascii=False) if isinstance(call["args"], dict) else call["args"],
            id=call["id"],
            index=index,
        )
        for index, call in enumerate(calls)
    ]
    if content["content"] or chunks or content.get("additional_kwargs"):
        yield ChatGenerationChunk(
            message=AIMessageChunk(
                content=content["content"],
                tool_call_chunks=chunks,
                additional_kwargs=content.get("additional_kwargs", {}),
            )
        )


def _usage(generation: Generation) -> UsageMetadata:
    return _tokens(generation.prompt_tokens, generation.completion_tokens)


def _tokens(prompt: int, completion: int) -> UsageMetadata:
    return UsageMetadata(input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion)
