"""A llama.cpp model's vocabulary: text to tokens and back."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import llama_cpp

from guard.engines.control_text import ControlTexts
from guard.errors import EngineError, InputError


class Vocabulary:
    """Tokenizes, and gives tokens' bytes.

    Args:
        vocab: llama.cpp's handle.
        open_model: keeps the model, which owns the vocabulary, from being closed meanwhile.
    """

    def __init__(self, vocab: Any, open_model: Callable[[], AbstractContextManager[None]]) -> None:
        self._vocab = vocab
        self._open = open_model
        self._buffer = ctypes.create_string_buffer(256)
        #: Number of tokens.
        self.size: int = llama_cpp.llama_vocab_n_tokens(vocab)
        #: The beginning-of-text and end-of-text tokens; negative for none.
        self.bos, self.eos = int(llama_cpp.llama_vocab_bos(vocab)), int(llama_cpp.llama_vocab_eos(vocab))

    def tokenize(self, text: str, *, control: bool) -> list[int]:
        """Token ids, without a beginning or an end.

        Args:
            text: to tokenize.
            control: whether texts of control tokens are read as such; otherwise they are plain text.

        Raises:
            InputError: a half surrogate pair, which has no bytes.
            EngineError: llama.cpp fails, or the engine is closed.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise InputError("The text has half of a surrogate pair, which is no character") from error
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        with self._open():
            count = llama_cpp.llama_tokenize(self._vocab, data, len(data), tokens, room, False, control)
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(data)} bytes")
        return list(tokens[:count])

    def begin(self) -> list[int]:
        """Return the beginning-of-text token, where the model wants one.

        llama.cpp's own way of adding it would add an end-of-text token as well, to a prompt that is
        not at its end, where the file says ``add_eos_token``.
        """
        with self._open():
            return [self.bos] if self.bos >= 0 and llama_cpp.llama_vocab_get_add_bos(self._vocab) else []

    def piece(self, token: int) -> bytes:
        """Return the bytes of a token in an answer; none for a control token."""
        size = llama_cpp.llama_token_to_piece(self._vocab, token, self._buffer, len(self._buffer), 0, False)
        if size < 0:  # a token longer than the buffer; the size it needs is -size
            self._buffer = ctypes.create_string_buffer(-size)
            return self.piece(token)
        return self._buffer.raw[:size]

    def pieces(self) -> list[bytes]:
        """Return the bytes of every token in an answer."""
        buffer = ctypes.create_string_buffer(256)  # not the detokenizer's, which another thread writes to

        def piece(token: int) -> bytes:
            size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)
            return buffer.raw[:size] if size >= 0 else b""  # a longer token is not needed

        return [piece(token) for token in range(self.size)]

    def ends(self) -> list[int]:
        """Return the tokens that end an answer."""
        return [token for token in range(self.size) if self.is_end(token)]

    def token_text(self, token: int) -> str:
        """Return a token as the file writes it; empty for a negative one."""
        if token < 0:
            return ""
        text: bytes | None = llama_cpp.llama_vocab_get_text(self._vocab, token)
        return (text or b"").decode(errors="replace")

    def bos_and_eos(self) -> tuple[str, str]:
        """Return texts of the beginning-of-text and end-of-text tokens, for chat templates."""
        with self._open():
            return self.token_text(self.bos), self.token_text(self.eos)

    def is_end(self, token: int) -> bool:
        """Return whether a token ends an answer."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    @cached_property
    def control_texts(self) -> ControlTexts:
        """What llama.cpp reads as control tokens in the text of a chat template."""
        kinds = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
        with self._open():
            tokens = range(self.size)
            found = [token for token in tokens if llama_cpp.llama_vocab_get_attr(self._vocab, token) & kinds]
            return ControlTexts(map(self.token_text, found))
