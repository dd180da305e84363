"""Many requests in one llama.cpp context: their passes are shared, their answers, layers and prompts are their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

import llama_cpp
from recording_observer import Recording
from tiny_gguf import LAYERS, WIDTH, write_tiny_gguf

from guard.engines.batch import Feed, Start
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import CancelledError, EngineTimeoutError, GuardError, InputError
from guard.records import Generation, Limits, Prompt, Sampling

PROMPTS = [Prompt.chat(f"question {number} " + "the word " * (number % 5)) for number in range(16)]
EIGHT = Limits(max_tokens=8)

#: By how much log-probabilities and entropies of this model, whose weights are noise, differ by the rounding of a pass.
ROUNDING = 0.03


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("slots") / "tiny.gguf", context=2048)


def load(path: Path, **options: Any) -> LlamaCppEngine:
    return LlamaCppEngine.load(path, **{"threads": 1, "context_tokens": 512, "cache_tokens": 2048, **options})


@pytest.fixture
def engine(path: Path) -> Iterator[LlamaCppEngine]:
    with load(path) as engine:
        yield engine  # type: ignore[misc]


@pytest.fixture(scope="module")
def alone(path: Path) -> list[tuple[Generation, Any]]:
    """Answers and layers of one request at a time, each from an empty cache."""
    with load(path, deterministic=True) as engine:
        return [recorded(engine, prompt) for prompt in PROMPTS]


def recorded(engine: LlamaCppEngine, prompt: Prompt, **settings: Any) -> tuple[Generation, Any]:
    recording = Recording()
    answer = engine.generate(prompt, observer=recording, **{"limits": EIGHT, **settings})
    assert answer.capture_error is None
    return answer, recording.stack


def cosines(one: Any, other: Any) -> Any:
    return (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)


# -- passes that are shared --------------------------------------------------------------------------


def test_each_row_of_a_shared_pass_belongs_to_its_own_sequence(path: Path) -> None:
    """Prompts of other lengths and running answers in one pass; each layer of each against the same alone."""
    sequences = [[5 + number + at for at in range(3 + 2 * number)] for number in range(4)]
    with load(path) as together, load(path, deterministic=True) as apart:
        feeds = [Feed(slot, tokens, 0, chooses=True, capture=slot != 1) for slot, tokens in enumerate(sequences)]
        rows = together._evaluate(feeds)
        found = [(row.logits().copy(), feed.capture and row.activations().copy()) for row, feed in zip(rows, feeds)]  # noqa: B905
        for (logits, layers), feed in zip(found, feeds, strict=True):
            apart._begin(Start(0, feed.tokens))
            (row,) = apart._evaluate([Feed(0, feed.tokens, 0, chooses=True, capture=True)])
            np.testing.assert_allclose(logits, row.logits(), rtol=1e-4, atol=ROUNDING)
            if feed.capture:
                assert cosines(layers, row.activations()).min() >= 0.999
        # Each is continued by a token, except the first, beside a part of a further prompt.
        feeds = [Feed(slot, [9], len(sequences[slot]), chooses=True, capture=True) for slot in (3, 1, 2)]
        part = Feed(5, [7, 8, 9], 0, chooses=False, capture=False)
        rows = together._evaluate([*feeds, part])
        assert len(rows) == 3
        layers = [row.activations().copy() for row in rows]
        for feed, ours in zip(feeds, layers, strict=True):
            apart._begin(Start(0, [0]))
            (row,) = apart._evaluate([Feed(0, [*sequences[feed.slot], 9], 0, chooses=True, capture=True)])
            assert ours.shape == (LAYERS, WIDTH)
            assert cosines(ours, row.activations()).min() >= 0.999


@pytest.mark.parametrize("how", ["threads", "tasks"])
def test_sixteen_at_once_get_the_answers_of_one_at_a_time(
    path: Path, alone: list[tuple[Generation, Any]], how: str
) -> None:
    recordings = [Recording() for _ in PROMPTS]
    with load(path) as engine:
        if how == "threads":
            with ThreadPoolExecutor(16) as pool:
                ask = lambda prompt, seen: engine.generate(prompt, limits=EIGHT, observer=seen)  # noqa: E731
                answers = list(pool.map(ask, PROMPTS, recordings))
        else:

            async def tasks() -> list[Generation]:
                pairs = zip(PROMPTS, recordings, strict=True)
                return await asyncio.gather(*(engine.agenerate(p, limits=EIGHT, observer=seen) for p, seen in pairs))

            answers = asyncio.run(tasks())
    for answer, recording, (expected, layers) in zip(answers, recordings, alone, strict=True):
        assert answer.token_ids == expected.token_ids
        assert answer.text == expected.text
        np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=ROUNDING)
        np.testing.assert_allclose(answer.entropies, expected.entropies, atol=ROUNDING)
        assert cosines(recording.stack, layers).min() >= 0.999


def test_each_request_has_its_own_seed_stop_strings_and_limits(path: Path) -> None:
    settings = [
        {"sampling": Sampling(temperature=1.0, seed=number), "limits": Limits(max_tokens=3 + number, stop=stop)}
        for number, stop in enumerate([(), ("a", "e"), ("t",), (), ("o", "n"), ("i",)])
    ]
    with load(path, deterministic=True) as engine:
        expected = [engine.generate(PROMPTS[0], **each) for each in settings]  # type: ignore[arg-type]
    with load(path) as engine, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda each: engine.generate(PROMPTS[0], **each), settings))
    assert [(a.token_ids, a.text, a.finish_reason) for a in answers] == [
        (e.token_ids, e.text, e.finish_reason) for e in expected
    ]
    assert len({answer.token_ids for answer in answers}) == 6


def test_those_who_leave_cost_the_others_nothing(path: Path, alone: list[tuple[Generation, Any]]) -> None:
    """Every third is cancelled in the middle, every third is late, and the rest get their answers."""

    def ask(number: int) -> Generation | None:
        limits, cancel = Limits(max_tokens=400), threading.Event()
        if number % 3 == 1:
            stream = engine.stream(PROMPTS[number], limits=limits, cancel=cancel)
            next(stream)
            cancel.set()
            with contextlib.suppress(CancelledError):  # or it had already come to its end
                list(stream)
        elif number % 3 == 2:
            with contextlib.suppress(EngineTimeoutError):
                engine.generate(PROMPTS[number], limits=Limits(max_tokens=400, timeout_s=0.01))
        else:
            return engine.generate(PROMPTS[number], limits=EIGHT)
        return None

    with load(path, slots=4) as engine, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(16)))
        later = [engine.generate(prompt, limits=EIGHT).token_ids for prompt in PROMPTS]
    assert [answers[n].token_ids for n in range(0, 16, 3)] == [alone[n][0].token_ids for n in range(0, 16, 3)]  # type: ignore[union-attr]
    assert later == [answer.token_ids for answer, _ in alone]


def test_a_failed_pass_ends_its_requests_and_the_next_ones_start_from_nothing(
    path: Path, alone: list[tuple[Generation, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(path) as engine:
        engine.generate(PROMPTS[0], limits=EIGHT)
        with monkeypatch.context() as patched:
            patched.setattr(llama_cpp, "llama_decode", lambda *_: -3)
            with pytest.raises(GuardError, match=r"could not evaluate.*llama_decode gave -3"):
                engine.generate(PROMPTS[0], limits=EIGHT)
        assert engine._loop._table is not None
        assert engine._loop._table.used == 0
        assert engine.generate(PROMPTS[0], limits=EIGHT).token_ids == alone[0][0].token_ids


# -- prefixes ----------------------------------------------------------------------------------------


def evaluated(engine: LlamaCppEngine, prompt: Prompt, **settings: Any) -> tuple[int, Generation]:
    """How many tokens the model evaluated for an answer."""
    before = engine._loop.evaluated
    answer = engine.generate(prompt, **{"limits": EIGHT, **settings})
    return engine._loop.evaluated - before, answer


def test_the_next_turn_evaluates_its_new_tokens_only_and_answers_the_same(engine: LlamaCppEngine, path: Path) -> None:
    turns = [{"role": "user", "content": "the question " * 20}]
    for _ in range(3):
        prompt = Prompt.chat(turns)
        before = engine._loop._table and max(len(slot.tokens) for slot in engine._loop._table.slots)
        count, answer = evaluated(engine, prompt)
        with load(path, deterministic=True) as fresh:
            everything, expected = evaluated(fresh, prompt)
        assert answer.token_ids == expected.token_ids
        np.testing.assert_allclose(answer.logprobs, expected.logprobs, atol=ROUNDING)
        assert everything == answer.prompt_tokens + answer.completion_tokens - 1
        if before:
            assert count <= everything - before + 8, "a token of the answer may be read in other pieces"
        turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "and then?"}]


def test_the_same_prompt_again_evaluates_one_token_of_it(engine: LlamaCppEngine) -> None:
    first, answer = evaluated(engine, PROMPTS[3])
    again, same = evaluated(engine, PROMPTS[3])
    assert same.token_ids == answer.token_ids
    assert first - again == answer.prompt_tokens - 1


def test_a_common_prefix_is_evaluated_once_for_all_who_ask_at_once(engine: LlamaCppEngine) -> None:
    examples = "the example " * 40
    prompts = [Prompt.raw(f"{examples}{number}") for number in range(8)]
    tokens = [engine.encode(prompt) for prompt in prompts]
    engine.generate(PROMPTS[0], limits=EIGHT)
    before = engine._loop.evaluated
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda prompt: engine.generate(prompt, limits=EIGHT), prompts))
    answered = sum(answer.completion_tokens for answer in answers)
    assert engine._loop.evaluated - before < 2 * len(tokens[0]) + answered


def test_different_cache_keys_never_share(engine: LlamaCppEngine) -> None:
    prompts = [Prompt.raw("the secret word is xyzzy", cache_key=key) for key in (None, "ann", "bob")]
    counts = [evaluated(engine, prompt)[0] for prompt in (*prompts, *prompts)]
    assert counts[0] == counts[1] == counts[2]
    assert counts[3] == counts[4] == counts[5] < counts[0]


def test_what_was_cut_short_can_be_continued(engine: LlamaCppEngine) -> None:
    """Only tokens that were evaluated are kept: the one chosen last was not."""
    warm = Sampling(temperature=1.0, seed=3)
    answer = engine.generate(PROMPTS[5], sampling=warm, limits=Limits(max_tokens=4))
    assert engine._loop._table is not None
    kept = engine._loop._table.slots[0].tokens
    assert kept == [*engine.encode(PROMPTS[5]), *answer.token_ids[:-1]]
    for _ in range(2):
        again = engine.generate(PROMPTS[5], sampling=warm, limits=Limits(max_tokens=8))
        assert again.token_ids[:4] == answer.token_ids


def test_a_deterministic_engine_keeps_nothing(path: Path) -> None:
    with load(path, deterministic=True) as engine:
        assert engine.slots == 1
        counts = {evaluated(engine, PROMPTS[3])[0] for _ in range(3)}
        assert len(counts) == 1
        assert engine._loop._table is not None
        assert engine._loop._table.used == 0


def test_memory_is_flat_over_many_requests(path: Path) -> None:
    with load(path, slots=4, cache_tokens=600) as engine:
        for number in range(300):
            engine.generate(Prompt.raw(f"{number} is a number " * (1 + number % 20)), limits=Limits(max_tokens=3))
        table = engine._loop._table
        assert table is not None
        assert table.used <= table.cells
        held = [
            int(llama_cpp.llama_memory_seq_pos_max(llama_cpp.llama_get_memory(engine._context.handle), slot)) + 1  # type: ignore[union-attr]
            for slot in range(4)
        ]
        assert held == [len(slot.tokens) for slot in table.slots], "what is noted is what llama.cpp holds"


# -- models that cannot go back ------------------------------------------------------------------------


def test_a_model_whose_state_cannot_go_back_starts_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As recurrent models: llama.cpp refuses to drop a part of a sequence."""
    remove = llama_cpp.llama_memory_seq_rm
    whole = lambda memory, slot, start, end: remove(memory, slot, start, end) if start <= 0 else False  # noqa: E731
    monkeypatch.setattr(llama_cpp, "llama_memory_seq_rm", whole)
    with load(path) as engine:
        assert engine.reuse == "continuation"
        first, answer = evaluated(engine, PROMPTS[3])
        again, same = evaluated(engine, PROMPTS[3])
        assert (again, same.token_ids) == (first, answer.token_ids)


