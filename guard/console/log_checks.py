"""Checks of the audit log that pages ask for: each in a thread of its own, since a long log takes minutes."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import UTC, datetime

from guard.audit.log import AuditLog, Verification
from guard.audit.notes import PublicKey
from guard.errors import GuardError

#: Seconds that a request waits for a check; a longer one is looked at later.
WAIT_S = 5.0


@dataclass(frozen=True, slots=True)
class EndedCheck:
    """A check that has ended.

    Attributes:
        at: when it began.
        copies: checkpoints from elsewhere that it compared.
        found: what it found; None where it could not be carried out.
        error: why not, or empty.
    """

    at: datetime
    copies: int
    found: Verification | None
    error: str = ""


class LogChecks:
    """The checks of one console, one at a time.

    Attributes:
        last: the newest that has ended; None before the first.
        since: when the one that runs began; None without one.
    """

    def __init__(self) -> None:
        self.last: EndedCheck | None = None
        self.since: datetime | None = None
        self._lock = threading.Lock()

    def begin(self, log: AuditLog, *, key: PublicKey | None, copies: tuple[str, ...], wait_s: float = WAIT_S) -> bool:
        """Begin a check, and wait for it a little; return whether it was begun: not while another one runs."""
        with self._lock:
            if self.since is not None:
                return False
            self.since = datetime.now(UTC)
        worker = threading.Thread(target=self._run, args=(log, key, copies), name="guard-log-check", daemon=True)
        worker.start()
        worker.join(wait_s)
        return True

    def _run(self, log: AuditLog, key: PublicKey | None, copies: tuple[str, ...]) -> None:
        at = self.since or datetime.now(UTC)
        try:
            self.last = EndedCheck(at, len(copies), log.verify(key=key, copies=copies))
        except GuardError as error:
            self.last = EndedCheck(at, len(copies), None, str(error))
        except Exception as error:  # noqa: BLE001 - the page must not say that a check runs that has ended
            self.last = EndedCheck(at, len(copies), None, type(error).__name__)
        finally:
            self.since = None
