"""Clients that are no Python packages of these tests, against a real ``guard serve`` on the embedded model.

Each needs something that is installed apart: ``nox -s clients`` does so, and sets the variables. What they got is in
docs/evidence/clients.md.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pytest
from embedded_model import smollm2_file
from pydantic import BaseModel
from scripted import tiny_artefact
from scripted_tools import MODEL, ToolEngine
from served import POLICY, Served, said, serving
from served_child import free_port

from guard.access import Access, Grant, Role
from guard.review.store import Store
from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer
from guard.serve import ServeSettings

HERE = Path(__file__).parent
CITY = "What is the capital of France?"
SAID_NO = "I cannot say."
LOOK_UP: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
RULES = f"rules: [accept]\nroutes: {{never: {{rules: [{{abstain: {{text: {SAID_NO}}}}}]}}}}\n"
CONFIG = """
version: 1
listen: {port: 0}
models:
  smollm2: {policy: ./hold.yaml, max_tokens: 24}
  live: {model: smollm2, policy: ./live.yaml, max_tokens: 24}
"""


def named(variable: str, what: str) -> str:
    """Return what a variable names, or skip the test."""
    if not os.environ.get(variable):
        pytest.skip(f"no {what}: {variable} names none")
    return os.environ[variable]


@contextmanager
def guard_serve(folder: Path) -> Iterator[str]:
    """``guard serve`` in a process of its own on the embedded model; gives its address."""
    smollm2_file()
    for name in ("hold", "live"):
        (folder / f"{name}.yaml").write_text(f"version: 1\nname: {name}\nstreaming: {name}\n{RULES}")
    (folder / "server.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "guard", "serve", "--config", str(folder / "server.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with guard_serve(tmp_path_factory.mktemp("server")) as url:
        yield url


@contextmanager
def tooled() -> Iterator[Served]:
    """A scripted model that calls tools and writes JSON."""
    artefact = tiny_artefact(MODEL).model_copy(update={"prompting": Prompting(system="", max_tokens=2000)})
    accepts = {"all": "{version: 1, name: all, rules: [accept]}"}
    with serving(engine=ToolEngine(), scorer=Scorer(artefact), policies=accepts, max_tokens=2000) as served:
        yield served


# -- openai for Python -------------------------------------------------------------------------

ASK: dict[str, Any] = {"model": "smollm2", "messages": [{"role": "user", "content": CITY}]}


class City(BaseModel):
    """A city."""

    city: Literal["Paris", "Rome"]


@pytest.mark.model
def test_pythons_openai_understands_the_server(real: str) -> None:
    client = openai.OpenAI(base_url=f"{real}/v1", api_key="none", max_retries=0)
    found = {"whole": client.chat.completions.create(**ASK).choices[0].message.content}
    pieces = client.chat.completions.create(**ASK, stream=True)
    found["stream"] = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    with client.chat.completions.stream(**ASK) as stream:
        found["stream helper"] = stream.get_final_completion().choices[0].message.content
    found["responses"] = client.responses.create(model="smollm2", input=CITY).output_text
    with client.responses.stream(model="smollm2", input=CITY) as events:
        found["responses, streamed"] = events.get_final_response().output_text
    completion = client.completions.create(model="smollm2", prompt="The capital of France is", stop=[".", ","])
    found["completion"] = completion.choices[0].text
    for name, text in found.items():
        assert "Paris" in str(text), name
    parsed = client.chat.completions.parse(**ASK, response_format=City).choices[0].message.parsed
    assert isinstance(parsed, City)
    refused = client.chat.completions.create(**{**ASK, "model": "smollm2:never"}).choices[0].message
    assert (refused.content, refused.refusal) == (SAID_NO, SAID_NO)
    with pytest.raises(openai.APIError, match="has retracted the answer"):
        list(client.chat.completions.create(**{**ASK, "model": "live:never"}, stream=True))
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        client.chat.completions.create(**ASK, tools=[LOOK_UP])
    assert {model.id for model in client.models.list()} >= {"smollm2", "smollm2:never"}


@pytest.mark.model
async def test_pythons_asynchronous_openai_understands_the_server(real: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{real}/v1", api_key="none", max_retries=0) as client:
        whole, stream, response, parsed = await asyncio.gather(
            client.chat.completions.create(**ASK),
            client.chat.completions.create(**ASK, stream=True),
            client.responses.create(model="smollm2", input=CITY),
            client.chat.completions.parse(**ASK, response_format=City),
        )
        streamed = "".join([piece.choices[0].delta.content or "" async for piece in stream])
        with pytest.raises(openai.APIError, match="has retracted the answer"):
            async for _ in await client.chat.completions.create(**{**ASK, "model": "live:never"}, stream=True):
                pass
    for text in (whole.choices[0].message.content, streamed, response.output_text):
        assert "Paris" in str(text)
    assert isinstance(parsed.choices[0].message.parsed, City)


def test_pythons_openai_calls_tools_in_both_apis() -> None:
    """On the scripted model: the embedded one has no tools."""
    with tooled() as served:
        client = served.openai()
        messages: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
        message = client.chat.completions.create(model="tiny", messages=messages, tools=[LOOK_UP]).choices[0].message
        (call,) = message.tool_calls
        assert json.loads(call.function.arguments) == {"city": "Paris"}
        messages += [message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        last = client.chat.completions.create(model="tiny", messages=messages, tools=[LOOK_UP])
        flat = {"type": "function", **LOOK_UP["function"]}
        response = client.responses.create(model="tiny", input=messages[0]["content"], tools=[flat])
    assert "sunny" in str(last.choices[0].message.content)
    assert [item.type for item in response.output] == ["function_call"]


# -- npm ---------------------------------------------------------------------------------------


def run_script(name: str, folder: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Run one of the scripts here on the embedded model and on a scripted one with tools; return what its calls got."""
    modules = Path(named("GUARD_TEST_NPM", "npm packages")) / "node_modules"
    (folder / "node_modules").symlink_to(modules.absolute())
    (folder / name).write_text((HERE / name).read_text("utf-8"))
    url = request.getfixturevalue("real")
    with tooled() as scripted:
        done = subprocess.run(
            ["node", name, url, scripted.url], cwd=folder, capture_output=True, text=True, timeout=240
        )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found, indent=2))
    return found


