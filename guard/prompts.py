"""How questions are put to a model: as chat messages, or as a text to continue.

Calibration and use must ask alike, so there is one way for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from guard.questions import LETTERS, Question
from guard.records import Prompt
from guard.system_messages import SHORT_ANSWER_SYSTEM

_CHOICE_INSTRUCTION = "Answer with the letter only."
#: What ends a base model's answer.
COMPLETION_STOP = ("\n",)
#: Solved examples for base models, made for this purpose: in no data set.
_EXAMPLES = (
    ("What colour is a ripe lemon?", "yellow"),
    ("What is 3 + 4?", "7"),
    (f"What do bees make?\nA. milk\nB. honey\nC. silk\nD. wool\n{_CHOICE_INSTRUCTION}", "B"),
    ("Which animal says meow?", "cat"),
)


def question_prompt(
    question: Question, *, system: str = SHORT_ANSWER_SYSTEM, template_options: Mapping[str, Any] | None = None
) -> Prompt:
    """What the model is asked: the passage if there is one, the question, then lettered choices.

    Args:
        question: to ask.
        system: the system message; the empty string for none.
        template_options: variables of the model's chat template.
    """
    parts = [question.context, ""] if question.context else []
    parts.append(question.question)
    if question.choices:
        parts += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
        parts.append(_CHOICE_INSTRUCTION)
    return Prompt.chat("\n".join(parts), system=system or None, template_options=template_options)


def completion_prompt(question: Question) -> Prompt:
    """The same for a base model, which continues a text: solved examples, then the question.

    The examples are of the kinds that there are (open, number, choice); an answer ends with its line.
    """
    content = (question_prompt(question, system="").messages or ())[0]["content"]
    return Prompt.raw(completion_text(content))


def completion_text(question: str) -> str:
    """The text that a base model continues with its answer to a question."""
    blocks = [f"Question: {asked}\nAnswer: {answer}" for asked, answer in _EXAMPLES]
    return "\n\n".join([*blocks, f"Question: {question}\nAnswer:"])
