"""What callers hand over with a policy: right kinds work in every interface, wrong ones are one clear error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said
from typer.testing import CliRunner

from guard.cli.output import user_functions
from guard.cli.policy import app as policy_commands
from guard.errors import InputError
from guard.langchain import ChatGuard, GuardMiddleware, guarded
from guard.policy.policy import parse_policy
from guard.records import Escalation, Prompt
from guard.review.store import Store
from guard.runtime.guard import Guard

ASK = "version: 1\nname: asks\nrules:\n  - escalate: {to: [ticket, review], reply: Please wait.}\n"


def make_guard(**given: Any) -> Any:
    engine = AnsweringEngine(lambda prompt, number: ("Lyon", 0.5))
    return Guard(engine, confidence_scorer(), **{"policy": "balanced", **given})


def make_chat(**given: Any) -> Any:
    engine = AnsweringEngine(lambda prompt, number: ("Lyon", 0.5))
    return ChatGuard(engine=engine, scorer=confidence_scorer(), **{"policy": "balanced", **given})


def make_chain(**given: Any) -> Any:
    return guarded(ScriptedChat(script=[said("Lyon", 0.5)]), **given)


INTERFACES: list[Callable[..., Any]] = [make_guard, Guard.load, make_chain, GuardMiddleware, make_chat]


@pytest.mark.parametrize("make", INTERFACES)
@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"handlers": [print]}, "handlers= must be a mapping from names to functions of one Escalation, got a list"),
        ({"handlers": print}, "handlers= must be a mapping"),
        ({"fallbacks": [print]}, "fallbacks= must be a mapping from names to"),
        ({"policy": {"rules": []}}, "policy= must be a built-in name, a file or a Policy, got a dict"),
        ({"policy": 3}, "policy= must be a built-in name, a file or a Policy, got a int"),
        ({"handlers": {"review": "http://x"}}, "cannot be called: it is a str"),
    ],
)
def test_the_wrong_kind_is_one_clear_error(make: Callable[..., Any], given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        make(**given)


@pytest.mark.parametrize("make", [make_guard, GuardMiddleware])
def test_a_store_of_the_wrong_kind_is_one_clear_error(make: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="must be a file, a URL or a Store, got a int"):
        make(store=3)


def test_the_caller_gets_receipts_and_then_the_persons_answer(tmp_path: Path) -> None:
    cases: list[Escalation] = []

    def ticket(case: Escalation) -> str:
        cases.append(case)
        return "OPS-17"

    with Store.open(tmp_path / "reviews.db") as store:
        with make_guard(policy=parse_policy(ASK), handlers={"ticket": ticket}, store=store) as guard:
            outcome = guard.ask("Capital of France?")
        assert outcome.receipts == {"ticket": "OPS-17", "review": store.reviews()[0].id}
        assert outcome.escalated_to == ("ticket", "review")
        store.edit(outcome.decision_id, answer="Paris", draft="wrong", reviewer="ann")
        assert store.review(outcome.decision_id).final_answer == "Paris"


def test_a_guarded_chain_has_receipts_too() -> None:
    chain = make_chain(
        policy=parse_policy(ASK.replace("[ticket, review]", "[ticket]")),
        handlers={"ticket": lambda _: "OPS-17"},
        return_outcome=True,
    )
    assert chain.invoke("?").outcome.receipts == {"ticket": "OPS-17"}


# -- the case is what the model read -----------------------------------------------------------


class ReadingEngine(AnsweringEngine):
    """Keeps the whole prompts that it was asked."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, number: ("Lyon", 0.5))
        self.read: list[Prompt] = []

    def encode(self, prompt: Prompt) -> list[int]:
        self.read.append(prompt)
        return super().encode(prompt)


RETRY = """version: 1
name: retries
rules:
  - retry: {below: 0.6, times: 1, instruction: Think again.}
  - escalate: {to: [desk]}
"""


