"""Settings: who is notified of what, secrets, and the messages that nobody took."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from fastapi import APIRouter
from starlette.responses import Response

from guard.access import Permission
from guard.console.desk import TheForm, TheVisit, Visit
from guard.errors import InputError, MissingExtraError
from guard.review.endpoints import Endpoint, EndpointKind, Endpoints
from guard.review.outbox import EVENTS, Notification

router = APIRouter()

#: Kinds that can be added here; a function of Python belongs to the worker that knows it.
_KINDS = {"webhook": "Webhook, signed", "slack": "Slack-compatible webhook", "email": "E-mail"}

#: Newest messages of an endpoint that its state is read from, and messages in a list.
_LAST, _LISTED = 20, 50


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """One endpoint in the list.

    Attributes:
        endpoint: itself.
        state: ``works``, ``tries again``, ``dead letters``, ``off``, or ``nothing sent``.
        why: what went wrong last, or empty.
        delivered_at: when a message was delivered last, among the newest; None for never.
    """

    endpoint: Endpoint
    state: str
    why: str
    delivered_at: str | None


@router.get("/settings/webhooks")
def show_webhooks(visit: TheVisit, sent: int | None = None) -> Response:
    """Return endpoints, dead letters and the newest messages; `sent` are messages that were just made due again."""
    return _webhooks_page(visit, sent=sent)


@router.post("/settings/webhooks")
def add_endpoint(visit: TheVisit, form: TheForm) -> Response:
    """Add an endpoint, and show its secret, once."""
    visit.require(Permission.ADMINISTER)
    events = [name for name in EVENTS if form.get(f"event.{name}")]
    kind, name = form.get("kind", ""), form.get("name", "").strip()

    def add() -> Response:
        if kind not in _KINDS:
            raise InputError(f"Endpoints of kind '{kind[:40]}' are not added here", fix=f"Known: {', '.join(_KINDS)}")
        secret = Endpoints(visit.desk.store).add(
            name,
            form.get("target", "").strip(),
            kind=cast(EndpointKind, kind),
            events=events,
            with_text="with_text" in form,
            allow_private="allow_private" in form,
        )
        return _webhooks_page(visit, secret=secret or "", secret_of=name)

    return _tried(visit, add, typed=form)


@router.post("/settings/webhooks/{change}")
def change_endpoint(visit: TheVisit, form: TheForm, change: str) -> Response:
    """Switch an endpoint off or on, give it a new secret, or send its dead letters again."""
    visit.require(Permission.ADMINISTER)
    endpoints, name = Endpoints(visit.desk.store), form.get("name", "")

    def make() -> Response:
        match change:
            case "off" | "on":
                endpoints.switch(name, on=change == "on")
            case "rotate":
                return _webhooks_page(visit, secret=endpoints.rotate(name), secret_of=name)
            case "replay":
                return _sent(visit, endpoints.replay(endpoint=name))
            case _:
                raise InputError(f"An endpoint cannot be changed by '{change[:40]}'")
        return visit.go("/settings/webhooks")

    return _tried(visit, make)


@router.post("/settings/messages/replay")
def replay_messages(visit: TheVisit, form: TheForm) -> Response:
    """Send one message again, or all dead letters."""
    visit.require(Permission.ADMINISTER)
    names = [form["message"]] if form.get("message") else []
    return _tried(visit, lambda: _sent(visit, Endpoints(visit.desk.store).replay(*names)))


def _sent(visit: Visit, count: int) -> Response:
    return visit.go("/settings/webhooks", sent=str(count))


def _tried(visit: Visit, make: Callable[[], Response], *, typed: dict[str, str] | None = None) -> Response:
    try:
        return make()
    except (InputError, MissingExtraError) as error:
        return _webhooks_page(visit, error=str(error), typed=typed, status=422)


def _webhooks_page(
    visit: Visit,
    *,
    secret: str = "",
    secret_of: str = "",
    sent: int | None = None,
    error: str = "",
    typed: dict[str, str] | None = None,
    status: int = 200,
) -> Response:
    visit.require(Permission.ADMINISTER)
    endpoints = Endpoints(visit.desk.store)
    return visit.page(
        "webhooks.html.j2",
        status=status,
        here="settings",
        tab="webhooks",
        rows=[_row(endpoints, each) for each in endpoints.all()],
        dead=endpoints.messages(dead=True, limit=_LISTED),
        newest=endpoints.messages(limit=_LAST),
        events=EVENTS,
        kinds=_KINDS,
        secret=secret,
        secret_of=secret_of,
        sent=sent,
        error=error,
        typed=typed or {},
        state=delivery_state,
    )


def _row(endpoints: Endpoints, endpoint: Endpoint) -> EndpointRow:
    last = endpoints.messages(endpoint=endpoint.name, limit=_LAST)
    delivered = max((each.delivered_at for each in last if each.delivered_at), default=None)
    failed = next((each for each in last if each.last_error and not each.delivered_at), None)
    if endpoint.off_at is not None:
        return EndpointRow(endpoint, "off", endpoint.off_reason or "", delivered)
    if failed is None:
        return EndpointRow(endpoint, "works" if delivered else "nothing sent", "", delivered)
    state = "dead letters" if failed.dead_at else "tries again"
    return EndpointRow(endpoint, state, failed.last_error or "", delivered)


def delivery_state(message: Notification) -> str:
    """Return what became of a message, in a word or two."""
    ends = {"delivered": message.delivered_at, "dead": message.dead_at, "cancelled": message.cancelled_at}
    ended = next((name for name, at in ends.items() if at is not None), None)
    return ended or ("tries again" if message.attempts else "waits")
