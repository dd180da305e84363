"""A Hugging Face tokenizer as guard uses it: contents are plain text, and only the chat template writes control tokens.

`HubTokenEngine` is what engines over such a tokenizer share, whoever runs the model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

from guard.engines import tokenizer_identity
from guard.engines.chat_template import after_answer, clock, reads_the_clock, render
from guard.engines.control_text import ControlTexts, Piece, split_prompt
from guard.engines.detokenizer import Detokenizer
from guard.engines.system_role import with_system_placed
from guard.engines.tokenizing import TokenizingEngine
from guard.errors import ChatTemplateError, EngineError, InputError, missing_extra
from guard.records import Prompt

try:
    import transformers
except ImportError as error:
    raise missing_extra(error.name or "transformers", "transformers") from error

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class HubTokenizer:
    """Turns prompts into tokens. Safe under threads.

    Attributes:
        ends: tokens that end an answer.
        template_date: the date that the chat template writes; None if it writes none.
    """

    def __init__(
        self, tokenizer: Any, model: Any, *, name: str, template_date: str | None, rows: Callable[[], int]
    ) -> None:
        """
        Args:
            tokenizer: transformers' own.
            model: has a ``config`` and perhaps a ``generation_config``, whose settings may name end tokens.
            name: of the model, for people.
            template_date: what a chat template that writes the date writes; by default today.
            rows: how many tokens the model knows; raises where the engine is closed.
        """
        self._tokenizer, self._name, self._rows = tokenizer, name, rows
        self._now = clock(template_date)
        self._tokenizing = threading.RLock()  # prompts are encoded by many threads; reading plain text sets a switch
        self.vocabulary: Mapping[str, int] = tokenizer.get_vocab()
        self.ends, self._end = tokenizer_identity.end_tokens(model, tokenizer, self.vocabulary, self._after_answer())
        writes_date = reads_the_clock(tokenizer_identity.template_text(tokenizer))
        self.template_date = f"{self._now:%Y-%m-%d}" if writes_date else None

    @property
    def sha256(self) -> str:
        """Of the vocabulary and the merges."""
        return tokenizer_identity.tokenizer_sha256(self._tokenizer, self.vocabulary)

    @property
    def template_sha256(self) -> str:
        """Of the chat template's text."""
        return tokenizer_identity.template_sha256(self._tokenizer)

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template, of all of them where there are several; None without one."""
        templates = self._tokenizer.chat_template
        return "\n".join(templates.values()) if isinstance(templates, dict) else templates

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt.

        A chat template writes its special tokens itself, and contents are plain text in it; a raw prompt
        gets the tokenizer's usual ones.

        Raises:
            ChatTemplateError: the model has no chat template, or it refuses the messages.
            InputError: the text cannot be tokenized.
        """
        if prompt.messages is None:
            text = prompt.text or ""
            ids = self._ids(text, add_special_tokens=True)
            more = prompt.plain and self._controls(ids) > self._controls(self._ids("", add_special_tokens=True))
            return self._plain_ids(text, add_special_tokens=True) if more else ids
        return [
            token
            for piece in self._pieces(prompt)
            for token in (self._marked_ids(piece.text) if piece.control else self._plain_ids(piece.text))
        ]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of answer, without special tokens."""
        return self._ids(text)

    def token_id(self, text: str) -> int | None:
        """Id of the single added token with exactly this text."""
        token = self._tokenizer.get_added_vocab().get(text)
        return token if isinstance(token, int) else None

    def detokenizer(self) -> Detokenizer:
        """Return a fresh detokenizer for one answer."""
        return _Detokenizer(self._tokenizer)

    def grammar_vocabulary(self) -> Any:
        """Return llguidance's view of the vocabulary."""
        self.end_token()  # raises where there is none
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            raise missing_extra("llguidance", "grammar") from error
        if not isinstance(self._tokenizer, transformers.PreTrainedTokenizerFast):
            raise InputError(
                "This tokenizer cannot be used with a response format",
                why="llguidance reads fast tokenizers only, of the tokenizers package",
            )
        with self._tokenizing:  # a copy is made, and reading plain text sets a switch meanwhile
            return from_tokenizer(self._tokenizer, eos_token=sorted(self.ends))

    def end_token(self) -> int:
        """Return the token that ends an answer, for given completions."""
        if self._end is None:
            raise EngineError(
                "The tokenizer and the model name no end token",
                why="a completion ends with it",
                fix="Set tokenizer.eos_token before building the engine",
            )
        return self._end

    # -- text to tokens ------------------------------------------------------------------------

    def _pieces(self, prompt: Prompt) -> list[Piece]:
        tokenizer = self._tokenizer
        if not tokenizer.chat_template:
            raise ChatTemplateError(
                f"The model '{self._name}' has no chat template",
                fix="Pass Prompt.raw with a text in the form that the model was trained on",
            )
        template = tokenizer.get_chat_template(tools=[dict(tool) for tool in prompt.tools] or None)
        asked = self._asked(template, prompt.template_options)
        bos, eos = self._bos_and_eos()
        placed = with_system_placed(prompt, template, bos_token=bos, eos_token=eos)
        return split_prompt(placed, template, self._control_texts, asked)

    def _asked(self, template: str, options: Mapping[str, Any] | None = None) -> partial[str]:
        """`render` with a template of this tokenizer's and its texts."""
        bos, eos = self._bos_and_eos()
        return partial(render, template, bos_token=bos, eos_token=eos, options=options, now=self._now)

    def _bos_and_eos(self) -> tuple[str, str]:
        return self._tokenizer.bos_token or "", self._tokenizer.eos_token or ""

    def _after_answer(self) -> int | None:
        """Return the control token that the chat template writes behind an answer."""
        if not self._tokenizer.chat_template:
            return None
        try:
            text = after_answer(self._asked(self._tokenizer.get_chat_template(tools=None)))
            first = next(iter(self._ids(text.lstrip())), None)
        except (InputError, ValueError):  # a tokenizer that cannot read it, or has no default among its templates
            return None
        return first if first in self._control_ids() else None

    def _control_ids(self) -> set[int]:
        added = self._tokenizer.added_tokens_decoder.items()
        return {number for number, token in added if token.special}.union(self._tokenizer.all_special_ids)

    @cached_property
    def _control_texts(self) -> ControlTexts:
        added = self._tokenizer.added_tokens_decoder.values()
        return ControlTexts([*(token.content for token in added if token.special), *self._tokenizer.all_special_tokens])

    def _marked_ids(self, text: str) -> list[int]:
        """Token ids of a text with control tokens: no more than it has, since normalising can make some of contents."""
        ids = self._ids(text)
        if self._controls(ids) > self._control_texts.count(text):
            raise _unreadable()
        return ids

    def _controls(self, ids: Iterable[int]) -> int:
        """Return how many of some tokens are control tokens."""
        return sum(map((self._control_ids() - {self._tokenizer.unk_token_id}).__contains__, ids))

    def _plain_ids(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Token ids of a text in which no control token is read, between those that the tokenizer adds itself."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        with self._tokenizing:
            before = getattr(backend, "encode_special_tokens", None)
            try:
                ids = self._ids(text, split_special_tokens=True, add_special_tokens=add_special_tokens)
                added = self._ids("", add_special_tokens=True) if add_special_tokens else []
            finally:
                if before is not None:
                    backend.encode_special_tokens = before
        if self._controls(ids) > self._controls(added):
            raise _unreadable()
        return ids

    def _ids(self, text: str, *, add_special_tokens: bool = False, **options: bool) -> list[int]:
        try:
            with self._tokenizing:
                read = self._tokenizer(text, add_special_tokens=add_special_tokens, verbose=False, **options)
            ids: list[int] = read["input_ids"]
        except Exception as error:  # tokenizers in Python and in Rust each have errors of their own
            why = f"{type(error).__name__}: {error}"
            raise InputError("The text cannot be tokenized", why=why) from error
        rows = self._rows()
        if ids and max(ids) >= rows:
            raise InputError(
                f"The tokenizer gives token {max(ids)}, the model knows {rows} tokens",
                fix="Use the tokenizer that belongs to the model",
            )
        return ids


class HubTokenEngine(TokenizingEngine):
    """Engine whose prompts a `HubTokenizer` tokenizes."""

    #: Set by the engine's constructor.
    _tokens: HubTokenizer

    @property
    def chat_template(self) -> str | None:
        """Source of the chat template, of all of them where there are several; None without one."""
        return self._tokens.chat_template

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; see `HubTokenizer.encode`."""
        return self._tokens.encode(prompt)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a piece of answer, without special tokens."""
        return self._tokens.encode_text(text)

    def _token_id(self, text: str) -> int | None:
        return self._tokens.token_id(text)

    def _detokenizer(self) -> Detokenizer:
        return self._tokens.detokenizer()

    def _is_end(self, token: int) -> bool:
        return token in self._tokens.ends

    def _end_token(self) -> int:
        return self._tokens.end_token()

    def _grammar_vocabulary(self) -> Any:
        return self._tokens.grammar_vocabulary()


def _unreadable() -> InputError:
    return InputError(
        "The messages hold the text of a control token, which this tokenizer cannot read as plain text",
        fix="Take it out of the messages, documents and tools",
    )


class _Detokenizer:
    """Decodes a short window that ends with the newest token, and gives what is new in it.

    Text depends on neighbours (spaces of sentencepiece, characters of several byte tokens), so the
    window begins with the tokens of the piece given last, and waits while it ends in half a character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._context_tokens = 0
        self._context_text = ""

    @property
    def within(self) -> bool:
        """Whether the last token waits for the next to become text."""
        return len(self._window) > self._context_tokens

    def push(self, token: int) -> str:
        """Text that this token completes."""
        self._window.append(token)
        text = self._decode(self._window)
        if len(text) <= len(self._context_text) or text.endswith(_REPLACEMENT):
            return ""
        new = text[len(self._context_text) :]
        self._window = self._window[self._context_tokens :]
        self._context_tokens = len(self._window)
        self._context_text = self._decode(self._window)
        return new

    def flush(self) -> str:
        """Return what is left, with replacement characters for what never became a character."""
        return self._decode(self._window)[len(self._context_text) :]

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
