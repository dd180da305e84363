"""The llama.cpp engine: capture against transformers, what a user's Llama sees of it, and broken files."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import hashlib
import importlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp
from recording_observer import Recording
from tiny_gguf import CONTEXT, LAYERS, SPECIAL, WIDTH, write_tiny_gguf

from guard.engines import embedded_model, llama_nodes, load_engine
from guard.engines.cores import usable_cores
from guard.engines.llama_context import BATCH_TOKENS
from guard.engines.llama_cpp import LlamaCppEngine, cpu_features
from guard.errors import (
    CancelledError,
    CaptureError,
    ChatTemplateError,
    EngineError,
    EngineTimeoutError,
    GuardError,
    InputError,
    ModelFileError,
    PromptTooLongError,
    UnsupportedArchitectureError,
)
from guard.records import Floats, Limits, Prompt, Sampling, Signals
from guard.scoring.signature import FeatureSchema, SignatureObserver, feature_vector

QUESTION = Prompt.chat("What is the capital of France?", system="Answer briefly.")
SHORT = Prompt.chat("What is the capital of France?", system="Answer in few words.")
ANSWER = "The capital of France is Paris."


@pytest.fixture(scope="module")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture
def tiny(tiny_path: Path) -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine.load(tiny_path) as engine:
        yield engine  # type: ignore[misc]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=1)])
def test_logits_that_are_not_numbers_are_named_as_such(tmp_path: Path, value: float, sampling: Sampling) -> None:
    damaged = write_tiny_gguf(tmp_path / "damaged.gguf", weights={"output": value})
    with LlamaCppEngine.load(damaged, threads=1) as engine, pytest.raises(EngineError, match="logits are not numbers"):
        engine.generate(QUESTION, sampling=sampling)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="the system does not list a process's threads")
def test_no_thread_of_llama_cpp_stays_when_a_model_is_loaded_or_has_nothing_to_do(tiny_path: Path) -> None:
    """Workers stay as long as the thread that called llama.cpp; more of them than cores, and none spins."""

    def threads() -> set[str]:
        return {thread.name for thread in Path("/proc/self/task").iterdir()}

    def wait_for_their_end() -> None:
        """Workers are listed for a moment after the thread whose they were."""
        end = time.monotonic() + 20
        while not threads() <= before:
            assert time.monotonic() < end, "its threads have not ended"
            time.sleep(0.02)

    before = threads()
    with LlamaCppEngine.load(tiny_path, threads=2, trial_load=False) as engine:
        wait_for_their_end()
        engine.generate(Prompt.raw("quick"), limits=Limits(max_tokens=4))
        wait_for_their_end()


# -- one model, one engine ---------------------------------------------------------------------


@pytest.mark.model
def test_what_is_loaded(smollm2: LlamaCppEngine, smollm2_path: Path) -> None:
    model = smollm2.model
    assert (model.engine, model.architecture, model.quantization) == ("llama.cpp", "llama", "Q4_1")
    assert (model.layers, model.width, model.context_tokens) == (30, 576, 2048)
    assert model.weights_sha256 == hashlib.sha256(smollm2_path.read_bytes()).hexdigest()
    template = str(smollm2.chat_template)
    assert model.chat_template_sha256 == hashlib.sha256(template.encode()).hexdigest()
    assert embedded_model() == smollm2_path


@pytest.mark.model
def test_an_answer_and_its_layers(smollm2: LlamaCppEngine) -> None:
    recording = Recording()
    answer = smollm2.generate(SHORT, limits=Limits(max_tokens=16), observer=recording)
    assert "Paris" in answer.text
    assert answer.finish_reason == "stop"
    assert answer.capture_error is None
    assert recording.stack.shape == (answer.completion_tokens, 30, 576)
    assert np.isfinite(recording.stack).all()
    assert np.abs(recording.stack).max(axis=2).min() > 0, "every layer of every token was written"
    assert len({activations.tobytes() for activations in recording.seen}) == answer.completion_tokens
    assert (answer.logprobs <= 0).all()
    assert (answer.entropies >= 0).all()
    assert (answer.margins >= 0).all()
    np.testing.assert_allclose(answer.logprobs, answer.logprobs.clip(max=0))


@pytest.mark.model
def test_streams_and_tasks_give_the_same_answer(smollm2: LlamaCppEngine) -> None:
    limits = Limits(max_tokens=8)
    recordings = [Recording() for _ in range(4)]
    answer = smollm2.generate(QUESTION, limits=limits, observer=recordings[0])
    chunks = list(smollm2.stream(QUESTION, limits=limits, observer=recordings[1]))

    async def tasks() -> tuple[Any, list[Any]]:
        generated = await smollm2.agenerate(QUESTION, limits=limits, observer=recordings[2])
        return generated, [chunk async for chunk in smollm2.astream(QUESTION, limits=limits, observer=recordings[3])]

    awaited, streamed = asyncio.run(tasks())
    others = [chunks[-1].generation, awaited, streamed[-1].generation]
    assert "".join(chunk.text for chunk in chunks) == "".join(chunk.text for chunk in streamed) == answer.text
    for other in others:
        assert other.token_ids == answer.token_ids
        np.testing.assert_array_equal(other.logprobs, answer.logprobs)
    for recording in recordings[1:]:
        np.testing.assert_array_equal(recording.stack, recordings[0].stack)


@pytest.mark.model
def test_a_replay_is_the_generation_again(smollm2: LlamaCppEngine) -> None:
    said, given = Recording(), Recording()
    answer = smollm2.generate(SHORT, limits=Limits(max_tokens=16), observer=said)
    replayed = smollm2.generate(SHORT, completion=answer.text, observer=given)
    assert (replayed.text, replayed.token_ids) == (answer.text, answer.token_ids)
    np.testing.assert_array_equal(replayed.logprobs, answer.logprobs)
    np.testing.assert_array_equal(given.stack, said.stack)


@pytest.mark.model
def test_a_replay_ends_as_the_model_would(smollm2: LlamaCppEngine) -> None:
    """The vocabulary has several end tokens; a wrong one makes every replayed answer look unlikely."""
    replayed = smollm2.generate(QUESTION, completion=ANSWER)
    assert smollm2._vocabulary.piece(replayed.token_ids[-1]) == b""
    assert smollm2._vocabulary.token_text(replayed.token_ids[-1]) == "<|im_end|>"
    assert replayed.logprobs[-1] > -1


@pytest.mark.model
def test_signals_are_those_of_llama_cpp_itself(smollm2: LlamaCppEngine, llama: Any) -> None:
    """The same model, fed by llama-cpp-python."""
    answer = smollm2.generate(QUESTION, limits=Limits(max_tokens=4))
    llama.reset()
    fed = smollm2.encode(QUESTION)
    for number, token in enumerate(answer.token_ids):
        llama.eval(fed)
        logits = logits_of(llama).astype(np.float64)
        logprobs = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
        assert token == logits.argmax()
        assert answer.logprobs[number] == pytest.approx(logprobs[token], abs=1e-4)
        assert answer.entropies[number] == pytest.approx(-(np.exp(logprobs) * logprobs).sum(), abs=1e-3)
        first, second = np.sort(logprobs)[-1:-3:-1]
        assert answer.margins[number] == pytest.approx(first - second, abs=1e-4)
        fed = [token]


@pytest.mark.model
def test_a_prompt_of_several_batches(smollm2: LlamaCppEngine, llama: Any) -> None:
    prompt = Prompt.raw("The cat sat on the mat. " * 80)
    tokens = smollm2.encode(prompt)
    assert len(tokens) > BATCH_TOKENS
    recording = Recording()
    answer = smollm2.generate(prompt, limits=Limits(max_tokens=2), observer=recording)
    assert answer.capture_error is None
    assert recording.stack.shape == (2, 30, 576)
    llama.reset()
    llama.eval(tokens)
    logits = logits_of(llama).astype(np.float64)
    assert answer.token_ids[0] == logits.argmax()
    expected = logits.max() - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    assert answer.logprobs[0] == pytest.approx(expected, abs=2e-3)


@pytest.mark.model
def test_limits_stop_strings_and_seeds(smollm2: LlamaCppEngine) -> None:
    assert smollm2.generate(QUESTION, limits=Limits(max_tokens=3)).finish_reason == "length"
    stopped = smollm2.generate(QUESTION, completion=None, limits=Limits(max_tokens=12, stop=("e",)))
    assert stopped.finish_reason == "stop_string"
    assert "e" not in stopped.text
    warm, limits = Sampling(temperature=1.5, seed=5), Limits(max_tokens=8)
    first, second = (smollm2.generate(QUESTION, sampling=warm, limits=limits) for _ in range(2))
    other = smollm2.generate(QUESTION, sampling=Sampling(temperature=1.5, seed=6), limits=limits)
    assert first.token_ids == second.token_ids != other.token_ids
    narrow = smollm2.generate(QUESTION, sampling=Sampling(temperature=1.5, top_k=1, seed=5), limits=limits)
    assert narrow.token_ids == smollm2.generate(QUESTION, limits=limits).token_ids


@pytest.mark.model
@pytest.mark.parametrize("text", ["Zürich — 日本語 🙂🏳️‍🌈 ß", "a\0b", "  two  spaces ", "\n\n", "<|im_end|>", "e\u0301"])
def test_answers_in_any_script(smollm2: LlamaCppEngine, text: str) -> None:
    assert smollm2.generate(QUESTION, completion=text).text == text


@pytest.mark.model
def test_streamed_characters_are_whole(smollm2: LlamaCppEngine) -> None:
    warm = Sampling(temperature=8.0, seed=1)
    chunks = list(smollm2.stream(QUESTION, sampling=warm, limits=Limits(max_tokens=24)))
    answer = chunks[-1].generation
    assert answer is not None
    assert "".join(chunk.text for chunk in chunks) == answer.text
    assert answer.text.isascii() is False, "this seed has no other script: choose another"


@pytest.mark.model
def test_special_tokens_in_an_answer_are_text(smollm2: LlamaCppEngine) -> None:
    tokens = smollm2.encode_text("<|im_end|>")
    assert len(tokens) > 1
    assert smollm2.encode(Prompt.raw("<|im_end|>")) != tokens, "in a raw prompt they are tokens"


def test_text_that_is_none(tiny: LlamaCppEngine) -> None:
    for ask in (lambda: tiny.encode(Prompt.raw("\ud800")), lambda: tiny.encode_text("\ud800")):
        with pytest.raises(InputError, match="surrogate"):
            ask()
    with pytest.raises(GuardError):
        tiny.generate(Prompt.chat("\ud800"))
    with pytest.raises(InputError, match="empty"):
        tiny.generate(Prompt.raw(""))


@pytest.mark.parametrize("threads", [1, 2])
def test_greedy_answers_are_repeatable(tiny_path: Path, threads: int) -> None:
    with LlamaCppEngine.load(tiny_path, threads=threads, deterministic=True) as engine:
        prompts = [Prompt.chat(f"question {number}") for number in range(6)]
        alone = [engine.generate(prompt, limits=Limits(max_tokens=6)) for prompt in prompts]
        with ThreadPoolExecutor(6) as pool:
            ask = lambda prompt: engine.generate(prompt, limits=Limits(max_tokens=6))  # noqa: E731
            together = list(pool.map(ask, prompts * 2))
    assert [answer.token_ids for answer in together] == [answer.token_ids for answer in alone] * 2
    assert {answer.logprobs.tobytes() for answer in together} == {answer.logprobs.tobytes() for answer in alone}


# -- room --------------------------------------------------------------------------------------


@pytest.mark.parametrize("context", [1, 10, 100, 300, CONTEXT])
def test_the_context_is_as_large_as_asked_for(tiny_path: Path, context: int) -> None:
    """llama.cpp rounds it up, and ends the process on a batch that is larger than the context."""
    with LlamaCppEngine.load(tiny_path, context_tokens=context) as engine:
        assert engine.model.context_tokens == context
        with pytest.raises(PromptTooLongError, match=f"has {context} tokens, the context holds {context}"):
            engine.generate(Prompt.raw("x" * context))
        if context > 1:
            recording = Recording()
            answer = engine.generate(Prompt.raw("x" * (context - 1)), observer=recording)
            assert answer.completion_tokens == 1
            assert recording.stack.shape == (1, LAYERS, WIDTH)


def test_the_context_is_at_most_the_models_own(tiny_path: Path) -> None:
    with LlamaCppEngine.load(tiny_path, context_tokens=10**9) as engine:
        assert engine.model.context_tokens == CONTEXT


def test_an_answer_ends_where_the_context_does(tiny_path: Path) -> None:
    with LlamaCppEngine.load(tiny_path, context_tokens=40) as engine:
        answer = engine.generate(Prompt.raw("x" * 30), sampling=Sampling(temperature=2.0, seed=1))
        assert answer.prompt_tokens + answer.completion_tokens <= 40
        assert answer.finish_reason in ("length", "stop")


def test_a_context_that_does_not_fit_into_memory(tmp_path: Path) -> None:
    """In a process of its own, which may have no more than half a gigabyte beyond what it has."""
    pytest.importorskip("resource")
    path = write_tiny_gguf(tmp_path / "m.gguf", context=2**22)
    code = """
