"""System messages for chat templates that take none (Gemma 2's, some of Mistral's).

Such a template raises an error, or leaves the message out without a word. guard's own system messages
then go in front of the user's first message; one that a caller wrote is an error, since the caller may
rely on its being a system message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Literal

from guard.engines.chat_template import render
from guard.engines.system_messages import OWN_SYSTEMS
from guard.errors import ChatTemplateError
from guard.records import Prompt

Support = Literal["taken", "refused", "left out"]


def with_system_placed(prompt: Prompt, template: str, *, bos_token: str, eos_token: str) -> Prompt:
    """Return the prompt in a form that its template takes.

    Args:
        prompt: chat messages.
        template: jinja2 source.
        bos_token, eos_token: as for `render`.

    Raises:
        ChatTemplateError: the template takes no system message, and this one is not guard's own.
    """
    first, *rest = prompt.messages or ({},)
    if first.get("role") != "system" or system_support(template, bos_token, eos_token) == "taken":
        return prompt
    if first["content"] in OWN_SYSTEMS and any(turn["role"] == "user" for turn in rest):
        return replace(prompt, messages=tuple(_in_front(first["content"], rest)))
    raise ChatTemplateError(
        "The chat template takes no system message",
        why=f"a system message is {system_support(template, bos_token, eos_token)} by it",
        fix="Leave it out (--system '' on the command line, system='' in Python), or write it into the user's message",
    )


def _in_front(system: str, turns: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    at = next(number for number, turn in enumerate(turns) if turn["role"] == "user")
    return [*turns[:at], {**turns[at], "content": f"{system}\n\n{turns[at]['content']}"}, *turns[at + 1 :]]


@lru_cache(maxsize=32)
def system_support(template: str, bos_token: str, eos_token: str) -> Support:
    """Return what a template does with a system message, found by rendering small chats."""

    def asked(*systems: str) -> str:
        turns = [*({"role": "system", "content": text} for text in systems), {"role": "user", "content": "Question"}]
        return render(template, turns, bos_token=bos_token, eos_token=eos_token)

    if _fails(asked):  # for a reason of its own, which the prompt itself will show
        return "taken"
    if _fails(lambda: asked("One")):
        return "refused"
    return "left out" if asked("One") == asked("Two") else "taken"


def _fails(render_one: Callable[[], str]) -> bool:
    try:
        render_one()
    except ChatTemplateError:
        return True
    return False
