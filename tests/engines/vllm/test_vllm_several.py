"""Two ``vllm serve``, one of which is killed: guarded ones on one PostgreSQL; plain ones behind one ``guard serve``.

Runs where vLLM is installed (`nox -s vllm`). The first needs the programs of a PostgreSQL server, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import needs_vllm  # noqa: F401 - skips this module where vLLM is not installed

# isort: split
import httpx
import postgresql_server
import pytest
from endpoint import scorer_for
from exported_model import export_smollm2
from served import running
from vllm_program import vllm_serve, wait_until_up

from guard.access import Access, Grant, KeyLimits, Role
from guard.engines import load_engine
from guard.review.store import Store
from guard.scoring.scorer import shipped_scorer
from guard.serve import create_application
from guard.serve.config import load_config
from guard.serve.loading import loaded_server

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(3600)]

POLICY = """
version: 1
name: served
rules:
  - accept: {}
routes:
  desk: {rules: [{escalate: {to: [review], reply: A person will look.}}]}
"""

#: Of a key; the first answer takes more.
TOKENS = 10


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_smollm2(tmp_path_factory.mktemp("models") / "small")


@contextmanager
def two_servers(
    model: Path, logs: Path, path: str, *options: str, **environment: str
) -> Iterator[list[tuple[subprocess.Popen[bytes], str]]]:
    """Two servers on a core each; gives their processes and addresses once they answer at a path."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(
                vllm_serve(model, logs / f"log{at}", *options, VLLM_CPU_OMP_THREADS_BIND=str(at), **environment)
            )
            for at in range(2)
        ]
        for at, (process, url) in enumerate(started):
            wait_until_up(process, f"{url}{path}", logs / f"log{at}")
        yield started


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers without a word."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


def ask(client: httpx.Client, question: str, *, model: str = "small", **options: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 8, **options}
    return client.post("/v1/chat/completions", json=body)


def test_guarded_servers_share_keys_limits_cases_verdicts_and_the_audit_log_and_one_is_killed(
    model: Path, tmp_path: Path
) -> None:
    if not postgresql_server.is_available():
        pytest.skip("there is no PostgreSQL server")
    database = postgresql_server.emptied()
    (tmp_path / "policy.yaml").write_text(POLICY, "utf-8")
    section = {"policy": "./policy.yaml", "scorer": str(shipped_scorer()), "force_scorer": True}
    served = {"version": 1, "store": database, "keys": True, "audit_log": True, "models": {"small": section}}
    (tmp_path / "guard.yaml").write_text(json.dumps(served), "utf-8")  # JSON is YAML
    with Store.open(database) as store, Access.open(database) as access:
        _, caller = access.keys.add("caller", grants=[Grant(Role.CALLER)])
        _, limited = access.keys.add("few", grants=[Grant(Role.CALLER)], limits=KeyLimits(tokens_per_month=TOKENS))
        settings = {"VLLM_PLUGINS": "guard", "GUARD_CONFIG": str(tmp_path / "guard.yaml")}
        with two_servers(model, tmp_path, "/ready", **settings) as servers:
            decisions = check_two_guarded([url for _, url in servers], caller, limited, store)
            kill(servers[0][0])
            with client_of(servers[1][1], caller) as client:
                decisions += [ask(client, f"What is {number} + 1?").json()["guard"] for number in range(4)]
        check_log(store, [each["decision_id"] for each in decisions])


def client_of(url: str, secret: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=300, trust_env=False, headers={"authorization": f"Bearer {secret}"})


def check_two_guarded(urls: list[str], caller: str, limited: str, store: Store) -> list[dict[str, Any]]:
    """Ask both at the same time; return what guard decided."""
    with client_of(urls[0], caller) as first, client_of(urls[1], caller) as second, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, client, f"What is {n} + 1?") for n in range(8) for client in (first, second)]
        verdicts = [each.result().json()["guard"] for each in asked]
        case = ask(first, "Who wrote Hamlet?", model="small:desk").json()["guard"]
        assert store.review(case["review_id"]).question == "Who wrote Hamlet?"
        found = second.get(f"/v1/guard/decisions/{case['decision_id']}")
        assert found.json() == {"object": "guard.decision", **case}
    with client_of(urls[0], limited) as first, client_of(urls[1], limited) as second:
        verdicts.append(ask(first, "What is the capital of France?").json()["guard"])
        assert ask(second, "What is the capital of Peru?").status_code == 429
    return [*verdicts, case]


def check_log(store: Store, decisions: list[str]) -> None:
    """Every decision is in the log, once; the log has no gap."""
    log = store.audit_log()
    assert log.verify().problems == ()
    events = [json.loads(entry.event) for entry in log.entries()]
    assert sorted(event["subject"] for event in events if event["kind"] == "decision") == sorted(decisions)


def test_every_answer_of_two_plain_servers_behind_guard_serve_has_a_score_when_one_is_killed(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "policy.yaml").write_text("{version: 1, name: served, rules: [accept]}", "utf-8")
    with two_servers(model, tmp_path, "/health", "--served-model-name", "small") as servers:
        urls = [f"{url}/v1" for _, url in servers]
        with load_engine(urls[0]) as engine:
            scorer_for(engine).save(tmp_path / "scorer.json")
        section = {"policy": "./policy.yaml", "scorer": "./scorer.json", "backends": [{"model": url} for url in urls]}
        (tmp_path / "server.yaml").write_text(json.dumps({"version": 1, "models": {"small": section}}), "utf-8")
        with (
            loaded_server(load_config(tmp_path / "server.yaml")) as server,
            running(create_application(server)) as url,
            httpx.Client(base_url=url, timeout=300, trust_env=False) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            asked = [pool.submit(ask, client, f"What is {number} + 1?") for number in range(48)]
            while sum(each.done() for each in asked) < 8:
                time.sleep(0.02)
            assert sum(each.done() for each in asked) < len(asked), "nothing was left to do"
            kill(servers[0][0])
            answers = [each.result().json() for each in asked]
    assert all(0 < answer["guard"]["p_wrong"] < 1 for answer in answers)
    assert {answer["guard"]["action"] for answer in answers} <= {"accept", "abstain"}  # of those that were cut
