"""Several served models behind one name: sticky, watched, handed over; never an answer without its scorer's score."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import endpoint
import httpx
import pytest
from endpoint import Listener, scorer_for
from llama_program import program
from served import running

from guard.engines import load_engine
from guard.engines.remote.client import UnavailableError
from guard.engines.remote.standby import StandbyEngine
from guard.errors import EngineError, InputError, ScorerMismatchError
from guard.serve import create_application
from guard.serve.backends import Backend, BackendPool
from guard.serve.config import InvalidConfigError, ServeConfig, load_config, parse_config
from guard.serve.loading import loaded_server
from guard.serve.server import Server

POLICY = """
version: 1
name: test
score: log-probabilities
rules:
  - accept: {below: 0.5}
  - abstain: {text: I cannot say.}
on_error: {abstain: {text: It could not be checked.}}
"""


def scorer_of(url: str, file: Path, **changes: Any) -> Path:
    """A scorer that reads log-probabilities, bound to what is served there."""
    with load_engine(url) as engine:
        scorer_for(engine, **changes).save(file)
    return file


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., ServeConfig]:
    """Writes a server's file for some back ends, each with its scorer."""
    (tmp_path / "policy.yaml").write_text(POLICY)

    def make(*servers: str, scorers: tuple[Path | None, ...] = (), **model: Any) -> ServeConfig:
        backends = [
            {"model": url, **({"scorer": str(scorer)} if scorer else {})}
            for url, scorer in zip(servers, scorers or (None,) * len(servers), strict=True)
        ]
        section = {"policy": "./policy.yaml", "backends": backends, **model}
        return parse_config_in(tmp_path, {"version": 1, "models": {"tiny": section}})

    return make


def parse_config_in(folder: Path, content: dict[str, Any]) -> ServeConfig:
    file = folder / "server.yaml"
    file.write_text(json.dumps(content))  # JSON is YAML
    return load_config(file)


