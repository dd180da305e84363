"""Chat templates, rendered as transformers renders them, from strangers' files.

A template is a program that comes with the weights. It runs in jinja2's sandbox, sees plain JSON
values only, and has a budget: turns of loops and macro calls, seconds, and characters of output and
of text that it multiplies or joins. What the budget cannot see is a single call that pads or
replaces text out of all proportion; that ends in a memory error of this one request at worst.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from guard.errors import ChatTemplateError, InputError

#: What one rendering may use.
MAX_STEPS = 1_000_000
MAX_SECONDS = 5.0
MAX_CHARACTERS = 2**24


def render(
    template: str,
    messages: Iterable[Mapping[str, Any]],
    *,
    tools: Iterable[Mapping[str, Any]] = (),
    bos_token: str = "",
    eos_token: str = "",
    add_generation_prompt: bool = True,
) -> str:
    """The text that a chat template makes of messages.

    Args:
        template: jinja2 source, as in a model's ``tokenizer.chat_template``.
        messages: each with ``role`` and ``content``; JSON values only.
        tools: JSON-schema definitions; a template that takes none ignores them.
        bos_token: text of the begin-of-sequence token, for templates that write it themselves.
        eos_token: text of the end-of-sequence token.
        add_generation_prompt: end with the beginning of the assistant's turn.

    Raises:
        ChatTemplateError: the template is not valid, refuses the messages, fails on them, does what
            the sandbox forbids, or exceeds its budget.
        InputError: messages or tools hold something other than JSON values.
    """
    compiled = _compile(template)
    variables = {
        "messages": _plain(list(messages), "messages"),
        "tools": _plain(list(tools), "tools") or None,
        "documents": None,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
    }
    budget = _BUDGET.set(_Budget(MAX_STEPS, time.monotonic() + MAX_SECONDS))
    try:
        return _collect(compiled, variables)
    except Exception as error:  # a stranger's program may raise anything
        raise _explained(error) from error
    finally:
        _BUDGET.reset(budget)


def _collect(compiled: jinja2.Template, variables: Mapping[str, Any]) -> str:
    pieces, characters = [], 0
    for piece in compiled.generate(variables):
        characters += len(piece)
        _check_characters(characters)
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as error:
        raise ChatTemplateError(
            f"The chat template has a syntax error in line {error.lineno}",
            why=error.message or "",
            fix="Fix the model's chat template, or use a raw prompt",
        ) from error
    except Exception as error:  # nested too deeply for Python's own compiler, and the like
        raise ChatTemplateError(
            "The chat template cannot be compiled",
            why=f"{type(error).__name__}: {error}",
            fix="Fix the model's chat template, or use a raw prompt",
        ) from error


def _explained(error: Exception) -> ChatTemplateError:
    """What a failed rendering means, with the template's line where it is known."""
    line = _line_of(error)
    place = f" in line {line}" if line else ""
    if isinstance(error, _RefusedError):
        return ChatTemplateError(
            "The chat template refuses the messages",
            why=str(error),
            fix="Send roles and an order that this model's template takes",
        )
    if isinstance(error, _BudgetError):
        return ChatTemplateError(f"The chat template was stopped{place}", why=str(error))
    if isinstance(error, SecurityError):
        return ChatTemplateError(f"The chat template does what the sandbox forbids{place}", why=str(error))
    if isinstance(error, UndefinedError):
        return ChatTemplateError(
            f"The chat template uses something that is not defined{place}",
            why=str(error),
            fix="Check that each message has the keys that this template reads",
        )
    why = f"{type(error).__name__}: {error}"
    return ChatTemplateError(f"The chat template fails on these messages{place}", why=why)


def _line_of(error: Exception) -> int | None:
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


def _plain(value: Any, where: str) -> Any:
    """Rebuild from exact JSON types: other objects have methods that the sandbox knows nothing of."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):  # an enum's or another subclass's own methods stay behind
        return str.__str__(value)
    try:
        if isinstance(value, Mapping):
            return {_plain(key, where): _plain(item, where) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
            return [_plain(item, where) for item in value]
    except RecursionError as error:
        raise InputError(f"The {where} are nested too deeply") from error
    raise InputError(
        f"The {where} hold a {type(value).__name__}", fix="Use text, numbers, true/false, lists and mappings"
    )


# -- the budget --------------------------------------------------------------------------------


class _BudgetError(Exception):
    """The template used more than it may."""


class _RefusedError(TemplateError):
    """The template called ``raise_exception``."""


@dataclass(slots=True)
class _Budget:
    steps: int
    deadline: float


_BUDGET: ContextVar[_Budget] = ContextVar("chat_template_budget")


def _check_characters(characters: int) -> None:
    if characters > MAX_CHARACTERS:
        raise _BudgetError(f"it makes a text of more than {MAX_CHARACTERS} characters")


class _Metering(NodeTransformer):
    """Puts a step in front of every loop turn and macro body, and meters joined text (``~``)."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node.body.insert(0, _call("step", [], node.lineno))
        return self.generic_visit(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        node.body.insert(0, _call("step", [], node.lineno))
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Call(nodes.EnvironmentAttribute("joined"), node.nodes, [], None, None, lineno=node.lineno)


def _call(method: str, arguments: list[nodes.Expr], lineno: int) -> nodes.ExprStmt:
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None, lineno=lineno)
    return nodes.ExprStmt(call, lineno=lineno)


# -- the environment ---------------------------------------------------------------------------


class _GenerationBlocks(Extension):
    """``{% generation %}`` marks what to train on; for rendering it is its content."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


class _MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, with each template's steps and texts counted."""

    intercepted_binops = frozenset({"*", "**", "+"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Metering().visit(super()._parse(source, name, filename))
        return parsed.set_environment(self)  # type: ignore[return-value]

    def step(self) -> None:
        budget = _BUDGET.get()
        budget.steps -= 1
        if budget.steps < 0:
            raise _BudgetError(f"it takes more than {MAX_STEPS} loop turns")
        if time.monotonic() > budget.deadline:
            raise _BudgetError(f"it takes longer than {MAX_SECONDS:g} s")

    def joined(self, *parts: Any) -> str:
        texts = [str(part) for part in parts]
        _check_characters(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" or (operator == "*" and _bits(left) + _bits(right) > 4096):
            _check_number(operator, left, right)
        elif operator == "*":
            for items, times in ((left, right), (right, left)):
                if isinstance(items, str | list | tuple) and isinstance(times, int):
                    _check_characters(len(items) * times)
        elif isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
            _check_characters(len(left) + len(right))
        return super().call_binop(context, operator, left, right)


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _check_number(operator: str, left: Any, right: Any) -> None:
    """Whole numbers that would fill the memory."""
    bits = _bits(left) * abs(right) if operator == "**" and isinstance(right, int) else 4097
    if bits > 4096:
        raise _BudgetError("it computes a number of more than 4096 bits")


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@lru_cache(maxsize=1)
def _environment() -> _MeteredEnvironment:
    environment = _MeteredEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlocks, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals.pop("lipsum")  # makes text without end
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment
