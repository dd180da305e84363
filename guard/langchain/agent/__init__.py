"""Agents: middleware that scores each answer and tool call of a model, and acts by the policy. Internal."""
