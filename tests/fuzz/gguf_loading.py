"""Fuzz the loading of GGUF files: change tiny files, load each in a child process, report those that end it.

    python tests/fuzz/gguf_loading.py --files 5000 --seed 1 --out found/
    python tests/fuzz/gguf_loading.py --files 5000 --seed 1 --out found/ --without-trial

A file may be refused or may load; it must not end the process, hang, or raise anything but a GuardError.
Loading has a trial in a child process, as users have it. Without the trial, the reader alone is tested, and what
ends the process there are files for which the trial is needed.
What does is kept in the folder, and listed by the last line that llama.cpp wrote.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from tiny_gguf import write_tiny_gguf

#: Seconds for a child's whole batch, and bytes of memory that it may ask for.
SECONDS, MEMORY = 1200, 8 * 2**30
BATCH = 40

LOADER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from guard.engines.gguf import read_gguf
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import GuardError
from guard.records import Limits, Prompt
for path in sys.argv[3:]:
    print("begin", path, flush=True)
    try:
        read_gguf(path)
    except GuardError:
        print("refused", path, flush=True)
        continue
    try:
        options = {"threads": 1, "gpu_layers": 0, "context_tokens": 64, "trial_load": sys.argv[2] == "trial"}
        with LlamaCppEngine.load(path, **options) as engine:
            engine.generate(Prompt.raw("hi the"), limits=Limits(max_tokens=3))
            print("works", path, flush=True)
    except GuardError as error:
        stopped = "ends the process" in str(error) or "took more than" in str(error)
        print("stopped" if stopped else "error", type(error).__name__, flush=True)
"""

