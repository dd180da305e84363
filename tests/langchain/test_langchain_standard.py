"""LangChain's own standard suites, unit and integration, for the chat model on both engines.

No test of theirs is changed. The embedded model's chat template has no tools and the model is too
small for reliable JSON, so the suites are told so, and skip what asks for either.
"""

from __future__ import annotations

from typing import Any

import pytest
from guard_suite import GuardSuite
from langchain_fixtures import embedded, scorer_for
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

pytestmark = pytest.mark.model


class OnEngine(GuardSuite):
    """The embedded model on an engine."""

    engine = "llama.cpp"
    has_tools = False

    @property
    def chat_model_params(self) -> dict[str, Any]:
        loaded = embedded(self.engine)
        return {"engine": loaded, "scorer": scorer_for(loaded)}


class TestUnitLlama(OnEngine, ChatModelUnitTests):
    engine = "llama.cpp"


class TestIntegrationLlama(OnEngine, ChatModelIntegrationTests):
    engine = "llama.cpp"


@pytest.mark.torch
class TestUnitTransformers(OnEngine, ChatModelUnitTests):
    engine = "transformers"


@pytest.mark.torch
class TestIntegrationTransformers(OnEngine, ChatModelIntegrationTests):
    engine = "transformers"
