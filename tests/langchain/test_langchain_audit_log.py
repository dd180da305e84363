"""Chains and agents write their decisions to the audit log, and give nothing where they cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_agents import ABSTAIN, agent, ask, last, thread
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.audit.log import AuditLog
from guard.errors import InputError, StoreError
from guard.langchain import ChatGuard, GuardMiddleware, RetractedError, guarded
from guard.policy.policy import parse_policy
from guard.review.store import Store
from guard.runtime.guard import Guard

LIVE = parse_policy(
    "{version: 1, name: live, streaming: live, rules: [{accept: {below: 0.2}}, {abstain: {text: No idea.}}]}"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


def decisions(log: AuditLog) -> list[dict[str, Any]]:
    return [json.loads(entry.event) for entry in log.entries() if '"kind":"decision"' in entry.event]


def chat(*p_wrong: float) -> ScriptedChat:
    return ScriptedChat(script=[said("Paris", each) for each in p_wrong])


def break_log(store: Store) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE audit_texts")


def test_a_chain_logs_what_it_decides(store: Store) -> None:
    log = store.audit_log()
    chain = guarded(chat(0.1, 0.9, 0.1), policy=ABSTAIN, audit_log=log)
    assert chain.invoke("hi").content == "Paris"
    assert asyncio.run(chain.ainvoke("hi")).content == "No idea."
    assert "".join(chunk.content for chunk in chain.stream("hi")).strip() == "Paris"
    assert [event["action"] for event in decisions(log)] == ["accept", "abstain", "accept"]
    assert "Paris" not in "".join(log.export())


def test_a_chain_gives_nothing_without_an_entry(store: Store) -> None:
    chain = guarded(chat(0.1, 0.1, 0.1), policy=ABSTAIN, audit_log=store.audit_log())
    break_log(store)
    for call in (chain.invoke, lambda text: asyncio.run(chain.ainvoke(text)), lambda text: list(chain.stream(text))):
        with pytest.raises(StoreError):
            call("hi")


def test_a_live_stream_logs_what_it_retracts(store: Store) -> None:
    log = store.audit_log()
    with pytest.raises(RetractedError):
        list(guarded(chat(0.9), policy=LIVE, audit_log=log).stream("hi"))
    assert [event["action"] for event in decisions(log)] == ["abstain"]


@pytest.mark.parametrize(("p_wrong", "action", "text"), [(0.1, "accept", "Paris"), (0.9, "abstain", "No idea.")])
def test_an_agent_logs_what_it_decides(store: Store, p_wrong: float, action: str, text: str) -> None:
    log = store.audit_log()
    graph = agent(chat(p_wrong), GuardMiddleware(ABSTAIN, audit_log=log))
    assert last(ask(graph, config=thread())).content == text
    assert [event["action"] for event in decisions(log)] == [action]


def test_an_agent_gives_nothing_without_an_entry(store: Store) -> None:
    graph = agent(chat(0.1), GuardMiddleware(ABSTAIN, audit_log=store.audit_log()))
    break_log(store)
    with pytest.raises(StoreError):
        ask(graph, config=thread())


@pytest.mark.parametrize("wrong", [True, "reviews.db"])
def test_what_is_no_log_is_refused_where_it_is_set(wrong: Any) -> None:
    with pytest.raises(InputError, match="must be an AuditLog"):
        guarded(chat(0.1), policy=ABSTAIN, audit_log=wrong)
    with pytest.raises(InputError, match="must be an AuditLog"):
        GuardMiddleware(ABSTAIN, audit_log=wrong)


def test_a_changed_policy_of_a_chain_or_an_agent_has_an_entry(store: Store) -> None:
    log = store.audit_log()
    for chosen in (ABSTAIN, ABSTAIN, LIVE):
        guarded(chat(0.1), policy=chosen, audit_log=log)
    GuardMiddleware(ABSTAIN, audit_log=log)
    events = [json.loads(entry.event) for entry in log.entries()]
    assert [event["subject"] for event in events] == ["policy test", "policy live"]


def test_a_chat_model_on_a_guard_keeps_its_log(store: Store) -> None:
    log = store.audit_log()
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.1))
    guard = Guard(engine, confidence_scorer(), ABSTAIN, audit_log=log)
    assert ChatGuard.from_guard(guard).invoke("hi").content == "Paris"
    assert [event["action"] for event in decisions(log)] == ["accept"]


def test_a_chat_model_that_does_not_decide_takes_no_log(store: Store) -> None:
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.1))
    with pytest.raises(InputError, match="no policy for the audit log"):
        ChatGuard(engine=engine, scorer=confidence_scorer(), audit_log=store.audit_log())