import resource, sys
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import OutOfMemoryError
LlamaCppEngine.load(sys.argv[1]).close()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
try:
    LlamaCppEngine.load(sys.argv[1], context_tokens=2**22)
except OutOfMemoryError as error:
    print(error)
LlamaCppEngine.load(sys.argv[1]).close()
"""
    ended = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "no context of 4194304 tokens" in ended.stdout
    assert "Lower context_tokens" in ended.stdout


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"context_tokens": 0}, "context_tokens must be at least 1, got 0"),
        ({"context_tokens": -5}, "context_tokens must be at least 1, got -5"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"capture_point": "mlpp"}, "Unknown capture point 'mlpp'. Did you mean 'mlp'"),
    ],
)
def test_options_that_make_no_sense(tiny_path: Path, options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        LlamaCppEngine.load(tiny_path, **options)


# -- a Llama that the user has loaded ----------------------------------------------------------


def logits_of(llama: Any) -> Floats:
    pointer = llama_cpp.llama_get_logits_ith(llama._ctx.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).copy()


def state_of(llama: Any) -> bytes:
    """Everything that llama.cpp keeps of a context: its cache, logits and random numbers."""
    size = llama_cpp.llama_state_get_size(llama._ctx.ctx)
    buffer = (ctypes.c_uint8 * size)()
    written = llama_cpp.llama_state_get_data(llama._ctx.ctx, buffer, size)
    return bytes(buffer[:written])


@pytest.fixture(scope="module")
def llama(smollm2_path: Path) -> Iterator[Any]:
    model = llama_cpp.Llama(
        str(smollm2_path), n_ctx=1024, n_threads=1, n_threads_batch=1, flash_attn=True, verbose=False
    )
    yield model
    model.close()


def greedy(llama: Any) -> Any:
    llama.reset()
    completion = llama.create_completion("The capital of France is", max_tokens=6, temperature=0, logprobs=None)
    return completion["choices"][0]["text"], logits_of(llama).tobytes()


def disturb_plainly(engine: LlamaCppEngine) -> None:
    assert engine.generate(QUESTION, limits=Limits(max_tokens=3), observer=Recording()).capture_error is None


def disturb_by_a_failing_observer(engine: LlamaCppEngine) -> None:
    for token in range(3):
        answer = engine.generate(QUESTION, limits=Limits(max_tokens=3), observer=Recording(fail_at=token))
        assert "the test wants it so" in str(answer.capture_error)


def disturb_by_a_failing_layer(engine: LlamaCppEngine) -> None:
    copy = engine._context.tap._copy
    for layer in (0, 14, 29):
        calls = iter(range(10**6))

        def fail(tensor: int, layer: int = layer, calls: Iterator[int] = calls) -> None:
            if next(calls) % 30 == layer:
                raise CaptureError(f"layer {layer}")
            copy(tensor)

        engine._context.tap._copy = fail  # type: ignore[method-assign]
        answer = engine.generate(QUESTION, limits=Limits(max_tokens=2), observer=Recording())
        engine._context.tap._copy = copy  # type: ignore[method-assign]
        assert f"layer {layer}" in str(answer.capture_error)
    assert engine.generate(QUESTION, limits=Limits(max_tokens=2), observer=Recording()).capture_error is None


def disturb_by_a_cancelled_stream(engine: LlamaCppEngine) -> None:
    stream = engine.stream(QUESTION, observer=Recording())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    cancel = threading.Event()
    stream = engine.stream(QUESTION, cancel=cancel, observer=Recording())
    next(stream)
    cancel.set()
    with pytest.raises(CancelledError):
        list(stream)


def disturb_by_a_timeout(engine: LlamaCppEngine) -> None:
    with pytest.raises(EngineTimeoutError):
        engine.generate(QUESTION, limits=Limits(timeout_s=0.01), observer=Recording())


@pytest.mark.model
@pytest.mark.parametrize(
    "disturb",
    [
        disturb_plainly,
        disturb_by_a_failing_observer,
        disturb_by_a_failing_layer,
        disturb_by_a_cancelled_stream,
        disturb_by_a_timeout,
    ],
)
def test_a_wrapped_llama_stays_as_it_was(llama: Any, disturb: Callable[[LlamaCppEngine], None]) -> None:
    before = greedy(llama)
    llama.reset()
    llama.eval(llama.tokenize(b"One, two, three,"))
    state, params, context = state_of(llama), bytes(llama.context_params), llama._ctx.ctx
    with LlamaCppEngine.wrap(llama) as engine:
        disturb(engine)  # type: ignore[arg-type]
        assert state_of(llama) == state, "in the middle of its text"
    assert state_of(llama) == state
    assert bytes(llama.context_params) == params
    assert not llama.context_params.cb_eval
    assert llama._ctx.ctx is context
    llama.eval(llama.tokenize(b" four,", add_bos=False))
    continued = logits_of(llama)
    llama.reset()
    llama.eval(llama.tokenize(b"One, two, three,"))
    llama.eval(llama.tokenize(b" four,", add_bos=False))
    np.testing.assert_array_equal(logits_of(llama), continued)
    assert greedy(llama) == before


@pytest.mark.model
def test_a_wrapped_llama_is_the_same_model(llama: Any, smollm2: LlamaCppEngine) -> None:
    ours, theirs = Recording(), Recording()
    with LlamaCppEngine.wrap(llama, deterministic=True) as engine:
        assert engine.model.context_tokens == 1024
        identity = {name: getattr(engine.model, name) for name in ("weights_sha256", "tokenizer_sha256", "layers")}
        assert identity == {name: getattr(smollm2.model, name) for name in identity}
        wrapped = engine.generate(QUESTION, limits=Limits(max_tokens=3), observer=ours)
    loaded = smollm2.generate(QUESTION, limits=Limits(max_tokens=3), observer=theirs)
    assert wrapped.token_ids == loaded.token_ids
    # To the last bit, since a scorer that was fitted on one meets the other.
    np.testing.assert_array_equal(ours.stack, theirs.stack)
    np.testing.assert_array_equal(wrapped.logprobs, loaded.logprobs)


@pytest.mark.model
def test_a_llama_for_embeddings_answers_all_the_same(smollm2_path: Path, smollm2: LlamaCppEngine) -> None:
    llama = llama_cpp.Llama(
        str(smollm2_path),
        n_ctx=256,
        n_threads=1,
        n_threads_batch=1,
        verbose=False,
        embedding=True,
        pooling_type=1,
        attention_type=1,
    )
    with LlamaCppEngine.wrap(llama) as engine:
        answer = engine.generate(QUESTION, limits=Limits(max_tokens=4))
    assert answer.token_ids == smollm2.generate(QUESTION, limits=Limits(max_tokens=4)).token_ids
    assert llama.context_params.embeddings
    llama.close()


def tiny_llama(path: Path, **options: Any) -> Any:
    return llama_cpp.Llama(str(path), n_ctx=128, n_threads=1, n_threads_batch=1, verbose=False, **options)


def test_a_llama_that_cannot_be_wrapped(tiny_path: Path) -> None:
    with pytest.raises(InputError, match=r"Expected a llama_cpp\.Llama, got str"):
        LlamaCppEngine.wrap("llama")
    closed = tiny_llama(tiny_path)
    closed.close()
    with pytest.raises(InputError, match="no weights"):
        LlamaCppEngine.wrap(closed)
    adapted = tiny_llama(tiny_path)
    adapted.lora_path = "adapter.gguf"
    with pytest.raises(InputError, match="LoRA"):
        LlamaCppEngine.wrap(adapted)
    adapted.close()


def test_a_llama_that_is_closed_before_its_engine(tiny_path: Path) -> None:
    llama = tiny_llama(tiny_path)
    engine = LlamaCppEngine.wrap(llama)
    answer = engine.generate(Prompt.chat("hi"), limits=Limits(max_tokens=2))
    assert answer.completion_tokens
    llama.close()
    for use in (lambda: engine.generate(Prompt.chat("hi")), lambda: engine.encode_text("hi")):
        with pytest.raises(EngineError, match="closed"):
            use()
    engine.close()
    engine.close()


def texts_around(close: Callable[[], None], engine: LlamaCppEngine, *, threads: int, number: int) -> list[str]:
    """What requests get, answers or errors, during which something closes the engine, later for a larger number."""
    limits, warm = Limits(max_tokens=400), Sampling(temperature=2.0, seed=number)

    def ask() -> str:
        try:
            return engine.generate(Prompt.chat("hi"), sampling=warm, limits=limits).text
        except EngineError as error:
            return str(error)

    with ThreadPoolExecutor(threads) as pool:
        asked = [pool.submit(ask) for _ in range(threads)]
        time.sleep(0.01 * number)
        close()
        assert engine._context is None
        return [answer.result(30) for answer in asked]


def test_a_llama_that_is_closed_while_its_engine_answers_ends_the_requests_first(tiny_path: Path) -> None:
    """Its memory would be read by a running pass; a crash here ends the test run."""
    for number in range(5):
        llama = tiny_llama(tiny_path)
        engine = LlamaCppEngine.wrap(llama)
        texts_around(llama.close, engine, threads=4, number=number)
        with pytest.raises(EngineError, match="closed"):
            engine.generate(Prompt.chat("hi"))


# -- closing -----------------------------------------------------------------------------------


def test_a_closed_engine_says_so(tiny_path: Path) -> None:
    engine = LlamaCppEngine.load(tiny_path)
    engine.close()
    engine.close()
    for use in (
        lambda: engine.generate(Prompt.chat("hi")),
        lambda: engine.generate(Prompt.raw("hi"), completion="you"),
        lambda: list(engine.stream(Prompt.raw("hi"))),
        lambda: engine.encode(Prompt.chat("hi")),
        lambda: engine.encode_text("hi"),
        engine._end_token,
    ):
        with pytest.raises(EngineError, match="closed"):
            use()
    assert engine.model.name == "tiny"


def test_closing_ends_a_stream_of_the_same_thread(tiny_path: Path) -> None:
    engine = LlamaCppEngine.load(tiny_path)
    slow = lambda _: time.sleep(0.01)  # noqa: E731
    limits = Limits(max_tokens=400)
    stream = engine.stream(Prompt.raw("hi"), sampling=Sampling(temperature=2.0, seed=1), limits=limits, on_token=slow)
    next(stream)
    engine.close()
    assert engine._context is None
    with pytest.raises(EngineError, match="closed"):
        list(stream)


def test_closing_while_threads_ask(tiny_path: Path) -> None:
    """Memory that is freed while it is used ends the process, or worse."""
    told = []
    for number in range(5):
        engine = LlamaCppEngine.load(tiny_path)
        told += texts_around(engine.close, engine, threads=6, number=number)
    assert any("has been closed" in text for text in told)


def test_engines_that_nobody_closes(tmp_path: Path) -> None:
    """At the end of a process nothing may crash, complain or hang."""
    code = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import llama_cpp
from tiny_gguf import write_tiny_gguf
from guard.engines.llama_cpp import LlamaCppEngine
from guard.records import Prompt
path = write_tiny_gguf(Path(sys.argv[1]))
engine = LlamaCppEngine.load(path)
engine.generate(Prompt.chat("hi"))
llama = llama_cpp.Llama(str(path), n_ctx=128, verbose=False)
wrapped = LlamaCppEngine.wrap(llama)
wrapped.generate(Prompt.chat("hi"))
stream = wrapped.stream(Prompt.chat("hi"))
next(stream)
del engine
"""
    code = code.format(tests=str(Path(__file__).parents[1] / "support"))
    command = [sys.executable, "-c", code, str(tmp_path / "m.gguf")]
    ended = subprocess.run(command, capture_output=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr.decode()) == (0, "")


