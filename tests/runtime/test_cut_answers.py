"""Answers that are cut or empty: what policies say about them, and that no guarded call accepts one by its score."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scripted import AnsweringEngine, confidence_scorer, scripted_model
from typer.testing import CliRunner

from guard.certification.trials import TrialJournal, attempted_rows, run_trials
from guard.cli.policy import app
from guard.data.questions import LabelledResponse, Question
from guard.data.sqlite_journal import row_key
from guard.policy.certificate import Fingerprint
from guard.policy.defects import Defect, find_defects
from guard.policy.guarantee import asks_again, find_fallbacks, procedure_sha256, trial_policy
from guard.policy.policy import InvalidPolicyError, Policy, decide, decide_error, json_schema, load_policy, parse_policy
from guard.records import Action, Escalation, Limits, Outcome, Prompt, Sampling
from guard.runtime.guard import Guard
from guard.runtime.sources import Source

RULES = "rules: [{accept: {below: 0.5}}, {abstain: {text: By the rules.}}]\n"
CLOSED = f"{RULES}on_error: {{abstain: {{text: On error.}}}}\n"


def policy(body: str) -> Policy:
    return parse_policy(f"version: 1\nname: test\n{body}")


def decided(body: str, *defects: Defect, p_wrong: float = 0.1, **options: Any) -> tuple[Action, str]:
    decision = decide(policy(body), p_wrong=p_wrong, defects=defects, **options)
    return decision.action, decision.rule


# -- what is defective -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "finish_reason", "defects"),
    [
        ("Paris", "stop", ()),
        ("Paris", "stop_string", ()),
        ("Paris", None, ()),
        ("Par", "length", ("truncated",)),
        ("", "stop", ("empty",)),
        (" \n\t", "stop_string", ("empty",)),
        ("", None, ("empty",)),
        ("\u200b\u2060 \ufeff", "stop", ("empty",)),
        ("\x00\x1b\u202e", "stop", ("empty",)),
        ("\u3164\u2800", "stop", ("empty",)),
        ("\U000e0041\U000e0042\U000e0fff", "stop", ("empty",)),
        ("\ufe0f\u034f", "stop", ("empty",)),
        ("*", "stop", ()),
        ("\U0001f44d\ufe0f", "stop", ()),
        ("はい", "stop", ()),
        ("", "length", ("truncated", "empty")),
    ],
)
def test_an_answer_is_cut_by_its_limit_and_empty_where_it_is_blank(
    text: str, finish_reason: Any, defects: tuple[str, ...]
) -> None:
    assert find_defects(text, finish_reason) == defects


# -- deciding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("defect", ["truncated", "empty"])
def test_without_a_setting_a_defect_is_treated_as_an_error_and_never_accepted(defect: Defect) -> None:
    assert decided(RULES, defect) == (Action.ABSTAIN, "on_error")
    assert decided(f"{RULES}on_error: escalate", defect) == (Action.ESCALATE, "on_error")
    assert decided(f"{RULES}on_error: {{fallback: {{to: other}}}}", defect) == (Action.FALLBACK, "on_error")
    assert decided(f"{RULES}on_error: accept", defect) == (Action.ABSTAIN, "on_error")
    error = decide_error(policy(f"{RULES}on_error: accept"), error="no score", defects=[defect])
    assert error.action is Action.ABSTAIN


@pytest.mark.parametrize("defect", ["truncated", "empty"])
@pytest.mark.parametrize("action", ["retry", "escalate", "abstain"])
def test_a_setting_decides_whatever_the_score(defect: Defect, action: str) -> None:
    for p_wrong in (0.0, 0.1, 0.9, 1.0):
        assert decided(f"{RULES}{defect}: {action}", defect, p_wrong=p_wrong) == (Action(action), defect)
    assert decided(f"{RULES}{defect}: {action}") == (Action.ACCEPT, "rules[0] (accept)")
    unscored = decide_error(policy(f"{RULES}{defect}: {action}"), error="no score", defects=[defect])
    assert (unscored.action, unscored.rule) == (Action(action), defect)


@pytest.mark.parametrize("defect", ["truncated", "empty"])
def test_accept_leaves_it_to_the_rules(defect: Defect) -> None:
    body = f"{CLOSED}{defect}: accept"
    assert decided(body, defect) == (Action.ACCEPT, "rules[0] (accept)")
    assert decided(body, defect, p_wrong=0.9) == (Action.ABSTAIN, "rules[1] (abstain)")
    assert decide_error(policy(body), error="no score", defects=[defect]).rule == "on_error"


def test_an_answer_that_is_both_is_cut_first_and_empty_where_cut_ones_are_accepted() -> None:
    both: tuple[Defect, ...] = ("truncated", "empty")
    assert decided(f"{RULES}truncated: retry\nempty: escalate", *both) == (Action.RETRY, "truncated")
    assert decided(f"{RULES}truncated: accept\nempty: escalate", *both) == (Action.ESCALATE, "empty")
    assert decided(f"{RULES}truncated: accept\nempty: accept", *both) == (Action.ACCEPT, "rules[0] (accept)")


def test_what_is_used_up_becomes_what_is_done_on_an_error() -> None:
    from guard.policy.policy import Usage

    retry, fallback = f"{RULES}on_error: escalate\ntruncated: ", "{fallback: {to: other}}"
    assert decided(f"{retry}retry", "truncated", usage=Usage(retries=1)) == (Action.ESCALATE, "on_error")
    assert decided(f"{retry}retry", "truncated", usage=Usage(exhausted=True)) == (Action.ESCALATE, "on_error")
    usage = Usage(fallbacks=frozenset({"other"}))
    assert decided(f"{retry}{fallback}", "truncated", usage=usage) == (Action.ESCALATE, "on_error")
    same = f"{RULES}on_error: {fallback}\ntruncated: {fallback}"
    assert decided(same, "truncated", usage=usage) == (Action.ABSTAIN, "truncated")
    assert (
        decided(f"{RULES}on_error: accept\ntruncated: retry", "truncated", usage=Usage(retries=1))[0] is Action.ABSTAIN
    )


def test_a_route_may_differ_and_takes_over_what_it_leaves_out() -> None:
    body = f"{RULES}truncated: escalate\nroutes: {{a: {{truncated: retry}}, b: {{on_error: escalate}}}}"
    assert decided(body, "truncated", route="a") == (Action.RETRY, "routes.a.truncated")
    assert decided(body, "truncated", route="b") == (Action.ESCALATE, "truncated")
    assert decided(body, "empty", route="b") == (Action.ESCALATE, "routes.b.on_error")


def test_a_tools_own_on_error_decides_about_its_cut_calls() -> None:
    body = f"{CLOSED}tools: {{pay: {{on_error: escalate}}, look: {{rules: [accept], on_error: accept}}}}"
    assert decided(body, "truncated", tools=["pay"]) == (Action.ESCALATE, "tools.pay.on_error")
    assert decided(body, "truncated", tools=["look"])[0] is Action.ABSTAIN


def test_a_defect_comes_before_an_out_of_distribution_input() -> None:
    body = f"{RULES}truncated: retry\nout_of_distribution: {{above: 0.5, then: escalate}}"
    assert decided(body, "truncated", ood_score=0.9) == (Action.RETRY, "truncated")
    assert decided(body, "empty", ood_score=0.9) == (Action.ABSTAIN, "on_error")


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("defect", ["truncated", "empty"])
@pytest.mark.parametrize(
    ("written", "column", "message"),
    [
        ("abstian", None, "unknown action 'abstian'. Did you mean 'abstain'?"),
        ("{retry: {max_token: 5}}", 11, "unknown key 'max_token' in {}.retry. Did you mean 'max_tokens'?"),
        ("{retry: {max_tokens: 0}}", 23, "{}.retry.max_tokens must be at least 1, got 0"),
        ("{retry: {below: 0.5}}", 11, "unknown key 'below' in {}.retry"),
        ("{retry: {times: 9}}", 18, "{} asks for 9 retries, but budget.attempts leaves room for 3"),
        ("{fallback: {to: bigge}}", 18, "there is no fallback 'bigge' under 'fallbacks'. Did you mean 'bigger'?"),
        ("{accept: , abstain: }", None, "there must be exactly one action here, found 'abstain' and 'accept'"),
        ("", None, "there is no value after '{}'"),
    ],
)
@pytest.mark.parametrize("place", ["", "routes: {a: {%s}}\n"])
def test_mistakes_have_their_line_and_column(
    defect: str, written: str, column: int | None, message: str, place: str
) -> None:
    line = f"{defect}: {written}"
    text = f"version: 1\nname: test\n{RULES}fallbacks: {{bigger: {{model: m.gguf}}}}\n{place % line if place else line}"
    with pytest.raises(InvalidPolicyError) as caught:
        parse_policy(text)
    (problem,) = caught.value.problems
    location = f"routes.a.{defect}" if place else defect
    assert message.format(defect if "no value" in message else location) in problem.message
    assert problem.line == 5
    if column is not None:
        assert problem.column == column + len(defect) + 1 + text.splitlines()[4].index(line)


def test_a_misspelt_setting_is_found() -> None:
    for key, wanted in (("truncate", "truncated"), ("emtpy", "empty")):
        with pytest.raises(InvalidPolicyError, match=f"unknown key '{key}'. Did you mean '{wanted}'"):
            policy(f"{RULES}{key}: abstain")


def test_settings_change_what_a_policy_means_and_are_in_the_schema() -> None:
    assert policy(RULES).sha256 != policy(f"{RULES}truncated: retry").sha256
    assert {"truncated", "empty"} <= json_schema()["properties"].keys()
    assert {"truncated", "empty"} <= json_schema()["$defs"]["Route"]["properties"].keys()


def test_names_in_a_setting_are_known_to_who_builds_the_call() -> None:
    found = policy(f"{RULES}truncated: {{escalate: {{to: desk}}}}\nempty: {{fallback: {{to: other}}}}")
    assert (found.handler_names(), found.fallback_names()) == (("desk",), ("other",))
    assert find_fallbacks(found.plan()) == ("other",)
    assert asks_again(policy(f"{RULES}empty: retry").plan())


def test_the_command_explains_what_is_done(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"version: 1\nname: test\n{RULES}truncated: retry\n")
    told = CliRunner().invoke(app, ["explain", str(file), "--score", "0.1"]).stdout.splitlines()
    assert told[-2:] == [
        "If the answer is truncated: retry, by truncated.",
        "If the answer is empty: abstain, by on_error.",
    ]
    printed = json.loads(CliRunner().invoke(app, ["explain", str(file), "--score", "0.1", "--json"]).stdout)
    assert printed["when_truncated"]["settings"]["times"] == 1
    assert printed["when_empty"]["rule"] == "on_error"


@pytest.mark.parametrize("name", ["strict", "balanced", "permissive", "shadow"])
def test_no_shipped_policy_accepts_a_defective_answer(name: str) -> None:
    shipped = load_policy(name)
    for route in (None, *shipped.routes):
        for defect in ("truncated", "empty"):
            assert decide(shipped, p_wrong=0.0, route=route, defects=[defect]).action is not Action.ACCEPT


# -- in a guarded call -------------------------------------------------------------------------


def guarded(engine: AnsweringEngine, body: str = CLOSED, **options: Any) -> Guard:
    return Guard(engine, confidence_scorer(engine.model), policy(body), **options)


def saying(*texts: str, p_wrong: float = 0.1, context: int = 400) -> AnsweringEngine:
    """Says these texts in turn, the last one for good."""
    model = scripted_model(context_tokens=context)
    return AnsweringEngine(lambda prompt, number: (texts[min(number, len(texts) - 1)], p_wrong), model=model)


AskCut = Callable[..., Outcome]


@pytest.fixture(params=["ask", "aask"])
def ask(request: pytest.FixtureRequest) -> AskCut:
    def sync(guard: Guard, **options: Any) -> Outcome:
        return guard.ask("why?", **options)

    def loop(guard: Guard, **options: Any) -> Outcome:
        return asyncio.run(guard.aask("why?", **options))

    return sync if request.param == "ask" else loop


def test_an_answer_cut_at_its_limit_is_not_accepted(ask: AskCut) -> None:
    outcome = ask(guarded(saying("Paris, not Lyon.")), limits=Limits(max_tokens=5))
    assert (outcome.answer, outcome.action, outcome.rule) == ("On error.", Action.ABSTAIN, "on_error")
    assert outcome.reason == "The answer is cut at its limit of 5 tokens; raise max_tokens"
    assert (outcome.finish_reason, outcome.attempts[0].finish_reason) == ("length", "length")
    assert outcome.p_wrong == pytest.approx(0.1, abs=1e-5), "it is scored all the same"
    assert outcome.errors == ()


def test_an_answer_cut_by_the_end_of_the_context_is_not_accepted(ask: AskCut) -> None:
    outcome = ask(guarded(saying("Never 50 mg.", context=10)), limits=Limits(max_tokens=100))
    assert (outcome.answer, outcome.finish_reason) == ("On error.", "length")


@pytest.mark.parametrize(
    ("text", "limits", "finish_reason"),
    [("", Limits(), "stop"), (" \n", Limits(), "stop"), ("Paris", Limits(stop=("P",)), "stop_string")],
)
def test_an_empty_answer_is_not_accepted(ask: AskCut, text: str, limits: Limits, finish_reason: str) -> None:
    outcome = ask(guarded(saying(text)), limits=limits)
    assert (outcome.answer, outcome.reason) == ("On error.", "The answer is empty")
    assert outcome.finish_reason == finish_reason


def test_a_whole_answer_says_how_it_ended(ask: AskCut) -> None:
    assert ask(guarded(saying("Paris"))).finish_reason == "stop"
    stopped = ask(guarded(saying("Paris, not Lyon")), limits=Limits(stop=(",",)))
    assert (stopped.answer, stopped.finish_reason) == ("Paris", "stop_string")


def test_a_retry_may_have_more_room(ask: AskCut) -> None:
    body = f"{CLOSED}truncated: {{retry: {{temperature: 0, max_tokens: 30}}}}"
    outcome = ask(guarded(saying("Paris, not Lyon.")), limits=Limits(max_tokens=5))
    assert not outcome.accepted
    outcome = ask(guarded(saying("Paris, not Lyon."), body), limits=Limits(max_tokens=5))
    assert (outcome.answer, outcome.accepted) == ("Paris, not Lyon.", True)
    assert [attempt.finish_reason for attempt in outcome.attempts] == ["length", "stop"]
    assert [attempt.answer for attempt in outcome.attempts] == ["Paris", "Paris, not Lyon."]
    short = ask(guarded(saying("Paris, not Lyon."), body.replace("30", "6")), limits=Limits(max_tokens=5))
    assert (short.answer, len(short.attempts)) == ("On error.", 2), "cut again, and the retry is used up"
    poor = ask(guarded(saying("Paris, not Lyon."), f"{body}\nbudget: {{tokens: 20}}"), limits=Limits(max_tokens=5))
    assert (poor.answer, poor.attempts[-1].finish_reason) == ("On error.", "length"), "within the budget"


LONG = "Paris, not Lyon, and not Nice."


def test_a_retry_never_has_less_room_than_an_attempt_before_it(ask: AskCut) -> None:
    retry = "retry: {times: 3, temperature: 0, instruction: Again."
    rules = f"rules: [{{accept: {{below: 0.2}}}}, {{{retry}, below: 0.7}}}}, abstain]"
    body = f"{rules}\ntruncated: {{{retry}, max_tokens: 12}}}}"
    outcome = ask(guarded(saying(LONG), body), limits=Limits(max_tokens=20))
    assert [attempt.completion_tokens for attempt in outcome.attempts] == [20, 20, 20, 20]
    unsure = saying(LONG, "no", LONG, p_wrong=0.5)  # cut, then in doubt under a rule that states no limit
    outcome = ask(guarded(unsure, body), limits=Limits(max_tokens=5))
    assert [attempt.completion_tokens for attempt in outcome.attempts] == [5, 3, 12, 12]


def lone(outcome: Outcome) -> str:
    """Why a call with one cut attempt ended without an answer."""
    assert [attempt.finish_reason for attempt in outcome.attempts] == ["length"]
    assert (outcome.answer, outcome.rule) == ("On error.", "on_error")
    return outcome.reason


AGAIN = f"{CLOSED}truncated: {{retry: {{temperature: 0, max_tokens: 12}}}}\n"


@pytest.mark.parametrize(
    ("more", "context", "limit", "reason"),
    [
        ("", 400, 12, "The answer is cut at its limit of 12 tokens; {}; raise max_tokens"),
        ("", 400, 20, "The answer is cut at its limit of 20 tokens; {}; raise max_tokens"),
        ("budget: {tokens: 20}", 400, 8, "The answer is cut at its limit of 8 tokens; {}; raise max_tokens"),
        ("", 14, 20, "The answer is cut after 10 tokens, where the context of the model ends; {}; {short}"),
    ],
)
def test_a_retry_that_would_only_repeat_a_cut_answer_is_passed_over(
    ask: AskCut, more: str, context: int, limit: int, reason: str
) -> None:
    guard = guarded(saying(LONG, context=context), f"{AGAIN}{more}")
    skipped = "truncated is skipped because it would repeat it with no more room"
    short = "shorten the prompt, or raise context_tokens"
    assert lone(ask(guard, limits=Limits(max_tokens=limit))) == reason.format(skipped, short=short)


def test_a_passed_over_retry_never_becomes_an_acceptance(ask: AskCut) -> None:
    body = f"{RULES}on_error: accept\ntruncated: {{retry: {{temperature: 0}}}}"
    outcome = ask(guarded(saying(LONG), body), limits=Limits(max_tokens=5))
    assert (outcome.action, outcome.answer, len(outcome.attempts)) == (Action.ABSTAIN, None, 1)


@pytest.mark.parametrize("retry", ["temperature: 0.5", "temperature: 0, instruction: Be brief."])
def test_a_retry_that_may_give_another_answer_is_made_with_the_same_room(ask: AskCut, retry: str) -> None:
    body = f"{CLOSED}truncated: {{retry: {{{retry}}}}}"
    outcome = ask(guarded(saying(LONG, "Paris."), body), limits=Limits(max_tokens=10))
    assert (outcome.answer, len(outcome.attempts)) == ("Paris.", 2)


def test_a_greedy_retry_of_a_sampled_answer_is_made(ask: AskCut) -> None:
    outcome = ask(guarded(saying(LONG, "Paris."), AGAIN), limits=Limits(max_tokens=12), sampling=Sampling(0.7, seed=1))
    assert (outcome.answer, len(outcome.attempts)) == ("Paris.", 2)


def test_an_answer_that_the_budget_cut_says_so(ask: AskCut) -> None:
    outcome = ask(guarded(saying(LONG), f"{CLOSED}budget: {{tokens: 9}}"), limits=Limits(max_tokens=20))
    assert lone(outcome) == "The answer is cut at its limit of 9 tokens; raise the policy's budget.tokens"


def test_the_balanced_policys_retry_has_the_callers_room(ask: AskCut) -> None:
    engine = saying("a" * 250, context=2000)
    guard = Guard(engine, confidence_scorer(engine.model), "balanced", handlers={"review": lambda case: None})
    short = ask(guard, limits=Limits(max_tokens=50))
    assert [attempt.completion_tokens for attempt in short.attempts] == [50, 128]
    assert short.reason.endswith("raise max_tokens")
    assert [attempt.completion_tokens for attempt in ask(guard, limits=Limits(max_tokens=200)).attempts] == [200]
    assert ask(guard, limits=Limits(max_tokens=300)).accepted


def test_a_person_learns_that_the_answer_was_cut(ask: AskCut, tmp_path: Path) -> None:
    from guard.review.store import Store

    cases: list[Escalation] = []
    body = f"{RULES}truncated: {{escalate: {{to: [desk, review]}}}}"
    guard = guarded(saying("Paris, not Lyon."), body, handlers={"desk": cases.append}, store=tmp_path / "r.db")
    outcome = ask(guard, limits=Limits(max_tokens=5))
    assert cases[0].attempts[0].finish_reason == "length"
    guard.close()
    with Store.open(tmp_path / "r.db") as store:
        review = store.review(outcome.decision_id)
    assert (review.rule, review.attempts[0]["finish_reason"]) == ("truncated", "length")


def test_a_cut_answer_that_could_not_be_scored_is_not_accepted_on_error(ask: AskCut) -> None:
    guard = guarded(saying("Paris, not Lyon."), f"{RULES}on_error: accept")
    guard.scorer.score = lambda signals: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    assert ask(guard, limits=Limits(max_tokens=30)).answer == "Paris, not Lyon."
    assert ask(guard, limits=Limits(max_tokens=5)).answer is None


def test_shadow_mode_gives_a_cut_answer_and_says_what_would_be_done(ask: AskCut) -> None:
    outcome = ask(guarded(saying("Paris, not Lyon."), f"mode: shadow\n{CLOSED}"), limits=Limits(max_tokens=5))
    assert (outcome.answer, outcome.finish_reason) == ("Paris", "length")
    assert outcome.would_be is not None
    assert outcome.would_be.action is Action.ABSTAIN


def test_a_fallbacks_cut_or_empty_answer_is_not_accepted_either(ask: AskCut) -> None:
    body = "rules: [{accept: {below: 0.2}}, {fallback: {below: 0.9, to: other}}, {abstain: {}}]\n"
    body += "on_error: {abstain: {text: On error.}}\n"
    bigger = saying("Paris, not Lyon.", p_wrong=0.05)
    source = Source("other", bigger, confidence_scorer(bigger.model))
    guard = guarded(saying("no", p_wrong=0.5), body, fallbacks={"other": source})
    assert ask(guard, limits=Limits(max_tokens=20)).answer == "Paris, not Lyon."
    assert ask(guard, limits=Limits(max_tokens=5)).answer == "On error."
    blank = guarded(saying("no", p_wrong=0.5), body, fallbacks={"other": lambda prompt: " "})
    outcome = ask(blank)
    assert (outcome.answer, outcome.attempts[-1].finish_reason) == ("On error.", None)
    blank = guarded(saying("no", p_wrong=0.5), f"{body}empty: accept", fallbacks={"other": lambda prompt: " "})
    assert ask(blank).answer == " "


# -- characters --------------------------------------------------------------------------------


def test_half_a_character_at_the_limit_is_no_text() -> None:
    engine = saying("né 日")
    for tokens, text in ((1, "n"), (2, "n"), (3, "né"), (4, "né "), (5, "né "), (6, "né "), (7, "né 日")):
        generation = engine.generate(Prompt.raw("?"), limits=Limits(max_tokens=tokens))
        assert (generation.text, generation.finish_reason) == (text, "length")
        *pieces, last = engine.stream(Prompt.raw("?"), limits=Limits(max_tokens=tokens))
        assert "".join(piece.text for piece in pieces) == text
        assert last.generation is not None
        assert last.generation.text == text


# -- recordings --------------------------------------------------------------------------------


def test_a_recorded_answer_is_known_as_cut_and_labelled_like_others(tmp_path: Path) -> None:
    from guard.data.answers import Answers
    from guard.data.graders import grade
    from guard.data.recording import Journal, Record, Run, record_rows

    engine = AnsweringEngine(lambda prompt, number: (("yes", "yes, and no")[number], 0.1))
    run = Run(model=engine.model, capture_point="mlp", system="", max_tokens=5)
    rows: list[tuple[str, Any]] = [("d", Question(id=str(n), question=f"q{n}", answers=("yes",))) for n in range(2)]
    with Journal(tmp_path / "j", run) as journal:
        list(record_rows(engine, rows, journal, run=run))
    with Journal(tmp_path / "j", run) as journal:
        records = [journal.record(f"d/{number}") for number in range(2)]
        table = Answers.from_journal(journal, rows, grade)
    assert [each.finish_reason for each in records if isinstance(each, Record)] == ["stop", "length"]
    assert (table.finish_reason.tolist(), table.truncated.tolist()) == (["stop", "length"], [False, True])
    table.write(tmp_path / "t.parquet")
    assert Answers.read(tmp_path / "t.parquet").truncated.tolist() == [False, True]


# -- certificates ------------------------------------------------------------------------------

GUARANTEE = "rules: [{accept: {max_error_rate: 0.3, confidence: 0.9}}, {abstain: {}}]\n"


@pytest.mark.parametrize("defect", ["truncated", "empty"])
def test_a_certificate_holds_for_one_setting_only(defect: str) -> None:
    bare, digest = policy(GUARANTEE), procedure_sha256(policy(GUARANTEE), None)
    assert procedure_sha256(policy(f"{GUARANTEE}{defect}: retry"), None) != digest
    assert procedure_sha256(policy(f"{GUARANTEE}{defect}: accept"), None) != digest
    assert procedure_sha256(policy(f"{GUARANTEE}{defect}: abstain"), None) == digest, "what it does already"
    assert procedure_sha256(bare, None) == digest
    retries = [f"{GUARANTEE}{defect}: {{retry: {{max_tokens: {limit}}}}}" for limit in (8, 9)]
    assert len({procedure_sha256(policy(body), None) for body in retries}) == 2


@pytest.mark.parametrize("setting", ["", "truncated: accept", "truncated: {retry: {temperature: 0, max_tokens: 40}}"])
def test_the_trial_run_treats_cut_answers_as_the_policy_does(tmp_path: Path, setting: str) -> None:
    """At any threshold, what the trial's rows say is accepted is what the real call accepts."""
    guaranteeing = policy(f"{GUARANTEE}{setting}")
    texts = ["yes", "Paris, not Lyon, nor Nice.", "", "no"]

    def engine() -> AnsweringEngine:
        return AnsweringEngine(lambda prompt, number: (texts[int(prompt.question[-1]) % 4], 0.1))

    rows: list[tuple[str, Any]] = [("d", Question(id=str(n), question=f"q{n}", answers=("yes",))) for n in range(4)]
    trial_guard = Guard(engine(), confidence_scorer(), trial_policy(guaranteeing))
    fingerprint: Fingerprint = trial_guard.fingerprint(guaranteeing)
    with TrialJournal(tmp_path / "j", fingerprint) as journal:
        list(run_trials(trial_guard, rows, journal, route=None))
        answered = attempted_rows(rows, journal)
    enforced = policy(f"rules: [{{accept: {{below: 0.5}}}}, {{abstain: {{}}}}]\n{setting}")
    for each in answered:
        accepted = [tried.answer for tried in each.attempts if tried.p_wrong is not None and tried.p_wrong < 0.5][:1]
        real = Guard(engine(), confidence_scorer(), enforced).ask(each.row.question)  # type: ignore[union-attr]
        assert accepted == ([real.answer] if real.accepted else []), row_key("d", each.row)
    assert not any(tried.released for each in answered for tried in each.attempts)


def test_a_given_response_that_is_blank_is_below_no_threshold(tmp_path: Path) -> None:
    guaranteeing = policy(GUARANTEE)
    prompt = Prompt.chat("why?")
    rows: list[tuple[str, Any]] = [
        ("d", LabelledResponse(id=str(number), prompt=prompt, response=text, wrong=True))
        for number, text in enumerate(["yes", " "])
    ]
    guard = Guard(saying("yes"), confidence_scorer(), trial_policy(guaranteeing))
    with TrialJournal(tmp_path / "j", guard.fingerprint(guaranteeing)) as journal:
        list(run_trials(guard, rows, journal, route=None))
        (said,), (blank,) = (each.attempts for each in attempted_rows(rows, journal))
    assert said.p_wrong is not None
    assert (blank.p_wrong, blank.released) == (None, False)


def test_sampling_of_a_retry_is_not_changed_by_its_limit() -> None:
    body = f"{CLOSED}truncated: {{retry: {{temperature: 0.5, seed: 3, max_tokens: 30}}}}"
    outcome = guarded(saying("Paris, not Lyon."), body).ask("why?", limits=Limits(max_tokens=5))
    assert outcome.attempts[1].sampling == Sampling(0.5, 0.95, 0, 3)
