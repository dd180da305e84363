"""Metrics, traces and lines: they have decisions and times, and no text of prompts or answers."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from scripted import AnsweringEngine
from served import said, serving

from guard.review.store import Store
from guard.serve.decision_lines import DecisionLines
from guard.serve.responder import Watcher
from guard.serve.telemetry import Telemetry

ASK: dict[str, Any] = {"model": "tiny:desk", "messages": [{"role": "user", "content": "A question of nobody's"}]}
ANSWER = "An answer that is doubtful"


@contextmanager
def asking(folder: Path, *watchers: Watcher) -> Iterator[httpx.Client]:
    """A client of a server whose answers go to watchers."""
    with (
        Store.open(folder / "r.db") as store,
        serving(said(ANSWER, 0.4), store=store, watchers=watchers) as served,
        served.client() as client,
    ):
        yield client


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_counts_decisions_scores_and_waiting_cases(tmp_path: Path) -> None:
    with asking(tmp_path) as client:
        for model in ("tiny", "tiny:desk"):
            client.post("/v1/chat/completions", json={**ASK, "model": model})
        client.post("/v1/chat/completions", json={**ASK, "messages": [{"role": "user", "content": "a" * 500}]})
        text = client.get("/metrics").text
    found = samples(text)
    by_action = {
        dict(labels)["action"]: value for (name, labels), value in found.items() if name == "guard_decisions_total"
    }
    assert by_action == {"accept": 1, "escalate": 1}
    route = (("model", "tiny"), ("policy", "test"), ("route", "desk"))
    assert found["guard_p_wrong_count", route] == 1
    assert found["guard_hold_seconds_count", route] == 1
    assert found["guard_queue_seconds_count", route] == 1
    assert found["guard_first_text_seconds_sum", route] == found["guard_hold_seconds_sum", route], "it was held"
    assert found["guard_answer_tokens_sum", route] == len(ANSWER) + 1
    assert found["guard_reviews_pending", (("route", "desk"),)] == 1
    assert found["guard_review_age_seconds", (("route", "desk"),)] >= 0
    assert found["guard_request_errors_total", (("code", "context_length_exceeded"), ("model", "tiny"))] == 1
    assert "question" not in text
    assert ANSWER not in text


def test_the_first_text_of_a_live_answer_comes_before_its_decision() -> None:
    engine = AnsweringEngine(said("Paris"))
    engine.on_feed = lambda number: time.sleep(0.02)
    policy = "{version: 1, name: live, streaming: live, rules: [accept]}"
    with serving(engine=engine, policies={"live": policy}) as served, served.client() as client:
        assert client.post("/v1/chat/completions", json={**ASK, "model": "tiny", "stream": True}).is_success
        found = samples(client.get("/metrics").text)
    labels = (("model", "tiny"), ("policy", "live"), ("route", ""))
    assert found["guard_first_text_seconds_sum", labels] < found["guard_hold_seconds_sum", labels]


def test_lines_have_ids_and_no_texts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with asking(tmp_path, DecisionLines()) as client:
        verdict = client.post("/v1/chat/completions", json=ASK).json()["guard"]
        client.post("/v1/chat/completions", json={**ASK, "model": "tiny:raising"})
    lines = [json.loads(each.getMessage()) for each in caplog.records if each.name == "guard.serve.decisions"]
    assert [line["event"] for line in lines] == ["answered", "failed"]
    assert (lines[0]["decision_id"], lines[0]["review_id"]) == (verdict["decision_id"], verdict["review_id"])
    assert lines[1]["code"] == "abstained"
    assert "of nobody" not in caplog.text
    assert ANSWER not in caplog.text


def test_opentelemetry_gets_a_span_metrics_and_the_score_as_an_event(tmp_path: Path) -> None:
    spans, logs, reader = InMemorySpanExporter(), InMemoryLogRecordExporter(), InMemoryMetricReader()
    tracers, loggers = TracerProvider(), LoggerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    loggers.add_log_record_processor(SimpleLogRecordProcessor(logs))
    telemetry = Telemetry(tracers=tracers, meters=MeterProvider([reader]), loggers=loggers)
    with asking(tmp_path, telemetry) as client:
        verdict = client.post("/v1/chat/completions", json=ASK).json()["guard"]
        client.post("/v1/chat/completions", json={**ASK, "model": "tiny:raising"})
    first, failed = spans.get_finished_spans()
    assert first.name == "chat tiny:desk"
    attributes = dict(first.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.response.id"] == verdict["decision_id"]
    assert attributes["gen_ai.usage.output_tokens"] == len(ANSWER) + 1
    assert (failed.attributes or {})["error.type"] == "abstained"
    record = logs.get_finished_logs()[0].log_record
    assert record.event_name == "gen_ai.evaluation.result"
    assert dict(record.attributes or {})["gen_ai.evaluation.score.value"] == verdict["p_wrong"]
    assert record.trace_id == first.context.trace_id
    names = {
        metric.name
        for resource in reader.get_metrics_data().resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert names == {
        "gen_ai.client.token.usage",
        "gen_ai.client.operation.duration",
        "gen_ai.server.time_to_first_token",
    }
    everything = "".join(span.to_json() for span in (first, failed)) + str(record)
    assert ANSWER not in everything
    assert "of nobody" not in everything
