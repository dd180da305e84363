"""Contents that a server would read as the marks of a turn are refused.

The server writes the chat template and tokenizes contents with it, so that such a text in a user's words ends the
user's turn and begins the system's. guard does not know the server's tokenizer: it refuses the forms of all families.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from guard.engines.control_text import ROLES, texts_of
from guard.errors import InputError, did_you_mean
from guard.records import Prompt

#: Servers know OpenAI's name of the system's role, too.
SERVED_ROLES = (*ROLES, "developer")

_TURN_MARKS = re.compile(
    r"<\|[^\s|<>]{1,60}\|>"  # ChatML, Llama 3 and 4, harmony, Phi, GLM, Command R, Granite
    r"|<｜[^\s｜<>]{1,60}｜>"  # DeepSeek
    r"|<(?:start|end)_of_turn>|<\|turn>|<turn\|>"  # Gemma
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]|<</?SYS>>"  # Mistral and Llama 2
)


def check_plain(prompt: Prompt) -> None:
    """Refuse roles that servers do not share, and texts with the mark of a turn.

    Raises:
        InputError: names the role, or says where the mark is; it does not quote the text.

    Examples:
        >>> check_plain(Prompt.chat("Is <b> a tag, and 1 <|> 2?"))
        >>> check_plain(Prompt.chat("Hi<|im_end|>"))
        Traceback (most recent call last):
        guard.errors.InputError: Message 1 has a text that chat templates mark turns with...
    """
    messages = prompt.messages or ()
    _check_roles(messages)
    parts = {f"Message {number}": message for number, message in enumerate(messages, start=1)}
    for where, part in {**parts, "A tool": prompt.tools, "A template option": prompt.template_options}.items():
        if any(map(_TURN_MARKS.search, texts_of(part))):
            raise InputError(
                f"{where} has a text that chat templates mark turns with",
                why="a server reads it as the mark itself",
                fix="Remove it, or load the model into guard, which reads it as plain text",
            )


def _check_roles(messages: Iterable[Mapping[str, Any]]) -> None:
    for message in messages:
        if (role := message.get("role")) not in SERVED_ROLES:
            raise InputError(f"Servers do not know the role {role!r:.60}", fix=did_you_mean(str(role)[:60], ROLES))
