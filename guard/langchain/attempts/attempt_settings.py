"""Settings that one attempt of a guarded call passes to the steps that run in it.

A retry runs the same chain with other settings. The settings travel beside the chain, in a context variable: threads
and tasks that LangChain starts for the attempt inherit it, other calls never see it, and the caller's config, tags and
metadata stay unchanged.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from guard.langchain.attempts.once_cache import OnceCache
from guard.records import Limits, Prompt, Sampling

if TYPE_CHECKING:
    from langchain_core.chat_history import BaseChatMessageHistory

    from guard.runtime.stream_monitor import StreamMonitor


@dataclass(frozen=True, slots=True)
class AttemptSettings:
    """How the models in one attempt answer.

    Attributes:
        sampling: replaces the model's own; None keeps it.
        instruction: appended to the prompt.
        max_tokens: token budget that is left for one answer; None is no limit.
        token_limit: replaces the model's own token limit of one answer where that is lower; None keeps it.
        deadline: end of the budget's seconds on the clock of `time.monotonic`; None is never.
        once_cache: results of steps that run once, shared by all attempts of the guarded call.
        history: conversation history around the guarded call, if there is one.
        monitor: scores a streamed answer while it grows; set where the policy streams live.
        prompts: prompts as scored models read them (system message, tools, instructions), by `prompt_text` of the call.
    """

    sampling: Sampling | None = None
    instruction: str | None = None
    max_tokens: int | None = None
    token_limit: int | None = None
    deadline: float | None = None
    once_cache: OnceCache = field(default_factory=OnceCache)
    history: BaseChatMessageHistory | None = None
    monitor: StreamMonitor | None = None
    prompts: dict[str, Prompt] = field(default_factory=dict)

    def prompt(self, own: Prompt) -> Prompt:
        """Return a model's own prompt with the attempt's instruction."""
        return own.with_instruction(self.instruction) if self.instruction else own

    def limits(self, own: Limits) -> Limits:
        """Return the limits of one answer: the higher of the attempt's and the model's own, within the budget."""
        tokens = max(self.token_limit or 0, own.max_tokens)
        tokens = tokens if self.max_tokens is None else max(1, min(tokens, self.max_tokens))
        if self.deadline is None:
            return replace(own, max_tokens=tokens)
        left = max(0.001, self.deadline - time.monotonic())
        return replace(own, max_tokens=tokens, timeout_s=min(left, own.timeout_s or left))


#: The attempt that the running code is part of; None outside guarded calls.
ATTEMPT: ContextVar[AttemptSettings | None] = ContextVar("guard_attempt", default=None)
