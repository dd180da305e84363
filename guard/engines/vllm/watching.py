"""State of a vLLM worker for the answers that guard observes: their text, their signals, their observers.

Pure but for the observers: a worker says which tokens were chosen and hands over the rows that belong to them. Only
what the observers have made of these rows leaves the worker.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guard.engines.constraint import Constraint
from guard.engines.growing import AnswerReader, GrowingAnswer
from guard.engines.sampling import TokenSignals
from guard.errors import EngineError
from guard.records import FinishReason, Floats, Generation, Sampling
from guard.response_format import ResponseFormat


@dataclass(frozen=True, slots=True)
class Watched:
    """The parts of a request that a worker needs.

    Attributes:
        prompt_end: the prompt's last tokens, which say whether a thought is open.
        prompt_tokens: how many it has.
        max_tokens: of the answer.
        sampling: as asked for.
        stop: texts that end the answer.
        tools: whether the model may call tools.
        observer: pickled; None where nobody reads the layers.
        forced: tokens of a given completion, its end included; None where the model chooses.
        response_format: the form that the answer must have.
        live: whether the observer's state is wanted after every token, for a caller who looks at it.
    """

    prompt_end: tuple[int, ...]
    prompt_tokens: int
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...] = ()
    tools: bool = False
    observer: bytes | None = None
    forced: tuple[int, ...] | None = None
    response_format: ResponseFormat | None = None
    live: bool = False


@dataclass(slots=True)
class News:
    """News of a request since the last call.

    Attributes:
        text: text that is safe to show.
        signals: of the tokens of the answer, without its end.
        observer: the attributes of the request's observer, where it is live or the answer is complete.
        generation: the whole answer, once it is complete; its times are not known here.
        error: why there will be no answer.
    """

    text: str = ""
    signals: list[TokenSignals] = field(default_factory=list)
    observer: Mapping[str, Any] | None = None
    generation: Generation | None = None
    error: Exception | None = None

    @property
    def is_last(self) -> bool:
        """Whether nothing follows."""
        return self.generation is not None or self.error is not None

    @property
    def is_empty(self) -> bool:
        """Whether nothing has happened."""
        return not (self.text or self.signals or self.observer or self.is_last)


def merge_news(replies: Iterable[Mapping[str, News]]) -> dict[str, News]:
    """Return the news of each request from the one replica that answers it; the others have none.

    Args:
        replies: of each replica, for the same requests.

    Examples:
        >>> merge_news([{"a": News("Par"), "b": News()}, {"a": News(), "b": News("Rome")}])["b"].text
        'Rome'
    """
    merged: dict[str, News] = {}
    for reply in replies:
        merged |= {key: news for key, news in reply.items() if key not in merged or not news.is_empty}
    return merged


def end_lost(news: Mapping[str, News], ended: Mapping[str, Exception]) -> dict[str, News]:
    """Return the news, with an error for each request that vLLM has ended and no worker has completed.

    Args:
        news: of each request.
        ended: why vLLM has ended some requests.

    Examples:
        >>> found = end_lost({"a": News("Par")}, {"a": EngineError("It stopped"), "b": EngineError("It is gone")})
        >>> str(found["b"].error)
        'It is gone.'
    """
    lost = {key: News(error=error) for key, error in ended.items() if key not in news or not news[key].is_last}
    return {**news, **lost}


class WatchedAnswer:
    """One answer while a worker generates it.

    Attributes:
        observer: gets the layers of each token of the answer; None where nobody reads them.
        constraint: of an answer that must have a response format.
    """

    def __init__(self, watched: Watched, reader: AnswerReader, constraint: Constraint | None) -> None:
        """
        Args:
            watched: the request.
            reader: of the model's answers.
            constraint: of its response format.
        """
        self._watched, self.constraint = watched, constraint
        self.observer: Any = None if watched.observer is None else pickle.loads(watched.observer)  # noqa: S301 - our own
        stop = watched.stop if watched.forced is None else ()
        reading = reader.reading(watched.prompt_end, stop=stop, tools=watched.tools)
        self._news = News()
        self._answer = GrowingAnswer(reading, self.observer, self._note)

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to add: the answer is complete, or has failed."""
        return self._news.is_last

    @property
    def forced(self) -> int | None:
        """The next token of a given completion; None where the model chooses."""
        return None if self._watched.forced is None else self._watched.forced[len(self._answer)]

    def mask(self, logits: Floats) -> Floats | None:
        """Return the logits, shape (V,), with -inf for what the response format rules out; None where all may come."""
        return None if self.constraint is None or self._answer.thinking else self.constraint.mask(logits)

    def take(self, token: int, signals: TokenSignals, activations: Callable[[], Floats]) -> None:
        """Continue after a token was chosen; arguments as for `GrowingAnswer.push`.

        Raises:
            EngineError: the response format does not allow the token, or is not complete at the end.
        """
        if self.constraint is not None and not self._answer.thinking:
            self.constraint.take(token)
        self._news.text += self._answer.push(token, signals, activations)
        if self._answer.ended:
            self._finish("stop_string" if self._answer.stopped else "stop")
        elif len(self._answer) == self._watched.max_tokens:
            self._finish("length")

    def fail(self, error: Exception) -> None:
        """Record that there will be no answer."""
        self._news.error = error

    def news(self) -> News:
        """Return the news of the request since the last call."""
        news, self._news = self._news, News()
        if self.observer is not None and (news.is_last or (self._watched.live and news.signals)):
            news.observer = vars(self.observer)
        return news

    def _note(self, signals: TokenSignals) -> None:
        self._news.signals.append(signals)

    def _finish(self, reason: FinishReason) -> None:
        self._news.text += self._answer.finish(cut=reason == "length")
        if self.constraint is not None and reason != "length":
            self.constraint.check_complete(self._answer.answer_tokens)
        self._news.generation = self._answer.generation(
            reason,
            prompt_tokens=self._watched.prompt_tokens,
            sampling=self._watched.sampling,
            queue_s=0.0,
            seconds=0.0,
            redirected=None if self.constraint is None else self.constraint.redirected,
        )


