"""Where a model's thought ends and its answer begins, by the model's own marks, while it streams.

Models that reason write the thought first: between tags (``<think>`` ... ``</think>`` and its kin), or
in a channel of its own (``analysis`` beside ``final`` in the harmony format of gpt-oss). What is
thought is not the answer: it is never shown, scored, graded or parsed as one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

#: Where the newest piece of text belongs. ``undecided`` is held back until more of it is known.
Place = Literal["answer", "thought", "undecided"]


@dataclass(frozen=True, slots=True)
class Marks:
    """What a family of models writes around a thought.

    Attributes:
        opening: begins a thought.
        closing: ends it.
        tokens: texts of the single tokens that the marks are made of, where a vocabulary has them.
        words: whether prompts ask for these marks, too, so that they may be a format which the caller parses. They
            count only for models whose template or vocabulary has them.
    """

    opening: str
    closing: str
    tokens: tuple[str, ...] = ()
    words: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts of the tokens to look for."""
        return self.tokens or (self.opening, self.closing)

    def is_open(self, prompt_end: str) -> bool:
        """Return whether a prompt that ends so has opened a thought."""
        return prompt_end.rstrip().endswith(self.opening)


#: Qwen 3, DeepSeek R1, GLM, SmolLM 3 and most others.
THINK = Marks("<think>", "</think>")

#: All that are known.
MARKS = (
    THINK,
    Marks("[THINK]", "[/THINK]"),  # Magistral
    Marks("<seed:think>", "</seed:think>"),  # Seed-OSS
    Marks("<|channel>thought", "<channel|>", ("<|channel>", "<channel|>")),  # Gemma 4
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("<longcat_think>", "</longcat_think>"),
    Marks("◁think▷", "◁/think▷"),  # Kimi-VL
    Marks("<thought>", "</thought>", words=True),  # EXAONE Deep
    Marks("<thinking>", "</thinking>", words=True),
    Marks("<reasoning>", "</reasoning>", words=True),
    Marks("Here is my thought process:", "Here is my response:", words=True),  # Granite 3.2
)

_CHANNEL, _MESSAGE, _START = "<|channel|>", "<|message|>", "<|start|>"
_TURN_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_BODY_ENDS = (*_TURN_ENDS, _START, _CHANNEL)
_HARMONY = (*_BODY_ENDS, _MESSAGE, "<|constrain|>")
_RECIPIENT = re.compile(r"\bto=(\S+?)(?=<|\s|$)")


class Splitter(Protocol):
    """Takes an answer's text apart while it comes.

    Attributes:
        place: where the newest piece belongs.
        retractions: how often a thought ended that nothing had begun: what was given as answer before it was none.
    """

    place: Place
    retractions: int

    def push(self, piece: str, *, token: bool = False) -> str:
        """Take a piece; gives what is certainly answer. ``token``: the piece is a mark's own token."""

    def finish(self, piece: str) -> str:
        """Do the same for the last piece, and whatever was held back."""

    @property
    def thinking(self) -> bool:
        """Whether what comes next is certainly not the answer's."""

    @property
    def reasoning(self) -> str | None:
        """The thoughts so far; None where there are none."""


