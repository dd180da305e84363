"""Variables of chat templates are passed on, bound to the scorer, and refused where nothing reads them."""

from __future__ import annotations

from typing import Any

import pytest
from scripted import AnsweringEngine, scripted_model, tiny_artefact

from guard.cli.output import template_options
from guard.engines.chat_template import option_names, render
from guard.errors import GuardError, InputError
from guard.langchain.chat.chat_guard import ChatGuard
from guard.policy.policy import load_policy, parse_policy
from guard.records import Prompt
from guard.runtime.guard import Guard
from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer, parse_scorer

#: In the form of Qwen 3's template.
TEMPLATE = (
    "{%- for message in messages %}{{ message.role }}: {{ message.content }}\n{%- endfor %}"
    "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>{% endif %}"
    "{%- set effort = reasoning_effort | default('low') %}{{ effort }}"
)
POLICY = parse_policy("version: 1\nname: test\nrules:\n  - accept\non_error: {abstain: {text: failed}}\n")


class TemplatedEngine(AnsweringEngine):
    """Puts its chat template's text to the script."""

    @property
    def chat_template(self) -> str:
        return TEMPLATE

    def encode(self, prompt: Prompt) -> list[int]:
        text = render(TEMPLATE, prompt.messages or (), tools=prompt.tools, options=prompt.template_options)
        return [*text.encode()]


def scorer_with(options: dict[str, Any]) -> Scorer:
    prompting = Prompting(system="", max_tokens=30, template_options=options)
    return Scorer(tiny_artefact(scripted_model()).model_copy(update={"prompting": prompting}))


def asked_with(guard: Guard, engine: TemplatedEngine) -> str:
    guard.ask("why?")
    return engine.asked[-1].question


@pytest.fixture
def engine() -> TemplatedEngine:
    return TemplatedEngine(lambda prompt, number: ("yes", 0.1))


def test_a_template_says_which_options_it_reads() -> None:
    assert option_names(TEMPLATE) == ("enable_thinking", "reasoning_effort")
    assert option_names("{{ messages }}{{ raise_exception('x') }}{{ strftime_now('%d') }}{{ range(3) }}") == ()


def test_options_reach_the_template() -> None:
    messages = [{"role": "user", "content": "why?"}]
    assert render(TEMPLATE, messages) == "user: why?low"
    assert render(TEMPLATE, messages, options={"enable_thinking": False}) == "user: why?<think>\n\n</think>low"
    assert render(TEMPLATE, messages, options={"reasoning_effort": "high"}) == "user: why?high"


@pytest.mark.parametrize("name", ["enable_thinkin", "messages", "add_generation_prompt", "raise_exception", "effort"])
def test_an_option_that_the_template_does_not_read_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        render(TEMPLATE, [{"role": "user", "content": "why?"}], options={name: "x"})


def test_a_misspelt_option_is_refused_where_the_guard_is_built(engine: TemplatedEngine) -> None:
    scorer = scorer_with({})
    with pytest.raises(InputError, match="Did you mean 'enable_thinking'"):
        Guard(engine, scorer, POLICY, template_options={"enable_thinkin": False})
    with pytest.raises(GuardError, match="Did you mean 'enable_thinking'"):
        ChatGuard(engine=engine, scorer=scorer, template_options={"enable_thinkin": False})
    with pytest.raises(InputError, match="enable_thinkin"):
        Guard(engine, scorer, POLICY).ask("why?", template_options={"enable_thinkin": False})


def test_a_guard_asks_with_the_options_of_the_calibration_unless_others_are_given(engine: TemplatedEngine) -> None:
    scorer = scorer_with({"enable_thinking": False})
    assert "</think>" in asked_with(Guard(engine, scorer, POLICY), engine)
    assert "</think>" not in asked_with(Guard(engine, scorer, POLICY, template_options={}), engine)
    Guard(engine, scorer, POLICY).ask("why?", template_options={"reasoning_effort": "high"})
    assert engine.asked[-1].question.endswith("</think>high")


def test_a_score_under_other_options_than_the_scorers_is_uncalibrated(engine: TemplatedEngine) -> None:
    """Before, it said calibrated, though the options change the prompt that calibration asked."""
    scorer = scorer_with({"enable_thinking": False})
    guard, options = Guard(engine, scorer, POLICY), {"enable_thinking": True}
    chat = ChatGuard(engine=engine, scorer=scorer)

    def calibrated(**given: Any) -> list[bool | None]:
        outcome, message = guard.ask("why?", **given), chat.invoke("why?", **given)
        score = outcome.attempts[0].score
        return [score.calibrated if score else None, message.response_metadata["guard"]["calibrated"]]

    assert calibrated() == [True, True]
    assert calibrated(template_options=options) == [False, False]
    assert guard.score("why?", "yes").calibrated
    assert not Guard(engine, scorer, POLICY, template_options=options).score("why?", "yes").calibrated


@pytest.mark.parametrize("name", ["template_options", "chat_template_kwargs"])
def test_a_chat_model_takes_them_under_either_name(engine: TemplatedEngine, name: str) -> None:
    settings: dict[str, Any] = {name: {"enable_thinking": False}}
    ChatGuard(engine=engine, scorer=scorer_with({}), **settings).invoke("why?")
    assert engine.asked[-1].question.endswith("</think>low")
    ChatGuard(engine=engine, scorer=scorer_with({})).invoke("why?", **settings)
    assert engine.asked[-1].question.endswith("</think>low")
    ChatGuard(engine=engine, scorer=scorer_with({}), policy=POLICY, **settings).invoke("why?")
    assert engine.asked[-1].question.endswith("</think>low")


