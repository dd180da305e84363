"""Every action of the loop, its budgets and failures, on a scripted engine; threads on the embedded model."""

from __future__ import annotations

import asyncio
import functools
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scripted import (
    LAYERS,
    WIDTH,
    AnsweringEngine,
    confidence_scorer,
    layers_of,
    logit_for,
    scripted_model,
    tiny_artefact,
)

from guard.errors import (
    AbstainedError,
    CancelledError,
    EngineError,
    EscalationError,
    InputError,
    PolicyError,
    PromptTooLongError,
    ScorerError,
    ScorerMismatchError,
)
from guard.policy.policy import Policy, parse_policy
from guard.records import Action, Escalation, Floats, Limits, Outcome, Prompt, Sampling
from guard.review_terms import LateAction
from guard.runtime.guard import Guard
from guard.runtime.sources import Source, find_capture_point
from guard.scoring.scorer import Scorer

if TYPE_CHECKING:
    from guard.engines.llama_cpp import LlamaCppEngine

SYSTEM = "Answer with as few words as possible. No explanation."

LADDER = """
rules:
  - accept: {below: 0.2}
  - retry: {below: 0.4, times: 2, temperature: 0, instruction: Think again.}
  - fallback: {below: 0.6, to: other}
  - escalate: {below: 0.8, to: [desk], reply: A person will look.}
  - abstain: {text: I do not know.}
on_error:
  escalate: {to: [desk], reply: Not checked.}
"""


def policy(body: str = LADDER) -> Policy:
    return parse_policy(f"version: 1\nname: test\n{body}")


def scripted(*answers: tuple[str, float]) -> AnsweringEngine:
    """Gives these answers in turn, the last one for good."""
    return AnsweringEngine(lambda prompt, number: answers[min(number, len(answers) - 1)])


class Desk:
    """An escalation handler that keeps its cases."""

    def __init__(self) -> None:
        self.cases: list[Escalation] = []

    def __call__(self, case: Escalation) -> None:
        self.cases.append(case)


def guarded(engine: AnsweringEngine, body: str | Policy = LADDER, **options: Any) -> Guard:
    options = {"fallbacks": {"other": lambda prompt: "from elsewhere"}, "handlers": {"desk": Desk()}, **options}
    chosen = body if isinstance(body, Policy) else policy(body)
    return Guard(engine, options.pop("scorer", None) or confidence_scorer(), chosen, **options)


Ask = Callable[..., Outcome]


