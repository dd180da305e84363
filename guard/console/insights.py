"""The lead's page: what came and what became of it, by day, route and reviewer."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter
from markupsafe import Markup
from starlette.responses import Response

from guard.access import Permission
from guard.console import charts, times
from guard.console.desk import PageError, TheVisit
from guard.review.insights import BINS, Insights, Tally
from guard.review.stats import FEWEST_SHARED

router = APIRouter()

_DAYS = {1: "Today", 7: "7 days", 28: "28 days"}

#: A status, and the colour that it has in charts.
_KINDS = (("approved", "f-accept"), ("edited", "f-retry"), ("rejected", "f-escalate"), ("pending", "f-abstain"))


@router.get("/insights")
def show_insights(visit: TheVisit, days: int = 28, route: str = "") -> Response:
    """Return the figures of the routes that the visitor may see."""
    routes = visit.routes(Permission.SEE_INSIGHTS)
    if days not in _DAYS:
        raise PageError(404, "There is no such range", f"Known: {', '.join(map(str, _DAYS))} days.")
    found = visit.desk.store.insights(days=days, routes=routes, route=route or None)
    return visit.page(
        "insights.html.j2",
        here="insights",
        found=found,
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
        wait=None if found.wait_s is None else times.duration(found.wait_s),
    )


@router.get("/insights/agreement")
def show_agreement(visit: TheVisit) -> Response:
    """Return how far reviewers agree, for whoever sees all routes: the figures are not kept by route."""
    if visit.routes(Permission.SEE_INSIGHTS) is not None:
        raise PageError(403, "Your role does not reach this page", "Agreement is counted over all routes.")
    found = visit.desk.store.stats()
    return visit.page("agreement.html.j2", here="insights", found=found, fewest=FEWEST_SHARED, names=visit.desk.names())


def _by_day(found: Insights) -> Markup:
    series = [(name, fill, [getattr(tally, name) for tally in found.by_day.values()]) for name, fill in _KINDS]
    now = datetime.now(UTC)
    labels = [times.date(f"{day}T00:00:00+00:00", now) for day in found.by_day]
    total, finding = found.total, "No case came."
    if total.all:
        busiest = max(found.by_day, key=lambda day: found.by_day[day].all)
        finding = f"{total.all} cases in {len(labels)} days, most on {busiest}: {found.by_day[busiest].all}."
    return charts.stacked(labels, series, charts.Said("by-day", "Cases by the day they came, and verdict", finding))


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
