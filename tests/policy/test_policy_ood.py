"""The policy's ``out_of_distribution`` section: what is done with inputs that are unlike the calibration data."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from scripted import LAYERS, WIDTH, AnsweringEngine, confidence_scorer, layers_of
from typer.testing import CliRunner

from guard.cli.policy import app
from guard.errors import PolicyError
from guard.policy.explanation import explain
from guard.policy.guarantee import asks_again, find_fallbacks, procedure_sha256
from guard.policy.policy import InvalidPolicyError, Policy, Usage, decide, json_schema, parse_policy
from guard.records import Action, Floats, Prompt, Signals
from guard.runtime.guard import Guard
from guard.scoring.ood import fit_ood_detector
from guard.scoring.scorer import Scorer
from guard.scoring.signature import SignatureObserver

RULES = """\
version: 1
name: x
rules:
  - accept: {below: 0.3}
  - retry: {below: 0.6}
  - abstain: {text: No.}
on_error: {escalate: {to: desk}}
"""
POLICY = parse_policy(
    RULES
    + """\
out_of_distribution:
  above: 0.99
  then: {escalate: {to: [expert], reply: Unheard of.}}
routes:
  open: {out_of_distribution: {above: 0.999, then: abstain}}
  other: {rules: [accept]}
tools:
  pay: {rules: [escalate]}
