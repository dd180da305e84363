"""LangChain's own standard suites, unit and integration, for the chat model on both engines.

No test of theirs is changed. The embedded model's chat template has no tools and the model is too
small for reliable JSON, so the suites are told so, and skip what asks for either.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import BaseChatModel
from langchain_fixtures import embedded, scorer_for
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from guard.langchain.chat.chat_guard import ChatGuard

pytestmark = pytest.mark.model


class OnEngine:
    """What the suites ask about the model."""

    engine = "llama.cpp"

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatGuard

    @property
    def chat_model_params(self) -> dict[str, Any]:
        loaded = embedded(self.engine)
        return {"engine": loaded, "scorer": scorer_for(loaded)}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supports_json_mode(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def returns_usage_metadata(self) -> bool:
        return True


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
