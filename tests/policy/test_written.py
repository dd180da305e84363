"""A policy's document in one layout says what its file says, and nothing that a file can hold changes that."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from guard.policy.policy import builtin_policies, load_policy, parse_policy
from guard.policy.written import write_document

#: Texts that a YAML file can hold.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
SETTINGS = st.recursive(SCALARS | st.lists(SCALARS), lambda inner: st.dictionaries(TEXTS, inner))


@pytest.mark.parametrize("name", sorted(builtin_policies()))
def test_the_layout_of_a_built_in_policy_is_the_same_policy(name: str) -> None:
    policy = load_policy(name)
    again = parse_policy(policy.document)
    assert again.sha256 == policy.sha256
    assert again.document == policy.document


def test_layout_comments_and_written_defaults_make_no_difference() -> None:
    one = parse_policy("version: 1\nname: x\nrules:\n  - accept:\n      below: 0.30  # low\n  - abstain: {}\n")
    other = parse_policy("{version: 1, rules: [{accept: {below: 0.3}}, abstain], mode: enforce, name: x}")
    assert one.document == other.document == "version: 1\nname: x\nrules:\n  - accept: {below: 0.3}\n  - abstain"


def test_routes_stand_on_lines_of_their_own() -> None:
    text = "{version: 1, name: x, rules: [abstain], routes: {a b: {rules: [escalate: {to: desk}]}, 'no': {}}}"
    lines = parse_policy(text).document.splitlines()
    assert lines[3:] == [
        "  - abstain",
        "routes:",
        "  a b:",
        "    rules:",
        "      - escalate: {to: [desk]}",
        '  "no": {}',
    ]


def test_durations_are_written_as_people_write_them() -> None:
    rules = "[escalate: {to: [desk], within: 90min, late: {abstain: {text: Late.}}}]"
    policy = parse_policy(f"{{version: 1, name: x, rules: {rules}, audit: {{rate: 0.1, within: 48h}}}}")
    assert policy.document.splitlines()[3:] == [
        '  - escalate: {to: [desk], within: 90min, late: {abstain: {text: "Late."}}}',
        "audit: {rate: 0.1, within: 2d}",
    ]
    assert parse_policy(policy.document).sha256 == policy.sha256


@given(st.dictionaries(TEXTS, SETTINGS))
def test_what_is_written_is_read_again(values: dict[str, object]) -> None:
    assert (yaml.safe_load(write_document(values)) or {}) == values


@given(TEXTS)
def test_a_text_stays_in_its_line(text: str) -> None:
    assert len(write_document({"text": text}).splitlines()) == 1
