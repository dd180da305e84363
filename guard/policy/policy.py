"""Decide about an answer by its probability of being wrong: YAML -> rules -> Decision.

    policy = load_policy("balanced")
    decision = decide(policy, p_wrong=0.31)

Deciding is pure; `guard.runtime.loop` carries decisions out. Rules are tried in order, and the first that holds
decides. An exhausted rule (no retries left, a fallback that has answered, no budget left) is skipped, and the next
one, which is never more lenient, decides in its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from guard.errors import InputError, PolicyError, did_you_mean
from guard.policy.check import read_document
from guard.policy.compiling import compile_plans, compile_tools
from guard.policy.defects import Defect
from guard.policy.document import (
    SEVERITY,
    Abstain,
    Accept,
    ActionSettings,
    Budget,
    Document,
    Escalate,
    Fallback,
    FallbackEngine,
    NullFree,
    Retry,
)
from guard.policy.durations import FOR_PEOPLE
from guard.policy.joined_calls import Calls
from guard.policy.policy_files import builtin_policies, find_policy
from guard.policy.rules import NO_USAGE, CompiledRule, OutOfDistributionRule, RoutePlan, ToolPlan, Usage
from guard.policy.span_rules import decide_on_spans
from guard.policy.written import write_document
from guard.policy.yaml_source import InvalidPolicyError, Problem, read_text, read_yaml
from guard.records import Action, Decision
from guard.scores import ScoreName, Span

#: The section of ``tools`` for tools without their own.
ANY_TOOL = "default"


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy. Get one from `load_policy` or `parse_policy`.

    Attributes:
        name: as written in the document.
        description: for people; may be empty.
        mode: ``enforce``, or ``shadow``: the loop records decisions and changes nothing.
        sha256: digest of the document's content with its defaults; comments and layout do not count.
        fallbacks: engines that the document names.
        plans: by route; None is the plan of calls without a route.
        tools: plans for answers that call a tool, by its name; ``default`` is for all others.
        calls: which scores decide if there are several.
        streaming: ``hold`` an answer until its decision, or show it ``live``.
        certificate: the file with the thresholds of risk guarantees; None if the document names none.
        score: name of the score that the rules compare.
        document: the document as YAML in one layout, without comments and without what is as by default.

    Examples:
        >>> policy = load_policy("balanced")
        >>> policy.mode, policy.routes, [rule.action.value for rule in policy.plan().rules]
        ('enforce', ('medical',), ['accept', 'retry', 'fallback', 'escalate', 'abstain'])
    """

    name: str
    description: str
    mode: Literal["enforce", "shadow"]
    sha256: str
    fallbacks: Mapping[str, FallbackEngine]
    plans: Mapping[str | None, RoutePlan]
    tools: Mapping[str, ToolPlan] = field(default_factory=dict)
    calls: Calls = field(default_factory=Calls)
    streaming: Literal["hold", "live"] = "hold"
    certificate: str | None = None
    score: ScoreName = "guard"
    document: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles: the read-only views of the mappings allow neither by themselves."""
        values = [getattr(self, name) for name in self.__dataclass_fields__]
        return _thaw, ([dict(value) if isinstance(value, MappingProxyType) else value for value in values],)

    @property
    def routes(self) -> tuple[str, ...]:
        """Names that callers may give."""
        return tuple(route for route in self.plans if route is not None)

    @property
    def needs_ood_score(self) -> bool:
        """Whether some route has an ``out_of_distribution`` section and therefore needs an ood_score."""
        return any(plan.out_of_distribution for plan in self.plans.values())

    @property
    def needs_spans(self) -> bool:
        """Whether some route has a ``spans`` section and therefore needs a scorer with a model of spans."""
        return any(plan.spans for plan in self.plans.values())

    @property
    def needs_early(self) -> bool:
        """Whether some route has an ``early`` section and therefore needs a scorer with early stages."""
        return any(plan.early for plan in self.plans.values())

    def plan(self, route: str | None = None) -> RoutePlan:
        """Return the plan for a route.

        Raises:
            PolicyError: the policy has no such route. The rules of calls without a route are never
                used in its place: they may be more lenient.
        """
        plan = self.plans.get(route) if route is None or isinstance(route, str) else None
        if plan is None:
            fix = did_you_mean(str(route), self.routes) or "It has no routes: leave the route out"
            raise PolicyError(f"Policy '{self.name}' has no route '{route}'", fix=fix)
        return plan

    def plans_for(self, route: str | None, tools: Iterable[str]) -> tuple[RoutePlan, ...]:
        """Return one plan for each tool that an answer calls, or the route's plan if it calls none.

        Raises:
            PolicyError: as for `plan`.
        """
        base = self.plan(route)
        return tuple(self._tool_plan(base, name) for name in tools) or (base,)

    def _tool_plan(self, base: RoutePlan, name: str) -> RoutePlan:
        section = self.tools.get(name) or self.tools.get(ANY_TOOL)
        if section is None:
            return base
        return replace(base, rules=section.rules or base.rules, on_error=section.on_error or base.on_error)

    def check_route(self, route: str | None) -> None:
        """Raise as `plan` does where the policy has no such route."""
        self.plan(route)

    def budget_for(self, route: str | None = None) -> Budget:
        """Return the budget of one guarded call; errors as for `plan`."""
        return self.plan(route).budget

    def fallback_names(self) -> tuple[str, ...]:
        """Return every engine or callable that some rule falls back to, sorted."""
        return tuple(sorted({s.to for s in self._settings() if isinstance(s, Fallback) and s.to is not None}))

    def handler_names(self) -> tuple[str, ...]:
        """Return every escalation handler that some rule names, sorted."""
        return tuple(sorted({name for s in self._settings() if isinstance(s, Escalate) for name in s.to}))

    def _settings(self) -> Iterator[ActionSettings]:
        for plan in self.plans.values():
            yield from (rule.settings for rule in plan.all_rules)
        for section in self.tools.values():
            yield from (rule.settings for rule in (*(section.rules or ()), section.on_error) if rule is not None)


# -- reading -----------------------------------------------------------------------------------


def load_policy(source: str | Path | Policy) -> Policy:
    """Read a policy.

    Args:
        source: the name of a built-in policy, or a file; write ``./strict`` for a file of that name. A `Policy` is
            returned unchanged.

    Raises:
        InputError: it is none of these.
        PolicyError: no such policy, or the file cannot be read.
        InvalidPolicyError: the file's text is wrong; every problem has its line and column.

    Examples:
        >>> load_policy("balanced").mode
        'enforce'
    """
    if isinstance(source, Policy):
        return source
    if not isinstance(source, str | Path):
        raise InputError(
            f"policy= must be a built-in name, a file or a Policy, got a {type(source).__name__}",
            why="a policy's rules are checked with line and column, so they are read from YAML",
            fix="Write a file, or give parse_policy(TEXT) of guard.policy",
        )
    path = find_policy(source)
    policy = parse_policy(read_text(path), where=str(path))
    if policy.certificate is None:
        return policy
    return replace(policy, certificate=str(path.parent / Path(policy.certificate).expanduser()))


def parse_policy(text: str, *, where: str = "<policy>") -> Policy:
    """Read a policy from text.

    Args:
        text: the YAML.
        where: name of the source in messages.

    Raises:
        InvalidPolicyError: the text is wrong; every problem has its line and column.

    Examples:
        >>> policy = parse_policy("{version: 1, name: mine, rules: [{accept: {below: 0.3}}, {abstain: {}}]}")
        >>> [rule.action.value for rule in policy.plan().rules]
        ['accept', 'abstain']
    """
    document, problems = read_document(read_yaml(text, where=where))
    if problems or document is None:
        raise InvalidPolicyError.of(problems)
    return _policy(document)


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of policy files, for editors.

    Examples:
        >>> json_schema()["type"]
        'object'
    """
    schema = Document.model_json_schema(schema_generator=NullFree)
    return {"$schema": NullFree.schema_dialect, **schema}


