"""``guard replay``: what another policy would have made of the calls of the last days."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guard.cli.intervals import minutes_a_day, number_interval, percent_interval
from guard.cli.output import CertificateOption, JsonOption, StoreOption, console, plain_table, print_json
from guard.cli.policy import with_certificate
from guard.cli.review_options import RouteOption
from guard.cli.terminal import say

if TYPE_CHECKING:
    from guard.policy.bounds import Interval
    from guard.replay.comparison import PolicyComparison
    from guard.replay.figures import ExpectedErrors


def replay(
    *,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="Policy to try: a file, or the name of a built-in policy.")
    ],
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Start of the period: 7d, 12h, or an ISO 8601 time with offset.")
    ] = "7d",
    route: RouteOption = None,
    certificate: CertificateOption = None,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="SVG file for a picture of the comparison.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decide recorded calls again by another policy: coverage, people's work and expected errors beside the present.

    Reads the decisions in the store's audit log (guard ask --audit-log, guard serve --audit-log) and the verdicts
    beside it. Nothing is generated, and nothing changes.
    """
    from guard.files.write_whole import write_whole
    from guard.policy.policy import load_policy
    from guard.replay.comparison import replay as run
    from guard.review.store import Store

    chosen = with_certificate(load_policy(policy), certificate)
    with Store.open(store, create=store is None) as opened:
        found = run(opened, chosen, since=since, route=route)
    if svg is not None:
        from guard.replay.picture import picture

        write_whole(svg, picture(found))
    if as_json:
        print_json(asdict(found))
        return
    console().print(plain_table(("", "now", "proposed"), _rows(found)))
    for line in (*_notes(found), *_changes(found)):
        say(line)


def _rows(found: PolicyComparison) -> list[tuple[str, str, str]]:
    both = (found.present, found.proposed)
    rows = [
        ("policy", *(each.name for each in both)),
        ("calls", *(f"{each.calls:,}" for each in both)),
        ("accepted", *(percent_interval(each.coverage) for each in both)),
        ("to people, a day", *(number_interval(each.escalations_a_day) for each in both)),
        ("reviews, a day", *(f"{each.reviews_a_day:,.1f}" for each in both)),
        ("reviewers' minutes, a day", *(minutes_a_day(each.minutes_a_day) for each in both)),
        ("fixed text", *(f"{each.endings['text']:,}" for each in both)),
        ("abstained", *(f"{each.endings['abstain']:,}" for each in both)),
        ("would ask again", *(f"{each.endings['unknown']:,}" for each in both)),
        ("wrong among accepted", *(_wrong(each.errors) for each in both)),
        ("the same, by scores", *(_or_dash(each.errors.by_scores) for each in both)),
    ]
    return [(name, now, proposed) for name, now, proposed in rows]


def _notes(found: PolicyComparison) -> list[str]:
    moved = [
        f"{count:,} that ended in {before} would end in {after}"
        for before, row in sorted(found.changed.items())
        for after, count in sorted(row.items())
    ]
    notes = [f"Since {found.since[:16].replace('T', ' ')} UTC: {'; '.join(moved) or 'no call would end differently'}."]
    if found.proposed.endings["unknown"]:
        notes.append(
            "Calls that would ask again, or go on where an answer was stopped early, have no recorded answer: "
            "they widen the intervals."
        )
    if found.proposed.errors.by_verdicts is None:
        notes.append("Wrong answers are expected from the scores alone: too few have verdicts (see audit in policies).")
    return notes


def _changes(found: PolicyComparison) -> list[str]:
    if found.lines is None:
        return ["The audit log does not have the text of the present policy, which would be compared here."]
    signs = {"=": " ", ".": " ..."}
    changed = [f"{signs.get(line.sign, line.sign)} {line.text}" for line in found.lines]
    return ["Change of the policy:", *changed] if changed else []


def _wrong(errors: ExpectedErrors) -> str:
    return "-" if errors.by_verdicts is None else f"{number_interval(errors.by_verdicts)}, {errors.verdicts} verdicts"


def _or_dash(interval: Interval | None) -> str:
    return "-" if interval is None else number_interval(interval)
