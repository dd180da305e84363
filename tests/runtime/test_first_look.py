"""The first look at a model without a scorer: what it asks, and what it says of an answer."""

from __future__ import annotations

from hashlib import sha256

import pytest
from scripted import AnsweringEngine, scripted_model

from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.errors import InputError
from guard.records import Prompt
from guard.runtime.first_look import take_first_look


def test_a_first_look_has_the_signals_of_the_answer_and_no_probability() -> None:
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.3))
    look = take_first_look(engine, "What is the capital of France?")
    found = engine.generate(Prompt.chat("What is the capital of France?", system=SHORT_ANSWER_SYSTEM))
    assert (look.answer, look.model, look.tokens, look.finish_reason) == ("Paris", "scripted", 6, "stop")
    assert look.mean_logprob == pytest.approx(found.logprobs.mean())
    assert look.least_logprob == pytest.approx(found.logprobs.min())
    assert look.mean_entropy == pytest.approx(found.entropies.mean())
    assert look.greatest_entropy == pytest.approx(found.entropies.max())
    assert look.to_dict()["p_wrong"] is None
    assert look.to_dict()["calibrated"] is False


def test_a_less_sure_answer_has_lower_log_probabilities_and_higher_entropies() -> None:
    sure, unsure = (
        take_first_look(AnsweringEngine(lambda prompt, number, p=p: ("Paris", p)), "Where?") for p in (0.1, 0.9)
    )
    assert sure.mean_logprob > unsure.mean_logprob
    assert sure.greatest_entropy < unsure.greatest_entropy


def test_a_base_model_continues_solved_examples_up_to_the_end_of_a_line() -> None:
    model = scripted_model(chat_template_sha256=sha256(b"").hexdigest())
    engine = AnsweringEngine(lambda prompt, number: ("Paris\nQuestion:", 0.3), model=model)
    look = take_first_look(engine, "Where?")
    assert engine.asked[0].question.endswith("Question: Where?\nAnswer:")
    assert (look.answer, look.finish_reason) == ("Paris", "stop_string")


def test_an_answer_that_the_token_limit_cuts_says_so() -> None:
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.3))
    assert take_first_look(engine, "Where?", max_tokens=2).finish_reason == "length"


@pytest.mark.parametrize("template", [b"", b"another"], ids=["base", "chat"])
def test_an_option_that_the_template_does_not_read_is_refused(template: bytes) -> None:
    """A base model dropped every option without a word, since it has no template."""
    model = scripted_model(chat_template_sha256=sha256(template).hexdigest())
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.3), model=model)
    with pytest.raises(InputError, match="has no option 'enable_thinking'"):
        take_first_look(engine, "Where?", template_options={"enable_thinking": False})
    assert engine.asked == []
