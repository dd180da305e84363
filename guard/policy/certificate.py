"""Certificates: files of thresholds that meet a risk guarantee, bound to what they were certified for.

A certificate is valid only for the model, the scorer and the rules that it was made with, and for questions like its
own. The first three are checked wherever a policy with a risk guarantee is loaded; any difference voids the
certificate. The file is plain JSON, read strictly and with limits.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationError, model_validator

from guard.errors import PolicyError
from guard.files import checked_json
from guard.files.write_whole import write_whole
from guard.policy.bounds import percent, upper_bound
from guard.policy.document import RiskGuarantee
from guard.policy.guarantee import CertifiedThreshold, apply_thresholds, guarantees, procedure_sha256, where
from guard.policy.policy import Policy
from guard.scores import ScoreName
from guard.scoring.provenance import Binding, DataSet, PlainDict

FORMAT: Literal["guard-certificate"] = "guard-certificate"
FORMAT_VERSION = 2
MAX_BYTES = 2**20
#: One for each route that a policy may have, and one for calls without a route.
MAX_CERTIFICATES = 501

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=10**12)]


class CertificateError(PolicyError):
    """A certificate is missing, damaged, or not for this policy, model or scorer."""


class _CertificatePart(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Answering(_CertificatePart):
    """An engine's model, the scorer of its answers, and the options of its chat template."""

    model: Binding
    scorer_sha256: Digest | None
    template_options: PlainDict = Field(default_factory=dict)


class Fingerprint(_CertificatePart):
    """What a certificate is bound to: models, scorers and rules.

    Attributes:
        own: the model that is asked, and its scorer.
        fallbacks: model and scorer of each fallback that the rules name; None for a callable, whose behaviour cannot be
            checked.
        score: the score that the rules read.
        procedure_sha256: of the rules; see `guard.policy.guarantee.procedure_sha256`.
    """

    own: Answering
    fallbacks: Annotated[dict[str, Answering | None], Field(max_length=200)]
    score: ScoreName
    procedure_sha256: Digest

    @property
    def sha256(self) -> str:
        """Digest of all of these."""
        return checked_json.digest(self.model_dump(mode="json"))

    def differences(self, now: Fingerprint) -> list[str]:
        """Return what has changed since, in words, the most important first."""
        found = _changes("the model's", self.own, now.own)
        for name in sorted({*self.fallbacks, *now.fallbacks}):
            there, here = self.fallbacks.get(name), now.fallbacks.get(name)
            if (there is None) != (here is None) or (name in self.fallbacks) != (name in now.fallbacks):
                found.append(f"the fallback '{name}' is now of another kind")
            elif there is not None and here is not None:
                found += _changes(f"the fallback {name}'s", there, here)
        return found + self.rule_differences(now.score, now.procedure_sha256)

    def rule_differences(self, score: ScoreName, procedure_sha256: str) -> list[str]:
        """Return what has changed in the policy since, in words."""
        found = [f"the policy's score was {self.score}, is {score}"] if self.score != score else []
        return [*found, _OTHER_RULES] if self.procedure_sha256 != procedure_sha256 else found


class Certificate(_CertificatePart):
    """One risk guarantee and the threshold that meets it; figures as in `guard.certification.fixed_sequence.Certified`.

    Attributes:
        route: of the policy; None for calls without one.
        policy: its name, for people; not part of the fingerprint.
        fingerprint: what the threshold holds for.
        data: what it was certified on, for people and audits.
        grader: the grader that labelled the answers.
        seed: seed of the rows that make the grid.
        deterministic: whether the model answered each request alone, from an empty cache. If not, the requests that
            a score shares a pass with move it by rounding, in the trials as in use.
        seeded: whether each retry that samples has a seed. If not, retries draw other answers at each run, in the
            trials as in use: the guarantee holds, but the same run gives another certificate.
        created_by: the guard version.
    """

    route: str | None
    policy: str
    risk: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(ge=0.5, lt=1)]
    threshold: Annotated[float, Field(gt=0, le=1)]
    coverage: Share
    n: Annotated[Count, Field(ge=1)]
    accepted: Count
    errors: Count
    bound: Share
    grid_rows: Count
    tested: Count
    seed: Count
    grader: str
    fingerprint: Fingerprint
    data: Annotated[list[DataSet], FailFast(), Field(max_length=1000)]
    deterministic: bool
    seeded: bool
    created_by: str

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if not self.errors <= self.accepted <= self.n:
            raise ValueError("errors, accepted and n are inconsistent")
        if abs(self.coverage - self.accepted / self.n) > 1e-9:
            raise ValueError("coverage is not accepted / n")
        # guard writes no threshold that its own counts do not support.
        if (bound := upper_bound(self.errors, self.accepted, self.confidence)) > self.risk + 1e-9:
            raise ValueError("this number of errors does not support this risk at this confidence")
        if abs(self.bound - bound) > 1e-9:
            raise ValueError("bound does not match the errors among the accepted")
        if sum(each.rows for each in self.data) != self.n + self.grid_rows:
            raise ValueError("the rows of the data are not n + grid_rows")
        return self

    @property
    def sha256(self) -> str:
        """Digest of all of it: two certificates for the same rules differ."""
        return checked_json.digest(self.model_dump(mode="json"))

    @property
    def guarantee(self) -> RiskGuarantee:
        """The guarantee that the threshold meets."""
        return RiskGuarantee(self.risk, self.confidence)

    def explain(self) -> str:
        """Return the risk guarantee in one sentence, and in a second what another run would change, if anything."""
        of = "" if self.fingerprint.score == "guard" else f" (score {self.fingerprint.score})"
        unseeded = " Retries without a seed draw other answers at each run, so another run gives another certificate."
        return (
            f"Of the answers with p_wrong{of} below {self.threshold:.4g}, {percent(self.coverage)} of all, at most "
            f"{percent(self.risk)} are wrong, with confidence {percent(self.confidence)} "
            f"({self.errors} of {self.accepted} in {self.n:,} fresh labels; bound {percent(self.bound)})."
            f"{'' if self.seeded else unseeded}"
        )


