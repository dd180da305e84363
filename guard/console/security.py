"""Security checks of requests and security headers of responses: pure functions and one middleware."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Mapping
from threading import Lock
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from guard.console.settings import ConsoleSettings

#: No resources from other origins, no inline scripts or styles, no framing.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)

HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "x-frame-options": "DENY",
}

_READS = ("GET", "HEAD", "OPTIONS")


def cross_site_reason(method: str, headers: Mapping[str, str]) -> str | None:
    """Return why a state-changing request may come from another site, or None if it does not.

    Browsers set Sec-Fetch-Site, and no page can forge it. If it is missing, Origin must be that of the console. A
    request with neither is refused: all browsers send one of them.

    Args:
        method: the HTTP method.
        headers: the headers, with names in lower case.

    Examples:
        >>> cross_site_reason("POST", {"sec-fetch-site": "same-origin"})
        >>> cross_site_reason("POST", {"sec-fetch-site": "cross-site"})
        'it comes from another site (Sec-Fetch-Site: cross-site)'
    """
    if method in _READS:
        return None
    if (site := headers.get("sec-fetch-site")) is not None:
        # "none" is for typed addresses; a form never sends it.
        return None if site == "same-origin" else f"it comes from another site (Sec-Fetch-Site: {site[:20]})"
    if (origin := headers.get("origin")) is None:
        return "it does not say where it comes from"
    if urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != "":
        return None
    return "its Origin is not this console"


def is_own_navigation(headers: Mapping[str, str]) -> bool:
    """Return whether a page was opened from the console or by hand, and not prefetched.

    Opening a case claims it, so a link on another site or a prefetch must not do so.
    """
    if "prefetch" in headers.get("sec-purpose", "") or headers.get("purpose") == "prefetch":
        return False
    return headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")


def is_known_name(host: str, names: frozenset[str]) -> bool:
    """Return whether a Host header names this console.

    Examples:
        >>> is_known_name("127.0.0.1:8766", frozenset({"127.0.0.1"}))
        True
        >>> is_known_name("evil.example", frozenset({"[::1]"}))
        False
    """
    name = host.lower()
    if not name.endswith("]"):
        name = name.rsplit(":", 1)[0] if ":" in name else name
    return not names or name in names


class Shield:
    """Middleware that refuses unknown host names, marks cross-site requests and sets security headers."""

    def __init__(self, app: ASGIApp, settings: ConsoleSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)

        async def protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                _protect(MutableHeaders(scope=message))
            await send(message)

        if not is_known_name(headers.get("host", ""), self._settings.names):
            await PlainTextResponse("Unknown host name", 421)(scope, receive, protected)
            return
        # The application renders the error page.
        scope["guard.cross_site"] = cross_site_reason(scope["method"], headers)
        await self._app(scope, receive, protected)


def _protect(headers: MutableHeaders) -> None:
    for name, value in HEADERS.items():
        headers[name] = value
    headers.setdefault("cache-control", "no-store")


class TryLimiter:
    """Limits attempts per address in a sliding window, in this process.

    Attributes:
        most: number of attempts in a window.
        window_s: length of the window in seconds.
    """

    def __init__(self, most: int = 20, window_s: float = 300.0) -> None:
        self.most = most
        self.window_s = window_s
        self._lock = Lock()
        self._tries: defaultdict[str, deque[float]] = defaultdict(deque)

    def allows(self, address: str) -> bool:
        """Count a try of an address, unless it has had all of its tries."""
        now = time.monotonic()
        with self._lock:
            for known in [key for key, tries in self._tries.items() if tries[-1] <= now - self.window_s]:
                del self._tries[known]
            tries = self._tries[address]
            while tries and tries[0] <= now - self.window_s:
                tries.popleft()
            if len(tries) >= self.most:
                return False
            tries.append(now)
            return True
