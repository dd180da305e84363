"""``guard certificates``: the certificates that audits watch, with the evidence for and against them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.output import JsonOption, StoreOption, console, plain_table, print_json
from guard.cli.review_tables import fields_table, when
from guard.cli.terminal import say

if TYPE_CHECKING:
    from guard.monitoring.certificate_watch import WatchedCertificate


def certificates(
    name: Annotated[
        str | None, typer.Argument(metavar="ID", help="Beginning of a certificate's digest, to show all its details.")
    ] = None,
    *,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show watched certificates: audited answers, evidence against the guarantee, suspension.

    A certificate is watched from the first time that a policy with an audit section uses it. Reading the evidence
    suspends a certificate whose guarantee it finds broken, as any guard would. The exit code is 0 even then.
    """
    from guard.monitoring.certificate_watch import CertificateWatch
    from guard.review.store import Store

    with Store.open(store, create=store is None) as opened:
        watch = CertificateWatch(opened)
        found = watch.refresh() if name is None else [watch.find(name)]
    if as_json:
        print_json([certificate_json(each) for each in found])
    elif name is not None:
        console().print(_whole(found[0]))
    elif found:
        console().print(certificates_table(found))
    else:
        say("No certificate is watched: a policy needs a certificate and an audit section, as in audit: {rate: 0.02}.")


def certificate_json(found: WatchedCertificate) -> dict[str, Any]:
    """Return a certificate with its evidence as plain data."""
    rate = found.error_rate
    interval = None if rate is None else {"share": rate[0], "low": rate[1], "high": rate[2]}
    return {**asdict(found), "error_rate": interval, "overdue_share": found.overdue_share}


def certificates_table(found: list[WatchedCertificate]) -> Any:
    """Return one line a certificate."""
    columns = (
        "certificate",
        "policy",
        "route",
        "guarantee",
        "audited",
        "wrong",
        "overdue",
        "waiting",
        "evidence",
        "state",
    )
    rows = [
        (
            each.id[:8],
            each.policy,
            each.route or "-",
            f"{each.risk:.4g} at {each.confidence:.4g}",
            str(each.checked),
            str(each.wrong),
            str(each.overdue),
            str(each.waiting),
            f"{each.evidence.e_value:.3g} of {1 / each.false_alarms:.3g}",
            _state(each),
        )
        for each in found
    ]
    return plain_table(columns, rows)


def _state(each: WatchedCertificate) -> str:
    if each.suspended_at is not None:
        return "suspended"
    return "holds, inputs shifted" if each.shifted_at is not None else "holds"


def _whole(each: WatchedCertificate) -> Any:
    overdue = f"; {each.overdue_share:.1%} of what counts is overdue" if each.overdue_share else ""
    return fields_table(
        [
            ("certificate", each.id),
            ("policy", each.policy),
            ("route", each.route),
            ("guarantee", f"at most {each.risk:.4g} wrong, with confidence {each.confidence:.4g}"),
            ("threshold", f"{each.threshold:.4g}"),
            ("watched", f"since {when(each.since)}, {each.rate:.4g} of the accepted answers"),
            (
                "audited",
                f"{each.right} right, {each.wrong} wrong, {each.overdue} overdue, {each.waiting} waiting{overdue}",
            ),
            ("wrong", _interval(each)),
            ("evidence", _evidence(each)),
            ("inputs", _inputs(each)),
            ("suspended", f"{when(each.suspended_at)}: {each.suspended_why}" if each.suspended_at else None),
        ]
    )


def _interval(each: WatchedCertificate) -> str:
    if each.error_rate is None:
        return "not known yet"
    share, low, high = each.error_rate
    return f"{share:.2%} of what was audited (95 % interval {low:.2%} to {high:.2%}, for one look)"


def _evidence(each: WatchedCertificate) -> str:
    return (
        f"{each.evidence.e_value:.4g}, at most {each.evidence.largest:.4g} so far; {1 / each.false_alarms:.4g} "
        f"suspends, which happens to a guarantee that holds with a probability of at most {each.false_alarms:.4g}"
    )


def _inputs(each: WatchedCertificate) -> str:
    if not each.inputs:
        return "no out-of-distribution scores: the scorer gives none, or nothing was asked"
    alarm = f"; alarm on {when(each.shifted_at)}" if each.shifted_at else "; no alarm"
    return f"{each.inputs:,} scored, evidence of less usual ones {each.shift_e_value:.4g}{alarm}"
