"""Servers on loopback, in a thread, over a scripted engine or any other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx
from scripted import AnsweringEngine, Script, confidence_scorer, scripted_model

from guard.engines.protocols import Engine
from guard.policy.policy import Policy, parse_policy
from guard.runtime.guard import Guard
from guard.scoring.scorer import Scorer
from guard.serve import ServedModel, ServedModels, Server, ServeSettings, create_application
from guard.serve.running import http_server, listen_on

#: Accepts what is likely right, refuses the rest.
POLICY = """
version: 1
name: test
rules:
  - accept: {below: 0.5}
  - abstain: {text: I cannot say.}
routes:
  strict: {rules: [{accept: {below: 0.05}}, {abstain: {text: Not on this route.}}]}
  desk: {rules: [{accept: {below: 0.05}}, {escalate: {to: [review], reply: A person will look.}}]}
  raising: {rules: [{accept: {below: 0.05}}, {abstain: {raise: true}}]}
  retried: {rules: [{accept: {below: 0.05}}, {retry: {below: 0.9, times: 1}}, {abstain: {text: Twice no.}}]}
  background: {rules: [{abstain: {text: No title.}}]}
"""


@dataclass(frozen=True)
class Served:
    """A running server."""

    url: str
    server: Server
    engine: Any

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, **options)

    def openai(self, key: str = "none", **options: Any) -> Any:
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)

    def aopenai(self, key: str = "none", **options: Any) -> Any:
        import openai

        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **options)


def said(text: str, p_wrong: float = 0.1) -> Script:
    """Always this answer."""
    return lambda prompt, number: (text, p_wrong)


@contextlib.contextmanager
def serving(
    script: Script | None = None,
    *,
    engine: Engine | None = None,
    scorer: Scorer | None = None,
    policies: Mapping[str, str | Policy] | None = None,
    settings: ServeSettings | None = None,
    background: str | None = None,
    guard_options: Mapping[str, Any] | None = None,
    context: int = 400,
    max_tokens: int | None = 200,
    **parts: Any,
) -> Iterator[Served]:
    """Serve one model, ``tiny``, over real HTTP."""
    own = (
        engine
        if engine is not None
        else AnsweringEngine(script or said("Paris"), model=scripted_model(context_tokens=context))
    )
    chosen = {
        name: parse_policy(text) if isinstance(text, str) else text
        for name, text in (policies or {"test": POLICY}).items()
    }
    store = parts.get("store")
    guards = {
        name: Guard(own, scorer or confidence_scorer(), policy, store=store, **(guard_options or {}))
        for name, policy in chosen.items()
    }
    model = ServedModel("tiny", guards, next(iter(guards)), background=background, max_tokens=max_tokens)
    server = Server.build(ServedModels({"tiny": model}), settings or ServeSettings(), **parts)
    with running(create_application(server), server.settings) as url:
        yield Served(url, server, own)


@contextlib.contextmanager
def running(application: Any, settings: ServeSettings | None = None, **options: Any) -> Iterator[str]:
    """Run an application in a thread of its own, with options of `http_server`; gives its address."""
    listening = listen_on("127.0.0.1", 0)
    limits = replace(settings or ServeSettings(), shutdown_seconds=2)
    uvicorn_server = http_server(application, limits, log_level="error", **options)
    thread = threading.Thread(target=lambda: asyncio.run(uvicorn_server.serve([listening])), daemon=True)
    thread.start()
    while not uvicorn_server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        uvicorn_server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not end"
        listening.close()
