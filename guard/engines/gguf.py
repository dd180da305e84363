"""A strict reader of GGUF headers, for checks before an engine loads a model.

llama.cpp ends the whole process on some malformed headers (an assertion on a value's type, a read
past a short array), so every header is checked here first. Nothing in the file is trusted: each
count and length is held against what the file has room for before anything is allocated. Written here, because the
check must work without the gguf package, which is an extra.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Little endian, versions 2
and 3; arrays within arrays are refused, since no engine reads them.
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from guard.engines.ggml_types import FILE_TYPES, TENSOR_TYPES
from guard.engines.gguf_limits import broken_limits
from guard.engines.weights import unreadable, weight_file, weights_sha256
from guard.errors import ModelFileError

#: Longest header in bytes; a longer one counts as damage. The largest vocabularies in use need about 20 MB.
HEADER_LIMIT = 128 * 2**20
_WINDOW = 2**20
_DEFAULT_ALIGNMENT = 32
_MAX_DIMS = 4
_MAX_NAME_BYTES = 63
_MAX_KEY_BYTES = 65535
_INT64_MAX = 2**63 - 1
_SMALLEST_PAIR = 8 + 4 + 1
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8

_BOOL, _STRING, _ARRAY = 7, 8, 9
#: GGUF value type -> little-endian NumPy type.
_SCALARS: Mapping[int, np.dtype[Any]] = {
    kind: np.dtype(code)
    for kind, code in {
        0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4",
        6: "<f4", _BOOL: "<u1", 10: "<u8", 11: "<i8", 12: "<f8",
    }.items()
}  # fmt: skip

#: First bytes of other files that are mistaken for a GGUF, with their kinds.
_LOOKALIKES: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer; the weights were not fetched (git lfs pull)"),
    (b"PK\x03\x04", "a zip archive, as PyTorch checkpoints are"),
    (b"\x80\x02", "a Python pickle"),
    (b"\x1f\x8b", "gzip data; decompress it first"),
    (b"(\xb5/\xfd", "zstd data; decompress it first"),
    (b"tjgg", "the older GGJT format; convert the model again with a current llama.cpp"),
    (b"lmgg", "the older GGML format; convert the model again with a current llama.cpp"),
    (b"fmgg", "the older GGMF format; convert the model again with a current llama.cpp"),
    (b"FUGG", "a big-endian GGUF, which is not read; convert it to little endian"),
)


class StringArray(Sequence[str]):
    """An array of strings in the file's own bytes, decoded when an item is read.

    Bytes that are not UTF-8 are replaced on reading; `raw` has the original bytes.

    Attributes:
        raw: the items as stored, each with its 64-bit length in front.
    """

    __slots__ = ("_starts", "raw")

    def __init__(self, raw: bytes, starts: array[int]) -> None:
        self.raw = raw
        self._starts = starts  # of each item's text within raw, and one past the end

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        return self.raw[self._starts[at] : self._starts[at + 1] - 8].decode("utf-8", "replace")

    def __iter__(self) -> Iterator[str]:
        return (self[at] for at in range(len(self)))

    @property
    def repeats(self) -> bool:
        """Whether two items are equal as C strings, which end at the first NUL; empty ones aside."""
        ends = self._starts[1:]
        items = [self.raw[start : end - 8].split(b"\0", 1)[0] for start, end in zip(self._starts, ends, strict=False)]
        return len(set(items) - {b""}) < sum(map(bool, items))

    def __repr__(self) -> str:
        return f"<StringArray of {len(self)}>"


#: A metadata value: numeric arrays are NumPy arrays, string arrays are decoded when read.
GgufValue = bool | int | float | str | StringArray | NDArray[Any]


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """The position and type of a tensor in the file.

    Attributes:
        name: such as ``blk.0.ffn_down.weight``.
        shape: in ggml's order, the fastest varying dimension first.
        type: ggml's name of the number format, such as ``Q4_1``.
        offset: first byte within the file.
        size: in bytes.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class GgufHeader:
    """The checked header of a GGUF file.

    Attributes:
        path: of the file.
        version: of the format, 2 or 3.
        metadata: key to value, in the file's order.
        tensors: in the file's order.
        file_size: in bytes.
    """

    path: Path
    version: int
    metadata: Mapping[str, GgufValue]
    tensors: tuple[GgufTensor, ...]
    file_size: int

    @property
    def architecture(self) -> str:
        """The model family, such as ``llama``."""
        return str(self.metadata["general.architecture"])

    @property
    def quantization(self) -> str:
        """Quantization such as ``Q4_K_M``; if the file does not name it, the type of most weights."""
        kind = self.metadata.get("general.file_type")
        if isinstance(kind, int) and kind in FILE_TYPES:
            return FILE_TYPES[kind]
        elements: Counter[str] = Counter()
        for tensor in self.tensors:
            elements[tensor.type] += tensor.elements
        return elements.most_common(1)[0][0] if elements else "none"

    @property
    def chat_template(self) -> str | None:
        """The model's own (default) chat template."""
        template = self.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) and template else None

    @property
    def block_count(self) -> int:
        """Number of transformer blocks; raises ModelFileError if missing, as do the next two."""
        return self._hyperparameter("block_count")

    @property
    def context_length(self) -> int:
        """Tokens of context that the model was trained with."""
        return self._hyperparameter("context_length")

    @property
    def embedding_length(self) -> int:
        """Width of the residual stream, and so of an MLP's output."""
        return self._hyperparameter("embedding_length")

    @property
    def tokenizer_sha256(self) -> str:
        """Over everything that decides tokenization: vocabulary, merges, types, special ids, names."""
        digest = hashlib.sha256()
        for key in sorted(self.metadata):
            if not key.startswith("tokenizer.ggml."):
                continue
            value = self.metadata[key]
            if isinstance(value, StringArray):
                content = value.raw
            elif isinstance(value, np.ndarray):
                content = value.tobytes()
            else:
                content = repr(value).encode()
            digest.update(f"{key}\0{len(content)}\0".encode() + content)
        return digest.hexdigest()

    def _hyperparameter(self, name: str) -> int:
        key = f"{self.architecture}.{name}"
        value = self.metadata.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            found = "it is missing" if value is None else f"got {value!r:.100}"
            raise ModelFileError(
                f"{self.path}: the header needs {key}, a number above 0",
                why=found,
                fix="Use a file that contains a language model",
            )
        return value


