"""Check a policy's data as a whole, and report each problem in words with its position."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from guard.errors import did_you_mean
from guard.policy.check_watching import check_watching
from guard.policy.defects import DEFECTS
from guard.policy.document import (
    Abstain,
    AbstainRule,
    Accept,
    AcceptRule,
    Audit,
    Budget,
    CertificateLost,
    Cut,
    DefectAction,
    Document,
    Early,
    EarlyAction,
    Escalate,
    EscalateRule,
    Fallback,
    FallbackEngine,
    FallbackRule,
    Mark,
    OnError,
    OutOfDistribution,
    OutOfDistributionAction,
    Retry,
    RetryRule,
    Route,
    Rule,
    Spans,
    SpansAction,
    ToolRules,
)
from guard.policy.joined_calls import Calls
from guard.policy.lateness import Late, LateAbstain, LateFallback
from guard.policy.problem_words import NOT_FOR_EARLY, NOT_FOR_OOD, NOT_FOR_SPANS, NOT_WHEN_LATE, WANTED
from guard.policy.relations import check_rules
from guard.policy.yaml_source import MAX_PROBLEMS, Location, Problem, YamlSource, location_text

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
_SPANS_ACTIONS: dict[str, type[BaseModel]] = {"mark": Mark, "cut": Cut, "retry": Retry, "escalate": Escalate}
#: Settings that are shares, which authors may write as percentages.
_SHARES = frozenset({"below", "above", "max_error_rate", "confidence", "rate", "false_alarms"})
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)")
#: A share as people write it: with a decimal comma, or as a percentage.
_SHARE = re.compile(r"([0-9]*[.,]?[0-9]+)\s*(%?)")
_BOOLEAN_1_1 = frozenset({"yes", "no", "on", "off", "y", "n"})


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
    problems += check_rules(source)
    if document is not None:
        problems += check_watching(source, document)
    return document, problems


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
        case (*_, "out_of_distribution" | "spans" | "early", "then", _):
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
    if details["loc"][-1] in _SHARES and (share := _SHARE.fullmatch(value)):
        return f". Write {float(share[1].replace(',', '.')) / (100 if share[2] else 1):g}"
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
        if place[-1:] == ("early",) and key in _keys(EarlyAction):
            return f"'{key}' belongs under 'then', as in 'early: {{above: 0.97, then: {key}}}'"
        if place[-1:] == ("spans",) and key in _SPANS_ACTIONS:
            return f"'{key}' belongs under 'then', as in 'spans: {{above: 0.6, then: {key}}}'"
        if key == "above" and place and place[-1] in _RULES:
            return (
                f"'above'{where} is not known: rules go by 'below'. They are tried in turn, the first that holds "
                "decides, so what is above comes after"
            )
        return f"unknown key '{key:.60}'{where}. {did_you_mean(key, known)}"
    if place[-2:] == ("spans", "then"):
        if key in NOT_FOR_SPANS:
            return f"{key} is not allowed in spans: {NOT_FOR_SPANS[key]}"
        return f"unknown action '{key:.60}'. {did_you_mean(key, _keys(SpansAction))}"
    if place[-2:] == ("early", "then"):
        if key in _RULES:
            return f"{key} is not allowed in early: {NOT_FOR_EARLY[key]}"
        return f"unknown action '{key:.60}'. {did_you_mean(key, _keys(EarlyAction))}"
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
        case (*_, "spans"):
            return _keys(Spans)
        case (*_, "early"):
            return _keys(Early)
        case (*_, "spans", "then", action):
            return _keys(_SPANS_ACTIONS[str(action)])
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
