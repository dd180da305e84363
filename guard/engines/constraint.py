"""Answers that follow a response format: which tokens may come next, by llguidance.

The format only masks the choice of a token. Log-probabilities, entropies and margins are of the whole distribution,
before the mask, so that they still say how unsure the model was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from guard.errors import EngineError, InputError, missing_extra
from guard.records import Floats
from guard.response_format import JSON_OPTIONS, ResponseFormat

#: Characters of the compiler's message that an error shows.
_SHOWN = 300
#: Bytes of a token that texts are taken apart by.
_LONGEST_PIECE = 64


class Constraint:
    """The state of one answer that must follow a format.

    Attributes:
        redirected: number of tokens whose likeliest choice the format ruled out.
    """

    def __init__(self, matcher: Any, ends: Sequence[int]) -> None:
        """
        Args:
            matcher: llguidance's ``LLMatcher``.
            ends: tokens that end an answer.
        """
        self._matcher, self._ends = matcher, [*ends]
        self._taken = self.redirected = 0

    def mask(self, logits: Floats) -> Floats:
        """Return a copy of the logits, shape (V,), with -inf for what must not come next.

        Raises:
            EngineError: no token can come next, or the grammar has become too complex.
        """
        allowed = np.zeros(len(logits), np.bool_)
        bias = np.frombuffer(self._matcher.compute_logit_bias(), np.uint8)[: len(logits)]
        allowed[: len(bias)] = bias != 0
        if not self._matcher.is_accepting():
            allowed[self._ends] = False  # llguidance ends an answer that nothing can continue
        masked = np.where(allowed, logits, np.float32(-np.inf))
        if not np.isfinite(masked.max()):
            raise EngineError(
                "No token can follow in the response format",
                why=_first_line(self._matcher.get_error()) or "the model's vocabulary has none that fits",
                fix="Use a simpler schema or grammar",
            )
        self.redirected += not allowed[int(logits.argmax())]
        return masked

    def take(self, token: int) -> None:
        """Go on after the token that was chosen.

        Raises:
            EngineError: the format does not allow it.
        """
        if not self._matcher.consume_token(token):
            raise EngineError("The response format does not allow the chosen token")
        self._taken += 1

    def check_complete(self, tokens: int) -> None:
        """Raise EngineError where an answer that has ended is not of the format.

        Args:
            tokens: of the answer; one that was not taken here stands outside of the format.
        """
        if tokens != self._taken or not self._matcher.is_accepting():
            raise EngineError(
                "The answer does not have its response format",
                why="a stop string cut it, it never left its thought, or the thought's last token began it",
                fix="Leave out stop strings that the format may contain",
            )


class Grammars:
    """Compiles response formats for one vocabulary, which is read on first use."""

    def __init__(self, tokenizer: Callable[[], Any]) -> None:
        """
        Args:
            tokenizer: makes llguidance's view of the vocabulary, an ``LLTokenizer``.
        """
        self._make = tokenizer

    @cached_property
    def _tokenizer(self) -> Any:
        return self._make()

    def constraint(self, wanted: ResponseFormat) -> Constraint:
        """Return the constraint of one answer.

        Raises:
            InputError: the schema or grammar cannot be compiled.
            MissingExtraError: llguidance is not installed.
        """
        return Constraint(compiled(wanted, self._tokenizer), self._tokenizer.eos_tokens)


def accepts(wanted: ResponseFormat, text: str) -> bool:
    """Return whether a text has a format; errors as for `Grammars.constraint`."""
    end = 256
    vocabulary = build_vocabulary([*(bytes([byte]) for byte in range(end)), b""], [end], _utf8_bytes)
    matcher = compiled(wanted, vocabulary, json_options={})  # whoever wrote it may use any white space
    return bool(matcher.consume_tokens(_utf8_bytes(text)) and matcher.is_accepting())


def _utf8_bytes(text: str) -> list[int]:
    return [*text.encode(errors="replace")]


def compiled(wanted: ResponseFormat, tokenizer: Any, json_options: Mapping[str, Any] = JSON_OPTIONS) -> Any:
    """Return an ``LLMatcher``; errors as for `Grammars.constraint`."""
    guidance = _llguidance()
    try:
        match wanted.kind:
            case "json_schema":
                grammar = guidance.LLMatcher.grammar_from_json_schema(wanted.source, overrides=dict(json_options))
            case "lark":
                grammar = guidance.LLMatcher.grammar_from_lark(wanted.source)
            case "regex":
                grammar = guidance.LLMatcher.grammar_from_regex(wanted.source)
        limits = guidance.LLParserLimits(verbose_errors=False)  # its long messages quote the answer
        matcher = guidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        why = matcher.get_error()
    except ValueError as error:
        why = str(error)
    if why:
        raise InputError("The response format cannot be compiled", why=_first_line(why), fix="Change or simplify it")
    return matcher


def build_vocabulary(pieces: Sequence[bytes], ends: Sequence[int], encode: Callable[[str], list[int]]) -> Any:
    """Return an ``LLTokenizer``.

    Args:
        pieces: the bytes of each token in an answer; empty for those that are no text, such as control tokens.
        ends: tokens that end an answer.
        encode: makes tokens of a text.

    Raises:
        InputError: no token ends an answer.
    """
    guidance = _llguidance()
    if not ends:
        raise InputError("The model names no end token", why="an answer in a response format ends with it")
    return guidance.LLTokenizer(guidance.TokenizerWrapper(_TokenTable(pieces, ends, encode)), eos_token=list(ends))


class _TokenTable:
    """A vocabulary in the form that llguidance's ``TokenizerWrapper`` reads."""

    bos_token_id = None

    def __init__(self, pieces: Sequence[bytes], ends: Sequence[int], encode: Callable[[str], list[int]]) -> None:
        special = [token for token, piece in enumerate(pieces) if not piece or token in ends]
        self.special_token_ids, self.eos_token_id = special, ends[0]
        self._pieces, self._encode = pieces, encode
        self.tokens = [*pieces]
        for token in special:
            self.tokens[token] = b"\xff<%d>" % token  # 0xff, which no text has, marks a special token

    @cached_property
    def _by_piece(self) -> dict[bytes, int]:
        return {piece: token for token, piece in enumerate(self._pieces) if piece}

    def __call__(self, text: bytes | str) -> list[int]:
        """Return the tokens of what must follow: the model's own, unless its tokenizer adds a space in front."""
        data = text if isinstance(text, bytes) else text.encode()
        own = self._encode(data.decode(errors="replace"))
        return own if b"".join(self._pieces[token] for token in own) == data else [*self._longest(data)]

    def _longest(self, data: bytes) -> Iterator[int]:
        """Yield the longest token at each place, as far as there is one."""
        at = 0
        while at < len(data):
            sizes = range(min(len(data) - at, _LONGEST_PIECE), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in self._by_piece), 0)
            if not size:
                return
            yield self._by_piece[data[at : at + size]]
            at += size


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise missing_extra("llguidance", "grammar") from error
    return llguidance


def _first_line(text: str) -> str:
    return " ".join(text.split())[:_SHOWN]
