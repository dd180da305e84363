"""Tool calls as the families of models write them; what is thought, quoted or not offered is never one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, AIMessageChunk
from scripted import AnsweringEngine, confidence_scorer, scripted_model

from guard.engines.thinking import HarmonySplitter
from guard.engines.tool_calls import TextAroundCalls, ToolFormat, parse_tool_calls, tool_format
from guard.errors import ChatTemplateError
from guard.langchain.chat.chat_guard import ChatGuard
from guard.records import Prompt

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "note": {"type": "string"}, "on": {"type": "boolean"}},
        },
    },
}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 150}}</tool_call>'

#: Pieces of real chat templates that show how calls are written.
TEMPLATES = {
    "harmony": "<|start|>assistant<|channel|>commentary to=functions",
    "mistral": "[AVAILABLE_TOOLS] [TOOL_CALLS]",
    "deepseek": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>",
    "kimi": "<|tool_calls_section_begin|><|tool_call_begin|>",
    "glm": "<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>",
    "qwen-coder": "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>",
    "phi": "<|tool|>{{ tools }}<|/tool|><|tool_call|>",
    "hermes": '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
    "llama": '<|start_header_id|>Respond in the format {"name": function name, "parameters": dictionary}',
}

PIECES = (
    *(CALL, "<tool_call>", "</tool_call>", "[TOOL_CALLS]", "<function=add>", "<|python_tag|>", "<｜tool▁call▁begin｜>"),
    *("<|channel|>commentary to=add<|message|>", "<arg_key>", "<think>", "</think>", "<|tool_call|>"),
    *("<|tool_call_begin|>", "`", "```", "\n", "> ", "{}", "{", "}", "[", "]", '"', "add", " "),
)


def form(name: str) -> ToolFormat:
    found = tool_format(TEMPLATES[name])
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>\n{"name": "add", "arguments": {"a": 1, "note": "x"}}\n</tool_call>'),
        ("hermes", '{"name": "add", "arguments": {"a": 1, "note": "x"}}'),
        ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1, \\"note\\": \\"x\\"}"}</tool_call>'),
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 1, "note": "x"}, "id": "Uvwxyz123"}]'),
        ("mistral", '[TOOL_CALLS]add[ARGS]{"a": 1, "note": "x"}'),
        ("mistral", '[TOOL_CALLS]add[CALL_ID]Uvwxyz123[ARGS]{"a": 1, "note": "x"}'),
        ("mistral", '[TOOL_CALLS]add{"a": 1, "note": "x"}'),
        ("llama", '<|python_tag|>{"name": "add", "parameters": {"a": 1, "note": "x"}}'),
        ("llama", '{"type": "function", "name": "add", "parameters": {"a": 1, "note": "x"}}'),
        ("harmony", '<|channel|>commentary to=functions.add<|message|>{"a": 1, "note": "x"}'),
        ("harmony", '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1, "note": "x"}'),
        (
            "qwen-coder",
            "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=note>\nx\n</parameter>\n"
            "</function>\n</tool_call>",
        ),
        ("qwen-coder", '<function=add>{"a": 1, "note": "x"}</function>'),
        (
            "glm",
            "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>note</arg_key>\n"
            "<arg_value>x</arg_value>\n</tool_call>",
        ),
        ("phi", '<|tool_call|>[{"name": "add", "arguments": {"a": 1, "note": "x"}}]<|/tool_call|>'),
        ("phi", '<|tool_call|>[{"name": "add", "arguments": {"a": 1, "note": "x"}}]'),
        (
            "deepseek",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
            '{"a": 1, "note": "x"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        ),
        (
            "deepseek",
            '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 1, "note": "x"}<｜tool▁call▁end｜>'
            "<｜tool▁calls▁end｜>",
        ),
        (
            "kimi",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>"
            '{"a": 1, "note": "x"}<|tool_call_end|><|tool_calls_section_end|>',
        ),
    ],
)
def test_each_family_is_read(family: str, text: str) -> None:
    answer = parse_tool_calls(text, ["add"], form(family), tools=[ADD])
    assert (answer.text, answer.invalid) == ("", ())
    (call,) = answer.calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "note": "x"})
    # The same call, of a tool that was not offered.
    answer = parse_tool_calls(text, ["sub"], form(family))
    assert answer.calls == ()
    if text.startswith("{") and family == "hermes":  # any JSON may be an answer of such a model
        assert answer.text == text
    else:
        assert "no tool 'add' was offered" in str(answer.invalid[0]["error"])


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {}}, {"name": "add", "arguments": {}}]'),
        ("mistral", '[TOOL_CALLS]add[ARGS]{}[TOOL_CALLS]add[ARGS]{"a": 1}'),
        ("llama", '{"name": "add", "parameters": {}}; {"name": "add", "parameters": {"a": 2}}'),
        ("hermes", f"{CALL}\n{CALL}"),
        ("harmony", "<|channel|>commentary to=add<|message|>{}\n\n<|channel|>commentary to=add<|message|>{}"),
        (
            "qwen-coder",
            "\n".join(["<tool_call><function=add></function></tool_call>"] * 2),
        ),
    ],
)
def test_several_calls_are_all_read(family: str, text: str) -> None:
    answer = parse_tool_calls(text, ["add"], form(family))
    assert ([call["name"] for call in answer.calls], answer.invalid, answer.text) == (["add", "add"], (), "")


def test_a_harmony_call_comes_whole_out_of_the_splitter() -> None:
    splitter = HarmonySplitter()
    text = splitter.finish(
        "<|channel|>analysis<|message|>I add.<|end|><|start|>assistant<|channel|>commentary to=functions.add "
        '<|constrain|>json<|message|>{"a": 1}<|call|>'
    )
    assert [call["args"] for call in parse_tool_calls(text, ["add"], form("harmony")).calls] == [{"a": 1}]


def test_values_between_tags_have_the_tools_types() -> None:
    def args(value: str, key: str) -> Any:
        text = f"<function=add><parameter={key}>\n{value}\n</parameter></function>"
        (call,) = parse_tool_calls(text, ["add"], form("qwen-coder"), tools=[ADD]).calls
        return call["args"][key]

    assert args("150", "a") == 150
    assert args("150", "note") == "150"
    assert args("true", "on") is True
    assert args("NaN", "a") == "NaN"
    assert args("two\nlines", "note") == "two\nlines"


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("mistral", '[TOOL_CALLS] [{"name": "add", "arguments": {"a": 15'),
        ("mistral", '[TOOL_CALLS]add[ARGS]{"a": 15'),
        ("llama", '<|python_tag|>brave_search.call(query="x")'),
        ("llama", '<|python_tag|>{"name": "add", "parameters": {"a": 15'),
        ("harmony", '<|channel|>commentary to=functions.add<|message|>{"a": 15'),
        ("qwen-coder", "<tool_call><function=add><parameter=a>15"),
        ("qwen-coder", "<function=add><parameter=a>15</function>"),
        ("glm", "<tool_call>add\n<arg_key>a</arg_key>\n<arg_value>15"),
        ("phi", '<|tool_call|>[{"name": "add", "arguments": {"a": 15'),
        ("deepseek", '<｜tool▁call▁begin｜>add<｜tool▁sep｜>{"a": 15'),
        ("kimi", '<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 15'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 15'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": NaN}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": -Infinity}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1e999}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": NaN}"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"a": 1, "a": 2}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {}} and more</tool_call>'),
    ],
)
def test_a_call_that_is_cut_or_no_json_is_invalid(family: str, text: str) -> None:
    answer = parse_tool_calls(text, ["add"], form(family))
    assert answer.calls == ()
    assert len(answer.invalid) == 1


@pytest.mark.parametrize(
    "text",
    [
        f"<think>I could call {CALL} but no.</think>It adds.",
        f"<think>Perhaps {CALL[:-12]}",
        f"Well. <think>Perhaps {CALL}",
        f"[THINK]{CALL}[/THINK]It adds.",
        f"You would write `{CALL}`.",
        f"You would write ``{CALL}``.",
        f"```\n{CALL}\n```",
        f"```json\n{CALL[11:-12]}\n```",
        f"For example:\n```xml\n{CALL}\n```\nThat adds.",
        f"~~~\n{CALL}",
        f"> {CALL}",
        f'You would write "{CALL}".',
        f"<thinking>{CALL}</thinking>It adds.",
        f"<THINK>{CALL}</THINK>It adds.",
        f"<code>{CALL}</code>",
        f"<!-- {CALL} -->",
        f"- > {CALL}",
        f"For example:\n\n    {CALL}\n\nThat adds.",
        f'<code class="xml">{CALL}</code>',
        f"<PRE lang=xml>{CALL}</PRE>",
        f"<example>{CALL}</example>",
        f"~~{CALL}~~",
        f"&lt;!-- {CALL} --&gt;",
        f"\\begin{{verbatim}}{CALL}\\end{{verbatim}}",
        f'They say "use {CALL} now".',
        f"They say “use {CALL} now”.",
        f"Man schreibt „{CALL}“.",
        f"「{CALL}」と書く。",
    ],
)
def test_a_call_that_is_thought_or_quoted_is_text(text: str) -> None:
    assert parse_tool_calls(text, ["add"]).calls == ()
    assert parse_tool_calls(text, ["add"]).text == text


#: One call in each family's form, of a tool with one argument.
WRITTEN = {
    "hermes": CALL,
    "qwen-coder": "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
    "glm": "<tool_call>add<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>",
    "phi": '<|tool_call|>[{"name": "add", "arguments": {"a": 1}}]<|/tool_call|>',
    "kimi": '<|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{"a": 1}<|tool_call_end|>',
    "deepseek": '<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{"a": 1}\n```<｜tool▁call▁end｜>',
    "llama": '<|python_tag|>{"name": "add", "parameters": {"a": 1}}',
    "mistral": '[TOOL_CALLS][{"name": "add", "arguments": {"a": 1}}]',
    "harmony": '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}',
}


@pytest.mark.parametrize("family", sorted(WRITTEN))
@pytest.mark.parametrize("around", ['You write "{}".', "You write '{}'.", "“{}”", '"Say {} to it"', "<pre>{}</pre>"])
def test_no_familys_call_in_quotation_marks_is_carried_out(family: str, around: str) -> None:
    """Before, quotation marks were known for one family only: seven others carried a quoted call out.

    Without the rule that text behind a call makes it invalid, the marks alone must do.
    """
    text = around.format(WRITTEN[family])
    modes: tuple[TextAroundCalls, ...] = ("before", "any")
    for allowed in modes:
        assert parse_tool_calls(text, ["add"], form(family), tools=[ADD], around=allowed).calls == ()


@pytest.mark.parametrize("family", sorted(WRITTEN))
@pytest.mark.parametrize(
    "around", ["Don't worry, it's done:\n\n{}", 'The "best" way: {}', 'I call "add".\n{}', "Users' wish: {}"]
)
def test_quotation_marks_elsewhere_do_not_hide_a_call(family: str, around: str) -> None:
    answer = parse_tool_calls(around.format(WRITTEN[family]), ["add"], form(family), tools=[ADD])
    assert [call["name"] for call in answer.calls] == ["add"]


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("hermes", '<tool_call>{"name": "add", "arguments": {}, "parameters": {"a": 2}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "add", "arguments": {"note": "\\ud800"}}</tool_call>'),
        (
            "qwen-coder",
            "<function=add><parameter=note><function=add><parameter=a>9</parameter></function></parameter></function>",
        ),
    ],
)
def test_a_call_that_has_two_readings_or_no_text_is_invalid(family: str, text: str) -> None:
    answer = parse_tool_calls(text, ["add"], form(family), tools=[ADD])
    assert (answer.calls, len(answer.invalid)) == ((), 1)


def test_a_fence_is_a_call_only_where_one_was_demanded() -> None:
    fenced = f"```json\n{CALL[11:-12]}\n```"
    assert parse_tool_calls(fenced, ["add"]).calls == ()
    assert [call["args"] for call in parse_tool_calls(fenced, ["add"], demanded=True).calls] == [{"a": 150}]
    assert parse_tool_calls(f"So:\n{fenced}", ["add"], demanded=True).calls == ()
    for choice, calls in (("auto", 0), (None, 0), ("any", 1), ("add", 1)):
        message = model(fenced).bind_tools([ADD], tool_choice=choice, strict=False).invoke("q")
        assert isinstance(message, AIMessage)
        assert len(message.tool_calls) == calls


def test_code_within_a_call_and_before_it_does_not_hide_it() -> None:
    arguments = {"note": "use `x` and\n```py\n1\n``` </tool_call> > y"}
    call = json.dumps({"name": "add", "arguments": arguments})
    answer = parse_tool_calls(f"I use `add`, it is ``a ` b`` long.\n<tool_call>{call}</tool_call>", ["add"])
    assert [each["args"] for each in answer.calls] == [arguments]
    assert answer.text == "I use `add`, it is ``a ` b`` long."


@pytest.mark.parametrize("family", sorted({*WRITTEN} - {"llama", "mistral", "harmony"}))
@pytest.mark.parametrize(
    "around",
    [
        "For example, one could call: {} This adds 1 to it.",
        "The format is {}, with the arguments as JSON.",
        "Do not call {}!",
        "{}\n\nwould add it. Shall I?",
        "First {} then {} and you are done.",
        "{}\n`that` is how.",
    ],
)
def test_a_call_with_text_behind_it_is_an_example_and_invalid(family: str, around: str) -> None:
    """In every family's form calls end the answer; text before them is common ("I look it up.")."""
    text = around.replace("{}", WRITTEN[family])
    count = around.count("{}")
    answer = parse_tool_calls(text, ["add"], form(family), tools=[ADD])
    assert (answer.calls, len(answer.invalid)) == ((), count)
    assert all("may be an example" in str(each["error"]) for each in answer.invalid)
    told = parse_tool_calls(text, ["add"], form(family), tools=[ADD], around="any")
    assert (len(told.calls), told.invalid) == (count, ())