def _policy(document: Document) -> Policy:
    canonical = json.dumps(document.model_dump(mode="json", by_alias=True), sort_keys=True)
    return Policy(
        name=document.name,
        description=document.description or "",
        mode=document.mode,
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        fallbacks=MappingProxyType(document.fallbacks),
        plans=MappingProxyType(compile_plans(document)),
        tools=MappingProxyType(compile_tools(document)),
        calls=document.calls,
        streaming=document.streaming,
        certificate=document.certificate,
        score=document.score,
        document=write_document(
            document.model_dump(mode="json", by_alias=True, exclude_defaults=True, context=FOR_PEOPLE)
        ),
    )


def _thaw(values: list[Any]) -> Policy:
    frozen: list[Any] = [MappingProxyType(value) if isinstance(value, dict) else value for value in values]
    return Policy(*frozen)


# -- deciding ----------------------------------------------------------------------------------


def decide(
    policy: Policy,
    *,
    p_wrong: float | None,
    ood_score: float | None = None,
    route: str | None = None,
    usage: Usage = NO_USAGE,
    tools: Iterable[str] = (),
    defects: Collection[Defect] = (),
    spans: Collection[Span] | None = None,
) -> Decision:
    """Decide what to do with an answer.

    Args:
        policy: the rules.
        p_wrong: probability that the answer is wrong, by the policy's score. None, NaN and values outside 0 to 1 count
            as failed scoring, and ``on_error`` decides.
        ood_score: share of the calibration answers that are closer to the calibration data. Used only by policies with
            an ``out_of_distribution`` section, for which a missing one counts as failed scoring.
        route: name given by the caller.
        usage: of this call so far.
        tools: names of the tools that the answer calls. The section of each tool decides, and the strictest decision
            wins; among equals, the first.
        defects: defects of the answer (`guard.policy.defects.find_defects`). The policy's ``truncated`` and ``empty``
            decide about them before the score does.
        spans: of the answer. Used only by policies with a ``spans`` section, for which missing ones count as failed
            scoring.

    Raises:
        PolicyError: the policy has no such route, or a threshold that needs a certificate.

    Examples:
        >>> policy = parse_policy("{version: 1, name: mine, rules: [{accept: {below: 0.3}}, {abstain: {}}]}")
        >>> decide(policy, p_wrong=0.1).action.value, decide(policy, p_wrong=0.9).action.value
        ('accept', 'abstain')
        >>> decide(policy, p_wrong=None).action.value  # an answer without a score is never accepted
        'abstain'
    """
    found = _decided(policy, p_wrong, ood_score, route, usage, tools, defects)
    if policy.plan(route).spans and found.action is Action.ACCEPT and found.p_wrong is not None:
        found = _decided_on_spans(policy, found, spans, route, usage, tools)
    return policy.plan(route).unless_suspended(found)