def test_a_build_that_fails_frees_what_it_loaded(tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama = tiny_llama(tiny_path)
    with monkeypatch.context() as patched:
        patched.setattr(llama_nodes, "_MLP", "mlp-{n}")
        for build in (lambda: LlamaCppEngine.load(tiny_path), lambda: LlamaCppEngine.wrap(llama)):
            with pytest.raises(UnsupportedArchitectureError, match=r"attn_norm-\{n\}"):
                build()
    gc.collect()
    with LlamaCppEngine.load(tiny_path) as loaded, LlamaCppEngine.wrap(llama) as wrapped:
        assert loaded.generate(Prompt.chat("hi")).token_ids == wrapped.generate(Prompt.chat("hi")).token_ids
    llama.close()


# -- chat templates ----------------------------------------------------------------------------


def test_chat_templates(tmp_path: Path, tiny_path: Path) -> None:
    bare = write_tiny_gguf(tmp_path / "bare.gguf", template=None)
    with LlamaCppEngine.load(bare) as engine:
        with pytest.raises(ChatTemplateError, match=r"'tiny' has no chat template.*chat_template="):
            engine.generate(Prompt.chat("hi"))
        assert engine.chat_template is None
        assert engine.model.chat_template_sha256 == hashlib.sha256(b"").hexdigest()
        assert engine.generate(Prompt.raw("hi"), limits=Limits(max_tokens=2)).completion_tokens
        assert engine.generate(Prompt.raw("hi"), completion="you").token_ids[-1] == SPECIAL.index("<|im_end|>")
    with LlamaCppEngine.load(bare, chat_template="Q: {{ messages[0].content }}\nA:") as engine:
        assert engine.encode(Prompt.chat("hi")) == engine.encode(Prompt.raw("Q: hi\nA:"))
    with LlamaCppEngine.load(tiny_path, chat_template="") as engine, pytest.raises(ChatTemplateError):
        engine.generate(Prompt.chat("hi"))
    with LlamaCppEngine.load(tiny_path, chat_template="{{ raise_exception('no system') }}") as engine:
        with pytest.raises(ChatTemplateError, match="no system"):
            engine.generate(Prompt.chat("hi"))
        assert engine.generate(Prompt.raw("hi"), completion="x").token_ids[-1] == 2, "the file's end token"


@pytest.mark.parametrize("end", SPECIAL)
def test_the_end_of_an_answer_is_the_templates(tiny_path: Path, end: str) -> None:
    template = "{% for m in messages %}{{ m.content }}" + end + "{% endfor %}"
    with LlamaCppEngine.load(tiny_path, chat_template=template) as engine:
        last = engine.generate(Prompt.chat("hi"), completion="you").token_ids[-1]
    # <|im_start|> ends nothing: the file's end token is taken in its place.
    assert SPECIAL[last] == (end if end != "<|im_start|>" else "<|im_end|>")


def test_a_template_that_writes_the_begin_token_gets_no_second_one(tmp_path: Path) -> None:
    path = write_tiny_gguf(
        tmp_path / "bos.gguf", template="{{ bos_token }}{{ messages[0].content }}", change=add_bos_token
    )
    with LlamaCppEngine.load(path) as engine:
        assert engine.encode(Prompt.chat("hi")).count(0) == 1
        assert engine.encode(Prompt.raw("hi")).count(0) == 1
        assert engine.encode_text("hi").count(0) == 0


def add_bos_token(writer: Any) -> None:
    del writer.kv_data[0]["tokenizer.ggml.add_bos_token"]
    writer.add_add_bos_token(True)


# -- broken files ------------------------------------------------------------------------------


def test_files_that_are_no_models(tmp_path: Path, tiny_path: Path) -> None:
    whole = tiny_path.read_bytes()
    (tmp_path / "model.gguf").write_bytes(whole)
    (tmp_path / "cut.gguf").write_bytes(whole[:-1000])
    (tmp_path / "head.gguf").write_bytes(whole[:3000])
    (tmp_path / "empty.gguf").touch()
    (tmp_path / "text.gguf").write_text("<!doctype html><title>Sign in</title>" * 100)
    for name, told in (
        ("modle.gguf", r"There is no file .*modle\.gguf.*Did you mean 'model\.gguf'"),
        ("missing/m.gguf", "does not exist"),
        ("", "is a folder"),
        ("cut.gguf", "cut off"),
        ("head.gguf", r"head\.gguf"),
        ("empty.gguf", r"empty\.gguf"),
        ("text.gguf", "web page"),
        ("m\0.gguf", "There is no file"),
    ):
        with pytest.raises(ModelFileError, match=told) as caught:
            LlamaCppEngine.load(f"{tmp_path}/{name}")
        assert caught.value.exit_code == 4


@pytest.mark.parametrize("architecture", ["lama3", "llamaa", "x" * 200])
def test_an_unknown_architecture(tmp_path: Path, architecture: str) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", architecture=architecture)
    with pytest.raises(UnsupportedArchitectureError, match=f"unknown model architecture.*{architecture}.*Upgrade"):
        LlamaCppEngine.load(path)


@pytest.mark.parametrize("tensor", ["blk.1.ffn_down", "output_norm", "token_embd"])
def test_a_missing_tensor_is_named(tmp_path: Path, tensor: str) -> None:
    path = write_tiny_gguf(tmp_path / "m.gguf", leave_out=tensor)
    with pytest.raises(ModelFileError, match=f"could not load.*{tensor}"):
        LlamaCppEngine.load(path)


def test_odd_paths(tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("Größe 日本.gguf", os.fsdecode(b"latin-\xfc.gguf"), "with space.gguf"):
        (tmp_path / name).write_bytes(tiny_path.read_bytes())
        for path in (tmp_path / name, f"~/{name}"):
            with LlamaCppEngine.load(path) as engine:
                assert engine.model.layers == LAYERS


def test_loading_by_name(tiny_path: Path, tmp_path: Path) -> None:
    with load_engine(tiny_path, context_tokens=64) as engine:
        assert engine.model.context_tokens == 64
    with pytest.raises(ModelFileError, match=r"no model 'smollm3'.*smollm2"):
        load_engine("smollm3")
    with pytest.raises(InputError, match="Unknown engine 'llama'"):
        load_engine(tiny_path, engine="llama")
    with pytest.raises(InputError, match=r"cannot be loaded as int4.*--engine transformers"):
        load_engine(tiny_path, dtype="int4")


def mutations(data: bytes, header: int, seed: int) -> Iterator[bytes]:
    """Files of the same size whose header differs in a few bytes, numbers or lengths."""
    rng = random.Random(seed)
    while True:
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 4))):
            at = rng.randrange(24, header)
            kind = rng.randrange(4)
            if kind == 0:
                changed[at] = rng.randrange(256)
            elif kind == 1:
                changed[at] ^= 1 << rng.randrange(8)
            elif kind == 2:
                changed[at : at + 4] = rng.choice((0, 1, 2, 3, 7, 255, 2**31 - 1, 2**32 - 1)).to_bytes(4, "little")
            else:
                other = rng.randrange(24, header)
                changed[at : at + 8] = changed[other : other + 8]
        yield bytes(changed[: len(data)])


