"""Early decisions in a guarded call: the answer is stopped, nothing of it is accepted, and everybody can see why."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted import AnsweringEngine, Script, confidence_scorer, scripted_model, with_early

from guard import Action, Escalation, Guard, Limits, Outcome, ResponseFormat, Sampling
from guard.certification.trials import TrialAttempt
from guard.errors import InputError, ScorerError
from guard.policy.policy import parse_policy
from guard.replay.recorded import read_calls
from guard.review.store import Store
from guard.runtime.sources import Source
from guard.scoring.scorer import Scorer

RULES = "version: 1\nname: mine\nrules: [{accept: {below: 0.99}}, {abstain: {text: No.}}]\n"
EARLY = "early: {above: 0.8, then: {abstain: {text: Stopped.}}}\n"
LONG = "It is Lyon, as everybody knows"
ROOM = Limits(max_tokens=100)

WayToAsk = Callable[[Guard], Outcome]


def guard(more: str = EARLY, p_wrong: float = 0.9, *, scorer: Scorer | None = None, **options: Any) -> Guard:
    script: Script = lambda prompt, number: (LONG, p_wrong)  # noqa: E731
    engine = AnsweringEngine(script, model=scripted_model(context_tokens=200))
    return Guard(engine, scorer or with_early(confidence_scorer()), parse_policy(RULES + more), **options)


@pytest.fixture(params=["ask", "aask", "stream"])
def ask(request: pytest.FixtureRequest) -> WayToAsk:
    """Every way to ask."""

    def in_a_loop(guard: Guard) -> Outcome:
        return asyncio.run(guard.aask("why?", limits=ROOM))

    def streamed(guard: Guard) -> Outcome:
        *pieces, outcome = guard.stream("why?", limits=ROOM)
        assert pieces == ([outcome.answer] if outcome.answer else [])  # type: ignore[union-attr]
        return outcome  # type: ignore[return-value]

    ways: dict[str, WayToAsk] = {
        "ask": lambda guard: guard.ask("why?", limits=ROOM),
        "aask": in_a_loop,
        "stream": streamed,
    }
    return ways[request.param]


def test_a_likely_wrong_answer_is_stopped_at_the_first_stage(ask: WayToAsk) -> None:
    found = ask(guard())
    (attempt,) = found.attempts
    assert (found.action, found.answer, found.rule) == (Action.ABSTAIN, "Stopped.", "early")
    assert found.p_wrong == pytest.approx(0.9, abs=1e-3)
    assert (attempt.finish_reason, attempt.completion_tokens, attempt.prompt_tokens) == ("early", 2, len("why?"))
    assert attempt.answer is not None
    assert LONG.startswith(attempt.answer)
    assert "after 2 tokens p_wrong is 0.9, above 0.8" in found.reason


def test_the_model_stops_working() -> None:
    made = guard()
    passes: list[int] = []
    made.engine.on_feed = passes.append  # type: ignore[attr-defined]
    made.ask("why?", limits=ROOM)
    assert len(passes) < len(LONG) / 2


def test_other_answers_are_complete_and_decided_on_as_ever(ask: WayToAsk) -> None:
    found = ask(guard(p_wrong=0.7))
    assert (found.action, found.answer, found.attempts[0].finish_reason) == (Action.ACCEPT, LONG, "stop")


def test_each_stage_has_its_own_calibration() -> None:
    lower, higher = (with_early(confidence_scorer(), 4, shift=shift) for shift in (-2.0, 2.0))
    assert guard(p_wrong=0.9, scorer=lower).ask("why?", limits=ROOM).action is Action.ACCEPT
    stopped = guard(p_wrong=0.7, scorer=higher).ask("why?", limits=ROOM)
    assert (stopped.rule, stopped.attempts[0].completion_tokens) == ("early", 4)
    assert stopped.p_wrong == pytest.approx(1 / (1 + np.exp(-(np.log(0.7 / 0.3) + 2.0))), abs=1e-3)


def test_every_score_of_a_stopped_answer_is_calibrated_as_the_one_that_decides() -> None:
    made = guard(p_wrong=0.7, scorer=with_early(confidence_scorer(), 4, shift=2.0), all_scores=True)
    found = made.ask("why?", limits=ROOM)
    assert {each.p_wrong for each in found.scores.values()} == {found.p_wrong}
    assert found.scores.keys() == {"guard", "log-probabilities"}


@pytest.mark.parametrize(
    ("options", "calibrated"),
    [
        ({}, True),
        ({"sampling": Sampling(temperature=0.5, seed=1)}, False),
        ({"template_options": {"enable_thinking": False}}, False),
        ({"response_format": ResponseFormat.regex(".*")}, False),
    ],
    ids=["as fitted", "sampled", "template", "form"],
)
def test_a_stopped_answer_is_calibrated_where_a_complete_one_is(options: dict[str, Any], calibrated: bool) -> None:
    (attempt,) = guard("early: {above: 0.1, then: abstain}").ask("why?", limits=ROOM, **options).attempts
    assert attempt.score is not None
    assert (attempt.finish_reason, attempt.score.calibrated) == ("early", calibrated)


def test_an_answer_that_ends_before_the_stage_is_not_stopped() -> None:
    assert guard(scorer=with_early(confidence_scorer(), 64)).ask("why?", limits=ROOM).action is Action.ACCEPT


def test_the_score_that_the_policy_decides_on_is_the_one_that_stops() -> None:
    found = guard("score: log-probabilities\n" + EARLY).ask("why?", limits=ROOM)
    score = found.attempts[0].score
    assert score is not None
    assert (found.rule, score.decides) == ("early", "log-probabilities")


def test_a_person_gets_what_there_is_of_it() -> None:
    cases: list[Escalation] = []
    made = guard("early: {above: 0.8, then: {escalate: {to: [desk], reply: Wait.}}}", handlers={"desk": cases.append})
    found = made.ask("why?", limits=ROOM)
    assert (found.action, found.answer) == (Action.ESCALATE, "Wait.")
    assert [case.answer for case in cases] == [found.attempts[0].answer]


def test_another_model_answers_in_its_place() -> None:
    better = Source("big", AnsweringEngine(lambda prompt, number: ("Paris", 0.1)), with_early(confidence_scorer()))
    made = guard("early: {above: 0.8, then: {fallback: {to: big}}}", fallbacks={"big": better})
    found = made.ask("why?", limits=ROOM)
    assert (found.action, found.answer) == (Action.FALLBACK, "Paris")
    assert [attempt.finish_reason for attempt in found.attempts] == ["early", "stop"]


def test_the_other_models_answer_is_stopped_as_well() -> None:
    worse = Source("big", AnsweringEngine(lambda prompt, number: (LONG, 0.9)), with_early(confidence_scorer()))
    made = guard("early: {above: 0.8, then: {fallback: {to: big}}}", fallbacks={"big": worse})
    found = made.ask("why?", limits=ROOM)
    assert (found.action, found.answer) == (Action.ABSTAIN, None)
    assert [attempt.finish_reason for attempt in found.attempts] == ["early", "early"]


def test_shadow_mode_stops_nothing_and_says_what_would_have_been() -> None:
    found = guard("mode: shadow\n" + EARLY).ask("why?", limits=ROOM)
    assert (found.answer, found.attempts[0].finish_reason) == (LONG, "stop")
    assert found.would_be is not None
    assert (found.would_be.action, found.would_be.rule) == (Action.ABSTAIN, "early")
    assert "after 2 tokens" in found.would_be.reason


def test_a_stage_that_cannot_be_scored_stops_nothing_and_the_answer_fails_at_its_end() -> None:
    made = guard("on_error: {abstain: {text: Failed.}}\n" + EARLY)
    made.engine.activations_at = lambda prompt, number: np.full((3, 8), np.nan, np.float32)  # type: ignore[attr-defined]
    found = made.ask("why?", limits=ROOM)
    assert (found.answer, found.attempts[0].answer, found.attempts[0].score) == ("Failed.", LONG, None)


def test_the_outcome_as_plain_data_says_how_it_ended() -> None:
    data = json.loads(guard().ask("why?", limits=ROOM).to_json())
    assert (data["finish_reason"], data["rule"], data["attempts"][0]["completion_tokens"]) == ("early", "early", 2)


def test_no_threshold_of_a_certificate_accepts_a_stopped_answer() -> None:
    made = guard()
    (attempt,) = made.attempts("why?", limits=ROOM)
    tried = TrialAttempt.from_attempt(attempt, made.policy.plan())
    assert (tried.p_wrong, tried.released) == (None, False)


def test_the_audit_log_knows_that_it_was_stopped(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.db") as store:
        log = store.audit_log()
        guard(audit_log=log).ask("why?", limits=ROOM)
        (call,) = read_calls(log, since="2020")
    assert [attempt.defects for attempt in call.attempts] == [("stopped",)]


def test_a_scorer_without_stages_is_refused() -> None:
    with pytest.raises(ScorerError, match="the scorer of 'model' has no stages") as refused:
        guard(scorer=confidence_scorer())
    assert "guard calibrate --early" in str(refused.value)


def test_a_fallbacks_scorer_needs_them_too() -> None:
    plain = Source("big", AnsweringEngine(lambda prompt, number: ("Paris", 0.1)), confidence_scorer())
    with pytest.raises(ScorerError, match="the scorer of 'big' has no stages"):
        guard("early: {above: 0.8, then: {fallback: {to: big}}}", fallbacks={"big": plain})


def test_an_engine_that_cannot_be_stopped_is_refused() -> None:
    class Whole:
        """An engine of one's own, which reports nothing while it generates."""

        def __init__(self, engine: AnsweringEngine) -> None:
            self.model, self.capture_point = engine.model, engine.capture_point

    engine = Whole(AnsweringEngine(lambda prompt, number: (LONG, 0.9)))
    with pytest.raises(InputError, match="which the engine of 'model' cannot"):
        Guard(engine, with_early(confidence_scorer()), parse_policy(RULES + EARLY))  # type: ignore[arg-type]
