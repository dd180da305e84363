"""Whether two expressions have the same value, computed by math-verify (the extra ``math``).

For what `guard.data.math_answers.equivalent` cannot decide by notation: ``x+1`` and ``1+x``, ``\\sqrt{12}`` and
``2\\sqrt{3}``. Without the package nothing is computed, and such answers are wrong.

It runs in a child process with limits on time and memory, since nothing else stops ``9^{9^{9^9}}``. Only plain
expressions are compared, because math-verify drops words, units, subscripts and the order of lists.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import re
import select
import subprocess
import sys
import threading
from typing import Any

from guard.data.math_answers import MAX_ANSWER, NAMED, normalise_latex
from guard.errors import InputError

#: Seconds for one comparison, and for the child process to import its libraries.
MAX_SECONDS, MAX_START_SECONDS = 5.0, 120.0
#: Address space of the child process, in bytes.
MAX_MEMORY = 2**31

_PROGRAM = "import sys; sys.path[:] = sys.argv[1:]; from guard.data.computed_answers import serve; serve()"
_COMMANDS = "frac|sqrt|pi|cdot|times|div|binom|sin|cos|tan|cot|sec|csc|log|ln|exp"
_LETTER = r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])"
_PLAIN = re.compile(rf"(?:\\(?:{_COMMANDS})(?![A-Za-z])|{_LETTER}|[0-9+\-*/^(){{}}\[\].!|])+")


def computed_equal(one: str, other: str) -> bool:
    """Return whether two final answers have the same value; False in doubt.

    Raises:
        InputError: math-verify is installed and cannot be run.
    """
    first, second = _expression(one), _expression(other)
    if first is None or second is None or importlib.util.find_spec("math_verify") is None:
        return False
    # Another letter is a unit or another variable.
    return _letters(first) == _letters(second) and _worker.compare(first, second)


def _expression(answer: str) -> str | None:
    """Return a plain expression in one notation, or None for anything else, such as a list or words."""
    if not answer.strip() or len(answer) > MAX_ANSWER:
        return None
    text = NAMED.sub("", normalise_latex(answer))
    if not _PLAIN.fullmatch(text):
        return None
    return rf"\frac{{{text}}}{{100}}" if "%" in answer else text


def _letters(text: str) -> set[str]:
    return set(re.findall(_LETTER, re.sub(r"\\[A-Za-z]+", " ", text)))


# -- on this side --------------------------------------------------------------------------------


class _Worker:
    """The child process, started when it is first needed. Safe under threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def compare(self, one: str, other: str) -> bool:
        """Return the child process's reply; False if it exceeds a limit, which ends it."""
        with self._mutex:
            reply = b""
            try:
                self._process = self._process or _started()
                reply = _exchanged(self._process, json.dumps([one, other]).encode() + b"\n")
            except (OSError, TimeoutError):
                return False
            finally:  # also on Ctrl-C before the reply, which would pass for the reply to the next request
                if not reply:
                    self.close()
            return reply == b"true\n"

    def close(self) -> None:
        """End the process; the next comparison starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _started() -> subprocess.Popen[bytes]:
    paths = [path or os.getcwd() for path in sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *paths],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback could show an answer
        start_new_session=True,  # the parent handles Ctrl-C in the terminal
    )
    if _line(process, MAX_START_SECONDS) != b"ready\n":
        process.kill()
        raise InputError("math-verify cannot be run", fix="Run: pip install --force-reinstall 'ilis-guard[math]'")
    return process


def _exchanged(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    assert process.stdin is not None
    process.stdin.write(request)
    process.stdin.flush()
    return _line(process, MAX_SECONDS)


def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the process's next line; empty if the process has ended.

    Raises:
        TimeoutError: there is none in this time.
    """
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise TimeoutError
    return process.stdout.readline()


_worker = _Worker()
atexit.register(lambda: _worker.close())


def _after_fork() -> None:
    """Forget the child process after a fork: it belongs to the parent."""
    global _worker
    _worker = _Worker()


os.register_at_fork(after_in_child=_after_fork)


# -- on the other side ---------------------------------------------------------------------------


def serve() -> None:
    """Compare pairs from standard input until it closes. This is the main function of the child process."""
    import logging
    import resource

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold answers
    import math_verify

    print("ready", flush=True)
    for line in sys.stdin:
        print(json.dumps(_equal(math_verify, *json.loads(line))), flush=True)


def _equal(library: Any, one: str, other: str) -> bool:
    """Compare both ways round, without the library's own timeouts, which need the main thread and SIGALRM."""
    latex = [library.LatexExtractionConfig()]
    parsed = [
        library.parse(f"${text}$", extraction_config=latex, fallback_mode="no_fallback", parsing_timeout=None)
        for text in (one, other)
    ]
    return all(parsed) and all(
        library.verify(gold, said, float_rounding=12, timeout_seconds=None) for gold, said in (parsed, parsed[::-1])
    )
