"""A chat model that says what a script tells it, with the scores that the script gives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.tool import tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from pydantic import Field, PrivateAttr

from guard.langchain.metadata import score_metadata
from guard.records import Sampling
from guard.scores import Score


def said(text: str, p_wrong: float | None, *calls: tuple[str, dict[str, Any]], error: str | None = None) -> AIMessage:
    """A scored answer; ``p_wrong`` None is a failure of scoring."""
    score = None if p_wrong is None else Score(p_wrong, True, 0.001)
    sampling = Sampling(temperature=0.0, seed=1)
    content = score_metadata(model="scripted", score=score, error=error, tokens=5, prompt_tokens=7, sampling=sampling)
    return AIMessage(
        content=text,
        tool_calls=[tool_call(name=name, args=args, id=f"call_{number}") for number, (name, args) in enumerate(calls)],
        response_metadata={"model_name": "scripted", "model_provider": "guard", "guard": content},
        usage_metadata={"input_tokens": 7, "output_tokens": 5, "total_tokens": 12},
    )


class ScriptedChat(BaseChatModel):
    """Gives the script's answers in turn, or what the function makes of the messages.

    Attributes:
        script: answers and errors to raise, in turn; or a function of the messages.
        seconds: how long an asynchronous answer takes.
    """

    script: Any = Field(repr=False)
    seconds: float = 0.0

    _asked: list[tuple[list[BaseMessage], dict[str, Any]]] = PrivateAttr(default_factory=list)
    _mutex: Any = PrivateAttr(default_factory=threading.Lock)

    @property
    def asked(self) -> list[tuple[list[BaseMessage], dict[str, Any]]]:
        """Messages and settings of each call, in order."""
        return self._asked

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Any:
        return self.bind(tools=[getattr(tool, "name", tool) for tool in tools], **kwargs)

    def _next(self, messages: list[BaseMessage], settings: dict[str, Any]) -> AIMessage:
        with self._mutex:
            turn = len(self._asked)
            self._asked.append((messages, settings))
        answer = self.script(messages) if callable(self.script) else self.script[turn]
        if isinstance(answer, Exception):
            raise answer
        return answer.model_copy(deep=True)

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._next(messages, kwargs))])

    async def _agenerate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        await asyncio.sleep(self.seconds)
        return self._generate(messages, stop, **kwargs)

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        answer = self._next(messages, kwargs)
        for piece in answer.text.split(" "):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece + " "))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        calls = [
            tool_call_chunk(name=call["name"], args=str(call["args"]).replace("'", '"'), id=call["id"], index=number)
            for number, call in enumerate(answer.tool_calls)
        ]
        last = AIMessageChunk(
            content="",
            tool_call_chunks=calls,
            response_metadata=answer.response_metadata,
            usage_metadata=answer.usage_metadata,
            chunk_position="last",
        )
        yield ChatGenerationChunk(message=last)
