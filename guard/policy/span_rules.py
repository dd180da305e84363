"""Decide about an accepted answer by its spans."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from guard.policy.document import Cut, Mark
from guard.policy.rules import RoutePlan, Usage
from guard.records import Decision
from guard.scores import Span


def decide_on_spans(plan: RoutePlan, accepted: Decision, spans: Collection[Span], usage: Usage) -> Decision:
    """Return the decision about an answer that the rules accept, with the spans that it rests on.

    Args:
        plan: with a rule for spans.
        accepted: decision of the other rules.
        spans: of the answer.
        usage: of the call so far; an exhausted retry becomes what ``on_error`` does, except that it never accepts.
    """
    rule = plan.spans
    assert rule is not None
    above = tuple(span for span in spans if span.p_wrong > rule.above)
    if not above:
        return accepted
    reason = f"{len(above)} of {len(spans)} spans are above {rule.above:g}"
    if isinstance(rule.rule.settings, Mark):
        return replace(accepted, reason=f"{accepted.reason}; {reason}", spans=above)
    why = rule.rule.why_exhausted(usage)
    then = plan.replacement(rule.rule, usage)
    if isinstance(then.settings, Cut) and len(above) == len(spans):
        then, why = plan.closed(then, usage), "nothing would be left"
    return Decision(
        then.action, then.name, f"{reason}; {why}" if why else reason, accepted.p_wrong, then.settings, above
    )
