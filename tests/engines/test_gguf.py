"""GGUF headers against the gguf package, and against damage of every kind."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import struct
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedded_model import smollm2_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.engines import gguf as reader
from guard.engines import weights
from guard.engines.gguf import StringArray, read_gguf, weights_sha256
from guard.errors import ModelFileError

# -- files written by hand, so that every byte can be chosen ------------------------------------


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


def texts(key: str, values: list[str]) -> bytes:
    return pair(key, 9, struct.pack("<IQ", 8, len(values)) + b"".join(map(text, values)))


def array(key: str, kind: int, code: str, values: list[Any]) -> bytes:
    return pair(key, 9, struct.pack(f"<IQ{len(values)}{code}", kind, len(values), *values))


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def build(
    pairs: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 0,
    alignment: int = 32,
) -> bytes:
    pairs = [ARCHITECTURE] if pairs is None else pairs
    tensors = tensors or []
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, tensor_count, pair_count)
    head += b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


def complete() -> bytes:
    """A small file with everything that a language model's header has."""
    pairs = [
        ARCHITECTURE,
        u32("general.alignment", 32),
        u32("general.file_type", 15),
        u32("llama.block_count", 2),
        u32("llama.context_length", 128),
        u32("llama.embedding_length", 32),
        pair("llama.rope.freq_base", 6, struct.pack("<f", 10000.0)),
        pair("tokenizer.ggml.model", 8, text("gpt2")),
        texts("tokenizer.ggml.tokens", ["a", "é", "", ""]),
        array("tokenizer.ggml.token_type", 5, "i", [1, 1, 1, 3]),
        array("tokenizer.ggml.scores", 6, "f", [0.0, -1.0, -2.0, -3.0]),
        texts("tokenizer.ggml.merges", ["a b"]),
        pair("tokenizer.ggml.add_bos_token", 7, b"\1"),
        pair("tokenizer.chat_template", 8, text("{{ messages }}")),
    ]
    tensors = [
        tensor("token_embd.weight", (32, 4), 3, 0),
        tensor("blk.0.ffn_down.weight", (32, 32), 0, 96),
    ]
    return build(pairs, tensors, data=96 + 32 * 32 * 4)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    numbers = itertools.count()

    def write(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / f"{next(numbers)}" / name
        path.parent.mkdir()
        path.write_bytes(content)
        return path

    return write


def test_reads_a_complete_header(write: Callable[..., Path]) -> None:
    content = complete()
    header = read_gguf(write(content))
    assert (header.version, header.file_size) == (3, len(content))
    assert (header.architecture, header.quantization) == ("llama", "Q4_K_M")
    assert (header.block_count, header.context_length, header.embedding_length) == (2, 128, 32)
    assert header.chat_template == "{{ messages }}"
    tokens = header.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens, StringArray)
    assert (list(tokens), tokens[-2], tokens[1:3], len(tokens)) == (["a", "é", "", ""], "", ["é", ""], 4)
    with pytest.raises(IndexError):
        tokens[4]
    assert header.metadata["tokenizer.ggml.add_bos_token"] is True
    assert header.metadata["llama.rope.freq_base"] == 10000.0
    first, second = header.tensors
    assert (first.name, first.shape, first.type, first.size) == ("token_embd.weight", (32, 4), "Q4_1", 80)
    assert (second.offset - first.offset, second.size, second.elements) == (96, 4096, 1024)
    assert second.offset + second.size == len(content)


