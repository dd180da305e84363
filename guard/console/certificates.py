"""Certificates that are watched, with what audited answers say for and against their guarantees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import APIRouter
from markupsafe import Markup
from starlette.responses import Response

from guard.access import Permission
from guard.console import charts
from guard.console.desk import TheVisit
from guard.monitoring import CertificateWatch, WatchedCertificate
from guard.monitoring.risk_test import evidence_path

router = APIRouter()

#: With fewer audited answers than this the page says that little is known yet.
FEW = 20


@dataclass(frozen=True, slots=True)
class CertificateCard:
    """One certificate for people.

    Attributes:
        found: itself.
        state: ``holds``, ``watching`` (fewer than `FEW` answers count), ``inputs shifted``, or ``suspended``.
        limit: the evidence at which it is suspended.
        picture: its evidence after each audited answer; None before the first.
    """

    found: WatchedCertificate
    state: str
    limit: float
    picture: Markup | None

    @classmethod
    def of(cls, found: WatchedCertificate, labels: Sequence[bool]) -> CertificateCard:
        """Return the card of a certificate.

        Args:
            found: the certificate.
            labels: whether each audited answer counts as wrong, in order.
        """
        return cls(found, _state(found), 1 / found.false_alarms, _picture(found, labels) if labels else None)


def _picture(found: WatchedCertificate, labels: Sequence[bool]) -> Markup:
    path = [*evidence_path(labels, risk=found.risk, false_alarms=found.false_alarms)]
    limit, where = 1 / found.false_alarms, "has reached" if found.evidence.broken else "is below"
    finding = (
        f"Evidence {path[-1]:.3g} after {len(path)} audited answers, of which {sum(labels[: len(path)])} are wrong or "
        f"overdue, {where} the limit of {limit:.3g}."
    )
    said = charts.Said(f"evidence-{found.id[:12]}", "Evidence against the guarantee, by audited answers", finding)
    wrong = [place for place, is_wrong in enumerate(labels[: len(path)]) if is_wrong]
    return charts.evidence(path, wrong, limit, said)


def _state(found: WatchedCertificate) -> str:
    if found.suspended_at is not None:
        return "suspended"
    if found.shifted_at is not None:
        return "inputs shifted"
    return "holds" if found.checked >= FEW else "watching"


@router.get("/certificates")
def show_certificates(visit: TheVisit) -> Response:
    """Return the certificates of the routes that the visitor may see. Looking suspends none: guards do that."""
    routes = visit.routes(Permission.SEE_INSIGHTS)
    watch = CertificateWatch(visit.desk.store)
    found = [each for each in watch.read() if routes is None or each.route in routes]
    cards = [CertificateCard.of(each, watch.labels(each.id)) for each in found]
    return visit.page("certificates.html.j2", here="insights", cards=cards, few=FEW)