@pytest.mark.parametrize("family", ["llama", "mistral", "harmony"])
def test_a_family_whose_calls_have_no_closing_mark_has_no_calls_with_text_behind_them(family: str) -> None:
    text = f"For example: {WRITTEN[family]} adds it."
    assert parse_tool_calls(text, ["add"], form(family), tools=[ADD]).calls == ()


@pytest.mark.parametrize("family", sorted(WRITTEN))
def test_text_before_a_call_is_allowed_unless_it_is_forbidden(family: str) -> None:
    text = f"I look it up.\n{WRITTEN[family]}"
    assert len(parse_tool_calls(text, ["add"], form(family), tools=[ADD]).calls) == 1
    alone = parse_tool_calls(text, ["add"], form(family), tools=[ADD], around="none")
    assert (alone.calls, len(alone.invalid)) == ((), 1)
    assert len(parse_tool_calls(WRITTEN[family], ["add"], form(family), tools=[ADD], around="none").calls) == 1


@pytest.mark.parametrize(
    ("setting", "text", "calls"),
    [
        ("before", f"I add.\n{CALL}", 1),
        ("before", f"{CALL} adds.", 0),
        ("none", f"I add.\n{CALL}", 0),
        ("none", f"<think>I add.</think>\n{CALL}\n", 1),
        ("any", f"{CALL} adds.", 1),
    ],
)
@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_a_chat_model_says_where_text_may_stand_beside_calls(setting: Any, text: str, calls: int, how: str) -> None:
    bound = model(text, text_around_calls=setting).bind_tools([ADD])
    message: Any = bound.invoke("q") if how == "invoke" else None
    for chunk in bound.stream("q") if how == "stream" else ():
        message = chunk if message is None else message + chunk
    assert (len(message.tool_calls), len(message.invalid_tool_calls)) == (calls, 1 - calls)


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(TEMPLATES)),
    st.lists(
        st.sampled_from(PIECES),
        max_size=30,
    ).map("".join),
)
def test_no_text_makes_a_reader_fail_or_call_what_was_not_offered(family: str, text: str) -> None:
    answer = parse_tool_calls(text, ["add"], form(family), tools=[ADD])
    assert all(call["name"] == "add" and isinstance(call["args"], dict) for call in answer.calls)
    assert all(isinstance(call["args"], str) for call in answer.invalid)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", ["`", "`a", "<tool_call>", "<think>", "> ", "[", "<function=", "```\n", "\n\n`", "“", "~~", ' "', "    "]
)
def test_hostile_texts_do_not_hold_the_reader_up(piece: str) -> None:
    for family in TEMPLATES:
        assert parse_tool_calls(piece * 4_000, ["add"], form(family)).calls == ()


