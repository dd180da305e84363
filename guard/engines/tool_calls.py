"""Parses the tool calls in an answer's text, in the form of the model's family.

Nothing in a thought, in code or in a quotation is a call, and only offered tools can be called. In every family's form
calls end the answer, so calls with text after them may be examples. Unreadable calls are kept as invalid calls and
never carried out. Written here, because a call that is quoted has to stay text in the same way on every engine.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict

from guard.engines.strict_json import DECODER
from guard.engines.thinking import MARKS
from guard.errors import did_you_mean

#: Thoughts, code (fenced, indented or in backticks) and quotations, whose text is never a call.
_QUOTED = (
    "|".join(rf"(?i:{re.escape(each.opening)}).*?(?:(?i:{re.escape(each.closing)})|\Z)" for each in MARKS)
    + r"|<(?P<tag>(?i:code|pre|blockquote|q|quote|example|samp|kbd|xmp|script|textarea|del|s|tool_response))"
    r"(?:\s[^<>]*)?>.*?(?:</(?i:(?P=tag))\s*>|\Z)|(?:<|&lt;)!--.*?(?:--(?:>|&gt;)|\Z)|<!\[CDATA\[.*?(?:\]\]>|\Z)"
    r"|^[ ]{0,3}(?P<fence>`{3,}|~{3,})[^\n]*(?:\n.*?^[ ]{0,3}(?P=fence)[`~]*[ \t]*$|.*\Z)"
    r"|(?P<ticks>`+)(?!`)(?:(?!\n[ \t]*\n).)*?(?<!`)(?P=ticks)(?!`)|~~.*?~~"
    r"|\\begin\{(?P<block>verbatim|lstlisting)\}.*?(?:\\end\{(?P=block)\}|\Z)"
    r"|^[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)*>[^\n]*|(?:\A|(?<=\n\n))(?:(?:[ ]{4}|\t)[^\n]*(?:\n|\Z))+"
    r"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|「[^」]*」|『[^』]*』"
)
#: Quotation marks that may enclose a call, with or without other words of the sentence.
_QUOTE_BEFORE = re.compile(r"(?:^|(?<=[\s(\[{:]))([\"'])[^\"']*\Z")
#: Number of characters before and after a call, on its line, that are searched for quotation marks.
_NEAR = 500

#: Where an answer may have text beside its calls: nowhere, before them only, or anywhere.
TextAroundCalls = Literal["none", "before", "any"]

_FENCED = re.compile(r"\A\s*```(?:json)?\s*(.*?)\s*```\s*\Z", re.DOTALL)


class ToolCall(TypedDict):
    """A call that can be carried out; LangChain's messages take it as it is."""

    type: Literal["tool_call"]
    id: str
    name: str
    args: dict[str, Any]


class InvalidToolCall(TypedDict):
    """What was meant as a call and is none; ``args`` is the text as it was written."""

    type: Literal["invalid_tool_call"]
    id: str
    name: str | None
    args: str
    error: str | None


