"""Sends one message: signed by Standard Webhooks, to a checked address, without redirects.

The signature is written here, because it is one HMAC; a test verifies it with the library standardwebhooks.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import os
import smtplib
import socket
import ssl
from collections.abc import Sequence
from email.message import EmailMessage
from functools import cache
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from guard.errors import missing_extra

#: Time limit of an attempt in seconds, from the DNS lookup to the response.
TIMEOUT_S = 15.0

#: Environment variable with the mail server: ``smtps://USER:PASSWORD@HOST:465?from=guard@example.org``.
SMTP = "GUARD_SMTP"

#: Status of a receiver that wants no further messages.
_GONE = 410

#: Hosts of a local mail server, which needs no TLS.
_HERE = ("localhost", "127.0.0.1", "::1")


class SendError(Exception):
    """An attempt failed.

    Attributes:
        gone: whether the receiver is permanently gone.
    """

    def __init__(self, what: str, *, gone: bool = False) -> None:
        super().__init__(what)
        self.gone = gone


def signed_headers(message_id: str, body: str, secrets: Sequence[str], at: int) -> dict[str, str]:
    """Return the headers of Standard Webhooks, with one signature for each secret.

    Args:
        message_id: the same on every attempt.
        body: the body of the request.
        secrets: secrets of the form ``whsec_`` and base64.
        at: seconds since 1970.

    Examples:
        >>> signed_headers("msg_1", "{}", ["whsec_c2VjcmV0"], 0)["webhook-signature"][:12]
        'v1,sti6m5wfz'
    """
    signatures = [
        hmac.digest(
            base64.b64decode(secret.removeprefix("whsec_")), f"{message_id}.{at}.{body}".encode(), hashlib.sha256
        )
        for secret in secrets
    ]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in signatures),
        "content-type": "application/json",
        "user-agent": "guard",
    }


async def post(target: str, body: str, headers: dict[str, str], *, allow_private: bool) -> None:
    """Send one request to the checked address.

    Raises:
        SendError: the receiver did not respond with 2xx within `TIMEOUT_S` seconds.
        MissingExtraError: httpx is not installed.
    """
    try:
        async with asyncio.timeout(TIMEOUT_S):
            status = await _post(target, body, headers, allow_private=allow_private)
    except TimeoutError:
        raise SendError(f"no answer within {TIMEOUT_S:g} s") from None
    if not 200 <= status < 300:
        raise SendError(f"HTTP {status}", gone=status == _GONE)


async def _post(target: str, body: str, headers: dict[str, str], *, allow_private: bool) -> int:
    try:
        import httpx
    except ImportError:
        raise missing_extra("httpx", "webhooks") from None
    parts = urlsplit(target)
    address = await asyncio.to_thread(checked_address, parts, allow_private=allow_private)
    host = str(parts.hostname)
    # The name is resolved once: a second lookup could return an unchecked address.
    pinned = httpx.URL(target).copy_with(host=address)
    headers = {**headers, "host": _host_header(parts)}
    options: dict[str, Any] = {"trust_env": False, "follow_redirects": False, "timeout": TIMEOUT_S}
    async with httpx.AsyncClient(verify=_trusted(), **options) as client:
        request = client.build_request(
            "POST", pinned, content=body.encode(), headers=headers, extensions={"sni_hostname": host}
        )
        try:
            response = await client.send(request, stream=True)  # the body is not read
            await response.aclose()
        except httpx.HTTPError as error:
            raise SendError(f"{type(error).__name__}: {error}"[:200]) from None
    return response.status_code


@cache
def _trusted() -> ssl.SSLContext:
    """Return the certificates of the system, read once: reading is slow."""
    return ssl.create_default_context()


def _host_header(parts: SplitResult) -> str:
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else str(parts.hostname)
    return f"{host}:{parts.port}" if parts.port else host


def checked_address(parts: SplitResult, *, allow_private: bool) -> str:
    """Return the address to connect to.

    Raises:
        SendError: the name has no address, or a private one that the endpoint does not allow.
    """
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise SendError(f"'{parts.hostname}' has no address: {error}"[:200]) from None
    addresses = [str(entry[4][0]).partition("%")[0] for entry in found]
    private = [each for each in addresses if not _is_public(each)]
    if private and not allow_private:
        raise SendError(f"'{parts.hostname}' is {private[0]}, which is not a public address; see --allow-private")
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_global and not (mapped or parsed).is_multicast


# -- for people --------------------------------------------------------------------------------


def sentence(body: str) -> str:
    """Return a message as one sentence, for chats and mails.

    Examples:
        >>> sentence('{"type": "case.late", "data": {"case": "06wb38", "route": "medical", "due": null}}')
        'guard: case 06wb38 is late (medical)'
        >>> sentence('{"type": "certificate.suspended", "data": {"certificate": "c0ffee00", "policy": "desk"}}')
        "guard: certificate c0ffee00 of the policy 'desk' is suspended"
    """
    event = json.loads(body)
    data: dict[str, Any] = event["data"]
    if "certificate" in data:
        return _about_certificate(event["type"], data)
    if "root" in data:
        return f"guard: checkpoint of the audit log, {data['size']} entries, root {data['root']}"
    words = {"case.created": "waits for a person", "case.late": "is late"}
    what = f"is {data['verdict']}" if event["type"] == "case.decided" else words.get(event["type"])
    route = f" ({data['route']})" if data.get("route") else ""
    due = (
        f", due {data['due'][:16].replace('T', ' ')} UTC" if data.get("due") and event["type"] == "case.created" else ""
    )
    return f"guard: case {data['case']} {what or 'is ' + event['type'].partition('.')[2]}{route}{due}"


def _about_certificate(event: str, data: dict[str, Any]) -> str:
    what = "is suspended" if event == "certificate.suspended" else "has less usual inputs than before"
    route = f" ({data['route']})" if data.get("route") else ""
    return f"guard: certificate {data['certificate'][:8]} of the policy '{data['policy']}' {what}{route}"


def mail(to: str, body: str, message_id: str) -> None:
    """Send a mail by the server in ``GUARD_SMTP``, encrypted unless the server is this machine.

    Raises:
        SendError: the server did not accept the mail.
    """
    server = urlsplit(os.environ.get(SMTP, ""))
    if server.scheme not in ("smtp", "smtps") or not server.hostname:
        raise SendError(f"{SMTP} does not name a mail server, as smtps://USER:PASSWORD@HOST:465?from=ADDRESS")
    sender = (
        dict(part.partition("=")[::2] for part in server.query.split("&")).get("from") or f"guard@{server.hostname}"
    )
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = sender, to, sentence(body)
    letter["Message-ID"] = f"<{message_id}@guard>"
    letter.set_content(json.dumps(json.loads(body), indent=2, ensure_ascii=False))
    try:
        _send_mail(server, letter)
    except (OSError, smtplib.SMTPException) as error:
        raise SendError(f"{type(error).__name__}: {error}"[:200]) from None


def _send_mail(server: SplitResult, letter: EmailMessage) -> None:
    host, context = str(server.hostname), _trusted()
    if server.scheme == "smtps":
        client: smtplib.SMTP = smtplib.SMTP_SSL(host, server.port or 465, timeout=TIMEOUT_S, context=context)
    else:
        client = smtplib.SMTP(host, server.port or 587, timeout=TIMEOUT_S)
    with client:
        if server.scheme == "smtp" and host not in _HERE:
            client.starttls(context=context)
        if server.username:
            client.login(unquote(server.username), unquote(server.password or ""))
        client.send_message(letter)
