"""``vllm serve`` as a process, also of a build for CPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
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


def wait_until_up(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Wait until an address of a server answers with 200.

    Raises:
        AssertionError: the server has ended, or does not start.
    """
    end = time.monotonic() + 900
    while not _is_up(url):
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, "it does not start"
        time.sleep(1)


def _is_up(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
