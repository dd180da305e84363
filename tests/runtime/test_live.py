"""`Guard.stream`: text as it grows and the outcome at the end where the policy streams live, else once decided."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import made_certificates
import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model

from guard.errors import AbstainedError, InputError, PolicyError, PromptTooLongError
from guard.policy.policy import parse_policy
from guard.records import Action, Escalation, Limits, Outcome
from guard.review.store import Store
from guard.runtime.guard import Guard

LONG = "It is Lyon, as everybody knows who has ever been there"
RULES = "rules: [{accept: {below: 0.3}}, {retry: {below: 0.5, times: 1}}, {escalate: {to: [desk], reply: Wait.}}]"

#: For all of it, and its end.
ROOM = Limits(max_tokens=100)

Streamed = Callable[..., tuple[Sequence[str], Outcome]]


def guarded(answer: str, p_wrong: float, body: str = f"streaming: live\n{RULES}", **options: Any) -> Guard:
    engine = AnsweringEngine(lambda prompt, number: (answer, p_wrong), model=scripted_model(context_tokens=200))
    cases: list[Escalation] = []
    options = {"handlers": {"desk": cases.append}, **options}
    return Guard(engine, confidence_scorer(), parse_policy(f"version: 1\nname: p\n{body}"), **options)


@pytest.fixture(params=["stream", "astream"])
def stream(request: pytest.FixtureRequest) -> Streamed:
    """Both ways to stream."""

    def sync(guard: Guard, **options: Any) -> tuple[Sequence[str], Outcome]:
        *pieces, outcome = guard.stream("why?", limits=ROOM, **options)
        return pieces, outcome  # type: ignore[return-value]

    def loop(guard: Guard, **options: Any) -> tuple[Sequence[str], Outcome]:
        async def read() -> list[str | Outcome]:
            return [each async for each in guard.astream("why?", limits=ROOM, **options)]

        *pieces, outcome = asyncio.run(read())
        return pieces, outcome  # type: ignore[return-value]

    return sync if request.param == "stream" else loop


def test_an_accepted_answer_comes_piece_by_piece(stream: Streamed) -> None:
    pieces, outcome = stream(guarded("Paris", 0.1))
    assert pieces == [*"Paris"]
    assert (outcome.answer, outcome.action, len(outcome.attempts)) == ("Paris", Action.ACCEPT, 1)


def test_a_doubtful_answer_is_stopped_and_its_case_has_what_was_shown(stream: Streamed) -> None:
    cases: list[Escalation] = []
    guard = guarded(LONG, 0.8, handlers={"desk": cases.append})
    pieces, outcome = stream(guard)
    shown = "".join(pieces)
    assert LONG.startswith(shown)
    assert len(shown) <= 8
    assert (outcome.answer, outcome.action) == ("Wait.", Action.ESCALATE)
    assert outcome.attempts[0].prompt_tokens == len("why?")
    assert outcome.attempts[0].completion_tokens == 8
    assert [case.answer for case in cases] == [shown]


def test_nothing_is_tried_again_behind_what_was_shown(stream: Streamed) -> None:
    guard = guarded("Lyon", 0.4)
    pieces, outcome = stream(guard)
    assert ("".join(pieces), outcome.action) == ("Lyon", Action.ESCALATE)
    assert guard.ask("why?").attempts[0].decision.action is Action.RETRY, "a whole answer is tried again"


def test_a_policy_that_raises_raises_nothing_in_a_live_stream(stream: Streamed) -> None:
    pieces, outcome = stream(guarded("Lyon", 0.8, "streaming: live\nrules: [{abstain: {raise: true}}]"))
    assert ("".join(pieces), outcome.action) == ("Lyon", Action.ABSTAIN)


def test_a_shadow_policy_stops_nothing(stream: Streamed) -> None:
    pieces, outcome = stream(guarded(LONG, 0.8, f"streaming: live\nmode: shadow\n{RULES}"))
    assert ("".join(pieces), outcome.action) == (LONG, Action.ACCEPT)
    assert outcome.would_be is not None


def test_a_policy_that_holds_shows_what_it_has_decided_about(stream: Streamed) -> None:
    assert stream(guarded(LONG, 0.1, RULES))[0] == [LONG]
    assert stream(guarded(LONG, 0.8, RULES))[0] == ["Wait."]
    with pytest.raises(AbstainedError):
        stream(guarded("Lyon", 0.8, "rules: [{abstain: {raise: true}}]"))


def test_a_question_that_cannot_be_put_raises(stream: Streamed) -> None:
    guard = guarded("Paris", 0.1)
    with pytest.raises(PromptTooLongError):
        list(guard.stream("x" * 300))
    with pytest.raises(InputError, match="route"):
        stream(guard, route="nowhere")


def test_an_engine_that_fails_behind_text_is_the_policys_case(stream: Streamed) -> None:
    guard = guarded("Paris", 0.1, "streaming: live\nrules: [accept]\non_error: {abstain: {text: It failed.}}")

    def fail(number: int) -> None:
        if number == 3:
            raise RuntimeError("lost")

    guard.engine.on_feed = fail  # type: ignore[attr-defined]
    pieces, outcome = stream(guard)
    assert "".join(pieces) in ("Pa", "Par")
    assert (outcome.answer, outcome.action) == ("It failed.", Action.ABSTAIN)


def test_every_live_decision_is_in_the_audit_log(stream: Streamed, tmp_path: Path) -> None:
    with Store.open(tmp_path / "r.db") as store:
        stream(guarded(LONG, 0.8, audit_log=store.audit_log()))
        kinds = [json.loads(entry.event)["kind"] for entry in store.audit_log().entries()]
    assert kinds.count("decision") == 1


def test_accepted_live_answers_are_audited(stream: Streamed, tmp_path: Path) -> None:
    with Store.open(tmp_path / "reviews.db") as store:
        body = f"streaming: live\naudit: {{rate: 1}}\n{RULES}"
        _, outcome = stream(guarded("Paris", 0.1, body, store=store))
        stream(guarded(LONG, 0.9, body, store=store))
        (case,) = store.reviews()
    assert (case.kind, case.decision_id, case.answer) == ("audit", outcome.decision_id, "Paris")


def test_a_guaranteed_error_rate_is_not_streamed_live(stream: Streamed) -> None:
    chosen = made_certificates.policy(f"streaming: live\n{made_certificates.LADDER}")
    certified = made_certificates.certificates(made_certificates.certificate(chosen))
    guard = Guard(made_certificates.engine(), confidence_scorer(), chosen, certificate=certified)
    assert guard.ask("why?").accepted
    with pytest.raises(PolicyError, match="no certificate covers a live stream"):
        stream(guard)
