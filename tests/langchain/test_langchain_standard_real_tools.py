"""LangChain's standard suites on a real model whose chat template has tools; run where one is named.

    python benchmarks/qwen.py  # prints the path of a model that has tools
    GUARD_TEST_TOOL_MODEL=/path/to/model.gguf pytest tests/langchain/test_langchain_standard_real_tools.py

What passes depends on the model: some of the suites' tests want a certain call or object from it.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from guard_suite import GuardSuite
from langchain_fixtures import scorer_for
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from guard.engines import load_engine
from guard.engines.base import BaseEngine

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(900)]

NAMED = "GUARD_TEST_TOOL_MODEL"

if NAMED not in os.environ:
    pytest.skip(f"{NAMED} names no model that has tools", allow_module_level=True)


@lru_cache(maxsize=1)
def loaded() -> BaseEngine:
    """The model, loaded once for all tests."""
    return load_engine(Path(os.environ[NAMED]), context_tokens=4096)


class RealTools(GuardSuite):
    """The model that is named."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": loaded(), "scorer": scorer_for(loaded(), max_tokens=256)}


class TestUnitRealTools(RealTools, ChatModelUnitTests):
    """All of them."""


class TestIntegrationRealTools(RealTools, ChatModelIntegrationTests):
    """All but other kinds of input than text."""
