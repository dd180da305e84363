"""What one attempt of a guarded call tells the steps that run in it.

A retry asks the same chain again, differently. The chain is not ours to change, so the difference
travels beside it, in a context variable: threads and tasks that LangChain starts for the attempt
inherit it, other calls never see it, and nothing of it shows in the caller's config, tags or metadata.
"""

from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from guard.records import Limits, Prompt, Sampling

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory

    from guard.langchain.chat.stream_monitor import Watch


class Memory:
    """Results of steps that must run once in a guarded call, whatever its attempts. Thread-safe."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._entries: dict[str, list[tuple[Any, Future[Any]]]] = {}

    def claim(self, step: str, key: Any) -> tuple[Future[Any], bool]:
        """The result of a step for an input, and whether the caller is the one who has to make it."""
        with self._mutex:
            entries = self._entries.setdefault(step, [])
            for known, result in entries:
                if _same(known, key):
                    return result, False
            result = Future()
            entries.append((_copied(key), result))
            return result, True

    def forget(self, step: str, result: Future[Any]) -> None:
        """Let a step that failed run again."""
        with self._mutex:
            self._entries[step] = [entry for entry in self._entries[step] if entry[1] is not result]


def _copied(key: Any) -> Any:
    """A copy: the chain may change its input after the step has read it."""
    try:
        return copy.deepcopy(key)
    except Exception:  # noqa: BLE001 - a lock or a client in it: then the thing itself stands for it
        return key


def _same(known: Any, key: Any) -> bool:
    try:
        return bool(known == key)
    except Exception:  # noqa: BLE001 - arrays and the like, which are not simply equal or unequal
        return known is key


@dataclass(frozen=True, slots=True)
class AttemptSettings:
    """How the models in one attempt are to answer.

    Attributes:
        sampling: in place of the model's own; None leaves that as it is.
        instruction: added to the prompt.
        max_tokens: what is left of the budget for one answer; None is no limit.
        token_limit: of one answer, in place of the model's own; None leaves that as it is.
        deadline: when the budget's seconds are over, on the clock of `time.monotonic`; None is never.
        memory: of the steps that run once, shared by all attempts of the guarded call.
        history: of the conversation around the guarded call, if there is one.
        watch: looks at a streamed answer as it grows, where the policy streams live.
        prompts: what scored models read in the end (system message, tools, instructions), by what they were asked.
    """

    sampling: Sampling | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    token_limit: int | None = None
    deadline: float | None = None
    memory: Memory = field(default_factory=Memory)
    history: BaseChatMessageHistory | None = None
    watch: Watch | None = None
    prompts: dict[str, Prompt] = field(default_factory=dict)

    def prompt(self, own: Prompt) -> Prompt:
        """The prompt to answer in place of a model's own."""
        return own.with_instruction(self.instruction) if self.instruction else own

    def limits(self, own: Limits) -> Limits:
        """The limits of one answer: a model's own, or those of this attempt, within the budget."""
        tokens = self.token_limit or own.max_tokens
        tokens = tokens if self.max_tokens is None else max(1, min(tokens, self.max_tokens))
        if self.deadline is None:
            return replace(own, max_tokens=tokens)
        left = max(0.001, self.deadline - time.monotonic())
        return replace(own, max_tokens=tokens, timeout_s=min(left, own.timeout_s or left))


#: The attempt that the running code is part of; None outside of guarded calls.
ATTEMPT: ContextVar[AttemptSettings | None] = ContextVar("guard_attempt", default=None)