def test_a_chains_case_has_the_system_message_and_the_instruction_that_the_model_read() -> None:
    engine, cases = ReadingEngine(), list[Escalation]()
    model = ChatGuard(engine=engine, scorer=confidence_scorer(), system="Answer as a librarian.")
    chain = guarded(model, policy=parse_policy(RETRY), handlers={"desk": cases.append})
    chain.invoke("Where is Faust?")
    (case,) = cases
    assert case.prompt == engine.read[-1]
    assert case.prompt.messages[0] == {"role": "system", "content": "Answer as a librarian."}
    assert case.prompt.messages[-1]["content"].endswith("Think again.")


def test_an_agents_case_has_the_system_message_that_the_model_read() -> None:
    agents = pytest.importorskip("langchain.agents")
    engine, cases = ReadingEngine(), list[Escalation]()
    model = ChatGuard(engine=engine, scorer=confidence_scorer(), system="Answer as a librarian.")
    middleware = GuardMiddleware(
        parse_policy(RETRY.replace("retry: {below: 0.6, times: 1, instruction: Think again.}", "accept: {below: 0.1}")),
        handlers={"desk": cases.append},
    )
    agents.create_agent(model, [], middleware=[middleware]).invoke({"messages": [("user", "Where is Faust?")]})
    (case,) = cases
    assert case.prompt == engine.read[-1]
    assert case.prompt.messages[0] == {"role": "system", "content": "Answer as a librarian."}


# -- on the command line -----------------------------------------------------------------------


def test_a_handler_of_ones_own_is_named_as_module_and_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "desk.py").write_text("def open_ticket(case):\n    return f'OPS {case.question}'\n")
    monkeypatch.syspath_prepend(tmp_path)
    handlers = user_functions("handler", ["ticket=desk:open_ticket"])
    assert list(handlers) == ["ticket"]
    assert handlers["ticket"].__module__ == "desk"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["ticket"], "Write --handler NAME=MODULE:FUNCTION"),
        (["=os:getcwd"], "Write --handler NAME=MODULE:FUNCTION"),
        (["ticket=getcwd"], "module:function"),
        (["ticket=no_such_module_at_all:f"], "Cannot import the module of the handler"),
        (["ticket=os:getcwdd"], "Did you mean 'getcwd'"),
        (["ticket=os:getcwd", "ticket=os:getcwdb"], "gives 'ticket' twice"),
    ],
)
def test_a_handler_that_cannot_be_had_is_said_at_once(given: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        user_functions("handler", given)


@pytest.mark.model
def test_guard_ask_runs_a_policy_with_a_handler_of_ones_own(smollm2_path: Path, tmp_path: Path) -> None:
    del smollm2_path
    (tmp_path / "desk.py").write_text("def open_ticket(case):\n    return f'OPS about {case.question}'\n")
    (tmp_path / "asks.yaml").write_text(ASK.replace("[ticket, review]", "[ticket]"))
    program = "import sys; sys.path.insert(0, '.'); from guard.cli import main; main()"
    arguments = ["ask", "Why?", "--policy", "asks.yaml", "--handler", "ticket=desk:open_ticket"]
    run = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert run.returncode == 11, run.stderr
    assert "Please wait." in run.stdout
    assert "ticket: OPS about Why?" in run.stdout


def test_policy_check_names_what_has_to_be_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "asks.yaml"
    path.write_text(
        "version: 1\nname: asks\nrules:\n  - fallback: {below: 0.5, to: other}\n"
        "  - escalate: {to: [ticket, review, log, interrupt]}\n"
    )
    told = CliRunner().invoke(policy_commands, ["check", str(path)]).stdout
    assert f"{path}: needs handlers={{'ticket': ...}}, or guard ask --handler ticket=MODULE:FUNCTION" in told
    assert f"{path}: needs fallbacks={{'other': ...}}, or other declared under fallbacks" in told
    assert f"{path}: 'interrupt' pauses an agent, so only GuardMiddleware can carry it out" in told
    assert "'review'" not in told
    balanced = CliRunner().invoke(policy_commands, ["check", "balanced"]).stdout
    assert "needs" not in balanced