#: Loads files one after another and says which it has begun and how each ended.
LOADER = """
import sys
from guard.engines.gguf import read_gguf
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import GuardError
from guard.records import Limits, Prompt
for path in sys.argv[1:]:
    print("begin", path, flush=True)
    try:
        read_gguf(path)
    except GuardError:
        print("refused", path, flush=True)
        continue
    try:
        with LlamaCppEngine.load(path, trial_load=False) as engine:
            engine.generate(Prompt.raw("hi the"), limits=Limits(max_tokens=3))
            print("works", path, flush=True)
    except GuardError as error:
        print("error", type(error).__name__, error, flush=True)
"""


def load_all(paths: list[Path]) -> tuple[str, list[Path]]:
    """The output of the loader over all paths, and those at which the process ended."""
    told, fatal = "", []
    while paths:
        ended = subprocess.run(
            [sys.executable, "-c", LOADER, *map(str, paths)],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            env={**os.environ, "GGML_NO_BACKTRACE": "1"},
        )
        told += ended.stdout
        begun = [line for line in ended.stdout.splitlines() if line.startswith("begin ")]
        if ended.returncode == 0:
            break
        assert ended.returncode < 0, ended.stderr  # a signal: no Python error
        fatal.append(paths[len(begun) - 1])
        paths = paths[len(begun) :]
    return told, fatal


