"""Child processes for work on untrusted input, so that a bound on time and memory holds.

No check in the same process can stop a single call that uses minutes and gigabytes, such as a filter of a chat template
or a regular expression. Such work therefore runs in child processes with limits that the kernel enforces: an address
space, and an alarm that ends the process. They stay warm, so a job costs a fraction of a millisecond more; the one that
breaks its bound is lost and replaced.

A message is a length of 8 bytes and as many bytes: jobs pickled (they come from this package), replies as a JSON header
and the text in UTF-8 (they come from where the untrusted input was at work).
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
from typing import IO, Any, Protocol, cast

from guard.errors import EngineError

#: Address space of a process, in bytes. On Linux; macOS does not enforce it.
MAX_MEMORY = 2**30
#: Jobs of one pool at the same time; others wait.
MAX_PROCESSES = 4
#: A process that keeps this much of it after a job is replaced, so that the next one finds room.
_SPENT_MEMORY = 2**28

_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from guard.engines.bounded_process import serve; serve()"


class Job(Protocol):
    """What runs in a child process; its class must be importable there."""

    def run(self) -> tuple[dict[str, Any], str]:
        """Return a header of plain JSON values, and a text."""


class StoppedError(Exception):
    """A job broke its bound, or its process ended.

    Args:
        why: in words.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Process:
    """One child process."""

    def __init__(self, does: str) -> None:
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
            raise EngineError(f"Cannot start the process that {does}", why=error.strerror or str(error)) from error
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

    def _ended(self, max_seconds: float) -> StoppedError:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return StoppedError(f"it takes longer than {max_seconds:g} s")
        return StoppedError(f"its process ended with status {code}")

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


class ProcessPool:
    """Warm processes for one kind of job, at most `MAX_PROCESSES`. Safe under threads; make it once, in a module.

    Args:
        does: what its processes do, for the error that none can be started, such as ``renders chat templates``.
    """

    def __init__(self, does: str) -> None:
        self._does = does
        self._begin()
        atexit.register(self.close)
        os.register_at_fork(after_in_child=self._after_fork)

    def run(self, job: Job, *, max_seconds: float) -> tuple[dict[str, Any], str]:
        """Run a job in a process of its own; return what it returns.

        Args:
            job: the job.
            max_seconds: after which its process is ended, in seconds.

        Raises:
            StoppedError: it broke its bound.
            EngineError: no process can be started.
            RecursionError: what the job holds is nested too deeply.
        """
        request = pickle.dumps((job, max_seconds))
        with self._room:
            process = self._take()
            reusable = False
            try:
                header, text = process.exchange(request, max_seconds=max_seconds)
                reusable = not header.pop("spent")
            finally:  # also when Ctrl-C comes between request and reply
                self._put(process) if reusable else process.kill()
        return header, text

    def close(self) -> None:
        """End the idle processes; the next job starts another."""
        with self._mutex:
            while self._idle:
                self._idle.pop().kill()

    def _begin(self) -> None:
        self._mutex = threading.Lock()
        self._idle: list[_Process] = []
        self._room = threading.BoundedSemaphore(MAX_PROCESSES)

    def _after_fork(self) -> None:
        """Leave the parent's processes to the parent."""
        inherited = self._idle
        self._begin()
        for process in inherited:
            process.abandon()

    def _take(self) -> _Process:
        while True:
            with self._mutex:
                if not self._idle:
                    break
                process = self._idle.pop()
            if process.alive:
                return process
            process.kill()
        return _Process(self._does)

    def _put(self, process: _Process) -> None:
        with self._mutex:
            self._idle.append(process)


# -- on the other side ---------------------------------------------------------------------------


def serve() -> None:
    """Run the jobs that come in until the other end closes. The main function of a child process."""
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
        header, text = _answer(*pickle.loads(request))  # noqa: S301 - this package wrote it
        _send(sys.stdout.buffer, json.dumps(header).encode())
        _send(sys.stdout.buffer, text.encode("utf-8", "surrogatepass"))


def _answer(job: Job, max_seconds: float) -> tuple[dict[str, Any], str]:
    signal.setitimer(signal.ITIMER_REAL, max_seconds)
    try:
        header, text = job.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return {**header, "spent": _address_space() > _SPENT_MEMORY}, text


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
