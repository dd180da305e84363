"""The real vLLM against transformers, on the same weights: SmolLM2, and tiny models of the other architectures.

Runs where vLLM is installed (`nox -s vllm`). It starts worker processes, some of which compile graphs.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import needs_vllm  # noqa: F401 - skips this module where vLLM is not installed

# isort: split
import numpy as np
import pytest
from exported_model import export_smollm2
from sums import addition_rows, sum_rows
from tiny_models import RowRecording, byte_tokenizer, tiny_model

from guard.engines.transformers import TransformersEngine
from guard.engines.vllm.engine import VllmEngine
from guard.errors import CancelledError, EngineError, EngineTimeoutError, PromptTooLongError
from guard.policy.policy import parse_policy
from guard.records import Floats, Generation, Limits, Prompt, Sampling, Signals
from guard.response_format import ResponseFormat
from guard.runtime.guard import Guard
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(1800)]

#: Smallest cosine between the two engines' MLP outputs of one layer and token, and the largest difference of p_wrong.
COSINE, APART = 0.999, 0.001

#: Tokens of one step: the longest prompts below have more, so that they are read in several.
BATCH_TOKENS = 256

#: Widths that vLLM's kernels have.
_WIDE = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 2, "num_key_value_heads": 2}

TOPICS = ("France", "Peru", "the Moon", "a triangle", "iron", "whales", "Hamlet", "the year 1815")


def prompts() -> list[Prompt]:
    """32 prompts from some 40 to some 400 tokens, of which each four have a long beginning in common."""
    notes = [
        " ".join(f"Note {n} on {topic}: nothing is known." for n in range(4 * at)) for at, topic in enumerate(TOPICS)
    ]
    asks = ("What is known about {}?", "Name one fact about {}.", "Is {} old? Why?", "Write two sentences on {}.")
    return [
        Prompt.chat(f"{note} {ask.format(topic)}") for note, topic in zip(notes, TOPICS, strict=True) for ask in asks
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2 as a model folder."""
    return export_smollm2(tmp_path_factory.mktemp("models") / "smollm2")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    with VllmEngine.load(folder, dtype="float32", context_tokens=1024, batch_tokens=BATCH_TOKENS) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference(folder: Path) -> Iterator[TransformersEngine]:
    with TransformersEngine.load(folder, context_tokens=1024) as engine:
        yield engine


@pytest.fixture(scope="module")
def scorer(engine: VllmEngine, reference: TransformersEngine) -> Scorer:
    """The embedded model's scorer, for these weights by force: all of its scores are computed, and the ood_score."""
    return load_scorer(shipped_scorer()).for_model(engine.model, "mlp", force=True)


def together(engine: VllmEngine, asked: Sequence[Prompt], limits: Limits) -> list[tuple[Generation, RowRecording]]:
    """Answers to all prompts at once, with their layers."""
    observers = [RowRecording() for _ in asked]

    async def ask() -> list[Generation]:
        calls = zip(asked, observers, strict=True)
        return await asyncio.gather(*(engine.agenerate(prompt, limits=limits, observer=each) for prompt, each in calls))

    return [*zip(asyncio.run(ask()), observers, strict=True)]


def cosines(one: Floats, other: Floats) -> Floats:
    """Of each layer and token, shape (T, L) from (T, L, D)."""
    norms = np.linalg.norm(one, axis=2) * np.linalg.norm(other, axis=2)
    return np.einsum("tld,tld->tl", one, other) / norms


def left_behind(engine: VllmEngine) -> int:
    """How many requests the workers hold anything of."""
    return engine._stepper.watched()


# -- the same as transformers ------------------------------------------------------------------