def test_a_sliding_window_that_holds_the_last_tokens_only_starts_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_cpp, "llama_model_n_swa", lambda _: 64)
    params = llama_cpp.llama_context_default_params
    monkeypatch.setattr(llama_cpp, "llama_context_default_params", lambda: small_window(params()))
    with load(path) as engine:
        assert engine.reuse == "continuation"
    monkeypatch.setattr(llama_cpp, "llama_context_default_params", params)
    with load(path) as engine:
        assert engine.reuse == "copy", "its cache holds all"


def small_window(params: Any) -> Any:
    params.swa_full = False
    return params


def test_a_recurrent_model_has_one_slot(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "llama_model_is_recurrent", lambda _: True)
    with load(path) as engine:
        assert engine.slots == 1


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "value"), [("slots", 0), ("cache_tokens", -1)])
def test_numbers_that_make_no_sense_are_refused(path: Path, option: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{option} must be at least 1, got {value}"):
        load(path, **{option: value})


def test_the_cache_has_room_for_one_request_at_least(path: Path) -> None:
    with load(path, context_tokens=1000, cache_tokens=10) as engine:
        assert engine.cache_tokens >= 1000
        assert engine.model.context_tokens == 1000


# -- the embedded model ----------------------------------------------------------------------------------


@pytest.mark.model
def test_layers_of_the_embedded_model_in_a_shared_pass_are_those_alone(smollm2_path: Path) -> None:
    """Eight answers continued in one pass, against one pass for each.

    Prompts in one pass agree less: from 64 tokens on, llama.cpp's attention on a CPU adds up in float32, below in
    float16, with others or alone.
    """
    questions = ["What is the capital of France?", "Who wrote Hamlet?", "Name a river.", "What is 3 + 4?"] * 2
    with LlamaCppEngine.load(smollm2_path, context_tokens=1024, threads=1, slots=8) as engine:
        prompts = [engine.encode(Prompt.chat(f"{question} {number}")) for number, question in enumerate(questions)]
        first = [Feed(slot, tokens, 0, chooses=True, capture=True) for slot, tokens in enumerate(prompts)]
        together = read(engine, first)
        engine._forget(None)
        alone = [read(engine, [feed])[0] for feed in first]
        assert min(cosines(*pair).min() for pair in zip(together, alone, strict=True)) > 0.99
        after = [
            Feed(slot, [40 + slot], len(tokens), chooses=True, capture=True) for slot, tokens in enumerate(prompts)
        ]
        together = read(engine, after)
        for feed in after:
            engine._begin(Start(feed.slot, prompts[feed.slot], keep=feed.position))
        alone = [read(engine, [feed])[0] for feed in after]
        assert min(cosines(*pair).min() for pair in zip(together, alone, strict=True)) >= 0.999


def read(engine: LlamaCppEngine, feeds: list[Feed]) -> list[Any]:
    return [row.activations().copy() for row in engine._evaluate(feeds)]
