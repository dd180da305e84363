"""What LangChain's standard suites ask about a chat model of guard."""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel

from guard.langchain.chat.chat_guard import ChatGuard


class GuardSuite:
    """All that does not depend on which model it is, but for whether its chat template has tools."""

    has_tools = True

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatGuard

    @property
    def has_tool_calling(self) -> bool:
        return self.has_tools

    @property
    def has_structured_output(self) -> bool:
        return self.has_tools

    @property
    def supports_json_mode(self) -> bool:
        return self.has_tools

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def returns_usage_metadata(self) -> bool:
        return True