def _decided_on_spans(
    policy: Policy,
    accepted: Decision,
    spans: Collection[Span] | None,
    route: str | None,
    usage: Usage,
    tools: Iterable[str],
) -> Decision:
    if spans is None:
        error = "the policy needs the answer's spans, which are not known"
        return decide_error(policy, error=error, route=route, usage=usage, tools=tools)
    return decide_on_spans(policy.plan(route), accepted, spans, usage)


def _decided(
    policy: Policy,
    p_wrong: float | None,
    ood_score: float | None,
    route: str | None,
    usage: Usage,
    tools: Iterable[str],
    defects: Collection[Defect],
) -> Decision:
    # As a float: a NumPy float32 would be compared in its own precision.
    if p_wrong is None or not 0.0 <= (p_wrong := float(p_wrong)) <= 1.0:
        error = "the answer has no score" if p_wrong is None else f"the score {p_wrong} is no probability"
        return decide_error(policy, error=error, route=route, usage=usage, tools=tools, defects=defects)
    plans = policy.plans_for(route, tools)
    stopped = _by_defects(plans, defects, p_wrong, usage)
    if stopped is not None:
        return stopped
    decision = _strictest([_by_rules(plan.rules, p_wrong, usage) for plan in plans])
    ood = policy.plan(route).out_of_distribution
    if ood is None:
        return decision
    if ood_score is None or not 0.0 <= ood_score <= 1.0:
        known = "not known" if ood_score is None else f"{ood_score}, not a share"
        error = f"the policy needs the input's out-of-distribution score, which is {known}"
        return decide_error(policy, error=error, route=route, usage=usage, tools=tools)
    return _by_ood_rule(ood, float(ood_score), p_wrong, usage) if ood_score > ood.above else decision


def decide_error(
    policy: Policy,
    *,
    error: str,
    route: str | None = None,
    usage: Usage = NO_USAGE,
    tools: Iterable[str] = (),
    defects: Collection[Defect] = (),
) -> Decision:
    """Decide after generation, capture or scoring failed.

    Args:
        policy: the rules; its ``on_error`` decides. An exhausted fallback becomes an abstention.
        error: what failed, in one sentence.
        route: name given by the caller.
        usage: of this call so far.
        tools: names of the tools that the answer calls, as for `decide`.
        defects: defects of the answer, if there is one; they decide before ``on_error``, as for `decide`.

    Raises:
        PolicyError: the policy has no such route.

    Examples:
        >>> decide_error(load_policy("strict"), error="out of memory").action.value
        'escalate'
    """
    plans = policy.plans_for(route, tools)
    stopped = _by_defects(plans, defects, None, usage)
    decision = stopped or _strictest([_by_on_error(plan.on_error, error, usage) for plan in plans])
    return policy.plan(route).unless_suspended(decision)


def _strictest(decisions: list[Decision]) -> Decision:
    return max(decisions, key=lambda decision: SEVERITY[decision.action])  # of equals the first


