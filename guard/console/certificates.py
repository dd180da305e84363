"""Certificates that are watched, with what audited answers say for and against their guarantees."""

from __future__ import annotations

from dataclasses import dataclass
from math import log10

from fastapi import APIRouter
from markupsafe import Markup
from starlette.responses import Response

from guard.access import Permission
from guard.console import charts
from guard.console.desk import TheVisit
from guard.monitoring import CertificateWatch, WatchedCertificate

router = APIRouter()

#: With fewer audited answers than this the page says that little is known yet.
FEW = 20

#: The scale of evidence begins here; less speaks as clearly for the guarantee.
_LEAST = 0.01


@dataclass(frozen=True, slots=True)
class CertificateCard:
    """One certificate for people.

    Attributes:
        found: itself.
        state: ``holds``, ``watching`` (fewer than `FEW` answers count), ``inputs shifted``, or ``suspended``.
        limit: the evidence at which it is suspended.
        scale: its evidence on a logarithmic bar, whose end is the limit.
    """

    found: WatchedCertificate
    state: str
    limit: float
    scale: Markup

    @classmethod
    def of(cls, found: WatchedCertificate) -> CertificateCard:
        """Return the card of a certificate."""
        limit = 1 / found.false_alarms
        share = log10(max(found.evidence.e_value, _LEAST) / _LEAST) / log10(limit / _LEAST)
        fill = "fi-wrong" if found.suspended_at is not None else "fi-2"
        return cls(found, _state(found), limit, charts.bar(min(share, 1.0), fill))


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
    found = CertificateWatch(visit.desk.store).read()
    cards = [CertificateCard.of(each) for each in found if routes is None or each.route in routes]
    return visit.page("certificates.html.j2", here="insights", cards=cards, few=FEW)
