"""Explains to policy authors how each rule takes part in a decision."""

from __future__ import annotations

from dataclasses import dataclass

from guard.errors import PolicyError
from guard.policy.policy import NO_USAGE, CompiledRule, Policy, Usage, uncertified
from guard.policy.rules import OutOfDistributionRule
from guard.records import Action
from guard.review_terms import ReviewTerms


@dataclass(frozen=True, slots=True)
class ExplainedRule:
    """How one rule took part in a decision.

    Attributes:
        rule: its name.
        action: what it does.
        condition: as ``p_wrong < 0.25``, or ``always``.
        holds: whether the condition holds.
        decides: whether this is the rule that decides.
        why: in words.
    """

    rule: str
    action: Action
    condition: str
    holds: bool
    decides: bool
    why: str


def explain(
    policy: Policy,
    p_wrong: float,
    route: str | None = None,
    *,
    ood_score: float | None = None,
    usage: Usage = NO_USAGE,
) -> list[ExplainedRule]:
    """Explain how the ``out_of_distribution`` section and each rule take part in the decision on a score.

    Args:
        policy: the rules.
        p_wrong: probability of being wrong, from 0 to 1.
        route: name given by the caller.
        ood_score: share of the calibration answers that are more usual, from 0 to 1; a policy with an
            ``out_of_distribution`` section needs it.
        usage: of the call so far.

    Raises:
        PolicyError: the policy has no such route, the score is not a probability, or ood_score is not a share.

    Examples:
        >>> from guard.policy import parse_policy
        >>> policy = parse_policy("{version: 1, name: mine, rules: [{accept: {below: 0.3}}, {abstain: {}}]}")
        >>> [step.why for step in explain(policy, 0.5)]
        ['0.5 is not below 0.3', 'the first rule that holds']
    """
    if not 0.0 <= p_wrong <= 1.0:
        raise PolicyError(f"A score is a probability from 0 to 1, got {p_wrong}")
    if ood_score is not None and not 0.0 <= ood_score <= 1.0:
        raise PolicyError(f"ood_score is a share from 0 to 1, got {ood_score}")
    plan = policy.plan(route)
    if plan.rules[0].is_uncertified:
        raise uncertified(plan.rules[0])
    steps: list[ExplainedRule] = []
    decided: CompiledRule | None = None
    if plan.out_of_distribution is not None:
        steps.append(_ood_step(policy, plan.out_of_distribution, ood_score, usage))
        decided = plan.out_of_distribution.rule if steps[0].decides else None
    for rule in plan.rules:
        holds = p_wrong < rule.below
        exhausted = rule.why_exhausted(usage) if holds else None
        decides = holds and exhausted is None and decided is None
        if not holds:
            why = f"{p_wrong:.4g} is not below {rule.below:g}"
        elif exhausted is not None:
            why = exhausted
        elif decides:
            passed_over = any(step.holds for step in steps)
            why = "the next rule that holds" if passed_over else "the first rule that holds"
        else:
            why = f"{decided.name} comes first" if decided else ""
        steps.append(ExplainedRule(rule.name, rule.action, rule.condition, holds, decides, why))
        decided = rule if decides else decided
    return steps


def _ood_step(policy: Policy, ood: OutOfDistributionRule, ood_score: float | None, usage: Usage) -> ExplainedRule:
    rule = ood.rule
    if ood_score is None:
        raise PolicyError(
            f"The policy '{policy.name}' needs an input's out-of-distribution score",
            why=f"{rule.name} decides where it is above {ood.above:g}",
            fix="Give it, as --ood-score or ood_score=",
        )
    holds = ood_score > ood.above
    why = f"{ood_score:.4g} is {'' if holds else 'not '}above {ood.above:g}"
    exhausted = rule.why_exhausted(usage) if holds else None
    action = Action.ABSTAIN if exhausted else rule.action
    return ExplainedRule(rule.name, action, ood.condition, holds, holds, f"{why}; {exhausted}" if exhausted else why)


def describe_terms(terms: ReviewTerms) -> str:
    """Say in one sentence or two what a policy asks of reviewers.

    Examples:
        >>> from guard.review_terms import LateAction, ReviewTerms
        >>> describe_terms(ReviewTerms(14400.0, "high", 2, LateAction()))
        'Two people review it, with high priority. After 4 h the caller gets no answer.'
        >>> describe_terms(ReviewTerms())
        'One person reviews it, with normal priority. It may wait forever.'
    """
    people = "Two people review it" if terms.reviews > 1 else "One person reviews it"
    if terms.within_s is None or terms.late is None:
        return f"{people}, with {terms.priority} priority. It may wait forever."
    text = terms.late.text
    gets = "no answer" if text is None else f"the text '{text}'"
    return f"{people}, with {terms.priority} priority. After {_duration(terms.within_s)} the caller gets {gets}."


def _duration(seconds: float) -> str:
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    return next(f"{seconds / size:g} {unit}" for unit, size in units if seconds % size == 0)
