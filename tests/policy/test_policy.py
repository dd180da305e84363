"""Policies: what is read, what is refused and where, and what is decided."""

from __future__ import annotations

import math
import os
import pickle
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from guard.errors import PolicyError
from guard.policy import policy_files as policies
from guard.policy.explanation import explain
from guard.policy.guarantee import procedure_sha256
from guard.policy.policy import (
    Abstain,
    Accept,
    Escalate,
    Fallback,
    InvalidPolicyError,
    Policy,
    Retry,
    Usage,
    builtin_policies,
    decide,
    decide_error,
    json_schema,
    load_policy,
    parse_policy,
)
from guard.records import Action, Sampling
from guard.review_terms import LateAction, ReviewTerms

REPOSITORY = Path(__file__).parents[2]
BUILTIN = ("balanced", "certified", "ilis", "permissive", "shadow", "strict")

#: Every action and every key, so that a test can change one thing.
FULL = """\
version: 1
name: full
description: all there is
mode: enforce
rules:
  - accept: {below: 0.2, name: sure}
  - retry: {below: 0.4, times: 2, temperature: 0.5, top_p: 0.9, top_k: 40, seed: 7, instruction: Think.}
  - fallback: {below: 0.6, to: bigger}
  - escalate: {below: 0.8, to: [review, log], reply: Wait.}
  - abstain: {text: No idea.}
on_error: {fallback: {to: bigger}}
budget: {attempts: 5, tokens: 900, seconds: 2.5}
fallbacks:
  bigger: {model: /m/bigger.gguf, scorer: /m/bigger.json}
routes:
  medical:
    rules:
      - accept: {below: 0.05}
      - escalate: {to: doctor}
    on_error: abstain
    budget: {tokens: 100}
  open:
    on_error: escalate
"""


def minimal(rules: str = "[abstain]", rest: str = "") -> str:
    return f"version: 1\nname: x\nrules: {rules}\n{rest}"


# -- what is read ------------------------------------------------------------------------------


def test_a_full_policy_is_read_as_written() -> None:
    policy = parse_policy(FULL)
    accept, retry, fallback, escalate, abstain = policy.plan().rules
    assert (policy.name, policy.description, policy.mode) == ("full", "all there is", "enforce")
    assert [line.below for line in policy.plan().rules] == [0.2, 0.4, 0.6, 0.8, math.inf]
    assert isinstance(accept.settings, Accept)
    assert isinstance(retry.settings, Retry)
    assert retry.settings.instruction == "Think."
    assert isinstance(fallback.settings, Fallback)
    assert fallback.settings.to == "bigger"
    assert isinstance(escalate.settings, Escalate)
    assert (escalate.settings.to, escalate.settings.reply) == (("review", "log"), "Wait.")
    assert isinstance(abstain.settings, Abstain)
    assert (abstain.settings.text, abstain.settings.raises) == ("No idea.", False)
    assert policy.fallbacks["bigger"].model == "/m/bigger.gguf"
    assert policy.fallback_names() == ("bigger",)
    assert policy.handler_names() == ("doctor", "log", "review")
    assert policy.routes == ("medical", "open")


def test_a_route_takes_over_what_it_leaves_out() -> None:
    policy = parse_policy(FULL)
    assert policy.plan("open").rules == policy.plan().rules
    assert policy.plan("open").on_error.name == "routes.open.on_error"
    assert policy.plan("open").budget == policy.budget_for()
    budget = policy.budget_for("medical")
    assert (budget.attempts, budget.tokens, budget.seconds) == (5, 100, 2.5)


def test_the_short_forms_mean_the_long_ones() -> None:
    long = parse_policy(minimal("[{escalate: {to: [review]}}]", "on_error: {abstain: {}}"))
    for short in ("[escalate]", "[{escalate: }]", "[{escalate: {to: review}}]"):
        assert parse_policy(minimal(short)).sha256 == long.sha256


def test_rules_are_named_by_their_place_or_their_own_name() -> None:
    policy = parse_policy(FULL)
    names = [line.name for line in policy.plan().rules]
    assert names[:3] == ["sure", "rules[1] (retry)", "rules[2] (fallback)"]
    assert policy.plan("medical").rules[0].name == "routes.medical.rules[0] (accept)"
    assert policy.plan().on_error.name == "on_error"
    assert policy.plan("medical").on_error.name == "routes.medical.on_error"


