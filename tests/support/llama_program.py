"""llama.cpp's own server as a process: the program that ``LLAMA_SERVER`` names (see ``benchmarks/llama_server.sh``)."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from served_child import free_port

from guard.engines import embedded_model


def program() -> str:
    """Return the program; skips the test where there is none."""
    found = os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")
    if found is None or not Path(found).exists():
        pytest.skip("no llama-server: LLAMA_SERVER names no binary")
    return found


@contextmanager
def llama_server(*options: str, model: Path | None = None, port: int | None = None) -> Iterator[str]:
    """Run a server with the embedded model or another one; gives its address, without ``/v1``."""
    place = port or free_port()
    command = [program(), "-m", str(model or embedded_model()), "--port", str(place), "--jinja", "--offline"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(f"http://127.0.0.1:{place}/health", process)
        yield f"http://127.0.0.1:{place}"
    finally:
        process.kill()
        process.wait(20)


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None, "llama-server ended"
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("llama-server does not begin to answer")
