"""The real ``VLLM_PLUGINS=guard vllm serve`` on SmolLM2, asked by the real client of OpenAI.

Runs where vLLM is installed (`nox -s vllm`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import needs_vllm  # noqa: F401 - skips this module where vLLM is not installed

# isort: split
import httpx
import openai
import pytest
from exported_model import export_smollm2
from vllm_program import vllm_serve, wait_until_up

from guard.review.store import Store
from guard.scoring.scorer import shipped_scorer
from guard.serve.testing import assert_nothing_leaks_over_http

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.enable_socket, pytest.mark.timeout(1800)]

#: The first model's answers are likely right by its scorer; the route ``never`` refuses every answer.
POLICY = """
version: 1
name: served
rules:
  - accept: {}
routes:
  never: {rules: [{abstain: {text: I cannot say.}}]}
  desk: {rules: [{escalate: {to: [review], reply: A person will look.}}]}
"""

FRANCE = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a policy and a configuration."""
    place = tmp_path_factory.mktemp("served")
    export_smollm2(place / "model")
    (place / "policy.yaml").write_text(POLICY, "utf-8")
    (place / "guard.yaml").write_text(
        "version: 1\naudit_log: true\nstore: store.db\nmodels:\n"
        f"  smollm2: {{policy: ./policy.yaml, scorer: {shipped_scorer()}, force_scorer: true, max_tokens: 24}}\n",
        "utf-8",
    )
    return place


@contextmanager
def started(place: Path, *options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The command with guard as its plugin, and its address; its group is ended with it."""
    settings = {"VLLM_PLUGINS": "guard", "GUARD_CONFIG": str(place / "guard.yaml"), **environment}
    with vllm_serve(place / "model", place / "log", *options, **settings) as found:
        yield found


@pytest.fixture(scope="module")
def url(place: Path) -> Iterator[str]:
    with started(place) as (process, url):
        wait_until_up(process, f"{url}/ready", place / "log")
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", timeout=300, max_retries=0)


def ask(client: openai.OpenAI, model: str, **options: Any) -> Any:
    return client.chat.completions.with_raw_response.create(model=model, messages=FRANCE, **options)  # type: ignore[call-overload]


def test_an_answer_is_scored_and_accepted(client: openai.OpenAI, url: str) -> None:
    raw = ask(client, "smollm2")
    answer = raw.parse()
    assert "Paris" in answer.choices[0].message.content
    assert raw.headers["x-guard-action"] == answer.guard["action"] == "accept"
    assert 0 < answer.guard["p_wrong"] < 1
    said = httpx.get(f"{url}/v1/guard/decisions/{answer.guard['decision_id']}").json()
    assert said["action"] == "accept"


def test_a_refused_answer_does_not_leave_the_server(client: openai.OpenAI, url: str) -> None:
    answer = ask(client, "smollm2:never").parse()
    assert (answer.choices[0].message.content, answer.guard["action"]) == ("I cannot say.", "abstain")
    assert_nothing_leaks_over_http(url, FRANCE[0]["content"], model="smollm2:never", secrets=["Paris"])


def test_a_stream_is_held_until_it_is_decided(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="smollm2", messages=FRANCE, stream=True)  # type: ignore[arg-type]
    assert "Paris" in "".join(each.choices[0].delta.content or "" for each in stream if each.choices)
    stream = client.chat.completions.create(model="smollm2:never", messages=FRANCE, stream=True)  # type: ignore[arg-type]
    assert "Paris" not in "".join(each.choices[0].delta.content or "" for each in stream if each.choices)


def test_the_other_faces_answer_guarded(client: openai.OpenAI) -> None:
    assert "Paris" in client.responses.create(model="smollm2", input="What is the capital of France?").output_text
    answer: Any = client.completions.create(model="smollm2:never", prompt="The capital is")
    assert answer.guard["action"] == "abstain"
    # An answer that was cut is refused by on_error, in guard's words.
    assert answer.choices[0].text.startswith(("I cannot say.", "The policy 'served' gives no answer (on_error)"))


def test_an_escalated_answer_is_in_the_queue_and_every_decision_in_the_audit_log(
    client: openai.OpenAI, place: Path
) -> None:
    answer = ask(client, "smollm2:desk").parse()
    with Store.open(str(place / "store.db")) as store:
        case = store.review(answer.guard["review_id"])
        assert "Paris" in (case.answer or "")
        assert store.audit_log().verify().ok
        assert len([*store.audit_log().entries(subject=answer.guard["decision_id"])]) > 0


def test_requests_together_have_answers_of_their_own(client: openai.OpenAI, url: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    words = ("Peru", "Italy", "Japan", "Spain", "Norway", "Kenya", "Cuba", "Iran")

    def say(word: str) -> str:
        asked = [{"role": "user", "content": f"Repeat this word: {word}"}]
        return client.chat.completions.create(model="smollm2", messages=asked).choices[0].message.content or ""  # type: ignore[arg-type]

    with ThreadPoolExecutor(len(words)) as pool:
        together = [*pool.map(say, words)]
    assert together == [say(word) for word in words]


def test_routes_of_vllms_that_would_answer_past_guard_refuse(url: str) -> None:
    for path in ("/v1/messages", "/invocations", "/inference/v1/generate"):
        answer = httpx.post(f"{url}{path}", json={"model": "smollm2", "messages": FRANCE, "prompt": "Hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "unguarded_url"), path


def test_the_metrics_are_vllms_and_guards(client: openai.OpenAI, url: str) -> None:
    ask(client, "smollm2")
    metrics = httpx.get(f"{url}/metrics").text
    assert "vllm:request_success_total" in metrics
    assert 'guard_decisions_total{action="accept"' in metrics


@pytest.mark.parametrize(
    ("options", "environment", "says"),
    [
        ((), {"GUARD_CONFIG": ""}, "GUARD_CONFIG names no configuration"),
        (("--enable-lora",), {}, "--enable-lora"),
        (("--host", "0.0.0.0"), {}, "Requests need an API key, but there is none"),
        (("--chat-template", "{{ messages }}"), {}, "--chat-template"),
    ],
)
def test_what_is_missing_or_not_understood_keeps_it_from_starting(
    place: Path, options: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    with started(place, *options, **environment) as (process, _):
        assert process.wait(600) != 0
    assert says in (place / "log").read_text()