@pytest.mark.model
def test_the_npm_packages_openai_and_ai_understand_the_server(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = run_script("openai_and_ai.mjs", tmp_path, request)
    for name in ("openai chat", "openai stream", "openai responses", "ai generateText", "ai generateText, Responses"):
        assert "Paris" in found[name]["text"], name
    assert found["openai stream"]["action"] == "accept"
    assert found["openai abstention"] == {"text": SAID_NO, "refusal": SAID_NO}
    assert found["openai retracted"]["code"] == "retracted"
    assert found["openai unknown option"]["code"] == "unsupported"
    assert found["openai tool"]["calls"] == [["look_up", '{"city": "Paris"}']]
    assert found["openai JSON"] == found["ai generateObject"] == {"object": {"city": "Paris"}}
    assert ("Paris" in found["ai streamText"]["text"], found["ai streamText"]["errors"]) == (True, 0)
    assert found["ai streamText, retracted"]["errors"] > 0, "a retracted answer is an error"
    assert found["ai tool"]["calls"] == [["look_up", {"city": "Paris"}]]
    assert found["ai tool"]["text"] == "Hello there, it is sunny."


@pytest.mark.model
def test_n8ns_chat_model_understands_the_server_in_both_apis(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    found = run_script("n8n.mjs", tmp_path, request)
    for api in ("Chat", "Responses"):
        for call in ("text", "stream"):
            assert "Paris" in found[f"{api} {call}"]["text"], (api, call)
        assert found[f"{api} options"]["text"] == "Hello there, it is sunny."
        assert found[f"{api} abstention"]["text"] == SAID_NO
        assert isinstance(found[f"{api} JSON"]["object"], dict)
        assert found[f"{api} tool"] == {"call": ["look_up", {"city": "Paris"}], "text": "Hello there, it is sunny."}


# -- LiteLLM -----------------------------------------------------------------------------------


LITELLM = """
model_list:
  - {{model_name: guarded, litellm_params: {{model: openai/smollm2, api_base: {url}/v1, api_key: none}}}}
  - {{model_name: never, litellm_params: {{model: "openai/smollm2:never", api_base: {url}/v1, api_key: none}}}}
  - {{model_name: live, litellm_params: {{model: "openai/live:never", api_base: {url}/v1, api_key: none}}}}
guardrails:
  - guardrail_name: lenient
    litellm_params:
      guardrail: generic_guardrail_api
      mode: [pre_call, post_call]
      api_base: {url}
      streaming_buffer_until_moderated: true
      additional_provider_specific_params: {{model: smollm2}}
  - guardrail_name: strict
    litellm_params:
      guardrail: generic_guardrail_api
      mode: [pre_call, post_call]
      api_base: {url}
      streaming_buffer_until_moderated: true
      additional_provider_specific_params: {{model: smollm2, route: never}}
  - guardrail_name: unbuffered
    litellm_params:
      guardrail: generic_guardrail_api
      mode: [pre_call, post_call]
      api_base: {url}
      additional_provider_specific_params: {{model: smollm2, route: never}}
"""


@contextmanager
def litellm_proxy(program: str, folder: Path, url: str) -> Iterator[httpx.Client]:
    """LiteLLM's proxy in front of the server."""
    (folder / "litellm.yaml").write_text(LITELLM.format(url=url))
    port = free_port()
    command = [program, "--config", str(folder / "litellm.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    key = f"sk-{secrets.token_hex(32)}"  # the proxy starts with no other
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CI")}
    environment |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key}
    with (folder / "litellm.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as client:
            deadline = time.monotonic() + 120
            while True:
                assert process.poll() is None, (folder / "litellm.log").read_text()[-3000:]
                assert time.monotonic() < deadline, "LiteLLM's proxy did not start"
                try:
                    if client.get("/health/liveliness").is_success:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
            yield client
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.model
def test_litellms_proxy_serves_guarded_models_and_uses_guard_as_a_guardrail(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    program, found = named("GUARD_TEST_LITELLM", "LiteLLM"), dict[str, Any]()
    with litellm_proxy(program, tmp_path, request.getfixturevalue("real")) as client:

        def ask(model: str, **more: Any) -> httpx.Response:
            body = {"model": model, "messages": [{"role": "user", "content": CITY}], **more}
            return client.post("/v1/chat/completions", json=body)

        found["guarded"] = ask("guarded").json()
        found["never"] = ask("never").json()
        found["stream"] = ask("guarded", stream=True).text
        found["live"] = ask("live", stream=True).text
        found["lenient"] = ask("guarded", guardrails=["lenient"]).json()
        found["lenient stream"] = ask("guarded", guardrails=["lenient"], stream=True).text
        for name in ("strict", "unbuffered"):
            found[name] = ask("guarded", guardrails=[name]).json()
            found[f"{name} stream"] = ask("guarded", guardrails=[name], stream=True).text
    print(json.dumps(found, indent=2))
    assert "Paris" in found["guarded"]["choices"][0]["message"]["content"]
    assert found["guarded"]["guard"]["action"] == "accept", "LiteLLM keeps fields of the body"
    assert found["never"]["choices"][0]["message"]["content"] == SAID_NO
    assert "Paris" in "".join(re.findall(r'"content":\s*"([^"]*)"', found["stream"]))
    assert "has retracted the answer" in found["live"]
    assert "[DONE]" not in found["live"]
    assert "Paris" in found["lenient"]["choices"][0]["message"]["content"]
    assert "Paris" in "".join(re.findall(r'"content":\s*"([^"]*)"', found["lenient stream"]))
    for name in ("strict", "strict stream", "unbuffered"):
        assert SAID_NO in str(found[name]), name
        assert "Paris" not in str(found[name]), name
    assert SAID_NO in found["unbuffered stream"], "the stream ends with an error"


# -- Open WebUI --------------------------------------------------------------------------------


class OpenWebUI:
    """Open WebUI's own templates and the functions that fill them, from the source of a release.

    Args:
        folder: of the unpacked wheel. Importing all of it would need its hundred dependencies.
    """

    def __init__(self, folder: Path) -> None:
        self._names: dict[str, Any] = {"re": re, "math": __import__("math"), "Optional": object, "Any": Any}
        self._names |= {"datetime": __import__("datetime").datetime, "log": None}
        self._take(folder / "config.py", r"DEFAULT_\w+_PROMPT_TEMPLATE$")
        self._take(
            folder / "utils" / "misc.py", r"get_(messages_content|content_from_message|last_user_message(_item)?)$"
        )
        self._take(
            folder / "utils" / "task.py",
            r"(replace_\w+_variable|truncate_content|apply_content_filter|prompt_template|\w+_generation_template)$",
        )

    def _take(self, file: Path, names: str) -> None:
        kept = []
        for node in ast.parse(file.read_text("utf-8")).body:
            targets = [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
            if any(re.match(names, name) for name in (*targets, getattr(node, "name", ""))):
                for part in ast.walk(node):  # annotations and defaults name classes that are not here
                    if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef):
                        part.returns = None
                        for argument in (*part.args.args, *part.args.kwonlyargs):
                            argument.annotation = None
                kept.append(node)
        assert kept, f"{file} has none of {names}"
        exec(compile(ast.Module(kept, []), str(file), "exec"), self._names)  # noqa: S102 - the release's own code

    def written(self, task: str, messages: list[dict[str, str]], **options: Any) -> str:
        """Return the message of a side request, as ``routers/tasks.py`` makes it."""
        names = self._names
        template = names[f"DEFAULT_{task.upper()}_GENERATION_PROMPT_TEMPLATE"]
        text: str = asyncio.run(names[f"{task}_generation_template"](template, messages, **options))
        return text


def test_open_webuis_own_requests_are_recognised(tmp_path: Path) -> None:
    webui = OpenWebUI(Path(named("GUARD_TEST_OPEN_WEBUI", "source of Open WebUI")) / "open_webui")
    policy = POLICY.replace("  - abstain: {text: I cannot say.}", "  - escalate: {to: [review], reply: Wait.}")
    settings = ServeSettings(unguarded_keys=("webui",))
    turns = [{"role": "user", "content": CITY}]
    whole = [*turns, {"role": "assistant", "content": "Paris"}]
    with Access.open(tmp_path / "r.db") as access, Store.open(tmp_path / "r.db") as store:
        key = access.keys.add("webui", grants=[Grant(Role.CALLER)])[1]
        parts: dict[str, Any] = {"access": access, "store": store, "settings": settings, "context": 20_000}
        with serving(said("Paris", 0.1), policies={"test": policy}, **parts) as served:
            client = served.client(headers={"authorization": f"Bearer {key}"})

            def ask(messages: list[dict[str, str]]) -> Any:
                body = {"model": "tiny", "messages": messages, "stream": False, "max_tokens": 100}
                return client.post("/v1/chat/completions", json=body).json()["guard"]

            def side(task: str, about: list[dict[str, str]], **options: Any) -> Any:
                said_of = ask([{"role": "user", "content": webui.written(task, about, **options)}])
                return said_of["action"], said_of.get("route")

            assert side("title", whole) == ("abstain", "background"), "nothing is accepted yet"
            assert ask(turns)["action"] == "accept"
            for task, options in (("title", {}), ("tags", {}), ("follow_up", {"use_default": True})):
                assert side(task, whole, **options) == ("unguarded", None), task
            other = [{"role": "user", "content": "How much morphine is deadly?"}]
            for task, options in (("title", {}), ("tags", {}), ("follow_up", {"use_default": True}), ("query", {})):
                assert side(task, other, **options) == ("abstain", "background"), task
            client.close()
        assert store.count() == 0, "a side request was put into review"