def test_changed_headers_never_end_the_process(tmp_path: Path, tiny_path: Path) -> None:
    data = tiny_path.read_bytes()
    header = data.index(b"blk.0.attn_q.weight") + 400
    changed = mutations(data, header, seed=0)
    paths = []
    for number in range(150):
        paths.append(tmp_path / f"{number}.gguf")
        paths[-1].write_bytes(next(changed))
    told, fatal = load_all(paths)
    assert [path.name for path in fatal] == []
    kinds = [line.split()[0] for line in told.splitlines()]
    assert kinds.count("begin") == 150
    assert kinds.count("works") > 10
    assert kinds.count("refused") > 10


# -- against transformers ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs(smollm2_path: Path) -> Any:
    """The same file in transformers: weights dequantized to float32."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    names = {"gguf_file": smollm2_path.name, "local_files_only": True}
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2_path.parent, **names).eval()
    yield model
    torch.set_num_threads(before)


def layers_in_torch(model: Any, tokens: list[int], first: int, point: str) -> Floats:
    """Every layer's output at each position from the given one: shape (T, L, D)."""
    import torch

    blocks = model.model.layers
    kept: list[Any] = []
    modules = [block.mlp if point == "mlp" else block for block in blocks]
    hooks = [module.register_forward_hook(lambda _, __, output: kept.append(output)) for module in modules]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    for hook in hooks:
        hook.remove()
    outputs = [output[0] if isinstance(output, tuple) else output for output in kept]
    return np.stack([output.reshape(len(tokens), -1)[first:].numpy() for output in outputs], axis=1)


