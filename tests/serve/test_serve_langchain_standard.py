"""LangChain's standard integration suite for `ChatOpenAI` on `guard serve`; the counts are in docs/evidence/clients.md.

No test of theirs is changed. The scripted model has tools and JSON; the embedded one is too small for both, and the
suite is told so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests
from scripted import tiny_artefact
from scripted_tools import MODEL, ToolEngine
from served import Served, serving

from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer

ACCEPTS = {"all": "{version: 1, name: all, rules: [accept], truncated: accept, routes: {other: {rules: [accept]}}}"}


class OnServer(ChatModelIntegrationTests):
    """A model of a server that a class starts."""

    served: Served

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        # Connections that are kept belong to the event loop of the test before.
        unkept = httpx.AsyncClient(limits=httpx.Limits(max_keepalive_connections=0))
        server = {"model": "tiny", "base_url": f"{self.served.url}/v1", "api_key": "none", "http_async_client": unkept}
        return {**server, "max_retries": 0, "stream_usage": True}

    @property
    def model_override_value(self) -> str:
        return "tiny:other"

    @property
    def supports_json_mode(self) -> bool:
        return self.has_structured_output

    @classmethod
    def start(cls, request: pytest.FixtureRequest) -> Any:
        """Return the context manager of the server."""
        artefact = tiny_artefact(MODEL)
        scorer = Scorer(artefact.model_copy(update={"prompting": Prompting(system="", max_tokens=2000)}))
        return serving(engine=ToolEngine(), scorer=scorer, policies=ACCEPTS, max_tokens=2000)

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def _running(cls, request: pytest.FixtureRequest) -> Iterator[None]:
        with cls.start(request) as cls.served:
            yield


class TestChatCompletions(OnServer):
    """All but other kinds of input than text."""


class TestResponses(OnServer):
    """By the Responses API."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {**super().chat_model_params, "use_responses_api": True}


@pytest.mark.model
class TestEmbeddedModel(OnServer):
    """The embedded model, which has neither tools nor reliable JSON."""

    has_tool_calling = False  # type: ignore[assignment]
    has_structured_output = False  # type: ignore[assignment]

    @classmethod
    def start(cls, request: pytest.FixtureRequest) -> Any:
        engine, scorer = request.getfixturevalue("smollm2"), request.getfixturevalue("smollm2_scorer")
        return serving(engine=engine, scorer=scorer, policies=ACCEPTS, max_tokens=24)
