"""Cut and empty answers in LangChain: known on messages, decided by the policy, and never parsed into an object."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain_core.exceptions import OutputParserException
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.langchain import ChatGuard, GuardMiddleware, guarded, trusted
from guard.langchain.attempts.complete_json import IncompleteAnswerError, complete_json
from guard.langchain.metadata import KEY, message_defects, read_finish_reason, read_score
from guard.policy.policy import Policy, parse_policy
from guard.records import Action, Escalation, Prompt

RULES = "rules: [{accept: {below: 0.5}}, {abstain: {text: By the rules.}}]\n"
CLOSED = f"{RULES}on_error: {{abstain: {{text: On error.}}}}\n"


def policy(body: str = CLOSED) -> Policy:
    return parse_policy(f"version: 1\nname: test\n{body}")


class ToolTemplateEngine(AnsweringEngine):
    """Shows the model its tools."""

    def encode(self, prompt: Prompt) -> list[int]:
        return [*super().encode(prompt), *str(len(prompt.tools)).encode()] if prompt.tools else super().encode(prompt)


def chat(*texts: str, p_wrong: float = 0.05, **settings: Any) -> ChatGuard:
    """Says these texts in turn, the last one for good."""
    engine = ToolTemplateEngine(lambda prompt, number: (texts[min(number, len(texts) - 1)], p_wrong))
    return ChatGuard(engine=engine, scorer=confidence_scorer(engine.model), **{"max_tokens": 200, **settings})


RunChain = Callable[[Any, Any], Any]


def invoke(runnable: Any, asked: Any) -> Any:
    return runnable.invoke(asked)


def ainvoke(runnable: Any, asked: Any) -> Any:
    return asyncio.run(runnable.ainvoke(asked))


def stream(runnable: Any, asked: Any) -> Any:
    first, *rest = runnable.stream(asked)
    for chunk in rest:
        first = first + chunk
    return first


def astream(runnable: Any, asked: Any) -> Any:
    async def gathered() -> Any:
        return [chunk async for chunk in runnable.astream(asked)]

    first, *rest = asyncio.run(gathered())
    for chunk in rest:
        first = first + chunk
    return first


every_way = pytest.mark.parametrize("run", [invoke, ainvoke, stream, astream])


# -- messages ----------------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("deciding", [True, False])
def test_a_message_says_how_its_answer_ended(run: RunChain, deciding: bool) -> None:
    settings = {"policy": policy(f"{CLOSED}truncated: accept")} if deciding else {}
    for max_tokens, ending in ((5, "length"), (50, "stop")):
        message = run(chat("Paris, not Lyon.", max_tokens=max_tokens, **settings), "q")
        assert message.response_metadata["finish_reason"] == ending
        assert message.response_metadata[KEY]["finish_reason"] == ending
        assert read_finish_reason(message) == ending


@every_way
def test_a_model_that_decides_withholds_a_cut_answer_and_says_why(run: RunChain) -> None:
    message = run(chat("Paris, not Lyon.", max_tokens=5, policy=policy()), "q")
    assert (message.content, message.response_metadata["finish_reason"]) == ("On error.", "length")
    assert message.response_metadata[KEY]["decision"]["reason"].startswith("The answer is cut")
    assert run(chat("", policy=policy()), "q").content == "On error."


@pytest.mark.parametrize(
    ("message", "defects"),
    [
        (AIMessage("x", response_metadata={"finish_reason": "length"}), ("truncated",)),
        (AIMessage("x", response_metadata={"stop_reason": "max_tokens"}), ("truncated",)),
        (AIMessage("x", response_metadata={"finish_reason": "MAX_TOKENS"}), ("truncated",)),
        (AIMessage("x", response_metadata={"done_reason": "length"}), ("truncated",)),
        (AIMessage("x", response_metadata={"finish_reason": "stop"}), ()),
        (AIMessage("x"), ()),
        (AIMessage(" "), ("empty",)),
        (AIMessage([]), ("empty",)),
        (AIMessage([{"type": "reasoning", "reasoning": "hm"}]), ("empty",)),
        (AIMessage([{"type": "image", "url": "http://x"}]), ()),
        (AIMessage("", tool_calls=[{"name": "look", "args": {}, "id": "1"}]), ()),
        (AIMessage("", invalid_tool_calls=[{"name": "look", "args": "{", "id": "1", "error": None}]), ()),
    ],
)
def test_defects_of_anybodys_message(message: AIMessage, defects: tuple[str, ...]) -> None:
    assert message_defects(message) == defects


def test_a_finish_reason_that_is_not_known_is_no_score() -> None:
    message = said("x", 0.1)
    message.response_metadata[KEY]["finish_reason"] = "banana"
    call = read_score(message)
    assert call is not None
    assert call.failed
    assert call.p_wrong is None


# -- chains ------------------------------------------------------------------------------------


def ended(message: AIMessage, ending: str) -> AIMessage:
    message.response_metadata[KEY]["finish_reason"] = ending
    return message


@every_way
def test_a_chain_does_not_accept_a_cut_or_an_empty_answer(run: RunChain) -> None:
    safe = guarded(chat("Paris, not Lyon.", max_tokens=5), policy=policy())
    assert run(safe, "q").content == "On error."
    outcome = safe.with_outcome().invoke("q").outcome
    assert (outcome.finish_reason, outcome.attempts[-1].finish_reason) == ("length", "length")
    assert outcome.attempts[-1].score is not None
    assert run(guarded(chat("Paris."), policy=policy()), "q").content == "Paris."
    assert run(guarded(chat(" "), policy=policy()), "q").content == "On error."


def test_a_chains_retry_may_have_more_room() -> None:
    body = f"{CLOSED}truncated: {{retry: {{temperature: 0, max_tokens: 30}}}}"
    safe = guarded(chat("Paris, not Lyon.", max_tokens=5), policy=policy(body)).with_outcome()
    result = safe.invoke("q")
    assert result.output.content == "Paris, not Lyon."
    assert [attempt.finish_reason for attempt in result.outcome.attempts] == ["length", "stop"]


def test_a_chains_retry_has_no_less_room_than_its_model() -> None:
    body = f"{CLOSED}truncated: {{retry: {{seed: 1, max_tokens: 6}}}}"
    outcome = guarded(chat("Paris, not Lyon.", max_tokens=9), policy=policy(body)).with_outcome().invoke("q").outcome
    assert [attempt.completion_tokens for attempt in outcome.attempts] == [9, 9]
    assert outcome.reason.endswith("; raise max_tokens, or shorten the prompt")


@every_way
def test_a_live_stream_that_ends_cut_is_taken_back(run: RunChain) -> None:
    from guard.runtime.stream_monitor import RetractedError

    live = guarded(chat("Paris, not Lyon.", max_tokens=5), policy=policy(f"{CLOSED}streaming: live"))
    if run in (invoke, ainvoke):
        assert run(live, "q").content == "On error."
        return
    with pytest.raises(RetractedError, match="The answer is cut"):
        run(live, "q")


@pytest.mark.parametrize(
    ("answer", "accepted"),
    [
        (AIMessage("Paris"), True),
        (AIMessage("Par", response_metadata={"finish_reason": "length"}), False),
        (AIMessage(""), False),
        ("Paris", True),
        (" ", False),
    ],
)
def test_a_fallback_without_scores_is_not_trusted_with_a_defective_answer(answer: Any, accepted: bool) -> None:
    body = "rules: [{accept: {below: 0.1}}, {fallback: {below: 0.9, to: other}}, {abstain: {}}]\n"
    body += "on_error: {abstain: {text: On error.}}\n"
    other: Any = RunnableLambda(lambda _: answer)
    if isinstance(answer, AIMessage):
        other = GenericFakeChatModel(messages=iter([answer, answer.model_copy()]))
    safe = guarded(chat("no", p_wrong=0.5), policy=policy(body), fallbacks={"other": trusted(other)}).with_outcome()
    outcome = safe.invoke("q").outcome
    assert outcome.action is (Action.FALLBACK if accepted else Action.ABSTAIN)
    assert len(outcome.attempts) == 2


# -- agents ------------------------------------------------------------------------------------


def agent(*answers: AIMessage, body: str = CLOSED) -> tuple[ScriptedChat, Any]:
    model = ScriptedChat(script=list(answers))
    return model, create_agent(model, [], middleware=[GuardMiddleware(policy(body))])


@pytest.mark.parametrize("way", [invoke, ainvoke])
def test_an_agent_does_not_accept_a_cut_or_an_empty_answer(way: RunChain) -> None:
    for answer in (ended(said("Paris, not", 0.1), "length"), said("", 0.1)):
        _, guarded_agent = agent(answer)
        final = way(guarded_agent, {"messages": [HumanMessage("q")]})["messages"][-1]
        assert final.content == "On error."
    _, guarded_agent = agent(ended(said("Paris", 0.1), "stop"))
    assert way(guarded_agent, {"messages": [HumanMessage("q")]})["messages"][-1].content == "Paris"


def test_an_agents_retry_may_have_more_room() -> None:
    body = f"{CLOSED}truncated: {{retry: {{temperature: 0, max_tokens: 30}}}}"
    model, guarded_agent = agent(ended(said("Paris, not", 0.1), "length"), said("Paris, not Lyon", 0.1), body=body)
    assert guarded_agent.invoke({"messages": [HumanMessage("q")]})["messages"][-1].content == "Paris, not Lyon"
    assert model.asked[1][1]["max_tokens"] == 30


def test_an_agents_retry_has_no_less_room_than_its_model() -> None:
    cases: list[Escalation] = []
    body = f"{RULES}on_error: {{escalate: {{to: [desk]}}}}\ntruncated: {{retry: {{seed: 1, max_tokens: 6}}}}"
    middleware = GuardMiddleware(policy(body), handlers={"desk": cases.append})
    model = chat("Paris, not Lyon.", max_tokens=9)
    create_agent(model, [], middleware=[middleware]).invoke({"messages": [HumanMessage("q")]})
    assert [attempt.completion_tokens for attempt in cases[0].attempts] == [9, 9]


def test_a_cut_call_of_a_tool_is_not_carried_out() -> None:
    ran: list[int] = []

    def pay(amount: int) -> str:
        """Pay."""
        ran.append(amount)
        return "paid"

    model = ScriptedChat(script=[ended(said("", 0.1, ("pay", {"amount": 15})), "length")])
    guarded_agent = create_agent(model, [pay], middleware=[GuardMiddleware(policy())])
    assert guarded_agent.invoke({"messages": [HumanMessage("q")]})["messages"][-1].content == "On error."
    assert ran == []


# -- structured output -------------------------------------------------------------------------


class Dose(BaseModel):
    """A dose."""

    name: str
    dose: float


class Allergies(BaseModel):
    """What a patient must not get."""

    allergies: list[str] = []
    note: str | None = None


SCHEMAS = [Dose, Dose.model_json_schema()]
WHOLE = '{"name": "Paris", "dose": 150}'


@every_way
@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_json_that_was_cut_is_no_object(run: RunChain, schema: Any, method: Any) -> None:
    for max_tokens in (1, 10, 28, 29, len(WHOLE)):  # the last of these lacks only the end token
        with pytest.raises(OutputParserException, match="The answer is truncated"):
            run(chat(WHOLE, max_tokens=max_tokens).with_structured_output(schema, method=method), "q")
    whole = run(chat(WHOLE).with_structured_output(schema, method=method), "q")
    assert (whole if isinstance(whole, dict) else whole.model_dump()) == {"name": "Paris", "dose": 150}


@pytest.mark.parametrize("run", [invoke, astream])
@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize(
    "text",
    [
        *(WHOLE[:end] for end in (1, 2, 9, 20, 28, 29)),
        '{"name": "Paris", "dose": 15',
        '```json\n{"name": "Paris", "dose": 15',
        '{"name": "Paris", "dose": 15}}',
        '{"name": "Paris", "dose": 15} or 150',
        '{"name": "Paris", "dose": 15, "dose": 150}',
        '{"name": "Paris", "dose": NaN}',
        '```json\n{"name": "Paris", "dose": 15}\n```\n```json\n{"name": "Lyon", "dose": 1}\n```',
        'Not ```json\n{"name": "Paris", "dose": 15}\n```, but {"name": "Paris", "dose": 150}',
        '{"name": "\\ud800", "dose": 15}',
        "Paris",
    ],
)
def test_json_that_does_not_close_or_is_not_one_text_is_no_object(run: RunChain, schema: Any, text: str) -> None:
    with pytest.raises(IncompleteAnswerError, match="not one complete JSON text"):
        run(chat(text).with_structured_output(schema, strict=False), "q")


def test_an_answer_that_nests_without_end_is_no_object() -> None:
    with pytest.raises(IncompleteAnswerError, match="not one complete JSON text"):
        complete_json(AIMessage("[" * 100_000))


@pytest.mark.parametrize(
    "text",
    [
        WHOLE,
        f"  {WHOLE}\n",
        f"```json\n{WHOLE}\n```",
        f"```\n{WHOLE}\n```",
        f"```json\n{WHOLE}",
        f"Here it is:\n```json\n{WHOLE}\n```\nTake care.",
    ],
)
@pytest.mark.parametrize("schema", SCHEMAS)
def test_whole_json_is_read_as_before(text: str, schema: Any) -> None:
    read = chat(text).with_structured_output(schema, strict=False).invoke("q")
    assert (read if isinstance(read, dict) else read.model_dump()) == {"name": "Paris", "dose": 150}


def test_backticks_within_a_string_are_not_a_fence() -> None:
    read = chat('{"allergies": [], "note": "```json {} ```"}').with_structured_output(Allergies).invoke("q")
    assert read == Allergies(note="```json {} ```")


@every_way
def test_a_cut_list_loses_nothing_in_silence(run: RunChain) -> None:
    text = '{"allergies": ["penicillin", "latex"], "note": "severe"}'
    model = chat(text, max_tokens=30).with_structured_output(Allergies, include_raw=True)
    result = run(model, "q")
    assert result["parsed"] is None
    assert isinstance(result["parsing_error"], IncompleteAnswerError)
    assert result["raw"].content == text[:30]
    assert result["raw"].response_metadata[KEY]["p_wrong"] is not None


@every_way
def test_a_guarded_chain_decides_about_json_that_was_cut_and_quotes_nothing_of_it(run: RunChain) -> None:
    for text, max_tokens in ((WHOLE, 28), ('{"name": "Paris", "dose": 15', 200)):
        chain = chat(text, max_tokens=max_tokens).with_structured_output(Dose, strict=False)
        assert run(guarded(chain, policy=policy()), "q") == "On error."
        outcome = guarded(chain, policy=policy()).with_outcome().invoke("q").outcome
        assert "Paris" not in repr(outcome)
        with pytest.raises(IncompleteAnswerError):
            run(guarded(chain, policy=policy(f"{RULES}on_error: accept\ntruncated: accept")), "q")
    bad = guarded(chat(WHOLE, max_tokens=28, p_wrong=0.9).with_structured_output(Dose), policy=policy())
    assert run(bad, "q") == "On error."


CALL = '<tool_call>{"name": "Dose", "arguments": {"name": "Paris", "dose": 150}}</tool_call>'
MENDABLE = '<tool_call>{"name": "Dose", "arguments": "{\\"name\\": \\"Paris\\", \\"dose\\": 15"}</tool_call>'


@every_way
@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_call_that_was_cut_is_no_object(run: RunChain, schema: Any) -> None:
    method: Any = {"method": "function_calling", "strict": False}
    for text, max_tokens in ((CALL, len(CALL) - 14), (CALL, len(CALL)), (MENDABLE, 200)):
        with pytest.raises(IncompleteAnswerError):
            run(chat(text, max_tokens=max_tokens).with_structured_output(schema, **method), "q")
    whole = run(chat(CALL).with_structured_output(schema, **method), "q")
    assert (whole if isinstance(whole, dict) else whole.model_dump()) == {"name": "Paris", "dose": 150}


@every_way
@pytest.mark.parametrize(
    "text", [MENDABLE, MENDABLE.replace("15", ""), CALL.replace('{"name": "Paris", "dose": 150}', '""')]
)
def test_streaming_does_not_mend_a_call_that_cannot_be_read(run: RunChain, text: str) -> None:
    message = run(chat(text).bind_tools([Dose]), "q")
    assert message.tool_calls == []
    assert len(message.invalid_tool_calls) == 1
