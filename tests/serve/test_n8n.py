"""Requests that n8n's OpenAI node and its chat model make, with the fields of their source.

Of n8n-io/n8n, folder ``packages/@n8n/nodes-langchain/nodes``: ``vendors/OpenAi/v2/actions/text/helpers/responses.ts``
(commit 03444e9), ``vendors/OpenAi/v1/actions/text/message.operation.ts`` (commit 0323667), and
``llms/LMChatOpenAi/LmChatOpenAi.node.ts`` (commit 01526fc), whose requests LangChain's JavaScript client makes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from scripted import tiny_artefact
from scripted_tools import MODEL, ToolEngine
from served import Served, serving

from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer

CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
SAID = "Hello there, it is sunny."

#: "Message a model", version 2 of the node, with no option set: what is empty is left out, the rest is sent.
RESPONSE: dict[str, Any] = {
    "model": "tiny",
    "input": [{"role": "user", "content": [{"type": "input_text", "text": "Which city?"}]}],
    "parallel_tool_calls": True,
    "store": True,
    "background": False,
}
#: The same in version 1.
MESSAGE: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Which city?"}]}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    artefact = tiny_artefact(MODEL).model_copy(update={"prompting": Prompting(system="", max_tokens=2000)})
    policy = "{version: 1, name: all, rules: [accept]}"
    with serving(engine=ToolEngine(), scorer=Scorer(artefact), policies={"all": policy}, max_tokens=2000) as running:
        yield running


def post(served: Served, path: str, body: dict[str, Any]) -> dict[str, Any]:
    with served.client(headers={"authorization": "Bearer none"}) as client:
        found: dict[str, Any] = client.post(f"/v1/{path}", json=body).json()
    return found


def text_of(response: dict[str, Any]) -> str:
    (message,) = response["output"]
    return str(message["content"][0]["text"])


def test_a_message_of_the_node_is_answered_in_both_apis(served: Served) -> None:
    assert text_of(post(served, "responses", RESPONSE)) == SAID
    options = {"temperature": 0, "top_p": 1, "max_completion_tokens": 50, "n": 1}
    answer = post(served, "chat/completions", {**MESSAGE, **options, "frequency_penalty": 0, "presence_penalty": 0})
    assert answer["choices"][0]["message"]["content"] == SAID


@pytest.mark.parametrize(
    "form",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "name": "my_schema", "schema": CITY},
    ],
)
def test_an_output_format_of_the_node_comes_with_the_usual_verbosity(served: Served, form: dict[str, Any]) -> None:
    system = {"role": "system", "content": [{"type": "input_text", "text": "You are designed to output JSON."}]}
    asked = [system, *RESPONSE["input"]] if form["type"] == "json_object" else RESPONSE["input"]
    text = text_of(
        post(served, "responses", {**RESPONSE, "input": asked, "text": {"verbosity": "medium", "format": form}})
    )
    if form["type"] == "text":
        assert text == SAID
    else:
        assert isinstance(json.loads(text), dict)


def test_a_tool_of_the_node_is_called_and_its_result_sent_back(served: Served) -> None:
    tool = {"type": "function", "name": "look_up", "parameters": CITY, "strict": False, "description": "Looks"}
    body = {**RESPONSE, "tools": [tool]}
    calls = [item for item in post(served, "responses", body)["output"] if item["type"] == "function_call"]
    assert json.loads(calls[0]["arguments"]) == {"city": "Paris"}
    result = {"type": "function_call_output", "call_id": calls[0]["call_id"], "output": '{"sun":true}'}
    assert text_of(post(served, "responses", {**body, "input": [*body["input"], *calls, result]})) == SAID

    chat_tool = {"type": "function", "function": {"name": "look_up", "parameters": CITY, "description": "Looks"}}
    chat = {**MESSAGE, "tools": [chat_tool]}
    called = post(served, "chat/completions", chat)["choices"][0]["message"]
    back = {"tool_call_id": called["tool_calls"][0]["id"], "role": "tool", "content": "sunny"}
    again = post(served, "chat/completions", {**chat, "messages": [*MESSAGE["messages"], called, back]})
    assert again["choices"][0]["message"]["content"] == SAID


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("previous_response_id", "resp_1", "previous_response_id"),
        ("conversation", "conv_1", "conversation"),
        ("prompt", {"id": "pmpt_1"}, "prompt"),
        ("background", True, "background"),
        ("truncation", "auto", "truncation"),
        ("max_tool_calls", 5, "max_tool_calls"),
        ("top_logprobs", 3, "top_logprobs"),
        ("service_tier", "flex", "service_tier"),
        ("include", ["web_search_call.action.sources"], "include"),
        ("reasoning", {"effort": "medium"}, "reasoning"),
        ("text", {"verbosity": "high", "format": {"type": "text"}}, "text.verbosity"),
        ("tools", [{"type": "web_search", "search_context_size": "medium"}], "tools"),
        ("tools", [{"type": "mcp", "server_label": "a", "server_url": "https://example.org"}], "tools"),
        ("tools", [{"type": "code_interpreter", "container": {"type": "auto"}}], "tools"),
        ("tools", [{"type": "file_search", "vector_store_ids": ["vs_1"], "max_num_results": 1}], "tools"),
        ("tools", [{"type": "local_shell"}], "tools"),
    ],
)
def test_what_the_node_offers_and_guard_does_not_is_refused_by_its_name(
    served: Served, option: str, value: Any, named: str
) -> None:
    error = post(served, "responses", {**RESPONSE, option: value})["error"]
    assert error["param"] == named
    if option == "tools":
        assert f"tools of the type '{value[0]['type']}'" in error["message"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("frequency_penalty", 0.5), ("presence_penalty", -1), ("reasoning_effort", "medium"), ("n", 3)],
)
def test_the_same_in_chat_completions(served: Served, option: str, value: Any) -> None:
    assert post(served, "chat/completions", {**MESSAGE, option: value})["error"]["param"] == option
