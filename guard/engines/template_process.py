"""The processes that chat templates are rendered in, so that a bound on time and memory holds.

A template comes with the weights and is a stranger's program. jinja2's sandbox keeps it from Python's
internals but not from using minutes and gigabytes in a single call that no check in the same process
can stop. Rendering therefore happens in child processes with limits that the kernel enforces: an
address space, and an alarm that ends the process. They stay warm, so a rendering costs a fraction of
a millisecond; the one that breaks its bound is lost and replaced.

A message is a length of 8 bytes and as many bytes: requests pickled (they come from this package),
replies as a JSON header and the text in UTF-8 (they come from where the template ran).
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any, cast

from guard.engines.template_sandbox import FailureKind, RenderError, find_variables, render_template
from guard.errors import EngineError

#: Address space of a rendering process, in bytes. On Linux; macOS does not enforce it.
MAX_MEMORY = 2**30
#: Renderings at the same time; others wait.
MAX_PROCESSES = 4
#: A process that keeps this much of it after a rendering is replaced, so that the next one finds room.
_SPENT_MEMORY = 2**28

_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from guard.engines.template_process import serve; serve()"


@dataclass(frozen=True, slots=True)
class RenderRequest:
    """One rendering.

    Attributes:
        template: jinja2 source.
        variables: plain JSON values by name; None to get the names that the template reads instead.
        now: what the template's clock shows.
        max_seconds: after which the process is ended.
        max_characters: the longest text that is made.
    """

    template: str
    variables: dict[str, Any] | None
    now: datetime
    max_seconds: float
    max_characters: int


def render_bounded(request: RenderRequest) -> str:
    """Render in a process of its own, within `MAX_MEMORY` and the request's limits.

    Raises:
        RenderError: the template fails, or breaks its bound.
        EngineError: no process can be started.
        RecursionError: the variables are nested too deeply.
    """
    return _pool.render(pickle.dumps(request), max_seconds=request.max_seconds)


def variables_bounded(template: str, *, max_seconds: float) -> frozenset[str]:
    """`find_variables`, in a process of its own: constants are computed for it.

    Raises:
        RenderError: the template is not valid, or breaks its bound.
        EngineError: no process can be started.
    """
    request = RenderRequest(template, None, datetime.min, max_seconds, MAX_MEMORY)
    return frozenset(json.loads(render_bounded(request)))


# -- on this side --------------------------------------------------------------------------------


class _Renderer:
    """One rendering process."""

    def __init__(self) -> None:
        paths = [path or os.getcwd() for path in sys.path]
        try:
            # A session of its own: Ctrl-C in the terminal is for its owner to act on.
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # a traceback could show a prompt
                start_new_session=True,
            )
        except OSError as error:
            why = error.strerror or str(error)
            raise EngineError("Cannot start the process that renders chat templates", why=why) from error
        self._requests, self._replies = cast(IO[bytes], self._process.stdin), cast(IO[bytes], self._process.stdout)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def exchange(self, request: bytes, *, max_seconds: float) -> tuple[dict[str, Any], str]:
        """Header and text of the reply."""
        try:
            _send(self._requests, request)
            return json.loads(_receive(self._replies)), _receive(self._replies).decode("utf-8", "surrogatepass")
        except (EOFError, OSError) as error:
            raise self._ended(max_seconds) from error

    def _ended(self, max_seconds: float) -> RenderError:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return RenderError("stopped", f"it takes longer than {max_seconds:g} s")
        return RenderError("stopped", f"the process that renders it ended with status {code}")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.abandon()

    def abandon(self) -> None:
        """Close this end of the pipes; in a forked process, where the child is another's."""
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):  # what was not sent yet cannot be flushed
                pipe.close()
        self._process.returncode = self._process.returncode or 0


class _Pool:
    """Warm processes. Safe under threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._idle: list[_Renderer] = []
        self._room = threading.BoundedSemaphore(MAX_PROCESSES)

    def render(self, request: bytes, *, max_seconds: float) -> str:
        with self._room:
            renderer = self._take()
            reusable = False
            try:
                header, text = renderer.exchange(request, max_seconds=max_seconds)
                reusable = not header["spent"]
            finally:  # also when Ctrl-C comes between request and reply
                self._put(renderer) if reusable else renderer.kill()
        if "kind" in header:
            raise RenderError(cast(FailureKind, header["kind"]), text, header["line"])
        return text

    def _take(self) -> _Renderer:
        while True:
            with self._mutex:
                if not self._idle:
                    break
                renderer = self._idle.pop()
            if renderer.alive:
                return renderer
            renderer.kill()
        return _Renderer()

    def _put(self, renderer: _Renderer) -> None:
        with self._mutex:
            self._idle.append(renderer)

    def close(self) -> None:
        """End the idle processes; the next rendering starts another."""
        with self._mutex:
            while self._idle:
                self._idle.pop().kill()

    def abandon(self) -> None:
        for renderer in self._idle:
            renderer.abandon()


_pool = _Pool()
atexit.register(lambda: _pool.close())


def _after_fork() -> None:
    """The parent's processes stay the parent's."""
    global _pool
    inherited, _pool = _pool, _Pool()
    inherited.abandon()


os.register_at_fork(after_in_child=_after_fork)


# -- on the other side ---------------------------------------------------------------------------


def serve() -> None:
    """Render what comes in until the other end closes. The main function of a rendering process."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
    # Both are inherited, and might be off.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    while True:
        try:
            request = _receive(sys.stdin.buffer)
        except EOFError:
            return
        header, text = _answer(pickle.loads(request))  # noqa: S301 - this package wrote it
        _send(sys.stdout.buffer, json.dumps(header).encode())
        _send(sys.stdout.buffer, text.encode("utf-8", "surrogatepass"))


def _answer(request: RenderRequest) -> tuple[dict[str, Any], str]:
    signal.setitimer(signal.ITIMER_REAL, request.max_seconds)
    failure: dict[str, Any] = {}
    try:
        text = _text(request)
    except RenderError as error:
        failure, text = {"kind": error.kind, "line": error.line}, error.why
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {**failure, "spent": _address_space() > _SPENT_MEMORY}, text


def _text(request: RenderRequest) -> str:
    if request.variables is None:
        return json.dumps(sorted(find_variables(request.template)))
    return render_template(request.template, request.variables, now=request.now, max_characters=request.max_characters)


def _address_space() -> int:
    """Return bytes that this process has now; 0 where the system does not say, and enforces no limit either."""
    try:
        with open("/proc/self/statm", encoding="ascii") as statm:
            return int(statm.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _send(stream: IO[bytes], data: bytes) -> None:
    stream.write(len(data).to_bytes(8, "big"))
    stream.write(data)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes:
    size = int.from_bytes(_exactly(stream, 8), "big")
    return _exactly(stream, size)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EOFError
    return data
