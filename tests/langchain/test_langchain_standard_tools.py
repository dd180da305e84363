"""LangChain's standard suites for a model whose chat template has tools: nothing that needs them is skipped.

The model is scripted, so this is about the way from the prompt to the parsed call. The counts are in
docs/how-to/langchain.md.
"""

from __future__ import annotations

from typing import Any

from guard_suite import GuardSuite
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from scripted import tiny_artefact
from scripted_tools import MODEL, ToolEngine

from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer


def _scorer() -> Scorer:
    """Its token limit is the model's; the suites set one of their own."""
    artefact = tiny_artefact(MODEL)
    return Scorer(artefact.model_copy(update={"prompting": Prompting(system="", max_tokens=2000)}))


class WithTools(GuardSuite):
    """The scripted model."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": ToolEngine(), "scorer": _scorer()}


class TestUnitWithTools(WithTools, ChatModelUnitTests):
    """All of them."""


class TestIntegrationWithTools(WithTools, ChatModelIntegrationTests):
    """All but other kinds of input than text."""


class TestIntegrationByCalls(WithTools, ChatModelIntegrationTests):
    """The same, with structured output by calling a tool."""

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        return {"method": "function_calling"}
