"""The table of number formats agrees with the ``gguf`` package, which llama.cpp's authors keep."""

from __future__ import annotations

import pytest

from guard.engines.ggml_types import FILE_TYPES, TENSOR_TYPES

gguf = pytest.importorskip("gguf")


def test_every_number_format_of_the_package_has_the_same_name_and_size_here() -> None:
    theirs = {int(kind): (kind.name, *gguf.GGML_QUANT_SIZES[kind]) for kind in gguf.GGML_QUANT_SIZES}
    assert {number: each for number, each in theirs.items() if TENSOR_TYPES.get(number) != each} == {}


def test_every_file_type_of_the_package_has_the_same_name_here() -> None:
    def name(kind: object) -> str:
        return kind.name.removeprefix("ALL_").removeprefix("MOSTLY_")  # type: ignore[attr-defined,no-any-return]

    theirs = {int(kind): name(kind) for kind in gguf.LlamaFileType if kind.name != "GUESSED"}
    assert {number: each for number, each in theirs.items() if FILE_TYPES.get(number) != each} == {}
