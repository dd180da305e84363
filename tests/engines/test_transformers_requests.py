"""Requests to the transformers engine: what they leave behind (nothing), and how they decode."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from alarm import AlarmError, raising_handler  # noqa: E402, F401 - a fixture
from tiny_models import (  # noqa: E402
    LAYERS,
    QUESTION,
    SHORT,
    RowRecording,
    blocks_and_norm,
    byte_tokenizer,
    one_thread,  # noqa: F401 - a fixture
    record,
    sentencepiece_tokenizer,
    tiny_model,
    wrap,
)

from guard.engines import passes as forward_passes  # noqa: E402
from guard.engines.transformers import TransformersEngine  # noqa: E402
from guard.errors import CancelledError, EngineError, EngineTimeoutError, OutOfMemoryError  # noqa: E402
from guard.records import Limits, Prompt, Sampling  # noqa: E402

pytestmark = pytest.mark.torch


# -- nothing is left behind --------------------------------------------------------------------


def everything(model: Any) -> dict[str, Any]:
    """All of a model that a request could have changed."""
    modules = dict(model.named_modules())
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "training": {name: part.training for name, part in modules.items()},
        "hooks": {
            name: (list(part._forward_hooks), list(part._forward_pre_hooks), list(part._backward_hooks))
            for name, part in modules.items()
        },
        "attributes": {name: sorted(vars(part)) for name, part in modules.items()},
        "tensors": {
            name: (tensor.data_ptr(), tensor.dtype, tensor.requires_grad, tensor.grad, tensor.is_inference())
            for name, tensor in tensors.items()
        },
        "versions": {name: tensor._version for name, tensor in tensors.items()},
        "config": model.config.to_dict(),
        "generation_config": model.generation_config.to_dict(),
        "grad_mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def greedy(model: Any) -> tuple[list[int], Any]:
    """The framework's own answer and its logits, to the bit."""
    ids = torch.tensor([byte_tokenizer()("The quick brown")["input_ids"]])
    with torch.no_grad():
        tokens = model.generate(ids, do_sample=False, max_new_tokens=12, pad_token_id=0)
        return tokens.tolist(), model(ids).logits


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """The model is the same before and after, and answers to the bit as before."""
    before, (tokens, logits) = everything(model), greedy(model)
    yield
    assert everything(model) == before
    tokens_after, logits_after = greedy(model)
    assert tokens_after == tokens
    assert torch.equal(logits_after, logits)


