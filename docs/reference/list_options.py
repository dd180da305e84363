"""List every option of the Python API beside the command line, LangChain and the policy, as docs/reference/options.md.

python docs/reference/list_options.py

An option that one side has and another lacks needs a reason in `REASONS`: without one the list is not made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer.main

import guard
from guard.cli import app
from guard.cli.engine_options import OPTIONS, TO_OPTIONS
from guard.langchain import ChatGuard, GuardMiddleware, guarded
from guard.policy import explain
from guard.policy.document import Document
from guard.review.store import Store

OUT = Path(__file__).with_name("options.md")
_APP: Any = typer.main.get_command(app)
COMMANDS: Mapping[str, Any] = {
    **_APP.commands,
    **{
        f"{group} {name}": each
        for group in ("review", "policy")
        for name, each in _APP.commands[group].commands.items()
    },
}

_CALIBRATE = (guard.calibrate, guard.calibrate_records, guard.calibrate_spans, guard.calibrate_early)

#: Title, command, and the functions that do the same in Python.
TASKS: tuple[tuple[str, str, tuple[Callable[..., Any], ...]], ...] = (
    ("Ask", "ask", (guard.Guard.load, guard.Guard.ask)),
    ("Score", "score", (guard.score_rows,)),
    ("Merge shards", "merge", (guard.merge_shards,)),
    ("Calibrate", "calibrate", _CALIBRATE),
    ("Rebind", "rebind", (guard.rebind,)),
    ("Record", "record", (guard.record,)),
    ("Certify", "certify", (guard.certify,)),
    ("Evaluate", "evaluate", (guard.evaluate,)),
    ("List reviews", "review list", (Store.open, Store.reviews)),
    ("Read a review", "review show", (Store.open, Store.review)),
    ("Approve an answer", "review approve", (Store.open, Store.approve)),
    ("Edit an answer", "review edit", (Store.open, Store.edit)),
    ("Reject an answer", "review reject", (Store.open, Store.reject)),
    ("Export labels", "review export", (Store.open, Store.labelled)),
    ("Explain a decision", "policy explain", (explain,)),
)
#: What guards, beside `Guard`: each option of one, by the columns of the table.
GUARDS: Mapping[str, Callable[..., Any]] = {
    "Guard": guard.Guard.__init__,
    "guarded": guarded,
    "GuardMiddleware": GuardMiddleware.__init__,
}
#: Why one of these lacks an option of another.
NOT_IN_GUARDS = {
    **dict.fromkeys(("engine", "scorer", "force_scorer", "template_options"), "of the `ChatGuard` in it"),
    "certificate": "no certificate covers a chain or an agent",
    "runnable": "it is the model",
    "all_scores": "the `ChatGuard` in it computes all",
    "route": "of each call (`ask`)",
    "scores": "it decides about one answer",
    "output": "the `Outcome`, or the message",
    "return_outcome": "`ask` returns it; an agent has the event `guard_decision`",
}
#: Parameters of commands that have another name in Python.
RENAMED = {
    "again": "results",
    "fallback": "fallbacks",
    "files": "rows",
    "force": "force_scorer",
    "handler": "handlers",
    "question": "prompt",
    "template_option": "template_options",
}
#: Parameters of commands that are part of one parameter in Python.
PART_OF = {**dict.fromkeys(OPTIONS, "engine_options"), "max_tokens": "limits", "timeout": "limits"}
PART_OF |= dict.fromkeys(TO_OPTIONS, "to_engine_options")
PART_OF |= {"wrong_span": "marks", "right_span": "marks"}
PART_OF |= {"store": "url", "score": "p_wrong"}  # of `Store.open`, and of an explanation
#: What the policy says about the same thing.
IN_POLICY = {
    "certificate": "`certificate:`",
    "confidence": "`accept: {confidence}`",
    "fallbacks": "`fallbacks:` (engines), `fallback: {to}`",
    "handlers": "`escalate: {to}`",
    "limits": "`budget:`",
    "risk": "`accept: {max_error_rate}`",
    "route": "`routes:`",
    "sampling": "`retry: {temperature, top_p}`",
}
#: Settings of ChatGuard by the name that `Guard` has for them.
IN_CHAT = {
    "limits": "`max_tokens`, `timeout`, `stop`",
    "response_format": "`with_structured_output`",
    "sampling": "`temperature`, `top_p`, `top_k`, `seed`",
}

#: Why the command line lacks an option of Python.
NOT_ON_COMMAND_LINE = {
    "fallbacks": "a command scores without deciding: the policy is `shadow`",
    "handlers": "a command scores without deciding: the policy is `shadow`",
    "certificate": "a command scores without deciding: the policy is `shadow`",
    "store": "a command scores without deciding: the policy is `shadow`",
    "policy": "a command scores without deciding: the policy is `shadow`",
    "metadata": "attached to a case by a program, which knows the caller",
    "cache_key": "a command answers one caller",
    "response_format": "a command answers with a text",
    "audit_log": "a command scores without deciding: the policy is `shadow`",
    "all_scores": "`ask` and `score` compute all",
    "progress": "the command draws a progress bar",
    "response": "`response` of each row",
    "create": "only the user's own store is created; a store that is named must exist",
    "handler_timeout_s": "ten seconds",
    "offset": "`--limit`, `--status` and `--route` narrow the list",
    "page": "the export reads page by page",
    "timeout_s": "eight seconds",
    "usage": "the first answer; the explanation shows the later rules too",
    "sampling": "a first answer is greedy, as in calibration; the policy's retries sample",
}
#: Why Python lacks an option of the command line.
NOT_IN_PYTHON = {
    "as_json": "Python returns records; `guard.cli` prints them",
    "certificate": "`guard.policy.certificate.certified_policy` gives a policy with its thresholds",
    "early": "`guard.calibrate_early`",
    "out": "Python returns the rows",
    "ray": "`shards` of `guard.run_on_ray`, `guard.score_on_ray`",
    "ray_cpus": "`cpus` of `guard.run_on_ray`, `guard.score_on_ray`",
    "ray_gpus": "`gpus` of `guard.run_on_ray`, `guard.score_on_ray`",
    "spans": "`Store.marked`",
    "tool": "`guard.policy.explain` explains a route; a tool's rules are a plan of their own",
    "yes": "a program asks nobody to confirm",
}
#: Why ChatGuard lacks an option of `Guard`.
NOT_IN_CHAT = {
    "all_scores": "always all",
    "handler_timeout_s": "ten seconds",
    "certificate": "named in the policy (`certificate:`)",
    "prompt": "the argument of `invoke` and `stream`",
    "metadata": "the `metadata` of the run's config",
}
#: Why what a policy sets is no option.
POLICY_ONLY = (
    "Decisions are configured in the policy only, so that one reviewed file says what happens to an answer: {names}."
)


def python_options(functions: tuple[Callable[..., Any], ...]) -> list[str]:
    names = [name for each in functions for name in inspect.signature(each).parameters]
    return list(dict.fromkeys(name for name in names if name not in ("self", "cls")))


def command_options(command: str) -> dict[str, list[str]]:
    """Return the options of a command as they are written, by their names in Python."""
    found: dict[str, list[str]] = {}
    python = python_options(next(functions for _, name, functions in TASKS if name == command))
    for each in COMMANDS[command].params:
        if each.name == "help":
            continue
        name = RENAMED.get(each.name, each.name)
        if name not in python:
            name = PART_OF.get(each.name, name)
        written = max(each.opts, key=len) if each.param_type_name == "option" else each.name.upper()
        found.setdefault(name, []).append(f"`{written}`")
    return found


def rows(command: str, functions: tuple[Callable[..., Any], ...]) -> list[list[str]]:
    """Return one row per option: Python, command line, ChatGuard (of ``ask``), policy.

    Raises:
        KeyError: one side lacks the option, and no reason is given.
    """
    python, shell = python_options(functions), command_options(command)
    chat = set(ChatGuard.model_fields)
    table = []
    for name in [*python, *(each for each in shell if each not in python)]:
        left = f"`{name}`" if name in python else f"({NOT_IN_PYTHON[name]})"
        row = [left, ", ".join(shell[name]) if name in shell else f"({NOT_ON_COMMAND_LINE[name]})"]
        if command == "ask":
            row.append(_in_chat(name, chat) if name in python else "")
        table.append([*row, IN_POLICY.get(name, "")])
    return table


def _in_chat(name: str, chat: set[str]) -> str:
    return f"`{name}`" if name in chat and name not in NOT_IN_CHAT else IN_CHAT.get(name) or f"({NOT_IN_CHAT[name]})"


def page() -> str:
    parts = [
        "# Options of Python, the command line, LangChain and the policy",
        "`python docs/reference/list_options.py` generates this list from the signatures, and a test compares them. "
        "Where an option is missing, the reason is given in parentheses. In Python, `engine_options` is one mapping, "
        f"since engines have different options: {', '.join(f'`{name}`' for name in OPTIONS)}.",
    ]
    for title, command, functions in TASKS:
        names = " and ".join(f"`{_qualified(each)}`" for each in functions)
        head = [names, f"`guard {command}`", *(["`ChatGuard`"] if command == "ask" else []), "policy"]
        lines = [head, ["---"] * len(head), *rows(command, functions)]
        parts += [f"## {title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += ["## Guards", _guards()]
    names = ", ".join(f"`{name}:`" for name in Document.model_fields)
    return "\n\n".join([*parts, "## Policy", POLICY_ONLY.format(names=names)]) + "\n"


def _guards() -> str:
    """Return the table of the options of `Guard`, a guarded chain and an agent's middleware.

    Raises:
        KeyError: one lacks an option, and no reason is given.
    """
    options = {name: python_options((each,)) for name, each in GUARDS.items()}
    lines = [[*(f"`{name}`" for name in GUARDS), "policy"], ["---"] * (len(GUARDS) + 1)]
    for option in dict.fromkeys(option for each in options.values() for option in each):
        cells = [f"`{option}`" if option in each else f"({NOT_IN_GUARDS[option]})" for each in options.values()]
        lines.append([*cells, IN_POLICY.get(option, "")])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _qualified(function: Callable[..., Any]) -> str:
    return function.__qualname__ if "." in function.__qualname__ else f"guard.{function.__name__}"


if __name__ == "__main__":
    OUT.write_text(page(), encoding="utf-8")
