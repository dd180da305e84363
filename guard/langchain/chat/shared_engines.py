"""Engines shared by chat models: one per model, engine and set of options in a process.

LangChain copies models freely (`bind`, `configurable_fields`, pickles); weights are loaded once.
"""

from __future__ import annotations

import atexit
import json
import threading
from collections.abc import Mapping
from typing import Any

from guard.engines import load_engine
from guard.engines.asked import RequestEngine
from guard.errors import InputError

_mutex = threading.Lock()
_engines: dict[str, RequestEngine] = {}


def shared_engine(model: str, *, engine: str | None = None, options: Mapping[str, Any] | None = None) -> RequestEngine:
    """Return the engine of a model; load it on first use.

    Args:
        model: ``smollm2``, a GGUF file, or a model folder.
        engine: ``llama.cpp`` or ``transformers``.
        options: options of the engine's ``load``.

    Raises:
        InputError: the options are not plain values, so that they cannot be compared.
        EngineError, MissingExtraError: as for `guard.engines.load_engine`.

    Examples:
        >>> shared_engine("smollm2", options={"threads": object()})
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    try:
        key = json.dumps([model, engine, dict(options or {})], sort_keys=True)
    except (TypeError, ValueError) as error:
        raise InputError("engine_options must be plain values", why=str(error)) from error
    with _mutex:  # held while loading, so that two threads do not load the same weights
        if key not in _engines:
            _engines[key] = load_engine(model, engine=engine, **(options or {}))
        return _engines[key]


def close_engines() -> None:
    """Free every shared engine; a chat model that is used afterwards loads its engine again.

    Examples:
        >>> close_engines()
    """
    with _mutex:
        while _engines:
            _engines.popitem()[1].close()


# Before the interpreter shuts down: at garbage collection the functions that free engines may be gone.
atexit.register(close_engines)