# -- in a chat model -----------------------------------------------------------------------------


class TemplateEngine(AnsweringEngine):
    """Has a chat template with tools."""

    template = TEMPLATES["hermes"]

    @property
    def chat_template(self) -> str:
        return self.template

    def encode(self, prompt: Prompt) -> list[int]:
        return [*(prompt.question + json.dumps([dict(tool) for tool in prompt.tools])).encode()]


def model(text: str, template: str = TEMPLATES["hermes"], **settings: Any) -> ChatGuard:
    engine = TemplateEngine(lambda prompt, number: (text, 0.05), model=scripted_model(context_tokens=4000))
    engine.template = template
    return ChatGuard(engine=engine, scorer=confidence_scorer(engine.model), max_tokens=400, **settings)


@pytest.mark.parametrize("how", ["invoke", "stream"])
def test_a_tool_that_was_not_offered_is_an_invalid_call(how: str) -> None:
    bound = model('<tool_call>{"name": "sub", "arguments": {"a": 1}}</tool_call>').bind_tools([ADD])
    message: Any
    if how == "invoke":
        message = bound.invoke("q")
    else:
        message = AIMessageChunk("")
        for chunk in bound.stream("q"):
            message += chunk
    assert message.tool_calls == []
    assert [call["name"] for call in message.invalid_tool_calls] == ["sub"]


