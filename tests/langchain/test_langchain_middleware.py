"""Agents guarded by `GuardMiddleware`: decisions, reviews, tools, and many at once."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_agents import (
    ABSTAIN,
    APPROVE,
    PAUSE,
    RETRY,
    SECRET,
    Around,
    agent,
    ask,
    last,
    look_up,
    policy,
    reply,
    thread,
)
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_fixtures import chat
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.types import Command, interrupt
from pydantic import BaseModel
from scripted_chat import ScriptedChat, said

from guard.errors import (
    AbstainedError,
    ChatTemplateError,
    EngineError,
    EscalationError,
    GuardError,
    InputError,
    PolicyError,
    PromptTooLongError,
    ScorerError,
)
from guard.langchain import ChatGuard, GuardMiddleware, trusted
from guard.langchain.tracing import DECISION_EVENT
from guard.policy.policy import Policy
from guard.records import Escalation
from guard.review.store import Store
from guard.scoring.scorer import shipped_scorer


@tool
def send_money(amount: int) -> str:
    """Send money."""
    SENT.append(amount)
    return f"sent {amount}"


SENT: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_sent() -> None:
    SENT.clear()


# -- decisions ---------------------------------------------------------------------------------


def test_an_accepted_answer_is_the_models_own_in_every_field() -> None:
    script = [said("Looking.", 0.1, ("look_up", {"word": "a"})), said("It is found.", 0.1)]
    guarded = ask(agent(ScriptedChat(script=script), ABSTAIN, [look_up]))
    plain = ask(create_agent(ScriptedChat(script=script), [look_up], checkpointer=InMemorySaver()))
    assert set(guarded) == set(plain)
    for ours, theirs in zip(guarded["messages"], plain["messages"], strict=True):
        assert ours.model_dump(exclude={"id"}) == theirs.model_dump(exclude={"id"})


def test_a_retry_asks_with_other_sampling_and_the_instruction() -> None:
    model = ScriptedChat(script=[said(SECRET, 0.3), said("Fine.", 0.1)])
    result = ask(agent(model, RETRY))
    assert last(result).text == "Fine."
    assert SECRET not in str(result)
    (first, plain), (second, changed) = model.asked
    assert (first[-1].text, plain) == ("hi", {})
    assert second[-1].text == "hi\n\nThink."
    assert changed == {"temperature": 0.7, "top_p": 0.95, "top_k": 0, "seed": 3}
    assert result["messages"][0].text == "hi"


def test_used_up_retries_give_way_to_the_next_rule() -> None:
    model = ScriptedChat(script=[said(SECRET, 0.3), said(SECRET, 0.3)])
    assert last(ask(agent(model, RETRY))).text == "No idea."
    assert len(model.asked) == 2


def test_the_budget_bounds_attempts() -> None:
    chosen = policy("[accept: {below: 0.2}, retry: {below: 0.9, times: 3}, abstain]", "budget: {tokens: 20}")
    model = ScriptedChat(script=[said(SECRET, 0.3)] * 4)
    ask(agent(model, chosen))
    assert len(model.asked) == 2  # 12 tokens a call


def test_an_instruction_after_a_tools_result_is_a_message_of_its_own() -> None:
    script = [said("", 0.1, ("look_up", {"word": "a"})), said(SECRET, 0.3), said("Fine.", 0.1)]
    model = ScriptedChat(script=script)
    ask(agent(model, RETRY, [look_up]))
    assert [type(message) for message in model.asked[2][0][-2:]] == [ToolMessage, HumanMessage]
    assert model.asked[2][0][-1].text == "Think."


def test_an_abstention_ends_the_agent_with_the_text() -> None:
    model = ScriptedChat(script=[said(SECRET, 0.9, ("send_money", {"amount": 9}))])
    result = ask(agent(model, ABSTAIN, [send_money]))
    message = last(result)
    assert (message.text, message.tool_calls, SENT) == ("No idea.", [], [])
    assert message.response_metadata["guard"]["decision"]["action"] == "abstain"
    assert message.response_metadata["guard"]["p_wrong"] == 0.9
    assert message.usage_metadata == {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    assert SECRET not in str(result)


def test_an_abstention_may_be_an_exception() -> None:
    with pytest.raises(AbstainedError, match=r"p_wrong 0\.9"):
        ask(agent(ScriptedChat(script=[said(SECRET, 0.9)]), policy("[accept: {below: 0.5}, abstain: {raise: true}]")))


def test_a_fallback_text_is_the_answer() -> None:
    chosen = policy("[accept: {below: 0.2}, fallback: {below: 0.95, text: See the manual.}, abstain]")
    assert last(ask(agent(ScriptedChat(script=[said(SECRET, 0.9)]), chosen))).text == "See the manual."


FALLBACK = "[accept: {below: 0.2}, fallback: {below: 0.95, to: bigger}, abstain: {text: No idea.}]"


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (said("Of the bigger.", 0.1), "Of the bigger."),
        (said(SECRET, 0.6), "No idea."),
        (AIMessage(SECRET), "Not checked."),
    ],
)
def test_a_fallback_model_is_decided_about_where_it_scores(answer: AIMessage, text: str) -> None:
    bigger = ScriptedChat(script=[answer])
    chosen = policy(FALLBACK, "on_error: {abstain: {text: Not checked.}}")
    guarded = GuardMiddleware(chosen, fallbacks={"bigger": bigger})
    assert last(ask(agent(ScriptedChat(script=[said(SECRET, 0.5)]), guarded))).text == text
    assert len(bigger.asked) == 1


def test_the_answer_of_a_fallback_without_scores_is_final_where_it_is_declared_to_be_trusted() -> None:
    bigger = trusted(ScriptedChat(script=[AIMessage("Of a model without scores.")]))
    guarded = GuardMiddleware(policy(FALLBACK), fallbacks={"bigger": bigger})
    assert last(ask(agent(ScriptedChat(script=[said(SECRET, 0.5)]), guarded))).text == "Of a model without scores."


def test_tool_calls_of_a_fallback_without_scores_are_failures_where_tools_have_rules() -> None:
    bigger = ScriptedChat(script=[AIMessage("", tool_calls=[{"name": "send_money", "args": {"amount": 1}, "id": "1"}])])
    chosen = policy(FALLBACK, "tools: {default: {on_error: {abstain: {text: Not checked.}}}}")
    guarded = GuardMiddleware(chosen, fallbacks={"bigger": trusted(bigger)})
    assert last(ask(agent(ScriptedChat(script=[said(SECRET, 0.5)]), guarded, [send_money]))).text == "Not checked."
    assert SENT == []


@pytest.mark.parametrize(
    "answer",
    [said(SECRET, None, error="no layers"), said(SECRET, float("nan")), EngineError("broken"), ValueError("x")],
)
def test_without_a_score_on_error_decides(answer: Any) -> None:
    chosen = policy("[accept]", "on_error: {abstain: {text: Not checked.}}")
    message = last(ask(agent(ScriptedChat(script=[answer]), chosen)))
    assert message.text == "Not checked."
    assert message.response_metadata["guard"]["error"]


def test_on_error_accept_gives_an_unscored_answer_but_cannot_give_none() -> None:
    chosen = policy("[accept]", "on_error: accept")
    assert last(ask(agent(ScriptedChat(script=[said("Fine.", None)]), chosen))).text == "Fine."
    with pytest.raises(EngineError):
        ask(agent(ScriptedChat(script=[EngineError("broken")]), chosen))


@pytest.mark.parametrize("error", [InputError("bad"), PromptTooLongError("bad"), ChatTemplateError("bad")])
def test_the_callers_mistakes_are_raised_and_those_of_a_fallback_are_the_policys(error: GuardError) -> None:
    with pytest.raises(type(error), match="bad"):
        ask(agent(ScriptedChat(script=[error]), ABSTAIN))
    chosen = policy(FALLBACK, "on_error: {abstain: {text: Not checked.}}")
    guarded = GuardMiddleware(chosen, fallbacks={"bigger": ScriptedChat(script=[error])})
    assert last(ask(agent(ScriptedChat(script=[said(SECRET, 0.5)]), guarded))).text == "Not checked."


def test_a_model_without_scores_is_refused() -> None:
    with pytest.raises(InputError, match=r"ScriptedChat does not score its answers.*ChatGuard"):
        ask(agent(ScriptedChat(script=[AIMessage(SECRET)]), ABSTAIN))


def test_shadow_mode_changes_nothing_and_tells_what_it_would_do() -> None:
    events: list[Any] = []

    class Events(BaseCallbackHandler):
        def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
            events.append((name, data))

    chosen = policy("[accept: {below: 0.2}, escalate: {to: [interrupt, nobody]}]", "mode: shadow")
    graph = agent(ScriptedChat(script=[said("As it is.", 0.9)]), chosen, checkpointer=None)
    assert last(ask(graph, config={"callbacks": [Events()]})).text == "As it is."
    ((name, data),) = events
    assert (name, data["action"], data["mode"], data["p_wrong"]) == (DECISION_EVENT, "escalate", "shadow", 0.9)


# -- escalation --------------------------------------------------------------------------------


def test_handlers_get_the_case_and_the_caller_the_reply(tmp_path: Path) -> None:
    cases: list[Escalation] = []
    chosen = policy("[accept: {below: 0.2}, escalate: {to: [review, own], reply: A person will answer.}]")
    with Store.open(tmp_path / "reviews.db") as store:
        guarded = GuardMiddleware(chosen, handlers={"own": cases.append}, store=store)
        model = ScriptedChat(script=[said("", 0.9, ("send_money", {"amount": 5}))])
        graph = agent(model, guarded, [send_money], system_prompt="Be brief.")
        message = last(ask(graph, config={**thread(), "metadata": {"user": 7}}))
        (review,) = store.reviews()
    (case,) = cases
    assert message.text == "A person will answer."
    assert message.response_metadata["guard"]["decision"]["escalated_to"] == ["review", "own"]
    assert review.decision_id == case.decision_id == message.response_metadata["guard"]["decision"]["decision_id"]
    assert (case.question, case.answer, case.p_wrong) == ("hi", 'send_money({"amount": 5})', 0.9)
    assert case.metadata == {"user": 7, "thread_id": "1"}
    assert case.model == "scripted"
    assert [turn["role"] for turn in case.prompt.messages or ()] == ["system", "user"]
    assert case.prompt.tools[0]["function"]["name"] == "send_money"
    assert SENT == []


def broken(_: Escalation) -> None:
    raise OSError("down")


def test_a_case_that_nobody_takes_is_an_error() -> None:
    guarded = GuardMiddleware(policy("[escalate: {to: own}]"), handlers={"own": broken})
    with pytest.raises(EscalationError, match="down"):
        ask(agent(ScriptedChat(script=[said(SECRET, 0.9)]), guarded))


@pytest.mark.parametrize("how", ["invoke", "ainvoke"])
def test_a_late_handler_is_reported_and_does_not_hold_the_agent_up(how: str) -> None:
    over, cases = threading.Event(), list[Escalation]()
    guarded = GuardMiddleware(
        policy("[escalate: {to: [late, own], reply: Later.}]"),
        handlers={"late": lambda case: over.wait(10), "own": cases.append},
        handler_timeout_s=0.1,
    )
    graph = agent(ScriptedChat(script=[said(SECRET, 0.9)]), guarded)
    given = {"messages": [("user", "hi")]}
    result = ask(graph) if how == "invoke" else asyncio.run(graph.ainvoke(given, thread()))
    over.set()
    decision = last(result).response_metadata["guard"]["decision"]
    assert (last(result).text, len(cases), decision["escalated_to"]) == ("Later.", 1, ["own"])
    assert decision["errors"][0].startswith("late: ")


def test_a_pause_still_has_the_case_where_the_handlers_fail() -> None:
    guarded = GuardMiddleware(policy("[escalate: {to: [own, interrupt]}]"), handlers={"own": broken})
    graph = agent(ScriptedChat(script=[said("Fine.", 0.9)]), guarded)
    paused = ask(graph)
    assert "down" in last(paused).response_metadata["guard"]["decision"]["errors"][0]
    assert last(reply(graph, APPROVE)).text == "Fine."


def test_handlers_are_called_once_however_often_the_agent_is_resumed() -> None:
    cases: list[Escalation] = []
    guarded = GuardMiddleware(policy("[escalate: {to: [own, interrupt]}]"), handlers={"own": cases.append})
    graph = agent(ScriptedChat(script=[said("Fine.", 0.9)]), guarded)
    ask(graph)
    reply(graph, {"type": "no"})
    reply(graph, APPROVE)
    assert len(cases) == 1


async def test_async_handlers_run_in_async_agents() -> None:
    cases: list[str] = []

    async def own(case: Escalation) -> None:
        await asyncio.sleep(0)
        cases.append(case.decision_id)

    guarded = GuardMiddleware(policy("[escalate: {to: own, reply: Later.}]"), handlers={"own": own})
    graph = agent(ScriptedChat(script=[said(SECRET, 0.9)]), guarded)
    result = await graph.ainvoke({"messages": [("user", "hi")]}, thread())
    assert last(result).text == "Later."
    assert len(cases) == 1


# -- review of answers -------------------------------------------------------------------------


def test_the_request_has_the_ecosystems_form() -> None:
    graph = agent(ScriptedChat(script=[said("Paris?", 0.9)]), PAUSE)
    (asked,) = ask(graph, "What is the capital?")["__interrupt__"]
    (action,) = asked.value["action_requests"]
    assert (action["name"], action["args"]) == ("answer", {"text": "Paris?"})
    assert "probability 0.90" in action["description"]
    assert "What is the capital?" in action["description"]
    (config,) = asked.value["review_configs"]
    assert config == {"action_name": "answer", "allowed_decisions": ["approve", "edit", "reject", "respond"]}
    assert asked.value["guard"]["p_wrong"] == 0.9
    json.dumps(asked.value)


@pytest.mark.parametrize(
    ("decision", "text"),
    [
        (APPROVE, "Paris?"),
        ({"type": "edit", "edited_action": {"name": "answer", "args": {"text": "Rome."}}}, "Rome."),
        ({"type": "reject"}, "Wait."),
        ({"type": "reject", "message": "Nonsense."}, "Wait."),
        ({"type": "respond", "message": "I say Bern."}, "I say Bern."),
    ],
)
def test_the_reviewed_text_stands_under_the_same_id_after_one_generation(decision: Any, text: str) -> None:
    model = ScriptedChat(script=[said("Paris?", 0.9)])
    graph = agent(model, PAUSE)
    placeholder = last(ask(graph))
    assert placeholder.text == "Wait."
    result = reply(graph, decision)
    assert (last(result).text, last(result).id) == (text, placeholder.id)
    assert len(result["messages"]) == 2
    assert last(result).response_metadata["guard"]["review"] == {"decisions": [decision]}
    assert len(model.asked) == 1
    assert graph.get_state(thread()).next == ()
    assert not graph.get_state(thread()).values.get("guard_turn")
    assert ("Paris?" in str(result)) == (decision == APPROVE)


def test_a_rejection_without_a_reply_has_a_text_of_its_own() -> None:
    graph = agent(ScriptedChat(script=[said(SECRET, 0.9)]), policy("[escalate: {to: interrupt}]"))
    assert last(ask(graph)).text == ""
    assert last(reply(graph, {"type": "reject"})).text == "A reviewer rejected the answer."


def test_a_conversation_continues_after_a_review() -> None:
    graph = agent(ScriptedChat(script=[said("One?", 0.9), said("Two.", 0.1), said("Three?", 0.9)]), PAUSE)
    ask(graph)
    reply(graph, APPROVE)
    assert last(ask(graph, "and?")).text == "Two."
    ask(graph, "and?")
    result = reply(graph, APPROVE)
    assert [message.text for message in result["messages"]] == ["hi", "One?", "and?", "Two.", "and?", "Three?"]


def test_a_question_in_place_of_a_review_leaves_the_answer_unseen() -> None:
    graph = agent(ScriptedChat(script=[said(SECRET, 0.9), said("Fine.", 0.1)]), PAUSE)
    ask(graph)
    result = ask(graph, "another")
    assert last(result).text == "Fine."
    assert "__interrupt__" not in result
    assert SECRET not in str(result)


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        ("approve", "a str"),
        (True, "a bool"),
        ([APPROVE], "a list"),
        ({"decision": [APPROVE]}, "a dict with decision"),
        ({"decisions": APPROVE}, "cannot be parsed|1 actions"),
        ({"decisions": "approve"}, "cannot be parsed"),
        ({"decisions": []}, "0 decisions for 1"),
        ({"decisions": [APPROVE, APPROVE]}, "2 decisions for 1"),
        ({"decisions": [APPROVE], "force": True}, "with decisions, force"),
        ({"decisions": ["approve"]}, "needs a 'type'"),
        ({"decisions": [{}]}, "needs a 'type'"),
        ({"decisions": [{"type": "aprove"}]}, "Did you mean 'approve'"),
        ({"decisions": [{"type": "accept"}]}, "'accept' is not an allowed decision"),
        ({"decisions": [{"type": ["approve"]}]}, "needs a 'type'"),
        ({"decisions": [{"type": "approve", "message": "but"}]}, "'approve' has no key 'message'"),
        ({"decisions": [{"type": "edit"}]}, "'edit' needs 'edited_action'"),
        ({"decisions": [{"type": "edit", "edited_action": "x"}]}, "needs 'name' and 'args'"),
        ({"decisions": [{"type": "edit", "edited_action": {"name": "answer"}}]}, "needs 'name' and 'args'"),
        ({"decisions": [{"type": "edit", "edited_action": {"name": "x", "args": {"text": "y"}}}]}, "cannot name 'x'"),
        ({"decisions": [{"type": "edit", "edited_action": {"name": "answer", "args": {"text": " "}}}]}, "must be"),
        ({"decisions": [{"type": "edit", "edited_action": {"name": "answer", "args": {"txt": "y"}}}]}, "must be"),
        (
            {"decisions": [{"type": "edit", "edited_action": {"name": "answer", "args": {"text": "y"}, "id": 1}}]},
            "and no other key",
        ),
        (
            {"decisions": [{"type": "edit", "edited_action": {"name": "answer", "args": {"text": "y", "to": "z"}}}]},
            "must be",
        ),
        (
            {"decisions": [{"type": "edit", "edited_action": {"name": "answer", "args": {"text": "y"}}, "force": 1}]},
            "'edit' has no key 'force'",
        ),
        ({"decisions": [APPROVE | {"edited_action": {"name": "answer", "args": {"text": "y"}}}]}, "has no key"),
        ({"decisions": [{"type": "respond"}]}, "'respond' needs 'message'"),
        ({"decisions": [{"type": "respond", "message": ""}]}, "must be a non-empty text"),
        ({"decisions": [{"type": "reject", "message": 3}]}, "must be a non-empty text"),
        ({"decisions": [{"type": "reject", "mesage": "no"}]}, "Did you mean 'message'"),
    ],
)
def test_a_bad_reply_is_refused_and_asked_for_again(bad: Any, error: str) -> None:
    model = ScriptedChat(script=[said(SECRET, 0.9)])
    graph = agent(model, PAUSE)
    ask(graph)
    result = graph.invoke(Command(resume=bad), thread())
    (again,) = result["__interrupt__"]
    assert pytest.approx(0.9) == again.value["guard"]["p_wrong"]
    assert re.search(error, again.value["error"]), again.value["error"]
    assert last(result).text == "Wait."
    assert SECRET not in str([message.model_dump() for message in result["messages"]])
    result = reply(graph, {"type": "respond", "message": "Right."})
    assert last(result).text == "Right."
    assert len(model.asked) == 1


def test_several_bad_replies_do_not_wear_it_down() -> None:
    graph = agent(ScriptedChat(script=[said(SECRET, 0.9)]), PAUSE)
    ask(graph)
    for _ in range(5):
        result = graph.invoke(Command(resume="yes"), thread())
        assert last(result).text == "Wait."
    assert last(reply(graph, {"type": "reject"})).text == "Wait."


def test_without_a_checkpointer_it_fails_before_the_model_is_called() -> None:
    model = ScriptedChat(script=[said("Fine.", 0.1)])
    with pytest.raises(InputError, match=r"no checkpointer.*InMemorySaver"):
        ask(agent(model, PAUSE, checkpointer=None))
    assert model.asked == []
    assert last(ask(agent(model, ABSTAIN, checkpointer=None))).text == "Fine."


def test_a_failed_model_can_be_reviewed_but_not_approved() -> None:
    chosen = policy("[accept]", "on_error: {escalate: {to: interrupt}}")
    graph = agent(ScriptedChat(script=[EngineError("broken")]), chosen)
    (asked,) = ask(graph)["__interrupt__"]
    assert asked.value["review_configs"][0]["allowed_decisions"] == ["reject", "respond"]
    assert "could not be scored" in asked.value["action_requests"][0]["description"]
    assert "'approve' is not an allowed decision" in reply(graph, APPROVE)["__interrupt__"][0].value["error"]
    assert last(reply(graph, {"type": "respond", "message": "By hand."})).text == "By hand."


def test_a_review_is_possible_after_a_restart(tmp_path: Path) -> None:
    with SqliteSaver.from_conn_string(str(tmp_path / "agent.db")) as saver:
        ask(agent(ScriptedChat(script=[said("Paris?", 0.9)]), PAUSE, checkpointer=saver))
    with SqliteSaver.from_conn_string(str(tmp_path / "agent.db")) as saver:
        model = ScriptedChat(script=[])
        graph = agent(model, PAUSE, checkpointer=saver)
        (asked,) = graph.get_state(thread()).interrupts
        assert asked.value["action_requests"][0]["args"] == {"text": "Paris?"}
        assert last(reply(graph, APPROVE)).text == "Paris?"
        assert model.asked == []


# -- tools -------------------------------------------------------------------------------------

TOOLS = policy(
    "[accept: {below: 0.5}, abstain: {text: No idea.}]",
    "tools: {send_money: {rules: [accept: {below: 0.05}, escalate: {to: interrupt}]}}",
)


def called(p_wrong: float, *calls: tuple[str, dict[str, Any]]) -> list[AIMessage]:
    return [said("I will do it.", p_wrong, *calls), said("Done.", 0.1)]


def test_tools_have_their_own_thresholds() -> None:
    one, both = ("look_up", {"word": "a"}), ("send_money", {"amount": 5})
    assert last(ask(agent(ScriptedChat(script=called(0.4, one)), TOOLS, [look_up, send_money]))).text == "Done."
    assert last(ask(agent(ScriptedChat(script=called(0.01, both)), TOOLS, [look_up, send_money]))).text == "Done."
    assert SENT == [5]
    paused = ask(agent(ScriptedChat(script=called(0.4, one, both)), TOOLS, [look_up, send_money]))
    (asked,) = paused["__interrupt__"]
    assert [action["name"] for action in asked.value["action_requests"]] == ["look_up", "send_money"]
    assert "I will do it." in asked.value["action_requests"][0]["description"]
    assert (last(paused).text, last(paused).tool_calls, SENT) == ("", [], [5])


MONEY = ("send_money", {"amount": 5})


@pytest.mark.parametrize(
    ("decision", "sent", "told"),
    [
        (APPROVE, [5], "sent 5"),
        ({"type": "edit", "edited_action": {"name": "send_money", "args": {"amount": 1}}}, [1], "sent 1"),
        ({"type": "edit", "edited_action": {"name": "look_up", "args": {"word": "b"}}}, [], "b: found"),
        ({"type": "reject", "message": "Too much."}, [], "was not run; do not call it again. The reason: Too much."),
        ({"type": "reject"}, [], "rejected the call of send_money"),
        ({"type": "respond", "message": "Paid in cash."}, [], "Paid in cash."),
    ],
)
def test_tool_calls_under_review(decision: Any, sent: list[int], told: str) -> None:
    model = ScriptedChat(script=called(0.4, MONEY))
    graph = agent(model, TOOLS, [look_up, send_money])
    held = last(ask(graph))
    result = reply(graph, decision)
    assert sent == SENT
    _, call, answer, done = result["messages"]
    assert (call.id, call.text) == (held.id, "I will do it.")
    assert isinstance(answer, ToolMessage)
    assert told in answer.text
    assert answer.tool_call_id == call.tool_calls[0]["id"]
    assert done.text == "Done."
    assert len(model.asked) == 2  # the second is the agent's next step, with the tool's result


def test_several_calls_are_decided_one_by_one() -> None:
    model = ScriptedChat(script=called(0.4, MONEY, ("look_up", {"word": "a"}), ("send_money", {"amount": 7})))
    graph = agent(model, TOOLS, [look_up, send_money])
    ask(graph)
    assert "1 decisions for 3" in reply(graph, APPROVE)["__interrupt__"][0].value["error"]
    edit = {"type": "edit", "edited_action": {"name": "send_money", "args": {"amount": 2}}}
    result = reply(graph, {"type": "reject"}, APPROVE, edit)
    assert SENT == [2]
    assert sorted(m.tool_call_id for m in result["messages"] if isinstance(m, ToolMessage)) == [
        "call_0",
        "call_1",
        "call_2",
    ]
    assert last(result).text == "Done."


def test_an_edit_cannot_call_a_tool_that_the_agent_lacks() -> None:
    graph = agent(ScriptedChat(script=called(0.4, MONEY)), TOOLS, [look_up, send_money])
    ask(graph)
    edit = {"type": "edit", "edited_action": {"name": "send_mony", "args": {"amount": 1}}}
    assert "Did you mean 'send_money'" in reply(graph, edit)["__interrupt__"][0].value["error"]
    assert SENT == []


def test_langchains_own_review_of_tools_works_beside_it() -> None:
    model = ScriptedChat(script=[*called(0.01, MONEY)[:1], said("Paris?", 0.9)])
    own = HumanInTheLoopMiddleware({"send_money": True})
    graph = create_agent(model, [send_money], middleware=[own, GuardMiddleware(PAUSE)], checkpointer=InMemorySaver())
    (asked,) = ask(graph)["__interrupt__"]
    assert "guard" not in asked.value
    (asked,) = reply(graph, APPROVE)["__interrupt__"]
    assert asked.value["guard"]["p_wrong"] == 0.9
    assert SENT == [5]
    assert last(reply(graph, APPROVE)).text == "Paris?"


# -- structured responses ----------------------------------------------------------------------


class City(BaseModel):
    """A city."""

    name: str


CITY = ("City", {"name": "Paris"})


def structured(p_wrong: float, chosen: Policy, tools: Any = ()) -> tuple[ScriptedChat, Any]:
    model = ScriptedChat(script=[said("", p_wrong, CITY)])
    return model, agent(model, chosen, tools, response_format=ToolStrategy(City))


@pytest.mark.parametrize("tools", [[], [look_up]])
def test_an_abstention_ends_an_agent_that_waits_for_structure(tools: Any) -> None:
    model, graph = structured(0.9, ABSTAIN, tools)
    result = ask(graph)
    assert last(result).text == "No idea."
    assert result.get("structured_response") is None
    assert len(model.asked) == 1


@pytest.mark.parametrize("tools", [[], [look_up]])
def test_structured_responses_are_approved_or_rejected(tools: Any) -> None:
    for decision, found in ((APPROVE, City(name="Paris")), ({"type": "reject"}, None)):
        model, graph = structured(0.9, PAUSE, tools)
        paused = ask(graph)
        assert paused.get("structured_response") is None
        assert "Paris" not in str(paused["messages"])
        assert paused["__interrupt__"][0].value["review_configs"][0]["allowed_decisions"] == ["approve", "reject"]
        result = reply(graph, decision)
        assert result.get("structured_response") == found
        assert len(model.asked) == 1


def test_a_structured_response_is_no_tool_call_to_the_policy() -> None:
    chosen = policy("[accept: {below: 0.5}, abstain]", "tools: {default: {rules: [abstain]}}")
    assert ask(structured(0.4, chosen)[1])["structured_response"] == City(name="Paris")


# -- one object, many agents -------------------------------------------------------------------


def echo(messages: list[BaseMessage]) -> AIMessage:
    """Right about even numbers, wrong about odd ones."""
    number = int(messages[-1].text)
    return said(f"answer {number}", 0.1 if number % 2 == 0 else 0.9)


def test_agents_and_threads_share_a_middleware_without_cross_talk() -> None:
    guarded = GuardMiddleware(PAUSE)
    graphs = [agent(ScriptedChat(script=echo), guarded) for _ in range(2)]

    def one(number: int) -> str:
        graph, config = graphs[number % 3 == 0], thread(str(number))
        result = ask(graph, str(number), config)
        if "__interrupt__" in result:
            assert number % 2
            result = reply(graph, {"type": "respond", "message": f"review {number}"}, config=config)
        return last(result).text

    with ThreadPoolExecutor(16) as pool:
        texts = list(pool.map(one, range(64)))
    assert texts == [f"{'review' if number % 2 else 'answer'} {number}" for number in range(64)]


async def test_concurrent_async_agents_keep_apart() -> None:
    graph = agent(ScriptedChat(script=echo, seconds=0.01), ABSTAIN)

    async def one(number: int) -> str:
        result = await graph.ainvoke({"messages": [("user", str(number))]}, thread(str(number)))
        return last(result).text

    texts = await asyncio.gather(*(one(number) for number in range(64)))
    assert texts == ["No idea." if number % 2 else f"answer {number}" for number in range(64)]


async def test_a_cancelled_agent_cancels_its_model() -> None:
    graph = agent(ScriptedChat(script=[said("late", 0.1)], seconds=60), ABSTAIN)
    task = asyncio.create_task(graph.ainvoke({"messages": [("user", "hi")]}, thread()))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)


def test_interrupts_from_within_the_model_call_pass_through() -> None:
    class Inner(AgentMiddleware[Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            if interrupt("go on?") != "yes":
                raise AssertionError
            return handler(request)

    model = ScriptedChat(script=[said("Fine.", 0.1)])
    graph = agent(model, Around(Inner(), ABSTAIN))
    (asked,) = ask(graph)["__interrupt__"]
    assert asked.value == "go on?"
    assert last(graph.invoke(Command(resume="yes"), thread())).text == "Fine."


# -- building ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: GuardMiddleware("strct"), PolicyError, "Did you mean 'strict'"),
        (lambda: GuardMiddleware("certified"), PolicyError, "no certificate covers an agent"),
        (lambda: GuardMiddleware(ABSTAIN, route="x"), PolicyError, "no route 'x'"),
        (lambda: GuardMiddleware(policy(FALLBACK)), InputError, "falls back to 'bigger'"),
        (
            lambda: GuardMiddleware(policy(FALLBACK), fallbacks={"biger": ScriptedChat(script=[])}),
            InputError,
            "Did you mean 'biger'",
        ),
        (lambda: GuardMiddleware(policy(FALLBACK), fallbacks={"bigger": "gpt"}), InputError, "must be a chat model"),
        (lambda: GuardMiddleware(policy("[escalate: {to: lg}]")), InputError, "Did you mean 'log'"),
        (lambda: GuardMiddleware(PAUSE, handlers={"interrupt": print}), InputError, "cannot name a handler"),
        (lambda: GuardMiddleware(policy("[abstain]", "streaming: live")), InputError, "streams live.*hold"),
        (
            lambda: GuardMiddleware(policy(FALLBACK, "fallbacks: {bigger: {model: smollm2}}")),
            InputError,
            "'bigger' without a scorer.*fallbacks.bigger.scorer",
        ),
        (
            lambda: GuardMiddleware(policy(FALLBACK, "fallbacks: {bigger: {model: smollm2, scorer: nowhere.json}}")),
            ScorerError,
            "nowhere.json",
        ),
    ],
)
def test_mistakes_are_found_when_it_is_built(build: Callable[[], Any], error: type[GuardError], message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_live_policy_may_be_tried_in_shadow_mode_where_everything_streams() -> None:
    chosen = policy("[abstain]", "streaming: live\nmode: shadow")
    assert last(ask(agent(ScriptedChat(script=[said("Fine.", 0.9)]), chosen))).text == "Fine."


def test_a_given_model_takes_the_place_of_a_declared_fallback() -> None:
    chosen = policy(FALLBACK, "fallbacks: {bigger: {model: no-such.gguf, scorer: nowhere.json}}")
    guarded = GuardMiddleware(chosen, fallbacks={"bigger": ScriptedChat(script=[said("Of the given.", 0.1)])})
    assert last(ask(agent(ScriptedChat(script=[said(SECRET, 0.5)]), guarded))).text == "Of the given."


def test_a_route_has_its_own_rules() -> None:
    chosen = policy("[accept]", "routes: {careful: {rules: [abstain: {text: Rather not.}]}}")
    graph = agent(ScriptedChat(script=[said("Fine.", 0.1)]), GuardMiddleware(chosen, route="careful"))
    assert last(ask(graph)).text == "Rather not."


# -- with the embedded model -------------------------------------------------------------------

QUESTION = "Name the capital of France."


@pytest.fixture(scope="module")
def answer() -> str:
    """What the embedded model says when nobody guards it."""
    text = str(chat(max_tokens=8).invoke(QUESTION).text)
    assert len(text) > 10
    return text


@pytest.mark.model
@pytest.mark.parametrize("accepted", [True, False])
def test_a_fallback_that_the_policy_declares_is_loaded_and_decided_about(accepted: bool) -> None:
    alone = ChatGuard(model="smollm2").invoke(QUESTION)
    p_wrong = alone.response_metadata["guard"]["p_wrong"]
    below = p_wrong + 0.01 if accepted else p_wrong
    chosen = policy(
        f"[accept: {{below: {below}}}, fallback: {{below: 1, to: own}}, abstain: {{text: No idea.}}]",
        f"fallbacks: {{own: {{model: smollm2, scorer: '{shipped_scorer()}'}}}}",
    )
    message = last(ask(agent(ScriptedChat(script=[said(SECRET, 0.999)]), chosen), QUESTION))
    assert message.text == (alone.text if accepted else "No idea.")
    assert message.response_metadata["guard"]["p_wrong"] == p_wrong


@pytest.mark.model
def test_a_real_retry_is_sampled_again_within_the_budget(answer: str) -> None:
    chosen = policy(
        "[retry: {below: 1, times: 1, temperature: 1.5, seed: 5}, abstain: {text: No idea.}]",
        "budget: {tokens: 120}\ntruncated: accept",
    )
    cases: list[Any] = []

    class Events(BaseCallbackHandler):
        def on_custom_event(self, name: str, data: Any, **_: Any) -> None:
            cases.append(data)

    result = ask(agent(chat(max_tokens=16), chosen), QUESTION, thread(callbacks=[Events()]))
    assert last(result).text == "No idea."
    assert cases[0]["attempts"] == 2
    sampling = last(result).response_metadata["guard"]["sampling"]
    assert (sampling["temperature"], sampling["seed"]) == (1.5, 5)
    assert answer not in str(result)


@pytest.mark.model
async def test_real_answers_of_concurrent_agents_keep_apart() -> None:
    graph = agent(chat(max_tokens=6), policy("[accept]"))
    questions = [f"Say the number {number}." for number in range(6)]
    alone = [last(ask(graph, question, thread(f"alone {question}"))).text for question in questions]
    results = await asyncio.gather(
        *(graph.ainvoke({"messages": [("user", question)]}, thread(question)) for question in questions)
    )
    assert [last(result).text for result in results] == alone
