"""The dashboard's queries run in a real Prometheus that reads a real server, whose metrics pass its linter."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import Served, said, serving
from served_child import free_port

from guard.review.store import Store

DASHBOARD = Path(__file__).parents[2] / "examples" / "deploy" / "grafana-dashboard.json"
ASK: dict[str, Any] = {"model": "tiny:desk", "messages": [{"role": "user", "content": "Which city?"}]}

#: The scripted scorer gives no such score.
WITHOUT_ROWS = {"Out-of-distribution score (median and 90 %)"}

pytestmark = pytest.mark.skipif(
    not shutil.which("prometheus") or not shutil.which("promtool"), reason="no Prometheus: it is not installed"
)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Store.open(tmp_path / "r.db") as store, serving(said("Lyon", 0.4), store=store) as running:
        yield running


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Prometheus on a free port, which reads the target five times a second."""
    scrape = {"job_name": "guard", "scrape_interval": "200ms", "scrape_timeout": "200ms"}
    config = {"scrape_configs": [{**scrape, "static_configs": [{"targets": [target]}]}]}
    (folder / "prometheus.yaml").write_text(json.dumps(config))
    port = free_port()
    command = ["prometheus", f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.kill()
        process.wait(10)


def rows(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    found = client.get("/api/v1/query", params={"query": query}).raise_for_status().json()
    assert found["status"] == "success"
    result: list[dict[str, Any]] = found["data"]["result"]
    return result


def until_scraped(client: httpx.Client, query: str, least: float) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline, "Prometheus has read nothing"
        try:
            if any(float(each["value"][1]) >= least for each in rows(client, query)):
                return
        except httpx.TransportError:
            pass  # it is not up yet
        time.sleep(0.1)


def test_every_query_of_the_dashboard_has_rows(tmp_path: Path, served: Served) -> None:
    panels = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    with prometheus(tmp_path, served.url.removeprefix("http://")) as client, served.client() as asking:
        for count in (1, 3):  # a rate needs two readings that differ
            for route in ("tiny", "tiny:desk"):
                assert asking.post("/v1/chat/completions", json={**ASK, "model": route}).is_success
            asking.post("/v1/chat/completions", json={**ASK, "messages": [{"role": "user", "content": "a" * 500}]})
            until_scraped(client, "sum(guard_decisions_total)", count)
        until_scraped(client, "min(count_over_time(guard_decisions_total[1m]))", 3)
        found = {panel["title"]: [rows(client, target["expr"]) for target in panel["targets"]] for panel in panels}
    empty = {title for title, results in found.items() if not all(results)}
    assert empty == WITHOUT_ROWS


def test_the_metrics_pass_prometheus_own_check(served: Served) -> None:
    with served.client() as client:
        client.post("/v1/chat/completions", json=ASK)
        text = client.get("/metrics").text
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
