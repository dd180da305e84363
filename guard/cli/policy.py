"""``guard policy``: check, explain and start policies."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.output import CertificateOption, JsonOption, console, print_json
from guard.cli.terminal import one_line, say, shown
from guard.errors import InputError, PolicyError, ScorerError, did_you_mean
from guard.files.output_file import has_blank_name

if TYPE_CHECKING:
    from guard.policy.explanation import ExplainedRule
    from guard.policy.policy import Policy
    from guard.records import Decision
    from guard.scoring.scorer import Scorer

app = typer.Typer(
    help="Check, explain and start policies.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

PolicyArgument = Annotated[str, typer.Argument(metavar="POLICY", help="Policy file, or name of a built-in policy.")]


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Policy files, or names of built-in policies.")],
    *,
    certificate: CertificateOption = None,
    scorer: Annotated[
        str | None, typer.Option("--scorer", "-s", help="Scorer to check the policies with: a file, or a shelf name.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check policies; print one line per mistake, with file, line and column. Exit code 2 if there are any.

    The command also says what a policy needs: a certificate, handlers, fallbacks, parts of the scorer. A certificate is
    checked against the rules. With --scorer, exit code 3 where that scorer lacks a part that a policy needs. Whether
    model, scorer and certificate belong together is checked when they are loaded.
    """
    known = None if scorer is None else (scorer, _load_scorer(scorer))
    reports = [_check(file, certificate, known) for file in files]
    if as_json:
        print_json(reports)
    else:
        for report in reports:
            for line in _lines(report):
                say(one_line(line))
    if not all(report["valid"] for report in reports):
        raise typer.Exit(PolicyError.exit_code)
    if any(report["scorer"] and report["scorer"]["lacks"] for report in reports):
        raise typer.Exit(ScorerError.exit_code)


@app.command()
def schema(*, as_json: JsonOption = False) -> None:
    """Print the JSON Schema of policy files, for editors."""
    from guard.policy.policy import json_schema

    if as_json:
        print_json(json_schema())
    else:
        say(json.dumps(json_schema(), indent=2))


