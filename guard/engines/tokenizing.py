"""What every engine with a tokenizer of its own shares: prompts become tokens, formats, room, and text of answers.

An engine only says how to tokenize. Who chooses an answer's tokens is not said here: guard's decoding loop
(`guard.engines.base`), or that of an engine such as vLLM.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from guard.engines.asked import RequestEngine
from guard.engines.chat_template import check_options
from guard.engines.constraint import Grammars
from guard.engines.detokenizer import Detokenizer
from guard.engines.growing import AnswerReader
from guard.engines.request import Request
from guard.errors import InputError, PromptTooLongError
from guard.records import Prompt

#: Tokens before another one that its text can depend on: a character has four bytes at most.
_CONTEXT_TOKENS = 4


class TokenizingEngine(RequestEngine):
    """Engine that makes the tokens of its prompts itself, and text of its answers' tokens."""

    most_top_logprobs = 0

    # -- what an engine implements -------------------------------------------------------------

    @abstractmethod
    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, with the model's own chat template for messages."""

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of answer, without special tokens."""

    @abstractmethod
    def _detokenizer(self) -> Detokenizer:
        """Return a fresh detokenizer for one answer."""

    @abstractmethod
    def _is_end(self, token: int) -> bool:
        """Return whether a token ends the answer."""

    @abstractmethod
    def _end_token(self) -> int:
        """Return the token that ends an answer, for given completions."""

    # -- what an engine says where it knows ----------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template that messages go through; None where there is none."""
        return None

    def check_template_options(self, options: Mapping[str, Any]) -> None:
        """Raise InputError where the model's chat template does not read an option."""
        check_options(self.chat_template or "", options)

    def encode_answered(self, prompt: Prompt, answer: str) -> list[int]:
        """Token ids of a prompt and of a given answer to it, with the token that ends it."""
        tokens = self.encode(prompt)
        return [*tokens, *self._completed(answer, tokens)]

    def _token_id(self, text: str) -> int | None:
        """Id of the single token, special ones included, with exactly this text."""
        return None

    def _grammar_vocabulary(self) -> Any:
        """Return llguidance's view of the vocabulary (see `guard.engines.constraint.build_vocabulary`), for formats."""
        raise InputError(f"The engine '{self.model.engine}' cannot answer in a response format")

    def token_texts(self, tokens: Sequence[int]) -> list[str]:
        """Return the text that each token of an answer adds; empty within a character, which the last one gives."""
        reading = self._detokenizer()
        return [reading.push(token) for token in tokens]

    def alternative_text(self, before: Sequence[int], token: int) -> str:
        """Return the text that a token would add behind others; empty for one that ends an answer.

        Args:
            before: the tokens before it; the last of them are enough.
            token: that could come next.
        """
        if self._is_end(token):
            return ""
        reading = self._detokenizer()
        for each in before[-_CONTEXT_TOKENS:]:
            reading.push(each)
        return reading.push(token) or reading.flush()

    # -- how a request runs --------------------------------------------------------------------

    def _encode(self, request: Request) -> None:
        """Make the tokens in the caller's thread: a chat template may take its time."""
        request.interrupt.check()
        request.tokens = self.encode(request.prompt)
        self._check_room(request.tokens)
        room = self.model.context_tokens - len(request.tokens)
        request.forced = self._forced(request.completion, room, request.tokens)
        request.max_tokens = min(room, request.limits.max_tokens) if request.forced is None else len(request.forced)
        if request.forced is None and request.prompt.response_format is not None:
            request.constraint = self._grammars.constraint(request.prompt.response_format)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self._grammar_vocabulary)

    @cached_property
    def _reader(self) -> AnswerReader:
        return AnswerReader(self.chat_template or "", self._token_id, self._detokenizer, self._is_end)

    def _forced(self, completion: str | None, room: int, prompt: Sequence[int]) -> list[int] | None:
        """Return the tokens of a given completion with its end token; None without one.

        Where the prompt opens a thought, the thought is closed first, so that the completion counts as the answer.
        """
        if completion is None:
            return None
        forced = self._completed(completion, prompt)
        if len(forced) > room:
            raise PromptTooLongError(
                f"The completion has {len(forced)} tokens with its end",
                why=f"after the prompt, the context of {self.model.context_tokens} tokens has room for {room}",
                fix="Shorten the prompt or the answer, or build the engine with a larger context_tokens",
            )
        return forced

    def _completed(self, completion: str, prompt: Sequence[int]) -> list[int]:
        return [*self._reader.closing(prompt, self.encode_text), *self.encode_text(completion), self._end_token()]

    def _check_room(self, tokens: Sequence[int]) -> None:
        if not tokens:
            raise InputError("The prompt is empty", fix="Ask something")
        room = self.model.context_tokens
        if len(tokens) >= room:
            raise PromptTooLongError(
                f"The prompt has {len(tokens)} tokens, the context holds {room}",
                fix="Shorten the prompt, or build the engine with a larger context_tokens",
            )
