"""Out-of-distribution inputs on every path that an answer can take: guards, certificates, chains and agents."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_agents import agent, ask, last
from langchain_core.messages import AIMessage
from langchain_fixtures import policy as chain_policy
from scripted import LAYERS, WIDTH, AnsweringEngine, confidence_scorer, layers_of
from scripted_chat import ScriptedChat, said

from guard.certification.trials import TrialJournal, attempted_rows, label_trials, run_trials
from guard.data.graders import grade
from guard.data.questions import LabelledResponse, Question, Row
from guard.errors import ScorerError
from guard.langchain import RetractedError, guarded
from guard.langchain.attempts.model_calls import ModelCall, judge
from guard.langchain.chat.chat_guard import ChatGuard
from guard.langchain.metadata import read_score, score_metadata, with_metadata
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds, trial_policy
from guard.policy.policy import Calls, Policy, parse_policy
from guard.records import Action, Floats, Limits, Prompt, Signals
from guard.runtime.call_state import CallState
from guard.runtime.guard import Guard
from guard.runtime.sources import Source
from guard.scores import Score
from guard.scoring.ood import fit_ood_detector
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

OOD = "out_of_distribution: {above: 0.9, then: {abstain: {text: Unheard of.}}}"
FALLING_BACK = "out_of_distribution: {above: 0.9, then: {fallback: {to: other}}}"
RULES = "rules: [accept: {max_error_rate: 0.1, confidence: 0.9}, retry: {below: 0.8, temperature: 0}, abstain]"
CENTRE = np.random.default_rng(1).normal(size=(LAYERS, WIDTH))


def _is_odd(question: str) -> bool:
    return hashlib.sha256(question.encode()).digest()[0] % 3 == 0


def layers(prompt: Prompt, number: int) -> Floats:
    """Much the same for each question but the odd ones, which have nothing of it."""
    noise = layers_of(prompt, number)
    return noise if _is_odd(prompt.question) else np.asarray(CENTRE + 0.05 * noise, np.float32)


@cache
def ood_scorer() -> Scorer:
    """The scripted scorer, which knows the usual questions' activations."""

    def answer(number: int) -> Signals:
        observer = SignatureObserver()
        observer.observe(np.asarray(CENTRE + 0.05 * layers_of(Prompt.raw(str(number)), 0), np.float32))
        one = np.zeros(1, np.float32)
        return Signals(one, one, one, observer.signature())

    detector = fit_ood_detector([answer(number) for number in range(20)], [answer(number) for number in range(20, 120)])
    return Scorer(confidence_scorer().artefact.model_copy(update={"ood_detector": detector.stored()}))


def engine(seed: int, name: str = "own") -> AnsweringEngine:
    """Scores and answers that depend on the question and how often it was asked."""
    asked: Counter[str] = Counter()

    def script(prompt: Prompt, number: int) -> tuple[str, float]:
        asked[prompt.question] += 1
        rng = np.random.default_rng([seed, asked[prompt.question], *f"{name} {prompt.question}".encode()])
        return ("yes" if rng.random() < 0.6 else "no"), float(rng.uniform(0.03, 0.97))

    made = AnsweringEngine(script)
    made.activations_at = layers
    return made


def guard(chosen: Policy, seed: int = 0, *, scorer: Scorer | None = None, other: Scorer | None = None) -> Guard:
    fallback = Source("other", engine(seed, "other"), other or ood_scorer())
    return Guard(engine(seed), scorer or ood_scorer(), chosen, fallbacks={"other": fallback})


def policy(*lines: str) -> Policy:
    return parse_policy("\n".join(["version: 1", "name: test", *lines]))


# -- guards ------------------------------------------------------------------------------------


def test_a_scorer_that_does_not_give_an_ood_score_is_refused() -> None:
    plain, looking = confidence_scorer(), policy("rules: [accept]", OOD)
    with pytest.raises(ScorerError, match="'test' needs ood_score, which the scorer of 'model' does not give"):
        guard(looking, scorer=plain)
    guard(policy("rules: [accept]"), scorer=plain)
    guard(looking, other=plain)  # nothing falls back to it
    with pytest.raises(ScorerError, match="the scorer of 'other' does not give"):
        guard(policy("rules: [accept]", FALLING_BACK), other=plain)
    with pytest.raises(ScorerError, match="guard calibrate"):
        guard(policy("rules: [accept]", f"routes: {{a: {{{OOD}}}}}"), scorer=plain)