@pytest.mark.model
@pytest.mark.torch
@pytest.mark.parametrize("point", ["mlp", "block"])
def test_layers_are_those_of_transformers(smollm2_path: Path, theirs: Any, point: Any) -> None:
    """The same token, the same layer. llama.cpp multiplies by the 4-bit weights themselves, with
    activations rounded to 8 bits, so the two agree to about a hundredth and no more."""
    recording, observers = Recording(), (SignatureObserver(), SignatureObserver())
    with LlamaCppEngine.load(smollm2_path, context_tokens=512, threads=1, capture_point=point) as engine:
        answer = engine.generate(QUESTION, completion=ANSWER, observer=recording)
        prompt = engine.encode(QUESTION)
    fed = [*prompt, *answer.token_ids[:-1]]
    expected = layers_in_torch(theirs, fed, len(prompt) - 1, point)
    ours = recording.stack
    assert ours.shape == expected.shape == (len(answer.token_ids), 30, 576)
    cosine = (ours * expected).sum(-1) / np.linalg.norm(ours, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert cosine.min() >= 0.99
    assert cosine.mean() >= 0.998
    norms = np.linalg.norm(ours, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert 0.9 < norms.min() <= norms.max() < 1.1

    for observer, stack in zip(observers, (ours, expected), strict=True):
        for activations in stack:
            observer.observe(activations)
    schema = FeatureSchema(layers=30)
    a, b = (
        feature_vector(Signals(answer.logprobs, answer.entropies, answer.margins, observer.signature()), schema)
        for observer in observers
    )
    at = schema.columns(["map"])
    difference = np.abs(a[at] - b[at])  # of logarithms: 0.05 is five per cent of a divergence
    assert np.corrcoef(a[at], b[at])[0, 1] > 0.99
    assert np.median(difference) < 0.05
    assert np.quantile(difference, 0.95) < 0.4
    assert np.abs(a - b)[schema.columns(["norms"])].max() < 0.1


# -- the machine -------------------------------------------------------------------------------


def test_features() -> None:
    features = cpu_features()
    assert features
    assert json.dumps(features)


@pytest.mark.parametrize("amx", [True, False])
def test_amx_kernels_are_kept_from(tiny_path: Path, monkeypatch: pytest.MonkeyPatch, *, amx: bool) -> None:
    told = b"AVX2 = 1 | AMX_INT8 = 1 |" if amx else b"AVX2 = 1 |"
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: told)
    given: list[bool] = []
    load = llama_cpp.llama_model_load_from_file

    def spy(path: bytes, params: Any) -> Any:
        given.append(params.use_extra_bufts)
        return load(path, params)

    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", spy)
    with LlamaCppEngine.load(tiny_path, threads=1) as engine:
        assert engine.generate(Prompt.raw("a b"), limits=Limits(max_tokens=2)).token_ids
    usual = llama_cpp.llama_model_default_params().use_extra_bufts
    assert given == [False if amx else usual]


def test_doctor_tells_how_to_build_without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    doctor = importlib.import_module("guard.cli.doctor")
    for info, wanted in ((b"AVX2 = 1 | AMX_INT8 = 1 |", True), (b"AVX2 = 1 |", False)):
        monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda info=info: info)
        told = doctor._cpu().detail
        assert ("-mno-amx-int8" in told) is wanted
        assert "uses AVX2" in told
        assert "AMX_INT8" not in told
