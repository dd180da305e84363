"""A guard of a base model puts every kind of question behind the solved examples of its calibration."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import AnsweringEngine, base_model, base_scorer, scripted_model

from guard.errors import InputError
from guard.records import Prompt
from guard.response_format import ResponseFormat
from guard.runtime.base_models import completion_text
from guard.runtime.guard import Guard
from guard.runtime.sources import checked_options

QUESTION = "Which city?"
USER = {"role": "user", "content": QUESTION}
QUESTIONS = [
    QUESTION,
    [USER],
    Prompt.chat(QUESTION),
    [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
]


def guarding() -> Guard:
    engine = AnsweringEngine(lambda prompt, number: (" Paris\nQuestion:", 0.1), model=base_model())
    return Guard(engine, base_scorer(base_model()), "shadow")


@pytest.mark.parametrize("question", QUESTIONS, ids=["text", "messages", "prompt", "blocks"])
def test_a_question_is_put_alike_in_every_form(question: Any) -> None:
    guard = guarding()
    assert guard.to_prompt(question) == Prompt.raw(completion_text(QUESTION), plain=True)
    outcome = guard.ask(question)
    assert outcome.answer == " Paris"
    assert guard.score(question, "Paris").p_wrong == guard.score(QUESTION, "Paris").p_wrong


def test_what_else_a_prompt_says_is_kept() -> None:
    form = ResponseFormat.json()
    put = guarding().to_prompt(Prompt.chat(QUESTION, cache_key="mine", response_format=form))
    assert (put.cache_key, put.response_format, put.text) == ("mine", form, completion_text(QUESTION))


def test_a_text_of_ones_own_stays_as_it_is() -> None:
    raw = Prompt.raw("The largest city is")
    assert guarding().to_prompt(raw) is raw


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([{"role": "system", "content": "Be brief."}, USER], "a system message"),
        ([USER, {"role": "assistant", "content": "Paris"}, USER], "3 messages"),
        ([{"role": "assistant", "content": "Paris"}], "a message of the role 'assistant'"),
        (Prompt.chat(QUESTION, tools=[{"type": "function"}]), "tools"),
        (Prompt.chat(QUESTION, template_options={"a": 1}), "options of a chat template"),
    ],
)
def test_what_has_no_place_behind_the_examples_is_refused(prompt: Any, words: str) -> None:
    guard = guarding()
    with pytest.raises(InputError, match=f"cannot have {words}: "):
        guard.ask(prompt)
    with pytest.raises(InputError, match=f"cannot have {words}: "):
        guard.score(prompt, "Paris")
    assert isinstance(guard.engine, AnsweringEngine)
    assert guard.engine.asked == []


def test_template_options_of_a_call_are_refused_and_not_dropped() -> None:
    with pytest.raises(InputError, match="cannot have options of a chat template"):
        guarding().ask(QUESTION, template_options={"enable_thinking": False})


def test_a_scorer_of_solved_examples_has_no_template_options_whatever_the_model_reads() -> None:
    """A model with a template can be calibrated by texts, too."""

    class Reading(AnsweringEngine):
        def check_template_options(self, options: Any) -> None:
            """Its template reads all of them."""

    engine = Reading(lambda prompt, number: ("Paris", 0.1), model=scripted_model())
    with pytest.raises(InputError, match="cannot have options of a chat template"):
        checked_options(engine, base_scorer(), {"enable_thinking": False})
    assert checked_options(engine, base_scorer(), None) == {}
