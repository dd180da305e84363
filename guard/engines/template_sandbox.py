"""The jinja2 sandbox that chat templates run in, and what their failures mean.

The sandbox keeps a template from Python's internals; it does not bound time or memory, since single
calls (padding, number formats, joins, constants folded while compiling) can use any amount. Only
`guard.engines.template_process` runs it, in a process that the kernel bounds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError, UndefinedError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: What kind of failure: the template's text, its refusal, its bounds, the sandbox, or anything else.
FailureKind = Literal["syntax", "compile", "refused", "stopped", "sandbox", "undefined", "failed"]

#: Characters of a reason that are kept: a template can raise an error with a text of any length.
MAX_REASON = 1000


class RenderError(Exception):
    """A rendering that failed, in plain values that cross to another process.

    Attributes:
        kind: what kind of failure.
        line: the template's line, where it is known.
        why: the reason, at most `MAX_REASON` characters.
    """

    def __init__(self, kind: FailureKind, why: str, line: int | None = None) -> None:
        super().__init__(kind, why, line)
        self.kind, self.why, self.line = kind, why[:MAX_REASON], line


def render_template(template: str, variables: Mapping[str, Any], *, now: datetime, max_characters: int) -> str:
    """Render a template with its variables.

    Args:
        template: jinja2 source.
        variables: plain JSON values by name.
        now: what the template's clock (``strftime_now``) shows.
        max_characters: the longest text that is made.

    Raises:
        RenderError: the template is not valid, fails, or makes a longer text.
    """
    compiled = _compile(template)
    try:
        return _collect(compiled, {**variables, "strftime_now": now.strftime}, max_characters)
    except Exception as error:  # a stranger's program may raise anything
        raise _explained(error) from error


@lru_cache(maxsize=32)
def find_variables(template: str) -> frozenset[str]:
    """Return names that a template reads and does not set itself, `render_template`'s own included.

    Nothing of it is run, but constants are computed, whatever that takes.

    Raises:
        RenderError: the template is not valid.
    """
    environment = _environment()
    try:
        read = meta.find_undeclared_variables(environment.parse(template))
    except TemplateSyntaxError as error:
        raise RenderError("syntax", error.message or "", error.lineno) from error
    except MemoryError as error:
        raise _explained(error) from error
    except Exception as error:  # nested too deeply, and the like
        raise RenderError("compile", f"{type(error).__name__}: {error}") from error
    return frozenset(read - environment.globals.keys())


def _collect(compiled: jinja2.Template, variables: Mapping[str, Any], max_characters: int) -> str:
    pieces, characters = [], 0
    for piece in compiled.generate(variables):
        characters += len(piece)
        if characters > max_characters:
            raise RenderError("stopped", f"it makes a text of more than {max_characters} characters")
        pieces.append(piece)
    return "".join(pieces)


@lru_cache(maxsize=32)
def _compile(template: str) -> jinja2.Template:
    try:
        return _environment().from_string(template)
    except TemplateSyntaxError as error:
        raise RenderError("syntax", error.message or "", error.lineno) from error
    except MemoryError as error:
        raise _explained(error) from error
    except Exception as error:  # nested too deeply for Python's own compiler, and the like
        raise RenderError("compile", f"{type(error).__name__}: {error}") from error


class _RefusedError(TemplateError):
    """The template called ``raise_exception``."""


def _explained(error: Exception) -> RenderError:
    """Return what a failed rendering means, with the template's line where it is known."""
    if isinstance(error, RenderError):
        return error
    line = _find_line(error)
    if isinstance(error, _RefusedError):
        return RenderError("refused", str(error))
    if isinstance(error, MemoryError):
        return RenderError("stopped", "it takes more memory than it may have", line)
    if isinstance(error, SecurityError):
        return RenderError("sandbox", str(error), line)
    if isinstance(error, UndefinedError):
        return RenderError("undefined", str(error), line)
    return RenderError("failed", f"{type(error).__name__}: {error}", line)


def _find_line(error: Exception) -> int | None:
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == "<template>":
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


# -- the environment, as transformers sets it up -------------------------------------------------


class _GenerationBlocks(Extension):
    """``{% generation %}`` marks what to train on; for rendering it is its content."""

    tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _raise_exception(message: object) -> NoReturn:
    raise _RefusedError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike jinja2's own, without HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse_addresses(value: Any) -> Any:
    """Return what a template writes, unless it is the address of an object, which differs from process to process."""
    if not isinstance(value, _PLAIN) and _ADDRESS.search(str(value)):
        raise _RefusedError("it writes an object's address, so its prompts are never the same")
    return value


#: Values that anybody's text may be in.
_PLAIN = (str, int, float, list, tuple, dict)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+>")


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_GenerationBlocks, "jinja2.ext.loopcontrols"],
        finalize=_refuse_addresses,
    )
    environment.filters["tojson"] = _tojson
    environment.globals.pop("lipsum")  # its text is random, and so is what the filter chooses
    environment.filters.pop("random")
    environment.globals.update(raise_exception=_raise_exception)
    return environment
