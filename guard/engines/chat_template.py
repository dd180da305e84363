"""Chat templates, rendered as transformers renders them, from strangers' files.

A template is a program that comes with the weights. It sees plain JSON values only, runs in jinja2's
sandbox (`guard.engines.template_sandbox`), and does so in a process of its own that the kernel bounds
in time and memory (`guard.engines.template_process`). Written here, because llama.cpp must give the same prompt, byte
for byte, without transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, time
from typing import Any

from guard.engines.template_process import RenderRequest, render_bounded, variables_bounded
from guard.engines.template_sandbox import RenderError
from guard.errors import ChatTemplateError, InputError, did_you_mean

#: What one rendering may use, beside the memory of its process.
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
    options: Mapping[str, Any] | None = None,
    now: datetime | None = None,
) -> str:
    """Render messages with a chat template.

    Args:
        template: jinja2 source, as in a model's ``tokenizer.chat_template``.
        messages: each with ``role`` and ``content``; JSON values only.
        tools: JSON-schema definitions; a template that takes none ignores them.
        bos_token: text of the begin-of-sequence token, for templates that write it themselves.
        eos_token: text of the end-of-sequence token.
        add_generation_prompt: end with the beginning of the assistant's turn.
        options: further variables that the template reads, such as ``{"enable_thinking": False}``.
        now: what the template's clock shows; by default the time it is.

    Raises:
        ChatTemplateError: the template is not valid, refuses the messages, fails on them, does what
            the sandbox forbids, or exceeds its bounds.
        InputError: messages, tools or options hold something other than JSON values, or the template
            reads no such option.
        EngineError: the process that renders cannot be started.
    """
    check_options(template, options or {})
    variables = {
        **_plain(dict(options or {}), "template options"),
        "messages": _plain(list(messages), "messages"),
        "tools": _plain(list(tools), "tools") or None,
        "documents": None,
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": add_generation_prompt,
    }
    try:
        return render_bounded(RenderRequest(template, variables, now or datetime.now(), MAX_SECONDS, MAX_CHARACTERS))
    except RecursionError as error:
        raise InputError("The messages are nested too deeply") from error
    except RenderError as error:
        raise _explained(error) from error


def reads_the_clock(template: str) -> bool:
    """Return whether a template may write the date: only ``strftime_now`` shows it one."""
    return "strftime_now" in template


def clock(date: str | None) -> datetime:
    """Midnight of a date, by default today's: what an engine's template is shown for as long as it lives.

    Raises:
        InputError: not a date in the form 2026-11-25.
    """
    try:
        return datetime.strptime(date, "%Y-%m-%d") if date is not None else datetime.combine(datetime.now(), time())
    except (ValueError, TypeError) as error:
        raise InputError(f"template_date is no date: {date!r:.40}", fix="Write it as 2026-11-25") from error


def after_answer(asked: Callable[..., str]) -> str:
    """Return what a chat template writes after an answer, which begins with the end that the model has learnt.

    Args:
        asked: `render` with everything but the messages.
    """
    turns = [{"role": "user", "content": "Question"}, {"role": "assistant", "content": "Answer"}]
    # Where a template writes no end, as that of GLM, a model ends with the mark of the next turn.
    for following in ([], [{"role": "user", "content": "Next"}]):
        try:
            text = asked([*turns, *following], add_generation_prompt=False)
        except ChatTemplateError:  # a template that takes no answers says nothing about their end
            return ""
        if after := text.rpartition("Answer")[2].lstrip():
            return after
    return ""


#: What is said of each kind of failure, and what to do about it.
_SAID = {
    "syntax": ("has a syntax error", "Fix the model's chat template, or use a raw prompt"),
    "compile": ("cannot be compiled", "Fix the model's chat template, or use a raw prompt"),
    "refused": ("refuses the messages", "Send roles and an order that this model's template takes"),
    "stopped": ("was stopped", ""),
    "sandbox": ("does what the sandbox forbids", ""),
    "undefined": (
        "uses something that is not defined",
        "Check that each message has the keys that this template reads",
    ),
    "failed": ("fails on these messages", ""),
}
#: What `render` itself gives every template.
_GIVEN = frozenset(
    {"messages", "tools", "documents", "bos_token", "eos_token", "add_generation_prompt", "strftime_now"}
)


def check_options(template: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a template does not read: it would ignore them without a word.

    Raises:
        InputError: an option that the template does not read, or that is not the caller's to set.
    """
    if not options:
        return
    known = option_names(template)
    for name in options:
        if name not in known:
            raise InputError(
                f"The model's chat template has no option '{name}'",
                fix=did_you_mean(str(name), known) if known else "Leave it out: this template has no options",
            )


def option_names(template: str) -> tuple[str, ...]:
    """Return the variables that a template reads and that a caller may set, in alphabetical order.

    Raises:
        ChatTemplateError: the template is not valid.
    """
    try:
        return tuple(sorted(variables_bounded(template, max_seconds=MAX_SECONDS) - _GIVEN))
    except RenderError as error:
        raise _explained(error) from error


def _explained(error: RenderError) -> ChatTemplateError:
    """Return what a failed rendering means, with the template's line where it is known."""
    what, fix = _SAID[error.kind]
    place = f" in line {error.line}" if error.line else ""
    return ChatTemplateError(f"The chat template {what}{place}", why=error.why, fix=fix)


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
