"""What guard makes of vLLM's server, over an application in its place: which routes answer, and what is refused.

The real ``vllm serve`` is in `tests/engines/vllm/test_vllm_serve.py`, where vLLM is installed.
"""

from __future__ import annotations

import asyncio
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from prometheus_client import REGISTRY
from scripted import scripted_model, tiny_artefact
from served import POLICY, said, serving
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

pytest.importorskip("torch")  # which vLLM brings

from tiny_models import byte_tokenizer

from guard.engines.vllm import engine as vllm_engine
from guard.engines.vllm.settings import EngineSettings
from guard.engines.vllm.versions import installed_version
from guard.errors import InputError, MissingExtraError
from guard.records import Prompt
from guard.scoring.scorer import Scorer, shipped_scorer
from guard.serve import Server, vllm_routes
from guard.serve.vllm_config import config_for, read_config
from guard.serve.vllm_plugin import prepare
from guard.serve.vllm_routes import GuardedRoutes

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Which?"}]}
ARGS = Namespace(host="127.0.0.1", port=8000, served_model_name=None)


def write_config(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, model: str = "", rest: str = "", scorer: Path | None = None
) -> Path:
    """A server's file with one model, and its name in the environment."""
    file = folder / "guard.yaml"
    file.write_text(f"version: 1\nmodels:\n  tiny: {{scorer: {scorer or shipped_scorer()}{model}}}\n{rest}\n", "utf-8")
    monkeypatch.setenv("GUARD_CONFIG", str(file))
    return file


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """An application with routes that answer past guard, as vLLM's has."""
    write_config(tmp_path, monkeypatch)
    app = FastAPI()
    for path in ("/v1/chat/completions", "/v1/models", "/invocations", "/inference/v1/generate", "/added/later"):
        app.add_api_route(path, lambda: "unguarded", methods=["POST", "GET"])
    app.add_api_route("/health", lambda: "healthy")

    @app.websocket("/v1/realtime")
    async def speak(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("unguarded")

    app.mount("/files", FastAPI())
    return app


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(said("Paris"), policies={"test": POLICY}) as served:
        yield served.server
        REGISTRY.unregister(served.server.metrics.registry)


def test_no_route_of_vllms_answers_once_the_plugin_is_attached(app: FastAPI) -> None:
    GuardedRoutes(app)
    with TestClient(app) as client:
        for path in ("/v1/chat/completions", "/invocations", "/inference/v1/generate", "/added/later"):
            answer = client.post(path, json=CHAT)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unguarded_url"), path
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/v1/realtime"):
            pass
        assert client.get("/files").status_code == 404
        assert client.get("/health").text == '"healthy"'


@pytest.mark.enable_socket
def test_guards_routes_answer_in_the_place_of_vllms(app: FastAPI, server: Server) -> None:
    routes = GuardedRoutes(app)
    app.add_api_route("/invocations", lambda: "unguarded", methods=["POST"])  # as vLLM does after its plugins
    routes.add(server)
    with TestClient(app) as client:
        answer = client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == "Paris"
        assert answer.headers["x-guard-action"] == answer.json()["guard"]["action"] == "accept"
        assert client.get("/v1/models").json()["data"][0]["owned_by"] == "guard"
        assert client.post("/invocations", json=CHAT).status_code == 404
        assert client.get("/health").text == '"healthy"'
        assert client.get("/ready").json() == {"status": "ready"}
    assert REGISTRY.get_sample_value("guard_requests_running") == 0


def test_a_route_that_another_plugin_adds_keeps_the_server_from_starting(app: FastAPI) -> None:
    GuardedRoutes(app)
    app.add_api_route("/of/another/plugin", lambda: "unguarded")
    with pytest.raises(InputError, match="/of/another/plugin"), TestClient(app):
        pass


@pytest.mark.torch
def test_a_template_that_writes_the_date_writes_that_of_the_calibration(
    app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated_on = scripted_model(template_date="2026-11-25")
    Scorer(tiny_artefact(calibrated_on)).save(tmp_path / "dated.json")
    write_config(tmp_path, monkeypatch, scorer=tmp_path / "dated.json")
    stepper = SimpleNamespace(dtype="float32", close=lambda: None)
    settings = EngineSettings(tmp_path, "mlp", "float32", 1000, 4)
    adapter = SimpleNamespace(
        check_server_options=lambda _: None, settings_of=lambda _: settings, ServedStepper=lambda *_: stepper
    )
    read = SimpleNamespace(
        tokenizer=byte_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }} {{ messages[-1].content }}"),
        config=SimpleNamespace(vocab_size=259, model_type="tiny", num_hidden_layers=2, hidden_size=4),
        name="tiny",
        weights_sha256="",
        generation_config=None,
    )
    loaded: list[Any] = []

    def load_others(_: Any, *, engine: Any) -> Any:
        loaded.append(engine)
        raise InputError("enough")

    monkeypatch.setattr(vllm_routes, "load_served_adapter", lambda: adapter)
    monkeypatch.setattr(vllm_engine, "load_served_adapter", lambda: adapter)
    monkeypatch.setattr(vllm_engine.checkpoint, "read_settings", lambda _: read)
    monkeypatch.setattr(vllm_routes, "loaded_server", load_others)
    with pytest.raises(InputError, match="enough"):
        asyncio.run(GuardedRoutes(app).open(None, ARGS))
    assert loaded[0].model.template_date == "2026-11-25"
    assert loaded[0].encode(Prompt.chat("hi")) == loaded[0].encode(Prompt.raw("25 Nov 2026 hi"))


def test_without_a_configuration_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GUARD_CONFIG", raising=False)
    with pytest.raises(InputError, match="GUARD_CONFIG names no configuration"):
        GuardedRoutes(FastAPI())


@pytest.mark.parametrize(
    ("model", "rest", "names"),
    [
        (", engine_options: {slots: 4}", "", "engine_options"),
        (", model: ./other", "", "'model'"),
        (", engine: transformers", "", "transformers"),
        ("", "listen: {port: 1234}", "listen"),
        ("", "metrics: {open: true}", "metrics"),
        ("}\n  second: {policy: strict", "", "2 models"),
    ],
)
def test_what_vllms_command_line_says_is_refused_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, rest: str, names: str
) -> None:
    write_config(tmp_path, monkeypatch, model=model, rest=rest)
    with pytest.raises(InputError, match=names):
        read_config()


def test_a_file_without_a_scorer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "guard.yaml"
    file.write_text("{version: 1, models: {tiny: {policy: strict}}}", "utf-8")
    monkeypatch.setenv("GUARD_CONFIG", str(file))
    with pytest.raises(InputError, match="names no scorer"):
        read_config()


def test_the_address_is_vllms_and_so_is_the_rule_for_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_config(tmp_path, monkeypatch)
    assert config_for(ARGS).listen.port == 8000
    everywhere: dict[str, Any] = {**vars(ARGS), "host": None}
    assert config_for(Namespace(**everywhere)).listen.host == "0.0.0.0"
    with pytest.raises(InputError, match="served-model-name"):
        config_for(Namespace(**{**vars(ARGS), "served_model_name": ["other"]}))


def test_the_plugin_does_nothing_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for plugins in ("", "another", "guards"):
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
        prepare()  # would need vLLM


def test_a_plugin_that_is_named_needs_a_vllm_that_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        installed_version()
    except MissingExtraError:
        monkeypatch.setenv("VLLM_PLUGINS", "another,guard")
        with pytest.raises(MissingExtraError):
            prepare()
    else:
        pytest.skip("vLLM is installed")
