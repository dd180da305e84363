"""The first load of a GGUF file happens in a child process: llama.cpp ends the process over some files.

A file that is damaged or made to do harm can pass every check of the reader and still fail an assertion of
llama.cpp, which aborts. The child loads it, tokenizes, and generates a few tokens; when it survives, that is
remembered by the hash of the weights, and later loads need no trial.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.errors import EngineError, ModelFileError, OutOfMemoryError
from guard.files.private_files import create_private_folder
from guard.files.write_whole import write_whole

#: Raised when the trial does more than before, so that files are tried again.
TRIAL_VERSION = 1
#: Seconds that a trial may take, beside those that reading the file takes on a slow disk, in bytes per second.
_SECONDS, _BYTES_PER_SECOND = 60.0, 20e6

_PROGRAM = (
    "import sys; request, *sys.path[:] = sys.argv[1:]; from guard.engines.trial_child import serve; serve(request)"
)
#: What the child prints when it has done everything.
SURVIVED = "survived"
_TRUST = "Fetch or convert the file again; if you trust it, load it with trial_load=False"


def check_survives(file: Path, *, weights_sha256: str, binding_version: str, options: Mapping[str, Any]) -> None:
    """Load a file in a child process, unless that has gone well before.

    Args:
        file: GGUF file that the reader accepts.
        weights_sha256: hash of its weights, by which a success is remembered in the user's cache folder.
        binding_version: version of llama-cpp-python; another one is tried again.
        options: plain JSON values for `LlamaCppEngine.load`, as the caller's own load has them.

    Raises:
        ModelFileError: llama.cpp ends the process over the file, or does not return.
        OutOfMemoryError: the system killed the child.
        EngineError: the child cannot be started, or fails for another reason.
    """
    tried = {"trial": TRIAL_VERSION, "weights_sha256": weights_sha256, "binding": binding_version, **options}
    remembered = _cache_file(tried)
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if json.loads(remembered.read_bytes()) == tried:
            return
    run_trial(file, options)
    with contextlib.suppress(OSError):  # without a cache the file is tried again
        create_private_folder(remembered.parent)
        write_whole(remembered, json.dumps(tried), private=True)


def run_trial(file: Path, options: Mapping[str, Any]) -> None:
    """Load a file in a child process; see `check_survives`."""
    request = json.dumps({"path": os.fsencode(file.absolute()).hex(), "options": dict(options)})
    command = [sys.executable, "-c", _PROGRAM, request, *(path or os.getcwd() for path in sys.path)]
    seconds = _SECONDS + file.stat().st_size / _BYTES_PER_SECOND
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as log:
        try:
            ended = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                timeout=seconds,
                check=False,
                env={**os.environ, "GGML_NO_BACKTRACE": "1"},  # a debugger's stack trace takes seconds
                start_new_session=True,  # Ctrl-C in the terminal is for its owner to act on
            )
        except subprocess.TimeoutExpired as error:
            raise ModelFileError(f"The trial load of '{file}' took more than {seconds:.0f} s", fix=_TRUST) from error
        except OSError as error:
            why = error.strerror or str(error)
            raise EngineError("Cannot start the process that tries a model file", why=why, fix=_TRUST) from error
        if ended.returncode or SURVIVED not in _text(out):
            raise _fatal(file, ended.returncode, _text(log))


def _text(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read().decode(errors="replace"))


def _fatal(file: Path, code: int, log: str) -> EngineError:
    if code == -signal.SIGKILL:
        return OutOfMemoryError(
            f"The trial load of '{file}' was killed",
            why="the system does that where memory runs out",
            fix="Lower context_tokens, or use a smaller quantization",
        )
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    words = [line for line in lines if re.search(r"assert|what\(\)|error|terminate", line, re.IGNORECASE)] or lines
    said = re.sub(r"\S*/(?=[\w.-]+:\d+:)", "", words[-1])[:200] if words else "it gave no reason"
    if code < 0:
        name = signal.Signals(-code).name
        return ModelFileError(f"llama.cpp ends the process over '{file}'", why=f"{name}: {said}", fix=_TRUST)
    return EngineError(f"The trial load of '{file}' failed", why=said, fix=_TRUST)


def _cache_file(tried: Mapping[str, Any]) -> Path:
    from platformdirs import user_cache_dir

    name = hashlib.sha256(json.dumps(tried, sort_keys=True).encode()).hexdigest()
    return Path(user_cache_dir("guard")) / "trial-loads" / f"{name}.json"
