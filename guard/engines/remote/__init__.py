"""An engine for models that others serve: any server with OpenAI's chat completions and log-probabilities.

Nothing is known of such a model but what its server says: a scorer reads log-probabilities only, and is bound to the
served name, the kind of server and its fingerprint.
"""

from __future__ import annotations

from guard.engines.remote.engine import OpenAIEngine

__all__ = ["OpenAIEngine"]
