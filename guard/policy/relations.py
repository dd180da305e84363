"""Relations between the rules of a policy: thresholds rise, every rule can fire, the last takes every answer."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from guard.errors import did_you_mean
from guard.policy.defects import DEFECTS, Defect
from guard.policy.document import (
    MAX_FALLBACKS,
    SEVERITY,
    Budget,
    DefectAction,
    Early,
    EarlyAction,
    Fallback,
    Mark,
    OnError,
    OutOfDistribution,
    OutOfDistributionAction,
    Retry,
    Rule,
    Spans,
)
from guard.policy.yaml_source import MAX_PROBLEMS, Location, Problem, YamlSource, location_text
from guard.records import Action

_ModelT = TypeVar("_ModelT", bound=BaseModel)
_THEN: Location = ("out_of_distribution", "then")


def rule_label(location: Location, rule: Rule) -> str:
    """Return a rule's own name, or its place and action: ``rules[2] (escalate)``."""
    return rule.settings.name or f"{location_text(location)} ({rule.action})"


@dataclass(frozen=True, slots=True)
class _Section:
    """The rules of the policy, of a route or of a tool, as far as they could be read.

    Attributes:
        prefix: location of the section.
        rules: location and rule; None where the rule itself is wrong.
        on_error, out_of_distribution: likewise.
        spans, early: the sections that are written here, if they could be read.
        defects: the actions of ``truncated`` and ``empty`` that are written here and could be read.
        attempts: what the budget allows; None where that is wrong, or was judged with the policy.
    """

    prefix: Location
    rules: tuple[tuple[Location, Rule | None], ...]
    on_error: OnError | None
    out_of_distribution: OutOfDistribution | None
    spans: Spans | None
    early: Early | None
    defects: Mapping[Defect, DefectAction]
    attempts: int | None


def check_rules(source: YamlSource) -> Iterator[Problem]:
    """Yield the problems of rules that could be read, beside one another."""
    sections = list(_sections(source.data))
    for section in sections:
        yield from _check_order(source, section)
        yield from _check_guarantees(source, section)
        yield from _check_names(source, section)
        yield from _check_attempts(source, section)
        yield from _check_spans(source, section, sections[0])
        yield from _check_early(source, section)
    declared = source.data.get("fallbacks")
    if isinstance(declared, Mapping) and len(declared) <= MAX_FALLBACKS:
        yield from _check_fallbacks(source, sections, declared)


def _sections(data: Mapping[str, Any]) -> Iterator[_Section]:
    whole = _section(data, (), None)
    yield whole
    for kind in ("routes", "tools"):
        named = data.get(kind)
        for name, section in named.items() if isinstance(named, Mapping) else ():
            if isinstance(section, Mapping):
                yield _section(section, (kind, name), whole)


def _section(data: Mapping[str, Any], prefix: Location, whole: _Section | None) -> _Section:
    raw = data.get("rules")
    rules = tuple(
        ((*prefix, "rules", number), None if _is_unfinished(entry) else _read(Rule, entry))
        for number, entry in enumerate(raw if isinstance(raw, tuple) else ())
    )
    if whole is not None and "rules" not in data:
        rules = whole.rules
    budget = data.get("budget", {})
    attempts: int | None = Budget().attempts if whole is None else whole.attempts
    if not isinstance(budget, Mapping):
        attempts = None
    elif "attempts" in budget:
        read = _read(Budget, {"attempts": budget["attempts"]})
        attempts = None if read is None else read.attempts
    elif whole is not None and not data.keys() & {"rules", "spans", "early", *DEFECTS}:
        attempts = None
    on_error, out_of_distribution = (
        _read(OnError, data.get("on_error")),
        _read(OutOfDistribution, data.get("out_of_distribution")),
    )
    read_defects = ((name, _read(DefectAction, data[name])) for name in DEFECTS if name in data)
    defects = {name: action for name, action in read_defects if action is not None}
    spans, early = _read(Spans, data.get("spans")), _read(Early, data.get("early"))
    return _Section(prefix, rules, on_error, out_of_distribution, spans, early, defects, attempts)