# -- certificates ------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([OOD, FALLING_BACK]), st.floats(0.01, 0.79))
def test_a_trial_run_foretells_what_real_calls_give(seed: int, out_of_distribution: str, threshold: float) -> None:
    promising = policy(RULES, out_of_distribution)
    rows: list[tuple[str, Row]] = [
        ("set", Question(id=str(number), question=f"Question {number}?", answers=("yes",))) for number in range(10)
    ]
    trial_guard = guard(trial_policy(promising), seed)
    with TrialJournal(":memory:", trial_guard.fingerprint(promising)) as journal:
        list(run_trials(trial_guard, rows, journal, route=None))
        trials = label_trials(attempted_rows(rows, journal), grade=grade)
    fingerprint = trial_guard.fingerprint(promising).sha256
    real = guard(apply_thresholds(promising, {None: CertifiedThreshold(threshold, fingerprint)}), seed)
    accepted = errors = 0
    for _, row in rows:
        assert isinstance(row, Question)
        outcome = real.ask(row.question, limits=Limits(max_tokens=12))
        if outcome.action in (Action.ACCEPT, Action.FALLBACK):
            accepted, errors = accepted + 1, errors + (outcome.answer != "yes")
    assert trials.at(threshold) == (accepted, errors)


def test_given_responses_to_out_of_distribution_questions_are_accepted_at_no_threshold() -> None:
    promising = policy("rules: [accept: {max_error_rate: 0.1, confidence: 0.9}, abstain]", OOD)
    rows: list[tuple[str, Row]] = [
        ("set", LabelledResponse(id=str(number), prompt=Prompt.raw(f"Question {number}?"), response="yes", wrong=False))
        for number in range(30)
    ]
    trial_guard = guard(trial_policy(promising))
    with TrialJournal(":memory:", trial_guard.fingerprint(promising)) as journal:
        kept = list(run_trials(trial_guard, rows, journal, route=None))
    strange = [_is_odd(f"Question {number}?") for number in range(30)]
    scored = [each.attempts[0].p_wrong is not None for each in kept]  # type: ignore[union-attr]
    assert 0 < sum(strange) < 30
    assert not any(known for known, odd in zip(scored, strange, strict=True) if odd)
    assert sum(scored) > 10


# -- chains and agents -------------------------------------------------------------------------


def with_ood_score(message: AIMessage, ood_score: Any) -> AIMessage:
    return with_metadata(message, ood_score=ood_score)


def test_a_message_has_its_ood_score() -> None:
    content = score_metadata(model="m", score=Score(0.1, True, 0.0, 0.97))
    call = read_score(AIMessage("x", response_metadata={"guard": content}))
    assert call is not None
    assert (call.p_wrong, call.ood_score) == (0.1, 0.97)
    for bad in (None, "0.5", 1.5, float("nan"), True):
        call = read_score(with_ood_score(said("x", 0.1), bad))
        assert call is not None
        assert call.ood_score is None


@pytest.mark.parametrize(
    ("ood_score", "action", "rule"),
    [
        (0.5, Action.ACCEPT, "rules[0] (accept)"),
        (0.95, Action.ABSTAIN, "out_of_distribution"),
        (None, Action.ESCALATE, "on_error"),
    ],
)
def test_a_chain_looks_at_the_ood_score_of_each_call(ood_score: float | None, action: Action, rule: str) -> None:
    chosen = chain_policy("[accept]", OOD, "on_error: escalate")
    usual = ModelCall((), frozenset(), read_score(with_ood_score(said("x", 0.1), 0.2)))
    calls = [usual, replace(usual, scored=read_score(with_ood_score(said("y", 0.1), ood_score))), usual]
    verdict = judge(CallState(chosen, None), calls, join=Calls())
    assert (verdict.decision.action, verdict.decision.rule) == (action, rule)


def test_an_agent_does_not_say_what_answers_an_out_of_distribution_question() -> None:
    chosen = chain_policy("[accept]", OOD)
    assert last(ask(agent(ScriptedChat(script=[with_ood_score(said("Hello.", 0.1), 0.5)]), chosen))).text == "Hello."
    result = ask(agent(ScriptedChat(script=[with_ood_score(said("Hello.", 0.1), 0.95)]), chosen))
    assert last(result).text == "Unheard of."
    assert "Hello." not in str(result)


def test_a_live_answer_to_an_out_of_distribution_question_is_stopped() -> None:
    made = AnsweringEngine(lambda prompt, number: ("on and on", 0.05))
    made.activations_at = layers
    chosen = chain_policy("[accept]", "out_of_distribution: {above: 0.99, then: abstain}", "streaming: live")
    chain = guarded(ChatGuard(engine=made, scorer=ood_scorer()), policy=chosen)
    questions = [f"Question {number}?" for number in range(6)]
    strange = [question for question in questions if _is_odd(question)]
    assert 0 < len(strange) < 6
    for question in questions:
        shown: list[str] = []
        try:
            shown += [str(chunk.text) for chunk in chain.stream(question)]
        except RetractedError:
            assert question in strange
        else:
            assert question not in strange
            assert "".join(shown) == "on and on"