@contextlib.contextmanager
def serving(config: ServeConfig) -> Iterator[tuple[httpx.Client, Server]]:
    with (
        loaded_server(config) as server,
        running(create_application(server)) as url,
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        yield client, server


def ask(client: httpx.Client, *texts: str, **options: Any) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    found: dict[str, Any] = client.post(
        "/v1/chat/completions", json={"model": "tiny", "messages": turns, **options}
    ).json()
    return found


def pool_of(server: Server) -> BackendPool:
    (model,) = server.models
    assert model.backends is not None
    return model.backends


@pytest.fixture
def two() -> Iterator[tuple[Listener, Listener]]:
    with (
        endpoint.serving(answers=lambda body, number: ("Paris", 0.1), fingerprint="fp_1") as first,
        endpoint.serving(answers=lambda body, number: ("Rome", 0.2), fingerprint="fp_2", owner="llamacpp") as second,
    ):
        yield first, second


@pytest.fixture
def config(two: tuple[Listener, Listener], made: Callable[..., ServeConfig], tmp_path: Path) -> ServeConfig:
    scorers = tuple(scorer_of(each.url, tmp_path / f"{at}.json") for at, each in enumerate(two))
    for each in two:
        each.asked.clear()
    return made(*(each.url for each in two), scorers=scorers)


def test_each_back_ends_answers_are_scored_by_its_own_scorer(
    two: tuple[Listener, Listener], config: ServeConfig
) -> None:
    with serving(config) as (client, server):
        found = [ask(client, f"Question {number}?") for number in range(20)]
        guards = [each.guards["test"] for each in pool_of(server).backends]
    assert guards[0].scorer.sha256 != guards[1].scorer.sha256
    given = {(each["choices"][0]["message"]["content"], round(each["guard"]["p_wrong"], 2)) for each in found}
    assert given == {("Paris", 0.1), ("Rome", 0.2)}, "both are asked"
    assert all(each["guard"]["calibrated"] for each in found)


def test_a_conversation_and_a_cache_key_stay_where_they_began(
    two: tuple[Listener, Listener], config: ServeConfig
) -> None:
    with serving(config) as (client, _):
        for number in range(6):
            first = ask(client, f"Question {number}?")["choices"][0]["message"]["content"]
            for more in ("And?", "So?"):
                turned = ask(client, f"Question {number}?", first, more)
                assert turned["choices"][0]["message"]["content"] == first
        named = {ask(client, f"{n}?", prompt_cache_key="mine")["choices"][0]["message"]["content"] for n in range(6)}
        assert len(named) == 1
        others = {
            ask(client, f"{n}?", prompt_cache_key=f"key {n}")["choices"][0]["message"]["content"] for n in range(12)
        }
        assert len(others) == 2


@pytest.mark.parametrize(
    "fault",
    [
        lambda reply: reply.reset(),
        lambda reply: reply.head("503 Service Unavailable"),
        lambda reply: reply.head("429 Too Many Requests"),
        lambda reply: half_an_answer(reply),
    ],
)
def test_what_a_back_end_cannot_answer_is_answered_whole_by_the_other(
    two: tuple[Listener, Listener], config: ServeConfig, fault: Any
) -> None:
    with serving(config) as (client, _):
        home = ask(client, "Which?")["choices"][0]["message"]["content"]
        at = 0 if home == "Paris" else 1
        two[at].faults.append(fault)
        handed = ask(client, "Which?")
        assert handed["choices"][0]["message"]["content"] == {"Paris": "Rome", "Rome": "Paris"}[home]
        assert handed["guard"]["p_wrong"] == pytest.approx(0.2 if home == "Paris" else 0.1)


async def half_an_answer(reply: Any) -> None:
    text, p_wrong = "Half of this", 0.1
    await reply.head()
    for event in [*endpoint.events_of(reply.endpoint, reply.body, text, p_wrong)][:2]:
        await reply.event(event)
    reply.reset()


def test_where_no_back_end_can_answer_the_policy_decides_and_nothing_is_accepted(
    two: tuple[Listener, Listener], config: ServeConfig
) -> None:
    with serving(config) as (client, server):
        for each in two:
            each.faults += [lambda reply: reply.reset()] * 3
        said = ask(client, "Which?")
        assert (said["guard"]["action"], said["guard"]["p_wrong"]) == ("abstain", None)
        assert said["choices"][0]["message"]["content"] == "It could not be checked."
        assert client.get("/ready").status_code in (200, 503)
        for each in pool_of(server).backends:
            each.up = False
        assert client.get("/ready").json() == {"status": "no back end"}
        for each in pool_of(server).backends:
            each.check()
        assert client.get("/ready").json() == {"status": "ready"}


def test_an_answer_of_another_model_than_the_scorers_is_not_accepted_and_not_handed_over(
    two: tuple[Listener, Listener], config: ServeConfig
) -> None:
    """It is an answer, and nobody can score it."""
    with serving(config) as (client, _):
        for each in two:
            each.fingerprint = "fp_new"
        said = ask(client, "Which?")
    assert said["guard"]["action"] == "abstain"
    assert sum(len(each.asked) for each in two) == 2 + 1, "each was asked one token when it was loaded"


def test_a_back_end_that_is_gone_is_noticed_and_asked_last_and_asked_again_when_it_is_back(
    two: tuple[Listener, Listener], config: ServeConfig
) -> None:
    with serving(config) as (client, server):
        first, second = pool_of(server).backends
        two[0].models = ["another"]  # the server is there, and its model is not
        first.check()
        assert (first.up, second.up) == (False, True)
        assert {ask(client, f"{n}?")["choices"][0]["message"]["content"] for n in range(12)} == {"Rome"}
        two[0].models = ["tiny"]
        first.check()
        assert {ask(client, f"{n}?")["choices"][0]["message"]["content"] for n in range(12)} == {"Rome", "Paris"}


def test_a_back_end_that_comes_late_is_connected_when_it_is_there(
    two: tuple[Listener, Listener], config: ServeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, late = StandbyEngine.load, [True]

    def loaded(model: str, **options: Any) -> Any:
        if late and str(two[0].port) in model:
            raise UnavailableError("The connection to the server failed")
        return load(model, **options)

    monkeypatch.setattr(StandbyEngine, "load", loaded)
    with serving(config) as (client, server):
        first, second = pool_of(server).backends
        assert (first.up, second.up) == (False, True)
        assert {ask(client, f"{n}?")["choices"][0]["message"]["content"] for n in range(12)} == {"Rome"}
        first.check()
        assert first.engine is None, "still not there"
        late.clear()
        first.check()
        assert {ask(client, f"{n}?")["choices"][0]["message"]["content"] for n in range(12)} == {"Rome", "Paris"}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_full_back_end_leaves_requests_to_the_other() -> None:
    class Full:
        at_once = 1

    pool = BackendPool([])
    backends = [Backend(name, lambda: (None, {})) for name in ("a", "b")]  # type: ignore[arg-type, return-value]
    for each in backends:
        each.engine, each.up = Full(), True  # type: ignore[assignment]
    pool.backends = tuple(backends)
    home = pool.order("key")[0]
    home.running = 1
    assert pool.order("key")[0] is not home
    home.running = 0
    assert pool.order("key")[0] is home


# -- what is refused ---------------------------------------------------------------------------


def test_settings_that_do_not_fit_together_are_refused(
    two: tuple[Listener, Listener], config: ServeConfig, made: Callable[..., ServeConfig], tmp_path: Path
) -> None:
    urls, own = [each.url for each in two], tmp_path / "0.json"
    other = scorer_of(two[1].url, tmp_path / "system.json", system="Answer in verse.")
    for wrong, kind, words in (
        (made(*urls), InputError, "has no scorer"),
        (made(*urls, scorer=str(own)), ScorerMismatchError, "fitted on another model"),
        (made(*urls, scorers=(own, other)), InputError, "ask in different ways"),
        (made(urls[0], urls[0], scorer=str(own)), InputError, "same back end twice"),
        (made(*urls, scorer=str(own), model="smollm2"), InputError, "another 'model' or 'engine'"),
        (made(*urls, scorer=str(own), engine="llama.cpp"), InputError, "another 'model' or 'engine'"),
        (made(f"http://127.0.0.1:{free_port()}/v1#tiny", scorer=str(own)), EngineError, "No back end of 'tiny'"),
    ):
        with pytest.raises(kind, match=words), loaded_server(wrong):
            pass
    with pytest.raises(InvalidConfigError, match=r"unknown key 'scorers'.*Did you mean 'scorer'"):
        parse_config("{version: 1, models: {a: {backends: [{model: 'http://h/v1#a', scorers: b}]}}}")


# -- real servers ------------------------------------------------------------------------------


@pytest.mark.model
def test_one_of_two_llama_servers_is_killed_under_load_and_every_answer_has_a_score(tmp_path: Path) -> None:
    ports = free_port(), free_port()
    urls, started = [f"http://127.0.0.1:{port}/v1#tiny" for port in ports], [llama_server(port) for port in ports]
    try:
        for port in ports:
            wait_for(f"http://127.0.0.1:{port}/health")
        scorer = scorer_of(urls[0], tmp_path / "scorer.json")
        (tmp_path / "policy.yaml").write_text(POLICY)
        section = {"policy": "./policy.yaml", "scorer": str(scorer), "backends": [{"model": url} for url in urls]}
        config = parse_config_in(tmp_path, {"version": 1, "models": {"tiny": section}})
        with serving(config) as (client, server), ThreadPoolExecutor(4) as pool:
            first, second = pool_of(server).backends
            asked = [pool.submit(ask, client, f"What is {number} + 1?", max_tokens=4) for number in range(32)]
            while sum(each.done() for each in asked) < 8:
                time.sleep(0.02)
            started[0].send_signal(signal.SIGKILL)
            answers = [each.result(120) for each in asked]
            assert (first.up, second.up) == (False, True)
            started[0].wait(20)
            started[0] = llama_server(ports[0])
            wait_for(f"http://127.0.0.1:{ports[0]}/health")
            first.check()
            assert first.up, "it is asked again when it is back"
            answers += [ask(client, f"What is {number} + 1?", max_tokens=4) for number in range(8)]
    finally:
        for process in started:
            process.kill()
            process.wait(20)
    assert all(each["guard"]["p_wrong"] is not None for each in answers)
    assert all(each["guard"]["calibrated"] for each in answers)
    assert {each["guard"]["action"] for each in answers} <= {"accept", "abstain"}


def llama_server(port: int) -> subprocess.Popen[bytes]:
    from guard.engines import embedded_model

    command = [program(), "-m", str(embedded_model()), "-t", "1", "-c", "2048", "--jinja", "--alias", "tiny"]
    return subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_for(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError("llama-server does not begin to answer")