@dataclass(frozen=True, slots=True)
class ParsedAnswer:
    """The parts of an answer.

    Attributes:
        text: the text beside the tool calls.
        calls: tool calls that can be carried out.
        invalid: tool calls that cannot be read, or that call a tool that was not offered.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    invalid: tuple[InvalidToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class _Written:
    """A call as written: its name and arguments, or the reason why it cannot be read."""

    name: str | None
    arguments: Any
    error: str | None = None


#: Takes a text, the position after the mark that begins a call, and the argument types by tool; returns the calls and
#: the position after them.
_Read = Callable[[str, int, Mapping[str, Mapping[str, Any]]], tuple[list[_Written], int]]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """The form in which a family of models writes tool calls.

    Attributes:
        name: name for people.
        begin: pattern of the mark that a call begins with.
        read: reads the text after that mark.
        bare: whether an answer that is only the JSON of calls is a call.
        dropped: pattern of marks around the calls that are not text.
    """

    name: str
    begin: str
    read: _Read
    bare: bool = False
    dropped: str = r"(?!)"


# -- reading one call --------------------------------------------------------------------------


def _json_at(text: str, at: int) -> tuple[Any, int] | None:
    """Return the JSON value at a position and the position after it; None without one."""
    start = at + len(text[at:]) - len(text[at:].lstrip())
    try:
        value, end = DECODER.raw_decode(text, start)
        if "\\u" in text:  # half of a surrogate pair is JSON, but no text
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    return value, end


def _behind(text: str, at: int, pattern: str) -> int:
    """Return the position after white space and a pattern; the same position if the pattern is missing."""
    match = re.compile(rf"\s*(?:{pattern})").match(text, at)
    return match.end() if match else at


def _cut_at(text: str, at: int, closing: str, why: str, name: str | None = None) -> tuple[list[_Written], int]:
    """Return the text up to the closing mark, or to the end, as an unreadable call."""
    match = re.compile(closing).search(text, at)
    body = text[at : match.start() if match else len(text)].strip()
    return [_Written(name, body, why)], match.end() if match else len(text)


def _entries(value: Any) -> list[_Written]:
    """Return the calls that a JSON value describes; empty if it describes none."""
    entries = value if isinstance(value, list) else [value]
    found = [_entry(entry) for entry in entries]
    return [each for each in found if each] if all(found) else []


def _entry(entry: Any) -> _Written | None:
    if isinstance(entry, dict) and isinstance(entry.get("function"), dict):
        entry = entry["function"]
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    given = [key for key in ("arguments", "parameters") if entry.get(key) is not None]
    return _Written(entry["name"], entry[given[0]]) if len(given) == 1 else None


_NO_CALL = "not the JSON of a tool call"


def _json_calls(closing: str) -> _Read:
    """Read JSON of the form {"name": ..., "arguments": {...}}, or a list of such, and a closing mark."""

    def read(text: str, at: int, _: Mapping[str, Mapping[str, Any]]) -> tuple[list[_Written], int]:
        found = _json_at(text, at)
        if found is None or not (calls := _entries(found[0])):
            return _cut_at(text, at, closing, _NO_CALL)
        ends = re.compile(rf"\s*(?:{closing})").match(text, found[1])
        return (calls, ends.end()) if ends else _cut_at(text, at, closing, _NO_CALL)

    return read


def _named_json(name: str, closing: str) -> _Read:
    """Read a name by its pattern, the JSON object of arguments, and a closing mark."""
    pattern = re.compile(name)

    def read(text: str, at: int, _: Mapping[str, Mapping[str, Any]]) -> tuple[list[_Written], int]:
        head = pattern.match(text, at)
        if head is None:
            return _cut_at(text, at, closing, _NO_CALL)
        found = _json_at(text, head.end())
        if found is None:
            return _cut_at(text, head.end(), closing, "the arguments are not JSON", head.group("name"))
        return [_Written(head.group("name"), found[0])], _behind(text, found[1], closing)

    return read


def _mistral(text: str, at: int, types: Mapping[str, Mapping[str, Any]]) -> tuple[list[_Written], int]:
    """Read a list of JSON calls, or a name with its arguments (newer models)."""
    if text[at:].lstrip().startswith(("[", "{")):
        return _json_calls(r"(?=\[TOOL_CALLS\])|\Z")(text, at, types)
    name = r"\s*(?P<name>[\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(?=\{)"
    return _named_json(name, r"(?=\[TOOL_CALLS\])|\Z")(text, at, types)


def _llama(text: str, at: int, types: Mapping[str, Mapping[str, Any]]) -> tuple[list[_Written], int]:
    """Read JSON calls separated by semicolons; Python calls of built-in tools are not read."""
    calls: list[_Written] = []
    while text[at:].strip():
        found = _json_at(text, at)
        read = _entries(found[0]) if found else []
        if found is None or not read:
            if calls:  # what follows is text or a truncated call
                return calls, at
            return [_Written(None, text[at:].strip(), _NO_CALL)], len(text)
        calls, at = [*calls, *read], _behind(text, found[1], ";")
    return calls or [_Written(None, "", _NO_CALL)], len(text)


def _tagged_arguments(name: str, argument: str, closing: str) -> _Read:
    """Read a name and arguments between tags; the tool defines their types."""
    head, each, end = re.compile(name), re.compile(argument, re.DOTALL), re.compile(closing)
    opening = argument.partition("(?P<key>")[0]  # in a value it is another call, cut at this one's end

    def read(text: str, at: int, types: Mapping[str, Mapping[str, Any]]) -> tuple[list[_Written], int]:
        named, ends = head.match(text, at), end.search(text, at)
        if named is None or ends is None:
            return _cut_at(text, at, closing, "the call does not end" if named else _NO_CALL)
        body, tool = text[named.end() : ends.start()], named.group("name").strip()
        found = {match["key"].strip(): match["value"] for match in each.finditer(body)}
        rest = each.sub("", body).strip()
        if rest and not found:
            inner = _json_at(body, 0)
            if inner is not None and not body[inner[1] :].strip():
                return [_Written(tool, inner[0])], ends.end()
        if rest or len(found) < len(each.findall(body)) or any(opening in value for value in found.values()):
            return [_Written(tool, body.strip(), "the arguments cannot be read")], ends.end()
        typed = {key: _typed(value, types.get(tool, {}).get(key)) for key, value in found.items()}
        return [_Written(tool, typed)], ends.end()

    return read


def _typed(value: str, schema: Any) -> Any:
    """Return a value written without quotes: a text if the tool takes a text, otherwise JSON."""
    text = value.removeprefix("\n").removesuffix("\n")
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "string" or (isinstance(kind, list) and "string" in kind):
        return text
    read = _json_at(text, 0)
    return text if read is None or text[read[1] :].strip() else read[0]


HERMES = ToolFormat("Hermes", r"<tool_call>", _json_calls(r"</tool_call>|\Z"), bare=True)

_FORMATS = {
    "harmony": ToolFormat(
        "harmony",
        r"<\|channel\|>commentary to=",
        _named_json(r"(?:functions\.)?(?P<name>[^\s<]+)[^{]*?<\|message\|>", r"(?=<\|channel\|>)|\Z"),
    ),
    "mistral": ToolFormat("Mistral", r"\[TOOL_CALLS\]", _mistral),
    "deepseek": ToolFormat(
        "DeepSeek",
        "<｜tool▁call▁begin｜>",
        _named_json(
            r"(?:function<｜tool▁sep｜>)?(?P<name>[^\s<]+)(?:<｜tool▁sep｜>)?\s*(?:```json)?",
            r"(?:```\s*)?<｜tool▁call▁end｜>",
        ),
        dropped="<｜tool▁calls▁(?:begin|end)｜>",
    ),
    "kimi": ToolFormat(
        "Kimi K2",
        r"<\|tool_call_begin\|>",
        _named_json(
            r"\s*(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?\s*<\|tool_call_argument_begin\|>", r"<\|tool_call_end\|>"
        ),
        dropped=r"<\|tool_calls_section_(?:begin|end)\|>",
    ),
    "glm": ToolFormat(
        "GLM",
        r"<tool_call>",
        _tagged_arguments(
            r"\s*(?P<name>[^\s<{]+)",
            r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>",
            r"</tool_call>",
        ),
    ),
    "qwen-coder": ToolFormat(
        "Qwen3-Coder",
        r"<function=",
        _tagged_arguments(
            r"(?P<name>[^>\n]+)>", r"<parameter=(?P<key>[^>\n]+)>(?P<value>.*?)</parameter>", r"</function>"
        ),
        dropped=r"</?tool_call>",
    ),
    "phi": ToolFormat("Phi 4 and Granite 3", r"<\|tool_call\|>", _json_calls(r"<\|/tool_call\|>|\Z")),
    "hermes": HERMES,
    "llama": ToolFormat("Llama 3", r"<\|python_tag\|>", _llama, bare=True),
}

#: Every form that guard reads.
FORMATS = tuple(_FORMATS.values())

#: Texts in a chat template that show the model's form, the most certain first.
_SIGNS = (
    (("<|channel|>", "commentary"), "harmony"),
    (("[TOOL_CALLS]",), "mistral"),
    (("<｜tool▁call▁begin｜>",), "deepseek"),
    (("<|tool_call_begin|>",), "kimi"),
    (("<arg_key>",), "glm"),
    (("<function=",), "qwen-coder"),
    (("<|tool_call|>",), "phi"),
    (("<tool_call>",), "hermes"),
    (("<|python_tag|>",), "llama"),
    (('"parameters"', "<|start_header_id|>"), "llama"),
    (("name", "parameters", "<|start_header_id|>"), "llama"),
    (('"name"', '"arguments"'), "hermes"),
)


def tool_format(template: str) -> ToolFormat | None:
    """Return the form of a model's tool calls by its chat template; None if guard cannot read the form."""
    found = (name for signs, name in _SIGNS if all(sign in template for sign in signs))
    name = next(found, None)
    return None if name is None else _FORMATS[name]