class _File(_CertificatePart):
    format: Literal["guard-certificate"]
    format_version: int
    certificates: Annotated[list[Certificate], FailFast(), Field(min_length=1, max_length=MAX_CERTIFICATES)]

    @model_validator(mode="after")
    def _one_a_route(self) -> Self:
        routes = [each.route for each in self.certificates]
        if len(set(routes)) < len(routes):
            raise ValueError("there are two certificates for one route")
        return self


@dataclass(frozen=True, slots=True)
class Certificates:
    """The certificates of one file, by route.

    Attributes:
        where: the file, for messages.
        by_route: None stands for calls without a route.
    """

    where: str
    by_route: Mapping[str | None, Certificate]

    def save(self, path: str | Path) -> None:
        """Write the certificates as one JSON file, atomically.

        Raises:
            CertificateError: the file cannot be written.
        """
        ordered = sorted(self.by_route.values(), key=lambda each: (each.route is not None, each.route or ""))
        content = _File(format=FORMAT, format_version=FORMAT_VERSION, certificates=ordered).model_dump(mode="json")
        text = json.dumps({**content, "sha256": checked_json.digest(content)}, ensure_ascii=False, indent=1)
        try:
            write_whole(Path(path), text + "\n")
        except OSError as error:
            why = error.strerror or str(error)
            raise CertificateError(f"Cannot write the certificate '{path}'", why=why) from error

    def with_one(self, certificate: Certificate) -> Certificates:
        """Return these certificates with one added, in place of an earlier one for its route."""
        return Certificates(self.where, {**self.by_route, certificate.route: certificate})


def load_certificates(path: str | Path) -> Certificates:
    """Read a file that ``guard certify`` wrote.

    Raises:
        CertificateError: it is missing, unreadable, too large, damaged, or not a certificate.

    Examples:
        >>> load_certificates("missing.json")
        Traceback (most recent call last):
        guard.errors.CertificateError: ...
    """
    return parse_certificates(checked_json.read_bytes(path, _KIND), where=str(path))


def parse_certificates(data: bytes, *, where: str = "<certificate>") -> Certificates:
    """Read certificates from a file's bytes; see `load_certificates`."""
    content, claimed = checked_json.parse(data, _KIND, where=where)
    try:
        file = _File.model_validate(content)
    except ValidationError as error:
        raise checked_json.invalid(error, _KIND, where=where) from error
    if claimed != checked_json.digest(file.model_dump(mode="json")):
        raise checked_json.damaged(_KIND, where=where)
    return Certificates(where, {each.route: each for each in file.certificates})


_MAKE = "Make one with guard certify"
_KIND = checked_json.Kind(
    name="certificate",
    format=FORMAT,
    version=FORMAT_VERSION,
    max_bytes=MAX_BYTES,
    error=CertificateError,
    missing=_MAKE,
    broken=_MAKE,
    outdated="Upgrade guard, or certify again",
)


# -- putting them to use -----------------------------------------------------------------------


def certified_policy(
    policy: Policy,
    certificates: Certificates | str | Path | None,
    *,
    fingerprint: Callable[[str | None], Fingerprint],
) -> Policy:
    """Return the policy with the thresholds of its risk guarantees, each from a valid certificate.

    Args:
        policy: the policy; one without a risk guarantee is returned unchanged.
        certificates: the certificates, or their file; by default the file that the policy names.
        fingerprint: returns the present model, scorer and rules of a route.

    Raises:
        CertificateError: there is none for a route that has a risk guarantee, or something differs from what it was
            made with. The message names the difference.
        PolicyError: a threshold is not below that of the next rule.
    """
    wanted = guarantees(policy)
    if not wanted:
        return policy
    now = {route: fingerprint(route) for route in wanted}
    if certificates is None and all(_is_bound_to(policy, route, now[route].sha256) for route in wanted):
        return policy  # it already has the thresholds for this fingerprint
    given = chosen_certificates(policy, certificates)
    for route, guarantee in wanted.items():
        check_certificate(policy, given, route, guarantee, now=now[route])
    return apply_certificates(policy, given)


