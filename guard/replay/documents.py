"""The difference between the documents of two policies, line by line. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

#: Unchanged lines that are shown before and after a change.
_AROUND = 3


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """One line of the difference.

    Attributes:
        sign: ``-`` for a line of the present policy alone, ``+`` for one of the proposed policy alone, ``=`` for one of
            both, and ``.`` where lines of both are left out.
        text: the line.
    """

    sign: Literal["-", "+", "=", "."]
    text: str


def compare_documents(present: str, proposed: str) -> tuple[PolicyLine, ...]:
    """Return the lines that differ, each with some lines around it; none if the documents are the same.

    Args:
        present, proposed: as `guard.policy.policy.Policy.document`.

    Examples:
        >>> [line.sign + line.text for line in compare_documents("mode: shadow\\nname: x", "mode: enforce\\nname: x")]
        ['-mode: shadow', '+mode: enforce', '=name: x']
    """
    old, new = present.splitlines(), proposed.splitlines()
    found: list[PolicyLine] = []
    end = 0
    for group in SequenceMatcher(None, old, new).get_grouped_opcodes(_AROUND):
        if group[0][1] > end:
            found.append(PolicyLine(".", ""))
        for kind, a, b, c, d in group:
            if kind == "equal":
                found += [PolicyLine("=", text) for text in old[a:b]]
                continue
            found += [PolicyLine("-", text) for text in old[a:b]] + [PolicyLine("+", text) for text in new[c:d]]
        end = group[-1][2]
    return (*found, PolicyLine(".", "")) if found and end < len(old) else tuple(found)
