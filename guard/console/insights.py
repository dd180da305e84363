"""The lead's page: incoming cases and their verdicts, by day, route and reviewer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import APIRouter
from markupsafe import Markup
from starlette.responses import Response

from guard.access import Permission
from guard.console import charts, times
from guard.console.desk import PageError, TheVisit
from guard.review.decision_figures import ACTIONS, UNUSUAL, DecisionFigures, decision_figures
from guard.review.insights import BINS, Insights, Tally
from guard.review.stats import FEWEST_SHARED

router = APIRouter()

_DAYS = {1: "Today", 7: "7 days", 28: "28 days"}

#: An action, and the colour that it has in charts.
_ACTIONS = tuple((name, f"f-{name}") for name in ACTIONS)

#: Colour of each status in charts.
_KINDS = (("approved", "f-accept"), ("edited", "f-retry"), ("rejected", "f-escalate"), ("pending", "f-abstain"))


@router.get("/insights")
def show_insights(visit: TheVisit, days: int = 28, route: str = "") -> Response:
    """Return the page of figures for the routes that the visitor may see."""
    routes = visit.routes(Permission.SEE_INSIGHTS)
    if days not in _DAYS:
        raise PageError(404, "There is no such range", f"Known: {', '.join(map(str, _DAYS))} days.")
    found = visit.desk.store.insights(days=days, routes=routes, route=route or None)
    key = (days, routes, route)
    decided = visit.desk.decided.get(
        key, lambda: decision_figures(visit.desk.store, days=days, routes=routes, route=route or None)
    )
    return visit.page(
        "insights.html.j2",
        here="insights",
        found=found,
        decided=decided if decided.total else None,
        actions=_ACTIONS,
        charts=draw_charts(decided) if decided.total else None,
        unusual=UNUSUAL,
        days=days,
        ranges=_DAYS,
        route=route,
        routes=visit.desk.store.routes(routes),
        names=visit.desk.names(),
        by_day=_by_day(found),
        histogram=_histogram(found),
        kinds=_KINDS,
        shares=_shares,
        share=times.share,
        all_routes=routes is None,
        tries=visit.allows(Permission.TRY_POLICIES),
        wait=None if found.wait_s is None else times.duration(found.wait_s),
    )


@router.get("/insights/agreement")
def show_agreement(visit: TheVisit) -> Response:
    """Return the page of agreement between reviewers, for visitors who may see all routes."""
    if visit.routes(Permission.SEE_INSIGHTS) is not None:
        raise PageError(403, "Your role does not allow this page", "Agreement is computed over all routes.")
    found = visit.desk.store.stats()
    return visit.page("agreement.html.j2", here="insights", found=found, fewest=FEWEST_SHARED, names=visit.desk.names())


@dataclass(frozen=True, slots=True)
class DecisionCharts:
    """Pictures of all answers.

    Attributes:
        by_day: actions.
        histogram: scores.
        drift: the mean score of each day, and the share of unusual inputs.
    """

    by_day: Markup
    histogram: Markup
    drift: Markup


def draw_charts(found: DecisionFigures) -> DecisionCharts:
    """Return the pictures of all decisions."""
    now = datetime.now(UTC)
    labels = [times.date(f"{day}T00:00:00+00:00", now) for day in found.by_day]
    series = [(name, fill, [tally.get(name, 0) for tally in found.by_day.values()]) for name, fill in _ACTIONS]
    accepted = times.share(sum(tally.get("accept", 0) for tally in found.by_day.values()), found.total)
    said = charts.Said("actions", "Answers by day and action", f"{found.total} answers, {accepted} accepted.")
    most = max(range(BINS), key=lambda place: found.bins[place])
    scored = charts.Said(
        "scores", "Answers by p(wrong)", f"Most are between {most / BINS:.2f} and {(most + 1) / BINS:.2f}."
    )
    return DecisionCharts(
        charts.stacked(labels, series, said), charts.histogram(found.bins, scored), _drift(found, labels)
    )


def _drift(found: DecisionFigures, labels: list[str]) -> Markup:
    days = found.days.values()
    means = [day.p_wrong for day in days]
    shares = [day.unusual / day.placed if day.placed else None for day in days]
    known = [mean for mean in means if mean is not None]
    finding = f"The mean p(wrong) of a day is between {min(known):.2f} and {max(known):.2f}." if known else "No scores."
    said = charts.Said("drift", "Mean p(wrong) and share of unusual inputs by day", finding)
    return charts.lines(labels, [("ln-2", means), ("ln-doubt", shares)], said)


def _by_day(found: Insights) -> Markup:
    series = [(name, fill, [getattr(tally, name) for tally in found.by_day.values()]) for name, fill in _KINDS]
    now = datetime.now(UTC)
    labels = [times.date(f"{day}T00:00:00+00:00", now) for day in found.by_day]
    total, finding = found.total, "There were no cases."
    if total.all:
        busiest = max(found.by_day, key=lambda day: found.by_day[day].all)
        finding = f"{total.all} cases in {len(labels)} days, most on {busiest}: {found.by_day[busiest].all}."
    return charts.stacked(labels, series, charts.Said("by-day", "Cases by day and verdict", finding))


def _histogram(found: Insights) -> Markup:
    finding = "No case has a score."
    if sum(found.bins):
        most = max(range(BINS), key=lambda place: found.bins[place])
        finding = f"Most cases, {found.bins[most]}, are between {most / BINS:.2f} and {(most + 1) / BINS:.2f}."
    return charts.histogram(found.bins, charts.Said("p-wrong", "Cases by p(wrong)", finding))


def _shares(tally: Tally) -> Markup:
    parts = [(fill, getattr(tally, name) / tally.all) for name, fill in _KINDS if tally.all]
    label = ", ".join(f"{name} {times.share(getattr(tally, name), tally.all)}" for name, _ in _KINDS)
    return charts.shares(parts, label)
