"""For leads: what another policy would have made of the recorded calls, beside what was decided. Nothing changes.

A policy and its certificates come as text; no file that they name is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from fastapi import APIRouter
from markupsafe import Markup
from starlette.responses import Response

from guard.access import Permission
from guard.console import charts, times
from guard.console.desk import PageError, TheForm, TheVisit, Visit
from guard.errors import InputError
from guard.policy.bounds import Interval
from guard.policy.certificate import certified_without_model, parse_certificates
from guard.policy.guarantee import guarantees
from guard.policy.policy import Policy, parse_policy
from guard.policy.policy_files import builtin_policies
from guard.policy.yaml_source import InvalidPolicyError, read_text
from guard.replay.comparison import PolicyComparison, replay
from guard.replay.deciding import ENDINGS, CallEnding
from guard.replay.figures import PolicyFigures, scaled
from guard.replay.picture import WORDS
from guard.replay.recorded import read_latest_document

router = APIRouter()

#: Characters of a policy, entries of the audit log that are read, and problems of a policy that are shown, at most.
LONGEST, MOST, _PROBLEMS = 100_000, 20_000, 20

#: Name of the policy that decides now, among those that one can begin with.
_PRESENT = "present"

_DAYS = {1: "24 hours", 7: "7 days", 28: "28 days"}

#: Colour of each ending in charts.
_FILLS: dict[CallEnding, str] = {
    "accept": "f-accept",
    "text": "f-fallback",
    "escalate": "f-escalate",
    "abstain": "f-abstain",
    "unknown": "f-retry",
}


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure of both policies, as text.

    Attributes:
        name: what it is.
        now, proposed: the figure and what stands under it, such as its interval.
        difference: in words; empty where one of them is not known.
        tone: ``right`` or ``wrong`` for a change for the better or the worse; empty for neither.
    """

    name: str
    now: tuple[str, str]
    proposed: tuple[str, str]
    difference: str
    tone: str = ""


@router.get("/replay")
def show_form(visit: TheVisit, start: str = "") -> Response:
    """Return the empty form, or one that begins with the present policy or a built-in one."""
    known = builtin_policies()
    if start == _PRESENT:
        return _page(visit, {"policy": _present_document(visit) or ""})
    if start and start not in known:
        raise PageError(404, "There is no such built-in policy", f"Known: {', '.join(known)}.")
    return _page(visit, {"policy": read_text(known[start])} if start else {})


@router.post("/replay")
def try_policy(visit: TheVisit, form: TheForm) -> Response:
    """Decide the recorded calls again by the policy of the form, and show both beside each other."""
    route = form.get("route") or None
    visit.require(Permission.TRY_POLICIES, route)
    try:
        policy = _read_policy(form)
        found = replay(visit.desk.store, policy, since=f"{_days(form)}d", route=route, newest=MOST)
    except InputError as error:
        return _page(visit, form, problems=_problems(error), status=422)
    return _page(visit, form, found=found)


def _present_document(visit: Visit) -> str | None:
    return read_latest_document(visit.desk.store.audit_log())


def _days(form: Mapping[str, str]) -> int:
    chosen = next((days for days in _DAYS if str(days) == form.get("days", "7")), None)
    if chosen is None:
        raise InputError("There is no such range", fix=f"Known: {', '.join(map(str, _DAYS))} days")
    return chosen


def _read_policy(form: Mapping[str, str]) -> Policy:
    """Return the pasted policy, with the thresholds of the pasted certificates."""
    text, pasted = form.get("policy", ""), form.get("certificate", "").strip()
    if len(text) > LONGEST:
        raise InputError("The policy is too long", why=f"it may have at most {LONGEST:,} characters here")
    policy = parse_policy(text, where="policy")
    if not guarantees(policy):
        return policy
    if not pasted:
        raise InputError(
            f"The policy '{policy.name}' guarantees an error rate, and its threshold is in its certificate",
            fix="Paste the certificate file too",
        )
    return certified_without_model(policy, parse_certificates(pasted.encode(), where="the pasted certificate"))


def _problems(error: InputError) -> list[str]:
    if isinstance(error, InvalidPolicyError):
        return [str(problem) for problem in islice(error.problems, _PROBLEMS)]
    return [str(error)]


def _page(
    visit: Visit,
    typed: Mapping[str, str],
    *,
    found: PolicyComparison | None = None,
    problems: list[str] | None = None,
    status: int = 200,
) -> Response:
    routes = visit.routes(Permission.TRY_POLICIES)
    return visit.page(
        "replay.html.j2",
        status=status,
        here="insights",
        typed=typed,
        problems=problems or [],
        longest=LONGEST,
        starts=_starts(visit),
        ranges=_DAYS,
        everywhere=routes is None,
        routes=visit.desk.store.routes(None) if routes is None else sorted(routes),
        found=found,
        **({} if found is None else _shown(found)),
    )


def _starts(visit: Visit) -> dict[str, str]:
    """Return the policies that one can begin with, by name, in words."""
    present = {} if _present_document(visit) is None else {_PRESENT: "the present policy"}
    return present | {name: name for name in sorted(builtin_policies())}


