"""P(true): the probability that a model gives to "true" when it is asked whether its own answer is right.

One more call per answer (Kadavath et al. 2022, without examples). The question has no system message, so that the one
of the answers, which often asks for a few words, does not change it.
"""

from __future__ import annotations

import math
import threading

from guard.data.prompts import question_prompt
from guard.data.questions import Question
from guard.engines.protocols import Engine
from guard.records import Limits, Prompt
from guard.runtime.base_models import CHOICE_INSTRUCTION

#: What the model reads as its own reply; the probability of its first token is P(true).
_REPLY = "A"


def p_true_prompt(question: Question, answer: str, *, completion: bool = False) -> Prompt:
    """Return the prompt that asks whether an answer is right.

    Args:
        question: the question.
        answer: the model's answer to it.
        completion: for a model without a chat template.

    Examples:
        >>> asked = p_true_prompt(Question("1", "What is 2 + 2?", ("4",)), "5").question
        >>> asked.splitlines()[1]
        'Proposed answer: 5'
    """
    content = str((question_prompt(question, system="").messages or ())[0]["content"])
    content = content.removesuffix(CHOICE_INSTRUCTION).rstrip()
    text = f"Question: {content}\nProposed answer: {answer.strip()}\nIs the proposed answer:\nA. True\nB. False\n"
    if completion:
        return Prompt.raw(f"{text}Letter of the right choice: ", plain=True)
    return Prompt.chat(f"{text}Reply with the letter of the right choice.")


def p_true(
    engine: Engine, question: Question, answer: str, *, completion: bool, cancel: threading.Event | None = None
) -> float:
    """Ask a model whether its answer is right, and return the probability of "true" at temperature 1."""
    prompt = p_true_prompt(question, answer, completion=completion)
    read = engine.generate(prompt, limits=Limits(max_tokens=4), completion=_REPLY, cancel=cancel)
    return math.exp(float(read.logprobs[0]))
