"""guard.langchain where LangChain, or a part of it, is not installed: the error says what to install."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCK = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from guard.errors import GuardError
try:
    {statement}
except GuardError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("blocked", "statement", "says"),
    [
        (["langchain_core", "langchain", "langgraph"], "from guard.langchain import ChatGuard", "langchain-core"),
        (["langchain_core", "langchain", "langgraph"], "import guard.langchain.testing", "langchain-core"),
        (["langchain"], "from guard.langchain import GuardMiddleware", "langchain"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(blocked: list[str], statement: str, says: str) -> None:
    code = BLOCK.format(blocked=blocked, statement=statement)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"MissingExtraError {says} is not installed. Run: pip install")
    assert "[langchain]'" in run.stdout


def test_what_needs_no_agents_works_without_their_package() -> None:
    code = BLOCK.format(
        blocked=["langchain"], statement="from guard.langchain import ChatGuard, guarded; print('fine')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout == "fine\n", run.stderr