def test_the_calls_of_a_models_own_family_are_read() -> None:
    message = model('[TOOL_CALLS]add[ARGS]{"a": 1}', TEMPLATES["mistral"]).bind_tools([ADD]).invoke("q")
    assert isinstance(message, AIMessage)
    assert [call["args"] for call in message.tool_calls] == [{"a": 1}]


@pytest.mark.parametrize(
    "template",
    [
        "<|tool_call_start|>[add(a=1)]<|tool_call_end|>",  # LFM2
        '<|tool_call>call:add{a:<|"|>1<|"|>}<tool_call|>',  # Gemma 4
        "<|START_ACTION|>",  # Command A
        "{{ tools }}",
    ],
)
def test_a_family_whose_calls_are_not_read_gets_no_tools(template: str) -> None:
    with pytest.raises(ChatTemplateError, match="cannot parse the form"):
        model("x", template).bind_tools([ADD])
    with pytest.raises(ChatTemplateError, match="cannot parse the form"):
        model("x", template).invoke("q", tools=[ADD])


def test_the_thought_before_a_call_is_kept_beside_it() -> None:
    message = model(f"<think>I add.</think>\n{CALL}").bind_tools([ADD]).invoke("q")
    assert isinstance(message, AIMessage)
    assert (message.content, [call["args"] for call in message.tool_calls]) == ("", [{"a": 150}])
    assert message.additional_kwargs["reasoning_content"] == "I add."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_class_of_pydantics_first_version_is_validated(method: Any) -> None:
    from pydantic.v1 import BaseModel

    class Joke(BaseModel):
        """A joke."""

        setup: str
        stars: int

    def answer(written: str) -> Any:
        call = f'<tool_call>{{"name": "Joke", "arguments": {written}}}</tool_call>'
        chat = model(written if method == "json_schema" else call)
        return chat.with_structured_output(Joke, method=method, strict=False).invoke("q")

    assert answer('{"setup": "a", "stars": 3}') == Joke(setup="a", stars=3)
    with pytest.raises(ValueError, match="stars"):
        answer('{"setup": "a", "stars": "many"}')
