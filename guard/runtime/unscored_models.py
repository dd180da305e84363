"""The error of a model without a scorer, which names the scorers on the shelf that were fitted on that model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guard.engines import load_engine
from guard.engines.protocols import Engine
from guard.errors import GuardError, ScorerError
from guard.scoring.shelf import missing_scorer, scorers_for


def without_scorer(
    model: str | Path, engine: Engine | str | None = None, options: Mapping[str, Any] | None = None
) -> ScorerError:
    """Return the error; the model is loaded to compare it with the scorers on the shelf.

    Args:
        model: as for `guard.engines.load_engine`.
        engine: one that has loaded the model, or the name of one.
        options: of its ``load``.
    """
    if not isinstance(engine, str | None):
        return missing_scorer(model, scorers_for(engine.model))
    try:
        with load_engine(model, engine=engine, **(options or {})) as loaded:
            return missing_scorer(model, scorers_for(loaded.model))
    except GuardError:  # why it does not load is said once there is a scorer
        return missing_scorer(model)