@pytest.mark.parametrize(
    ("written", "value"),
    [("0.25", 0.25), (".25", 0.25), ("25e-2", 0.25), ("2.5E-1", 0.25), ("+0.25", 0.25), ("1", 1.0), ("1.", 1.0)],
)
def test_decimal_notation_is_a_number(written: str, value: float) -> None:
    policy = parse_policy(minimal(f"[accept: {{below: {written}}}, abstain]"))
    assert policy.plan().rules[0].below == value


@pytest.mark.parametrize("written", ["yes", "no", "on", "off", "010", "0x1F", "1_000", "1:30", ".nan", "2020-01-01"])
def test_what_yaml_versions_disagree_on_is_text(written: str) -> None:
    rule = parse_policy(minimal(f"[abstain: {{text: {written}}}]")).plan().rules[0]
    assert rule.settings.text == written  # type: ignore[union-attr]


def test_retries_count_their_seed_up() -> None:
    rule = parse_policy(FULL).plan().rules[1].settings
    assert isinstance(rule, Retry)
    assert rule.sampling(1) == Sampling(0.5, 0.9, 40, 7)
    assert rule.sampling(2) == Sampling(0.5, 0.9, 40, 8)
    assert Retry.model_validate({}).sampling(2).seed is None


def test_the_hash_is_of_the_meaning() -> None:
    policy = parse_policy(FULL)
    same = "# a comment\n" + FULL.replace("0.2,", "2e-1,").replace("mode: enforce\n", "")
    assert parse_policy(same).sha256 == policy.sha256
    assert len(policy.sha256) == 64
    for old, new in (
        ("0.4", "0.41"),
        ("Wait.", "Wait!"),
        ("/m/bigger.json", "/m/b.json"),
        ("tokens: 100", "tokens: 99"),
    ):
        assert parse_policy(FULL.replace(old, new)).sha256 != policy.sha256


def test_policies_are_frozen() -> None:
    policy = parse_policy(FULL)
    with pytest.raises(AttributeError):
        policy.name = "y"  # type: ignore[misc]
    with pytest.raises(TypeError):
        policy.plans[None] = policy.plan("open")  # type: ignore[index]
    with pytest.raises(ValueError, match="frozen"):
        policy.plan().rules[1].settings.times = 9  # type: ignore[union-attr]


# -- files and built-in policies ---------------------------------------------------------------


def test_the_builtin_policies_are_there() -> None:
    assert tuple(builtin_policies()) == BUILTIN
    for name in BUILTIN:
        assert load_policy(name).name == name


def test_balanced_uses_every_action_in_order() -> None:
    assert [line.action for line in load_policy("balanced").plan().rules] == list(Action)


def test_every_builtin_is_closed_where_scoring_fails() -> None:
    for name in BUILTIN:
        policy = load_policy(name)
        for route in (None, *policy.routes):
            assert decide_error(policy, error="x", route=route).action in (Action.ABSTAIN, Action.ESCALATE)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("\ufeff".encode() + FULL.replace("\n", "\r\n").encode())
    assert load_policy(path).sha256 == load_policy(str(path)).sha256 == parse_policy(FULL).sha256


def test_a_file_may_have_the_name_of_a_builtin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "strict").write_text(FULL)
    (tmp_path / "other").write_text(FULL)
    monkeypatch.chdir(tmp_path)
    assert load_policy("strict").name == "strict"
    assert load_policy(Path("strict")).name == load_policy("other").name == "full"


def test_a_missing_policy_is_named() -> None:
    with pytest.raises(PolicyError, match=r"There is no policy 'balnced'.*Did you mean 'balanced'"):
        load_policy("balnced")
    with pytest.raises(PolicyError, match="There is no policy ''"):
        load_policy("")
    with pytest.raises(PolicyError, match=r"Cannot read the policy file 'no/such.yaml': No such file"):
        load_policy("no/such.yaml")
    with pytest.raises(PolicyError, match=r"Cannot read the policy file 'a\x00.yaml'"):
        load_policy("a\0.yaml")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="Is a directory"):
        load_policy(tmp_path)
    path = tmp_path / "p.yaml"
    path.write_bytes(b"version: 1\nname: caf\xe9\n")
    with pytest.raises(InvalidPolicyError, match=r"p\.yaml:2:10: this is not UTF-8"):
        load_policy(path)
    path.write_bytes("ä: é".encode() + b"\xff")
    with pytest.raises(InvalidPolicyError, match=r"p\.yaml:1:5: this is not UTF-8"):
        load_policy(path)
    path.write_bytes(b"#" + b"x" * 2_000_000)
    with pytest.raises(InvalidPolicyError, match=r"at most 1,000,000 bytes"):
        load_policy(path)
    path.write_bytes(b"#" + "é".encode() * 1_000_000)  # cut within a character
    with pytest.raises(InvalidPolicyError, match=r"at most 1,000,000 bytes"):
        load_policy(path)


