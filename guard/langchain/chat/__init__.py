"""The chat model: messages, tools and structured output on an engine that scores itself. Internal."""
