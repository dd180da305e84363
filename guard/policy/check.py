"""Check a policy's data as a whole, and report each problem in words with its position."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from guard.errors import did_you_mean
from guard.policy.check_watching import check_watching
from guard.policy.defects import DEFECTS, Defect
from guard.policy.document import (
    MAX_FALLBACKS,
    SEVERITY,
    Abstain,
    AbstainRule,
    Accept,
    AcceptRule,
    Audit,
    Budget,
    Calls,
    CertificateLost,
    DefectAction,
    Document,
    Escalate,
    EscalateRule,
    Fallback,
    FallbackEngine,
    FallbackRule,
    Late,
    LateAbstain,
    LateFallback,
    OnError,
    OutOfDistribution,
    OutOfDistributionAction,
    Retry,
    RetryRule,
    Route,
    Rule,
    ToolRules,
)
from guard.policy.problem_words import NOT_FOR_OOD, NOT_WHEN_LATE, WANTED
from guard.policy.yaml_source import MAX_PROBLEMS, Location, Problem, YamlSource, location_text
from guard.records import Action

_RULES: dict[str, type[BaseModel]] = {
    "accept": AcceptRule,
    "retry": RetryRule,
    "fallback": FallbackRule,
    "escalate": EscalateRule,
    "abstain": AbstainRule,
}
_ON_ERROR: dict[str, type[BaseModel]] = {
    "accept": Accept,
    "fallback": Fallback,
    "escalate": Escalate,
    "abstain": Abstain,
}
_LATE: dict[str, type[BaseModel]] = {"abstain": LateAbstain, "fallback": LateFallback}
_LOST: dict[str, type[BaseModel]] = {**_ON_ERROR, "fallback": LateFallback}
_DEFECT_ACTIONS: dict[str, type[BaseModel]] = {**_ON_ERROR, "retry": Retry}
#: Settings that are shares, which authors may write as percentages.
_SHARES = frozenset({"below", "above", "max_error_rate", "confidence", "rate", "false_alarms"})
_THEN: Location = ("out_of_distribution", "then")
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)")
_BOOLEAN_1_1 = frozenset({"yes", "no", "on", "off", "y", "n"})
_ModelT = TypeVar("_ModelT", bound=BaseModel)


def read_document(source: YamlSource) -> tuple[Document | None, list[Problem]]:
    """Check a policy's data against the models, and its rules against one another.

    Returns:
        The document (None where it does not fit the models) and every problem found.
    """
    problems = [*source.problems]
    judged = {(problem.line, problem.column) for problem in problems}
    for at in source.without_value():
        if not _is_action(at) and source.values[at] not in judged:
            problems.append(source.problem(at, f"there is no value after '{at[-1]:.60}'", at_key=True))
            judged |= {source.keys[at], source.values[at]}
    document = None
    try:
        document = Document.model_validate(source.data)
    except ValidationError as error:
        details_of_all = error.errors(include_url=False)[:MAX_PROBLEMS]
        found = [_translate(details, source) for details in details_of_all if not _is_echo(details)]
        # Problems of broken YAML and of missing values are reported already.
        problems += [problem for problem in found if (problem.line, problem.column) not in judged]
    problems += _check_rules(source)
    if document is not None:
        problems += check_watching(source, document)
    return document, problems


def rule_label(location: Location, rule: Rule) -> str:
    """Return a rule's own name, or its place and action: ``rules[2] (escalate)``."""
    return rule.settings.name or f"{location_text(location)} ({rule.action})"


def _is_echo(details: ErrorDetails) -> bool:
    """Return whether an error only follows from another: pydantic does not count invalid entries of a list."""
    return details["type"] == "too_short" and len(details["input"]) > 0


def _is_action(location: Location) -> bool:
    """Return whether the key at this location is an action; only an action needs no settings."""
    match location:
        case ("rules", int(), _) | ("routes" | "tools", _, "rules", int(), _):
            return True
        case ("on_error" | "on_certificate_lost", _) | ("routes" | "tools", _, "on_error" | "on_certificate_lost", _):
            return True
        case ("truncated" | "empty", _) | ("routes", _, "truncated" | "empty", _):
            return True
        case (*_, "escalate", "late", _):
            return True
        case ("out_of_distribution", "then", _) | ("routes", _, "out_of_distribution", "then", _):
            return True
    return False


