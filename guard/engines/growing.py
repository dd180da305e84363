"""One answer while it is generated: thought split off, stop strings held back, its layers handed on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from guard.engines.detokenizer import Detokenizer, StopStringFilter
from guard.engines.offsets import TokenText, token_offsets
from guard.engines.sampling import Likeliest, TokenSignals
from guard.engines.thinking import Splitter, read_thinking
from guard.engines.tool_marks import TOOL_MARKS
from guard.errors import error_text
from guard.records import FinishReason, Floats, Generation, Sampling

#: Tokens of the prompt's end that are looked at for a thought that the template has opened.
_END_TOKENS = 24

_UNMARKED = "the answer began with a thought that no mark had opened, whose layers were read as the answer's"


class Observing(Protocol):
    """See `guard.engines.base.Observer`."""

    def observe(self, activations: Floats) -> None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """What turns the tokens of one answer into text.

    Attributes:
        detokenizer: a fresh one.
        splitter: a fresh one, which knows the end of the prompt.
        marks: texts of the tokens that mark thoughts, by id.
        is_end: whether a token ends the answer.
        stop: texts that end the answer; those in a thought do not.
    """

    detokenizer: Detokenizer
    splitter: Splitter
    marks: dict[int, str]
    is_end: Callable[[int], bool]
    stop: tuple[str, ...]


class AnswerReader:
    """Makes the `Reading` of each answer of a model, by what its template and vocabulary say of its marks."""

    def __init__(
        self,
        template: str,
        token_id: Callable[[str], int | None],
        detokenizer: Callable[[], Detokenizer],
        is_end: Callable[[int], bool],
    ) -> None:
        """
        Args:
            template: source of the chat template; empty where there is none.
            token_id: of the single token with exactly this text, or None.
            detokenizer: makes a fresh one.
            is_end: whether a token ends an answer.
        """
        self._token_id, self._detokenizer, self._is_end = token_id, detokenizer, is_end
        self._thinking = read_thinking(template, token_id)
        found = {text: token_id(text) for text in TOOL_MARKS}
        self._tool_tokens = {token: text for text, token in found.items() if token is not None}

    def reading(self, prompt: Sequence[int], *, stop: tuple[str, ...], tools: bool) -> Reading:
        """Of one answer.

        Args:
            prompt: its tokens.
            stop: texts that end the answer.
            tools: whether the model may call tools, so that the marks of calls are text.
        """
        return Reading(
            detokenizer=self._detokenizer(),
            splitter=self._thinking.splitter(self._text_end(prompt)),
            marks={**self._thinking.tokens, **(self._tool_tokens if tools else {})},
            is_end=self._is_end,
            stop=stop,
        )

    def closing(self, prompt: Sequence[int], encode: Callable[[str], list[int]]) -> list[int]:
        """Return the tokens that close the thought which a prompt opens; none where it opens none."""
        mark = self._thinking.closing(self._text_end(prompt))
        if mark is None:
            return []
        token = self._token_id(mark)
        return [*(encode(mark) if token is None else [token]), *encode("\n\n")]

    def _text_end(self, tokens: Sequence[int]) -> str:
        detokenizer, marks = self._detokenizer(), self._thinking.tokens
        pieces = [marks.get(token) or detokenizer.push(token) for token in tokens[-_END_TOKENS:]]
        return "".join(pieces) + detokenizer.flush()


@dataclass(frozen=True, slots=True)
class _Held:
    """A token of which it is not known yet whether it is answer."""

    at: int
    activations: Floats | None


class GrowingAnswer:
    """Takes tokens as they are chosen, and knows at each whether it is thought or answer.

    Attributes:
        ended: whether the answer is over: by its end token or a stop string.
        stopped: whether by a stop string.
    """

    def __init__(
        self, reading: Reading, observer: Observing | None, on_token: Callable[[TokenSignals], None] | None
    ) -> None:
        """
        Args:
            reading: from tokens to text.
            observer: gets the layers of each token of the answer.
            on_token: called for each such token except the end token.
        """
        self._reading, self._observer, self._on_token = reading, observer, on_token or _ignore
        self._text = StopStringFilter(reading.stop)
        self._tokens: list[int] = []
        self._texts: list[TokenText] = []
        self._signals: list[TokenSignals] = []
        self._in_answer: list[bool] = []
        self._held: list[_Held] = []
        self._capture_error: str | None = None
        self._retractions = 0
        self._flushed = ""
        self._closed = self.ended = False

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def stopped(self) -> bool:
        return self._text.stopped

    @property
    def thinking(self) -> bool:
        """Whether a thought is open, so that the next token is not the answer's."""
        return self._reading.splitter.thinking

    @property
    def answer_tokens(self) -> int:
        """How many tokens are the answer's, its end token included."""
        return sum(self._in_answer)

    def push(self, token: int, signals: TokenSignals, activations: Callable[[], Floats]) -> str:
        """Take one token; gives the text that is safe to show.

        Args:
            token: that was chosen.
            signals: of its choice.
            activations: reads the layers of the pass that chose it.
        """
        self._tokens.append(token)
        self._signals.append(signals)
        self._in_answer.append(False)
        if self._reading.is_end(token):
            self.ended = True
            self._texts.append(TokenText(""))
            safe = self.finish()
            if self._reading.splitter.place != "thought":
                self._note(len(self) - 1, activations)
            return safe
        answer = self._read(token)
        self._place(activations)
        safe = self._text.push(answer)
        self.ended = self.stopped
        return safe

    def finish(self, *, cut: bool = False) -> str:
        """No token follows; gives the rest of the text.

        Args:
            cut: by the token limit, which may cut a character in two; its first half is no text.
        """
        if self._closed:
            return ""
        self._closed = True
        splitter = self._reading.splitter
        left = self._reading.detokenizer.flush()
        left = left.rstrip("\N{REPLACEMENT CHARACTER}") if cut else left
        rest = splitter.finish(left)
        self._flushed = left
        self._check_retractions()
        if splitter.place != "thought":
            self._release()
        return self._text.finish(rest)

    def generation(
        self,
        finish: FinishReason,
        *,
        prompt_tokens: int,
        sampling: Sampling,
        queue_s: float,
        seconds: float,
        redirected: int | None = None,
        top: tuple[Likeliest, ...] | None = None,
    ) -> Generation:
        """Return the whole answer; see `Generation`."""
        signals = self._signals
        return Generation(
            text=self._text.shown,
            token_ids=tuple(self._tokens),
            logprobs=np.array([signal.logprob for signal in signals], np.float32),
            entropies=np.array([signal.entropy for signal in signals], np.float32),
            margins=np.array([signal.margin for signal in signals], np.float32),
            prompt_tokens=prompt_tokens,
            finish_reason=finish,
            sampling=sampling,
            queue_s=queue_s,
            seconds=seconds,
            capture_error=self._capture_error,
            reasoning=self._reading.splitter.reasoning,
            in_answer=np.array(self._in_answer, np.bool_),
            redirected=redirected,
            offsets=self._offsets(),
            top=top,
        )

    def _offsets(self) -> NDArray[np.int32] | None:
        """Return the characters that each token writes; what was left within a character at the end has no token."""
        left = TokenText(self._flushed)
        offsets = token_offsets([*self._texts, left], [*self._in_answer, True], self._text.shown)
        return None if offsets is None else offsets[:-1]

    # -- text ----------------------------------------------------------------------------------

    def _read(self, token: int) -> str:
        reading = self._reading
        mark = reading.marks.get(token)
        piece = reading.detokenizer.push(token) if mark is None else mark
        self._texts.append(TokenText(piece, within=mark is None and reading.detokenizer.within))
        answer = reading.splitter.push(piece, token=mark is not None)
        self._check_retractions()
        return answer

    def _check_retractions(self) -> None:
        """Where what came before was a thought, take it back; its layers were folded into the answer's."""
        if self._reading.splitter.retractions == self._retractions:
            return
        self._retractions = self._reading.splitter.retractions
        self._capture_error = self._capture_error or _UNMARKED
        self._text = StopStringFilter(self._reading.stop)
        self._in_answer = [False] * len(self)

    # -- which tokens are the answer's ---------------------------------------------------------

    def _place(self, activations: Callable[[], Floats]) -> None:
        at = len(self) - 1
        match self._reading.splitter.place:
            case "answer":
                self._release()
                self._note(at, activations)
                self._on_token(self._signals[at])
            case "thought":
                self._held.clear()
            case "undecided":
                self._held.append(_Held(at, self._kept(activations)))

    def _kept(self, activations: Callable[[], Floats]) -> Floats | None:
        """Return a copy of layers that may be needed later."""
        if self._observer is None or self._capture_error is not None:
            return None
        try:
            return activations().copy()
        except Exception as error:  # noqa: BLE001 - see `_fail`
            self._fail(error)
            return None

    def _release(self) -> None:
        """The tokens that were held are answer."""
        held, self._held = self._held, []
        for each in held:
            self._note(each.at, partial(_same, each.activations))
            self._on_token(self._signals[each.at])

    def _note(self, at: int, activations: Callable[[], Floats | None]) -> None:
        """Hand a token's layers over. A failure is data for the policy, never the loss of the answer."""
        self._in_answer[at] = True
        if self._observer is None or self._capture_error is not None:
            return
        try:
            layers = activations()
            if layers is not None:
                self._observer.observe(layers)
        except Exception as error:  # noqa: BLE001 - see `_fail`
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Whatever fails while layers are recorded, the policy decides."""
        self._capture_error = error_text(error)


def _ignore(_: TokenSignals) -> None:
    """Take a token that nobody asked for."""


def _same(activations: Floats | None) -> Floats | None:
    return activations
