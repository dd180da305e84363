"""Certificate files, what voids them, and policies that need one."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_certificates import GUARANTEE, LADDER, certificate, certificates, engine, policy, written
from scripted import confidence_scorer, scripted_model, tiny_artefact

from guard.errors import InputError, PolicyError
from guard.policy.certificate import (
    CertificateError,
    certified_policy,
    load_certificates,
    parse_certificates,
)
from guard.policy.explanation import explain
from guard.policy.guarantee import guarantees, is_seeded, procedure_sha256, trial_policy
from guard.policy.policy import (
    InvalidPolicyError,
    builtin_policies,
    decide,
    decide_error,
    json_schema,
    load_policy,
)
from guard.records import Action
from guard.runtime.guard import Guard
from guard.runtime.sources import Source
from guard.scoring.scorer import Scorer

ROUTES = f"""{LADDER}
routes:
  medical:
    rules:
      - accept: {{max_error_rate: 0.01, confidence: 0.95}}
      - escalate: {{to: [log]}}
  chat:
    rules:
      - accept: {{below: 0.5}}
      - abstain
"""


def problems(body: str) -> list[str]:
    with pytest.raises(InvalidPolicyError) as caught:
        policy(body)
    return [str(problem) for problem in caught.value.problems]


# -- policies with a risk guarantee ---------------------------------------------------------------------


def test_a_policy_with_a_risk_guarantee_decides_nothing_without_a_certificate() -> None:
    certifiable = policy()
    for attempt in (lambda: decide(certifiable, p_wrong=0.01), lambda: explain(certifiable, 0.01)):
        with pytest.raises(PolicyError, match=r"rules\[0\] \(accept\) has no threshold yet.*guard certify"):
            attempt()
    assert decide_error(certifiable, error="x").action is Action.ABSTAIN, "which needs no threshold"


def test_risk_guarantees_are_by_route_and_inherited() -> None:
    found = guarantees(policy(ROUTES + "  other: {budget: {attempts: 3}}\n"))
    told = {route: (guarantee.max_error_rate, guarantee.confidence) for route, guarantee in found.items()}
    assert told == {None: (0.05, 0.9), "medical": (0.01, 0.95), "other": (0.05, 0.9)}
    assert guarantees(load_policy("balanced")) == {}


@pytest.mark.parametrize(
    ("settings_text", "words"),
    [
        ("{max_error_rate: 0.05}", "'max_error_rate' needs 'confidence' beside it"),
        ("{confidence: 0.9}", "'confidence' needs 'max_error_rate' beside it"),
        ("{max_error_rate: 0.05, confidence: 0.9, below: 0.2}", "accept takes 'below' or 'max_error_rate', not both"),
        ("{max_error_rate: 5, confidence: 0.9}", "max_error_rate must be below 1, got 5"),
        ("{max_error_rate: 0, confidence: 0.9}", "max_error_rate must be above 0, got 0"),
        ("{max_error_rate: 0.05, confidence: 90}", "confidence must be below 1, got 90"),
        ("{max_error_rate: 0.05, confidence: 0.2}", "confidence must be at least 0.5, got 0.2"),
        ('{max_error_rate: "0.05", confidence: 0.9}', "must be a number"),
        ("{max_eror_rate: 0.05, confidence: 0.9}", "Did you mean 'max_error_rate'?"),
    ],
)
def test_risk_guarantees_that_are_written_wrongly(settings_text: str, words: str) -> None:
    found = problems(f"rules:\n  - accept: {settings_text}\n  - abstain\n")
    assert any(words in problem for problem in found), found
    assert found[0].startswith("<policy>:4:")


def test_nothing_else_may_accept_beside_a_risk_guarantee() -> None:
    (told,) = problems(f"rules:\n{GUARANTEE}\n  - accept: {{below: 0.3}}\n  - abstain\n")
    assert told == ("<policy>:5:5: rules[0] accepts too, but a risk guarantee covers all accepted answers. Keep one")


def test_a_risk_guarantee_is_not_the_last_rule_and_not_for_tools() -> None:
    (told,) = problems(f"rules:\n{GUARANTEE}\n")
    assert "the last rule must take every answer" in told
    (told,) = problems(f"rules:\n  - abstain\ntools:\n  delete:\n    rules:\n    {GUARANTEE}\n      - abstain\n")
    assert told.startswith("<policy>:8:")
    assert "a risk guarantee cannot be certified for answers that call a tool" in told


def test_the_schema_knows_risk_guarantees() -> None:
    validator = jsonschema.Draft202012Validator(json_schema())

    def is_valid(accept: dict[str, object]) -> bool:
        document = {"version": 1, "name": "x", "certificate": "c.json", "rules": [{"accept": accept}, "abstain"]}
        return bool(validator.is_valid(document))

    assert is_valid({"max_error_rate": 0.05, "confidence": 0.9})
    assert is_valid({"below": 0.2})
    assert not is_valid({"max_error_rate": 0.05})
    assert not is_valid({"confidence": 0.9})
    assert not is_valid({"max_error_rate": 0.05, "confidence": 0.9, "below": 0.2})
    assert not is_valid({"max_error_rate": 5, "confidence": 0.9})


def test_the_builtin_policy_has_a_risk_guarantee() -> None:
    assert {str(guarantee) for guarantee in guarantees(load_policy("certified")).values()} == {
        "max_error_rate 0.05 at confidence 0.9"
    }
    assert "guard certify" in builtin_policies()["certified"].read_text()


def test_the_certificate_of_a_policy_is_found_beside_its_file(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(f"version: 1\nname: test\ncertificate: certs/c.json\n{LADDER}")
    loaded = load_policy(file)
    assert loaded.certificate == str(tmp_path / "certs" / "c.json")
    (tmp_path / "certs").mkdir()
    certificates(certificate(loaded)).save(tmp_path / "certs" / "c.json")
    guard = Guard(engine(0.2), confidence_scorer(), loaded)
    assert guard.ask("What?").action is Action.ACCEPT
    assert pickle.loads(pickle.dumps(loaded)) == loaded  # noqa: S301 - our own


# -- certificates in use -----------------------------------------------------------------------


def test_the_threshold_comes_from_the_certificate() -> None:
    given = certificates(certificate(policy()))
    for p_wrong, action in ((0.24, Action.ACCEPT), (0.26, Action.ABSTAIN)):
        guard = Guard(engine(p_wrong), confidence_scorer(), policy(), certificate=given)
        assert guard.ask("What?").action is action
        assert guard.policy.plan().rules[0].condition == "p_wrong < 0.25"


def test_each_route_needs_its_own() -> None:
    certifiable = policy(ROUTES)
    whole, medical = certificate(certifiable), certificate(certifiable, route="medical", threshold=0.04)
    guard = Guard(engine(0.1), confidence_scorer(), certifiable, certificate=certificates(whole, medical))
    assert guard.ask("What?").action is Action.ACCEPT
    assert guard.ask("What?", route="medical").action is Action.ESCALATE
    assert guard.ask("What?", route="chat").action is Action.ACCEPT
    with pytest.raises(CertificateError, match=r"no certificate for 'test', route 'medical'.*calls without a route"):
        Guard(engine(), confidence_scorer(), certifiable, certificate=certificates(whole))


def test_shadow_mode_needs_it_too_and_enforcing_later_does_not_void_it() -> None:
    watching = policy(f"mode: shadow\n{LADDER}")
    with pytest.raises(CertificateError, match="there is no certificate"):
        Guard(engine(), confidence_scorer(), watching)
    given = certificates(certificate(watching))
    outcome = Guard(engine(0.7), confidence_scorer(), watching, certificate=given).ask("What?")
    assert (outcome.answer, outcome.would_be and outcome.would_be.action) == ("Paris", Action.ABSTAIN)
    assert Guard(engine(0.2), confidence_scorer(), policy(), certificate=given).ask("What?").accepted


def test_a_guard_cannot_be_had_without_a_certificate() -> None:
    with pytest.raises(CertificateError) as caught:
        Guard(engine(), confidence_scorer(), policy())
    told = str(caught.value)
    assert "'test' guarantees max_error_rate 0.05 at confidence 0.9" in told
    assert "guard certify" in told
    assert "--certificate" in told


def test_that_it_is_missing_is_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    scorer = tmp_path / "s.json"
    confidence_scorer().save(scorer)
    with pytest.raises(CertificateError, match="there is no certificate"):
        Guard.load(tmp_path / "no-such-model.gguf", scorer=scorer, policy=policy())
    with pytest.raises(CertificateError, match="Cannot read the certificate"):
        Guard.load(tmp_path / "no-such-model.gguf", scorer=scorer, policy=policy(), certificate=tmp_path / "no.json")


def test_a_policy_that_risk_guarantees_nothing_ignores_certificates() -> None:
    plain = policy("certificate: nowhere.json\nrules:\n  - accept: {below: 0.5}\n  - abstain\n")
    assert Guard(engine(), confidence_scorer(), plain).ask("What?").accepted


@pytest.mark.parametrize(
    ("body", "changes", "words"),
    [
        (LADDER.replace("0.05", "0.06"), {}, "max_error_rate was 0.05, is 0.06"),
        (LADDER.replace("0.9}", "0.8}"), {}, "confidence was 0.9, is 0.8"),
        (
            LADDER.replace("times: 1", "times: 2"),
            {},
            "the rules, on_error, truncated, empty or the budget differs",
        ),
        (
            LADDER.replace("below: 0.6", "below: 0.7"),
            {},
            "the rules, on_error, truncated, empty or the budget differs",
        ),
        (LADDER + "budget: {attempts: 3}\n", {}, "the rules, on_error, truncated, empty or the budget differs"),
        (LADDER + "on_error: escalate\n", {}, "the rules, on_error, truncated, empty or the budget differs"),
        (LADDER, {"weights_sha256": "e" * 64}, "weights_sha256 was aaaaaaaaaaaa..., is eeeeeeeeeeee..."),
        (LADDER, {"quantization": "Q4_1"}, "quantization was none, is Q4_1"),
        (LADDER, {"chat_template_sha256": "f" * 64}, "chat_template_sha256"),
        (LADDER, {"engine": "other"}, "engine was scripted, is other"),
    ],
)
def test_what_voids_a_certificate(body: str, changes: dict[str, object], words: str) -> None:
    given = certificates(certificate(policy()))
    other = engine(**changes)
    body = body.replace("on_error: escalate", "on_error: {escalate: {to: [log]}}")
    with pytest.raises(CertificateError) as caught:
        Guard(other, confidence_scorer(other.model), policy(body), certificate=given)
    assert "'cert.json' does not hold for the policy 'test'" in str(caught.value)
    assert words in str(caught.value)
    assert "Certify it again" in str(caught.value)


def test_another_scorer_and_a_forced_one_void_it() -> None:
    given = certificates(certificate(policy()))
    refitted = Scorer(tiny_artefact(scripted_model()).model_copy(update={"seed": 7}))
    with pytest.raises(CertificateError, match="the model's scorer was"):
        Guard(engine(), refitted, policy(), certificate=given)
    with pytest.raises(CertificateError, match="weights_sha256"):
        Guard(engine(weights_sha256="9" * 64), confidence_scorer(), policy(), certificate=given, force_scorer=True)


def test_names_and_other_routes_do_not_void_it() -> None:
    given = certificates(certificate(policy()))
    body = LADDER.replace("confidence: 0.9}", "confidence: 0.9, name: sure}") + (
        "description: Other words.\nroutes:\n  chat: {rules: [abstain]}\n"
    )
    assert Guard(engine(0.2), confidence_scorer(), policy(body), certificate=given).ask("What?").accepted
    assert procedure_sha256(policy(body), None) == procedure_sha256(policy(), None)
    assert procedure_sha256(policy(body), "chat") != procedure_sha256(policy(), None)


def test_another_fallback_model_voids_it() -> None:
    falling = policy(LADDER.replace("retry: {below: 0.6, times: 1}", "fallback: {below: 0.6, to: other}"))

    def with_fallback(target: Any, **options: Any) -> Guard:
        chosen = options.pop("policy", falling)
        return Guard(engine(), confidence_scorer(), chosen, fallbacks={"other": target}, **options)

    source = Source("other", engine(), confidence_scorer())
    given = certificates(certificate(falling, guard=with_fallback(source, policy=trial_policy(falling))))
    assert with_fallback(source, certificate=given).ask("What?").accepted
    changed = engine(weights_sha256="e" * 64)
    with pytest.raises(CertificateError, match="the fallback other's weights_sha256"):
        with_fallback(Source("other", changed, confidence_scorer(changed.model)), certificate=given)
    with pytest.raises(CertificateError, match="the fallback 'other' is now of another kind"):
        with_fallback(lambda prompt: "Paris", certificate=given)


def test_a_certified_policy_goes_to_another_guard_of_the_same_model_only() -> None:
    settled = Guard(engine(), confidence_scorer(), policy(), certificate=certificates(certificate(policy()))).policy
    assert Guard(engine(0.2), confidence_scorer(), settled).ask("What?").accepted
    other = engine(weights_sha256="e" * 64)
    with pytest.raises(CertificateError, match="there is no certificate"):
        Guard(other, confidence_scorer(other.model), settled)


def test_a_threshold_must_leave_the_next_rule_something() -> None:
    given = certificates(certificate(policy(), threshold=0.6))
    with pytest.raises(PolicyError, match=r"certified threshold 0\.6 is not below 0\.6, where the next rule"):
        certified_policy(policy(), given, fingerprint=lambda route: given.by_route[None].fingerprint)


# -- files -------------------------------------------------------------------------------------


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    certifiable = policy(ROUTES)
    first = certificates(certificate(certifiable))
    both = first.with_one(certificate(certifiable, route="medical", threshold=0.04))
    both.save(tmp_path / "c.json")
    back = load_certificates(tmp_path / "c.json")
    assert back.by_route == both.by_route
    replaced = back.with_one(certificate(certifiable, threshold=0.3))
    assert [each.threshold for each in replaced.by_route.values()] == [0.3, 0.04]
    assert [file.name for file in tmp_path.iterdir()] == ["c.json"]
    with pytest.raises(CertificateError, match="Cannot write the certificate"):
        both.save(tmp_path / "no" / "c.json")


def test_a_certificate_explains_itself() -> None:
    assert certificate(policy()).explain() == (
        "Of the answers with p_wrong below 0.25, 40 % of all, at most 5 % are wrong, with confidence 90 % "
        "(0 of 400 in 1,000 fresh labels; bound 0.574 %)."
    )


@pytest.mark.parametrize(
    ("retry", "seeded"),
    [
        ("temperature: 0.7", False),
        ("temperature: 0.7, seed: 3", True),
        ("temperature: 0, instruction: Think.", True),
        ("instruction: Think.", False),
    ],
)
def test_a_certificate_says_whether_its_retries_are_random(retry: str, seeded: bool) -> None:
    made = policy(f"rules:\n{GUARANTEE}\n  - retry: {{below: 0.6, {retry}}}\n  - abstain\n")
    assert is_seeded(made.plan()) is seeded
    explained = certificate(made, seeded=seeded).explain()
    assert ("another run gives another certificate" in explained) is not seeded


def test_retries_on_errors_and_defects_count_as_well() -> None:
    rules = f"rules:\n{GUARANTEE}\n  - abstain\n"
    assert is_seeded(policy(rules).plan())
    assert not is_seeded(policy(f"{rules}truncated: {{retry: {{max_tokens: 200}}}}\n").plan())


def changed(**values: Any) -> bytes:
    content = written()
    content["certificates"][0].update(values)
    return json.dumps(content).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no valid JSON"),
        (b"\xff", "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"a": 1, "a": 2}', "same key twice"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b"[]", "is not a certificate"),
        (b'{"format": "guard-scorer"}', "is not a certificate"),
        (b'{"format": "guard-certificate", "format_version": 3}', "has format version 3"),
        (b'{"format": "guard-certificate", "format_version": 2}', "certificates: Field required"),
        (changed(threshold=0.3), "is damaged"),
        (changed(errors=200), "does not support this risk"),
        (changed(errors=500), "are inconsistent"),
        (changed(coverage=0.9), "coverage is not accepted / n"),
        (changed(threshold=1.5), "less than or equal to 1"),
        (changed(risk="0.05"), "certificates.0.risk"),
        (changed(extra=1), "certificates.0.extra"),
    ],
)
def test_files_that_are_no_certificates(data: bytes, words: str) -> None:
    with pytest.raises(CertificateError, match=r"c\.json") as caught:
        parse_certificates(data, where="c.json")
    assert words in str(caught.value)


def test_paths_that_are_no_certificates(tmp_path: Path) -> None:
    large = tmp_path / "large.json"
    large.write_bytes(b" " * (2**20 + 1))
    os.mkfifo(tmp_path / "pipe")
    for path, words in (
        (tmp_path / "no.json", "No such file"),
        (tmp_path, "is not a file"),
        (tmp_path / "pipe", "is not a file"),
        (large, "too large"),
        ("a\0b", "null byte"),
    ):
        with pytest.raises(CertificateError) as caught:
            load_certificates(path)
        assert words in str(caught.value)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_goes_unnoticed(data: st.DataObject) -> None:
    text = bytearray(json.dumps(written()).encode())
    at = data.draw(st.integers(0, len(text) - 1))
    text[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[at]))
    try:
        read = parse_certificates(bytes(text))
    except CertificateError:
        return
    # What is read all the same is the same: a change of a space, or of a number's way of being written.
    assert read.by_route == certificates(certificate(policy())).by_route


def test_a_certificate_error_is_bad_input() -> None:
    assert issubclass(CertificateError, InputError)
    assert CertificateError("x").exit_code == 2
