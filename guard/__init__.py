"""guard: estimate in the same forward pass how likely a local language model is wrong, and act on it.

    from guard import Guard

    guard = Guard.load("smollm2", policy="balanced")
    outcome = guard.ask("What is the capital of France?")
    print(outcome.answer, outcome.p_wrong, outcome.action)

Names are imported when they are first used, so that ``import guard`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guard.calibration.early_procedure import calibrate_early
    from guard.calibration.procedure import calibrate
    from guard.calibration.rebinding import rebind
    from guard.calibration.recorded import calibrate_records
    from guard.calibration.span_procedure import calibrate_spans
    from guard.certification.procedure import certify
    from guard.data.merging import merge_shards
    from guard.data.on_ray import run_on_ray, score_on_ray
    from guard.data.procedure import record
    from guard.data.progress import Progress
    from guard.data.scored_rows import score_rows
    from guard.engines import load_engine
    from guard.engines.protocols import Engine
    from guard.errors import GuardError
    from guard.evaluation.procedure import evaluate
    from guard.policy.policy import Policy, decide, load_policy, parse_policy
    from guard.recalibration.procedure import recalibrate
    from guard.records import Action, Decision, Escalation, Generation, Limits, Outcome, Prompt, Sampling, Signature
    from guard.response_format import ResponseFormat
    from guard.review.handlers import ReviewQueue
    from guard.review.store import Store
    from guard.runtime.first_look import FirstLook, take_first_look
    from guard.runtime.guard import Guard
    from guard.scores import Score, Span
    from guard.scoring.scorer import Scorer, load_scorer

#: Version of the installed distribution, ``ilis-guard``.
__version__: str

_HOMES = {
    "guard.calibration.early_procedure": ("calibrate_early",),
    "guard.calibration.procedure": ("calibrate",),
    "guard.calibration.rebinding": ("rebind",),
    "guard.calibration.recorded": ("calibrate_records",),
    "guard.calibration.span_procedure": ("calibrate_spans",),
    "guard.certification.procedure": ("certify",),
    "guard.data.merging": ("merge_shards",),
    "guard.data.on_ray": ("run_on_ray", "score_on_ray"),
    "guard.data.procedure": ("record",),
    "guard.data.progress": ("Progress",),
    "guard.data.scored_rows": ("score_rows",),
    "guard.evaluation.procedure": ("evaluate",),
    "guard.engines": ("load_engine",),
    "guard.engines.protocols": ("Engine",),
    "guard.errors": ("GuardError",),
    "guard.review.handlers": ("ReviewQueue",),
    "guard.runtime.first_look": ("FirstLook", "take_first_look"),
    "guard.runtime.guard": ("Guard",),
    "guard.policy.policy": ("Policy", "decide", "load_policy", "parse_policy"),
    "guard.records": (
        "Action",
        "Decision",
        "Escalation",
        "Generation",
        "Limits",
        "Outcome",
        "Prompt",
        "Sampling",
        "Signature",
    ),
    "guard.recalibration.procedure": ("recalibrate",),
    "guard.response_format": ("ResponseFormat",),
    "guard.scores": ("Score", "Span"),
    "guard.scoring.scorer": ("Scorer", "load_scorer"),
    "guard.review.store": ("Store",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Action",
    "Decision",
    "Engine",
    "Escalation",
    "FirstLook",
    "Generation",
    "Guard",
    "GuardError",
    "Limits",
    "Outcome",
    "Policy",
    "Progress",
    "Prompt",
    "ResponseFormat",
    "ReviewQueue",
    "Sampling",
    "Score",
    "Scorer",
    "Signature",
    "Span",
    "Store",
    "calibrate",
    "calibrate_early",
    "calibrate_records",
    "calibrate_spans",
    "certify",
    "decide",
    "evaluate",
    "load_engine",
    "load_policy",
    "load_scorer",
    "merge_shards",
    "parse_policy",
    "rebind",
    "recalibrate",
    "record",
    "run_on_ray",
    "score_on_ray",
    "score_rows",
    "take_first_look",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("ilis-guard")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'guard' has no attribute '{name}'")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
