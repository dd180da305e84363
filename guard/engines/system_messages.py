"""The system messages that guard asks its own questions with, where nobody gives another."""

from __future__ import annotations

#: Short answers are cheap to ask for and can be graded without another model.
SHORT_ANSWER_SYSTEM = "Answer with as few words as possible. No explanation."
NUMBER_SYSTEM = "Work the problem out step by step. End with a line that says 'Answer:' and the number."
BOXED_SYSTEM = "Work the problem out step by step. Put the final answer, and nothing else, in \\boxed{}."

#: All of them. A template without a system role gets these in the user's message; another's is an error.
OWN_SYSTEMS = frozenset({SHORT_ANSWER_SYSTEM, NUMBER_SYSTEM, BOXED_SYSTEM})