def read_gguf(path: str | os.PathLike[str]) -> GgufHeader:
    """Read and check the header of a GGUF file; the weights are not touched.

    Raises:
        ModelFileError: the file is missing, empty, cut off, of another format or version, or its
            header contradicts itself or the file's size.
    """
    file = weight_file(path)
    try:
        with file.open("rb") as stream:
            return _Reader(file, stream, file.stat().st_size).header()
    except OSError as error:
        raise unreadable(file, error) from error


class _Reader:
    """Walks through one header, loading the file piece by piece."""

    def __init__(self, path: Path, stream: BinaryIO, size: int) -> None:
        self._path = path
        self._stream = stream
        self._size = size
        self._loaded = bytearray()
        self._at = 0

    def header(self) -> GgufHeader:
        version = self._version()
        tensor_count = self._number("Q", "the number of tensors")
        pair_count = self._number("Q", "the number of metadata keys")
        self._check_count(pair_count, _SMALLEST_PAIR, "metadata keys")
        self._check_count(tensor_count, _SMALLEST_TENSOR, "tensors")
        metadata: dict[str, GgufValue] = {}
        for _ in range(pair_count):
            key, value = self._pair(metadata)
            metadata[key] = value
        self._check_known_keys(metadata)
        alignment = self._alignment(metadata)
        infos: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(tensor_count):
            name, info = self._tensor_info(infos, alignment)
            infos[name] = info
        start = -(-self._at // alignment) * alignment
        tensors = tuple(
            GgufTensor(name, shape, TENSOR_TYPES[kind][0], start + offset, _tensor_bytes(shape, kind))
            for name, (shape, kind, offset) in infos.items()
        )
        self._check_placement(tensors)
        return GgufHeader(self._path, version, MappingProxyType(metadata), tensors, self._size)

    # -- primitives ----------------------------------------------------------------------------

    def _need(self, end: int, what: str) -> None:
        """Have the file's bytes loaded up to ``end``."""
        if end <= len(self._loaded):
            return
        if end > self._size:
            raise ModelFileError(
                f"{self._path} is cut off or damaged",
                why=f"{what} at byte {self._at} would end at byte {end}, the file has {self._size} bytes",
                fix="Download or convert the file again",
            )
        if end > HEADER_LIMIT:
            raise self._malformed(f"{what} makes the header longer than {HEADER_LIMIT} bytes")
        self._loaded += self._stream.read(max(end - len(self._loaded), _WINDOW))
        if end > len(self._loaded):
            raise ModelFileError(f"{self._path} became shorter while it was read", fix="Try again")

    def _number(self, code: str, what: str) -> int:
        unsigned = struct.Struct(f"<{code}")
        self._need(self._at + unsigned.size, what)
        value: int = unsigned.unpack_from(self._loaded, self._at)[0]
        self._at += unsigned.size
        return value

    def _text(self, what: str, *, limit: int = HEADER_LIMIT) -> str:
        start = self._at
        length = self._number("Q", f"the length of {what}")
        if length > limit:
            self._at = start
            raise self._malformed(f"{what} has a length of {length} bytes, at most {limit} are allowed")
        self._need(self._at + length, what)
        raw = self._loaded[self._at : self._at + length]
        self._at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self._at = start
            raise self._malformed(f"{what} is not UTF-8") from error

    def _malformed(self, why: str) -> ModelFileError:
        return ModelFileError(
            f"{self._path} has a malformed GGUF header",
            why=f"{why} (near byte {self._at})",
            fix="Download or convert the file again",
        )

    # -- the parts of a header -----------------------------------------------------------------

    def _version(self) -> int:
        if self._size == 0:
            raise ModelFileError(f"{self._path} is empty", fix="Download the file again")
        head = self._stream.read(min(self._size, _WINDOW))
        self._loaded += head
        if not head.startswith(b"GGUF"):
            raise ModelFileError(
                f"{self._path} is not a GGUF file", why=_looks_like(head), fix="Give the path of a .gguf file"
            )
        self._at = 4
        version = self._number("I", "the version")
        if version in (2, 3):
            return version
        big_endian = version & 0xFFFF == 0 and version != 0
        raise ModelFileError(
            f"{self._path} is a {'big-endian GGUF' if big_endian else f'GGUF of version {version}'}",
            why="only little-endian versions 2 and 3 are read",
            fix="Convert the model again with a current llama.cpp",
        )

    def _check_count(self, count: int, smallest: int, what: str) -> None:
        room = (self._size - self._at) // smallest
        if count > room:
            raise self._malformed(f"it declares {count} {what}, the rest of the file has room for {room}")

    def _pair(self, known: Mapping[str, GgufValue]) -> tuple[str, GgufValue]:
        start = self._at
        key = self._text("a metadata key", limit=_MAX_KEY_BYTES)
        if not key or key in known:
            self._at = start
            raise self._malformed(f"the metadata key {key!r:.100} occurs twice" if key else "an empty key")
        kind = self._number("I", f"the type of {key}")
        if kind == _STRING:
            return key, self._text(f"the value of {key}")
        if kind == _ARRAY:
            return key, self._array(key)
        if kind not in _SCALARS:
            raise self._malformed(f"{key} has the unknown value type {kind}")
        value: bool | int | float = self._numbers(kind, 1, key)[0].item()
        return key, value

    def _array(self, key: str) -> GgufValue:
        kind = self._number("I", f"the item type of {key}")
        count = self._number("Q", f"the length of {key}")
        if kind == _ARRAY:
            raise self._malformed(f"{key} is an array of arrays")
        if kind != _STRING and kind not in _SCALARS:
            raise self._malformed(f"{key} is an array of the unknown type {kind}")
        self._check_count(count, 8 if kind == _STRING else _SCALARS[kind].itemsize, f"items of {key}")
        return self._strings(count, key) if kind == _STRING else self._numbers(kind, count, key)

    def _numbers(self, kind: int, count: int, key: str) -> NDArray[Any]:
        number = _SCALARS[kind]
        end = self._at + count * number.itemsize
        self._need(end, f"the value of {key}")
        values = np.frombuffer(bytes(self._loaded[self._at : end]), number)
        if kind == _BOOL:
            if values.size and values.max() > 1:
                raise self._malformed(f"{key} has a truth value other than 0 and 1")
            values = values.view(np.bool_)
        self._at = end
        return values

    def _strings(self, count: int, key: str) -> StringArray:
        # Vocabularies have 10^5 strings: one loop without calls where the window is loaded.
        what, first, length_of = f"an item of {key}", self._at, struct.Struct("<Q").unpack_from
        starts = array("Q", bytes(8 * (count + 1)))
        at = first
        for index in range(count):
            if at + 8 > len(self._loaded):
                self._at = at
                self._need(at + 8, what)
            at += 8
            starts[index] = at - first
            at += length_of(self._loaded, at - 8)[0]
            if at > len(self._loaded):
                self._at = first + starts[index]
                self._need(at, what)
        starts[count] = at - first + 8  # where another item would start
        self._at = at
        return StringArray(bytes(self._loaded[first:at]), starts)

    def _check_known_keys(self, metadata: Mapping[str, GgufValue]) -> None:
        """Check types and lengths that llama.cpp takes for granted, and dies on."""
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise self._malformed("general.architecture is missing or not a text")
        tokens = metadata.get("tokenizer.ggml.tokens")
        for key in ("tokenizer.ggml.tokens", "tokenizer.ggml.merges"):
            if key in metadata and not isinstance(metadata[key], StringArray):
                raise self._malformed(f"{key} is not an array of texts")
        for key, number in (("tokenizer.ggml.scores", "<f4"), ("tokenizer.ggml.token_type", "<i4")):
            if key not in metadata:
                continue
            values = metadata[key]
            if not isinstance(values, np.ndarray) or values.dtype != np.dtype(number):
                raise self._malformed(f"{key} is not an array of {np.dtype(number).name}")
            if not isinstance(tokens, StringArray) or len(values) != len(tokens):
                raise self._malformed(f"{key} has not as many items as tokenizer.ggml.tokens")
        if isinstance(tokens, StringArray) and tokens.repeats:
            raise self._malformed("tokenizer.ggml.tokens has the same token twice")
        for broken in broken_limits(metadata, architecture):
            raise self._malformed(broken)

    def _alignment(self, metadata: Mapping[str, GgufValue]) -> int:
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if isinstance(alignment, bool) or not isinstance(alignment, int):
            raise self._malformed("general.alignment is not a whole number")
        if not 1 <= alignment <= 2**31 or alignment & (alignment - 1):
            raise self._malformed(f"general.alignment is {alignment}, not a power of two")
        return alignment

    def _tensor_info(self, known: Mapping[str, object], alignment: int) -> tuple[str, tuple[tuple[int, ...], int, int]]:
        name = self._text("a tensor's name", limit=_MAX_NAME_BYTES)
        if name in known:
            raise self._malformed(f"the tensor {name!r:.100} occurs twice")
        dims = self._number("I", f"the dimensions of {name}")
        if dims > _MAX_DIMS:
            raise self._malformed(f"the tensor {name!r} has {dims} dimensions, at most {_MAX_DIMS} are known")
        shape = tuple(self._number("Q", f"the shape of {name}") for _ in range(dims))
        if min(shape, default=1) < 1 or math.prod(shape) > _INT64_MAX:
            raise self._malformed(f"the tensor {name!r} has the impossible shape {shape}")
        kind = self._number("I", f"the type of {name}")
        if kind not in TENSOR_TYPES:
            raise self._malformed(f"the tensor {name!r} has the unknown type {kind}")
        type_name, block, _ = TENSOR_TYPES[kind]
        if (shape[0] if shape else 1) % block:
            raise self._malformed(f"the rows of {name!r} are no whole {type_name} blocks of {block}")
        offset = self._number("Q", f"the offset of {name}")
        if offset % alignment:
            raise self._malformed(f"the tensor {name!r} does not lie at a multiple of {alignment} bytes")
        return name, (shape, kind, offset)

    def _check_placement(self, tensors: Sequence[GgufTensor]) -> None:
        end = 0
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            if tensor.offset < end:
                raise self._malformed(f"the tensor {tensor.name!r} overlaps another one")
            end = tensor.offset + tensor.size
        if end > self._size:
            raise ModelFileError(
                f"{self._path} is cut off",
                why=f"its tensors need {end} bytes, the file has {self._size}",
                fix="Download the file again",
            )


def _tensor_bytes(shape: tuple[int, ...], kind: int) -> int:
    _, block, block_bytes = TENSOR_TYPES[kind]
    return math.prod(shape) // block * block_bytes


def _looks_like(head: bytes) -> str:
    for start, name in _LOOKALIKES:
        if head.startswith(start):
            return f"it looks like {name}"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**32:
        return "it looks like a safetensors file"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "it looks like a web page, such as a login or an error page"
    if not any(head):
        return "it begins with zeros only, as an unfinished download does"
    if head.lstrip()[:1] in (b"{", b"["):
        return "it looks like JSON"
    return f"it begins with {head[:4]!r}, not with b'GGUF'"


__all__ = ["GgufHeader", "GgufTensor", "GgufValue", "StringArray", "read_gguf", "weights_sha256"]