def test_an_installed_wheel_finds_its_policies(tmp_path: Path) -> None:
    """The wheel's layout: the policies are inside the package, and no checkout is near."""
    site = tmp_path / "site"
    shutil.copytree(REPOSITORY / "guard", site / "guard", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(REPOSITORY / "policies", site / "guard" / "policy" / "builtin")
    script = (
        "import guard.policy.policy as p; paths = p.builtin_policies()\n"
        "print(p.__file__); print(*paths); [p.load_policy(name) for name in paths]; print(paths['strict'])"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert told[0].startswith(str(site))
    assert told[1].split() == list(BUILTIN)
    assert Path(told[2]) == site / "guard" / "policy" / "builtin" / "strict.yaml"


def test_the_wheel_takes_the_policies_along() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["force-include"]["policies"] == "guard/policy/builtin"


def test_missing_policies_mean_a_broken_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "__file__", str(tmp_path / "guard" / "policy.py"))
    with pytest.raises(PolicyError, match="Install guard again"):
        builtin_policies()


# -- deciding ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("p_wrong", "action", "rule", "reason"),
    [
        (0.0, Action.ACCEPT, "sure", "p_wrong 0 is below 0.2"),
        (0.1999, Action.ACCEPT, "sure", "p_wrong 0.1999 is below 0.2"),
        (0.2, Action.RETRY, "rules[1] (retry)", "p_wrong 0.2 is below 0.4"),
        (0.4, Action.FALLBACK, "rules[2] (fallback)", "p_wrong 0.4 is below 0.6"),
        (0.6, Action.ESCALATE, "rules[3] (escalate)", "p_wrong 0.6 is below 0.8"),
        (0.8, Action.ABSTAIN, "rules[4] (abstain)", "p_wrong 0.8 is not below 0.8"),
        (1.0, Action.ABSTAIN, "rules[4] (abstain)", "p_wrong 1 is not below 0.8"),
    ],
)
def test_the_first_rule_that_holds_decides(p_wrong: float, action: Action, rule: str, reason: str) -> None:
    policy = parse_policy(FULL)
    decision = decide(policy, p_wrong=p_wrong)
    assert (decision.action, decision.rule, decision.reason) == (action, rule, reason)
    assert decision.p_wrong == p_wrong
    assert decision.settings in [line.settings for line in policy.plan().rules]


@pytest.mark.parametrize(
    ("usage", "action", "reason"),
    [
        (Usage(retries=1), Action.RETRY, "p_wrong 0.3 is below 0.4"),
        (Usage(retries=2), Action.FALLBACK, "p_wrong 0.3 is below 0.4, but rules[1] (retry) has used its 2 retries"),
        (
            Usage(retries=2, fallbacks=frozenset({"bigger"})),
            Action.ESCALATE,
            "p_wrong 0.3 is below 0.4, but rules[1] (retry) has used its 2 retries; "
            "rules[2] (fallback) is skipped because 'bigger' was already used",
        ),
        (
            Usage(exhausted=True),
            Action.ESCALATE,
            "p_wrong 0.3 is below 0.4, but rules[1] (retry) is skipped because the budget is exhausted; "
            "rules[2] (fallback) is skipped because the budget is exhausted",
        ),
    ],
)
def test_what_is_used_up_goes_down_to_the_next_rule(usage: Usage, action: Action, reason: str) -> None:
    decision = decide(parse_policy(FULL), p_wrong=0.3, usage=usage)
    assert (decision.action, decision.reason) == (action, reason)


def test_a_fixed_text_costs_nothing() -> None:
    policy = parse_policy(minimal("[fallback: {below: 0.5, text: Ask a friend.}, abstain]", "budget: {attempts: 1}"))
    assert decide(policy, p_wrong=0.3, usage=Usage(exhausted=True)).action is Action.FALLBACK


def test_a_policy_of_one_rule_says_so() -> None:
    decision = decide(parse_policy(minimal()), p_wrong=0.5)
    assert decision.reason == "rules[0] (abstain) takes every answer (p_wrong 0.5)"


@pytest.mark.parametrize("score", [None, math.nan, math.inf, -math.inf, -1e-9, 1.0000001, np.float32("nan")])
def test_what_is_no_score_goes_to_on_error(score: Any) -> None:
    decision = decide(parse_policy(FULL), p_wrong=score)
    assert (decision.action, decision.rule, decision.p_wrong) == (Action.FALLBACK, "on_error", None)
    assert decision.reason.startswith("No usable score: the ")