def test_agrees_with_the_gguf_package_on_the_embedded_model() -> None:
    gguf = pytest.importorskip("gguf")
    path = smollm2_file()
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    fields = {name: entry for name, entry in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    for name, entry in fields.items():
        value = ours.metadata[name]
        if len(entry.types) > 1:
            assert list(value) == entry.contents(), name  # type: ignore[arg-type]
        else:
            assert value == entry.contents(), name
    assert len(ours.tensors) == len(theirs.tensors) == 272
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert mine.name == other.name
        assert mine.shape == tuple(other.shape.tolist())
        assert (mine.type, mine.offset, mine.size) == (other.tensor_type.name, other.data_offset, other.n_bytes)
    assert (ours.architecture, ours.quantization, ours.block_count) == ("llama", "Q4_1", 30)
    assert (ours.context_length, ours.embedding_length) == (8192, 576)
    assert "<|im_start|>" in (ours.chat_template or "")


scalars = st.one_of(
    st.tuples(st.just("uint8"), st.integers(0, 2**8 - 1)),
    st.tuples(st.just("int8"), st.integers(-(2**7), 2**7 - 1)),
    st.tuples(st.just("uint16"), st.integers(0, 2**16 - 1)),
    st.tuples(st.just("int16"), st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just("uint32"), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("int32"), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just("uint64"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("int64"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("float32"), st.floats(width=32, allow_nan=False)),
    st.tuples(st.just("float64"), st.floats(allow_nan=False)),
    st.tuples(st.just("bool"), st.booleans()),
    st.tuples(st.just("string"), st.text(min_size=1, max_size=20)),
)
arrays = st.one_of(
    st.lists(st.text(max_size=9), min_size=1, max_size=9),
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9),
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
    st.lists(st.booleans(), min_size=1, max_size=9),
)
names = st.text("abcdefghijklmnop._", min_size=1, max_size=12)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(names, st.one_of(scalars, arrays), max_size=6),
    tensors=st.dictionaries(names, st.lists(st.integers(1, 5), min_size=1, max_size=4), max_size=4),
    alignment=st.sampled_from([8, 32, 64, 4096]),
)
def test_reads_back_what_the_gguf_package_writes(
    tmp_path: Path, values: dict[str, Any], tensors: dict[str, list[int]], alignment: int
) -> None:
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "written.gguf"
    writer = gguf.GGUFWriter(path, "tiny")
    writer.add_custom_alignment(alignment)
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            getattr(writer, f"add_{value[0]}")(key, value[1])
    for name, shape in tensors.items():
        writer.add_tensor(name, np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header = read_gguf(path)
    assert header.architecture == "tiny"
    for key, value in values.items():
        expected = value if isinstance(value, list) else value[1]
        found = header.metadata[key]
        assert (list(found) if isinstance(value, list) else found) == expected  # type: ignore[arg-type]
    assert {found.name: list(reversed(found.shape)) for found in header.tensors} == tensors
    content = path.read_bytes()
    for found in header.tensors:
        raw = content[found.offset : found.offset + found.size]
        assert (np.frombuffer(raw, "<f4") == 1).all()
        assert len(raw) == 4 * found.elements


# -- what the properties say --------------------------------------------------------------------


def test_quantization_falls_back_to_the_type_of_most_weights(write: Callable[..., Path]) -> None:
    big = tensor("a", (32, 8), 2, 0)
    small = [tensor(f"norm{at}", (8,), 0, 160 + 32 * at) for at in range(5)]
    for pairs in ([ARCHITECTURE], [ARCHITECTURE, u32("general.file_type", 1024)]):
        assert read_gguf(write(build(pairs, [big, *small], data=320))).quantization == "Q4_0"
    assert read_gguf(write(build())).quantization == "none"


@pytest.mark.parametrize("value", [pair("llama.block_count", 8, text("2")), b""])
def test_a_missing_hyperparameter_is_named(write: Callable[..., Path], value: bytes) -> None:
    header = read_gguf(write(build([ARCHITECTURE, *([value] if value else [])])))
    with pytest.raises(ModelFileError, match=r"llama\.block_count"):
        _ = header.block_count


def byte_tokens(*, without: int = 256) -> bytes:
    return texts("tokenizer.ggml.tokens", [f"<0x{byte:02X}>" for byte in range(256) if byte != without])


#: What llama.cpp ends the process over: hyperparameters, and what is said of them.
BROKEN: list[tuple[list[bytes], str]] = [
    ([u32("llama.block_count", 0)], "block_count is 0, from 1 to 512"),
    ([u32("llama.block_count", 513)], "block_count is 513, from 1 to 512"),
    ([u32("llama.block_count", 2), u32("llama.nextn_predict_layers", 2)], "leaves none of 2 blocks"),
    ([pair("llama.rope.scaling.type", 8, text("dynamic"))], "rope.scaling.type is 'dynamic'"),
    ([u32("llama.expert_count", 1025), u32("llama.expert_used_count", 2)], "expert_count is 1025, at most 1024"),
    ([u32("llama.expert_count", 4), u32("llama.expert_used_count", 5)], "expert_used_count is 5 of 4"),
    ([u32("llama.expert_count", 4)], "expert_used_count is 0 of 4"),
    ([u32("llama.expert_used_count", 1)], "expert_used_count is 1 of 0"),
    ([u32("llama.expert_group_count", 1)], "expert_group_count is 1 for 0"),
    ([u32("llama.attention.head_count", 4), u32("llama.embedding_length", 32), u32("llama.attention.key_length", 512)],
     "key_length is 512, and of values 8"),
    ([u32("llama.attention.head_count", 4), u32("llama.embedding_length", 32), u32("llama.rope.dimension_count", 6)],
     "dimension_count is 6, and of keys 8"),
    ([pair("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", -1.0))], "epsilon is -1.0"),
    ([pair("tokenizer.ggml.model", 8, text("no_vocab"))], "tokenizer.ggml.model is 'no_vocab'"),
    ([pair("tokenizer.ggml.model", 8, text("llama")), byte_tokens(without=200)], "has none for the byte 200"),
]  # fmt: skip


@pytest.mark.parametrize(("pairs", "said"), BROKEN)
def test_what_llama_cpp_would_not_survive_is_refused(write: Callable[..., Path], pairs: list[bytes], said: str) -> None:
    with pytest.raises(ModelFileError, match=re.escape(said)):
        read_gguf(write(build([ARCHITECTURE, *pairs])))


def test_what_llama_cpp_survives_is_read(write: Callable[..., Path]) -> None:
    groups = [("expert_count", 8), ("expert_used_count", 2), ("expert_group_count", 4), ("expert_group_used_count", 2)]
    heads = [("attention.head_count", 4), ("embedding_length", 32), ("attention.key_length", 8), ("block_count", 512)]
    pairs = [u32(f"llama.{name}", value) for name, value in (*groups, *heads)]
    spm = [pair("tokenizer.ggml.model", 8, text("llama")), byte_tokens()]
    assert read_gguf(write(build([ARCHITECTURE, *pairs, *spm]))).block_count == 512


def test_the_tokenizer_hash_sees_every_part_and_nothing_else(write: Callable[..., Path]) -> None:
    base = {
        "model": pair("tokenizer.ggml.model", 8, text("gpt2")),
        "pre": pair("tokenizer.ggml.pre", 8, text("smollm")),
        "tokens": texts("tokenizer.ggml.tokens", ["ab", "c"]),
        "merges": texts("tokenizer.ggml.merges", ["a b"]),
        "types": array("tokenizer.ggml.token_type", 5, "i", [1, 3]),
        "bos": u32("tokenizer.ggml.bos_token_id", 1),
    }
    changes = {
        "model": pair("tokenizer.ggml.model", 8, text("bert")),
        "pre": pair("tokenizer.ggml.pre", 8, text("qwen2")),
        "tokens": texts("tokenizer.ggml.tokens", ["a", "bc"]),
        "merges": texts("tokenizer.ggml.merges", ["a  b"]),
        "types": array("tokenizer.ggml.token_type", 5, "i", [1, 1]),
        "bos": u32("tokenizer.ggml.bos_token_id", 0),
    }

    def hash_of(parts: list[bytes]) -> str:
        return read_gguf(write(build([ARCHITECTURE, *parts]))).tokenizer_sha256

    hashes = {hash_of(list((base | {key: value}).values())) for key, value in changes.items()}
    assert len(hashes | {hash_of(list(base.values()))}) == len(changes) + 1
    other = [*reversed(base.values()), pair("tokenizer.chat_template", 8, text("x")), u32("general.quantization", 2)]
    assert hash_of(other) == hash_of(list(base.values()))


# -- files that cannot be used -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"PK\x03\x04 and more", "zip"),
        (b"\x80\x02}q\x00", "pickle"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n  <html lang='en'>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (struct.pack("<Q", 64) + b'{"__metadata__":{}}', "safetensors"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"tjgg\x03\x00\x00\x00", "GGJT"),
        (b'{"model_type": "llama"}', "JSON"),
        (bytes(500), "zeros"),
        (b"hello", "hell"),
        (b"GG", "GG"),
        (b"GGUF", "cut off"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 1), "big-endian"),
        (build(version=1), "version 1"),
        (build(version=4), "version 4"),
        (build(version=0), "version 0"),
        (complete()[:-1], "cut off.*tensors need"),
        (complete()[:300], "cut off|damaged"),
        (build(counts=(0, 2)), "an empty key"),
        (build(counts=(2**63, 1)), "room for"),
        (build(counts=(0, 2**64 - 1)), "room for"),
        (build([]), "general.architecture"),
        (build([u32("general.architecture", 3)]), "general.architecture"),
        (build([ARCHITECTURE, ARCHITECTURE]), "twice"),
        (build([ARCHITECTURE, pair("", 4, bytes(4))]), "empty key"),
        (build([ARCHITECTURE, pair(b"\xff\xfe", 4, bytes(4))]), "UTF-8"),
        (build([ARCHITECTURE, pair("k", 8, text(b"\xff"))]), "UTF-8"),
        (build([ARCHITECTURE, pair("k" * 70000, 4, bytes(4))]), "at most 65535"),
        (build([ARCHITECTURE, pair("k", 8, struct.pack("<Q", 2**63))]), "malformed|cut off"),
        (build([ARCHITECTURE, pair("k", 13, bytes(8))]), "unknown value type 13"),
        (build([ARCHITECTURE, pair("k", 7, b"\2")]), "truth value"),
        (build([ARCHITECTURE, pair("k", 9, struct.pack("<IQ", 9, 1) + bytes(20))]), "array of arrays"),
        (build([ARCHITECTURE, pair("k", 9, struct.pack("<IQ", 77, 1) + bytes(20))]), "unknown type 77"),
        (build([ARCHITECTURE, pair("k", 9, struct.pack("<IQ", 4, 2**62))]), "room for"),
        (build([ARCHITECTURE, pair("k", 9, struct.pack("<IQ", 8, 2**40))]), "room for"),
        (build([ARCHITECTURE, pair("k", 9, struct.pack("<IQQ", 8, 1, 2**64 - 1))]), "cut off"),
        (build([ARCHITECTURE, u32("general.alignment", 0)]), "power of two"),
        (build([ARCHITECTURE, u32("general.alignment", 33)]), "power of two"),
        (build([ARCHITECTURE, pair("general.alignment", 8, text("32"))]), "whole number"),
        (build([ARCHITECTURE, u32("tokenizer.ggml.tokens", 1)]), "tokens is not an array of texts"),
        (build([ARCHITECTURE, array("tokenizer.ggml.scores", 6, "f", [1.0])]), "as many items"),
        (build([ARCHITECTURE, texts("tokenizer.ggml.scores", ["a"])]), "not an array of float32"),
        (build([ARCHITECTURE, texts("tokenizer.ggml.tokens", ["a", "b", "a"])]), "same token twice"),
        (build([ARCHITECTURE, texts("tokenizer.ggml.tokens", ["a", "b", "a\0b"])]), "same token twice"),
        (build([ARCHITECTURE, u32("llama.block_count", 513)]), "from 1 to 512"),
        (build(None, [tensor("t", (1, 1, 1, 1, 1), 0, 0)], data=64), "5 dimensions"),
        (build(None, [tensor("t", (0,), 0, 0)], data=64), "impossible shape"),
        (build(None, [tensor("t", (2**32, 2**32), 0, 0)], data=64), "impossible shape"),
        (build(None, [tensor("t", (2**40,), 0, 0)], data=64), "cut off"),
        (build(None, [tensor("t", (8,), 5, 0)], data=64), "unknown type 5"),
        (build(None, [tensor("t", (33,), 2, 0)], data=64), "no whole Q4_0 blocks"),
        (build(None, [tensor("t", (8,), 0, 4)], data=64), "multiple of 32"),
        (build(None, [tensor("t" * 64, (8,), 0, 0)], data=64), "at most 63"),
        (build(None, [tensor("t", (8,), 0, 0), tensor("t", (8,), 0, 32)], data=64), "twice"),
        (build(None, [tensor("t", (16,), 0, 0), tensor("u", (8,), 0, 32)], data=64), "overlaps"),
        (build(None, [tensor("t", (8,), 0, 2**63)], data=64), "cut off"),
    ],
)
def test_a_bad_file_is_refused_with_its_reason(write: Callable[..., Path], content: bytes, said: str) -> None:
    path = write(content)
    with pytest.raises(ModelFileError, match=f"(?s){path}.*({said})"):
        read_gguf(path)