"""
)


def with_section(out_of_distribution: str, rest: str = "") -> Policy:
    return parse_policy(f"{RULES}out_of_distribution: {out_of_distribution}\n{rest}")


# -- deciding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_wrong", "ood_score", "action", "rule"),
    [
        (0.1, 0.5, Action.ACCEPT, "rules[0] (accept)"),
        (0.1, 0.99, Action.ACCEPT, "rules[0] (accept)"),
        (0.1, 0.9901, Action.ESCALATE, "out_of_distribution"),
        (0.4, 1.0, Action.ESCALATE, "out_of_distribution"),
        (0.9, 1.0, Action.ESCALATE, "out_of_distribution"),
        (0.9, 0.0, Action.ABSTAIN, "rules[2] (abstain)"),
    ],
)
def test_above_its_share_it_comes_before_all_rules(p_wrong: float, ood_score: float, action: Action, rule: str) -> None:
    decision = decide(POLICY, p_wrong=p_wrong, ood_score=ood_score)
    assert (decision.action, decision.rule, decision.p_wrong) == (action, rule, p_wrong)


def test_its_reason_and_settings_are_its_own() -> None:
    decision = decide(POLICY, p_wrong=0.1, ood_score=0.995)
    assert decision.reason == "The input is unlike the calibration data: ood_score 0.995 is above 0.99"
    assert (decision.settings.to, decision.settings.reply) == (("expert",), "Unheard of.")
    assert POLICY.handler_names() == ("desk", "expert", "review")


@pytest.mark.parametrize("ood_score", [None, math.nan, -0.1, 1.1])
@pytest.mark.parametrize("p_wrong", [0.1, 0.9])
def test_where_ood_score_is_not_known_nothing_is_taken_for_usual(ood_score: float | None, p_wrong: float) -> None:
    decision = decide(POLICY, p_wrong=p_wrong, ood_score=ood_score)
    assert (decision.action, decision.rule, decision.p_wrong) == (Action.ESCALATE, "on_error", None)
    assert "out-of-distribution score" in decision.reason


def test_without_a_score_on_error_decides() -> None:
    assert decide(POLICY, p_wrong=None, ood_score=1.0).rule == "on_error"


def test_a_policy_without_the_section_does_not_look_at_the_ood_score() -> None:
    policy = parse_policy(RULES)
    assert not policy.needs_ood_score
    assert {decide(policy, p_wrong=0.1, ood_score=ood_score).rule for ood_score in (None, 0.0, 1.0, math.nan)} == {
        "rules[0] (accept)"
    }


def test_a_route_has_its_own_or_that_of_the_policy() -> None:
    assert decide(POLICY, p_wrong=0.1, ood_score=0.995, route="open").action is Action.ACCEPT
    assert decide(POLICY, p_wrong=0.1, ood_score=0.9995, route="open").rule == "routes.open.out_of_distribution"
    assert decide(POLICY, p_wrong=0.1, ood_score=0.995, route="other").rule == "out_of_distribution"
    alone = parse_policy(f"{RULES}routes: {{a: {{out_of_distribution: {{above: 0.9, then: abstain}}}}}}")
    assert alone.needs_ood_score
    assert decide(alone, p_wrong=0.1).action is Action.ACCEPT
    assert decide(alone, p_wrong=0.1, ood_score=0.95, route="a").action is Action.ABSTAIN


def test_it_comes_before_the_rules_of_tools_too() -> None:
    assert decide(POLICY, p_wrong=0.1, ood_score=0.5, tools=["pay"]).rule == "tools.pay.rules[0] (escalate)"
    assert decide(POLICY, p_wrong=0.1, ood_score=0.999, tools=["pay"]).rule == "out_of_distribution"


@pytest.mark.parametrize("usage", [Usage(fallbacks=frozenset({"bigger"})), Usage(exhausted=True)])
def test_a_fallback_that_is_used_up_becomes_an_abstention(usage: Usage) -> None:
    policy = with_section("{above: 0.9, then: {fallback: {to: bigger}}}")
    assert decide(policy, p_wrong=0.1, ood_score=0.95).action is Action.FALLBACK
    decision = decide(policy, p_wrong=0.1, ood_score=0.95, usage=usage)
    assert (decision.action, decision.rule) == (Action.ABSTAIN, "out_of_distribution")
    assert decision.settings.text is None
    assert policy.fallback_names() == ("bigger",)


@given(p_wrong=st.floats(0, 1), low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_less_usual_input_is_never_accepted_where_a_usual_one_is_not(p_wrong: float, low: float, high: float) -> None:
    low, high = sorted((low, high))
    at_low, at_high = (decide(POLICY, p_wrong=p_wrong, ood_score=ood_score).action for ood_score in (low, high))
    assert at_low is Action.ACCEPT or at_high is not Action.ACCEPT


def test_numpy_values_are_taken_as_numbers() -> None:
    decision = decide(POLICY, p_wrong=float(np.float32(0.1)), ood_score=np.float64(0.995))
    assert decision.rule == "out_of_distribution"


def test_it_survives_pickling_and_counts_for_the_digest() -> None:
    assert pickle.loads(pickle.dumps(POLICY)) == POLICY  # noqa: S301 - our own
    assert with_section("{above: 0.9, then: abstain}").sha256 != parse_policy(RULES).sha256


# -- certificates ------------------------------------------------------------------------------


def test_a_certified_procedure_is_another_one_with_it() -> None:
    digests = {
        procedure_sha256(parse_policy(RULES + out_of_distribution), None)
        for out_of_distribution in (
            "",
            "out_of_distribution: {above: 0.9, then: abstain}",
            "out_of_distribution: {above: 0.8, then: abstain}",
            "out_of_distribution: {above: 0.9, then: escalate}",
        )
    }
    assert len(digests) == 4


def test_its_fallback_asks_again() -> None:
    policy = parse_policy(
        "version: 1\nname: x\nrules: [abstain]\nout_of_distribution: {above: 0.9, then: {fallback: {to: bigger}}}"
    )
    assert find_fallbacks(policy.plan()) == ("bigger",)
    assert asks_again(policy.plan())


# -- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "out_of_distribution",
    [
        "{above: 0.99, then: escalate}",
        "{above: 0.99, then: abstain}",
        "{above: 0.99, then: {abstain: }}",
        "{above: 0.5, then: {abstain: {text: No.}}}",
        "{above: 0.5, then: {abstain: {raise: true}}}",
        "{above: 0.001, then: {fallback: {text: See the handbook.}}}",
        "{above: 0.99, then: {fallback: {to: bigger}}}",
        "{above: 0.99, then: {escalate: {to: [review, log], reply: Wait.}}}",
    ],
)
def test_what_may_be_written_is_fine_for_editors_too(out_of_distribution: str) -> None:
    assert with_section(out_of_distribution).needs_ood_score
    jsonschema.validate(yaml.safe_load(f"{RULES}out_of_distribution: {out_of_distribution}"), json_schema())


@pytest.mark.parametrize(
    ("out_of_distribution", "position", "message"),
    [
        ("{above: 1, then: abstain}", "8:30", "out_of_distribution.above must be below 1, got 1"),
        ("{above: 0, then: abstain}", "8:30", "out_of_distribution.above must be above 0, got 0"),
        ("{above: yes, then: abstain}", "8:30", "out_of_distribution.above must be a number, got 'yes'"),
        ("{then: abstain}", "8:22", "'above' is missing in out_of_distribution"),
        ("{above: 0.9}", "8:22", "'then' is missing in out_of_distribution"),
        (
            "{abov: 0.9, above: 0.9, then: abstain}",
            "8:23",
            "unknown key 'abov' in out_of_distribution. Did you mean",
        ),
        ("{above: 0.9, escalate: {to: log}, then: abstain}", "8:35", "'escalate' belongs under 'then', as in "),
        ("{above: 0.9, then: abstian}", "8:41", "unknown action 'abstian'. Did you mean 'abstain'?"),
        ("{above: 0.9, then: accept}", "8:41", "accept is not allowed in out_of_distribution: leave the section out"),
        (
            "{above: 0.9, then: {retry: {times: 2}}}",
            "8:42",
            "retry is not allowed in out_of_distribution: the input",
        ),
        (
            "{above: 0.9, then: {abstain: {txt: No}}}",
            "8:52",
            "unknown key 'txt' in out_of_distribution.then.abstain",
        ),
        ("{above: 0.9, then: {abstain: {}, escalate: {}}}", "8:41", "exactly one action here, found 'abstain' and"),
        ("{above: 0.9, then: {fallback: {}}}", "8:52", "fallback needs exactly one of 'to' and 'text'"),
        ("{above: 0.9, then: {abstain: {text: }}}", "8:52", "there is no value after 'text'"),
        ("{above: 0.9, then: }", "8:35", "there is no value after 'then'"),
        ("escalate", "8:22", "out_of_distribution must be a mapping, got 'escalate'"),
        ("", "8:1", "there is no value after 'out_of_distribution'"),
    ],
)
def test_mistakes_are_reported_in_words_with_their_place(out_of_distribution: str, position: str, message: str) -> None:
    with pytest.raises(InvalidPolicyError) as caught:
        with_section(out_of_distribution)
    (problem,) = caught.value.problems
    assert f"{problem.line}:{problem.column}" == position
    assert message in problem.message
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(f"{RULES}out_of_distribution: {out_of_distribution}"), json_schema())


def test_a_misspelt_section_or_fallback_is_noticed() -> None:
    with pytest.raises(
        InvalidPolicyError, match=r"unknown key 'out_of_distributon'. Did you mean 'out_of_distribution'"
    ):
        parse_policy(f"{RULES}out_of_distributon: {{above: 0.9, then: abstain}}")
    declared = "fallbacks: {bigger: {model: /m.gguf}}"
    with pytest.raises(InvalidPolicyError, match=r"no fallback 'biger'.*Did you mean 'bigger'"):
        with_section("{above: 0.9, then: {fallback: {to: biger}}}", declared)
    with pytest.raises(InvalidPolicyError, match=r"unknown key 'out_of_distribution' in tools.pay"):
        parse_policy(f"{RULES}tools: {{pay: {{out_of_distribution: {{above: 0.9, then: abstain}}}}}}")


# -- explaining --------------------------------------------------------------------------------


def test_an_explanation_begins_with_it() -> None:
    def shown(ood_score: float) -> list[tuple[Any, ...]]:
        steps = explain(POLICY, 0.1, ood_score=ood_score)
        return [(step.rule, step.condition, step.holds, step.decides, step.why) for step in steps[:2]]

    assert shown(0.995) == [
        ("out_of_distribution", "ood_score > 0.99", True, True, "0.995 is above 0.99"),
        ("rules[0] (accept)", "p_wrong < 0.3", True, False, "out_of_distribution comes first"),
    ]
    assert shown(0.5) == [
        ("out_of_distribution", "ood_score > 0.99", False, False, "0.5 is not above 0.99"),
        ("rules[0] (accept)", "p_wrong < 0.3", True, True, "the first rule that holds"),
    ]


@pytest.mark.parametrize("p_wrong", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("ood_score", [0.2, 0.95])
@pytest.mark.parametrize("usage", [Usage(), Usage(retries=5, exhausted=True, fallbacks=frozenset({"bigger"}))])
def test_an_explanation_names_the_rule_that_decides(p_wrong: float, ood_score: float, usage: Usage) -> None:
    policy = with_section("{above: 0.9, then: {fallback: {to: bigger}}}")
    (decisive,) = [step for step in explain(policy, p_wrong, ood_score=ood_score, usage=usage) if step.decides]
    decision = decide(policy, p_wrong=p_wrong, ood_score=ood_score, usage=usage)
    assert (decisive.rule, decisive.action) == (decision.rule, decision.action)


def test_an_explanation_needs_the_ood_score_of_such_a_policy() -> None:
    with pytest.raises(PolicyError, match=r"needs an input's out-of-distribution score.*--ood-score"):
        explain(POLICY, 0.1)
    with pytest.raises(PolicyError, match=r"ood_score is a share from 0 to 1, got 1.5"):
        explain(POLICY, 0.1, ood_score=1.5)


def test_the_command_explains_it(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"{RULES}out_of_distribution: {{above: 0.99, then: abstain}}\n")
    arguments = ["explain", str(file), "--score", "0.1", "--ood-score", "0.995"]
    told = CliRunner(env={"COLUMNS": "120"}).invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[1].split() == [
        ">",
        *["out_of_distribution", "ood_score", ">", "0.99", "yes", "0.995", "is", "above", "0.99"],
    ]
    assert told.stdout.splitlines()[-3] == (
        "abstain: The input is unlike the calibration data: ood_score 0.995 is above 0.99."
    )
    printed = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert (printed["ood_score"], printed["decision"]["rule"]) == (0.995, "out_of_distribution")
    assert isinstance(CliRunner().invoke(app, arguments[:4]).exception, PolicyError)


# -- in a guarded call -------------------------------------------------------------------------


USUAL_LAYERS = np.random.default_rng(1).normal(size=(LAYERS, WIDTH))


def usual_layers(prompt: Prompt, number: int) -> Floats:
    """Activations that are much the same for each question."""
    return np.asarray(USUAL_LAYERS + 0.05 * layers_of(prompt, number), np.float32)


def other_layers(prompt: Prompt, number: int) -> Floats:
    """Activations that have nothing of those, for a question that has to do with the moon."""
    return layers_of(prompt, number) if "moon" in prompt.question else usual_layers(prompt, number)


def ood_scorer() -> Scorer:
    """The scripted scorer, which has learnt what is usual from the engine's answers."""

    def answer(number: int) -> Signals:
        observer = SignatureObserver()
        observer.observe(usual_layers(Prompt.raw(f"question {number}"), 0))
        one = np.zeros(1, np.float32)
        return Signals(one, one, one, observer.signature())

    detector = fit_ood_detector([answer(number) for number in range(20)], [answer(number) for number in range(20, 320)])
    artefact = confidence_scorer().artefact
    return Scorer(artefact.model_copy(update={"ood_detector": detector.stored()}))