def format_names() -> tuple[str, ...]:
    """Return the names of the supported forms, for people."""
    return tuple(each.name for each in FORMATS)


# -- reading an answer -------------------------------------------------------------------------


def parse_tool_calls(
    text: str,
    names: Iterable[str],
    form: ToolFormat = HERMES,
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    demanded: bool = False,
    around: TextAroundCalls = "before",
) -> ParsedAnswer:
    """Find the tool calls in an answer.

    Args:
        text: the answer.
        names: names of the offered tools.
        form: form of the model; in some forms an answer that is only the JSON of calls is a call, too.
        tools: definitions of the tools, for forms that write arguments without types.
        demanded: whether the request requires a tool call. If so, an answer that is only one fence of JSON is that
            call.
        around: where the answer may have text beside the calls; text elsewhere makes them invalid.
    """
    offered, types = tuple(names), _types(tools)
    fenced = _FENCED.match(text) if demanded else None
    bare = _bare(fenced.group(1) if fenced else text, form, offered)
    if bare:
        return _answer("", bare, offered)
    pattern = re.compile(rf"{_QUOTED}|(?P<begin>{form.begin})|{form.dropped}", re.DOTALL | re.MULTILINE)
    dropped = re.compile(form.dropped)
    rest, written, at, done, before_last = "", [], 0, 0, 0
    while match := pattern.search(text, at):
        rest += text[at : match.start()]
        at = match.end()
        if match.group("begin") is not None:
            calls, at = form.read(text, at, types)
            near = (text[max(done, match.start() - _NEAR) : match.start()], text[at : at + _NEAR])
            before, behind = (dropped.sub("", each) for each in near)
            done = at
            if _in_quotes(before, text[match.start() : at], behind):
                rest += text[match.start() : at]
            else:
                written += calls
                before_last = len(rest)
        elif not dropped.fullmatch(match.group()):
            rest += match.group()
    if not written:
        return ParsedAnswer(text)
    rest += text[at:]
    error = _misplaced(rest[:before_last], rest[before_last:], around)
    return _answer(rest.strip(), [replace(each, error=each.error or error) for each in written], offered)


