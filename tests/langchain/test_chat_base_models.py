"""`ChatGuard` on a base model: it asks as `Guard.ask` and ``guard ask`` do."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from pydantic import BaseModel
from scripted import AnsweringEngine, base_model, base_scorer

from guard.errors import InputError
from guard.langchain import ChatGuard, guarded, read_score
from guard.policy.policy import parse_policy
from guard.records import Prompt
from guard.runtime.base_models import completion_text
from guard.runtime.guard import Guard

QUESTION = "Which city?"
RETRY = "{version: 1, name: retry, rules: [accept: {below: 0.2}, retry: {below: 0.9, instruction: Think.}, abstain]}"


class City(BaseModel):
    city: str


def engine(*answers: tuple[str, float]) -> AnsweringEngine:
    given = answers or ((" Paris\n\nQuestion: What next?", 0.1),)
    return AnsweringEngine(lambda prompt, number: given[min(number, len(given) - 1)], model=base_model())


def chat(loaded: AnsweringEngine, **settings: Any) -> ChatGuard:
    return ChatGuard(**{"model": "tiny", "engine": loaded, "scorer": base_scorer(base_model()), **settings})


@pytest.mark.parametrize("policy", [None, "shadow"])
def test_a_question_is_asked_and_scored_as_guard_asks_it(policy: str | None) -> None:
    loaded = engine()
    message = chat(loaded, policy=policy).invoke(QUESTION)
    outcome = Guard(loaded, base_scorer(base_model()), "shadow").ask(QUESTION)
    assert [prompt.question for prompt in loaded.asked] == [completion_text(QUESTION)] * 2
    scored = read_score(message)
    assert scored is not None
    assert (message.content, scored.p_wrong, scored.calibrated) == (" Paris", outcome.p_wrong, True)
    assert outcome.answer == " Paris"


def test_a_stream_ends_with_the_line_and_with_a_stop_text_of_its_own() -> None:
    assert "".join(str(chunk.content) for chunk in chat(engine()).stream(QUESTION)) == " Paris"
    assert chat(engine()).invoke(QUESTION, stop=["ri"]).content == " Pa"


def test_a_retry_of_a_guarded_chain_asks_behind_the_examples() -> None:
    loaded = engine((" Rome\n", 0.5), (" Paris\n", 0.1))
    assert guarded(chat(loaded), policy=parse_policy(RETRY)).invoke(QUESTION).content == " Paris"
    asked = [prompt.question for prompt in loaded.asked]
    assert asked == [completion_text(QUESTION), Prompt.raw(completion_text(QUESTION)).with_instruction("Think.").text]


def test_an_object_is_asked_for_before_the_line_that_the_model_continues() -> None:
    loaded = engine(('{"city": "Paris"}', 0.1))
    assert chat(loaded, max_tokens=40).with_structured_output(City).invoke(QUESTION) == City(city="Paris")
    assert loaded.asked[0].question.endswith("\nAnswer:")
    assert loaded.asked[0].question.startswith(completion_text(QUESTION).removesuffix("\nAnswer:"))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([SystemMessage("Be brief."), HumanMessage(QUESTION)], "a system message"),
        ([HumanMessage(QUESTION), AIMessage("Paris"), HumanMessage(QUESTION)], "3 messages"),
    ],
)
def test_a_conversation_is_refused(messages: Any, words: str) -> None:
    loaded = engine()
    with pytest.raises(InputError, match=f"cannot have {words}: "):
        chat(loaded).invoke(messages)
    assert loaded.asked == []


def test_a_system_message_of_the_models_own_is_refused_when_it_is_built() -> None:
    with pytest.raises(InputError, match="cannot have a system message"):
        chat(engine(), system="Be brief.")