def engine_saying(p_wrong: float) -> AnsweringEngine:
    engine = AnsweringEngine(lambda prompt, number: ("yes", p_wrong))
    engine.activations_at = other_layers
    return engine


LOOPED = parse_policy(
    "version: 1\nname: x\nrules: [accept: {below: 0.3}, retry: {below: 0.9}, abstain]\n"
    "out_of_distribution: {above: 0.99, then: {abstain: {text: Never heard of.}}}"
)


@pytest.mark.parametrize("p_wrong", [0.1, 0.5])
def test_a_guarded_call_about_something_out_of_distribution_ends_at_once(p_wrong: float) -> None:
    engine = engine_saying(p_wrong)
    outcome = Guard(engine, ood_scorer(), LOOPED).ask("What is on the moon?")
    assert (outcome.action, outcome.answer, outcome.rule) == (Action.ABSTAIN, "Never heard of.", "out_of_distribution")
    assert len(engine.asked) == 1
    score = outcome.attempts[0].score
    assert score is not None
    assert score.ood_score is not None
    assert score.ood_score > 0.99


def test_a_guarded_call_about_something_usual_goes_by_the_rules() -> None:
    outcome = Guard(engine_saying(0.1), ood_scorer(), LOOPED).ask("What is in the sea?")
    assert (outcome.action, outcome.answer) == (Action.ACCEPT, "yes")
    outcome = Guard(engine_saying(0.5), ood_scorer(), LOOPED).ask("What is in the sea?")
    assert [attempt.decision.action for attempt in outcome.attempts] == [Action.RETRY, Action.ABSTAIN]