class Watch:
    """All answers that a worker watches, by the keys of vLLM's requests."""

    def __init__(self, reader: AnswerReader, constraint: Callable[[ResponseFormat], Constraint]) -> None:
        """
        Args:
            reader: of the model's answers.
            constraint: makes one for a response format.
        """
        self._reader, self._constraint = reader, constraint
        self._answers: dict[str, WatchedAnswer] = {}

    def __len__(self) -> int:
        return len(self._answers)

    def begin(self, requests: Mapping[str, Watched]) -> None:
        """Watch some requests from now on."""
        for key, watched in requests.items():
            wanted = watched.response_format
            constraint = None if wanted is None else self._constraint(wanted)
            self._answers[key] = WatchedAnswer(watched, self._reader, constraint)

    def drop(self, keys: Iterable[str]) -> None:
        """Forget some requests, whether they are complete or not."""
        for key in keys:
            self._answers.pop(key, None)

    def watched(self, keys: Sequence[str]) -> dict[int, WatchedAnswer]:
        """Return the answers of a batch that grow, by their positions in it."""
        found = {at: self._answers.get(key) for at, key in enumerate(keys)}
        return {at: answer for at, answer in found.items() if answer is not None and not answer.is_over}

    def news(self) -> dict[str, News]:
        """Return the news of each request, and forget complete ones."""
        news = {key: answer.news() for key, answer in self._answers.items()}
        self.drop([key for key, each in news.items() if each.is_last])
        return news


def silence(logits: Any, requests: int, answers: Container[int], end: int) -> None:
    """Leave only the end token to requests that are not watched, or whose answers are complete.

    Args:
        logits: of a batch, one row for each request; they are changed.
        requests: in the batch.
        answers: positions in it of the answers that grow.
        end: the token that ends an answer.
    """
    unwatched = [at for at in range(requests) if at not in answers]
    if unwatched:
        logits[unwatched] = -math.inf
        logits[unwatched, end] = 0.0


def take_row(answer: WatchedAnswer, tokens: Sequence[int], signals: TokenSignals, row: Callable[[], Floats]) -> None:
    """Hand an answer the tokens that a pass has chosen for it; whatever fails ends this request and no other.

    Args:
        answer: takes them.
        tokens: one, or none in the middle of a prompt.
        signals: of its choice.
        row: the layers of the pass.
    """
    try:
        for token in tokens:
            answer.take(token, signals, row)
    except Exception as error:  # noqa: BLE001 - its caller raises it
        answer.fail(error)


def lost_error() -> EngineError:
    """Return the error of a request that vLLM has ended and guard has not."""
    return EngineError(
        "vLLM ended an answer before its end",
        why="its own rules stopped it, such as the length of its context",
        fix="Lower max_tokens, or load the model with a larger context_tokens",
    )
