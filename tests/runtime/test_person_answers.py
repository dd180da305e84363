"""The person's answer reaches the caller of a guard, of a chain and of an agent, and nothing is generated again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_agents import agent, last
from langchain_agents import ask as ask_agent
from moved_clock import MovedClock
from scripted import AnsweringEngine, confidence_scorer
from scripted_chat import ScriptedChat, said

from guard.errors import EscalationError, InputError, ReviewError
from guard.langchain import GuardMiddleware, guarded
from guard.policy.policy import Policy, parse_policy
from guard.records import Action, Escalation
from guard.review import Decide, PersonAnswer, ReviewQueue, Store, WaitingQueue
from guard.review.records import UNDO_S
from guard.runtime.guard import Guard


def policy(escalate: str) -> Policy:
    return parse_policy(f"{{version: 1, name: test, rules: [{{escalate: {escalate}}}]}}")


def asking(escalate: str = "{to: [review], reply: Wait.}", **options: Any) -> Guard:
    return Guard(AnsweringEngine(lambda prompt, number: ("no", 0.7)), confidence_scorer(), policy(escalate), **options)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "reviews.db") as opened:
        yield opened


@pytest.fixture
def decided(store: Store) -> Iterator[Callable[..., None]]:
    """Decides the next case that comes in, as ann, and lets the time to undo pass."""
    clock, stop = MovedClock(store), threading.Event()
    threads: list[threading.Thread] = []

    def decide(answer: str | None) -> None:
        def work() -> None:
            while not stop.wait(0.02):
                if (case := store.claim_next(reviewer="ann")) is not None:
                    if answer is None:
                        store.reject(case.id, reviewer="ann")
                    else:
                        store.edit(case.id, answer=answer, draft="wrong", reviewer="ann")
                    clock.move(UNDO_S)
                    return

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield decide
    stop.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(("given", "gets"), [("Paris", "Paris"), (None, None)])
def test_a_call_that_waits_gets_the_persons_answer(
    store: Store, decided: Callable[..., None], given: str | None, gets: str | None
) -> None:
    guard = asking(handlers={"review": WaitingQueue(store, 60.0)}, handler_timeout_s=90.0)
    decided(given)
    outcome = guard.ask("why?")
    assert (outcome.answer, outcome.action, outcome.escalated_to) == (gets, Action.ESCALATE, ("review",))
    receipt = outcome.receipts["review"]
    assert isinstance(receipt, PersonAnswer)
    assert (receipt.by, receipt.review_id) == ("ann", store.review(outcome.decision_id).id)
    assert outcome.to_dict()["receipts"] == {"review": receipt.review_id}


def test_a_call_that_nobody_answers_in_time_gets_the_reply_and_asks_later_by_its_id(store: Store) -> None:
    clock = MovedClock(store)
    guard = asking(handlers={"review": WaitingQueue(store, 0.05)}, handler_timeout_s=30.0)
    outcome = asyncio.run(guard.aask("why?"))
    assert (outcome.answer, outcome.receipts["review"]) == ("Wait.", store.review(outcome.decision_id).id)
    assert guard.review_result(outcome.decision_id).state == "waiting"
    store.approve(outcome.decision_id, reviewer="ann")
    clock.move(UNDO_S)
    later = asking(store=store)  # after a restart
    assert later.review_result(outcome.decision_id, wait_s=5.0).answer == "no"
    assert asyncio.run(later.areview_result(outcome.decision_id)).reviewer == "ann"
    with pytest.raises(ReviewError, match="no review"):
        later.review_result("another")


def test_a_guard_without_a_queue_has_no_results(tmp_path: Path) -> None:
    guard = asking("{to: [desk]}", handlers={"desk": lambda case: None})
    with pytest.raises(InputError, match="no review queue"):
        guard.review_result("x")


async def pharmacist(case: Escalation) -> str:
    await asyncio.sleep(0)
    return f"Not with alcohol ({case.question})"


@pytest.mark.parametrize("function", [pharmacist, lambda case: f"Not with alcohol ({case.question})"])
def test_what_somebody_decides_at_once_is_the_answer(function: Any) -> None:
    guard = asking("{to: [pharmacist]}", handlers={"pharmacist": Decide(function, by="Jo")})
    for outcome in (guard.ask("why?"), asyncio.run(guard.aask("why?"))):
        assert (outcome.answer, outcome.action) == ("Not with alcohol (why?)", Action.ESCALATE)
        assert outcome.receipts["pharmacist"] == PersonAnswer("Not with alcohol (why?)", "Jo")


def test_a_decision_that_is_no_text_is_refused() -> None:
    guard = asking("{to: [desk]}", handlers={"desk": Decide(lambda case: 42)})
    with pytest.raises(EscalationError, match="must be a text or None, got a int"):
        guard.ask("why?")


def test_a_person_who_decides_beside_the_queue(store: Store) -> None:
    handlers = {"review": ReviewQueue(store), "desk": Decide(lambda case: None)}
    outcome = asking("{to: [review, desk], reply: Wait.}", handlers=handlers).ask("why?")
    assert (outcome.answer, outcome.escalated_to) == (None, ("review", "desk"))
    assert store.count() == 1


# -- chains and agents -------------------------------------------------------------------------


def test_a_chain_gives_the_persons_answer(store: Store, decided: Callable[..., None]) -> None:
    queue = {"review": WaitingQueue(store, 60.0)}
    chain = guarded(
        ScriptedChat(script=[said("no", 0.7)]), policy=policy("{to: [review]}"), handlers=queue, handler_timeout_s=90.0
    )
    decided("Paris")
    assert chain.invoke("why?").content == "Paris"


def test_an_agent_gives_the_persons_answer(store: Store, decided: Callable[..., None]) -> None:
    queue = {"review": WaitingQueue(store, 60.0)}
    graph = agent(
        ScriptedChat(script=[said("no", 0.7)]),
        GuardMiddleware(policy("{to: [review]}"), handlers=queue, handler_timeout_s=90.0),
    )
    decided("Paris")
    assert last(ask_agent(graph)).content == "Paris"
