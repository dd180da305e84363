"""The whole program, in a process of its own."""

from __future__ import annotations

import subprocess
import sys


def run_guard(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``guard`` with these arguments; its output is captured."""
    code = "from guard.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
