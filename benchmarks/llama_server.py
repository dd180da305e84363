"""llama.cpp's own server, as `llama_server.sh` builds it: started, asked by several clients, stopped."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from measuring import CLOCK

#: Seconds that loading a model may take.
_START_S = 120.0


class LlamaServer:
    """A server process with a model, on this machine only. Use it as a context manager."""

    def __init__(self, program: Path, model: Path, *, slots: int, cells: int, threads: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._command = [str(program), "--model", str(model), "--host", "127.0.0.1", "--port", str(self._port)]
        self._command += ["--parallel", str(slots), "--ctx-size", str(cells), "--kv-unified", "--cont-batching"]
        self._command += ["--threads", str(threads), "--threads-batch", str(threads), "--no-webui", "--offline"]

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + _START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self._get("/health")
            except (OSError, urllib.error.URLError):
                time.sleep(0.2)
            else:
                CLOCK.servers.append(self._process.pid)
                return self
        self._process.kill()
        raise SystemExit(f"The server did not start: {' '.join(self._command)}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        CLOCK.servers.remove(self._process.pid)
        self._process.terminate()
        self._process.wait()

    def run(self, prompts: Sequence[Sequence[int]], lengths: Sequence[int], *, clients: int) -> int:
        """Let clients ask for greedy answers of these lengths; return how many tokens were generated."""

        def ask(prompt: Sequence[int], length: int) -> int:
            body = {"prompt": list(prompt), "n_predict": length, "temperature": 0.0, "ignore_eos": True}
            return int(self._post("/completion", body)["tokens_predicted"])

        with ThreadPoolExecutor(clients) as pool:
            return sum(pool.map(ask, prompts, lengths))

    def _get(self, path: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}", timeout=5):
            pass

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            report: dict[str, Any] = json.load(answer)
        return report