def _is_unfinished(entry: Any) -> bool:
    """Return whether a setting has no value; such a rule must not pass for one without the setting."""
    bodies = entry.values() if isinstance(entry, Mapping) else ()
    return any(value is None for body in bodies if isinstance(body, Mapping) for value in body.values())


def _read(model: type[_ModelT], data: Any) -> _ModelT | None:
    try:
        return model.model_validate(data)
    except ValidationError:
        return None


def _own_rules(section: _Section) -> Iterator[tuple[Location, Rule | None]]:
    """Return the rules written in this section, without inherited ones."""
    return ((at, rule) for at, rule in section.rules if at[: len(section.prefix)] == section.prefix)


def _check_order(source: YamlSource, section: _Section) -> Iterator[Problem]:
    reached, reached_by, strictest, all_of = 0.0, "", Action.ACCEPT, ""
    last: tuple[Location, Rule | None] | None = None
    for last in _own_rules(section):
        location, rule = last
        if rule is None:
            continue
        below, label = rule.settings.below, rule_label(location, rule)
        if all_of:
            message = f"{label} can never fire: {all_of} has no 'below' and takes every answer"
            yield source.problem(location, message)
            continue
        if SEVERITY[rule.action] < SEVERITY[strictest]:
            yield source.problem(
                location,
                f"{rule.action} must not come after {strictest}: rules must not become more lenient as "
                "p_wrong rises. The order is accept, retry, fallback, then escalate and abstain",
            )
        else:
            strictest = rule.action
        if rule.guarantee:  # its threshold comes from a certificate and is checked then
            continue
        if below is None:
            all_of = label
        elif below <= reached:
            message = f"{label} can never fire: {reached_by} takes all below {reached:g}. Thresholds must rise"
            yield source.problem((*location, rule.action.value, "below"), message)
        else:
            reached, reached_by = below, label
    if last is not None and last[1] is not None and not all_of:
        yield source.problem(last[0], _no_end(last[1].settings.below))


def _check_guarantees(source: YamlSource, section: _Section) -> Iterator[Problem]:
    """Refuse other rules that accept beside a risk guarantee, which covers all accepted answers."""
    accepting = [(at, rule) for at, rule in _own_rules(section) if rule and rule.action is Action.ACCEPT]
    if not any(rule.guarantee for _, rule in accepting):
        return
    if section.prefix[:1] == ("tools",):
        at = next(at for at, rule in accepting if rule.guarantee)
        message = "a risk guarantee cannot be certified for answers that call a tool. Give the tool's rule a 'below'"
        yield source.problem((*at, "accept", "max_error_rate"), message)
    for at, _ in accepting[1:]:
        first = location_text(accepting[0][0])
        message = f"{first} accepts too, but a risk guarantee covers all accepted answers. Keep one"
        yield source.problem(at, message)


def _check_spans(source: YamlSource, section: _Section, whole: _Section) -> Iterator[Problem]:
    """Refuse what spans cannot do: change what a certificate or a live reader has been guaranteed."""
    spans = section.spans or whole.spans
    if spans is None or isinstance(spans.then.settings, Mark):
        return
    at: Location = (*(section.prefix if section.spans else ()), "spans", "then")
    (name,) = spans.then.model_fields_set
    if any(rule and rule.guarantee for _, rule in section.rules):
        message = f"{name} changes which answers are released, and a risk guarantee covers whole answers. Write mark"
        yield source.problem(at, message)
    if name != "escalate" and source.data.get("streaming") == "live" and (section.spans or section is whole):
        message = f"{name} takes back text that a live stream has shown. Write mark or escalate, or streaming: hold"
        yield source.problem(at, message)


