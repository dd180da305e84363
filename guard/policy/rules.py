"""The parts of a policy that decide: rules with their thresholds, and how much of them a call has used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from guard.policy.defects import Defect
from guard.policy.document import Abstain, ActionSettings, Audit, Budget, Fallback, Retry, RiskGuarantee
from guard.policy.truncation import Truncation
from guard.records import Action, Decision


@dataclass(frozen=True, slots=True)
class Usage:
    """The retries, fallbacks and budget that a guarded call has used so far.

    Attributes:
        retries: retries made.
        fallbacks: names of the fallbacks that have answered or failed.
        exhausted: whether the budget (attempts, tokens or seconds) allows no further generation.
        truncation: where the answer that is decided on was cut; None if it is whole, or if that is unknown.
    """

    retries: int = 0
    fallbacks: frozenset[str] = frozenset()
    exhausted: bool = False
    truncation: Truncation | None = None


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class CompiledRule:
    """One rule, ready to be tried.

    Attributes:
        name: the rule's own name, or its place and action.
        action: what it does.
        below: the rule applies if p_wrong is below this. Infinity takes every answer; 0 takes none, as long as the
            certificate with the threshold is missing.
        settings: settings of the action.
        guarantee: what the certificate must support; None if the policy states the threshold.
        fingerprint: digest of what the certificate is bound to; None without one.
        certificate: digest of the certificate itself; None without one.
    """

    name: str
    action: Action
    below: float
    settings: ActionSettings
    guarantee: RiskGuarantee | None = None
    fingerprint: str | None = None
    certificate: str | None = None

    def why_in_vain(self, usage: Usage) -> str | None:
        """Return why the rule, a retry, would only repeat a cut answer, or None if it would not."""
        cut, settings = usage.truncation, self.settings
        why = cut.why_in_vain(settings) if cut and isinstance(settings, Retry) else None
        return why and f"{self.name} is skipped because it {why}"

    @property
    def is_uncertified(self) -> bool:
        """Whether its threshold needs a certificate that is missing (see `guard.policy.guarantee`)."""
        return self.guarantee is not None and self.fingerprint is None

    @property
    def condition(self) -> str:
        """The condition as text, such as ``p_wrong < 0.25``."""
        if self.is_uncertified:
            return f"p_wrong < threshold for {self.guarantee}"
        return "always" if self.below == math.inf else f"p_wrong < {self.below:g}"

    def why_exhausted(self, usage: Usage) -> str | None:
        """Return why the rule is skipped in this call, or None if it is not."""
        settings = self.settings
        if isinstance(settings, Retry):
            if usage.retries >= settings.times:
                return f"{self.name} has used its {_count(settings.times, 'retry', 'retries')}"
            return f"{self.name} is skipped because the budget is exhausted" if usage.exhausted else None
        # A fixed text costs nothing, so only engines and callables can be exhausted.
        if isinstance(settings, Fallback) and settings.to is not None:
            if settings.to in usage.fallbacks:
                return f"{self.name} is skipped because '{settings.to}' was already used"
            return f"{self.name} is skipped because the budget is exhausted" if usage.exhausted else None
        return None


@dataclass(frozen=True, slots=True)
class OutOfDistributionRule:
    """The rule for inputs unlike the calibration data.

    Attributes:
        above: the rule applies if ood_score is above this.
        rule: the rule that then decides.
    """

    above: float
    rule: CompiledRule

    @property
    def condition(self) -> str:
        """The condition as text, such as ``ood_score > 0.99``."""
        return f"ood_score > {self.above:g}"


@dataclass(frozen=True, slots=True)
class SpansRule:
    """The rule for accepted answers with spans that are likely wrong.

    Attributes:
        above: the rule applies if the p_wrong of a span is above this.
        rule: the rule that then decides.
    """

    above: float
    rule: CompiledRule

    @property
    def condition(self) -> str:
        """The condition as text, such as ``p_wrong of a span > 0.6``."""
        return f"p_wrong of a span > {self.above:g}"

    @property
    def what(self) -> str:
        """The action as the policy writes it: ``mark``, ``cut``, ``retry`` or ``escalate``."""
        return type(self.rule.settings).__name__.lower()


@dataclass(frozen=True, slots=True)
class EarlyRule:
    """The rule for answers that are likely to be wrong before they are complete.

    Attributes:
        above: an answer is stopped if the p_wrong of what there is of it, calibrated at that length, is above this.
        rule: the rule that then decides; it never accepts.
    """

    above: float
    rule: CompiledRule

    @property
    def condition(self) -> str:
        """The condition as text, such as ``p_wrong of the answer so far > 0.97``."""
        return f"p_wrong of the answer so far > {self.above:g}"


@dataclass(frozen=True, slots=True)
class RoutePlan:
    """The rules of one route, or of calls without a route.

    Attributes:
        rules: rules in the order in which they are tried; the last takes every answer.
        on_error: decides if there is no score.
        budget: budget of one guarded call.
        out_of_distribution: decides before the rules; None if ood_score does not matter.
        truncated: decides about truncated answers; None if the policy has no such section.
        empty: decides about blank answers; None likewise.
        audit: which share of the accepted answers people check; None for none.
        certificate_lost: decides in place of accepting while the certificate is suspended; None abstains.
        suspended: whether the certificate of the route's risk guarantee is suspended now.
        spans: decides about accepted answers with likely wrong spans; None if spans do not matter.
        early: stops answers that are likely to be wrong; None if every answer is generated to its end.
    """

    rules: tuple[CompiledRule, ...]
    on_error: CompiledRule
    budget: Budget
    out_of_distribution: OutOfDistributionRule | None = None
    truncated: CompiledRule | None = None
    empty: CompiledRule | None = None
    audit: Audit | None = None
    certificate_lost: CompiledRule | None = None
    suspended: bool = False
    spans: SpansRule | None = None
    early: EarlyRule | None = None

    @property
    def all_rules(self) -> tuple[CompiledRule, ...]:
        """All rules that may decide."""
        sections = [section.rule for section in (self.out_of_distribution, self.spans, self.early) if section]
        written = (*sections, self.truncated, self.empty, self.certificate_lost)
        return (*self.rules, self.on_error, *(rule for rule in written if rule is not None))

    def defect_rule(self, defect: Defect) -> CompiledRule:
        """Return the rule for a defective answer: the written one, or else ``on_error`` unless that accepts."""
        stopped = self.early.rule if self.early else None
        written = {"truncated": self.truncated, "empty": self.empty, "stopped": stopped}[defect]
        return self._closed_on_error if written is None else written

    def stopped_by(self, defects: Iterable[Defect]) -> tuple[Defect, CompiledRule] | None:
        """Return the first defect that keeps the rules from deciding, and the rule that decides instead; None without
        one.
        """
        rules = ((defect, self.defect_rule(defect)) for defect in defects)
        return next(((defect, rule) for defect, rule in rules if rule.action is not Action.ACCEPT), None)

    def replacement(self, rule: CompiledRule, usage: Usage) -> CompiledRule:
        """Return the rule that replaces an exhausted one outside ``rules``: ``on_error``, or else an abstention."""
        return rule if rule.why_exhausted(usage) is None else self.closed(rule, usage)

    def closed(self, rule: CompiledRule, usage: Usage) -> CompiledRule:
        """Return the rule that replaces one that cannot be carried out; it never accepts."""
        closed = self._closed_on_error
        return closed if closed.why_exhausted(usage) is None else _abstaining(rule)

    @property
    def certified(self) -> CompiledRule | None:
        """The rule whose threshold is from a certificate; None without one."""
        return next((rule for rule in self.rules if rule.certificate is not None), None)

    def unless_suspended(self, decision: Decision) -> Decision:
        """Return the decision, or what replaces accepting while the route's certificate is suspended."""
        if not self.suspended or decision.action is not Action.ACCEPT:
            return decision
        rule = self.certificate_lost or CompiledRule("on_certificate_lost", Action.ABSTAIN, math.inf, Abstain())
        reason = f"The certificate is suspended, so {decision.rule} accepts nothing"
        return Decision(rule.action, rule.name, reason, decision.p_wrong, rule.settings)

    @property
    def _closed_on_error(self) -> CompiledRule:
        """``on_error``, unless it accepts: accepting unscored answers does not extend to truncated ones."""
        return _abstaining(self.on_error) if self.on_error.action is Action.ACCEPT else self.on_error


@dataclass(frozen=True, slots=True)
class ToolPlan:
    """The rules for answers that call a tool, in place of the plan of other answers.

    Attributes:
        rules: as in `RoutePlan`; None for those of other answers.
        on_error: likewise.
    """

    rules: tuple[CompiledRule, ...] | None
    on_error: CompiledRule | None


def _abstaining(rule: CompiledRule) -> CompiledRule:
    return CompiledRule(rule.name, Action.ABSTAIN, math.inf, Abstain())


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
