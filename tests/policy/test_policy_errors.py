"""Policies that are wrong: every mistake is found, at its line and column, in words."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import yaml

from guard.errors import PolicyError
from guard.policy.policy import InvalidPolicyError, Problem, builtin_policies, json_schema, parse_policy


def minimal(rules: str = "[abstain]", rest: str = "") -> str:
    return f"version: 1\nname: x\nrules: {rules}\n{rest}"


def marked(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Take the ⟦ marks out of a text; each stands where a problem is expected."""
    lines, positions = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        *before, last = line.split("⟦")
        column = 1
        for piece in before:
            column += len(piece)
            positions.append((number, column))
        lines.append("".join([*before, last]))
    return "\n".join(lines), positions


def problems_of(text: str, where: str = "p.yaml") -> tuple[Problem, ...]:
    with pytest.raises(InvalidPolicyError) as caught:
        parse_policy(text, where=where)
    return caught.value.problems


# -- what is refused, and where ----------------------------------------------------------------

#: Each ⟦ stands where a problem must be found, in order of its message.
REFUSED: dict[str, tuple[str, list[str]]] = {
    "empty": ("⟦", ["a policy is a mapping with 'version', 'name' and 'rules'; it is empty"]),
    "only a comment": ("⟦# nothing", ["it is empty"]),
    "list": ("⟦- version: 1", ["found a list"]),
    "scalar": ("\n⟦hello", ["found a single value"]),
    "syntax": ("version: 1\nname: ⟦[x: y", ["not valid here"]),
    "tab": ("version: 1\nrules:\n⟦\t- abstain", ["Indent with spaces"]),
    "unclosed": ('name: ⟦"x\n\n', ["not valid here"]),
    "two documents": (minimal() + "⟦---\nversion: 1", ["Keep one policy a file"]),
    "control character": ("name: a⟦\x07b", ["U+0007 is not allowed"]),
    "escape beyond unicode": ('name: "\\U⟦FFFFFFFF"', ["stands for no character"]),
    "lone surrogate": ('version: 1\nname: ⟦"\\uD800"\nrules: [abstain]', ["half a character"]),
    "lone surrogate in a key": (minimal(rest='⟦"\\uD800": 1'), ["half a character"]),
    "anchor": ("version: 1\nname: ⟦&a x\nrules: [abstain]", ["anchors are not allowed (&a)"]),
    "alias": (
        "version: 1\nname: ⟦&a x\ndescription: ⟦*a\nrules: [abstain]",
        ["anchors", "aliases are not allowed (*a)"],
    ),
    "unknown alias": ("version: 1\nname: ⟦*a\nrules: [abstain]", ["aliases"]),
    "merge key": (minimal(rest="⟦<<: {mode: shadow}"), ["unknown key '<<'"]),
    "tag": ("version: ⟦!!int 1\nname: x\nrules: ⟦!!python/tuple [abstain]", ["tags are not allowed", "tags"]),
    "local tag": ("version: 1\nname: ⟦!x y\nrules: [abstain]", ["tags are not allowed (!x)"]),
    "duplicate key": (minimal(rest="⟦name: y"), ["'name' is given twice, first in line 2. Remove one"]),
    "duplicate key deep down": (minimal("[abstain: {text: a, ⟦text: b}]"), ["'text' is given twice, first in line 3"]),
    "key that is a list": (minimal(rest="⟦[a]: 1"), ["a key must be a name, found a list"]),
    "key that is a mapping": (minimal(rest="⟦{a: b}: 1"), ["a key must be a name, found a mapping"]),
    "long number": ("version: 1\nname: x\nrules: [abstain: {text: ⟦9999999999999999999}]", ["more than 18 digits"]),
    "missing keys": ("⟦⟦⟦mode: enforce", ["'version' is missing", "'name' is missing", "'rules' is missing"]),
    "version": (
        "version: ⟦2\nname: x\nrules: [abstain]",
        ["version must be 1, the only version that this guard reads, got 2"],
    ),
    "version true": ("version: ⟦true\nname: x\nrules: [abstain]", ["version must be 1"]),
    "version text": (
        'version: ⟦"1"\nname: x\nrules: [abstain]',
        ["version must be 1, the only version that this guard reads, got '1'"],
    ),
    "late alone": (minimal("[escalate: ⟦{late: abstain}]"), ["'late' needs 'within' beside it"]),
    "within in words": (minimal("[escalate: {within: ⟦4 hours}]"), ["within must be a time such as 30min, 4h or 2d"]),
    "within nothing": (minimal("[escalate: {within: ⟦0h}]"), ["within must be a time"]),
    "within a number": (
        minimal("[escalate: {within: ⟦14400}]"),
        ["(s, min, h or d), got 14400"],
    ),
    "late accept": (
        minimal("[escalate: {within: 4h, late: ⟦accept}]"),
        ["accept is not allowed in late: nobody has looked at the answer"],
    ),
    "late retry": (minimal("[escalate: {within: 4h, late: {⟦retry: {}}}]"), ["retry is not allowed in late"]),
    "late misspelt": (minimal("[escalate: {within: 4h, late: ⟦abstian}]"), ["Did you mean 'abstain'"]),
    "late raises": (minimal("[escalate: {within: 4h, late: {abstain: {⟦raise: true}}}]"), ["unknown key 'raise'"]),
    "late without text": (minimal("[escalate: {within: 4h, late: {fallback: ⟦{}}}]"), ["'text' is missing"]),
    "late with two actions": (
        minimal("[escalate: {within: 4h, late: ⟦{abstain: , fallback: {text: a}}}]"),
        ["exactly one action here, found 'abstain' and 'fallback'"],
    ),
    "priority misspelt": (minimal("[escalate: {priority: ⟦hgih}]"), ["Did you mean 'high'"]),
    "three reviews": (minimal("[escalate: {reviews: ⟦3}]"), ["reviews must be at most 2, got 3"]),
    "within misspelt": (minimal("[escalate: {⟦withn: 3h}]"), ["Did you mean 'within'"]),
    "version float": ("version: ⟦1.0\nname: x\nrules: [abstain]", ["version must be 1"]),
    "version null": ("⟦version:\nname: x\nrules: [abstain]", ["there is no value after 'version'"]),
    "name number": ("version: 1\nname: ⟦5\nrules: [abstain]", ["name must be text, got 5. Put it in quotes"]),
    "name empty": ('version: 1\nname: ⟦""\nrules: [abstain]', ["name must not be empty"]),
    "name spaced": ('version: 1\nname: ⟦" x"\nrules: [abstain]', ["must be a name"]),
    "name of two lines": ('version: 1\nname: ⟦"x\\ny"\nrules: [abstain]', ["must be a name"]),
    "name long": (f"version: 1\nname: ⟦{'x' * 101}\nrules: [abstain]", ["may have at most 100 characters"]),
    "unknown key": (minimal(rest="⟦on_eror: abstain"), ["unknown key 'on_eror'. Did you mean 'on_error'?"]),
    "unknown key with escapes": (minimal(rest='⟦"a\\eb": 1'), ["unknown key 'a\\x1bb'"]),
    "mode": (
        minimal(rest="mode: ⟦shaddow"),
        ["mode must be 'enforce' or 'shadow', got 'shaddow'. Did you mean 'shadow'?"],
    ),
    "mode number": (minimal(rest="mode: ⟦1"), ["mode must be 'enforce' or 'shadow', got 1"]),
    "rules mapping": ("version: 1\nname: x\nrules: ⟦{accept: {}}", ["rules must be a list, got a mapping"]),
    "rules text": ("version: 1\nname: x\nrules: ⟦accept", ["rules must be a list, got 'accept'"]),
    "rules empty": ("version: 1\nname: x\nrules: ⟦[]", ["rules must not be empty"]),
    "rules null": ("version: 1\nname: x\n⟦rules:", ["there is no value after 'rules'"]),
    "rule null": (minimal("[⟦~]"), ["rules[0] must be a mapping, got nothing"]),
    "rule number": (minimal("[⟦5, abstain]"), ["rules[0] must be a mapping, got 5"]),
    "rule empty": (minimal("[⟦{}, abstain]"), ["exactly one action here, found none"]),
    "rule with two actions": (
        minimal("[⟦{accept: {below: 0.1}, escalate: {}}, abstain]"),
        ["exactly one action here, found 'accept' and 'escalate'"],
    ),
    "unknown action": (minimal("[⟦acept: {below: 0.1}, abstain]"), ["unknown action 'acept'. Did you mean 'accept'?"]),
    "unknown bare action": (minimal("[⟦abstian]"), ["unknown action 'abstian'. Did you mean 'abstain'?"]),
    "setting beside the action": (
        "version: 1\nname: x\nrules:\n  - accept:\n    ⟦below: 0.2\n  - abstain",
        ["'below' belongs inside the action. Indent it further, as in 'accept: {below: ...}'"],
    ),
    "settings list": (minimal("[abstain: ⟦[text]]"), ["rules[0].abstain must be a mapping, got a list"]),
    "unknown setting": (
        minimal("[accept: {below: 0.2, ⟦belwo: 1}, abstain]"),
        ["unknown key 'belwo' in rules[0].accept. Did you mean 'below'?"],
    ),
    "below text": (
        minimal('[accept: {below: ⟦"0.2"}, abstain]'),
        ["rules[0].accept.below must be a number, got '0.2'. Write a plain number, without quotes"],
    ),
    "below octal": (minimal("[accept: {below: ⟦01}, abstain]"), ["must be a number, got '01'. Write a plain number"]),
    "below boolean": (minimal("[accept: {below: ⟦true}, abstain]"), ["must be a number, got true"]),
    "below yes": (minimal("[accept: {below: ⟦yes}, abstain]"), ["must be a number, got 'yes'"]),
    "below nan": (minimal("[accept: {below: ⟦.nan}, abstain]"), ["must be a number, got '.nan'"]),
    "below inf": (minimal("[accept: {below: ⟦.inf}, abstain]"), ["must be a number, got '.inf'"]),
    "below too large": (minimal("[accept: {below: ⟦1e999}, abstain]"), ["must be a finite number, got inf"]),
    "below 0": (minimal("[accept: {below: ⟦0}, abstain]"), ["must be above 0, got 0"]),
    "below -1": (minimal("[accept: {below: ⟦-0.1}, abstain]"), ["must be above 0, got -0.1"]),
    "below 1.5": (minimal("[accept: {below: ⟦1.5}, abstain]"), ["must be at most 1, got 1.5"]),
    "below percent": (minimal("[accept: {below: ⟦25%}, abstain]"), ["must be a number, got '25%'"]),
    "below null": (minimal("[accept: {⟦below: }, abstain]"), ["there is no value after 'below'"]),
    "below list": (minimal("[accept: {below: ⟦[0.1]}, abstain]"), ["must be a number, got a list"]),
    "times 0": (
        minimal("[retry: {below: 0.5, times: ⟦0}, abstain]"),
        ["rules[0].retry.times must be at least 1, got 0"],
    ),
    "times 1.5": (minimal("[retry: {below: 0.5, times: ⟦1.5}, abstain]"), ["must be a whole number, got 1.5"]),
    "times many": (minimal("[retry: {below: 0.5, times: ⟦21}, abstain]"), ["must be at most 20, got 21"]),
    "temperature": (minimal("[retry: {below: 0.5, temperature: ⟦-1}, abstain]"), ["must be at least 0, got -1"]),
    "top_p": (minimal("[retry: {below: 0.5, top_p: ⟦0}, abstain]"), ["top_p must be above 0, got 0"]),
    "top_k": (minimal("[retry: {below: 0.5, top_k: ⟦-1}, abstain]"), ["top_k must be at least 0"]),
    "seed": (minimal("[retry: {below: 0.5, seed: ⟦-1}, abstain]"), ["seed must be at least 0"]),
    "instruction": (minimal('[retry: {below: 0.5, instruction: ⟦""}, abstain]'), ["instruction must not be empty"]),
    "retry without below": (minimal("[retry: ⟦{times: 1}]"), ["retry needs 'below': it is limited"]),
    "fallback without below": (minimal("[fallback: ⟦{text: x}]"), ["fallback needs 'below'"]),
    "bare retry": (minimal("[⟦retry]"), ["retry needs 'below'"]),
    "fallback without target": (minimal("[fallback: ⟦{below: 0.5}, abstain]"), ["exactly one of 'to' and 'text'"]),
    "fallback with both": (
        minimal("[fallback: ⟦{below: 0.5, to: a, text: b}, abstain]"),
        ["exactly one of 'to' and 'text'"],
    ),
    "escalate to nobody": (minimal("[escalate: {to: ⟦[]}]"), ["rules[0].escalate.to must not be empty"]),
    "escalate to a number": (
        minimal("[escalate: {to: [review, ⟦5]}]"),
        ["rules[0].escalate.to[1] must be text, got 5"],
    ),
    "escalate twice to one": (minimal("[escalate: ⟦{to: [log, log]}]"), ["'to' names a handler twice"]),
    "abstain with both": (minimal("[abstain: ⟦{text: x, raise: true}]"), ["'text' or 'raise', not both"]),
    "raise yes": (minimal("[abstain: {raise: ⟦yes}]"), ["must be true or false, got 'yes'. Write true or false"]),
    "raise python": (
        minimal("[abstain: {⟦raises: true}]"),
        ["unknown key 'raises' in rules[0].abstain. Did you mean 'raise'?"],
    ),
    "thresholds fall": (
        minimal("[accept: {below: 0.4}, escalate: {below: ⟦0.3}, abstain]"),
        ["rules[1] (escalate) can never fire: rules[0] (accept) takes all below 0.4. Thresholds must rise"],
    ),
    "thresholds equal": (minimal("[accept: {below: 0.4}, escalate: {below: ⟦0.4}, abstain]"), ["can never fire"]),
    "after the catch-all": (
        minimal("[abstain, ⟦escalate: {below: 0.4}, ⟦escalate]"),
        ["rules[1] (escalate) can never fire: rules[0] (abstain) has no 'below'", "rules[2] (escalate) can never fire"],
    ),
    "accept after abstain": (
        minimal("[abstain: {below: 0.3}, ⟦accept: {below: 0.5}, escalate]"),
        ["accept must not come after abstain: rules must not become more lenient as p_wrong rises"],
    ),
    "retry after fallback": (
        minimal("[fallback: {below: 0.3, to: b}, ⟦retry: {below: 0.5}, escalate]"),
        ["retry must not come after fallback"],
    ),
    "no catch-all": (
        minimal("[accept: {below: 0.4}, ⟦abstain: {below: 0.9}]"),
        ["the last rule must take every answer"],
    ),
    "below 1 is no catch-all": (
        minimal("[accept: {below: 0.4}, ⟦abstain: {below: 1}]"),
        ["'below: 1' does not take every answer, since p_wrong may be exactly 1"],
    ),
    "rule name twice": (
        minimal("[accept: {below: 0.1, name: a}, accept: {below: 0.2, name: ⟦a}, abstain]"),
        ["the name 'a' is taken by rules[0]"],
    ),
    "on_error retry": (minimal(rest="on_error: ⟦retry"), ["retry is not allowed in on_error"]),
    "on_error retry mapping": (minimal(rest="on_error: {⟦retry: {times: 1}}"), ["retry is not allowed in on_error"]),
    "on_error unknown": (minimal(rest="on_error: ⟦escalat"), ["unknown action 'escalat'. Did you mean 'escalate'?"]),
    "on_error below": (minimal(rest="on_error: {abstain: {⟦below: 0.5}}"), ["unknown key 'below' in on_error.abstain"]),
    "on_error fallback": (minimal(rest="on_error: ⟦fallback"), ["exactly one of 'to' and 'text'"]),
    "on_error null": (minimal(rest="⟦on_error:"), ["there is no value after 'on_error'"]),
    "on_error list": (minimal(rest="on_error: ⟦[abstain]"), ["on_error must be a mapping, got a list"]),
    "budget unknown": (minimal(rest="budget: {⟦token: 5}"), ["unknown key 'token' in budget. Did you mean 'tokens'?"]),
    "budget attempts": (minimal(rest="budget: {attempts: ⟦0}"), ["budget.attempts must be at least 1"]),
    "budget seconds": (minimal(rest="budget: {seconds: ⟦1:30}"), ["budget.seconds must be a number, got '1:30'"]),
    "budget tokens": (minimal(rest="budget: {tokens: ⟦1e3}"), ["budget.tokens must be a whole number, got 1000.0"]),
    "more retries than attempts": (
        minimal("[retry: {below: 0.5, times: ⟦3}, abstain]", "budget: {attempts: 3}"),
        ["rules[0] asks for 3 retries, but budget.attempts leaves room for 2 after the first answer"],
    ),
    "more retries than the default attempts": (minimal("[retry: {below: 0.5, times: ⟦4}, abstain]"), ["room for 3"]),
    "more retries than attempts, told once": (
        minimal("[retry: {below: 0.5, times: ⟦4}, abstain]", "routes: {r: {}}"),
        ["rules[0] asks for 4 retries"],
    ),
    "more retries than attempts in a route": (
        minimal(rest="routes: {r: {rules: [retry: {below: 0.5, times: ⟦4}, abstain]}}"),
        ["routes.r.rules[0] asks for 4 retries"],
    ),
    "no attempt left for a fallback": (
        minimal("[fallback: {below: 0.5, to: ⟦b}, abstain]", "budget: {attempts: 1}"),
        ["asks for a fallback to another engine, but budget.attempts leaves room for 0"],
    ),
    "no attempt left in a route": (
        minimal("[retry: {below: 0.5}, abstain]", "routes: {r: {budget: {attempts: ⟦1}}}"),
        ["rules[0] asks for 1 retries, but budget.attempts leaves room for 0"],
    ),
    "fallbacks list": (minimal(rest="fallbacks: ⟦[a]"), ["fallbacks must be a mapping, got a list"]),
    "fallback engine": (
        minimal(rest="fallbacks: {b: ⟦{⟦modle: x}}"),
        ["'model' is missing in fallbacks.b", "Did you mean 'model'?"],
    ),
    "fallback engine name": (minimal(rest='fallbacks: {⟦" b": {model: x}}'), ["' b' in fallbacks must be a name"]),
    "fallback slip": (
        minimal("[fallback: {below: 0.5, to: ⟦biger}, abstain]", "fallbacks: {bigger: {model: x}}"),
        ["there is no fallback 'biger' under 'fallbacks'. Did you mean 'bigger'?"],
    ),
    "fallback slip in on_error": (
        minimal(rest="on_error: {fallback: {to: ⟦biger}}\nfallbacks: {bigger: {model: x}}"),
        ["Did you mean 'bigger'?"],
    ),
    "routes list": (minimal(rest="routes: ⟦[a]"), ["routes must be a mapping, got a list"]),
    "route null": (minimal(rest="routes: {⟦a: }"), ["there is no value after 'a'"]),
    "route unknown key": (
        minimal(rest="routes: {a: {⟦rule: []}}"),
        ["unknown key 'rule' in routes.a. Did you mean 'rules'?"],
    ),
    "route named like a key": (
        minimal(rest="routes: {rules: {⟦x: 1}, on_error: {⟦y: 1}}"),
        ["unknown key 'x'", "unknown key 'y'"],
    ),
    "route rules": (
        minimal(rest="routes: {a: {rules: [abstain: {below: 0.5}, ⟦accept]}}"),
        ["accept must not come after abstain"],
    ),
    "route rules empty": (minimal(rest="routes: {a: {rules: ⟦[]}}"), ["routes.a.rules must not be empty"]),
    "route without end": (
        minimal(rest="routes: {a: {rules: [⟦accept: {below: 0.5}]}}"),
        ["the last rule must take every"],
    ),
    "route on_error": (minimal(rest="routes: {a: {on_error: {accept: {⟦name: b}}}}"), ["unknown key 'name'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_mistake_is_found_at_its_place(case: str) -> None:
    text, messages = REFUSED[case]
    text, positions = marked(text)
    found = problems_of(text)
    assert [(problem.line, problem.column) for problem in found] == positions, found
    for problem, message in zip(found, messages, strict=True):
        assert message in str(problem)


def test_all_problems_are_reported_at_once() -> None:
    text, positions = marked(
        "version: 1\nname: ⟦5\nrules:\n  - accept: {below: ⟦yes}\n  - retry: {below: 0.5}\n"
        "  - escalate: {below: ⟦0.4}\n  - ⟦abstian\non_eror: x\n".replace("on_eror", "⟦on_eror")
    )
    with pytest.raises(InvalidPolicyError) as caught:
        parse_policy(text, where="dir/p.yaml")
    error = caught.value
    assert [(problem.line, problem.column) for problem in error.problems] == positions
    assert error.what == str(error.problems[0]) == "dir/p.yaml:2:7: name must be text, got 5. Put it in quotes"
    assert str(error).startswith("dir/p.yaml:2:7: ")
    assert "4 more problems:" in str(error)
    assert all(str(problem) in str(error) for problem in error.problems)
    assert error.problems[2].location == "rules[2].escalate.below"
    assert isinstance(error, PolicyError)
    assert error.exit_code == 2


def test_a_single_problem_needs_no_list() -> None:
    with pytest.raises(InvalidPolicyError, match=r"^p:3:9: .*abstain'\?") as caught:
        parse_policy("version: 1\nname: x\nrules: [abstian]", where="p")
    assert "more problem" not in str(caught.value)


@pytest.mark.timeout(60)
def test_thousands_of_problems_are_counted_not_listed() -> None:
    found = problems_of(minimal(rest="".join(f"key{number}: 1\n" for number in range(5000))))
    assert len(found) == 100


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "more than 20 levels deep"),
        ("{a: " * 100_000, "more than 20 levels deep"),
        ("a:\n" + "".join(f"{' ' * depth}a:\n" for depth in range(1, 300)), "more than 20 levels deep"),
        ("- x\n" * 100_000, "more than 20,000 values"),
        ("a: " + "x" * 1_000_001, "at most 1,000,000 bytes"),
        ("a: " + "é" * 500_001, "at most 1,000,000 bytes"),
        ("a: &a [x]\n" + "b: [*a, *a, *a, *a]\n" * 3000, "anchors are not allowed"),
        ("k" * 900_000 + ": 1", "not valid here"),
        ('version: 1\n"' + "k" * 900 + '": 1', "unknown key"),
    ],
)
def test_bombs_end_quickly(text: str, message: str) -> None:
    assert any(message in str(problem) for problem in problems_of(text))