def _check_early(source: YamlSource, section: _Section) -> Iterator[Problem]:
    """Refuse to stop a live stream early: it is stopped by its rules already."""
    if section.early is not None and source.data.get("streaming") == "live":
        message = "a live stream is stopped by the rules. Leave early out, or write streaming: hold"
        yield source.problem((*section.prefix, "early"), message, at_key=True)


def _no_end(below: float | None) -> str:
    message = "the last rule must take every answer: end with escalate or abstain without 'below'"
    if below == 1:
        message += ". 'below: 1' does not take every answer, since p_wrong may be exactly 1"
    return message


def _check_names(source: YamlSource, section: _Section) -> Iterator[Problem]:
    seen: dict[str, str] = {}
    for location, rule in _own_rules(section):
        name = rule.settings.name if rule else None
        if rule is None or name is None:
            continue
        if name in seen:
            message = f"the name '{name}' is taken by {seen[name]}. Each rule needs a name of its own"
            yield source.problem((*location, rule.action.value, "name"), message)
        seen.setdefault(name, location_text(location))


def _check_attempts(source: YamlSource, section: _Section) -> Iterator[Problem]:
    """Refuse retries and fallbacks that the budget leaves no room for, since they can never fire."""
    if section.attempts is None:
        return
    room = section.attempts - 1
    defects = (((*section.prefix, name), action) for name, action in section.defects.items())
    of_spans = [((*section.prefix, "spans", "then"), section.spans.then)] if section.spans else []
    of_early = [((*section.prefix, "early", "then"), section.early.then)] if section.early else []
    for location, rule in (*section.rules, *defects, *of_spans, *of_early):
        settings = rule.settings if rule else None
        if isinstance(settings, Retry) and settings.times > room:
            wanted, key = f"{settings.times} retries", ("retry", "times")
        elif isinstance(settings, Fallback) and settings.to is not None and room < 1:
            wanted, key = "a fallback to another engine", ("fallback", "to")
        else:
            continue
        own = location[: len(section.prefix)] == section.prefix
        place = (*location, *key) if own else (*section.prefix, "budget", "attempts")
        message = (
            f"{location_text(location)} asks for {wanted}, but budget.attempts leaves room for {room} "
            f"after the first answer. Raise it above {section.attempts} or ask for less"
        )
        yield source.problem(place, message)


def _check_fallbacks(
    source: YamlSource, sections: Sequence[_Section], declared: Mapping[str, Any]
) -> Iterator[Problem]:
    """Report undeclared fallbacks whose name resembles a declared one; others may be passed in from Python."""
    slips: dict[str, bool] = {}
    for location, name in (named for section in sections for named in _fallback_names(section)):
        # Comparing spellings is slow, so an absurd number of names is not compared.
        if name not in declared and name not in slips and len(slips) < MAX_PROBLEMS:
            slips[name] = bool(difflib.get_close_matches(name, declared, n=1))
        if slips.get(name):
            message = f"there is no fallback '{name}' under 'fallbacks'. {did_you_mean(name, declared)}"
            yield source.problem(location, message)


def _fallback_names(section: _Section) -> Iterator[tuple[Location, str]]:
    for location, rule in _own_rules(section):
        if rule and isinstance(rule.settings, Fallback) and rule.settings.to is not None:
            yield (*location, "fallback", "to"), rule.settings.to
    lines: list[tuple[OnError | OutOfDistributionAction | EarlyAction | DefectAction | None, Location]] = [
        (section.on_error, ("on_error",)),
        (section.out_of_distribution.then if section.out_of_distribution else None, _THEN),
        (section.early.then if section.early else None, ("early", "then")),
        *((action, (name,)) for name, action in section.defects.items()),
    ]
    for line, place in lines:
        settings = line.settings if line else None
        if isinstance(settings, Fallback) and settings.to is not None:
            yield (*section.prefix, *place, "fallback", "to"), settings.to
