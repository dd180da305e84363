"""The thread that steps vLLM, and what its workers keep of answers, over a model of bytes that needs no vLLM.

What happens with the real one is in `test_vllm_engine`, where it is installed.
"""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import pytest
from scripted import END, ByteEngine, scripted_model

from guard.engines.constraint import Grammars
from guard.engines.protocols import Chunk
from guard.engines.request import Request
from guard.engines.sampling import TokenSignals
from guard.engines.tokenizing import TokenizingEngine
from guard.engines.vllm.loop import SteppedLoop
from guard.engines.vllm.watching import News, Watch, Watched, end_lost, merge_news, silence, take_row
from guard.errors import CancelledError, EngineError, EngineTimeoutError, InputError
from guard.records import Floats, Limits, ModelInfo, Prompt, Sampling
from guard.response_format import ResponseFormat
from guard.scoring.signature import SignatureObserver

LAYERS, WIDTH = 2, 4


def layers_at(number: int) -> Floats:
    """What the pass that chooses an answer's token of this number puts out."""
    return np.random.default_rng(number).standard_normal((LAYERS, WIDTH)).astype(np.float32)


class TravellingRows:
    """An observer that travels: what it has seen comes back."""

    def __init__(self) -> None:
        self.seen: list[Floats] = []

    def observe(self, activations: Floats) -> None:
        self.seen.append(activations.copy())