def test_the_two_engines_are_bound_to_the_same_weights_and_tokenizer(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    here, there = engine.model, reference.model
    for name in (
        "architecture",
        "quantization",
        "weights_sha256",
        "tokenizer_sha256",
        "chat_template_sha256",
        "layers",
    ):
        assert getattr(here, name) == getattr(there, name), name
    assert (here.engine, here.width) == ("vllm", 576)


def test_layers_signals_and_scores_of_32_requests_at_once_are_those_of_transformers(
    engine: VllmEngine, reference: TransformersEngine, scorer: Scorer
) -> None:
    asked, limits = prompts(), Limits(max_tokens=12)
    first, again = together(engine, asked, limits), together(engine, asked, limits)  # again: from the prefix cache
    worst, apart, checked = 1.0, 0.0, 0
    for prompt, (answer, rows), (same, kept) in zip(asked, first, again, strict=True):
        assert answer.capture_error is None
        assert len(rows.rows) == answer.completion_tokens
        assert same.token_ids == answer.token_ids
        assert cosines(np.stack(rows.rows), np.stack(kept.rows)).min() >= COSINE
        wanted = RowRecording()
        read = reference.generate(prompt, completion=answer.text, observer=wanted)
        count = len(answer.token_ids)
        if read.token_ids[:count] != answer.token_ids:
            continue  # the text's tokens are others than those that were chosen
        worst = min(worst, float(cosines(np.stack(rows.rows), np.stack(wanted.rows[:count])).min()))
        for name, atol in (("logprobs", 0.01), ("entropies", 0.02), ("margins", 0.02)):
            assert np.allclose(getattr(answer, name), getattr(read, name)[:count], atol=atol), name
        apart = max(apart, p_apart(scorer, (answer, rows.rows), (read, wanted.rows[:count])))
        checked += 1
    print(f"{checked} answers: smallest cosine {worst:.6f}, largest difference of p_wrong {apart:.6f}")
    assert checked >= 24
    assert worst >= COSINE
    assert apart <= APART
    assert left_behind(engine) == 0


def p_apart(scorer: Scorer, one: tuple[Generation, list[Floats]], other: tuple[Generation, list[Floats]]) -> float:
    """The largest difference between any of the scores of the same tokens."""
    values = []
    for answer, rows in (one, other):
        observer = scorer.observer()
        for row in rows:
            observer.observe(row)
        kept = slice(0, len(rows))
        signals = Signals(answer.logprobs[kept], answer.entropies[kept], answer.margins[kept], observer.signature())
        values.append([reading.p_wrong for reading in scorer.score(signals).scores.values()])
    return float(np.abs(np.subtract(*values)).max())


def test_given_answers_have_the_layers_and_signals_of_transformers(
    engine: VllmEngine, reference: TransformersEngine
) -> None:
    prompt, here, there = Prompt.chat("What is the capital of Australia?"), RowRecording(), RowRecording()
    one = engine.generate(prompt, completion="The capital is Sydney.", observer=here)
    other = reference.generate(prompt, completion="The capital is Sydney.", observer=there)
    assert one.token_ids == other.token_ids
    assert one.text == other.text == "The capital is Sydney."
    assert cosines(np.stack(here.rows), np.stack(there.rows)).min() >= COSINE
    assert np.allclose(one.logprobs, other.logprobs, atol=0.01)


def test_a_guard_on_vllm_scores_and_decides(engine: VllmEngine) -> None:
    guard = Guard(engine, load_scorer(shipped_scorer()), "balanced", force_scorer=True, all_scores=True)
    outcome = guard.ask("What is the capital of France?")
    assert outcome.attempts[0].score is not None
    assert "Paris" in (outcome.attempts[0].answer or "")
    assert left_behind(engine) == 0


def test_a_chat_model_of_langchain_answers_and_streams_on_vllm(engine: VllmEngine) -> None:
    pytest.importorskip("langchain_core")
    from guard.langchain import ChatGuard

    chat = ChatGuard(engine=engine, scorer=load_scorer(shipped_scorer()), force_scorer=True, max_tokens=8)
    asked = ["What is the capital of France?", "What is the capital of Peru?"]
    answers = chat.batch(asked)
    assert "Paris" in str(answers[0].content)
    assert all(0 < answer.response_metadata["guard"]["p_wrong"] < 1 for answer in answers)
    assert "".join(str(chunk.content) for chunk in chat.stream(asked[0])) == answers[0].content
    assert left_behind(engine) == 0


def test_answers_are_recorded_on_vllm_as_on_transformers(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import guard
    from guard.data.answers import Answers

    model, questions = made_folder(tmp_path / "model"), tmp_path / "questions.jsonl"
    questions.write_text(sum_rows(range(12)))
    found = []
    for name, own in (("vllm", {"dtype": "float32", "eager": True, "slots": 4}), ("transformers", {"threads": 1})):
        options = {"context_tokens": 512, **own}
        result = guard.record(
            questions, out=tmp_path / name, model=model, engine=name, engine_options=options, max_tokens=4, lens=False
        )
        found.append(Answers.read(result.out))
    here, there = found
    assert (here.key == there.key).all()
    assert (here.answer == there.answer).all()
    assert np.allclose(here.maps, there.maps, rtol=1e-2, atol=1e-4)
    assert np.allclose(here.norms, there.norms, rtol=1e-3)


def test_a_scorer_is_calibrated_on_vllm_and_used(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("lightgbm")
    import guard

    (tmp_path / "sums.jsonl").write_text(addition_rows(), "utf-8")
    out, options = tmp_path / "scorer.json", {"dtype": "float32", "eager": True, "context_tokens": 512}
    guard.calibrate(
        tmp_path / "sums.jsonl", out=out, model=folder, engine="vllm", engine_options=options, max_tokens=24
    )
    policy = parse_policy("{version: 1, name: a, rules: [accept]}")
    with Guard.load(folder, engine="vllm", engine_options=options, scorer=out, policy=policy) as guarded:
        score = guarded.ask("What is 2 plus 3?").attempts[-1].score
    assert score is not None
    assert score.calibrated
    assert 0 < score.p_wrong < 1


def made_folder(folder: Path, kind: str = "llama") -> Path:
    """A tiny model of widths that vLLM's kernels have."""
    head = {} if kind == "qwen2" else {"head_dim": 64}
    tiny_model(kind, scale=2.0, **_WIDE, **head).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


# -- how answers are chosen --------------------------------------------------------------------


def test_a_seed_draws_the_same_answer_again_whoever_else_asks(engine: VllmEngine) -> None:
    prompt, sampling = Prompt.chat("Invent a name for a cat."), Sampling(temperature=1.5, seed=7)
    alone = engine.generate(prompt, sampling=sampling, limits=Limits(max_tokens=16))
    again = engine.generate(prompt, sampling=sampling, limits=Limits(max_tokens=16))
    other = engine.generate(prompt, sampling=Sampling(temperature=1.5, seed=8), limits=Limits(max_tokens=16))
    assert alone.token_ids == again.token_ids != other.token_ids
    assert (alone.logprobs < 0).all()


def test_stop_strings_limits_and_ends(engine: VllmEngine) -> None:
    prompt = Prompt.chat("Count from one to ten, as words, with commas.")
    whole = engine.generate(prompt, limits=Limits(max_tokens=64))
    cut = engine.generate(prompt, limits=Limits(max_tokens=3))
    stopped = engine.generate(prompt, limits=Limits(max_tokens=64, stop=(",",)))
    assert (cut.finish_reason, cut.completion_tokens) == ("length", 3)
    assert (stopped.finish_reason, "," in stopped.text) == ("stop_string", False)
    assert whole.text.startswith(stopped.text)
    assert left_behind(engine) == 0


def test_a_stream_adds_up_to_the_answer(engine: VllmEngine) -> None:
    *pieces, last = engine.stream(Prompt.chat("What is the capital of France?"), limits=Limits(max_tokens=16))
    assert last.generation is not None
    assert "".join(piece.text for piece in pieces) == last.generation.text
    assert len(pieces) > 1


def test_a_response_format_is_held(engine: VllmEngine) -> None:
    prompt = Prompt.chat("Is Paris in France?", response_format=ResponseFormat.regex("yes|no"))
    answer = engine.generate(prompt)
    assert answer.text in ("yes", "no")
    assert answer.redirected is not None


def test_a_request_that_comes_to_vllm_past_guard_has_no_text(engine: VllmEngine) -> None:
    from vllm import SamplingParams

    llm, tokens = engine._stepper._llm, engine.encode(Prompt.chat("What is the capital of France?"))
    llm.add_request("past-guard", {"prompt_token_ids": tokens}, SamplingParams(max_tokens=4, ignore_eos=True))
    outputs = []
    while llm.has_unfinished_requests():
        outputs = llm.step()
    assert set(outputs[0].outputs[0].token_ids) <= engine._tokens.ends


# -- ends --------------------------------------------------------------------------------------


def test_cancelled_late_and_abandoned_requests_leave_no_rows_behind(engine: VllmEngine) -> None:
    prompt, limits, cancel = Prompt.chat("Tell a very long story."), Limits(max_tokens=600), threading.Event()
    threading.Timer(0.5, cancel.set).start()
    with pytest.raises(CancelledError):
        engine.generate(prompt, limits=limits, observer=RowRecording(), cancel=cancel)
    with pytest.raises(EngineTimeoutError):
        engine.generate(prompt, limits=Limits(max_tokens=600, timeout_s=0.5), observer=RowRecording())
    stream = engine.stream(prompt, limits=limits, observer=RowRecording())
    next(stream)
    stream.close()  # type: ignore[attr-defined]

    async def give_up() -> None:
        task = asyncio.create_task(engine.agenerate(prompt, limits=limits, observer=RowRecording()))
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(give_up())
    deadline = time.monotonic() + 20
    while engine._requests._running and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.02)
    assert left_behind(engine) == 0
    assert not engine._stepper._llm.has_unfinished_requests()
    assert engine.generate(Prompt.chat("Say yes."), limits=Limits(max_tokens=4)).text


def test_a_prompt_that_is_too_long_is_refused_before_vllm_sees_it(engine: VllmEngine) -> None:
    with pytest.raises(PromptTooLongError):
        engine.generate(Prompt.chat("word " * 2000))


def test_a_worker_that_dies_ends_its_requests_with_an_error(tmp_path: Path) -> None:
    made_folder(tmp_path)
    others = multiprocessing.active_children()
    with VllmEngine.load(tmp_path, dtype="float32", eager=True, context_tokens=512) as engine:
        (worker,) = (each for each in multiprocessing.active_children() if each not in others)
        threading.Timer(0.5, worker.kill).start()
        with pytest.raises(EngineError):
            ask_until_it_fails(engine)


def ask_until_it_fails(engine: VllmEngine) -> None:
    while True:
        engine.generate(Prompt.chat("The quick brown fox"), limits=Limits(max_tokens=64))


# -- other architectures, points and processes -------------------------------------------------


@pytest.mark.parametrize(("kind", "point"), [("qwen2", "mlp"), ("qwen3", "mlp+block"), ("mistral", "block")])
def test_other_architectures_and_points_are_read_as_by_transformers(kind: str, point: Any, tmp_path: Path) -> None:
    made_folder(tmp_path, kind)
    prompt, here, there = Prompt.chat("The quick brown fox"), RowRecording(), RowRecording()
    with VllmEngine.load(tmp_path, dtype="float32", eager=True, capture_point=point, context_tokens=256) as engine:
        one = engine.generate(prompt, completion="jumps over", observer=here)
    with TransformersEngine.load(tmp_path, capture_point=point) as engine:
        other = engine.generate(prompt, completion="jumps over", observer=there)
    assert one.capture_error is None
    assert np.stack(here.rows).shape == np.stack(there.rows).shape
    assert cosines(np.stack(here.rows), np.stack(there.rows)).min() >= COSINE
    assert np.allclose(one.logprobs, other.logprobs, atol=0.01)


@pytest.mark.parametrize("shared", ["tensor_parallel", "data_parallel"])
def test_two_workers_that_share_each_layer_or_the_requests_give_the_same(
    shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_folder(tmp_path)
    asked = [Prompt.chat("The quick brown fox " * count) for count in (1, 3, 5, 7)]
    found = []
    for workers in (1, 2):
        options: dict[str, Any] = {"dtype": "float32", "eager": True, "context_tokens": 512, shared: workers}
        # Left to itself, vLLM wants a NUMA node for each worker.
        monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, range(workers))))
        with VllmEngine.load(tmp_path, **options) as engine:
            found.append(together(engine, asked, Limits(max_tokens=8)))
            assert left_behind(engine) == 0
    for (one, rows), (other, wanted) in zip(*found, strict=True):
        assert one.token_ids == other.token_ids
        assert cosines(np.stack(rows.rows), np.stack(wanted.rows)).min() >= COSINE
        assert np.allclose(one.logprobs, other.logprobs, atol=0.01)