@app.command()
def explain(
    policy: PolicyArgument,
    *,
    score: Annotated[float, typer.Option(metavar="P", help="Probability that the answer is wrong, from 0 to 1.")],
    ood_score: Annotated[
        float | None,
        typer.Option(metavar="N", help="Out-of-distribution score of the input, from 0 to 1."),
    ] = None,
    route: Annotated[str | None, typer.Option(metavar="ROUTE", help="Route that the caller names.")] = None,
    tool: Annotated[str | None, typer.Option(metavar="TOOL", help="Tool that the answer calls.")] = None,
    certificate: CertificateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show which rule decides on an answer with this score, and why the others do not."""
    from guard.policy.defects import DEFECTS
    from guard.policy.document import Escalate
    from guard.policy.explanation import describe_terms
    from guard.policy.explanation import explain as steps_of
    from guard.policy.policy import Usage, decide, load_policy
    from guard.records import Action

    loaded = with_certificate(load_policy(policy), certificate)
    section = None if tool is None else _tool_section(loaded, tool)
    if tool is not None:
        (plan,) = loaded.plans_for(route, [tool])
        loaded = replace(loaded, plans={**loaded.plans, route: plan})
    steps = steps_of(loaded, score, route, ood_score=ood_score)
    decided = partial(decide, loaded, p_wrong=score, ood_score=ood_score, route=route, spans=())
    decision, when_exhausted = decided(), decided(usage=Usage(exhausted=True))
    defective = {name: decided(defects=[name]) for name in DEFECTS}
    of_spans = loaded.plan(route).spans if decision.action is Action.ACCEPT else None
    early = loaded.plan(route).early
    if as_json:
        print_json(
            {
                "policy": loaded.name,
                "mode": loaded.mode,
                "route": route,
                "tool": tool,
                "tool_section": section,
                "decides_on": loaded.score,
                "score": score,
                "ood_score": ood_score,
                "steps": [asdict(step) for step in steps],
                "decision": _decision_json(decision),
                "when_exhausted": _decision_json(when_exhausted),
                **{f"when_{name}": _decision_json(each) for name, each in defective.items()},
                "spans": {"above": of_spans.above, "then": of_spans.what} if of_spans else None,
                "early": {"above": early.above, "then": early.rule.action} if early else None,
            }
        )
        return
    if tool is not None and section != tool:
        say(_other_section(loaded, tool, section))
    if loaded.score != "guard":
        say(f"p_wrong is the score '{loaded.score}'.")
    _print_steps(steps)
    say(f"{decision.action}: {decision.reason}.")
    if isinstance(decision.settings, Escalate):
        say(describe_terms(decision.settings.terms))
    if when_exhausted.rule != decision.rule:
        say(f"Once the budget is exhausted: {when_exhausted.action}, by {when_exhausted.rule}.")
    for name, each in defective.items():
        say(f"If the answer is {name}: {each.action}, by {each.rule}.")
    if of_spans:
        say(f"If the {of_spans.condition}: {of_spans.what}.")
    if early:
        say(f"Where the {early.condition}, it is stopped: {early.rule.action}, by {early.rule.name}.")
    if loaded.mode == "shadow":
        say("The policy is in shadow mode: this is only recorded, the caller gets the answer.")


@app.command()
def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of a built-in policy; see guard policy list.")],
    *,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="File to write; by default NAME.yaml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a copy of a built-in policy to start from."""
    from guard.policy.policy import builtin_policies

    builtin = builtin_policies()
    if name not in builtin:
        raise PolicyError(f"There is no built-in policy '{name}'", fix=did_you_mean(name, builtin))
    path = out if out is not None else Path(f"{name}.yaml")
    _write(path, builtin[name].read_bytes(), force=force)
    if as_json:
        print_json({"policy": name, "path": str(path)})
    else:
        say(f"Wrote {path}. After changing it run: guard policy check {path}")


@app.command("list")
def list_policies(*, as_json: JsonOption = False) -> None:
    """List the built-in policies."""
    from guard.policy.policy import builtin_policies, load_policy

    found = [(load_policy(name), path) for name, path in builtin_policies().items()]
    if as_json:
        fields = ("name", "description", "mode", "routes", "sha256")
        print_json([{**{key: getattr(policy, key) for key in fields}, "path": str(path)} for policy, path in found])
        return
    width = max(len(policy.name) for policy, _ in found)
    for policy, _ in found:
        say(f"{policy.name:<{width}}  {policy.description}")


def _tool_section(policy: Policy, tool: str) -> str | None:
    """Return the policy's section for this tool, or None."""
    from guard.policy.policy import ANY_TOOL

    return next((name for name in (tool, ANY_TOOL) if name in policy.tools), None)


def _other_section(policy: Policy, tool: str, section: str | None) -> str:
    """Note that a tool has no rules of its own, since its name may be misspelt."""
    taken = "the rules are those of other answers" if section is None else f"tools.{section} is taken"
    return f"tools has no '{tool}', so {taken}. {did_you_mean(tool, policy.tools)}".rstrip()


def with_certificate(policy: Policy, certificate: str | None) -> Policy:
    """Return the policy with certified thresholds, as far as they can be checked without model and scorer."""
    from guard.policy.certificate import certified_without_model, chosen_certificates
    from guard.policy.guarantee import guarantees

    if not guarantees(policy):
        return policy
    return certified_without_model(policy, chosen_certificates(policy, certificate))


def _guarantees(policy: Policy, certificate: str | None) -> list[dict[str, Any]]:
    """Return the policy's risk guarantees, with the certified thresholds if it has a certificate."""
    from guard.policy.guarantee import guarantees

    known = certificate is not None or policy.certificate is not None
    certified = with_certificate(policy, certificate) if known else policy
    return [
        {
            "route": route,
            **asdict(guarantee),
            "threshold": certified.plan(route).rules[0].below if known else None,
        }
        for route, guarantee in guarantees(policy).items()
    ]


def _check(file: str, certificate: str | None, scorer: tuple[str, Scorer] | None) -> dict[str, Any]:
    """Return the problems of one policy as a JSON object."""
    from guard.policy.policy import InvalidPolicyError, load_policy

    report: dict[str, Any] = {"file": file, "valid": False, "problems": [], "guarantees": [], "notes": []}
    try:
        policy = load_policy(file)
        report["guarantees"] = _guarantees(policy, certificate)
        report["notes"] = _notes(policy)
    except InvalidPolicyError as error:
        report["problems"] = [{**asdict(problem), "text": str(problem)} for problem in error.problems]
    except PolicyError as error:  # there is no text to point into
        report["problems"] = [{"message": str(error), "text": f"{file}: {error}"}]
    else:
        report.update(valid=True, name=policy.name, rules=len(policy.plan().rules), routes=policy.routes)
        report["needs"] = _needs(policy)
        report["scorer"] = scorer and _scorer_report(policy, *scorer)
    return report


def _load_scorer(named: str) -> Scorer:
    from guard.scoring.scorer import load_scorer

    return load_scorer(named)


def _scorer_report(policy: Policy, named: str, scorer: Scorer) -> dict[str, Any]:
    """Return what a scorer lacks of the parts that a policy needs, as building a guard with both would say it."""
    from guard.runtime.sources import lacking

    return {"file": named, "lacks": [str(error) for error in lacking(scorer, policy, whose=named)]}


def _needs(policy: Policy) -> dict[str, list[str]]:
    """Return the handlers and fallbacks that the policy names and does not declare, and the parts of the scorer."""
    parts = {
        f"score: {policy.score}": policy.score != "guard",
        "out_of_distribution": policy.needs_ood_score,
        "spans": policy.needs_spans,
        "early": policy.needs_early,
    }
    return {
        "handlers": [name for name in policy.handler_names() if name not in ("log", "review", "interrupt")],
        "fallbacks": [name for name in policy.fallback_names() if name not in policy.fallbacks],
        "agent": [name for name in policy.handler_names() if name == "interrupt"],
        "scorer": [part for part, needed in parts.items() if needed],
    }


def _need_lines(needs: dict[str, list[str]]) -> list[str]:
    how = {
        "handlers": "needs handlers={{'{0}': ...}}, or guard ask --handler {0}=MODULE:FUNCTION",
        "fallbacks": "needs fallbacks={{'{0}': ...}}, or {0} declared under fallbacks",
        "agent": "'{0}' pauses an agent, so only GuardMiddleware can carry it out",
    }
    lines = [how[kind].format(name) for kind, names in needs.items() if kind != "scorer" for name in names]
    return [*lines, *(f"needs a scorer with {_part_words(part)}" for part in needs["scorer"])]


def _part_words(part: str) -> str:
    """Return a part of a scorer in words, and how a scorer gets it, for a policy's key."""
    words = {
        "out_of_distribution": "an out-of-distribution detector",
        "spans": "a model of spans: guard calibrate --spans",
        "early": "early stages: guard calibrate --early",
    }
    return words.get(part) or f"the score '{part.removeprefix('score: ')}'"


def _scorer_lines(scorer: dict[str, Any] | None) -> list[str]:
    if scorer is None:
        return []
    return scorer["lacks"] or [f"the scorer '{scorer['file']}' has every part that the policy needs"]


def _lines(report: dict[str, Any]) -> list[str]:
    if not report["valid"]:
        return [problem["text"] for problem in report["problems"]]
    routes = f", routes {', '.join(report['routes'])}" if report["routes"] else ""
    first = f"no mistakes ({report['name']}, {report['rules']} rules{routes})"
    more = [*map(_guarantee_line, report["guarantees"]), *_need_lines(report["needs"])]
    more += [*_scorer_lines(report["scorer"]), *(f"note: {note}" for note in report["notes"])]
    return [f"{report['file']}: {line}" for line in (first, *more)]


def _notes(policy: Policy) -> list[str]:
    """Return warnings about what is allowed and easily a mistake."""
    return [*_repeating_retries(policy), *_foreign_thresholds(policy)]


def _foreign_thresholds(policy: Policy) -> list[str]:
    """Warn of thresholds that may have been written for guard's own score."""
    sections = [plan.rules for plan in policy.plans.values()] + [plan.rules or () for plan in policy.tools.values()]
    written = any(rule.below < math.inf and not rule.guarantee for rules in sections for rule in rules)
    if policy.score == "guard" or not written:
        return []
    note = f"the rules compare the score '{policy.score}'"
    return [f"{note}: thresholds that were chosen for another score do not hold for it"]


def _repeating_retries(policy: Policy) -> list[str]:
    """Warn of retries that can only give the same answer again."""
    from guard.policy.document import Retry

    return [
        f"{'' if route is None else f'route {route}: '}{line.name} asks the same again at temperature 0, which gives "
        "the same answer; raise the temperature, or add an instruction"
        for route, plan in policy.plans.items()
        for line in plan.rules
        if isinstance(retry := line.settings, Retry) and retry.temperature == 0 and not retry.instruction
    ]


def _guarantee_line(guarantee: dict[str, Any]) -> str:
    place = "" if guarantee["route"] is None else f"route {guarantee['route']}: "
    wanted = f"max_error_rate {guarantee['max_error_rate']:g} at confidence {guarantee['confidence']:g}"
    if guarantee["threshold"] is None:
        return f"{place}{wanted} needs a certificate; make one with guard certify"
    return f"{place}{wanted} is certified for p_wrong < {guarantee['threshold']:.4g}"


def _decision_json(decision: Decision) -> dict[str, Any]:
    return {
        "action": decision.action,
        "rule": decision.rule,
        "reason": decision.reason,
        "settings": decision.settings.model_dump(mode="json", by_alias=True, exclude_none=True),
    }


def _print_steps(steps: list[ExplainedRule]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("", "rule", "if", "holds", "why"):
        table.add_column(heading)
    for step in steps:
        holds = "yes" if step.holds else "no"
        cells = (">" if step.decides else "", step.rule, step.condition, holds, step.why)
        table.add_row(*map(shown, cells), style="bold" if step.decides else None)
    console().print(table)


def _write(path: Path, content: bytes, *, force: bool) -> None:
    if has_blank_name(path):
        raise InputError(f"Cannot write {str(path)!r}", why="the name is blank", fix="Name a file with --out")
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(content)
    except FileExistsError as error:
        fix = "Choose another --out, or overwrite it with --force"
        raise InputError(f"'{path}' already exists", fix=fix) from error
    except OSError as error:
        raise InputError(f"Cannot write '{path}'", why=error.strerror or str(error)) from error
