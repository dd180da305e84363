"""A guarded chain inside a guarded chain: what the inner guard rejects, the outer one does not accept."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable
from langchain_fixtures import policy
from scripted_chat import ScriptedChat, said

from guard.errors import AbstainedError
from guard.langchain import guarded
from guard.langchain.testing import assert_nothing_leaks
from guard.records import Action

PROMPT = ChatPromptTemplate.from_messages([("human", "{q}")])
ASKED = {"q": "What is the capital of Italy?"}
ANSWER = "The capital is surely Mediolanum"
INNER = "[{accept: {below: 0.5}}, {abstain: {text: The inner guard abstains.}}]"
OUTER = "[{accept: {below: 0.9}}, {abstain: {text: The outer guard abstains.}}]"


def inner(p_wrong: float, rules: str = INNER) -> Runnable[Any, Any]:
    chain = PROMPT | ScriptedChat(script=[said(ANSWER, p_wrong)] * 40) | StrOutputParser()
    return guarded(chain, policy=policy(rules))


def test_an_answer_that_both_accept_is_the_answer() -> None:
    result = guarded(inner(0.1), policy=policy(OUTER)).with_outcome().invoke(ASKED)
    assert (result.output, result.outcome.action, result.outcome.p_wrong) == (ANSWER, Action.ACCEPT, 0.1)


def test_what_the_inner_guard_rejects_is_unscored_for_the_outer_one() -> None:
    """The inner policy's text is no answer of a model: the outer policy's `on_error` decides about it."""
    result = guarded(inner(0.7), policy=policy(OUTER)).with_outcome().invoke(ASKED)
    assert (result.outcome.action, result.outcome.rule) == (Action.ABSTAIN, "on_error")
    assert result.outcome.p_wrong is None
    assert ANSWER not in repr(result)


def test_what_the_inner_guard_rejects_leaves_by_no_channel_of_the_outer_one() -> None:
    assert_nothing_leaks(guarded(inner(0.7), policy=policy(OUTER)), ASKED, secrets=[ANSWER])


def test_an_outer_policy_that_accepts_errors_gives_the_inner_policys_text() -> None:
    safe = guarded(inner(0.7), policy=policy(OUTER, "on_error: accept"))
    assert safe.invoke(ASKED) == "The inner guard abstains."
    assert_nothing_leaks(safe, ASKED, secrets=[ANSWER])


def test_an_abstention_that_the_inner_guard_raises_passes_through() -> None:
    rules = "[{accept: {below: 0.5}}, {abstain: {raise: true}}]"
    safe = guarded(inner(0.7, rules), policy=policy(OUTER))
    with pytest.raises(AbstainedError):
        safe.invoke(ASKED)
    assert_nothing_leaks(safe, ASKED, secrets=[ANSWER])