def test_on_error_follows_the_route() -> None:
    policy = parse_policy(FULL)
    for route, action in ((None, Action.FALLBACK), ("medical", Action.ABSTAIN), ("open", Action.ESCALATE)):
        decision = decide_error(policy, error="Hooks failed.", route=route)
        assert (decision.action, decision.reason) == (action, "No usable score: Hooks failed")


@pytest.mark.parametrize("usage", [Usage(fallbacks=frozenset({"bigger"})), Usage(exhausted=True)])
def test_on_error_abstains_where_its_fallback_is_used_up(usage: Usage) -> None:
    decision = decide_error(parse_policy(FULL), error="x", usage=usage)
    assert (decision.action, decision.rule, decision.settings) == (Action.ABSTAIN, "on_error", Abstain())
    assert "on_error is skipped because" in decision.reason


def test_on_error_abstains_by_default() -> None:
    assert decide_error(parse_policy(minimal("[accept]")), error="x").action is Action.ABSTAIN


def test_a_float32_is_compared_as_the_number_it_is() -> None:
    policy = parse_policy(minimal("[accept: {below: 0.45}, abstain]"))
    score = np.float32(0.45)  # 0.44999999; NumPy would round the threshold to float32 and find them equal
    assert decide(policy, p_wrong=score).action is Action.ACCEPT  # type: ignore[arg-type]


def test_a_route_that_is_not_there_is_never_the_default() -> None:
    policy = parse_policy(FULL)
    for call in (
        lambda: decide(policy, p_wrong=0.1, route="medicl"),
        lambda: decide_error(policy, error="x", route="medicl"),
        lambda: explain(policy, 0.1, "medicl"),
        lambda: policy.budget_for("medicl"),
        lambda: policy.check_route("medicl"),
    ):
        with pytest.raises(PolicyError, match=r"'full' has no route 'medicl'\. Did you mean 'medical'"):
            call()
    with pytest.raises(PolicyError, match="It has no routes"):
        parse_policy(minimal()).check_route("medical")
    with pytest.raises(PolicyError, match="has no route ''"):
        policy.check_route("")
    for odd in ([], {"medical": 1}, 0, True):
        with pytest.raises(PolicyError, match="has no route"):
            policy.check_route(odd)  # type: ignore[arg-type]
    policy.check_route(None)


@st.composite
def policy_texts(draw: st.DrawFn) -> str:
    """Valid policies of random rules in a valid order."""
    order = list(Action)
    first = draw(st.lists(st.sampled_from(order[:3]), max_size=5))
    rest = draw(st.lists(st.sampled_from(order[3:]), max_size=3))
    actions = sorted(first, key=order.index) + rest
    lines = draw(st.lists(st.integers(1, 999), min_size=len(actions), max_size=len(actions), unique=True))
    settings_of = {
        Action.ACCEPT: "",
        Action.RETRY: ", times: {times}",
        Action.FALLBACK: ", to: engine{times}",
        Action.ESCALATE: ", to: [review]",
        Action.ABSTAIN: "",
    }
    rules = [
        f"  - {action}: {{below: {line / 1000}{settings_of[action].format(times=draw(st.integers(1, 3)))}}}"
        for action, line in zip(actions, sorted(lines), strict=True)
    ]
    end = draw(
        st.sampled_from(
            ["accept", "escalate", "abstain"] if set(actions) <= {Action.ACCEPT} else ["escalate", "abstain"]
        )
    )
    return "\n".join(["version: 1", "name: x", "rules:", *rules, f"  - {end}", ""])


scores = st.one_of(st.floats(0, 1), st.integers(0, 1000).map(lambda thousandth: thousandth / 1000))
uses = st.builds(
    Usage,
    retries=st.integers(0, 4),
    fallbacks=st.frozensets(st.sampled_from(["engine1", "engine2", "engine3"])),
    exhausted=st.booleans(),
)
CARE = {Action.ACCEPT: 0, Action.RETRY: 1, Action.FALLBACK: 2, Action.ESCALATE: 3, Action.ABSTAIN: 3}