_DEFECTS: Mapping[Defect, str] = {
    "truncated": "The answer is cut: it reached its token limit or the end of the context",
    "empty": "The answer is empty",
    "stopped": "The answer was stopped before its end",
}


def _by_defects(
    plans: tuple[RoutePlan, ...], defects: Collection[Defect], p_wrong: float | None, usage: Usage
) -> Decision | None:
    """Return the decision about a defective answer; None if its score may decide."""
    stops = [(plan, stop) for plan in plans if (stop := plan.stopped_by(defects))]
    decisions = [_by_defect(plan, *stop, p_wrong, usage) for plan, stop in stops]
    return _strictest(decisions) if decisions else None


def _by_defect(plan: RoutePlan, defect: Defect, rule: CompiledRule, p_wrong: float | None, usage: Usage) -> Decision:
    why = rule.why_exhausted(usage) or (rule.why_in_vain(usage) if defect == "truncated" else None)
    then = plan.closed(rule, usage) if why else rule
    what, fix = _describe_defect(defect, usage)
    reason = "; ".join(part for part in (what, why, None if then.action is Action.RETRY else fix) if part)
    return Decision(then.action, then.name, reason, p_wrong, then.settings)


def _describe_defect(defect: Defect, usage: Usage) -> tuple[str, str | None]:
    """Return what is wrong with an answer, and what the caller can do about it."""
    if defect != "truncated":
        return _DEFECTS[defect], None
    cut = usage.truncation
    return (cut.reason, cut.fix) if cut else (_DEFECTS[defect], "raise max_tokens, or shorten the prompt")


def _by_rules(rules: tuple[CompiledRule, ...], p_wrong: float, usage: Usage) -> Decision:
    if rules[0].is_uncertified:  # a risk guarantee is always the first rule
        raise uncertified(rules[0])
    passed: list[CompiledRule] = []
    for rule in rules:
        if p_wrong < rule.below:
            if rule.why_exhausted(usage) is None:
                break
            passed.append(rule)
    reason = _reason(p_wrong, rule, rules, passed, usage)
    return Decision(rule.action, rule.name, reason, p_wrong, rule.settings)


def _by_ood_rule(ood: OutOfDistributionRule, ood_score: float, p_wrong: float, usage: Usage) -> Decision:
    rule = ood.rule
    reason = f"The input is unlike the calibration data: ood_score {ood_score:.4g} is above {ood.above:g}"
    why = rule.why_exhausted(usage)
    if why is not None:
        return Decision(Action.ABSTAIN, rule.name, f"{reason}; {why}", p_wrong, Abstain())
    return Decision(rule.action, rule.name, reason, p_wrong, rule.settings)


def uncertified(rule: CompiledRule) -> PolicyError:
    """Return the error for a rule without a threshold."""
    return PolicyError(
        f"{rule.name} has no threshold yet",
        why=f"it guarantees {rule.guarantee}, and only a certificate can say below which score that holds",
        fix="Make one with guard certify, and give it with the policy's 'certificate' or --certificate",
    )


def _by_on_error(rule: CompiledRule, error: str, usage: Usage) -> Decision:
    reason = f"No usable score: {error.rstrip('.')}"
    why = rule.why_exhausted(usage)
    if why is not None:
        return Decision(Action.ABSTAIN, rule.name, f"{reason}; {why}", None, Abstain())
    return Decision(rule.action, rule.name, reason, None, rule.settings)


def _reason(
    p_wrong: float, rule: CompiledRule, rules: tuple[CompiledRule, ...], passed: list[CompiledRule], usage: Usage
) -> str:
    if passed:
        skipped = "; ".join(str(earlier.why_exhausted(usage)) for earlier in passed)
        return f"p_wrong {p_wrong:.4g} is below {passed[0].below:g}, but {skipped}"
    if rule.below <= 1.0:
        return f"p_wrong {p_wrong:.4g} is below {rule.below:g}"
    if len(rules) == 1:
        return f"{rule.name} takes every answer (p_wrong {p_wrong:.4g})"
    return f"p_wrong {p_wrong:.4g} is not below {rules[-2].below:g}"


__all__ = [
    "ANY_TOOL",
    "NO_USAGE",
    "Abstain",
    "Accept",
    "ActionSettings",
    "Budget",
    "Calls",
    "CompiledRule",
    "Escalate",
    "Fallback",
    "FallbackEngine",
    "InvalidPolicyError",
    "Policy",
    "Problem",
    "Retry",
    "RoutePlan",
    "ToolPlan",
    "Usage",
    "builtin_policies",
    "decide",
    "decide_error",
    "json_schema",
    "load_policy",
    "parse_policy",
    "uncertified",
]