class BytesOfVllm:
    """In vLLM's place: it answers each prompt with the prompt itself, a byte a step, and an end."""

    def __init__(self, engine: BytesEngine) -> None:
        self.engine = engine
        self.watch = Watch(engine._reader, Grammars(engine._grammar_vocabulary).constraint)
        self.left: dict[str, list[int]] = {}
        self.most = self.steps = self.closed = 0
        self.before_step: Callable[[], None] = lambda: None

    def begin(self, requests: Sequence[Request]) -> list[str]:
        keys = [f"{self.steps}.{number}" for number in range(len(requests))]
        for key, request in zip(keys, requests, strict=True):
            observer = None if request.reader is None else pickle.dumps(request.reader)
            self.left[key] = [*request.tokens, END]
            settings = {"stop": request.limits.stop, "observer": observer, "live": request.on_token is not None}
            forced = None if request.forced is None else tuple(request.forced)
            self.watch.begin(
                {
                    key: Watched(
                        tuple(request.tokens),
                        len(request.tokens),
                        request.max_tokens,
                        request.sampling,
                        forced=forced,
                        response_format=request.prompt.response_format,
                        **settings,
                    )
                }
            )
        self.most = max(self.most, len(self.left))
        return keys

    def step(self) -> Mapping[str, News]:
        self.before_step()
        self.steps += 1
        keys = [*self.left]
        for at, answer in self.watch.watched(keys).items():
            rest = self.left[keys[at]]
            number = len(self.engine.encode_text("")) if not rest else len(answer._answer)
            logits = np.full(END + 1, -5.0, np.float32)
            logits[rest[0]] = 5.0
            masked = answer.mask(logits)
            token = int((logits if masked is None else masked).argmax()) if answer.forced is None else answer.forced
            self.left[keys[at]] = rest[1:] or [END]
            take_row(answer, [token], TokenSignals(-0.5, 1.0, 2.0), lambda number=number: layers_at(number))
        news = self.watch.news()
        for key, each in news.items():
            if each.is_last:
                del self.left[key]
        return news

    def drop(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.left.pop(key, None)
        self.watch.drop(keys)

    def close(self) -> None:
        self.closed += 1


class BytesEngine(TokenizingEngine):
    """`VllmEngine` without vLLM: the same loop, and tokens that are bytes."""

    capture_point = "mlp"
    encode = ByteEngine.encode
    encode_text = ByteEngine.encode_text
    _detokenizer = ByteEngine._detokenizer
    _is_end = ByteEngine._is_end
    _grammar_vocabulary = ByteEngine._grammar_vocabulary
    _end_token = ByteEngine._end_token

    def __init__(self, slots: int = 4) -> None:
        self.vllm = BytesOfVllm(self)
        self.at = slots
        super().__init__(SteppedLoop(self.vllm, slots))

    @property
    def model(self) -> ModelInfo:
        return scripted_model()

    @property
    def at_once(self) -> int:
        return self.at

    def _free(self) -> None:
        self.vllm.close()

    @property
    def holds(self) -> tuple[int, int]:
        """How many requests vLLM and the watch hold anything of."""
        return len(self.vllm.left), len(self.vllm.watch)


@pytest.fixture
def engine() -> Iterator[BytesEngine]:
    with BytesEngine() as engine:
        yield engine


def hold(engine: BytesEngine) -> tuple[threading.Event, threading.Event]:
    """Stop vLLM before its next step, until the second event is set; the first says that it has come there."""
    reached, opened = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        assert opened.wait(20)

    engine.vllm.before_step = wait
    return reached, opened


# -- answers -----------------------------------------------------------------------------------


def test_an_answer_comes_with_its_signals_and_its_observer_comes_back(engine: BytesEngine) -> None:
    rows = TravellingRows()
    answer = engine.generate(Prompt.raw("Paris"), observer=rows)
    assert (answer.text, answer.finish_reason, answer.token_ids[-1]) == ("Paris", "stop", END)
    assert answer.logprobs.tolist() == [-0.5] * 6
    assert (answer.prompt_tokens, answer.capture_error) == (5, None)
    assert np.array_equal(rows.seen, [layers_at(number) for number in range(6)]), "the end's pass included"
    assert engine.holds == (0, 0)


def test_a_signature_is_made_where_the_rows_are(engine: BytesEngine) -> None:
    away, here = SignatureObserver(), SignatureObserver()
    engine.generate(Prompt.raw("Paris"), observer=away)
    for number in range(6):
        here.observe(layers_at(number))
    assert np.array_equal(away.signature().maps, here.signature().maps)
    assert np.array_equal(away.signature().activations, here.signature().activations)


def test_many_requests_of_different_lengths_share_steps_and_mix_up_nothing(engine: BytesEngine) -> None:
    texts = ["a" * (1 + number % 7) + str(number) for number in range(32)]

    async def ask() -> list[tuple[str, int]]:
        observers = [TravellingRows() for _ in texts]
        asked = [engine.agenerate(Prompt.raw(text), observer=each) for text, each in zip(texts, observers, strict=True)]
        answers = await asyncio.gather(*asked)
        return [(answer.text, len(each.seen)) for answer, each in zip(answers, observers, strict=True)]

    assert asyncio.run(ask()) == [(text, len(text) + 1) for text in texts]
    assert engine.vllm.most == 4, "the slots"
    assert engine.vllm.steps < sum(map(len, texts)), "requests share steps"


def test_an_answer_that_exists_already_is_run_as_if_it_had_been_chosen(engine: BytesEngine) -> None:
    rows = TravellingRows()
    answer = engine.generate(Prompt.raw("What?"), completion="Rome", observer=rows)
    assert (answer.text, len(rows.seen), answer.token_ids[-1]) == ("Rome", 5, END)


def test_a_stop_string_ends_an_answer_and_its_request(engine: BytesEngine) -> None:
    answer = engine.generate(Prompt.raw("one. two"), limits=Limits(stop=(".",)))
    assert (answer.text, answer.finish_reason) == ("one", "stop_string")
    assert engine.holds == (0, 0)


def test_a_token_limit_cuts(engine: BytesEngine) -> None:
    answer = engine.generate(Prompt.raw("abcdef"), limits=Limits(max_tokens=3))
    assert (answer.text, answer.finish_reason) == ("abc", "length")


def test_a_response_format_is_held_in_the_worker(engine: BytesEngine) -> None:
    prompt = Prompt.chat("maybe", response_format=ResponseFormat.regex("yes|no"))
    answer = engine.generate(prompt)
    assert answer.text in ("yes", "no")
    assert answer.redirected


def test_a_stream_shows_what_is_safe_and_ends_with_the_generation(engine: BytesEngine) -> None:
    *pieces, last = engine.stream(Prompt.raw("one. two"), limits=Limits(stop=(". t",)))
    assert "".join(chunk.text for chunk in pieces) == "one"
    assert last.generation is not None
    assert all(isinstance(chunk, Chunk) and ". t" not in chunk.text for chunk in pieces)


def test_a_live_callers_observer_is_up_to_date_at_every_token(engine: BytesEngine) -> None:
    rows, seen = TravellingRows(), []
    for _ in engine.stream(Prompt.raw("abc"), observer=rows, on_token=lambda _: seen.append(len(rows.seen))):
        pass
    assert seen == [1, 2, 3]


# -- ends --------------------------------------------------------------------------------------


def test_a_cancelled_request_leaves_nothing_behind(engine: BytesEngine) -> None:
    reached, opened = hold(engine)
    cancel = threading.Event()
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            engine.generate(Prompt.raw("abc"), observer=TravellingRows(), cancel=cancel)
        except CancelledError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert reached.wait(20)
    cancel.set()
    opened.set()
    asking.join(20)
    assert len(errors) == 1
    assert engine.holds == (0, 0)


def test_a_late_request_leaves_nothing_behind(engine: BytesEngine) -> None:
    engine.vllm.before_step = lambda: time.sleep(0.02)
    with pytest.raises(EngineTimeoutError, match="No answer within"):
        engine.generate(Prompt.raw("a" * 300), observer=TravellingRows(), limits=Limits(timeout_s=0.1))
    assert engine.holds == (0, 0)


def test_a_stream_that_is_left_ends_its_request(engine: BytesEngine) -> None:
    stream = engine.stream(Prompt.raw("a" * 300), observer=TravellingRows())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert engine.holds == (0, 0)


def test_what_on_token_raises_ends_its_own_request_only(engine: BytesEngine) -> None:
    def fail(_: TokenSignals) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(engine.stream(Prompt.raw("abc"), on_token=fail))
    assert engine.holds == (0, 0)
    assert engine.generate(Prompt.raw("abc")).text == "abc"


def test_on_token_cannot_ask_its_own_engine(engine: BytesEngine) -> None:
    with pytest.raises(InputError, match="asks the engine that calls it"):
        list(engine.stream(Prompt.raw("abc"), on_token=lambda _: engine.generate(Prompt.raw("b")) and None))


def test_a_step_that_fails_ends_what_runs_and_the_next_request_may_work(engine: BytesEngine) -> None:
    def fail() -> None:
        engine.vllm.before_step = lambda: None
        raise RuntimeError("worker died\nwith a trace")

    engine.vllm.before_step = fail
    with pytest.raises(EngineError, match="vLLM failed: RuntimeError: worker died") as caught:
        engine.generate(Prompt.raw("abc"))
    assert "trace" not in str(caught.value)
    assert engine.holds == (0, 0)
    assert engine.generate(Prompt.raw("abc")).text == "abc"


def test_a_request_that_vllm_does_not_take_ends_alone(engine: BytesEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(engine.vllm, "begin", lambda requests: 1 / 0)
        with pytest.raises(EngineError, match="vLLM failed"):
            engine.generate(Prompt.raw("abc"))
    assert engine.generate(Prompt.raw("abc")).text == "abc"


def test_an_observer_that_fails_is_data_and_not_the_loss_of_the_answer(engine: BytesEngine) -> None:
    answer = engine.generate(Prompt.raw("abc"), observer=FailingRows())
    assert answer.text == "abc"
    assert "no room" in (answer.capture_error or "")


class FailingRows:
    def observe(self, _: Floats) -> None:
        raise RuntimeError("no room")


def test_an_answer_that_is_complete_takes_nothing_more_until_somebody_asks_for_it(engine: BytesEngine) -> None:
    watch = Watch(engine._reader, Grammars(engine._grammar_vocabulary).constraint)
    watch.begin({"one": Watched((), 0, 2, Sampling()), "other": Watched((), 0, 9, Sampling())})
    for _ in range(4):  # vLLM's server goes on until guard ends the request
        for answer in watch.watched(["one", "nobody's", "other"]).values():
            take_row(answer, [ord("a")], TokenSignals(-0.5, 1.0, 2.0), lambda: layers_at(0))
    assert [*watch.watched(["one", "nobody's", "other"])] == [2]
    news = watch.news()["one"]
    assert news.generation is not None
    assert news.generation.text == "aa"
    assert len(watch) == 1


def test_requests_that_nobody_watches_can_only_end(engine: BytesEngine) -> None:
    watch = Watch(engine._reader, Grammars(engine._grammar_vocabulary).constraint)
    watch.begin({"complete": Watched((), 0, 1, Sampling()), "grows": Watched((), 0, 9, Sampling())})
    keys = ["nobody's", "grows", "complete"]
    take_row(watch.watched(keys)[2], [ord("a")], TokenSignals(-0.5, 1.0, 2.0), lambda: layers_at(0))
    before = np.random.default_rng(0).standard_normal((len(keys), 8)).astype(np.float32)
    logits = before.copy()
    silence(logits, len(keys), watch.watched(keys), 5)
    assert np.array_equal(logits[1], before[1])
    for row in logits[[0, 2]]:
        assert row[5] == 0.0
        assert np.isneginf(np.delete(row, 5)).all()
    silence(logits, 1, {0}, 5)  # all are watched


def test_the_news_of_a_request_are_those_of_the_replica_that_answers_it(engine: BytesEngine) -> None:
    replicas = [Watch(engine._reader, Grammars(engine._grammar_vocabulary).constraint) for _ in range(2)]
    for watch in replicas:  # both watch both requests; vLLM gives one to each
        watch.begin({key: Watched((), 0, 2, Sampling()) for key in ("first", "second")})
    for watch, key, letter in zip(replicas, ("first", "second"), "ab", strict=True):
        take_row(watch.watched([key])[0], [ord(letter)], TokenSignals(-0.5, 1.0, 2.0), lambda: layers_at(0))
    news = merge_news(watch.news() for watch in replicas)
    assert {key: (each.text, len(each.signals)) for key, each in news.items()} == {
        "first": ("a", 1),
        "second": ("b", 1),
    }
    replicas[1].watched(["second"])[0].fail(EngineError("wrong"))
    news = merge_news(watch.news() for watch in replicas)
    assert (news["first"].is_empty, str(news["second"].error)) == (True, "wrong.")
    news = merge_news(watch.news() for watch in reversed(replicas))
    assert [*news] == ["first", "second"], "it is still watched by the replica that does not answer it"


def test_a_request_that_vllm_has_ended_and_no_worker_has_completed_is_lost(engine: BytesEngine) -> None:
    watch = Watch(engine._reader, Grammars(engine._grammar_vocabulary).constraint)
    watch.begin({"grows": Watched((), 0, 9, Sampling()), "complete": Watched((), 0, 1, Sampling())})
    for answer in watch.watched(["grows", "complete"]).values():
        take_row(answer, [ord("a")], TokenSignals(-0.5, 1.0, 2.0), lambda: layers_at(0))
    ended: dict[str, Exception] = {key: EngineError("it stopped") for key in ("grows", "complete", "gone")}
    news = end_lost(watch.news(), ended)
    assert {key: str(each.error) for key, each in news.items() if each.error} == {
        "grows": "it stopped.",
        "gone": "it stopped.",
    }
    assert news["grows"].generation is None
    assert news["complete"].generation is not None


def test_an_answer_whose_row_cannot_be_read_fails_alone(engine: BytesEngine) -> None:
    watch = Watch(engine._reader, Grammars(engine._grammar_vocabulary).constraint)
    watch.begin({key: Watched((), 0, 1, Sampling()) for key in ("one", "other")})
    one, other = watch.watched(["one", "other"]).values()
    take_row(one, [-1], TokenSignals(-0.5, 1.0, 2.0), lambda: layers_at(0))  # there is no such byte
    take_row(other, [ord("a")], TokenSignals(-0.5, 1.0, 2.0), lambda: layers_at(0))
    news = watch.news()
    assert news["one"].error is not None
    assert news["one"].generation is None
    assert news["other"].generation is not None


def test_closing_ends_what_runs_and_vllm() -> None:
    engine = BytesEngine()
    reached, opened = hold(engine)
    errors: list[BaseException] = []

    def ask() -> None:
        try:
            engine.generate(Prompt.raw("abc"))
        except EngineError as error:
            errors.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert reached.wait(20)
    closing = threading.Thread(target=engine.close)
    closing.start()
    opened.set()
    closing.join(20)
    asking.join(20)
    assert len(errors) == 1
    assert engine.vllm.closed == 1
    with pytest.raises(EngineError, match="closed"):
        engine.generate(Prompt.raw("abc"))


def test_an_answer_that_failed_at_its_end_is_none(engine: BytesEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker may say both: that it has an answer, and that something about it is wrong."""
    step = engine.vllm.step

    def failing() -> Mapping[str, News]:
        news = step()
        for each in news.values():
            each.error = EngineError("wrong") if each.is_last else None
        return news

    monkeypatch.setattr(engine.vllm, "step", failing)
    with pytest.raises(EngineError, match="wrong"):
        engine.generate(Prompt.raw("abc"))