@pytest.mark.timeout(60)
def test_many_long_names_do_not_keep_the_reader_waiting() -> None:
    """Each undeclared fallback is compared with each declared one, so this is the dearest policy."""
    letters = random.Random(0)
    names = ["".join(letters.choices("abcdef", k=90)) for _ in range(1500)]
    declared = "".join(f"  {name}: {{model: m}}\n" for name in names[:20])
    routes = "".join(f"  r{n}: {{on_error: {{fallback: {{to: {name}}}}}}}\n" for n, name in enumerate(names[:500]))
    rules = "".join(f"  - fallback: {{below: {n / 1000}, to: {name}}}\n" for n, name in enumerate(names[-99:], 1))
    policy = parse_policy(f"version: 1\nname: x\nrules:\n{rules}  - abstain\nfallbacks:\n{declared}routes:\n{routes}")
    assert (len(policy.fallbacks), len(policy.routes)) == (20, 500)


def test_errors_never_echo_long_values() -> None:
    (problem,) = problems_of(minimal(f"[accept: {{below: {'x' * 5000}}}, abstain]"))
    assert len(str(problem)) < 200


# -- the schema --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_takes_good_policies(validator: Any) -> None:
    for text in (
        minimal(),
        minimal("[{abstain: }]"),
        minimal("[escalate: {to: a}]"),
        *(p.read_text() for p in builtin_policies().values()),
    ):
        assert list(validator.iter_errors(yaml.safe_load(text))) == []


