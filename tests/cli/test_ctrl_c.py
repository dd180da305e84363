"""Ctrl-C before a command has begun and while it asks somebody: exit code 130, no traceback, nothing decided."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from pathlib import Path

import pytest
from made_cases import make_escalation

from guard.review.store import Store

#: Sends SIGINT where this module is about to be imported.
INTERRUPTED = """
import os, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[-1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from ENTRY
sys.exit(main())
"""


def entry() -> str:
    """What the console script imports, as an import's second half."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))
    module, function = project["project"]["scripts"]["guard"].split(":")
    return f"{module} import {function} as main"


@pytest.mark.parametrize("module", ["guard.cli", "typer", "guard.cli.calibrate", "guard.errors"])
def test_ctrl_c_while_the_command_line_is_imported_leaves_no_traceback(module: str) -> None:
    code = INTERRUPTED.replace("ENTRY", entry())
    done = subprocess.run([sys.executable, "-c", code, module], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


#: Sends SIGINT while an object of a library is freed, where Python drops what a signal handler raises.
FREED = """
import os, signal, sys, time
import guard.cli

class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        [None for _ in range(1000)]

def command(**_):
    freed = Freed()
    del freed
    for _ in range(300):
        time.sleep(0.1)
    print("went on")

guard.cli.app = command
from ENTRY
main()
"""


def test_ctrl_c_while_an_object_is_freed_is_not_dropped() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED.replace("ENTRY", entry())], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "guard", "--version"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.startswith("guard ")


def interrupted(process: subprocess.Popen[bytes]) -> int:
    """Press Ctrl-C, and again where it came just before Python began to read, which then does not notice it."""
    for _ in range(4):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(20)
    process.kill()
    return process.wait()


@pytest.mark.parametrize(
    ("command", "prompt"),
    [
        (["approve", "ID"], "Approve it?"),
        (["reject", "ID"], "Reject it?"),
        (["edit", "ID"], "Edit it?"),
        (["edit", "--yes", "ID"], "right or wrong?"),
        (["next"], "[q]uit: "),
    ],
)
def test_ctrl_c_at_a_prompt_ends_with_130_and_decides_nothing(tmp_path: Path, command: list[str], prompt: str) -> None:
    with Store.open(tmp_path / "r.db") as store:
        store.add(make_escalation(1))
        (case,) = store.reviews(limit=1)
    controller, end = pty.openpty()
    code, words = f"from {entry()}; main()", [case.id if word == "ID" else word for word in command]
    arguments = [sys.executable, "-c", code, "review", *words, "--store", str(tmp_path / "r.db")]
    process = subprocess.Popen([*arguments, "--reviewer", "ann"], stdin=end, stdout=end, stderr=end)
    os.close(end)
    shown = ""
    while prompt not in shown:
        shown += os.read(controller, 1000).decode(errors="replace")
    assert interrupted(process) == 130, shown
    os.close(controller)
    with Store.open(tmp_path / "r.db") as store:
        assert [(each.status, each.claimed_by) for each in store.reviews()] == [("pending", None)]