@settings(max_examples=300, deadline=None)
@given(policy_texts(), scores, scores, uses)
def test_deciding_keeps_its_promises(text: str, one: float, other: float, usage: Usage) -> None:
    policy = parse_policy(text)
    low, high = sorted((one, other))
    at_low, at_high = decide(policy, p_wrong=low, usage=usage), decide(policy, p_wrong=high, usage=usage)
    # Rules do not become more lenient as p_wrong rises, whatever is exhausted.
    assert CARE[at_low.action] <= CARE[at_high.action]
    # An exhausted rule makes the decision stricter, never more lenient.
    assert CARE[decide(policy, p_wrong=low).action] <= CARE[at_low.action]
    # Same input, same decision.
    assert decide(policy, p_wrong=low, usage=usage) == at_low
    # Nothing is accepted from above the accept line.
    accepts = [line.below for line in policy.plan().rules if line.action is Action.ACCEPT]
    if at_high.action is Action.ACCEPT:
        assert high < max(accepts)
    # No decision oversteps what is used up.
    for decision in (at_low, at_high):
        if decision.action is Action.RETRY:
            assert not usage.exhausted
            assert usage.retries < decision.settings.times
        if decision.action is Action.FALLBACK:
            assert not usage.exhausted
            assert decision.settings.to not in usage.fallbacks
    check_explanation(policy, low, usage)


def check_explanation(policy: Policy, score: float, usage: Usage) -> None:
    """The explanation names the very rule that decides, and just one."""
    steps = explain(policy, score, usage=usage)
    (decisive,) = [step for step in steps if step.decides]
    decision = decide(policy, p_wrong=score, usage=usage)
    assert (decisive.rule, decisive.action) == (decision.rule, decision.action)
    assert [step.holds for step in steps] == [score < line.below for line in policy.plan().rules]
    assert all(step.why for step in steps)


# -- explaining --------------------------------------------------------------------------------


def test_an_explanation_walks_through_the_rules() -> None:
    steps = explain(parse_policy(FULL), 0.3, usage=Usage(retries=2))
    assert [(step.rule, step.condition, step.holds, step.decides, step.why) for step in steps] == [
        ("sure", "p_wrong < 0.2", False, False, "0.3 is not below 0.2"),
        ("rules[1] (retry)", "p_wrong < 0.4", True, False, "rules[1] (retry) has used its 2 retries"),
        ("rules[2] (fallback)", "p_wrong < 0.6", True, True, "the next rule that holds"),
        ("rules[3] (escalate)", "p_wrong < 0.8", True, False, "rules[2] (fallback) comes first"),
        ("rules[4] (abstain)", "always", True, False, "rules[2] (fallback) comes first"),
    ]


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan])
def test_only_probabilities_are_explained(score: float) -> None:
    with pytest.raises(PolicyError, match="probability from 0 to 1"):
        explain(parse_policy(FULL), score)


# -- the module --------------------------------------------------------------------------------


def test_policies_load_no_engine_and_no_rich() -> None:
    script = "import sys, guard.policy; print(*{name.split('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "llama_cpp", "sqlalchemy", "lightgbm", "rich", "typer"} & set(loaded)


def test_decisions_can_be_pickled() -> None:
    decision = decide(parse_policy(FULL), p_wrong=0.3)
    assert pickle.loads(pickle.dumps(decision)) == decision  # noqa: S301


# -- what is asked of reviewers ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("escalate", "terms"),
    [
        ("{}", ReviewTerms()),
        ("{within: 90s}", ReviewTerms(90.0, late=LateAction())),
        (
            "{within: 4h, priority: high, reviews: 2, late: abstain}",
            ReviewTerms(14_400.0, "high", 2, LateAction("abstain")),
        ),
        (
            "{within: 2 d, late: {abstain: {text: Sorry.}}}",
            ReviewTerms(172_800.0, late=LateAction("abstain", "Sorry.")),
        ),
        ("{within: 30min, late: {fallback: {text: No.}}}", ReviewTerms(1800.0, late=LateAction("fallback", "No."))),
    ],
)
def test_a_policy_says_how_its_cases_are_reviewed(escalate: str, terms: ReviewTerms) -> None:
    policy = parse_policy(
        f"{{version: 1, name: mine, rules: [{{escalate: {escalate}}}], on_error: {{escalate: {escalate}}}}}"
    )
    plan = policy.plan()
    for rule in (plan.rules[0], plan.on_error):
        assert isinstance(rule.settings, Escalate)
        assert rule.settings.terms == terms
    Draft202012Validator(json_schema()).validate(
        {"version": 1, "name": "mine", "rules": [{"escalate": yaml.safe_load(escalate)}]}
    )


def test_what_is_asked_of_reviewers_voids_no_certificate() -> None:
    plain, asked = (
        parse_policy(f"{{version: 1, name: mine, rules: [{{accept: {{below: 0.3}}}}, {{escalate: {settings}}}]}}")
        for settings in ("{}", "{within: 4h, priority: low, reviews: 2, late: {fallback: {text: No.}}}")
    )
    assert procedure_sha256(plain, None) == procedure_sha256(asked, None)
    assert plain.sha256 != asked.sha256
