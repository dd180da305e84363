"""Prompts for questions: chat messages, or a text to continue.

Calibration and production use the same prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from guard.data.questions import LETTERS, Question
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.records import Prompt
from guard.runtime.base_models import CHOICE_INSTRUCTION, completion_text
from guard.scoring.provenance import Prompting


def question_prompt(
    question: Question, *, system: str = SHORT_ANSWER_SYSTEM, template_options: Mapping[str, Any] | None = None
) -> Prompt:
    """Return the chat prompt of a question: the passage if there is one, the question, then lettered choices.

    Args:
        question: the question.
        system: the system message; the empty string for none.
        template_options: variables of the model's chat template.
    """
    parts = [question.context, ""] if question.context else []
    parts.append(question.question)
    if question.choices:
        parts += [f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False)]
        parts.append(CHOICE_INSTRUCTION)
    return Prompt.chat("\n".join(parts), system=system or None, template_options=template_options)


def completion_prompt(question: Question) -> Prompt:
    """Return the prompt for a base model, which continues a text: solved examples, then the question.

    The examples cover open, number and choice questions; an answer ends with its line.
    """
    content = (question_prompt(question, system="").messages or ())[0]["content"]
    return Prompt.raw(completion_text(content), plain=True)


def fitted_prompt(question: Question, prompting: Prompting) -> Prompt:
    """Return the prompt of a question as a scorer's calibration puts it."""
    if prompting.completion:
        return completion_prompt(question)
    return question_prompt(question, system=prompting.system, template_options=prompting.template_options)


def with_default_options(prompt: Prompt, options: Mapping[str, Any]) -> Prompt:
    """Return the prompt of a labelled response with a run's template options; its own options take precedence.

    A raw prompt has no template, and stays as it is.
    """
    if prompt.messages is None:
        return prompt
    return replace(prompt, template_options={**options, **prompt.template_options})
