"""Accepted answers of chains, streams, agents and chat models are drawn for an audit, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from langchain_agents import agent, ask, last, policy, thread
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.errors import StoreError
from guard.langchain import ChatGuard, GuardMiddleware, RetractedError, guarded
from guard.review.store import Review, Store
from guard.runtime.guard import Guard

AUDITED = policy("[accept: {below: 0.2}, abstain: {text: No idea.}]", "audit: {rate: 1}")
LIVE = policy("[accept: {below: 0.2}, abstain: {text: No idea.}]", "streaming: live\naudit: {rate: 1}")
SHADOW = policy("[accept: {below: 0.2}, abstain: {text: No idea.}]", "mode: shadow\naudit: {rate: 1}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


def chat(*p_wrong: float) -> ScriptedChat:
    return ScriptedChat(script=[said("Paris", each) for each in p_wrong])


def audits(store: Store) -> list[Review]:
    return store.reviews(kind="audit")


def break_queue(store: Store) -> None:
    with store._database.write() as connection:
        connection.exec_driver_sql("DROP TABLE review_events")


def test_a_chain_draws_what_it_accepts(store: Store) -> None:
    chain = guarded(chat(0.1, 0.9, 0.1, 0.1), policy=AUDITED, store=store)
    assert chain.invoke("hi").content == "Paris"
    assert chain.invoke("hi").content == "No idea."
    assert asyncio.run(chain.ainvoke("hi")).content == "Paris"
    assert "".join(chunk.content for chunk in chain.stream("hi")).strip() == "Paris"
    found = audits(store)
    assert [(str(case.answer).strip(), case.certificate, case.audit_rate) for case in found] == [
        ("Paris", None, 1.0)
    ] * 3
    assert store.count() == 3


def test_a_live_stream_draws_what_it_lets_stand(store: Store) -> None:
    assert list(guarded(chat(0.1), policy=LIVE, store=store).stream("hi"))
    with pytest.raises(RetractedError):
        list(guarded(chat(0.9), policy=LIVE, store=store).stream("hi"))
    assert len(audits(store)) == store.count() == 1


def test_a_chain_in_shadow_mode_draws_nothing(store: Store) -> None:
    assert guarded(chat(0.1), policy=SHADOW, store=store).invoke("hi").content == "Paris"
    assert store.count() == 0


def test_a_chain_gives_nothing_that_it_cannot_have_audited(store: Store) -> None:
    chain = guarded(chat(0.1, 0.1, 0.1), policy=AUDITED, store=store)
    break_queue(store)
    for call in (chain.invoke, lambda text: asyncio.run(chain.ainvoke(text)), lambda text: list(chain.stream(text))):
        with pytest.raises(StoreError):
            call("hi")


@pytest.mark.parametrize(("p_wrong", "text", "drawn"), [(0.1, "Paris", 1), (0.9, "No idea.", 0)])
def test_an_agent_draws_what_it_accepts(store: Store, p_wrong: float, text: str, drawn: int) -> None:
    graph = agent(chat(p_wrong), GuardMiddleware(AUDITED, store=store))
    assert last(ask(graph, config=thread())).content == text
    assert len(audits(store)) == store.count() == drawn


def test_an_agent_gives_nothing_that_it_cannot_have_audited(store: Store) -> None:
    graph = agent(chat(0.1), GuardMiddleware(AUDITED, store=store))
    break_queue(store)
    with pytest.raises(StoreError):
        ask(graph, config=thread())


def test_a_chat_model_that_decides_draws_what_it_accepts(store: Store) -> None:
    engine = AnsweringEngine(lambda prompt, number: ("Paris", 0.1))
    model = ChatGuard.from_guard(Guard(engine, confidence_scorer(), AUDITED, store=store))
    assert model.invoke("hi").content == "Paris"
    assert "".join(str(chunk.content) for chunk in model.stream("hi")) == "Paris"
    assert len(audits(store)) == 2
