"""Prompts for base models, which have no chat template: solved examples, then a question that the model continues."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from guard.errors import InputError
from guard.records import Limits, ModelInfo, Prompt
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
_NO_TEMPLATE = sha256(b"").hexdigest()


def is_base_model(model: ModelInfo) -> bool:
    """Return whether a model has no chat template."""
    return model.chat_template_sha256 == _NO_TEMPLATE


def completion_text(question: str) -> str:
    """Return the text that a base model continues with its answer to a question."""
    blocks = [f"Question: {asked}\nAnswer: {answer}" for asked, answer in _EXAMPLES]
    return "\n\n".join([*blocks, f"Question: {question}\nAnswer:"])


def put_as_fitted(prompt: Prompt, prompting: Prompting) -> Prompt:
    """Return a prompt as a scorer's calibration puts it: a question goes behind solved examples if those did.

    A raw text is the caller's own, and stays as it is.

    Raises:
        InputError: the examples have no place for a part of the prompt.
    """
    if prompt.messages is None or not prompting.completion:
        return prompt
    if unfit := find_unfit_part(prompt):
        raise InputError(
            f"A question behind solved examples cannot have {unfit}",
            why="the scorer was fitted on single questions, each at the end of a text that the model continues",
            fix="Ask with one message of the user and nothing else, or use a model with a chat template",
        )
    return replace(prompt, messages=None, text=completion_text(prompt.question), plain=True)


def find_unfit_part(prompt: Prompt) -> str | None:
    """Return what of a chat prompt has no place behind solved examples, in words; None if it is one question."""
    roles = [str(turn["role"]) for turn in prompt.messages or ()]
    if prompt.tools or prompt.template_options:
        return "tools" if prompt.tools else "options of a chat template"
    if "system" in roles:
        return "a system message"
    if roles == ["user"]:
        return None
    return f"{len(roles)} messages" if len(roles) > 1 else f"a message of the role '{roles[0]:.30}'"


def fitted_limits(prompting: Prompting) -> Limits:
    """Return the limits of an answer in a scorer's calibration; a base model's ends with its line."""
    return Limits(max_tokens=prompting.max_tokens, stop=COMPLETION_STOP if prompting.completion else ())
