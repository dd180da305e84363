"""From a checked document to plans of rules, ready to be tried."""

from __future__ import annotations

import math

from guard.policy.document import (
    CertificateLost,
    DefectAction,
    Document,
    Early,
    OnError,
    OutOfDistribution,
    Rule,
    Spans,
)
from guard.policy.relations import rule_label
from guard.policy.rules import CompiledRule, EarlyRule, OutOfDistributionRule, RoutePlan, SpansRule, ToolPlan
from guard.policy.yaml_source import Location, location_text


def compile_plans(document: Document) -> dict[str | None, RoutePlan]:
    """Return the plans of a document by route; None stands for calls without a route."""
    whole = RoutePlan(
        rules=_compiled((), document.rules),
        on_error=_on_error_rule((), document.on_error),
        budget=document.budget,
        out_of_distribution=_ood_rule((), document.out_of_distribution),
        truncated=_defect_rule(("truncated",), document.truncated),
        empty=_defect_rule(("empty",), document.empty),
        audit=document.audit,
        certificate_lost=_lost_rule((), document.on_certificate_lost),
        spans=_spans_rule((), document.spans),
        early=_early_rule((), document.early),
    )
    plans: dict[str | None, RoutePlan] = {None: whole}
    for name, route in document.routes.items():
        prefix = ("routes", name)
        changed = route.budget.model_dump(exclude_unset=True) if route.budget else {}
        plans[name] = RoutePlan(
            rules=_compiled(prefix, route.rules) if route.rules else whole.rules,
            on_error=_on_error_rule(prefix, route.on_error) if route.on_error else whole.on_error,
            budget=document.budget.model_copy(update=changed),
            out_of_distribution=_ood_rule(prefix, route.out_of_distribution) or whole.out_of_distribution,
            truncated=_defect_rule((*prefix, "truncated"), route.truncated) or whole.truncated,
            empty=_defect_rule((*prefix, "empty"), route.empty) or whole.empty,
            audit=route.audit or whole.audit,
            certificate_lost=_lost_rule(prefix, route.on_certificate_lost) or whole.certificate_lost,
            spans=_spans_rule(prefix, route.spans) or whole.spans,
            early=_early_rule(prefix, route.early) or whole.early,
        )
    return plans


def compile_tools(document: Document) -> dict[str, ToolPlan]:
    """Return the plans of answers that call a tool, by its name."""
    return {
        name: ToolPlan(
            rules=_compiled(("tools", name), section.rules) if section.rules else None,
            on_error=_on_error_rule(("tools", name), section.on_error) if section.on_error else None,
        )
        for name, section in document.tools.items()
    }


def _compiled(prefix: Location, rules: tuple[Rule, ...]) -> tuple[CompiledRule, ...]:
    return tuple(
        CompiledRule(
            name=rule_label((*prefix, "rules", number), rule),
            action=rule.action,
            below=_threshold(rule),
            settings=rule.settings,
            guarantee=rule.guarantee,
        )
        for number, rule in enumerate(rules)
    )


def _threshold(rule: Rule) -> float:
    if rule.guarantee:
        return 0.0
    return math.inf if rule.settings.below is None else rule.settings.below


def _on_error_rule(prefix: Location, on_error: OnError) -> CompiledRule:
    return CompiledRule(location_text((*prefix, "on_error")), on_error.action, math.inf, on_error.settings)


def _defect_rule(location: Location, then: DefectAction | None) -> CompiledRule | None:
    return None if then is None else CompiledRule(location_text(location), then.action, math.inf, then.settings)


def _ood_rule(prefix: Location, section: OutOfDistribution | None) -> OutOfDistributionRule | None:
    if section is None:
        return None
    name, then = location_text((*prefix, "out_of_distribution")), section.then
    return OutOfDistributionRule(section.above, CompiledRule(name, then.action, math.inf, then.settings))


def _spans_rule(prefix: Location, section: Spans | None) -> SpansRule | None:
    if section is None:
        return None
    name, then = location_text((*prefix, "spans")), section.then
    return SpansRule(section.above, CompiledRule(name, then.action, math.inf, then.settings))


def _early_rule(prefix: Location, section: Early | None) -> EarlyRule | None:
    if section is None:
        return None
    name, then = location_text((*prefix, "early")), section.then
    return EarlyRule(section.above, CompiledRule(name, then.action, math.inf, then.settings))


def _lost_rule(prefix: Location, lost: CertificateLost | None) -> CompiledRule | None:
    if lost is None:
        return None
    return CompiledRule(location_text((*prefix, "on_certificate_lost")), lost.action, math.inf, lost.settings)
