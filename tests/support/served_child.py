"""A server in a process of its own, which tests can kill: the scripted engine, and a real store.

Run as a program it serves until it is ended; `child` runs it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parent


@contextlib.contextmanager
def child(store: Path | str, **settings: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server; gives its process and its address.

    Args:
        store: the database.
        settings: as in `serve`.
    """
    command = [sys.executable, __file__, json.dumps({"store": str(store), **settings})]
    path = os.pathsep.join([str(SUPPORT), str(SUPPORT.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http://")
            yield process, url
        finally:
            process.kill()


def free_port() -> int:
    """Return a port of loopback that nobody listens on, for programs that cannot choose one themselves."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def echo(question: str) -> str:
    """Return the answer to ``Say NUMBER LENGTH ...``: the number, and as many letters."""
    _, number, length, *_ = question.split()
    return f"answer {number}." + "x" * int(length)


def serve(
    store: str,
    *,
    pause: float = 0.0,
    p_wrong: float = 0.4,
    answer: str = "A long answer to this",
    keys: bool = False,
    policy: str | None = None,
    slots: int = 1,
    shutdown: float = 10,
) -> None:
    """Serve until the process is ended.

    Args:
        store: the database.
        pause: seconds that each token takes.
        p_wrong: of every answer.
        answer: what the engine says; "echo" for what `echo` makes of the question.
        keys: whether requests need one of the database's keys.
        policy: in place of `served.POLICY`.
        slots: of the engine.
        shutdown: seconds that what runs has when the server is asked to end.
    """
    from scripted import AnsweringEngine, confidence_scorer, scripted_model
    from served import POLICY, said

    from guard.access import Access
    from guard.policy.policy import parse_policy
    from guard.review.store import Store
    from guard.runtime.guard import Guard
    from guard.serve import ServedModel, ServedModels, Server, ServeSettings, create_application
    from guard.serve.running import http_server, listen_on, listening_url

    script = said(answer, p_wrong) if answer != "echo" else lambda prompt, number: (echo(prompt.question), p_wrong)

    class Roomy(AnsweringEngine):
        """Never makes an answer give up its slot: a script would begin again."""

        cache_tokens = 2000 * slots

    engine = Roomy(script, model=scripted_model(context_tokens=2000))
    engine.slots = slots
    if pause:
        engine.on_feed = lambda number: time.sleep(pause)
    opened = Store.open(store)
    guard = Guard(engine, confidence_scorer(), parse_policy(policy or POLICY), store=opened)
    models = ServedModels({"tiny": ServedModel("tiny", {"test": guard}, "test", max_tokens=200)})
    access = Access.open(store) if keys else None
    settings = ServeSettings(comment_seconds=0.02, most_requests=256, shutdown_seconds=shutdown)
    server = Server.build(models, settings, store=opened, access=access)
    listening = listen_on("127.0.0.1", 0)
    print(listening_url(listening), flush=True)
    http_server(create_application(server), settings, log_level="error").run([listening])


if __name__ == "__main__":
    serve(**json.loads(sys.argv[1]))