class TaggedSplitter:
    """A `Splitter` for thoughts between two marks.

    An opening mark counts at the beginning of the answer, white space aside, or straight after another
    thought; further on only where the model wrote it as the token that it is, since an answer may well
    quote it. A closing mark without an opening one ends a thought where it is such a token, or stands as
    `UnopenedThought` says. White space around thoughts belongs to them.
    """

    def __init__(self, marks: Iterable[Marks] = (THINK,), *, prompt_end: str = "") -> None:
        """
        Args:
            marks: of the model.
            prompt_end: the end of the prompt's text; templates may open the thought themselves.
        """
        self._marks = tuple(marks)
        self._unopened = UnopenedThought(self._marks)
        self.retractions = 0
        self._thoughts: list[str] = []
        self._held = self._thought = self._shown = ""
        self._answering = self._after_thought = False
        opened = [each for each in self._marks if each.is_open(prompt_end)]
        self._inside: Marks | None = opened[0] if opened else None
        self.place: Place = "thought" if opened else "undecided"

    @property
    def thinking(self) -> bool:
        return self._inside is not None

    @property
    def reasoning(self) -> str | None:
        thoughts = [*self._thoughts, self._thought] if self._inside else self._thoughts
        written = "\n\n".join(text.strip() for text in thoughts if text.strip())
        return written or None

    def push(self, piece: str, *, token: bool = False) -> str:
        answer = self._mark(piece) if token and self._inside is None else ""
        self._held += piece
        answer += self._read()
        self._shown += answer
        return answer

    def finish(self, piece: str) -> str:
        answer = self.push(piece)
        if self._answering and self._ends_unopened(self._shown, last=True):
            self.place = "thought"
            return ""
        if self._inside is not None:
            self._thought += self._held
        elif self._held.strip() or not self._after_thought:
            rest = self._held.lstrip() if self._after_thought and not self._answering else self._held
            answer, self.place = answer + rest, "answer"
        self._held = ""
        return answer

    def _mark(self, piece: str) -> str:
        """What a mark's own token means in the middle of an answer; gives the text before it."""
        before, self._held = self._held, ""
        if any(each.closing == piece for each in self._marks):
            self.retractions += bool((self._shown + before).strip())
            self._thought, self._shown = self._shown + before, ""
            self._inside = next(each for each in self._marks if each.closing == piece)
            return ""
        if not before.strip() and not self._answering:
            self._held = before
            return ""
        self._answering = False
        return before

    def _read(self) -> str:
        answer = ""
        while True:
            if self._inside is not None:
                if not self._leave(self._inside):
                    return answer
            elif self._answering:
                self.place = "answer"
                if not self._ends_unopened(self._shown + answer):
                    safe = len(self._held) - self._unopened.may_begin(self._held)
                    answer, self._held = answer + self._held[:safe], self._held[safe:]
                    return answer
                answer = ""
            elif not self._enter():
                return answer

    def _leave(self, marks: Marks) -> bool:
        """Read on within a thought; whether it has ended."""
        self.place = "thought"
        at = self._held.find(marks.closing)
        if at < 0:
            keep = begins(self._held, (marks.closing,))
            self._thought += self._held[: len(self._held) - keep]
            self._held = self._held[len(self._held) - keep :]
            return False
        self._thoughts.append((self._thought + self._held[:at]).strip().removeprefix(marks.opening))
        self._held, self._thought = self._held[at + len(marks.closing) :], ""
        self._inside, self._after_thought, self._answering = None, True, False
        return True

    def _ends_unopened(self, before: str, *, last: bool = False) -> bool:
        """Return whether the held text ends a thought that nothing has opened, and take that thought out."""
        found = self._unopened.find(before, self._held, last=last)
        if found is None:
            return False
        self.retractions += 1
        self._thoughts.append((before + self._held[: found.start()]).strip())
        self._held, self._shown = self._held[found.end() :], ""
        self._after_thought, self._answering = True, False
        return True

    def _enter(self) -> bool:
        """Look at how an answer begins; whether that is clear already."""
        text = self._held.lstrip()
        opened = [each for each in self._marks if text.startswith(each.opening)]
        if opened:
            self._inside, self._held = opened[0], text[len(opened[0].opening) :]
            return True
        if not text and self._after_thought:
            self.place = "thought"  # the white space behind it
            return False
        if not text or any(each.opening.startswith(text) for each in self._marks):
            self.place = "undecided"
            return False
        self._answering = True
        if self._after_thought and not self._shown:
            self._held = text
        return True


class HarmonySplitter:
    """A `Splitter` for the channels of gpt-oss: ``analysis`` is thought, the rest is answer.

    A call of a tool is part of the answer, with its header, for those who read tool calls; without the
    model's end token, as always.
    """

    def __init__(self, *, prompt_end: str = "") -> None:
        self.retractions = 0
        self._thoughts: list[str] = []
        self._held = self._shown = ""
        self._state: Literal["start", "header", "answer", "thought"] = "start"
        self.place: Place = "undecided"
        self.push(prompt_end.rpartition(f"{_START}assistant")[2] if f"{_START}assistant" in prompt_end else "")
        self._shown = ""

    @property
    def thinking(self) -> bool:
        return self._state != "answer"

    @property
    def reasoning(self) -> str | None:
        written = "\n\n".join(text.strip() for text in self._thoughts if text.strip())
        return written or None

    def push(self, piece: str, *, token: bool = False) -> str:
        self._held += piece
        answer = ""
        while (more := self._step()) is not None:
            answer, self._shown = answer + more, self._shown + more
        return answer

    def finish(self, piece: str) -> str:
        answer = self.push(piece)
        if self._state == "thought":
            self._thoughts[-1] += self._held
        elif self._state == "answer" or (self._state == "start" and not self._shown):
            answer, self.place = answer + self._held, "answer"
        self._held = ""
        return answer

    def _step(self) -> str | None:
        """Return what the next part of the held text adds to the answer; None while that is undecided."""
        match self._state:
            case "start":
                return self._begin()
            case "header":
                return self._header()
        return self._body()

    def _begin(self) -> str | None:
        text = self._held.lstrip()
        if text.startswith((_CHANNEL, _START)):
            self._state, self.place = "header", "thought"
            return ""
        if not text or any(mark.startswith(text) for mark in (_CHANNEL, _START)):
            behind = not text and (self._thoughts or self._shown)
            self.place = "thought" if behind else "undecided"
            return None
        self._state = "answer"  # a model that leaves its format says what it says
        return ""

    def _header(self) -> str | None:
        header, mark, rest = self._held.partition(_MESSAGE)
        if not mark:
            return None
        self._held = rest
        channel = header.partition(_CHANNEL)[2].split("<")[0].split()
        recipient = _RECIPIENT.search(header)
        if channel[:1] == ["analysis"]:
            self._state = "thought"
            self._thoughts.append("")
            return ""
        self._state = "answer"
        between = "\n\n" if self._shown else ""
        return f"{between}{_CHANNEL}commentary to={recipient.group(1)}{_MESSAGE}" if recipient else between

    def _body(self) -> str | None:
        ends = [at for at in (self._held.find(mark) for mark in _BODY_ENDS) if at >= 0]
        length = min(ends) if ends else len(self._held) - begins(self._held, _BODY_ENDS)
        text, self._held = self._held[:length], self._held[length:]
        if self._state == "thought":
            self._thoughts[-1] += text
            text, self.place = "", "thought"
        elif text:
            self.place = "answer"
        elif self._held:
            self.place = "undecided"
        if not ends:
            return text or None
        for mark in _TURN_ENDS:
            self._held = self._held.removeprefix(mark)
        self._state, self.place = "start", "thought"
        return text


