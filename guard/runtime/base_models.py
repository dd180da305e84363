"""Prompts for base models, which have no chat template: solved examples, then a question that the model continues."""

from __future__ import annotations

from guard.records import Limits
from guard.scoring.provenance import Prompting

#: Last line of a multiple-choice question, here and in calibration.
CHOICE_INSTRUCTION = "Answer with the letter only."
#: String that ends a base model's answer.
COMPLETION_STOP = ("\n",)
#: Solved examples for base models, written for this purpose and part of no data set.
_EXAMPLES = (
    ("What colour is a ripe lemon?", "yellow"),
    ("What is 3 + 4?", "7"),
    (f"What do bees make?\nA. milk\nB. honey\nC. silk\nD. wool\n{CHOICE_INSTRUCTION}", "B"),
    ("Which animal says meow?", "cat"),
)


def completion_text(question: str) -> str:
    """Return the text that a base model continues with its answer to a question."""
    blocks = [f"Question: {asked}\nAnswer: {answer}" for asked, answer in _EXAMPLES]
    return "\n\n".join([*blocks, f"Question: {question}\nAnswer:"])


def fitted_limits(prompting: Prompting) -> Limits:
    """Return the limits of an answer in a scorer's calibration; a base model's ends with its line."""
    return Limits(max_tokens=prompting.max_tokens, stop=COMPLETION_STOP if prompting.completion else ())
