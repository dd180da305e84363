"""Files for deployment: settings that load, containers without root, queries of metrics that the server has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from guard.serve import ServeSettings
from guard.serve.admission import Admission
from guard.serve.config import load_config, parse_config
from guard.serve.loading import check_listening
from guard.serve.metrics import ServeMetrics

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
MANIFESTS: list[dict[str, Any]] = [*yaml.safe_load_all((DEPLOY / "kubernetes" / "guard.yaml").read_text("utf-8"))]


@pytest.mark.parametrize("name", ["server.yaml", "server-postgresql.yaml"])
def test_the_settings_load_and_need_keys(name: str) -> None:
    assert check_listening(load_config(DEPLOY / name))


def test_the_settings_in_the_manifest_load_and_need_keys() -> None:
    assert check_listening(parse_config(MANIFESTS[0]["data"]["server.yaml"]))


def test_the_manifests_belong_together() -> None:
    assert [each["kind"] for each in MANIFESTS] == ["ConfigMap", "Deployment", "Service"]
    spec = MANIFESTS[1]["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert waits + ServeSettings().shutdown_seconds < spec["terminationGracePeriodSeconds"]
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
    labels = MANIFESTS[1]["spec"]["template"]["metadata"]["labels"]
    assert MANIFESTS[2]["spec"]["selector"].items() <= labels.items()
    assert MANIFESTS[1]["spec"]["selector"]["matchLabels"].items() <= labels.items()


@pytest.mark.parametrize("name", ["compose.yaml", "compose-postgresql.yaml"])
def test_containers_have_no_root_and_no_writable_files(name: str) -> None:
    services = yaml.safe_load((DEPLOY / name).read_text("utf-8"))["services"]
    servers = [service for key, service in services.items() if key.startswith("guard")]
    assert servers
    for service in servers:
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        mounted = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        assert all((DEPLOY / file).is_file() for file in mounted)


def test_the_image_runs_without_root_and_has_a_health_check() -> None:
    lines = (DEPLOY / "Dockerfile").read_text("utf-8").splitlines()
    last = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 10001" in last
    assert any(line.startswith("HEALTHCHECK") for line in last)


def test_the_dashboard_asks_for_metrics_that_the_server_has() -> None:
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text("utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"guard_\w+", query)}
    metrics = ServeMetrics(Admission(1), None)
    families = [(family.name, family.type) for family in metrics.registry.collect()]
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    known = {f"{name}{ending}" for name, kind in families for ending in endings[kind]}
    assert asked <= known | {"guard_reviews_pending", "guard_review_age_seconds"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
