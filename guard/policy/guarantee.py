"""Rules that guarantee an error rate: which routes have one, what a certificate must fit, its thresholds.

``accept: {max_error_rate: 0.05, confidence: 0.9}`` states the risk guarantee and leaves the threshold to a
certificate (`guard.policy.certificate`). Until there is one, such a policy decides nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from guard.errors import PolicyError
from guard.policy.defects import DEFECTS
from guard.policy.document import RiskGuarantee
from guard.policy.policy import CompiledRule, Fallback, Policy, Retry, RoutePlan


def guarantees(policy: Policy) -> dict[str | None, RiskGuarantee]:
    """Return the risk guarantee of each route that has one; None stands for calls without a route."""
    found = {route: find_guarantee(plan) for route, plan in policy.plans.items()}
    return {route: guarantee for route, guarantee in found.items() if guarantee}


def refuse_guarantees(policy: Policy, *, caller: str) -> None:
    """Refuse a policy with a risk guarantee, for a caller whose use of the policy no certificate covers."""
    for route, guarantee in guarantees(policy).items():
        raise PolicyError(
            f"The policy {where(policy, route)} guarantees {guarantee}, and no certificate covers {caller}",
            why="its calls and prompts are not those that were certified",
            fix="Ask through a Guard, or write the threshold as a number",
        )


def find_guarantee(plan: RoutePlan) -> RiskGuarantee | None:
    """Return the risk guarantee of a plan's accept rule, if it has one."""
    return next((rule.guarantee for rule in plan.rules if rule.guarantee), None)


def ceiling(plan: RoutePlan) -> float:
    """Return the upper limit of the certified threshold: where the next rule begins, or infinity."""
    later = [rule.below for rule in plan.rules if not rule.guarantee]
    return later[0] if later else math.inf


def find_fallbacks(plan: RoutePlan) -> tuple[str, ...]:
    """Return engines and callables that a plan may fall back to, sorted."""
    settings = [rule.settings for rule in plan.all_rules]
    return tuple(sorted({each.to for each in settings if isinstance(each, Fallback) and each.to is not None}))


def asks_again(plan: RoutePlan) -> bool:
    """Return whether a plan may have a question answered more than once."""
    return bool(find_fallbacks(plan)) or any(isinstance(rule.settings, Retry) for rule in plan.all_rules)


def is_seeded(plan: RoutePlan) -> bool:
    """Return whether each retry of a plan that samples has a seed, so that it gives the same answer at each run."""
    retries = (rule.settings for rule in plan.all_rules if isinstance(rule.settings, Retry))
    return all(each.seed is not None or each.sampling(1).is_greedy for each in retries)


def procedure_sha256(policy: Policy, route: str | None) -> str:
    """Return a digest of all that decides which answers a route releases, except its risk guarantee and threshold.

    Names, descriptions, other routes and the mode are left out, so a policy can run in shadow mode first and be
    enforced later.
    """
    plan = policy.plan(route)
    parts: dict[str, Any] = {
        "rules": [_meaning(rule) for rule in plan.rules],
        "on_error": _meaning(plan.on_error),
        **{defect: _meaning(plan.defect_rule(defect)) for defect in DEFECTS},
        "budget": plan.budget.model_dump(mode="json"),
    }
    if ood := plan.out_of_distribution:
        parts["out_of_distribution"] = {"above": ood.above, **_meaning(ood.rule)}
    if early := plan.early:
        parts["early"] = {"above": early.above, **_meaning(early.rule)}
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _meaning(rule: CompiledRule) -> dict[str, Any]:
    stated = {"name", "below", "max_error_rate", "confidence"}
    of_reviewers = {"within", "priority", "reviews", "late"}  # no answer gets through by them
    settings = rule.settings.model_dump(mode="json", by_alias=True, exclude=stated | of_reviewers)
    below = None if rule.guarantee or rule.below == math.inf else rule.below
    return {"action": rule.action, "below": below, "guarantees": rule.guarantee is not None, "settings": settings}


@dataclass(frozen=True, slots=True)
class CertifiedThreshold:
    """The threshold of one route's risk guarantee.

    Attributes:
        threshold: answers with ``p_wrong`` below it are accepted.
        fingerprint: digest of all that it was certified for.
        certificate: digest of the certificate, under which it is watched; None if it is not.
    """

    threshold: float
    fingerprint: str
    certificate: str | None = None


def apply_thresholds(policy: Policy, thresholds: Mapping[str | None, CertifiedThreshold]) -> Policy:
    """Return the policy with the thresholds that certificates give, by route.

    Args:
        policy: with a risk guarantee on each of these routes.
        thresholds: by route.

    Raises:
        PolicyError: a threshold is not below that of the next rule.
    """
    plans = dict(policy.plans)
    for route, given in thresholds.items():
        plan = policy.plan(route)
        limit = ceiling(plan)
        if not 0.0 < given.threshold < limit:
            raise PolicyError(
                f"The certified threshold {given.threshold:.4g} is not below {limit:g}, where the next rule of "
                f"{where(policy, route)} begins",
                why="thresholds must rise from rule to rule",
                fix="Certify this policy, or raise the later thresholds",
            )
        plans[route] = _apply_threshold(plan, given)
    return replace(policy, plans=MappingProxyType(plans))


def suspend(policy: Policy, certificates: Collection[str]) -> Policy:
    """Return the policy with the routes closed whose certificate is one of these, by digest."""
    plans = {
        route: replace(plan, suspended=plan.certified is not None and plan.certified.certificate in certificates)
        for route, plan in policy.plans.items()
    }
    return replace(policy, plans=MappingProxyType(plans))


def trial_policy(policy: Policy) -> Policy:
    """Return the policy with rules that accept nothing in place of risk guarantees, so that it makes all attempts.

    Nobody gets an answer of a trial, so none is audited.
    """
    plans = {
        route: replace(
            plan,
            rules=tuple(_accepting_nothing(rule) if rule.guarantee else rule for rule in plan.rules),
            audit=None,
        )
        for route, plan in policy.plans.items()
    }
    return replace(policy, mode="enforce", plans=MappingProxyType(plans))


def where(policy: Policy, route: str | None) -> str:
    """Return the policy or its route, in words."""
    return f"'{policy.name}'" if route is None else f"'{policy.name}', route '{route}',"


def _accepting_nothing(rule: CompiledRule) -> CompiledRule:
    return replace(rule, below=0.0, guarantee=None, fingerprint=None, certificate=None)


def _apply_threshold(plan: RoutePlan, given: CertifiedThreshold) -> RoutePlan:
    rules = (
        replace(rule, below=given.threshold, fingerprint=given.fingerprint, certificate=given.certificate)
        if rule.guarantee
        else rule
        for rule in plan.rules
    )
    return replace(plan, rules=tuple(rules))