class Fault:
    """Makes a module fail in one of its calls."""

    def __init__(self, call: int, error: BaseException) -> None:
        self.calls = 0
        self.call = call
        self.error = error

    def __call__(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == self.call:
            raise self.error


@pytest.mark.parametrize("call", [1, 4], ids=["prompt", "answer"])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_failure_in_any_layer_leaves_nothing_behind(layer: int, call: int) -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    with untouched(model):
        failing = model.model.layers[layer].mlp.down_proj
        handle = failing.register_forward_pre_hook(Fault(call, RuntimeError("bad layer")))
        with pytest.raises(EngineError, match=r"failed in a forward pass: RuntimeError: bad layer"):
            engine.generate(QUESTION, observer=RowRecording(), limits=SHORT)
        handle.remove()
    assert record(engine)[0].text == record(wrap(tiny_model("llama")))[0].text


def test_a_keyboard_interrupt_within_a_layer_leaves_nothing_behind() -> None:
    model = tiny_model("gpt2")
    engine = wrap(model)
    with untouched(model):
        handle = model.transformer.h[1].mlp.register_forward_pre_hook(Fault(3, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            engine.generate(QUESTION, observer=RowRecording())
        handle.remove()


def test_a_stream_closed_midway_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    with untouched(model):
        stream = engine.stream(QUESTION, observer=RowRecording())
        next(stream)
        assert any(part._forward_hooks for part in model.modules()), "hooks live while a request does"
        stream.close()


async def test_a_cancelled_astream_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    with untouched(model):
        stream = engine.astream(QUESTION, observer=RowRecording(), limits=Limits(max_tokens=400))
        consumer = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0)
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        answer = await engine.agenerate(QUESTION, limits=SHORT)
    assert answer.text == engine.generate(QUESTION, limits=SHORT).text


def slow(model: Any) -> Any:
    """The user's own hook, which takes its time."""
    return model.model.layers[0].register_forward_hook(lambda *_: time.sleep(0.01))


def test_a_timeout_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    slow(model)
    with untouched(model), pytest.raises(EngineTimeoutError, match=r"0\.15 s"):
        engine.generate(QUESTION, observer=RowRecording(), limits=Limits(max_tokens=400, timeout_s=0.15))


def test_cancelling_from_another_thread_leaves_nothing_behind() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    slow(model)
    cancel = threading.Event()
    recording = RowRecording()
    with untouched(model):
        threading.Timer(0.1, cancel.set).start()
        with pytest.raises(CancelledError):
            engine.generate(QUESTION, observer=recording, cancel=cancel, limits=Limits(max_tokens=400))
    assert 0 < len(recording.rows) < 400


def test_cancelling_within_a_long_prompt_does_not_wait_for_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward_passes, "PREFILL_TOKENS", 8)
    model = tiny_model("llama")
    engine = wrap(model)
    cancel = threading.Event()
    passes: list[int] = []

    def third(*_: Any) -> None:
        passes.append(1)
        if len(passes) == 3:
            cancel.set()

    model.model.layers[0].register_forward_hook(third)
    with pytest.raises(CancelledError):
        engine.generate(Prompt.raw("x" * 200), cancel=cancel)
    assert len(passes) == 3


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_in_training_is_run_without_dropout_and_put_back(kind: str) -> None:
    model = tiny_model(kind, **({"attention_dropout": 0.5} if kind == "llama" else {}))
    engine = wrap(model, deterministic=True)
    expected = engine.generate(QUESTION, limits=SHORT)
    model.train()
    blocks, _ = blocks_and_norm(model)
    blocks[1].eval()  # some parts frozen, as in fine-tuning
    before = everything(model)
    answer = engine.generate(QUESTION, limits=SHORT, observer=RowRecording())
    np.testing.assert_array_equal(answer.logprobs, expected.logprobs)
    assert everything(model) == before
    failing = model.get_submodule(engine._layers[2]).register_forward_pre_hook(Fault(2, ValueError("bad")))
    with pytest.raises(EngineError, match="ValueError: bad"):
        engine.generate(QUESTION)
    failing.remove()
    assert everything(model) == before


def test_a_model_continues_training_afterwards() -> None:
    """Dynamic RoPE keeps a tensor of the longest pass; it must be one that autograd takes."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}
    model = tiny_model("llama", rope_parameters=rope, max_position_embeddings=32)
    model.config.max_position_embeddings = 256
    engine = wrap(model)
    engine.generate(Prompt.raw("x" * 60), observer=RowRecording(), limits=SHORT)
    assert not any(tensor.is_inference() for tensor in model.buffers())
    model.train()
    model(torch.arange(40)[None]).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_users_own_hooks_stay_and_take_effect() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    plain, rows = record(engine)
    handle = model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, output: output * 0)
    steered, steered_rows = record(engine)
    assert (steered_rows[:, 1] == 0).all(), "what is recorded is what goes on into the model"
    assert steered.token_ids != plain.token_ids
    handle.remove()
    np.testing.assert_array_equal(record(engine)[1], rows)


def test_no_hook_at_all_without_an_observer() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    stream = engine.stream(QUESTION)
    next(stream)
    assert not any(part._forward_hooks for part in model.modules())
    stream.close()


# -- failures of the capture -------------------------------------------------------------------


def test_a_layer_that_is_skipped_is_reported_and_the_answer_continues() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    model.model.layers[1].forward = lambda hidden_states, **_: hidden_states
    recording = RowRecording()
    answer = engine.generate(QUESTION, observer=recording, limits=SHORT)
    assert answer.capture_error == "'model.layers.1.mlp' had no part in the forward pass."
    assert answer.completion_tokens == SHORT.max_tokens
    assert recording.rows == []


def test_a_failing_hook_is_reported_and_the_answer_continues() -> None:
    model = tiny_model("llama")
    expected = wrap(model).generate(QUESTION, limits=SHORT)
    model.config.hidden_size = 7
    with untouched(model):
        answer = wrap(model).generate(QUESTION, observer=RowRecording(), limits=SHORT)
    assert answer.capture_error is not None
    assert "output of 'model.layers.0.mlp' could not be recorded" in answer.capture_error
    assert answer.token_ids == expected.token_ids


def test_memory_that_runs_out_and_numbers_that_are_none() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ):
        handle = model.model.layers[2].register_forward_pre_hook(Fault(1, error))
        with pytest.raises(OutOfMemoryError, match="smaller model"):
            engine.generate(QUESTION)
        handle.remove()
    model.model.layers[0].mlp.register_forward_hook(lambda _m, _i, output: output * float("nan"))
    with pytest.raises(EngineError, match="logits are not numbers"):
        engine.generate(QUESTION)


def test_a_closed_engine_says_so_and_leaves_a_wrapped_model_alone() -> None:
    model = tiny_model("llama")
    engine = wrap(model)
    with untouched(model):
        with engine:
            engine.generate(QUESTION, limits=SHORT)
        with pytest.raises(EngineError, match="The engine is closed"):
            engine.generate(QUESTION)


# -- decoding ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return wrap(tiny_model("qwen3", seed=3, scale=4.0), deterministic=True)


def test_sampling_is_repeatable_by_its_seed(engine: TransformersEngine) -> None:
    hot = Sampling(temperature=1.5, top_p=0.95, top_k=50, seed=11)
    first, again = (engine.generate(QUESTION, sampling=hot, limits=SHORT) for _ in range(2))
    other = engine.generate(QUESTION, sampling=Sampling(temperature=1.5, seed=12), limits=SHORT)
    assert first.token_ids == again.token_ids != other.token_ids
    np.testing.assert_array_equal(first.logprobs, again.logprobs)


def test_streams_give_the_text_of_generate(engine: TransformersEngine) -> None:
    hot = Sampling(temperature=1.2, seed=5)
    whole = engine.generate(QUESTION, sampling=hot, limits=SHORT)
    chunks = list(engine.stream(QUESTION, sampling=hot, limits=SHORT))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].generation is not None
    assert chunks[-1].generation.token_ids == whole.token_ids
    assert whole.text == byte_tokenizer().decode(whole.token_ids, skip_special_tokens=True)


async def test_the_async_twins_give_the_same(engine: TransformersEngine) -> None:
    recordings = [RowRecording(), RowRecording(), RowRecording()]
    whole = engine.generate(QUESTION, observer=recordings[0], limits=SHORT)
    answer = await engine.agenerate(QUESTION, observer=recordings[1], limits=SHORT)
    chunks = [chunk async for chunk in engine.astream(QUESTION, observer=recordings[2], limits=SHORT)]
    assert answer.token_ids == whole.token_ids
    assert "".join(chunk.text for chunk in chunks) == whole.text
    for recording in recordings[1:]:
        np.testing.assert_array_equal(np.stack(recording.rows), np.stack(recordings[0].rows))


def test_a_stop_string_ends_the_answer(engine: TransformersEngine) -> None:
    whole = engine.generate(QUESTION, limits=SHORT).text
    stop = whole[4:7]
    answer = engine.generate(QUESTION, limits=Limits(max_tokens=24, stop=(stop,)))
    assert answer.finish_reason == "stop_string"
    assert answer.text == whole[: whole.index(stop)]


def test_end_tokens_come_from_tokenizer_settings_and_turns() -> None:
    model = tiny_model("qwen3", seed=3, scale=4.0)
    first = wrap(model).generate(QUESTION, limits=SHORT).token_ids
    end = first[3]
    model.generation_config.eos_token_id = [end, 1]
    answer = wrap(model).generate(QUESTION, limits=SHORT)
    assert answer.finish_reason == "stop"
    assert answer.token_ids == first[: first.index(end) + 1]
    vocabulary = byte_tokenizer().get_vocab()
    bare = wrap(tiny_model("llama"), byte_tokenizer(eos_token=None))
    assert bare._is_end(vocabulary["<|im_end|>"])
    assert bare._is_end(0), "config.eos_token_id"
    assert not bare._is_end(vocabulary["<|im_start|>"])
    assert bare._end_token() == vocabulary["<|im_end|>"], "the one that its chat template writes"


TURNS = (
    "{% for m in messages %}START{{ m.role }}\n{{ m.content }}END{% endfor %}"
    "{% if add_generation_prompt %}STARTassistant\n{% endif %}"
)
HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}{% if m.role == 'assistant' %}<|return|>{% else %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


def turns(start: str, end: str) -> str:
    return TURNS.replace("START", start).replace("END", end)


@pytest.mark.parametrize(
    ("template", "control", "end", "others", "none"),
    [
        (turns("<|user|>", "<|end|>\n"), ["<|user|>", "<|end|>"], "<|end|>", [], ["<|user|>"]),
        (turns("<|header_start|>", "<|eot|>"), ["<|header_start|>", "<|eot|>", "<|eom|>"], "<|eot|>", ["<|eom|>"], []),
        (turns("<|turn>", "<turn|>\n"), ["<|turn>", "<turn|>"], "<turn|>", [], ["<|turn>"]),
        (
            HARMONY,
            ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"],
            "<|return|>",
            ["<|call|>"],
            ["<|end|>", "<|message|>", "<|channel|>"],
        ),
        (turns("<~begin~>", " <~done~>"), ["<~begin~>", "<~done~>"], "<~done~>", [], ["<~begin~>"]),
        (
            "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}",
            ["<|user|>", "<|assistant|>"],
            "<|user|>",
            [],
            ["<|assistant|>"],
        ),
        ("{{ raise_exception('no') }}", ["<|eot_id|>"], "<|endoftext|>", ["<|eot_id|>"], []),
    ],
    ids=["phi3", "llama4", "gemma4", "gpt-oss", "a family of its own", "glm", "a template that says nothing"],
)
def test_the_end_of_a_turn_ends_an_answer_though_no_setting_names_it(
    template: str, control: list[str], end: str, others: list[str], none: list[str]
) -> None:
    tokenizer = byte_tokenizer(
        chat_template=template, eos_token="<|endoftext|>", additional_special_tokens=[*control, "<|im_start|>"]
    )
    model = tiny_model("llama", vocab_size=len(tokenizer))
    bare = wrap(model, tokenizer)
    vocabulary = tokenizer.get_vocab()
    assert bare._end_token() == vocabulary[end]
    assert all(bare._is_end(vocabulary[text]) for text in (end, *others))
    assert not any(bare._is_end(vocabulary[text]) for text in none)
    first = bare.generate(Prompt.raw("Hello"), limits=SHORT).token_ids
    assert not set(first) & bare._tokens.ends
    with torch.no_grad():  # the end is now the likeliest token wherever the first one was
        model.lm_head.weight[vocabulary[end]] = model.lm_head.weight[first[0]] * 2
        model.lm_head.weight[first[0]] = 0
    answer = bare.generate(Prompt.raw("Hello"), limits=SHORT)
    assert answer.finish_reason == "stop"
    assert answer.token_ids[-1] == vocabulary[end]


async def test_plain_text_and_control_tokens_are_read_at_the_same_time() -> None:
    """Reading plain text turns a switch of the tokenizer's; other threads encode prompts meanwhile."""
    engine = wrap(tiny_model("llama"))
    attack, usual = Prompt.chat("<|im_end|>" * 50), Prompt.chat("hi" * 50)
    expected = [engine.encode(attack), engine.encode(usual)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.encode, [attack, usual] * 40))
    assert all(tokens in expected for tokens in found)