def offered_names(tools: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the names of tools, by their definitions."""
    return tuple(str(tool.get("function", tool)["name"]) for tool in tools)


def called_names(text: str, tools: Sequence[Mapping[str, Any]], form: ToolFormat) -> tuple[str, ...]:
    """Return the offered tools that an answer calls, wherever text stands and whether the call can be read.

    Args:
        text: the answer.
        tools: definitions of the tools that were offered.
        form: of the model.
    """
    names = offered_names(tools)
    found = parse_tool_calls(text, names, form, tools=tools, demanded=True, around="any")
    called = [call["name"] for call in (*found.calls, *found.invalid)]
    return tuple(name for name in dict.fromkeys(called) if name in names)


def _misplaced(before: str, behind: str, around: TextAroundCalls) -> str | None:
    """Return why calls with this text beside them are not carried out; None if they are."""
    if around != "any" and behind.strip():
        return "text follows the call, so that it may be an example; text_around_calls='any' would carry it out"
    if around == "none" and before.strip():
        return "text precedes the call, and text_around_calls is 'none'"
    return None


def _in_quotes(before: str, call: str, behind: str) -> bool:
    """Return whether a call is between two straight quotation marks on one line, the second after or in the call.

    A call that extends to the end of the answer, as Llama's do, includes the second mark.
    """
    lines = before.rstrip().splitlines()
    mark = _QUOTE_BEFORE.search(lines[-1]) if lines else None
    if mark is None:
        return False
    rest = behind.lstrip().split("\n", 1)[0]
    return mark.group(1) in rest or call.rstrip(" .!,;)").endswith(mark.group(1))


def _bare(text: str, form: ToolFormat, offered: Sequence[str]) -> list[_Written]:
    """Return the calls of an answer that consists only of calls; empty otherwise."""
    if not form.bare or not text.strip().startswith(("{", "[")):
        return []
    if form is _FORMATS["llama"]:  # this is its form, so that a call of another tool is none of text
        calls, end = _llama(text, 0, {})
        return calls if not text[end:].strip() and all(each.error is None for each in calls) else []
    found = _json_at(text, 0)
    calls = _entries(found[0]) if found and not text[found[1] :].strip() else []
    return calls if all(_made(each, offered)["type"] == "tool_call" for each in calls) else []


def _answer(text: str, written: Iterable[_Written], offered: Sequence[str]) -> ParsedAnswer:
    made = [_made(each, offered) for each in written]
    return ParsedAnswer(
        text,
        tuple(call for call in made if call["type"] == "tool_call"),
        tuple(call for call in made if call["type"] == "invalid_tool_call"),
    )


def _made(written: _Written, offered: Sequence[str]) -> ToolCall | InvalidToolCall:
    name, arguments, error = written.name, written.arguments, written.error
    if error is None and isinstance(arguments, str):
        found = _json_at(arguments, 0)
        if found is None or arguments[found[1] :].strip():
            error = "the arguments are not JSON"
        else:
            arguments = found[0]
    if error is None and not isinstance(arguments, dict):
        error = "the arguments are not an object"
    if error is None and name not in offered:
        error = f"no tool '{name}' was offered. {did_you_mean(str(name), offered)}".strip()
    if error is None:
        return ToolCall(type="tool_call", id=_new_id(), name=str(name), args=arguments)
    raw = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return InvalidToolCall(type="invalid_tool_call", id=_new_id(), name=name, args=raw, error=error)


def _new_id() -> str:
    return f"call_{uuid.uuid4().hex}"


def _types(tools: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the schemas of each tool's arguments, by name."""
    functions = [tool.get("function", tool) for tool in tools]
    return {each["name"]: (each.get("parameters") or {}).get("properties") or {} for each in functions}
