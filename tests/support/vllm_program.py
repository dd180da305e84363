"""``vllm serve`` as a process, also of a build for CPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from served_child import free_port

COMMAND = Path(__file__).parents[1] / "engines" / "vllm" / "vllm_command.py"


@contextmanager
def vllm_serve(
    model: Path, log: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Start the command; gives its process and its address, where it does not answer yet.

    Args:
        model: a model folder.
        log: a file for its output.
        options, environment: beside those that a small model on a CPU needs.
    """
    port = free_port()
    own = ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--max-model-len", "1024"]
    command = [sys.executable, str(COMMAND), "serve", str(model), *own, "--enforce-eager", *options]
    settings = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **environment}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=settings, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(120)
