"""llama.cpp's complaints as errors: its log holds the only reason for a failed load."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import llama_cpp
from llama_cpp import _logger as llama_logger

from guard.engines.callback_errors import KeptError
from guard.errors import EngineError, ModelFileError, OutOfMemoryError, UnsupportedArchitectureError

#: Log levels of ggml (ggml_log_level): warning, error, and the continuation of a line.
_COMPLAINTS = (3, 4, 5)


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect llama.cpp's complaints meanwhile: its log holds the only reason for a failed load.

    Ctrl-C meanwhile is raised on leaving.
    """
    lines: list[str] = []

    def collect(level: int, text: bytes, _: object) -> None:
        if level in _COMPLAINTS:
            lines.append(text.decode(errors="replace"))

    callback = llama_cpp.llama_log_callback(collect)  # must live as long as it is set
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        with KeptError().raised_after():
            yield lines
    finally:
        if llama_logger.logger.level == 0:  # without a chosen level, its default prints everything
            llama_logger.set_verbose(False)
        llama_cpp.llama_log_set(llama_logger.llama_log_callback, ctypes.c_void_p(0))


def load_error(path: Path, log: list[str]) -> EngineError:
    reason = _last_complaint(log)
    if "unknown model architecture" in reason:
        return UnsupportedArchitectureError(
            f"llama.cpp does not know the model in '{path}'", why=reason, fix="Upgrade llama-cpp-python"
        )
    if re.search(r"alloc|out of memory", reason, re.IGNORECASE):
        return OutOfMemoryError(f"No memory for '{path}'", why=reason, fix="Use a smaller quantization")
    return ModelFileError(f"llama.cpp could not load '{path}'", why=reason, fix="Fetch or convert the file again")


def memory_or_engine_error(log: list[str], what: str) -> EngineError:
    reason = _last_complaint(log)
    if re.search(r"alloc|memory|buffer", reason, re.IGNORECASE):
        return OutOfMemoryError(what, why=reason, fix="Lower context_tokens")
    return EngineError(what, why=reason)


def _last_complaint(log: list[str]) -> str:
    complaints = [
        line.strip() for line in "".join(log).splitlines() if re.search(r"error|fail|unable|unknown", line, re.I)
    ]
    return complaints[0] if complaints else "it gave no reason"
