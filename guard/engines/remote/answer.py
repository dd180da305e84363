"""One answer of a server while it comes: thoughts split off, stop strings held back, what is odd about it noted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from guard.engines.detokenizer import BytesDetokenizer
from guard.engines.growing import GrowingAnswer, Reading
from guard.engines.protocols import Observer
from guard.engines.remote.client import UnavailableError
from guard.engines.remote.wire import CallPiece, StreamPart, WireToken, with_calls
from guard.engines.sampling import Likeliest, TokenSignals
from guard.engines.thinking import MARKS, THINK, TaggedSplitter, without_thoughts
from guard.engines.tool_marks import TOOL_MARKS
from guard.records import FinishReason, Floats, Generation, Sampling

#: Texts of tokens that end an answer, as servers show them.
ENDS = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eot|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>", "<|return|>"),
        *(
            "</s>",
            "<|endoftext|>",
            "<|end_of_text|>",
            "<eos>",
            "<｜end▁of▁sentence｜>",
            "[EOS]",
            "<|END_OF_TURN_TOKEN|>",
        ),
    }
)

_MARKS = tuple(each for each in MARKS if not each.words)
_MARK_TEXTS = frozenset(text for each in _MARKS for text in each.texts)

#: What a model without layers shows of them.
_NO_LAYERS: Floats = np.empty((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class ServedIdentity:
    """Who answers, as far as a server says so.

    Attributes:
        model: the name in its responses.
        fingerprint: of its configuration; None where it gives none.
    """

    model: str | None
    fingerprint: str | None


class RemoteAnswer:
    """Takes the parts of a stream.

    Attributes:
        stopped: whether a stop string ended the answer, so that nothing more is needed.
    """

    def __init__(
        self,
        served: ServedIdentity,
        *,
        stop: tuple[str, ...],
        tools: bool,
        top_logprobs: int,
        observer: Observer | None,
        on_token: Callable[[TokenSignals], None] | None,
    ) -> None:
        """
        Args:
            served: who answered when the engine was loaded.
            stop: texts that end the answer.
            tools: whether the model may call tools.
            top_logprobs: how many of the likeliest tokens are kept at each token.
            observer, on_token: as for `guard.engines.growing.GrowingAnswer`.
        """
        self._served, self._stop, self._tools = served, stop, tools
        self._k, self._top = top_logprobs, list[tuple[tuple[bytes, float], ...]]()
        self._observer, self._on_token = observer, on_token
        self._pieces: list[bytes] = []
        self._marks: dict[int, str] = {}
        self._ends: set[int] = set()
        self._content = self._reasoning = ""
        self._calls: list[CallPiece] = []
        self._opened = False
        self._fault: str | None = None
        self._seen = ServedIdentity(None, None)
        self._prompt_tokens: int | None = None
        self._finish: FinishReason | None = None
        self._ended = False

    def push(self, part: StreamPart) -> str:
        """Take a part; return the text that is safe to show."""
        self._note(part)
        shown = ""
        for token in part.tokens:
            if self._ended:
                break
            shown += self._take(token, thought=bool(part.reasoning) and not part.content)
        if part.finish is not None:
            self._finish = part.finish
        return shown

    def _note(self, part: StreamPart) -> None:
        self._content += part.content
        self._reasoning += part.reasoning
        self._calls += part.calls
        self._prompt_tokens = part.prompt_tokens if part.prompt_tokens is not None else self._prompt_tokens
        for name in ("model", "fingerprint"):
            now, before = getattr(part, name), getattr(self._served, name)
            if now is not None:
                self._seen = replace(self._seen, **{name: now})
                if now != before:
                    self._blame(f"the server answers with another {name} than when the engine was loaded")

    def _take(self, token: WireToken, *, thought: bool) -> str:
        at, text = len(self._pieces), token.piece.decode(errors="replace")
        if not at and thought and not text.lstrip().startswith(tuple(each.opening for each in _MARKS)):
            self._opened = True  # the template has opened the thought, and the server has taken the mark out
        self._pieces.append(token.piece)
        self._top.append(token.top[: self._k])
        if text in _MARK_TEXTS or (self._tools and text in TOOL_MARKS):
            self._marks[at] = text
        if text in ENDS:
            self._ends.add(at)
        if token.fault:
            self._blame(token.fault)
        shown = self._growing.push(at, token.signals, lambda: _NO_LAYERS)
        self._ended = self._growing.ended
        return shown

    @property
    def stopped(self) -> bool:
        return self._ended and self._growing.stopped

    @cached_property
    def _growing(self) -> GrowingAnswer:
        """Begun with the first token, which says whether a thought is open."""
        reading = Reading(
            detokenizer=BytesDetokenizer(self._pieces.__getitem__),
            splitter=TaggedSplitter(_MARKS, prompt_end=THINK.opening if self._opened else ""),
            marks=self._marks,
            is_end=self._ends.__contains__,
            stop=self._stop,
        )
        return GrowingAnswer(reading, self._observer, self._on_token)

    def _blame(self, why: str) -> None:
        self._fault = self._fault or why

    # -- the end -------------------------------------------------------------------------------

    def finish(self) -> str:
        """No part follows; return the rest of the text.

        Raises:
            UnavailableError: the stream broke off.
        """
        if self._finish is None and not self._growing.stopped:
            raise UnavailableError("The server's response broke off")
        return self._growing.finish(cut=self._finish == "length")

    def generation(self, *, sampling: Sampling, estimate: int, queue_s: float, seconds: float) -> Generation:
        """Return the whole answer. What cannot be scored is in its ``capture_error``.

        Args:
            sampling: as it was asked for.
            estimate: of the prompt's tokens, where the server does not count them.
            queue_s, seconds: as in `Generation`.
        """
        stopped = self._growing.stopped
        finish: FinishReason = "stop_string" if stopped else self._finish or "stop"
        found = self._growing.generation(
            finish,
            prompt_tokens=estimate if self._prompt_tokens is None else self._prompt_tokens,
            sampling=sampling,
            queue_s=queue_s,
            seconds=seconds,
        )
        self._check(found, stopped=stopped)
        text, (top, pieces) = self._answer_text(found, stopped=stopped), self._likeliest()
        return replace(
            found,
            text=text,
            offsets=found.offsets if text == found.text else None,
            top=top if self._k else None,
            pieces=pieces,
            reasoning=found.reasoning or self._reasoning.strip() or None,
            capture_error=self._fault or found.capture_error,
        )

    def _likeliest(self) -> tuple[tuple[Likeliest, ...], tuple[bytes, ...]]:
        """Return the likeliest tokens by id, and the bytes of all ids: those of the answer are its positions."""
        others = dict.fromkeys(piece for each in self._top for piece, _ in each)
        ids = {piece: len(self._pieces) + number for number, piece in enumerate(others)}
        top = tuple(tuple((ids[piece], logprob) for piece, logprob in each) for each in self._top)
        return top, (*self._pieces, *others)

    def _check(self, found: Generation, *, stopped: bool) -> None:
        if not self._pieces:
            self._blame("the server gives no log-probabilities")
        elif not self._is_whole(found, stopped=stopped):
            self._blame("the tokens with log-probabilities are not those of the server's text")
        # Some give it with the end of an answer, which is not read behind a stop string.
        if self._served.fingerprint is not None and self._seen.fingerprint is None and not stopped:
            self._blame("the server no longer gives its fingerprint")

    def _is_whole(self, found: Generation, *, stopped: bool) -> bool:
        """Return whether the tokens make up the server's text, with its thoughts or without them."""
        written = b"".join(piece for at, piece in enumerate(self._pieces) if at not in self._ends)
        texts = (found.text.strip(), written.decode(errors="replace").strip())
        return bool(self._calls) or stopped or self._content.strip() in texts

    def _answer_text(self, found: Generation, *, stopped: bool) -> str:
        """Return the answer: that of the tokens, or where they are not all, the server's."""
        if self._calls:
            return with_calls(without_thoughts(self._content), self._calls)
        return (
            found.text if self._pieces and self._is_whole(found, stopped=stopped) else without_thoughts(self._content)
        )
