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
from guard.serve.vllm_config import read_config

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"


def documents(name: str) -> list[dict[str, Any]]:
    return [*yaml.safe_load_all((DEPLOY / name).read_text("utf-8"))]


MANIFESTS = documents("kubernetes/guard.yaml")


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


def test_the_settings_of_the_inference_service_are_those_of_a_guarded_vllm_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, service = documents("kubernetes/kserve.yaml")
    (tmp_path / "guard.yaml").write_text(settings["data"]["guard.yaml"])
    monkeypatch.setenv("GUARD_CONFIG", str(tmp_path / "guard.yaml"))
    assert read_config().keys is True
    container = service["spec"]["predictor"]["containers"][0]
    environment = {each["name"]: each.get("value") for each in container["env"]}
    assert (environment["VLLM_PLUGINS"], environment["GUARD_CONFIG"]) == ("guard", "/etc/guard/guard.yaml")
    assert "--port" in container["args"]
    assert container["args"][container["args"].index("--port") + 1] == str(container["ports"][0]["containerPort"])


def test_the_inference_service_runs_without_root_and_mounts_what_it_names() -> None:
    settings, service = documents("kubernetes/kserve.yaml")
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    predictor = service["spec"]["predictor"]
    container = predictor["containers"][0]
    assert container["name"] == "kserve-container", "KServe takes the container of this name for the predictor"
    assert predictor["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    volumes = {volume["name"]: volume for volume in predictor["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes.keys()
    assert volumes["config"]["configMap"]["name"] == settings["metadata"]["name"]
    probes = [container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    assert probes == ["/ready", "/ready", "/health"]


def test_the_service_on_clouds_asks_the_port_that_it_serves_for_readiness() -> None:
    (task,) = documents("skypilot.yaml")
    assert f"--port {task['resources']['ports']}" in task["run"]
    assert "GUARD_CONFIG=/guard/guard.yaml VLLM_PLUGINS=guard vllm serve /models" in task["run"]
    assert task["service"]["readiness_probe"]["path"] == "/ready"
    assert task["secrets"] == {"PGPASSWORD": None}, "no secret is in the file"


def test_the_replicas_of_ray_serve_are_made_by_the_module_beside_their_settings() -> None:
    (settings,) = documents("ray-serve.yaml")
    (application,) = settings["applications"]
    module, _, name = application["import_path"].partition(":")
    source = (DEPLOY / f"{module}.py").read_text("utf-8")
    assert f"\n{name} = " in source
    assert f'name="{application["deployments"][0]["name"]}"' in source
    assert 'os.environ["GUARD_CONFIG"]' in source
    assert application["runtime_env"]["env_vars"].keys() == {"PYTHONPATH", "GUARD_CONFIG"}


def test_the_replicas_of_ray_serve_have_settings_that_ray_understands() -> None:
    schema = pytest.importorskip("ray.serve.schema", reason="ray is not installed")
    (settings,) = documents("ray-serve.yaml")
    read = schema.ServeDeploySchema.model_validate(settings)
    assert set(settings) <= read.model_fields_set, "Ray leaves out what it does not know"
    assert set(settings["applications"][0]["deployments"][0]) <= read.applications[0].deployments[0].model_fields_set


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


@pytest.mark.parametrize("name", ["Dockerfile", "vllm.Dockerfile"])
def test_the_images_run_without_root_and_have_a_health_check(name: str) -> None:
    lines = (DEPLOY / name).read_text("utf-8").splitlines()
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