# -- what is shown -----------------------------------------------------------------------------


def _shown(found: PolicyComparison) -> dict[str, object]:
    both = (("Now", found.present), ("Proposed", found.proposed))
    shown = [each for each in ENDINGS if any(figures.endings[each] for _, figures in both)]
    return {
        "measures": measures(found),
        "bars": [(name, figures, _bar(figures)) for name, figures in both],
        "trade_off": _trade_off(found),
        "endings": [(WORDS[each], _FILLS[each]) for each in shown],
        "flow": [(WORDS[each], _row(found, each, shown)) for each in shown],
    }


def measures(found: PolicyComparison) -> list[ComparedFigure]:
    """Return the rows of the table of both policies."""
    now, proposed, days = found.present, found.proposed, found.days
    share = [_share_wrong(each) for each in (now, proposed)]
    given = [None if best is None else scaled(best, 1 / days) for best in map(best_errors, (now, proposed))]
    rows = [
        _measure("Accepted, share of all", now.coverage, proposed.coverage, share=True),
        _measure("Wrong among the accepted, expected", *share, share=True, less_is_right=True),
        _measure("Wrong answers given, a day, expected", *given, less_is_right=True),
        _measure("Cases to people, a day", now.escalations_a_day, proposed.escalations_a_day),
        _measure("Opinions of people, a day", _exactly(now.reviews_a_day), _exactly(proposed.reviews_a_day)),
    ]
    return [*rows, ComparedFigure("Reviewers' time, a day", _time(now), _time(proposed), "")]


def _exactly(value: float) -> Interval:
    return value, value, value


def _measure(
    name: str,
    now: Interval | None,
    proposed: Interval | None,
    *,
    share: bool = False,
    less_is_right: bool = False,
) -> ComparedFigure:
    shown = [_figure(each, share=share) for each in (now, proposed)]
    if now is None or proposed is None:
        return ComparedFigure(name, shown[0], shown[1], "")
    change = proposed[0] - now[0]
    words = f"{100 * change:+.1f} points" if share else f"{change:+,.1f}"
    tone = "" if not less_is_right or not change else "wrong" if change > 0 else "right"
    return ComparedFigure(name, shown[0], shown[1], words.replace("-", "\N{MINUS SIGN}"), tone)


def _figure(interval: Interval | None, *, share: bool) -> tuple[str, str]:
    if interval is None:
        return "-", "not known"
    middle, low, high = (f"{100 * each:.1f}" if share else f"{each:,.1f}" for each in interval)
    return f"{middle} %" if share else middle, "" if low == high else f"{low} to {high}"


def _time(figures: PolicyFigures) -> tuple[str, str]:
    if figures.minutes_a_day is None or not figures.reviews_a_day:
        return ("-", "not known yet") if figures.minutes_a_day is None else ("0 min", "")
    each = times.duration(60 * figures.minutes_a_day / figures.reviews_a_day)
    return times.duration(60 * figures.minutes_a_day), f"at {each} an opinion"


def best_errors(figures: PolicyFigures) -> Interval | None:
    """Return the expected number of wrong answers, by verdicts where they suffice; None where nothing tells."""
    return figures.errors.by_verdicts or figures.errors.by_scores


def _share_wrong(figures: PolicyFigures) -> Interval | None:
    best, accepted = best_errors(figures), figures.endings["accept"]
    if best is None or not accepted:
        return None
    middle, low, high = scaled(best, 1 / accepted)
    return middle, low, min(high, 1.0)


def _bar(figures: PolicyFigures) -> Markup:
    parts = [(_FILLS[each], count / figures.calls) for each, count in figures.endings.items()]
    said = (f"{WORDS[each]} {times.share(count, figures.calls)}" for each, count in figures.endings.items() if count)
    return charts.shares(parts, ", ".join(said))


def _trade_off(found: PolicyComparison) -> Markup | None:
    """Return the picture of share accepted and share wrong; None where one of the shares is not known."""
    marks = (("now", "pt-2", found.present), ("proposed", "pt", found.proposed))
    known = [
        charts.PlottedPoint(name, fill, figures.coverage, wrong)
        for name, fill, figures in marks
        if (wrong := _share_wrong(figures)) is not None
    ]
    if not known:
        return None
    words = (f"{mark.name} {100 * mark.x[0]:.1f} % accepted at {100 * mark.y[0]:.1f} % wrong" for mark in known)
    said = charts.Said("trade-off", "Share wrong among the accepted, by share accepted", f"{'; '.join(words)}.")
    return charts.trade_off(known, said)


def _row(found: PolicyComparison, before: CallEnding, shown: list[CallEnding]) -> list[tuple[int, str]]:
    """Return how calls that ended so would end, each with its class: most are where they were."""
    moved = found.changed.get(before, {})
    counts = {**moved, before: found.present.endings[before] - sum(moved.values())}
    return [(counts.get(each, 0), "" if each == before else "chg" if counts.get(each) else "z") for each in shown]