def test_truncation_names_both_sizes(write: Callable[..., Path]) -> None:
    content = complete()
    with pytest.raises(ModelFileError, match=f"need {len(content)} bytes, the file has {len(content) - 1000}"):
        read_gguf(write(content[:-1000]))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "SmolLM2.gguf").write_bytes(b"x")
    with pytest.raises(ModelFileError, match=r"no file.*Did you mean 'SmolLM2.gguf'"):
        read_gguf(tmp_path / "SmolLM.gguf")
    with pytest.raises(ModelFileError, match="is a folder"):
        read_gguf(tmp_path)
    with pytest.raises(ModelFileError, match=r"folder .* does not exist"):
        read_gguf(tmp_path / "none" / "model.gguf")
    with pytest.raises(ModelFileError, match=r"Cannot read|no file"):
        read_gguf("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="not a regular file"):
        read_gguf(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(write: Callable[..., Path]) -> None:
    path = write(complete())
    path.chmod(0)
    with pytest.raises(ModelFileError, match="Permission denied"):
        read_gguf(path)


# -- fuzzing -------------------------------------------------------------------------------------


def damaged(content: bytes, header_bytes: int, random_: random.Random) -> bytes:
    """One mutation, or a few, of the header part of a file."""
    changed = bytearray(content)
    for _ in range(random_.choice([1, 1, 1, 2, 5])):
        if not changed:
            break
        at = random_.randrange(min(header_bytes, len(changed)))
        kind = random_.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << random_.randrange(8)
        elif kind == 1:
            changed[at : at + 8] = struct.pack("<Q", random_.choice([0, 1, 2**31, 2**32, 2**63, 2**64 - 1]))
        elif kind == 2:
            changed[at : at + 4] = struct.pack("<I", random_.randrange(64))
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            del changed[at : at + random_.randrange(1, 16)]
        else:
            changed[at:at] = random_.randbytes(random_.randrange(1, 16))
    return bytes(changed)


def probe(path: Path) -> bool:
    """Read a file and everything that its header says; whether it was accepted."""
    try:
        header = read_gguf(path)
    except ModelFileError:
        return False
    assert all(tensor.offset + tensor.size <= header.file_size for tensor in header.tensors)
    assert header.architecture
    assert header.quantization
    assert len(header.tokenizer_sha256) == 64
    for value in header.metadata.values():
        if isinstance(value, StringArray):
            assert len(list(value)) == len(value)
    for name in ("block_count", "context_length", "embedding_length"):
        try:
            assert getattr(header, name) > 0
        except ModelFileError:
            continue
    return True


def test_damaged_headers_are_read_or_refused(tmp_path: Path) -> None:
    content, random_ = complete(), random.Random(0)
    path = tmp_path / "damaged.gguf"
    accepted = 0
    for _ in range(5000):
        path.write_bytes(damaged(content, 900, random_))
        accepted += probe(path)
    assert 0 < accepted < 5000


def test_a_header_cut_anywhere_is_refused(tmp_path: Path) -> None:
    content = complete()
    path = tmp_path / "cut.gguf"
    for size in range(0, len(content), 3):
        path.write_bytes(content[:size])
        assert not probe(path)


def test_the_embedded_models_header_with_damage(tmp_path: Path) -> None:
    content, random_ = smollm2_file().read_bytes()[: 2**21], random.Random(1)
    path = tmp_path / "damaged.gguf"
    for _ in range(40):
        path.write_bytes(damaged(content, 1_785_000, random_))
        assert not probe(path)  # its tensors are cut off at least


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
def test_noise_after_the_magic_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "noise.gguf"
    path.write_bytes(b"GGUF\3\0\0\0" + content)
    assert not probe(path)


def test_claims_of_great_size_allocate_nothing(write: Callable[..., Path]) -> None:
    huge = 2**28
    paths = [write(build([ARCHITECTURE, pair("k", 9, struct.pack("<IQ", kind, huge))], data=4096)) for kind in (0, 8)]
    paths.append(write(build([ARCHITECTURE, pair("k", 8, struct.pack("<Q", huge))], data=4096)))
    paths.append(write(build(counts=(huge, huge), data=4096)))
    # A sparse file that really is as large as its array claims: the header's own limit holds.
    sparse = write(build([ARCHITECTURE, pair("k", 9, struct.pack("<IQ", 0, 2**33))]))
    os.truncate(sparse, 2**34)
    tracemalloc.start()
    try:
        for path in [*paths, sparse]:
            assert not probe(path)
        assert tracemalloc.get_traced_memory()[1] < 8 * 2**20
    finally:
        tracemalloc.stop()


def test_a_file_that_shrinks_while_it_is_read(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_WINDOW", 64)
    path = write(complete())
    stream = path.open("rb")
    os.truncate(path, 100)
    with stream, pytest.raises(ModelFileError, match="became shorter"):
        reader._Reader(path, stream, len(complete())).header()


# -- the hash of the weights -----------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "guard" / "weights"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_the_hash_is_kept_and_follows_the_file(
    cache: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(b"weights")
    assert weights_sha256(path) == sha256(b"weights")
    (entry,) = cache.iterdir()
    assert json.loads(entry.read_text())["sha256"] == sha256(b"weights")

    with monkeypatch.context() as patch:
        patch.setattr(weights.hashlib, "file_digest", None)  # a second hash would fail
        assert weights_sha256(str(path)) == sha256(b"weights")

    path.write_bytes(b"changed")
    os.utime(path, ns=(1, 1))
    assert weights_sha256(path) == sha256(b"changed")
    with pytest.raises(ModelFileError, match="no file"):
        weights_sha256(path.with_name("other.gguf"))


def put_back(path: Path, content: bytes) -> None:
    """Change a file in place, and put size, inode and time of its content back as they were."""
    before = path.stat()
    with path.open("r+b") as stream:
        stream.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    same = ("st_size", "st_ino", "st_mtime_ns")
    assert [getattr(after, name) for name in same] == [getattr(before, name) for name in same]


def test_a_file_that_was_changed_behind_its_times_is_hashed_again(cache: Path, write: Callable[..., Path]) -> None:
    path = write(b"weights")
    weights_sha256(path)
    time.sleep(0.02)  # beyond the grain of the kernel's clock
    put_back(path, b"changed")
    assert weights_sha256(path) == sha256(b"changed")


@pytest.mark.parametrize("where", [0, 2**19, 2**20 - 1])
def test_a_change_is_found_without_the_inodes_time(
    cache: Path, write: Callable[..., Path], where: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not all file systems keep it: the pieces of the content are looked at too."""
    content = bytearray(2**20)
    path = write(bytes(content))
    monkeypatch.setattr(Path, "stat", lambda self, **_: os.stat_result((*os.stat(self)[:7], 0, 0, 0)))
    weights_sha256(path)
    content[where] = 1
    path.write_bytes(content)
    assert weights_sha256(path) == sha256(content)


@pytest.mark.parametrize("entry", [b"", b"{", b"[]", b"[" * 100_000, b'{"sha256": "beef"}', b"\xff"])
def test_a_damaged_cache_is_hashed_again(cache: Path, write: Callable[..., Path], entry: bytes) -> None:
    path = write(b"weights")
    weights_sha256(path)
    (kept,) = cache.iterdir()
    kept.write_bytes(entry)
    assert weights_sha256(path) == sha256(b"weights")
    assert json.loads(kept.read_text())["sha256"] == sha256(b"weights")


def test_a_cache_that_cannot_be_written_is_no_error(cache: Path, write: Callable[..., Path]) -> None:
    cache.parent.parent.mkdir()
    cache.parent.write_text("a file where the folder should be")
    assert weights_sha256(write(b"weights")) == sha256(b"weights")


def test_many_threads_hash_one_file(cache: Path, write: Callable[..., Path]) -> None:
    path = write(os.urandom(2**20))
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(weights_sha256(path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [sha256(path.read_bytes())] * 8
    assert len(list(cache.iterdir())) == 1
