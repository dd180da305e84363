"""What a transformers engine keeps of earlier prompts: answers are those of an empty cache, for fewer tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
from recording_observer import Recording
from tiny_models import ARCHITECTURES, byte_tokenizer, tiny_model

from guard.engines.kept_caches import can_drop
from guard.engines.transformers import TransformersEngine
from guard.errors import EngineError, InputError
from guard.records import Floats, Generation, Limits, Prompt

pytestmark = pytest.mark.torch

SHORT = Limits(max_tokens=6)
SYSTEM = "You are brief. "
TURNS = ("Which city is the capital of France?", "And of Spain?", "The quick brown fox")


def engine_on(kind: str, **options: Any) -> TransformersEngine:
    return TransformersEngine.wrap(tiny_model(kind), byte_tokenizer(), name=kind, **options)


def ask(engine: TransformersEngine, text: str, *, key: str | None = None) -> tuple[int, Generation, Floats]:
    """Return how many tokens were evaluated for an answer, the answer, and its layers."""
    observer, before = Recording(), engine._loop.evaluated
    prompt = Prompt(text=text, cache_key=key)
    answer = engine.generate(prompt, limits=SHORT, observer=observer)
    return engine._loop.evaluated - before, answer, observer.stack


def assert_same(answer: Generation, rows: Floats, other: Generation, other_rows: Floats) -> None:
    assert answer.token_ids == other.token_ids
    np.testing.assert_allclose(answer.logprobs, other.logprobs, atol=1e-4)
    scale = np.abs(other_rows).max(axis=(0, 2), keepdims=True)  # of each layer
    np.testing.assert_allclose(rows / scale, other_rows / scale, atol=1e-4)


def conversation(engine: TransformersEngine) -> list[tuple[int, Generation, Floats, str]]:
    """Ask turn after turn, each behind all before and the answers to them."""
    text, found = SYSTEM, []
    for turn in TURNS:
        text += turn
        found.append((*ask(engine, text), text))
        text += found[-1][1].text
    return found


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_turns_of_a_conversation_are_answered_as_from_an_empty_cache(kind: str) -> None:
    empty = engine_on(kind, deterministic=True)
    for _, answer, rows, text in conversation(engine_on(kind)):
        assert_same(answer, rows, *ask(empty, text)[1:])


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2", "gpt_neox", "opt", "bloom"])
def test_a_repeated_prompt_costs_its_last_token_only(kind: str) -> None:
    engine = engine_on(kind)
    first, answer, rows = ask(engine, SYSTEM + TURNS[0])
    second, again, rows_again = ask(engine, SYSTEM + TURNS[0])
    answered = len(answer.token_ids) - 1  # the last one is chosen, and never read
    assert first == answer.prompt_tokens + answered
    assert second == 1 + answered
    assert_same(again, rows_again, answer, rows)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_prompts_that_part_share_the_tokens_before(kind: str) -> None:
    engine, empty = engine_on(kind), engine_on(kind, deterministic=True)
    shared = len(engine.encode(Prompt.raw(SYSTEM * 4)))
    ask(engine, SYSTEM * 4 + "Why?")
    evaluated, answer, rows = ask(engine, SYSTEM * 4 + "How many?")
    assert evaluated <= answer.prompt_tokens - shared + len(answer.token_ids) + 1
    assert_same(answer, rows, *ask(empty, SYSTEM * 4 + "How many?")[1:])


@pytest.mark.parametrize("kind", ["mistral", "gemma2", "gemma3_text"])
def test_a_full_sliding_window_is_not_cut_but_read_again(kind: str) -> None:
    """It has forgotten the tokens that would come back into sight."""
    engine, empty = engine_on(kind), engine_on(kind, deterministic=True)
    ask(engine, SYSTEM * 4 + "Why?")
    evaluated, answer, rows = ask(engine, SYSTEM * 4 + "How many?")
    assert evaluated == answer.prompt_tokens + len(answer.token_ids) - 1
    assert_same(answer, rows, *ask(empty, SYSTEM * 4 + "How many?")[1:])


@pytest.mark.parametrize("kind", ["phi3", "openai-gpt"])
def test_what_reads_a_prompt_at_once_reads_all_of_it(kind: str) -> None:
    """A rotary embedding that depends on the length, and a model without a cache."""
    engine = engine_on(kind)
    first, *_ = ask(engine, SYSTEM + TURNS[0])
    second, *_ = ask(engine, SYSTEM + TURNS[0])
    assert second == first


def test_two_conversations_keep_their_tokens() -> None:
    engine = engine_on("llama", slots=2)
    texts = [SYSTEM + TURNS[0], SYSTEM + TURNS[1]]
    for text in texts:
        ask(engine, text)
    for text in texts:
        evaluated, answer, _ = ask(engine, text)
        assert evaluated == len(answer.token_ids)


def test_the_conversation_that_was_not_used_for_longest_goes_first() -> None:
    engine = engine_on("llama", slots=2)
    texts = ["One is a number.", "Two is a number.", "Six is a number."]
    for text in texts:
        ask(engine, text)
    evaluated, answer, _ = ask(engine, texts[1])
    assert evaluated == len(answer.token_ids)
    evaluated, answer, _ = ask(engine, texts[0])
    assert evaluated > len(answer.token_ids)


def test_a_cache_key_keeps_callers_apart() -> None:
    engine = engine_on("llama")
    first, answer, _ = ask(engine, SYSTEM + TURNS[0], key="one")
    assert ask(engine, SYSTEM + TURNS[0], key="two")[0] == first
    assert ask(engine, SYSTEM + TURNS[0])[0] == first
    assert ask(engine, SYSTEM + TURNS[0], key="one")[0] == len(answer.token_ids)


def test_a_deterministic_engine_keeps_nothing() -> None:
    engine = engine_on("llama", deterministic=True)
    first, answer, rows = ask(engine, SYSTEM + TURNS[0])
    second, again, rows_again = ask(engine, SYSTEM + TURNS[0])
    assert engine.model.deterministic
    assert second == first
    assert again.logprobs.tobytes() == answer.logprobs.tobytes()
    assert rows_again.tobytes() == rows.tobytes()


def test_weights_that_their_owner_changes_are_not_mixed_with_what_was_read_before() -> None:
    model = tiny_model("llama")
    engine = TransformersEngine.wrap(model, byte_tokenizer())
    first, *_ = ask(engine, SYSTEM + TURNS[0])
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.5)
    changed = TransformersEngine.wrap(model, byte_tokenizer(), deterministic=True)
    evaluated, answer, rows = ask(engine, SYSTEM + TURNS[0])
    assert evaluated > first / 2
    assert_same(answer, rows, *ask(changed, SYSTEM + TURNS[0])[1:])


def test_a_hook_that_the_owner_adds_takes_effect_on_the_whole_prompt() -> None:
    model = tiny_model("llama")
    engine = TransformersEngine.wrap(model, byte_tokenizer())
    plain = ask(engine, SYSTEM + TURNS[0])
    handle = model.model.layers[1].mlp.register_forward_hook(lambda _m, _i, output: output * 0)
    hooked = ask(engine, SYSTEM + TURNS[0])
    handle.remove()
    assert hooked[0] == hooked[1].prompt_tokens + len(hooked[1].token_ids) - 1
    assert_same(*ask(engine, SYSTEM + TURNS[0])[1:], *plain[1:])


def test_a_pass_that_fails_leaves_nothing_to_use_again() -> None:
    engine = engine_on("llama")
    ask(engine, SYSTEM + TURNS[0])

    def fail(*_: Any) -> None:
        raise RuntimeError("bad layer")

    handle = engine._lm.model.layers[1].mlp.register_forward_pre_hook(fail)
    with pytest.raises(EngineError):
        engine.generate(Prompt.raw(SYSTEM + TURNS[1]), limits=SHORT)
    handle.remove()
    evaluated, answer, rows = ask(engine, SYSTEM + TURNS[0])
    assert evaluated == answer.prompt_tokens + len(answer.token_ids) - 1
    assert_same(answer, rows, *ask(engine_on("llama", deterministic=True), SYSTEM + TURNS[0])[1:])


def test_a_cancelled_request_leaves_what_it_has_read() -> None:
    engine, cancel = engine_on("llama"), threading.Event()
    for _ in engine.stream(Prompt.raw(SYSTEM + TURNS[0]), limits=Limits(max_tokens=300)):
        break
    cancel.set()
    evaluated, answer, rows = ask(engine, SYSTEM + TURNS[0])
    assert evaluated == len(answer.token_ids)
    assert_same(answer, rows, *ask(engine_on("llama", deterministic=True), SYSTEM + TURNS[0])[1:])


def test_eight_threads_get_the_answers_of_one_at_a_time() -> None:
    engine, empty = engine_on("llama"), engine_on("llama", deterministic=True)
    texts = [f"{SYSTEM * (number % 3)}{number} is a number." for number in range(16)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda text: engine.generate(Prompt.raw(text), limits=SHORT).token_ids, texts))
    assert answers == [empty.generate(Prompt.raw(text), limits=SHORT).token_ids for text in texts]


async def test_tasks_get_the_answers_of_one_at_a_time() -> None:
    engine, empty = engine_on("gpt2"), engine_on("gpt2", deterministic=True)
    texts = [f"{SYSTEM * (number % 3)}{number} is a number." for number in range(8)]
    answers = await asyncio.gather(*(engine.agenerate(Prompt.raw(text), limits=SHORT) for text in texts))
    alone = [empty.generate(Prompt.raw(text), limits=SHORT).token_ids for text in texts]
    assert [each.token_ids for each in answers] == alone


@pytest.mark.parametrize("options", [{"slots": 0}, {"slots": "4"}, {"cache_tokens": 0}])
def test_sizes_that_make_no_sense(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        engine_on("llama", **options)


def layers_after(kind: str, tokens: Sequence[int]) -> Any:
    with torch.no_grad():
        return tiny_model(kind)(torch.tensor([list(tokens)]), use_cache=True).cache


def test_a_cache_can_be_cut_where_every_layer_says_so() -> None:
    assert can_drop(layers_after("llama", range(40)), 5)
    assert can_drop(layers_after("mistral", range(10)), 5)
    assert not can_drop(layers_after("mistral", range(40)), 5)
    assert not can_drop(object(), 5)
    assert can_drop(object(), 0)
