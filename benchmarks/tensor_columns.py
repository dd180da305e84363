"""A column of arrays in Parquet: bytes of a fixed size, as `guard record` writes them, and Arrow's fixed-shape tensors.

    python benchmarks/tensor_columns.py [--answers 1000] [--repeats 5]

Prints seconds to write and to read a column of activations, the fastest of some repeats, and the file's size.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

#: Of one answer of SmolLM2-135M: three tokens, 30 layers, 576 numbers.
SHAPE = (3, 30, 576)
OPTIONS = {"compression": "zstd", "use_dictionary": False, "write_statistics": False, "write_page_checksum": True}


def fastest(run: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest run."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return min(times)


def columns(answers: int) -> dict[str, Any]:
    """Return the same random arrays as bytes and as tensors."""
    arrays = np.random.default_rng(0).standard_normal((answers, *SHAPE)).astype(np.float16)
    size = arrays[0].nbytes
    plain = pa.Array.from_buffers(pa.binary(size), answers, [None, pa.py_buffer(arrays)])
    return {"bytes": plain, "tensors": pa.FixedShapeTensorArray.from_numpy_ndarray(arrays)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--answers", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    with TemporaryDirectory() as folder:
        path = f"{folder}/a.parquet"
        for kind, column in columns(chosen.answers).items():
            table = pa.table({"activations": column})
            written = fastest(lambda table=table: pq.write_table(table, path, **OPTIONS), chosen.repeats)
            read = fastest(lambda: pq.read_table(path, page_checksum_verification=True), chosen.repeats)
            print(f"{kind:8} write {written:.3f} s, read {read:.3f} s, {os.path.getsize(path):,} bytes")


if __name__ == "__main__":
    main()