def apply_certificates(policy: Policy, given: Certificates) -> Policy:
    """Return the policy with the thresholds of these certificates, one for each of its risk guarantees."""
    certificates = {route: given.by_route[route] for route in guarantees(policy)}
    return apply_thresholds(
        policy,
        {
            route: CertifiedThreshold(each.threshold, each.fingerprint.sha256, each.sha256)
            for route, each in certificates.items()
        },
    )


def certified_without_model(policy: Policy, given: Certificates) -> Policy:
    """Return the policy with the thresholds of these certificates, checked as far as it goes without model and scorer.

    Raises:
        CertificateError: there is none for a guarantee, or it is for another guarantee or other rules.
    """
    for route, guarantee in guarantees(policy).items():
        check_certificate(policy, given, route, guarantee)
    return apply_certificates(policy, given)


def needed_certificates(
    policy: Policy, certificates: Certificates | str | Path | None
) -> Certificates | str | Path | None:
    """Read the certificates that a policy needs before a model is loaded, so that a missing one is reported first.

    Raises:
        CertificateError: as `chosen_certificates`.
    """
    awaited = any(plan.rules[0].is_uncertified for plan in policy.plans.values())
    return chosen_certificates(policy, certificates) if awaited else certificates


def chosen_certificates(policy: Policy, certificates: Certificates | str | Path | None) -> Certificates:
    """Return the certificates that were passed in, or those that the policy names.

    Raises:
        CertificateError: there are none, or they cannot be read.
    """
    if isinstance(certificates, Certificates):
        return certificates
    source = certificates if certificates is not None else policy.certificate
    if source is None:
        route, guarantee = next(iter(guarantees(policy).items()))
        raise CertificateError(
            f"The policy {where(policy, route)} guarantees {guarantee}, and there is no certificate for it",
            fix="Make one with guard certify, then name it in the policy ('certificate: FILE') or give it with "
            "--certificate or certificate=",
        )
    return load_certificates(source)


def check_certificate(
    policy: Policy,
    certificates: Certificates,
    route: str | None,
    guarantee: RiskGuarantee,
    *,
    now: Fingerprint | None = None,
) -> Certificate:
    """Return the certificate for a route.

    Args:
        policy: a policy with a risk guarantee on the route.
        certificates: the certificates to search.
        route: the route.
        guarantee: of the policy on that route.
        now: the present model, scorer and rules; None checks only what needs no model and no scorer.

    Raises:
        CertificateError: there is none, or it is for another risk guarantee, other rules, model or scorer.
    """
    certificate = certificates.by_route.get(route)
    if certificate is None:
        held = ", ".join(repr(name) if name is not None else "calls without a route" for name in certificates.by_route)
        raise CertificateError(
            f"'{certificates.where}' has no certificate for {where(policy, route)}", why=f"it has: {held}", fix=_AGAIN
        )
    differing = _guarantee_changes(certificate, guarantee)
    if now is not None:
        differing += certificate.fingerprint.differences(now)
    else:
        differing += certificate.fingerprint.rule_differences(policy.score, procedure_sha256(policy, route))
    if differing:
        raise CertificateError(
            f"The certificate '{certificates.where}' does not hold for the policy {where(policy, route)}",
            why="; ".join(differing),
            fix=_AGAIN,
        )
    return certificate


def _guarantee_changes(certificate: Certificate, guarantee: RiskGuarantee) -> list[str]:
    pairs = (
        ("max_error_rate", certificate.risk, guarantee.max_error_rate),
        ("confidence", certificate.confidence, guarantee.confidence),
    )
    return [f"{name} was {there:g}, is {here:g}" for name, there, here in pairs if there != here]


_AGAIN = "Certify it again: guard certify"
_OTHER_RULES = "the rules, on_error, truncated, empty or the budget differs"


def _changes(whose: str, there: Answering, here: Answering) -> list[str]:
    found = []
    for name in Binding.model_fields:
        was, now = getattr(there.model, name), getattr(here.model, name)
        if was != now:
            found.append(f"{whose} {name} was {_short(was)}, is {_short(now)}")
    if there.scorer_sha256 != here.scorer_sha256:
        found.append(f"{whose} scorer was {_short(there.scorer_sha256)}, is {_short(here.scorer_sha256)}")
    before, after = (json.dumps(each.template_options, sort_keys=True) for each in (there, here))
    if before != after:  # as JSON, since templates distinguish true from 1
        found.append(f"{whose} template options were {before:.100}, are {after:.100}")
    return found


def _short(value: object) -> str:
    text = "none" if value is None else str(value)
    return f"{text[:12]}..." if len(text) == 64 else text


def _is_bound_to(policy: Policy, route: str | None, fingerprint: str) -> bool:
    return all(rule.fingerprint == fingerprint for rule in policy.plan(route).rules if rule.guarantee)