def test_a_scorers_file_says_which_options_it_was_calibrated_with() -> None:
    import json

    for options in ({}, {"enable_thinking": False, "reasoning_effort": "low"}):
        scorer = scorer_with(options)
        content = {**scorer.artefact.model_dump(by_alias=True, mode="json"), "sha256": scorer.sha256}
        assert ("template_options" in content["prompting"]) is bool(options)
        assert parse_scorer(json.dumps(content).encode()).artefact.prompting.template_options == options


def test_a_certificate_is_of_one_set_of_options(engine: TemplatedEngine) -> None:
    scorer = scorer_with({})
    plain, other = (Guard(engine, scorer, POLICY, template_options=each) for each in ({}, {"enable_thinking": False}))
    assert plain.fingerprint(POLICY).sha256 != other.fingerprint(POLICY).sha256


def test_the_command_line_reads_values_as_json_or_text() -> None:
    given = ["enable_thinking=false", "thinking=True", "reasoning_effort=high", "budget=512", "note=a=b"]
    assert template_options(given) == {
        "enable_thinking": False,
        "thinking": True,
        "reasoning_effort": "high",
        "budget": 512,
        "note": "a=b",
    }
    assert template_options(None) is None
    assert template_options(["x=NaN"]) == {"x": "NaN"}
    for wrong in (["enable_thinking"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(InputError):
            template_options(wrong)


# -- contents and instructions -------------------------------------------------------------------


def test_blocks_of_text_are_joined_in_every_prompt() -> None:
    blocks = [{"type": "text", "text": "Capital of "}, "France?"]
    prompt = Prompt.chat([{"role": "user", "content": blocks}])
    assert prompt.messages == ({"role": "user", "content": "Capital of France?"},)
    assert prompt.question == "Capital of France?"
    assert Prompt(messages=({"role": "user", "content": blocks},)).question == "Capital of France?"


def test_the_model_is_asked_with_the_text_of_blocks(engine: TemplatedEngine) -> None:
    guard = Guard(engine, scorer_with({}), POLICY)
    guard.ask([{"role": "user", "content": [{"type": "text", "text": "why?"}]}])
    assert engine.asked[-1].question == "user: why?low"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "missing"),
        (3, "a int"),
        ([{"type": "image_url", "image_url": {"url": "x"}}], "'image_url'"),
        ([{"type": "input_audio"}], "'input_audio'"),
        ([7], "'int'"),
        ([{"type": "text"}], "'text'"),
        ([{"type": "thinking", "thinking": "x"}], "'thinking'"),
        (b"why?", "a bytes"),
    ],
)
def test_content_that_is_no_text_is_refused_by_name(content: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        Prompt.chat([{"role": "user", "content": content}])


def test_an_assistants_message_that_only_calls_tools_needs_no_content() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {}}}
    turn = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert (Prompt.chat([{"role": "user", "content": "1+1?"}, turn]).messages or ())[1]["content"] == ""
    with pytest.raises(InputError, match="missing"):
        Prompt.chat([{"role": "assistant", "content": None}])


@pytest.mark.parametrize(
    ("roles", "at"),
    [(["user"], 0), (["user", "assistant", "tool"], 0), (["user", "assistant"], 0), (["system", "user", "tool"], 1)],
)
def test_an_instruction_is_added_to_what_the_user_said_last(roles: list[str], at: int) -> None:
    prompt = Prompt.chat([{"role": role, "content": "x"} for role in roles], template_options={"a": 1})
    told = prompt.with_instruction("Check it.")
    contents = [turn["content"] for turn in told.messages or ()]
    assert contents == ["x\n\nCheck it." if number == at else "x" for number in range(len(roles))]
    assert told.template_options == {"a": 1}


def test_without_a_user_an_instruction_is_a_turn_of_its_own() -> None:
    told = Prompt.chat([{"role": "system", "content": "x"}]).with_instruction("Check it.")
    assert (told.messages or ())[-1] == {"role": "user", "content": "Check it."}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Question: 1+1?\nAnswer:", "Question: 1+1?\nCheck it.\nAnswer:"),
        ("Question: 1+1?\nAnswer: ", "Question: 1+1?\nCheck it.\nAnswer: "),
        ("Once upon a time", "Once upon a time\nCheck it.\n"),
        ("Answer:", "Answer:\nCheck it.\n"),
    ],
)
def test_in_a_raw_text_an_instruction_goes_before_the_line_that_the_model_continues(text: str, told: str) -> None:
    assert Prompt.raw(text).with_instruction("Check it.") == Prompt.raw(told)


def test_a_given_answer_of_a_base_model_begins_with_a_space() -> None:
    prompting = Prompting(system="", max_tokens=16, completion=True)
    scorer = Scorer(tiny_artefact(scripted_model()).model_copy(update={"prompting": prompting}))
    guard = Guard(AnsweringEngine(lambda prompt, number: (" yellow", 0.1)), scorer, load_policy("shadow"))
    generated = guard.ask("A lemon?").p_wrong
    assert generated is not None
    for response in ("yellow", " yellow"):
        assert guard.score("A lemon?", response).p_wrong == pytest.approx(generated)
    raw = guard.to_prompt("A lemon?")
    assert guard.score(raw, "yellow").p_wrong > 2 * generated  # a raw prompt is the caller's, and so is its answer