def test_replaying_an_answer_gives_the_signals_of_generating_it(engine: TransformersEngine) -> None:
    first, second = RowRecording(), RowRecording()
    answer = engine.generate(QUESTION, observer=first, limits=SHORT)
    # A random model's text need not be made of the tokens that the tokenizer would choose.
    replayed = engine.generate(QUESTION, completion=answer.text, observer=second)
    pairs = zip(answer.token_ids, replayed.token_ids, strict=False)
    same = next((at for at, (ours, theirs) in enumerate(pairs) if ours != theirs), len(answer.token_ids))
    assert same >= 3
    np.testing.assert_allclose(replayed.logprobs[:same], answer.logprobs[:same], atol=1e-6)
    for ours, theirs in zip(first.rows[:same], second.rows[:same], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert replayed.finish_reason == "stop"
    assert replayed.token_ids == (*engine.encode_text(answer.text), engine._end_token())


def test_replay_needs_an_end_token() -> None:
    model = tiny_model("llama")
    model.config.eos_token_id = None
    tokenizer = sentencepiece_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(EngineError, match="no end token"):
        wrap(model, tokenizer).generate(Prompt.raw("Hello"), completion="world")


def test_many_threads_get_the_answers_of_one(engine: TransformersEngine) -> None:
    prompts = [Prompt.chat(f"Question {number}?") for number in range(16)]

    def ask(prompt: Prompt) -> tuple[tuple[int, ...], Any, Any]:
        recording = RowRecording()
        answer = engine.generate(prompt, observer=recording, limits=Limits(max_tokens=8))
        return answer.token_ids, answer.logprobs, np.stack(recording.rows)

    alone = [ask(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, prompts))
    for ours, theirs in zip(alone, together, strict=True):
        assert ours[0] == theirs[0]
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_array_equal(ours[2], theirs[2])


# -- signal handlers -----------------------------------------------------------------------------


@pytest.mark.no_cover
@pytest.mark.usefixtures("raising_handler")
def test_what_a_signal_handler_raises_during_a_forward_pass_is_no_engine_error() -> None:
    """As an EngineError it would be retried by chat models, and decided by policies."""
    model = tiny_model("llama")
    engine = wrap(model)
    before = engine.generate(QUESTION, limits=SHORT).token_ids
    handle = model.model.layers[1].register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGALRM))
    with pytest.raises(AlarmError, match="time is up"):
        engine.generate(QUESTION, limits=SHORT)
    handle.remove()
    assert engine.generate(QUESTION, limits=SHORT).token_ids == before, "the engine is as it was"
