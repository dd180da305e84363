"""Contents that a server would read as the marks of a turn are refused.

The server writes the chat template and tokenizes contents with it, so that such a text in a user's words ends the
user's turn and begins the system's. guard does not know the server's tokenizer, so it refuses the forms of all families
listed here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from guard.engines.control_text import ROLES, collect_texts
from guard.errors import InputError, did_you_mean
from guard.records import Prompt

#: Servers know OpenAI's name of the system's role, too.
SERVED_ROLES = (*ROLES, "developer")

_TURN_MARKS = re.compile(
    r"<\|[^\s|<>]{1,60}\|>"  # ChatML, Llama 3 and 4, harmony, Phi, GLM, Command R, Granite
    r"|<｜[^\s｜<>]{1,60}｜>"  # DeepSeek
    r"|<(?:start|end)_of_turn>|<\|turn>|<turn\|>|<[be]os>"  # Gemma
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_RESULTS|TOOL_CALLS)\]|<</?SYS>>"  # Mistral and Llama 2
    r"|\[\|[^\s|\[\]]{1,60}\|\]"  # EXAONE
    r"|\]~!?b\[|\]~b\]|\[e~\[|<(?:beginning|end)_of_sentence>"  # MiniMax
    r"|<seed:[a-z_]{1,30}>"  # Seed-OSS
    r"|<SPECIAL_\d{1,4}>|<extra_id_\d{1,3}>"  # Nemotron
    r"|<role>\s*\w{1,20}\s*</role>"  # Ling and Ring
    r"|<reserved_\d{1,4}>|\[unused\d{1,4}\]|<(?:BOS|EOS)_TOKEN>"  # Baichuan, Pangu, Command R
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
        if any(map(_has_mark, collect_texts(part))):
            raise InputError(
                f"{where} has a text that chat templates mark turns with",
                why="a server reads it as the mark itself",
                fix="Remove it, or load the model into guard, which reads it as plain text",
            )


def _has_mark(text: str) -> bool:
    """Return whether a text has a mark, also as a tokenizer reads it that normalises texts first."""
    return bool(_TURN_MARKS.search(text) or _TURN_MARKS.search(_normalised(text)))


def _normalised(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFKC", text) if unicodedata.category(each) != "Cf")


def _check_roles(messages: Iterable[Mapping[str, Any]]) -> None:
    for message in messages:
        if (role := message.get("role")) not in SERVED_ROLES:
            raise InputError(f"Servers do not know the role {role!r:.60}", fix=did_you_mean(str(role)[:60], ROLES))