Value = tuple[int, Any]
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_INTERESTING = (0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 33, 64, 127, 255, 256, 512, 4096, 65535, 2**20, 2**31 - 1, 2**32 - 1)
_TOKENIZERS = ("llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "none", "no_vocab", "gemma4", "mistral", "", "x")
_PRE = ("default", "llama-bpe", "qwen2", "gpt-2", "deepseek-llm", "tekken", "chameleon", "gpt-4o", "x", "")
_ARCHITECTURES = (
    "llama",
    "qwen2",
    "qwen2moe",
    "gemma2",
    "phi3",
    "gpt2",
    "gptneox",
    "mamba",
    "rwkv6",
    "bert",
    "t5",
    "x",
)
#: Hyperparameters that the base file may lack and llama.cpp reads.
_EXTRA_NAMES = """
    attention.key_length attention.value_length attention.sliding_window rope.scaling.factor rope.freq_base
    expert_count expert_used_count rope.scaling.type attention.scale logit_scale pooling_type attention.causal
    expert_group_count attention.layer_norm_epsilon attention.max_alibi_bias attention.clamp_kqv residual_scale
    embedding_scale vocab_size nextn_predict_layers leading_dense_block_count rope.dimension_sections
    expert_feed_forward_length rope.scaling.original_context_length attention.sliding_window_pattern
    interleave_moe_layer_step
"""
_TOKEN_NAMES = "bos eos eot eom unknown seperator padding cls mask fim_pre fim_suf fim_mid fim_pad fim_rep fim_sep"
_EXTRA, _TOKEN_IDS = _EXTRA_NAMES.split(), _TOKEN_NAMES.split()


class Header:
    """A GGUF file in parts: metadata with types, tensors, data."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 8
        tensors, pairs = self._number("Q"), self._number("Q")
        self.pairs: dict[str, Value] = {}
        for _ in range(pairs):
            key = self._text()
            kind = self._number("I")
            self.pairs[key] = (kind, self._value(kind))
        self.tensors = [self._tensor() for _ in range(tensors)]
        self.body = data[-(-self._at // 32) * 32 :]

    def _number(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self._at)
        self._at += struct.calcsize(f"<{code}")
        return value

    def _text(self) -> str:
        length = self._number("Q")
        self._at += length
        return self._data[self._at - length : self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind == _ARRAY:
            item, count = self._number("I"), self._number("Q")
            return item, [self._value(item) for _ in range(count)]
        return self._number(_NUMBERS[kind])

    def _tensor(self) -> list[Any]:
        name = self._text()
        shape = [self._number("Q") for _ in range(self._number("I"))]
        return [name, shape, self._number("I"), self._number("Q")]

    def write(self) -> bytes:
        """The file."""
        out = b"GGUF" + struct.pack("<IQQ", 3, len(self.tensors), len(self.pairs))
        for key, (kind, value) in self.pairs.items():
            out += _text(key) + struct.pack("<I", kind) + _packed(kind, value)
        for name, shape, kind, offset in self.tensors:
            out += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
        return out + bytes(-len(out) % 32) + self.body


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _packed(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return _text(value)
    if kind == _ARRAY:
        item, values = value
        return struct.pack("<IQ", item, len(values)) + b"".join(_packed(item, each) for each in values)
    return struct.pack(f"<{_NUMBERS[kind]}", value)


# -- changes ---------------------------------------------------------------------------------------


def _key(header: Header, rng: random.Random) -> str:
    return rng.choice(list(header.pairs))


def _architecture(header: Header) -> str:
    kind, value = header.pairs.get("general.architecture", (_STRING, "llama"))
    return value if kind == _STRING else "llama"


def _some(rng: random.Random) -> Value:
    """A value of any type."""
    kind = rng.choice((4, 4, 4, 4, 5, 6, 6, 7, 8, 9, 9, 10, 12, 2, 0))
    if kind == _STRING:
        return kind, rng.choice(("", "x", "llama", "yarn", "a" * 300, "\0", "é"))
    if kind == _ARRAY:
        item = rng.choice((0, 4, 5, 5, 6, 7, 8))
        return kind, (item, [_scalar(item, rng) for _ in range(rng.choice((0, 1, 2, 3, 4, 261, 600)))])
    return kind, _scalar(kind, rng)


def _scalar(kind: int, rng: random.Random) -> Any:
    if kind == _STRING:
        return rng.choice(("", "a", "Ġ t", "h e", "x y z", "é"))
    if kind == 7:
        return rng.random() < 0.5
    if kind in (6, 12):
        return rng.choice((0.0, 1.0, -1.0, 1e-5, 1e30, float("inf"), float("nan")))
    size = 8 * struct.calcsize(f"<{_NUMBERS[kind]}")
    low, high = (-(2 ** (size - 1)), 2 ** (size - 1) - 1) if kind in (1, 3, 5, 11) else (0, 2**size - 1)
    return min(max(rng.choice((*_INTERESTING, -1, high, low)), low), high)


def _change_number(header: Header, rng: random.Random) -> None:
    key = rng.choice([key for key, (kind, _) in header.pairs.items() if kind in _NUMBERS])
    kind = header.pairs[key][0]
    header.pairs[key] = (kind, _scalar(kind, rng))


def _change_value(header: Header, rng: random.Random) -> None:
    header.pairs[_key(header, rng)] = _some(rng)


def _drop(header: Header, rng: random.Random) -> None:
    if len(header.pairs) > 1:
        del header.pairs[_key(header, rng)]


def _add_hyperparameter(header: Header, rng: random.Random) -> None:
    kind = rng.choice((4, 4, 6, 6, 7))
    value = (kind, _scalar(kind, rng)) if rng.random() < 0.8 else _some(rng)
    header.pairs[f"{_architecture(header)}.{rng.choice(_EXTRA)}"] = value


def _add_token_id(header: Header, rng: random.Random) -> None:
    header.pairs[f"tokenizer.ggml.{rng.choice(_TOKEN_IDS)}_token_id"] = (4, _scalar(4, rng))


def _add_switch(header: Header, rng: random.Random) -> None:
    names = ("add_bos_token", "add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")
    header.pairs[f"tokenizer.ggml.{rng.choice(names)}"] = (7, rng.random() < 0.7)


def _other_tokenizer(header: Header, rng: random.Random) -> None:
    header.pairs["tokenizer.ggml.model"] = (_STRING, rng.choice(_TOKENIZERS))
    if rng.random() < 0.5:
        count = len(header.pairs.get("tokenizer.ggml.tokens", (9, (8, [])))[1][1])
        header.pairs["tokenizer.ggml.scores"] = (_ARRAY, (6, [rng.choice((0.0, -1.0, 5.0))] * count))


def _other_pre(header: Header, rng: random.Random) -> None:
    header.pairs["tokenizer.ggml.pre"] = (_STRING, rng.choice(_PRE))


def _other_architecture(header: Header, rng: random.Random) -> None:
    old, new = _architecture(header), rng.choice(_ARCHITECTURES)
    header.pairs = {key.replace(f"{old}.", f"{new}.", 1): value for key, value in header.pairs.items()}
    header.pairs["general.architecture"] = (_STRING, new)


def _change_array(header: Header, rng: random.Random) -> None:
    arrays = [key for key, (kind, _) in header.pairs.items() if kind == _ARRAY]
    if not arrays:
        return
    key = rng.choice(arrays)
    item, values = header.pairs[key][1]
    values = list(values)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(values) + 1)
        if values and rng.random() < 0.5:
            values[at % len(values)] = _scalar(item, rng)
        elif rng.random() < 0.5:
            values.insert(at, _scalar(item, rng))
        else:
            values = values[:at]
    header.pairs[key] = (_ARRAY, (item, values))


def _change_tensor(header: Header, rng: random.Random) -> None:
    tensor = rng.choice(header.tensors)
    what = rng.randrange(5)
    if what == 0:
        tensor[1] = [rng.choice((*tensor[1], *_INTERESTING[:14])) for _ in range(rng.choice((1, 2, 2, 3, 4, 0)))]
    elif what == 1:
        tensor[2] = rng.choice((0, 1, 2, 3, 8, 12, 14, 24, 26, 27, 28, 30, 34, 39))
    elif what == 2:
        tensor[0] = rng.choice(header.tensors)[0].replace("0", "1") + rng.choice(("", "x"))
    elif what == 3:
        tensor[3] = rng.choice((0, 32, 33, 2**31, 2**63, 4096))
    else:
        header.tensors.remove(tensor)


CHANGES: Sequence[Callable[[Header, random.Random], None]] = (
    _change_number, _change_number, _change_number, _change_value, _drop, _add_hyperparameter, _add_hyperparameter,
    _add_token_id, _add_switch, _other_tokenizer, _other_pre, _other_architecture, _change_array, _change_tensor,
)  # fmt: skip


def changed_files(bases: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    """Files with one to four changes each, mostly of meaning, some of single bytes."""
    while True:
        header = Header(rng.choice(bases))
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            try:
                rng.choice(CHANGES)(header, rng)
            except (IndexError, ValueError, AttributeError, TypeError):  # a change that this file has no room for
                continue
        data = bytearray(header.write())
        for _ in range(rng.choice((0, 0, 0, 0, 1, 2))):
            data[rng.randrange(24, len(data) - len(header.body))] = rng.randrange(256)
        yield bytes(data)


# -- loading ---------------------------------------------------------------------------------------


def load_all(paths: Sequence[Path], *, trial: bool) -> tuple[Counter[str], list[tuple[Path, str]]]:
    """How the files ended, and those that ended the process, each with its last words."""
    ends: Counter[str] = Counter()
    fatal: list[tuple[Path, str]] = []
    while paths:
        said, error = _load(paths, trial)
        begun = said.count("begin ")
        ends.update(line.split()[0] for line in said.splitlines() if not line.startswith("begin"))
        if error is None:
            break
        fatal.append((paths[begun - 1], error))
        paths = paths[begun:]
    return ends, fatal


def _load(paths: Sequence[Path], trial: bool) -> tuple[str, str | None]:
    command = [sys.executable, "-c", LOADER, str(MEMORY), "trial" if trial else "direct", *map(str, paths)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            code = subprocess.run(command, stdout=out, stderr=log, timeout=SECONDS, env=environment).returncode
        except subprocess.TimeoutExpired:
            code = -1
        out.seek(0)
        log.seek(0)
        lines = [line for line in log.read().splitlines() if line.strip()]
        last = next(
            (line for line in reversed(lines) if "ASSERT" in line or "rror" in line), lines[-1] if lines else ""
        )
        return out.read(), None if code == 0 else f"code {code}: {last[-200:]}"


def main() -> None:
    """Run for a number of files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", type=Path, action="append", default=[], help="further GGUF files to change")
    parser.add_argument("--without-trial", action="store_true", help="load in the first process at once")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(options.seed)
    ends: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        bases = [
            write_tiny_gguf(Path(folder) / "base.gguf").read_bytes(),
            *(base.read_bytes() for base in options.base),
        ]
        files = changed_files(bases, rng)
        for start in range(0, options.files, BATCH):
            paths = [Path(folder) / f"{options.seed}-{number}.gguf" for number in range(start, start + BATCH)]
            for path in paths:
                path.write_bytes(next(files))
            batch, fatal = load_all(paths, trial=not options.without_trial)
            ends.update(batch)
            for path, reason in fatal:
                reasons[reason] += 1
                (options.out / path.name).write_bytes(path.read_bytes())
            for path in paths:
                path.unlink()
            print(json.dumps({"files": start + BATCH, **ends, "fatal": sum(reasons.values())}), flush=True)
    for reason, count in reasons.most_common():
        print(count, reason)
    sys.exit(bool(reasons))


if __name__ == "__main__":
    main()
