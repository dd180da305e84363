"""A chat model whose calls may name a route and a policy, also in the config.

LangChain passes only keyword arguments to a model's own methods. This class turns the names of the config into keyword
arguments in every entry point.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.runnables import RunnableConfig, RunnableSerializable
from langchain_core.runnables.utils import AnyConfigurableField, ConfigurableField, ConfigurableFieldSpec
from pydantic import Field

from guard.langchain.attempts.attempt_settings import ATTEMPT
from guard.langchain.attempts.stateful_steps import refuse_inner_history
from guard.langchain.call_options import SPECS, merged, read_config, split_options


class RoutedChatModel(BaseChatModel):
    """Base of `ChatGuard`."""

    policy: Any = None
    """A file, a built-in name or a `Policy` by which the model decides; None to only score."""
    field_ids: frozenset[str] = Field(default=frozenset(), repr=False, exclude=True)
    """Keys of `configurable_fields`, which may resemble ``route`` and ``policy``."""

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """See LangChain.

        Raises:
            InputError, PolicyError: the call names an unknown route, policy or key.
        """
        return super().invoke(input, config, **self._with_named(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """See LangChain."""
        return await super().ainvoke(input, config, **self._with_named(config, kwargs))

    def stream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> Iterator[AIMessageChunk]:
        """See LangChain."""
        yield from super().stream(input, config, **self._with_named(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[AIMessageChunk]:
        """See LangChain."""
        stream = super().astream(input, config, **self._with_named(config, kwargs))
        async with aclosing(stream) as chunks:  # type: ignore[type-var] # LangChain's is a generator
            async for chunk in chunks:
                yield chunk

    def stream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See LangChain."""
        return super().stream_events(input, config, **self._with_named(config, kwargs))

    def astream_events(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """See LangChain."""
        return super().astream_events(input, config, **self._with_named(config, kwargs))

    def configurable_fields(self, **kwargs: AnyConfigurableField) -> RunnableSerializable[LanguageModelInput, Any]:
        """See LangChain. ``route`` and ``policy`` need no field unless you want other keys for them."""
        ids = {field.id for field in kwargs.values() if isinstance(field, ConfigurableField) and field.id}
        twin = self.model_copy(update={"field_ids": self.field_ids | ids})
        return super(RoutedChatModel, twin).configurable_fields(**kwargs)

    @property
    def config_specs(self) -> list[ConfigurableFieldSpec]:
        """The route and the policy, if the model decides."""
        return [] if self.policy is None else [spec for spec in SPECS if spec.id not in self.field_ids]

    def _with_named(self, config: RunnableConfig | None, options: dict[str, Any]) -> dict[str, Any]:
        """Return the keyword arguments of a call with the names in its config.

        A model without a policy in a guarded chain ignores the names, since the chain has read them.
        """
        refuse_inner_history(config)
        if self.policy is None and ATTEMPT.get() is not None:
            return options
        by_keyword, rest = split_options(options)
        return {**rest, **merged(by_keyword, read_config(config, taken=self.field_ids)).changes()}