def begins(text: str, marks: Iterable[str]) -> int:
    """Length of the longest end of a text that begins one of the marks."""
    known = tuple(marks)
    longest = max(map(len, known), default=1) - 1
    sizes = range(min(longest, len(text)), 0, -1)
    return next((size for size in sizes if any(mark.startswith(text[-size:]) for mark in known)), 0)


class UnopenedThought:
    """Finds the closing mark of a thought that nothing has opened, written as plain text.

    Such a mark ends a thought where it stands alone on its line or straight behind the end of a sentence, with nothing
    behind it on the line. In a sentence, in code, or behind its opening mark it is text: an answer may explain it.
    """

    def __init__(self, marks: Iterable[Marks]) -> None:
        # A mark that is a sentence is an ordinary line, too.
        self._openings = {each.closing: each.opening for each in marks if " " not in each.closing}
        closings = "|".join(map(re.escape, self._openings))
        self._mark = re.compile(rf"(?P<mark>{closings})[ \t]*(?:\r?\n|\Z)")
        self._at_end = re.compile(rf"(?:{closings})[ \t]*\r?\Z")

    def find(self, before: str, text: str, *, last: bool) -> re.Match[str] | None:
        """Return the mark in a text.

        Args:
            before: the answer before the text.
            text: the newest part.
            last: whether nothing follows, so that the text's end is the end of a line.
        """
        for found in self._mark.finditer(text):
            said = before + text[: found.start()]
            ends = found.group().endswith("\n") or (last and found.end() == len(text))
            if ends and said.strip() and self._is_unopened(said, found.group("mark")):
                return found
        return None

    def may_begin(self, text: str) -> int:
        """Return the length of the end of a text that may become such a mark."""
        found = self._at_end.search(text)
        return len(text) - found.start() if found else begins(text, self._openings)

    def _is_unopened(self, said: str, closing: str) -> bool:
        line = said.rpartition("\n")[2].strip()
        in_code = sum(each.lstrip().startswith(("```", "~~~")) for each in said.splitlines()) % 2
        return (not line or said[-1] in _SENTENCE_ENDS) and self._openings[closing] not in said and not in_code


_SENTENCE_ENDS = ".!?…。！？"


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a loaded model marks its thoughts.

    Attributes:
        marks: between which it thinks.
        harmony: whether it speaks in channels instead.
        tokens: the marks' own tokens, by id; detokenizers may leave them out.
    """

    marks: tuple[Marks, ...]
    harmony: bool
    tokens: dict[int, str]

    def splitter(self, prompt_end: str) -> Splitter:
        """For one answer to a prompt that ends so."""
        if self.harmony:
            return HarmonySplitter(prompt_end=prompt_end)
        return TaggedSplitter(self.marks, prompt_end=prompt_end)

    def closing(self, prompt_end: str) -> str | None:
        """Return the mark that closes the thought which the prompt opens; None where it opens none."""
        return next((each.closing for each in self.marks if each.is_open(prompt_end)), None)


def read_thinking(template: str, token_id: Callable[[str], int | None]) -> Thinking:
    """Return what a model's chat template and vocabulary say of its thoughts.

    Args:
        template: source of the chat template; empty where there is none.
        token_id: of the single token with exactly this text, or None.
    """
    harmony = all(mark in template or token_id(mark) is not None for mark in (_CHANNEL, _MESSAGE, _START))
    used = () if harmony else tuple(each for each in MARKS if not each.words or _is_used(each, template, token_id))
    texts = _HARMONY if harmony else tuple(text for each in used for text in each.texts)
    found = {text: token_id(text) for text in texts}
    return Thinking(used, harmony, {token: text for text, token in found.items() if token is not None})


def _is_used(marks: Marks, template: str, token_id: Callable[[str], int | None]) -> bool:
    in_vocabulary = all(token_id(text) is not None for text in marks.texts)
    return marks.opening in template or marks.closing in template or in_vocabulary


def without_thoughts(text: str) -> str:
    """Return an answer's text without the thoughts that are written into it, closed or cut.

    For texts that come from elsewhere: a thought that ends without having begun counts as well, since
    many services write the opening mark into the prompt.
    """
    in_channels = text.lstrip().startswith((_CHANNEL, f"{_START}assistant"))
    splitter: Splitter = HarmonySplitter() if in_channels else TaggedSplitter(MARKS)
    answer = splitter.finish(text)
    for marks in MARKS:
        before, closing, after = answer.rpartition(marks.closing)
        if closing and marks.opening not in before:
            answer = after.lstrip()
    return answer
