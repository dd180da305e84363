"""Which of LangChain's own middleware may stand after the guard in an agent's list, and what holds before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import langchain.agents.middleware as langchain_middleware
import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, HumanInTheLoopMiddleware, PIIMiddleware
from langchain.agents.structured_output import ToolStrategy
from langchain_agents import ABSTAIN, APPROVE, PAUSE, SECRET, ask, last, look_up, policy, reply, thread
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from scripted_chat import ScriptedChat, said

from guard.errors import AbstainedError, InputError
from guard.langchain import GuardMiddleware


def _scored(text: str = "Of the other.", p_wrong: float = 0.1) -> ScriptedChat:
    return ScriptedChat(script=lambda _: said(text, p_wrong))


def _chooses() -> Any:
    """A decision model that always chooses the first model."""
    from langchain_core.decisions import BaseDecisionModel, ClassifierResponse

    class Chooses(BaseDecisionModel):
        model: str = "chooses"

        @property
        def _provider(self) -> str:
            return "tests"

        def _classify(self, state: Any, questions: Any) -> Any:
            answer = {"type": "choice", "choice": "a", "probabilities": {"a": 1.0}, "confidence": 1.0}
            return ClassifierResponse.model_validate({"model": "chooses", "answers": {"model_route": answer}})

    return Chooses()


def _router() -> Any:
    choice = langchain_middleware.ModelChoice(model=_scored(SECRET, 0.9), criteria="Always.")
    return langchain_middleware.ModelRouterMiddleware(
        choices={"a": choice}, instructions="Choose.", classifier=_chooses()
    )


def _make(name: str) -> Callable[..., Any]:
    return lambda *given, **settings: getattr(langchain_middleware, name)(*given, **settings)


#: Every middleware that LangChain exports: how to make one, and whether it may stand after the guard.
OWN: dict[str, tuple[Callable[[Path], Any], bool]] = {
    "AutoModeMiddleware": (lambda _: _make("AutoModeMiddleware")(tools=["look_up"], classifier=_chooses()), True),
    "ContextEditingMiddleware": (lambda _: _make("ContextEditingMiddleware")(), False),
    "FilesystemFileSearchMiddleware": (lambda at: _make("FilesystemFileSearchMiddleware")(root_path=str(at)), True),
    "HumanInTheLoopMiddleware": (lambda _: HumanInTheLoopMiddleware({"look_up": True}), False),
    "LLMToolEmulator": (lambda _: _make("LLMToolEmulator")(model=_scored()), True),
    "LLMToolSelectorMiddleware": (
        lambda _: _make("LLMToolSelectorMiddleware")(model=_scored(), always_include=["look_up"]),
        False,
    ),
    "ModelCallLimitMiddleware": (lambda _: _make("ModelCallLimitMiddleware")(run_limit=5), False),
    "ModelFallbackMiddleware": (lambda _: langchain_middleware.ModelFallbackMiddleware(_scored(SECRET, 0.9)), False),
    "ModelRefusalMiddleware": (lambda _: _make("ModelRefusalMiddleware")(), False),
    "ModelRetryMiddleware": (lambda _: _make("ModelRetryMiddleware")(max_retries=1, initial_delay=0.0), False),
    "ModelRouterMiddleware": (lambda _: _router(), False),
    "PIIMiddleware": (lambda _: PIIMiddleware("email", apply_to_output=True), False),
    "ProviderToolSearchMiddleware": (lambda _: _make("ProviderToolSearchMiddleware")(), False),
    "ShellToolMiddleware": (lambda at: _make("ShellToolMiddleware")(str(at)), True),
    "SummarizationMiddleware": (lambda _: _make("SummarizationMiddleware")(model=_scored()), True),
    "TodoListMiddleware": (lambda _: _make("TodoListMiddleware")(), False),
    "ToolCallLimitMiddleware": (lambda _: _make("ToolCallLimitMiddleware")(run_limit=5), False),
    "ToolErrorMiddleware": (lambda _: _make("ToolErrorMiddleware")(lambda *_: "failed"), True),
    "ToolRetryMiddleware": (lambda _: _make("ToolRetryMiddleware")(), True),
}

#: Those that the installed version has; the older ones have fewer.
PRESENT = [name for name in OWN if hasattr(langchain_middleware, name)]
EACH = pytest.mark.parametrize("name", PRESENT)


def build(*middleware: Any, answers: Any = (), tools: Any = (look_up,), **options: Any) -> Any:
    model = ScriptedChat(script=[*answers])
    return create_agent(model, list(tools), middleware=[*middleware], checkpointer=InMemorySaver(), **options)


def test_every_middleware_that_langchain_exports_is_in_the_table() -> None:
    exported = {
        name
        for name in langchain_middleware.__all__
        if isinstance(kind := getattr(langchain_middleware, name), type)
        and issubclass(kind, AgentMiddleware)
        and kind is not AgentMiddleware
    }
    assert exported <= set(OWN), "say of each new one where it may stand"


@EACH
def test_after_the_guard_only_middleware_stands_that_neither_wraps_the_model_nor_looks_at_its_answer(
    name: str, tmp_path: Path
) -> None:
    make, may = OWN[name]
    if may:
        build(GuardMiddleware(ABSTAIN), make(tmp_path))
        return
    with pytest.raises(InputError, match=f"{name} comes after GuardMiddleware.*Put GuardMiddleware last"):
        build(GuardMiddleware(ABSTAIN), make(tmp_path))


@EACH
def test_before_the_guard_every_middleware_stands_and_a_rejected_answer_stays_hidden(name: str, tmp_path: Path) -> None:
    make, _ = OWN[name]
    graph = build(make(tmp_path), GuardMiddleware(ABSTAIN), answers=[said(SECRET, 0.9)])
    assert last(ask(graph)).text == "No idea."
    assert SECRET not in str(graph.get_state(thread()))


@EACH
def test_before_the_guard_no_middleware_makes_an_answer_of_an_exception(name: str, tmp_path: Path) -> None:
    make, _ = OWN[name]
    raising = policy("[accept: {below: 0.2}, abstain: {raise: true}]")
    graph = build(make(tmp_path), GuardMiddleware(raising), answers=[said(SECRET, 0.9)] * 4)
    if name == "ModelRetryMiddleware":  # by its default it ends with a message of its own about the error
        assert SECRET not in str(ask(graph))
        return
    with pytest.raises(AbstainedError) as caught:
        ask(graph)
    assert SECRET not in str(caught.value)


@EACH
def test_between_two_others_the_later_one_is_found(name: str, tmp_path: Path) -> None:
    make, may = OWN[name]
    before = PIIMiddleware("url") if name != "PIIMiddleware" else HumanInTheLoopMiddleware({})
    if not may:
        with pytest.raises(InputError, match=f"{name} comes after"):
            build(before, GuardMiddleware(ABSTAIN), make(tmp_path))
    else:
        graph = build(before, GuardMiddleware(ABSTAIN), make(tmp_path), answers=[said("Fine.", 0.1)] * 4)
        assert "Fine." in str(ask(graph))


def test_middleware_of_ones_own_is_judged_by_its_hooks() -> None:
    def hook(*_: Any) -> None:
        return None

    for name in ("wrap_model_call", "awrap_model_call", "after_model", "aafter_model"):
        with pytest.raises(InputError, match=name):
            build(GuardMiddleware(ABSTAIN), type("Own", (AgentMiddleware,), {name: hook})())
    for name in ("before_model", "before_agent", "after_agent", "wrap_tool_call", "abefore_model"):
        build(GuardMiddleware(ABSTAIN), type("Own", (AgentMiddleware,), {name: hook})())


def test_a_guard_of_ones_own_class_is_judged_too() -> None:
    class Own(GuardMiddleware):
        @property
        def name(self) -> str:
            return f"own-{super().name}"

    with pytest.raises(InputError, match="PIIMiddleware comes after Own"):
        build(Own(ABSTAIN), PIIMiddleware("email"))
    assert Own(ABSTAIN).name == "own-Own"


# -- what stands before the guard sees what a person has reviewed ----------------------------------


EDIT = {"type": "edit", "edited_action": {"name": "answer", "args": {"text": "Ask ann@example.org."}}}
RESPOND = {"type": "respond", "message": "Ask ann@example.org."}


@pytest.mark.parametrize("decision", [APPROVE, EDIT, RESPOND], ids=lambda decision: decision["type"])
def test_a_redaction_reaches_the_reviewed_answer_whatever_the_person_did(decision: Any) -> None:
    redact = PIIMiddleware("email", apply_to_output=True)
    graph = build(redact, GuardMiddleware(PAUSE), answers=[said("Ask ann@example.org.", 0.9)])
    ask(graph)
    assert last(reply(graph, decision)).text == "Ask [REDACTED_EMAIL]."


def test_an_approval_of_tools_is_asked_for_after_the_review_of_the_answer() -> None:
    answers = [said("", 0.9, ("look_up", {"word": "a"})), said("Found.", 0.1)]
    graph = build(HumanInTheLoopMiddleware({"look_up": True}), GuardMiddleware(PAUSE), answers=answers)
    assert "guard" in ask(graph)["__interrupt__"][0].value
    edited = {"type": "edit", "edited_action": {"name": "look_up", "args": {"word": "b"}}}
    (second,) = reply(graph, edited)["__interrupt__"]
    assert "guard" not in second.value
    assert second.value["action_requests"][0]["args"] == {"word": "b"}
    result = reply(graph, APPROVE)
    assert [message.text for message in result["messages"]][-2:] == ["b: found", "Found."]


@pytest.mark.skipif("ModelCallLimitMiddleware" not in PRESENT, reason="this version has none")
def test_a_call_whose_answer_was_rejected_counts_for_the_limit_of_calls() -> None:
    limit = langchain_middleware.ModelCallLimitMiddleware(thread_limit=2)
    graph = build(limit, GuardMiddleware(ABSTAIN), answers=[said(SECRET, 0.9)] * 3)
    assert [last(ask(graph)).text for _ in range(2)] == ["No idea."] * 2
    assert "limit" in last(ask(graph)).text


class City(BaseModel):
    """A city."""

    name: str


def test_an_agent_that_waits_for_structure_ends_with_the_policys_text() -> None:
    for tools in ((), (look_up,)):
        given = {"answers": [said(SECRET, 0.9)], "tools": tools, "response_format": ToolStrategy(City)}
        assert last(ask(build(GuardMiddleware(ABSTAIN), **given))).text == "No idea."
        graph = build(GuardMiddleware(PAUSE), **given)
        assert last(ask(graph)).text == "Wait."
        assert last(reply(graph, RESPOND)).text == "Ask ann@example.org."