@pytest.fixture(params=["ask", "aask"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Both ways to ask; every test that takes this runs with either."""

    def sync(guard: Guard, question: Any = "why?", **options: Any) -> Outcome:
        return guard.ask(question, **options)

    def loop(guard: Guard, question: Any = "why?", **options: Any) -> Outcome:
        return asyncio.run(guard.aask(question, **options))

    return sync if request.param == "ask" else loop


# -- every action ------------------------------------------------------------------------------


def test_accept(ask: Ask) -> None:
    engine = scripted(("42", 0.1))
    outcome = ask(guarded(engine), metadata={"who": "me"})
    assert (outcome.answer, outcome.action, outcome.accepted) == ("42", Action.ACCEPT, True)
    assert outcome.p_wrong == pytest.approx(0.1, abs=1e-5)
    assert (outcome.rule, outcome.mode, outcome.would_be, outcome.route) == ("rules[0] (accept)", "enforce", None, None)
    assert outcome.errors == outcome.escalated_to == ()
    (attempt,) = outcome.attempts
    assert (attempt.answer, attempt.source, attempt.error) == ("42", "model", None)
    assert attempt.score is not None
    assert attempt.score.p_wrong == outcome.p_wrong
    assert (attempt.prompt_tokens, attempt.completion_tokens) == (len("why?"), len("42") + 1)
    assert 0 < attempt.seconds <= outcome.seconds < 5
    assert len(outcome.decision_id) == 36


def test_retry_then_accept(ask: Ask) -> None:
    engine = scripted(("perhaps", 0.3), ("yes", 0.1))
    outcome = ask(guarded(engine))
    assert (outcome.answer, outcome.action) == ("yes", Action.ACCEPT)
    assert [attempt.decision.action for attempt in outcome.attempts] == [Action.RETRY, Action.ACCEPT]
    assert [attempt.answer for attempt in outcome.attempts] == ["perhaps", "yes"]
    assert [prompt.question for prompt in engine.asked] == ["why?", "why?\n\nThink again."]


def test_retries_that_are_used_up_go_down_the_ladder(ask: Ask) -> None:
    engine = scripted(("perhaps", 0.3))
    outcome = ask(guarded(engine))
    actions = [attempt.decision.action for attempt in outcome.attempts]
    assert actions == [Action.RETRY, Action.RETRY, Action.FALLBACK, Action.ACCEPT]
    assert (outcome.answer, outcome.action) == ("from elsewhere", Action.FALLBACK)
    assert "has used its 2 retries" in outcome.attempts[2].decision.reason


def test_a_retry_samples_as_the_policy_says(ask: Ask) -> None:
    body = """
rules:
  - accept: {below: 0.1}
  - retry: {below: 0.9, times: 2, temperature: 0.5, top_p: 0.9, top_k: 4, seed: 7}
  - abstain: {}
"""
    outcome = ask(guarded(scripted(("no", 0.5)), body), sampling=Sampling(0.25, seed=1))
    assert [attempt.sampling for attempt in outcome.attempts] == [
        Sampling(0.25, seed=1),
        Sampling(0.5, 0.9, 4, 7),
        Sampling(0.5, 0.9, 4, 8),
    ]


def test_abstain_with_a_text_with_nothing_and_with_an_exception(ask: Ask) -> None:
    engine = scripted(("nonsense", 0.95))
    outcome = ask(guarded(engine))
    assert (outcome.answer, outcome.action) == ("I do not know.", Action.ABSTAIN)
    assert outcome.attempts[0].answer == "nonsense", "for the record only"
    nothing = ask(guarded(engine, "rules: [{abstain: {}}]"))
    assert (nothing.answer, nothing.action, nothing.accepted) == (None, Action.ABSTAIN, False)
    with pytest.raises(AbstainedError, match=r"'test' abstained \(rules\[0\]") as caught:
        ask(guarded(engine, "rules: [{abstain: {raise: true}}]"))
    assert caught.value.exit_code == 10


def test_escalate(ask: Ask) -> None:
    desk = Desk()
    engine = scripted(("perhaps", 0.3), ("no", 0.7))
    messages = [{"role": "user", "content": "why?"}]
    outcome = ask(guarded(engine, handlers={"desk": desk}), messages, metadata={"ticket": 9})
    assert (outcome.answer, outcome.action) == ("A person will look.", Action.ESCALATE)
    assert outcome.escalated_to == ("desk",)
    (case,) = desk.cases
    assert (case.decision_id, case.question, case.answer) == (outcome.decision_id, "why?", "no")
    assert (case.policy, case.model, case.route, case.metadata) == ("test", "scripted", None, {"ticket": 9})
    assert (case.p_wrong, case.rule, case.reason) == (outcome.p_wrong, outcome.rule, outcome.reason)
    assert case.prompt == Prompt.chat(messages)
    assert [attempt.answer for attempt in case.attempts] == ["perhaps", "no"]
    assert case.created_at.endswith("+00:00")


def test_a_handler_that_fails_beside_one_that_takes_the_case(ask: Ask) -> None:
    def broken(case: Escalation) -> None:
        raise ConnectionError("no network")

    body = "rules: [{escalate: {to: [desk, broken]}}]"
    outcome = ask(guarded(scripted(("no", 0.7)), body, handlers={"desk": Desk(), "broken": broken}))
    assert outcome.escalated_to == ("desk",)
    assert outcome.errors == ("broken: ConnectionError: no network",)
    with pytest.raises(EscalationError, match="no network"):
        ask(guarded(scripted(("no", 0.7)), "rules: [{escalate: {to: [broken]}}]", handlers={"broken": broken}))


def test_a_handler_that_is_late(ask: Ask) -> None:
    release = threading.Event()
    guard = guarded(
        scripted(("no", 0.7)),
        "rules: [{escalate: {to: [slow]}}]",
        handlers={"slow": lambda case: release.wait(20)},
        handler_timeout_s=0.05,
    )
    with pytest.raises(EscalationError, match=r"not done within 0\.05 s"):
        ask(guard)
    release.set()


def test_the_log_is_there_and_says_nothing_of_the_answer(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        outcome = ask(guarded(scripted(("secret answer", 0.7)), "rules: [{escalate: {to: [log]}}]"), "secret question")
    assert outcome.decision_id in caplog.text
    assert "secret" not in caplog.text


def test_escalation_to_the_review_queue(ask: Ask, tmp_path: Path) -> None:
    from guard.review.store import Store

    body = "rules: [{escalate: {to: [review], within: 4h, priority: high, reviews: 2, late: {abstain: {text: No.}}}}]"
    with guarded(scripted(("no", 0.7)), body, store=tmp_path / "reviews.db") as guard:
        outcome = ask(guard)
        scorer = guard.scorer.sha256
    store = Store.open(tmp_path / "reviews.db")
    review = store.review(outcome.decision_id)
    assert (review.question, review.answer, review.scorer) == ("why?", "no", f"sha256:{scorer}")
    assert (review.priority, review.reviews_wanted, review.late) == ("high", 2, LateAction("abstain", "No."))
    assert datetime.fromisoformat(str(review.due_at)) - datetime.fromisoformat(review.created_at) == timedelta(hours=4)
    store.close()


# -- fallbacks ---------------------------------------------------------------------------------

FALLBACK = """
rules:
  - accept: {below: 0.2}
  - fallback: {below: 0.9, to: other}
  - abstain: {text: I do not know.}
"""


def test_fallback_to_a_text(ask: Ask) -> None:
    body = "rules: [{fallback: {below: 0.9, text: Ask somebody else.}}, {abstain: {}}]"
    outcome = ask(guarded(scripted(("no", 0.5)), body))
    assert (outcome.answer, outcome.action, len(outcome.attempts)) == ("Ask somebody else.", Action.FALLBACK, 1)


async def coroutine(prompt: Prompt) -> str:
    await asyncio.sleep(0)
    return f"heard {prompt.question}"


class Callee:
    async def __call__(self, prompt: Prompt) -> str:
        return await coroutine(prompt)


def future(prompt: Prompt) -> Awaitable[str]:
    class Later:
        def __await__(self) -> Any:
            return coroutine(prompt).__await__()

    return Later()


@pytest.mark.parametrize(
    "answerer",
    [
        lambda prompt: f"heard {prompt.question}",
        coroutine,
        Callee(),
        lambda prompt: coroutine(prompt),
        functools.partial(coroutine),
        future,
    ],
    ids=["plain", "async", "async object", "lambda", "partial", "awaitable"],
)
def test_fallback_to_a_callable_of_any_kind(ask: Ask, answerer: Any) -> None:
    outcome = ask(guarded(scripted(("no", 0.5)), FALLBACK, fallbacks={"other": answerer}))
    assert (outcome.answer, outcome.action, outcome.accepted) == ("heard why?", Action.FALLBACK, False)
    last = outcome.attempts[-1]
    assert (last.source, last.score, last.completion_tokens) == ("other", None, 0)
    assert outcome.p_wrong is None
    assert outcome.rule == "rules[1] (fallback)"


@pytest.mark.parametrize("wrap", [True, False], ids=["Guard", "Source"])
def test_fallback_to_another_engine_is_scored_too(ask: Ask, wrap: bool) -> None:
    model = scripted_model(name="bigger", weights_sha256="d" * 64)

    def bigger(p_wrong: float) -> Guard | Source:
        engine = AnsweringEngine(lambda prompt, number: ("surely", p_wrong), model=model)
        if wrap:
            return guarded(engine, "rules: [{abstain: {}}]", scorer=confidence_scorer(model))
        return Source("whatever", engine, confidence_scorer(model))

    outcome = ask(guarded(scripted(("no", 0.5)), FALLBACK, fallbacks={"other": bigger(0.05)}))
    assert (outcome.answer, outcome.action) == ("surely", Action.FALLBACK)
    assert [attempt.source for attempt in outcome.attempts] == ["model", "other"]
    assert outcome.p_wrong == pytest.approx(0.05, abs=1e-5)
    assert outcome.attempts[1].decision.action is Action.ACCEPT

    # Its answer is no better: it was already used, so the next rule decides.
    outcome = ask(guarded(scripted(("no", 0.5)), FALLBACK, fallbacks={"other": bigger(0.5)}))
    assert (outcome.answer, outcome.action) == ("I do not know.", Action.ABSTAIN)
    assert "'other' was already used" in outcome.reason


def test_a_fallback_without_a_scorer_counts_as_unscored(ask: Ask) -> None:
    body = FALLBACK + "on_error: {abstain: {text: Not checked.}}"
    source = Source("other", scripted(("surely", 0.1)), None)
    outcome = ask(guarded(scripted(("no", 0.5)), body, fallbacks={"other": source}))
    assert (outcome.answer, outcome.action) == ("Not checked.", Action.ABSTAIN)
    assert "has no scorer" in outcome.errors[0]


@pytest.mark.parametrize("failure", [RuntimeError("down"), InputError("no such page"), PromptTooLongError("too long")])
def test_a_failing_fallback_is_the_policys_not_the_callers(ask: Ask, failure: Exception) -> None:
    def fail(prompt: Prompt) -> str:
        raise failure

    body = FALLBACK + "on_error: {abstain: {text: Not checked.}}"
    outcome = ask(guarded(scripted(("no", 0.5)), body, fallbacks={"other": fail}))
    assert (outcome.answer, outcome.action) == ("Not checked.", Action.ABSTAIN)
    assert str(failure).rstrip(".") in outcome.errors[0]
    assert outcome.attempts[1].answer is None
    assert outcome.attempts[1].source == "other"


def test_a_fallback_engine_with_less_room_is_the_policys_too(ask: Ask) -> None:
    small = AnsweringEngine(lambda prompt, number: ("yes", 0.1), model=scripted_model(context_tokens=3))
    body = FALLBACK + "on_error: {abstain: {text: Not checked.}}"
    outcome = ask(
        guarded(scripted(("no", 0.5)), body, fallbacks={"other": Source("other", small, confidence_scorer())})
    )
    assert outcome.answer == "Not checked."
    assert "the context holds 3" in outcome.errors[0]


@pytest.mark.parametrize("answer", [None, 7, b"yes", ["yes"]])
def test_a_fallback_must_give_a_text(ask: Ask, answer: Any) -> None:
    body = FALLBACK + "on_error: {abstain: {text: Not checked.}}"
    outcome = ask(guarded(scripted(("no", 0.5)), body, fallbacks={"other": lambda prompt: answer}))
    assert outcome.answer == "Not checked."
    assert "must give a str" in outcome.errors[0]


def test_on_error_can_fall_back_and_abstains_when_that_fails_too(ask: Ask) -> None:
    engine = scripted(("no", 0.1))
    engine.activations_at = lambda prompt, number: np.zeros((LAYERS, WIDTH), np.float32)
    body = "rules: [{accept: {}}]\non_error: {fallback: {to: other}}"
    outcome = ask(guarded(engine, body))
    assert (outcome.answer, outcome.action) == ("from elsewhere", Action.FALLBACK)

    def fail(prompt: Prompt) -> str:
        raise RuntimeError("down")

    outcome = ask(guarded(engine, body, fallbacks={"other": fail}))
    assert (outcome.answer, outcome.action) == (None, Action.ABSTAIN)
    assert "was already used" in outcome.reason


# -- what a guard refuses when it is built -----------------------------------------------------


def test_names_that_are_not_there() -> None:
    engine = scripted(("42", 0.1))
    with pytest.raises(InputError, match=r"falls back to 'other'.*Did you mean 'othre'"):
        guarded(engine, FALLBACK, fallbacks={"othre": lambda prompt: ""})
    with pytest.raises(InputError, match=r"no escalation handler 'desk'.*Did you mean 'dekk'"):
        guarded(engine, handlers={"dekk": Desk()})
    with pytest.raises(InputError, match="no Guard, Source or callable: got str"):
        guarded(engine, fallbacks={"other": "gpt"})
    with pytest.raises(InputError, match="cannot be called 'model'"):
        guarded(engine, fallbacks={"other": str, "model": str})


def test_scorers_must_fit_their_engines() -> None:
    engine, other = scripted(("42", 0.1)), confidence_scorer(scripted_model(quantization="Q8_0"))
    with pytest.raises(ScorerMismatchError, match="quantization"):
        guarded(engine, scorer=other)
    with pytest.raises(ScorerMismatchError, match="quantization"):
        guarded(engine, fallbacks={"other": Source("other", engine, other)})
    forced = guarded(engine, scorer=other, force_scorer=True)
    score = forced.ask("why?").attempts[0].score
    assert score is not None
    assert not score.calibrated
    chained = guarded(scripted(("no", 0.5)), FALLBACK, fallbacks={"other": forced}).ask("why?")
    assert chained.attempts[1].score is not None
    assert not chained.attempts[1].score.calibrated, "forced there, marked here"


def test_the_capture_point_is_the_engines() -> None:
    engine = scripted(("42", 0.1))
    engine.capture_point = "block"
    with pytest.raises(ScorerMismatchError, match="capture_point: fitted on mlp, got block"):
        guarded(engine)
    assert guarded(engine, scorer=Scorer(tiny_artefact(engine.model, "block"))).ask("why?").accepted


# -- budgets -----------------------------------------------------------------------------------

ENDLESS = """
rules:
  - accept: {below: 0.1}
  - retry: {below: 0.9, times: 3, temperature: 0}
  - abstain: {text: I do not know.}
"""


@pytest.mark.parametrize("attempts", [2, 3, 5])
def test_budget_of_attempts(ask: Ask, attempts: int) -> None:
    """The retries use it up, so the fallback behind them is passed over."""
    body = f"""
rules:
  - accept: {{below: 0.1}}
  - retry: {{below: 0.6, times: {attempts - 1}, temperature: 0}}
  - fallback: {{below: 0.9, to: other}}
  - abstain: {{text: I do not know.}}
budget: {{attempts: {attempts}}}
"""
    engine = scripted(("no", 0.5))
    outcome = ask(guarded(engine, body))
    assert len(outcome.attempts) == len(engine.asked) == attempts
    assert (outcome.answer, outcome.action) == ("I do not know.", Action.ABSTAIN)
    assert "budget is exhausted" in outcome.reason


@pytest.mark.parametrize("tokens", [17, 26, 29, 30, 31, 40, 47])
def test_budget_of_tokens_is_never_overstepped(ask: Ask, tokens: int) -> None:
    engine = scripted(("no no no", 0.5))  # 4 tokens read, 9 made: 13 an attempt
    outcome = ask(guarded(engine, f"{ENDLESS}budget: {{tokens: {tokens}}}"))
    used = sum(attempt.prompt_tokens + attempt.completion_tokens for attempt in outcome.attempts)
    assert used <= tokens
    assert used > tokens - 13
    assert outcome.action is Action.ABSTAIN


def test_budget_of_tokens_shortens_the_first_answer(ask: Ask) -> None:
    outcome = ask(guarded(scripted(("no no no", 0.5)), f"{ENDLESS}budget: {{tokens: 3}}"))
    assert (outcome.attempts[0].answer, len(outcome.attempts)) == ("no ", 1)


def test_budget_of_seconds(ask: Ask) -> None:
    engine = scripted(("no", 0.5))
    engine.on_feed = lambda number: time.sleep(0.04)
    outcome = ask(guarded(engine, f"{ENDLESS}budget: {{seconds: 0.3}}"))
    assert 1 <= len(outcome.attempts) < 5, "each sleeps; a loaded machine makes fewer"
    assert outcome.action is Action.ABSTAIN


def test_budget_of_seconds_ends_a_generation_within_it(ask: Ask) -> None:
    engine = scripted(("no" * 50, 0.5))
    engine.on_feed = lambda number: time.sleep(0.02)
    body = f"{ENDLESS}budget: {{seconds: 0.1}}\non_error: {{abstain: {{text: Too slow.}}}}"
    outcome = ask(guarded(engine, body), limits=Limits(max_tokens=100))
    assert (outcome.answer, outcome.action) == ("Too slow.", Action.ABSTAIN)
    assert outcome.seconds < 1
    assert "No answer within" in outcome.errors[0]


def test_a_route_has_its_own_rules_and_budget(ask: Ask) -> None:
    body = f"{ENDLESS}routes:\n  strict: {{rules: [{{abstain: {{}}}}]}}\n  short: {{budget: {{tokens: 10}}}}"
    engine = scripted(("no", 0.5))
    outcome = ask(guarded(engine, body), route="strict")
    assert (outcome.action, outcome.route, len(outcome.attempts)) == (Action.ABSTAIN, "strict", 1)
    assert len(ask(guarded(engine, body), route="short").attempts) == 1


def test_an_unknown_route_is_refused_before_anything_is_asked(ask: Ask) -> None:
    engine = scripted(("42", 0.1))
    with pytest.raises(PolicyError, match="no route 'medical'"):
        ask(guarded(engine), route="medical")
    assert engine.asked == []


# -- failures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("token", range(3))
@pytest.mark.parametrize("kind", ["raises", "nan", "zeros", "shape"])
def test_recording_that_fails_at_any_token_is_never_accepted(ask: Ask, token: int, kind: str) -> None:
    engine = scripted(("42", 0.05))

    def spoil(prompt: Prompt, number: int) -> Floats:
        if number != token:
            return layers_of(prompt, number)
        if kind == "raises":
            raise RuntimeError("hook failed")
        values = {"nan": np.nan, "zeros": 0.0, "shape": 1.0}
        size = LAYERS + 1 if kind == "shape" else LAYERS
        return np.full((size, WIDTH), values[kind], np.float32)

    engine.activations_at = spoil
    desk = Desk()
    with np.errstate(invalid="ignore"):
        outcome = ask(guarded(engine, handlers={"desk": desk}))
    assert (outcome.answer, outcome.action) == ("Not checked.", Action.ESCALATE)
    assert outcome.rule == "on_error"
    assert outcome.p_wrong is None
    assert desk.cases[0].answer == "42"
    assert len(outcome.errors) == 1
    if kind == "raises":
        assert "hook failed" in outcome.errors[0]
    # Nothing is left of it.
    engine.activations_at = layers_of
    assert ask(guarded(engine)).accepted


class FailingScorer(Scorer):
    """A scorer that fails, or gives what is no probability."""

    def __init__(self, failure: Exception | float) -> None:
        super().__init__(tiny_artefact(scripted_model()))
        self.failure = failure

    def score(self, signals: Any) -> Any:
        if isinstance(self.failure, Exception):
            raise self.failure
        return replace(super().score(signals), p_wrong=self.failure)


@pytest.mark.parametrize(
    "failure", [ScorerError("damaged"), ZeroDivisionError("oops"), float("nan"), -0.1, 1.5, float("inf")]
)
def test_scoring_that_fails_is_never_accepted(ask: Ask, failure: Exception | float) -> None:
    outcome = ask(guarded(scripted(("42", 0.05)), scorer=FailingScorer(failure)))
    assert (outcome.answer, outcome.action, outcome.rule) == ("Not checked.", Action.ESCALATE, "on_error")
    without = ask(guarded(scripted(("42", 0.05)), "rules: [{accept: {}}]", scorer=FailingScorer(failure)))
    assert (without.answer, without.action) == (None, Action.ABSTAIN), "closed where the policy says nothing"


def test_a_policy_may_accept_what_was_not_scored_but_not_what_is_not_there(ask: Ask) -> None:
    body = "rules: [{accept: {}}]\non_error: {accept: {}}"
    outcome = ask(guarded(scripted(("42", 0.05)), body, scorer=FailingScorer(ScorerError("damaged"))))
    assert (outcome.answer, outcome.action, outcome.rule) == ("42", Action.ACCEPT, "on_error")
    assert "damaged" in outcome.errors[0]
    engine = scripted(("42", 0.05))
    engine.on_feed = failing_feed(EngineError("no electricity"))
    with pytest.raises(EngineError, match="no electricity"):
        ask(guarded(engine, body))


def failing_feed(error: Exception, *, at: int = 1) -> Callable[[int], None]:
    def feed(number: int) -> None:
        if number == at:
            raise error

    return feed


@pytest.mark.parametrize("error", [EngineError("no electricity"), MemoryError("full"), RuntimeError("bug")])
def test_an_engine_that_fails(ask: Ask, error: Exception) -> None:
    engine, desk = scripted(("42", 0.05)), Desk()
    engine.on_feed = failing_feed(error)
    outcome = ask(guarded(engine, handlers={"desk": desk}))
    assert (outcome.answer, outcome.action, outcome.rule) == ("Not checked.", Action.ESCALATE, "on_error")
    assert str(error).rstrip(".") in outcome.errors[0]
    assert outcome.attempts[0].answer is desk.cases[0].answer is None


def test_a_timeout_of_the_caller(ask: Ask) -> None:
    engine = scripted(("no" * 50, 0.05))
    engine.on_feed = lambda number: time.sleep(0.02)
    outcome = ask(guarded(engine), limits=Limits(max_tokens=100, timeout_s=0.1))
    assert (outcome.action, outcome.rule) == (Action.ESCALATE, "on_error")
    assert "No answer within 0.1 s" in outcome.errors[0]


@pytest.mark.parametrize("question", ["x" * 400, Prompt.raw(""), [], [{"role": "user"}], 7, None])
def test_bad_questions_are_the_callers(ask: Ask, question: Any) -> None:
    desk = Desk()
    with pytest.raises((InputError, PromptTooLongError)):
        ask(guarded(scripted(("42", 0.05)), handlers={"desk": desk}), question)
    assert desk.cases == []


def test_a_cancelled_request_is_not_the_policys(ask: Ask) -> None:
    engine = scripted(("42", 0.05))
    engine.on_feed = failing_feed(CancelledError("The request was cancelled"))
    with pytest.raises(CancelledError):
        ask(guarded(engine))


# -- how a question is put ---------------------------------------------------------------------


class Noting(AnsweringEngine):
    """Notes the whole prompt and what it was asked with."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, number: ("no no no no no no", 0.3))
        self.seen: list[Prompt] = []

    def encode(self, prompt: Prompt) -> list[int]:
        self.seen.append(prompt)
        return super().encode(prompt)


def test_a_question_is_put_as_in_calibration(ask: Ask) -> None:
    engine = Noting()
    guard = guarded(engine, "rules: [{accept: {}}]\ntruncated: accept")
    given = [{"role": "system", "content": "Be rude."}, {"role": "user", "content": "why?"}]
    outcomes = [ask(guard, "why?"), ask(guard, given), ask(guard, Prompt.raw("why?"))]
    assert engine.seen == [Prompt.chat("why?", system=SYSTEM), Prompt.chat(given), Prompt.raw("why?")]
    assert [outcome.attempts[0].completion_tokens for outcome in outcomes] == [16] * 3
    assert ask(guard, limits=Limits(max_tokens=3)).answer == "no "


def test_scoring_an_answer_that_exists() -> None:
    engine = scripted(("42", 0.1))
    guard = guarded(engine)
    said, other = guard.score("why?", "42"), guard.score("why?", "43")
    assert said.p_wrong == pytest.approx(guard.ask("why?").p_wrong, abs=1e-6)
    assert other.p_wrong > said.p_wrong
    engine.activations_at = lambda prompt, number: np.zeros((LAYERS, WIDTH), np.float32)
    with pytest.raises(Exception, match="not recorded"):
        guard.score("why?", "42")


# -- shadow mode -------------------------------------------------------------------------------

SHADOW = f"mode: shadow\n{LADDER}budget: {{tokens: 5, seconds: 0.001}}\n"


@pytest.mark.parametrize(
    ("p_wrong", "would_be"),
    [(0.1, "accept"), (0.3, "retry"), (0.5, "fallback"), (0.7, "escalate"), (0.95, "abstain")],
)
def test_shadow_mode_changes_nothing(ask: Ask, p_wrong: float, would_be: str) -> None:
    engine, desk, called = scripted(("a long answer", p_wrong)), Desk(), []
    guard = guarded(engine, SHADOW, handlers={"desk": desk}, fallbacks={"other": called.append})
    outcome = ask(guard, limits=Limits(max_tokens=50))
    assert (outcome.answer, outcome.action, outcome.mode) == ("a long answer", Action.ACCEPT, "shadow")
    assert outcome.would_be is not None
    assert outcome.p_wrong == pytest.approx(p_wrong, abs=1e-5)
    enforced = ask(guarded(scripted(("a long answer", p_wrong))), limits=Limits(max_tokens=50)).attempts[0].decision
    if would_be in ("accept", "escalate", "abstain"):  # the others want another attempt: the tiny budget has none
        assert outcome.would_be.action == would_be
        assert outcome.would_be.action is enforced.action
    assert len(engine.asked) == len(outcome.attempts) == 1
    assert desk.cases == called == []


def test_shadow_mode_with_a_budget_says_what_would_be_done(ask: Ask) -> None:
    for p_wrong, would_be in ((0.3, Action.RETRY), (0.5, Action.FALLBACK)):
        outcome = ask(guarded(scripted(("no", p_wrong)), f"mode: shadow\n{LADDER}"))
        assert outcome.would_be is not None
        assert outcome.would_be.action is would_be


def test_shadow_mode_needs_no_handlers_and_never_raises(ask: Ask) -> None:
    guard = guarded(scripted(("no", 0.9)), "mode: shadow\nrules: [{abstain: {raise: true}}]", handlers={})
    assert ask(guard).answer == "no"
    guard = guarded(scripted(("no", 0.9)), "mode: shadow\nrules: [{escalate: {to: [nobody]}}]", handlers={})
    assert ask(guard).answer == "no"


@pytest.mark.parametrize("on_error", ["abstain: {raise: true}", "escalate: {to: [desk]}", "fallback: {to: other}"])
def test_shadow_mode_returns_the_answer_even_where_scoring_fails(ask: Ask, on_error: str) -> None:
    body = f"mode: shadow\nrules: [{{accept: {{}}}}]\non_error: {{{on_error}}}"
    outcome = ask(guarded(scripted(("42", 0.1)), body, scorer=FailingScorer(RuntimeError("oops"))))
    assert (outcome.answer, outcome.action, outcome.p_wrong) == ("42", Action.ACCEPT, None)
    assert outcome.would_be is not None
    assert outcome.would_be.rule == "on_error"
    assert outcome.errors == ("RuntimeError: oops",)


def test_shadow_mode_raises_what_the_engine_raises(ask: Ask) -> None:
    engine = scripted(("42", 0.1))
    engine.on_feed = failing_feed(EngineError("no electricity"))
    with pytest.raises(EngineError, match="no electricity"):
        ask(guarded(engine, f"mode: shadow\n{LADDER}"))


@pytest.mark.parametrize("given", ["call", "prompt"])
def test_a_callers_cache_key_reaches_every_attempt_of_its_call_and_no_other(
    given: str, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = scripted(("no", 0.4), ("yes", 0.05))
    keys: list[str | None] = []
    encode = engine.encode
    monkeypatch.setattr(engine, "encode", lambda prompt: keys.append(prompt.cache_key) or encode(prompt))
    guard = guarded(engine, "rules: [{accept: {below: 0.3}}, {retry: {below: 0.6}}, abstain]")
    if given == "call":
        ask(guard, "why?", cache_key="ann")
    else:
        ask(guard, Prompt.chat("why?", cache_key="ann"))
    ask(guard, "why?")
    assert keys == ["ann", "ann", None]


# -- many at once ------------------------------------------------------------------------------


def plain(outcome: Outcome) -> Any:
    return (
        outcome.answer,
        outcome.action,
        outcome.rule,
        outcome.p_wrong,
        [(each.answer, each.source, each.prompt_tokens, each.completion_tokens) for each in outcome.attempts],
    )


def test_ask_and_aask_agree_and_threads_do_not_mix() -> None:
    """Answers depend on the question only, some are retried; threads and tasks give what one thread does."""

    def script(prompt: Prompt, number: int) -> tuple[str, float]:
        key = sum(prompt.question.encode()) % 7
        return f"answer {key}", (0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.35)[key]

    guard = guarded(AnsweringEngine(script))
    questions = [f"question {number}" for number in range(40)]
    alone = [plain(guard.ask(question)) for question in questions]
    assert {action for _, action, *_ in alone} >= {Action.ACCEPT, Action.FALLBACK, Action.ESCALATE, Action.ABSTAIN}
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(guard.ask, questions))
    assert [plain(outcome) for outcome in together] == alone
    assert len({outcome.decision_id for outcome in together}) == 40

    async def tasks() -> list[Outcome]:
        return await asyncio.gather(*(guard.aask(question) for question in questions))

    assert [plain(outcome) for outcome in asyncio.run(tasks())] == alone


async def test_cancelling_a_task_stops_it_and_frees_the_engine() -> None:
    engine = scripted(("no" * 6, 0.1))
    reached, passes = threading.Event(), []

    def slow(number: int) -> None:
        passes.append(number)
        reached.set()
        time.sleep(0.02)

    engine.on_feed = slow
    desk = Desk()
    guard = guarded(engine, handlers={"desk": desk})
    task = asyncio.ensure_future(guard.aask("why?"))
    await asyncio.to_thread(reached.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert desk.cases == []
    engine.on_feed = lambda number: None
    outcome = await asyncio.wait_for(guard.aask("why?"), 20)
    assert outcome.accepted
    assert len(passes) < 6


QUESTIONS = [
    *("What is the capital of France?", "What is 2 + 2?", "Is fire cold?", "Who wrote Hamlet?"),
    *("What colour is grass?", "Name a planet.", "What is H2O?", "What is 9 - 4?"),
    *("What is the opposite of hot?", "Name a fruit.", "Is 7 a prime?", "What do bees make?"),
    *("Capital of Japan?", "What is 3 * 3?", "Name a river.", "How many legs has a spider?"),
]


RETRYING = "rules: [{accept: {below: 0.3}}, {retry: {below: 0.6, temperature: 0.7, seed: 3}}, {abstain: {}}]"
FOUR = Limits(max_tokens=4)

#: By how much p_wrong may differ where a request shares passes with others: their products are rounded differently.
TOLERANCE = 0.02


def in_threads(guard: Guard) -> list[Outcome]:
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda question: guard.ask(question, limits=FOUR), QUESTIONS))


def in_tasks(guard: Guard) -> list[Outcome]:
    async def tasks() -> list[Outcome]:
        return await asyncio.gather(*(guard.aask(question, limits=FOUR) for question in QUESTIONS))

    return asyncio.run(tasks())


@pytest.mark.model
@pytest.mark.parametrize("together", [in_threads, in_tasks])
def test_sixteen_at_once_get_the_answers_and_scores_of_one(
    together: Callable[[Guard], list[Outcome]], smollm2: LlamaCppEngine, smollm2_scorer: Scorer
) -> None:
    guard = Guard(smollm2, smollm2_scorer, policy("rules: [{accept: {below: 0.99}}, {abstain: {}}]"))
    alone = [guard.ask(question, limits=FOUR) for question in QUESTIONS]
    pairs = [*zip(together(guard), alone, strict=True)]
    same = [(a.p_wrong, b.p_wrong) for a, b in pairs if a.attempts[0].answer == b.attempts[0].answer]
    assert len(same) >= 15, "where two tokens are about as likely, rounding may choose the other"
    assert max(abs(a - b) for a, b in same) < TOLERANCE  # type: ignore[operator]


@pytest.mark.model
@pytest.mark.parametrize("together", [in_threads, in_tasks])
def test_sixteen_at_once_get_the_same_bits_from_a_deterministic_engine(
    together: Callable[[Guard], list[Outcome]], smollm2_path: Path, smollm2_scorer: Scorer
) -> None:
    from guard.engines import load_engine

    with load_engine(smollm2_path, context_tokens=512, threads=1, deterministic=True) as engine:
        guard = Guard(engine, smollm2_scorer, policy(RETRYING))
        alone = [plain(guard.ask(question, limits=FOUR)) for question in QUESTIONS]
        assert len({p_wrong for *_, p_wrong, _ in alone}) == 16
        assert any(len(attempts) > 1 for *_, attempts in alone)
        assert [plain(outcome) for outcome in together(guard)] == alone


def test_logits_of_the_scripted_engine_are_decided() -> None:
    for p_wrong in (0.05, 0.95):
        assert logit_for(p_wrong) > 0


@pytest.mark.model
def test_loading_reads_where_the_scorer_was_fitted(tmp_path: Path, smollm2_path: Path) -> None:
    from guard.engines import load_engine

    with load_engine(smollm2_path, capture_point="block", context_tokens=256, threads=1) as engine:
        Scorer(tiny_artefact(engine.model, "block")).save(tmp_path / "s.json")
    options = {"context_tokens": 256, "threads": 1}
    with Guard.load(smollm2_path, scorer=tmp_path / "s.json", engine_options=options) as guard:
        assert find_capture_point(guard.engine) == "block"
        assert guard.ask("What is the capital of France?").p_wrong is not None