# -- problems found by the models, in words ----------------------------------------------------


def _translate(details: ErrorDetails, source: YamlSource) -> Problem:
    location, kind = details["loc"], details["type"]
    if kind == "missing":
        return source.problem(location, _missing(location))
    if kind == "extra_forbidden":
        return source.problem(location, _unknown(location), at_key=True)
    if kind == "guard":
        return source.problem(location, details["msg"])
    if location == ("version",):
        found = _shown(details["input"])
        return source.problem(location, f"version must be 1, the only version that this guard reads, got {found}")
    if location[-1] == "[key]":
        place, key = location[:-2], location[-2]
        wanted = WANTED[kind].format_map(details.get("ctx", {}))
        return source.problem(location[:-1], f"'{key:.60}' in {location_text(place)} {wanted}", at_key=True)
    return value_problem(details, source)


def value_problem(details: ErrorDetails, source: YamlSource) -> Problem:
    """Return what is wrong with a value, in words, with its position."""
    location = details["loc"]
    wanted = WANTED.get(details["type"], details["msg"]).format_map(details.get("ctx", {}))
    message = f"{location_text(location)} {wanted}, got {_shown(details['input'])}"
    return source.problem(location, message + _hint(details))


def _shown(value: Any) -> str:
    """Return a value as one short piece of a sentence."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (Mapping, tuple)):
        return f"a {'mapping' if isinstance(value, Mapping) else 'list'}" if value else "nothing"
    return "nothing" if value is None else reprlib.repr(value)


def _hint(details: ErrorDetails) -> str:
    kind, value = details["type"], details["input"]
    if details["loc"][-1] in _SHARES and kind.startswith("less_than") and value <= 100:
        return f". Write {value / 100:g} for {value:g} %"
    if kind == "string_type" and isinstance(value, (int, float)):
        return ". Put it in quotes"
    if not isinstance(value, str):
        return ""
    if kind == "bool_type" and value.lower() in _BOOLEAN_1_1:
        return ". Write true or false"
    if kind in ("int_type", "float_type") and _NUMBER.fullmatch(value):
        return ". Write a plain number, without quotes or leading zeros"
    if kind == "literal_error":
        known = re.findall("'([^']*)'", details["ctx"]["expected"])
        return f". {did_you_mean(value, known)}"
    return ""


def _missing(location: Location) -> str:
    key, place = location[-1], location_text(location[:-1])
    if key == "below":
        return (
            f"{location[-2]} needs 'below': it is limited, so it cannot be the last rule. End with escalate or abstain"
        )
    return f"'{key}' is missing" + (f" in {place}" if place else "")


def _unknown(location: Location) -> str:
    key, place = str(location[-1]), location[:-1]
    known = _known_keys(place)
    if known is not None:
        where = f" in {location_text(place)}" if place else ""
        if place[-1:] == ("out_of_distribution",) and key in _keys(OutOfDistributionAction):
            return f"'{key}' belongs under 'then', as in 'out_of_distribution: {{above: 0.99, then: {key}}}'"
        if key == "above" and place and place[-1] in _RULES:
            return (
                f"'above'{where} is not known: rules go by 'below'. They are tried in turn, the first that holds "
                "decides, so what is above comes after"
            )
        return f"unknown key '{key:.60}'{where}. {did_you_mean(key, known)}"
    if place[-1] == "then":
        if key in _RULES:  # but not one of those that are allowed, or it would be known
            return f"{key} is not allowed in out_of_distribution: {NOT_FOR_OOD[key]}"
        return f"unknown action '{key:.60}'. {did_you_mean(key, _keys(OutOfDistributionAction))}"
    if place[-1] == "late":
        if key in _RULES:
            return f"{key} is not allowed in late: {NOT_WHEN_LATE[key]}"
        return f"unknown action '{key:.60}'. {did_you_mean(key, _keys(Late))}"
    if place[-1] == "on_certificate_lost" and key in _RULES:
        return f"{key} is not allowed in on_certificate_lost: no answer is accepted while the certificate is suspended"
    if key == "retry" and place[-1] == "on_error":
        return "retry is not allowed in on_error: what failed would most likely fail again"
    owners = [action for action, model in _RULES.items() if key in _keys(model)]
    if owners:
        return f"'{key}' belongs inside the action. Indent it further, as in '{owners[0]}: {{{key}: ...}}'"
    models: dict[str | int, type[BaseModel]] = {"on_error": OnError, **dict.fromkeys(DEFECTS, DefectAction)}
    models["on_certificate_lost"] = CertificateLost
    return f"unknown action '{key:.60}'. {did_you_mean(key, _keys(models.get(place[-1], Rule)))}"


def _known_keys(place: Location) -> Sequence[str] | None:
    """Return keys that a mapping may have, or None where its key is an action."""
    match place:
        case ():
            return _keys(Document)
        case ("fallbacks", _):
            return _keys(FallbackEngine)
        case ("routes", _):
            return _keys(Route)
        case ("tools", _):
            return _keys(ToolRules)
        case ("calls",):
            return _keys(Calls)
        case (*_, "out_of_distribution"):
            return _keys(OutOfDistribution)
        case (*_, "late"):
            return None
        case (*_, "late", action):
            return _keys(_LATE[str(action)])
        case (*_, "rules", int()) | (*_, "on_error" | "truncated" | "empty" | "on_certificate_lost") | (*_, "then"):
            return None
        case (*_, "audit"):
            return _keys(Audit)
        case (*_, "budget"):
            return _keys(Budget)
        case (*_, "on_certificate_lost", action):
            return _keys(_LOST[str(action)])
        case (*_, "on_error" | "then", action):
            return _keys(_ON_ERROR[str(action)])
        case (*_, "truncated" | "empty", action):
            return _keys(_DEFECT_ACTIONS[str(action)])
    return _keys(_RULES[str(place[-1])])


def _keys(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


# -- relations between rules -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Section:
    """The rules of the policy, of a route or of a tool, as far as they could be read.

    Attributes:
        prefix: location of the section.
        rules: location and rule; None where the rule itself is wrong.
        on_error, out_of_distribution: likewise.
        defects: the actions of ``truncated`` and ``empty`` that are written here and could be read.
        attempts: what the budget allows; None where that is wrong, or was judged with the policy.
    """

    prefix: Location
    rules: tuple[tuple[Location, Rule | None], ...]
    on_error: OnError | None
    out_of_distribution: OutOfDistribution | None
    defects: Mapping[Defect, DefectAction]
    attempts: int | None


def _check_rules(source: YamlSource) -> Iterator[Problem]:
    sections = list(_sections(source.data))
    for section in sections:
        yield from _check_order(source, section)
        yield from _check_guarantees(source, section)
        yield from _check_names(source, section)
        yield from _check_attempts(source, section)
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
    elif whole is not None and not data.keys() & {"rules", *DEFECTS}:
        attempts = None
    on_error, out_of_distribution = (
        _read(OnError, data.get("on_error")),
        _read(OutOfDistribution, data.get("out_of_distribution")),
    )
    read_defects = ((name, _read(DefectAction, data[name])) for name in DEFECTS if name in data)
    defects = {name: action for name, action in read_defects if action is not None}
    return _Section(prefix, rules, on_error, out_of_distribution, defects, attempts)


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
    for location, rule in (*section.rules, *defects):
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
    lines: list[tuple[OnError | OutOfDistributionAction | DefectAction | None, Location]] = [
        (section.on_error, ("on_error",)),
        (section.out_of_distribution.then if section.out_of_distribution else None, _THEN),
        *((action, (name,)) for name, action in section.defects.items()),
    ]
    for line, place in lines:
        settings = line.settings if line else None
        if isinstance(settings, Fallback) and settings.to is not None:
            yield (*section.prefix, *place, "fallback", "to"), settings.to