@pytest.mark.parametrize(
    "case",
    [
        "missing keys", "version", "name number", "name spaced", "unknown key", "mode", "rules text", "rules empty",
        "rule empty", "rule with two actions", "unknown action", "unknown bare action", "setting beside the action",
        "unknown setting", "below text", "below boolean", "below 0", "below 1.5", "below null", "times 0",
        "times 1.5", "retry without below", "bare retry", "fallback without target", "fallback with both",
        "escalate to nobody", "escalate twice to one", "abstain with both", "raise python", "on_error retry",
        "on_error below", "on_error null", "budget unknown", "fallback engine", "route unknown key", "route null",
        "late alone", "within in words", "within nothing", "within a number", "late accept", "late retry",
        "late raises", "late without text", "late with two actions", "priority misspelt", "three reviews",
    ],
)  # fmt: skip
def test_the_schema_refuses_what_it_can(validator: Any, case: str) -> None:
    text, _ = marked(REFUSED[case][0])
    assert list(validator.iter_errors(yaml.safe_load(text))), case


def test_the_schema_is_plain_json_without_null_fields() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["required"] == ["version", "name", "rules"]
    assert schema["properties"]["mode"]["enum"] == ["enforce", "shadow"]
    assert schema["$defs"]["AcceptRule"]["properties"]["below"]["type"] == "number"


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("accept: {max_error_rate: 5}", "Write 0.05 for 5 %"),
        ("accept: {max_error_rate: 0.05, confidence: 90}", "Write 0.9 for 90 %"),
        ("accept: {below: 20}", "Write 0.2 for 20 %"),
        ("accept: {max_error_rate: 5%}", "got '5%'. Write 0.05"),
        ("accept: {below: '2,5 %'}", "Write 0.025"),
        ("accept: {below: '0,5'}", "Write 0.5"),
        ("escalate: {above: 0.5}", "rules go by 'below'"),
        ("accept: {above: 0.5}", "rules go by 'below'"),
    ],
)
def test_what_people_write_first_is_answered_with_what_to_write(rule: str, said: str) -> None:
    text = f"version: 1\nname: p\nrules:\n  - {rule}\n  - abstain\non_error:\n  abstain\n"
    assert any(said in problem.message for problem in problems_of(text)), problems_of(text)


def test_above_at_the_top_of_a_policy_is_an_unknown_key() -> None:
    """Found by fuzzing: an IndexError."""
    with pytest.raises(InvalidPolicyError, match="unknown key 'above'"):
        parse_policy("version: 1\nname: x\nabove: 0.5\nrules: [abstain]\n")
