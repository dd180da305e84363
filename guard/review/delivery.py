"""The worker that sends the outbox with at-least-once delivery, in any number of processes and threads."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from guard.errors import GuardError, error_text
from guard.review import handler_threads, outbox
from guard.review.endpoints import Endpoint, Endpoints
from guard.review.outbox import Notification
from guard.review.sending import TIMEOUT_S, SendError, mail, post, sentence, signed_headers

if TYPE_CHECKING:
    from guard.review.store import Store

#: Messages that are sent at the same time.
BATCH = 20

_log = logging.getLogger("guard.review.delivery")


class Deliverer:
    """Sends due messages, and marks late cases.

    If the process dies before it records a delivery, the message is sent again.
    """

    def __init__(self, store: Store, callables: Mapping[str, Callable[[dict[str, Any]], object]] | None = None) -> None:
        """
        Args:
            store: the review store; the caller closes it.
            callables: functions of one event, plain or ``async``, by the names of the ``python`` endpoints.
        """
        self.store = store
        self.callables = dict(callables or {})
        self._endpoints = Endpoints(store)

    def deliver(self) -> int:
        """Send all messages that are due; return the number of attempts.

        Raises:
            StoreError: the store failed.
        """
        self.store.mark_late()
        tried = 0
        while batch := outbox.lease(self.store._database, self.callables.keys(), BATCH):
            asyncio.run(self._send_all(batch))
            tried += len(batch)
        return tried

    def run(self, stop: threading.Event, *, pause_s: float = 1.0) -> None:
        """Deliver until `stop` is set. Errors of the store are logged, and delivery continues.

        Args:
            stop: ends the loop.
            pause_s: interval between reads of the outbox in seconds.
        """
        while not stop.is_set():
            try:
                self.deliver()
            except GuardError as error:
                _log.warning("delivery failed: %s", error)
            stop.wait(pause_s)

    async def _send_all(self, batch: list[Notification]) -> None:
        known = {endpoint.name: endpoint for endpoint in await asyncio.to_thread(self._endpoints.all)}
        await asyncio.gather(*(self._try(known[message.endpoint], message) for message in batch))

    async def _try(self, endpoint: Endpoint, message: Notification) -> None:
        error: str | None = None
        gone = False
        try:
            await self._send(endpoint, message)
        except SendError as failure:
            error, gone = str(failure), failure.gone
        except Exception as failure:  # noqa: BLE001 - code of others; the message is sent again
            error = f"{type(failure).__name__}: {error_text(failure)}"[:200]
        await asyncio.to_thread(outbox.finish, self.store._database, message, error, gone=gone)
        if error is not None:
            _log.warning("message %s to '%s' failed: %s", message.id, endpoint.name, error)

    async def _send(self, endpoint: Endpoint, message: Notification) -> None:
        match endpoint.kind:
            case "webhook":
                kept = await asyncio.to_thread(self._endpoints.secrets, endpoint.name)
                headers = signed_headers(message.id, message.body, kept["secrets"], int(time.time()))
                await post(kept["target"], message.body, headers, allow_private=endpoint.allow_private)
            case "slack":
                kept = await asyncio.to_thread(self._endpoints.secrets, endpoint.name)
                text, headers = json.dumps({"text": sentence(message.body)}), {"content-type": "application/json"}
                await post(kept["target"], text, headers, allow_private=endpoint.allow_private)
            case "email":
                await _call(mail, endpoint.address, message.body, message.id)
            case "python":
                await _call(self.callables[endpoint.name], {"id": message.id, **json.loads(message.body)})


async def _call(function: Callable[..., object], *arguments: object) -> None:
    """Call a plain or asynchronous function, and stop waiting after `TIMEOUT_S` seconds.

    It has threads of its own: the event loop's own threads must all end before the next messages are sent.

    Raises:
        SendError: it has not returned by then.
    """
    deadline = asyncio.timeout(TIMEOUT_S)
    try:
        async with deadline:
            work = handler_threads.start(function, partial(function, *arguments), TIMEOUT_S)
            result = await asyncio.wrap_future(work)
            if inspect.isawaitable(result):
                await result
    except TimeoutError:
        if deadline.expired():
            raise SendError(f"not done within {TIMEOUT_S:g} s") from None
        raise
