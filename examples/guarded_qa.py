"""A question-answering chain that says when it does not know.

python guarded_qa.py "What is the capital of France?"
"""

from __future__ import annotations

import sys
from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from guard import parse_policy
from guard.langchain import ChatGuard, GuardedOutcome, guarded

QUESTIONS = ["What is the capital of France?", "Who was the second person to row alone across the Pacific?"]

POLICY = """
version: 1
name: quiz
rules:
  - accept: {below: 0.5}
  - retry: {below: 0.7, times: 1, seed: 1, instruction: Answer with one word.}
  - abstain: {text: I do not know.}
"""


def main(questions: list[str] = QUESTIONS, scorer: Any = None) -> list[GuardedOutcome]:
    """Ask the questions, one guarded call each."""
    prompt = ChatPromptTemplate.from_messages([("user", "Answer in a few words. {question}")])
    chain = prompt | ChatGuard(model="smollm2", scorer=scorer, max_tokens=16) | StrOutputParser()
    safe = guarded(chain, policy=parse_policy(POLICY))  # takes the place of the chain; gives a str as it does

    answers = safe.with_outcome().batch([{"question": question} for question in questions])
    for question, answer in zip(questions, answers, strict=True):
        tried = answer.outcome.attempts
        print(f"{question}\n  {answer.output}")
        print(
            f"  {answer.outcome.action}, wrong with probability {answer.outcome.p_wrong:.2f}, {len(tried)} attempt(s)"
        )
    return answers


if __name__ == "__main__":
    main(sys.argv[1:] or QUESTIONS)
