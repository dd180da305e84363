"""The embedded model on either engine, with a small scorer of the tests' own, for LangChain's tests."""

from __future__ import annotations

from functools import lru_cache

import pytest
from scripted import tiny_artefact

from guard.engines import embedded_model
from guard.engines.base import BaseEngine
from guard.errors import MissingExtraError
from guard.langchain.chat.chat_guard import ChatGuard
from guard.langchain.chat.shared_engines import shared_engine
from guard.policy.policy import Policy, parse_policy
from guard.scoring.provenance import Prompting
from guard.scoring.scorer import Scorer
from guard.scoring.scorer_file import Calibration, Linear, Model, Trees

#: Rules that force each action, whatever the score.
ACCEPT = "[accept]"
ABSTAIN = "[{abstain: {text: I cannot say.}}]"
SILENT = "[abstain]"
RAISE = "[{abstain: {raise: true}}]"


@lru_cache(maxsize=2)
def embedded(engine: str = "llama.cpp") -> BaseEngine:
    """The embedded model, loaded once for all tests."""
    try:
        embedded_model()
    except MissingExtraError as error:
        pytest.skip(str(error))
    pytest.importorskip("llama_cpp" if engine == "llama.cpp" else "transformers")
    exact = {"deterministic": True} if engine == "llama.cpp" else {}  # tests compare scores to the last bit
    return shared_engine("smollm2", engine=engine, options=exact)


def scorer_for(engine: BaseEngine, *, system: str = "", max_tokens: int = 8) -> Scorer:
    """A scorer that finds an answer the likelier wrong, the less likely its tokens were.

    A tree reads the map, whose summary messages have, and adds nothing.
    """
    start = Linear(features=[0], mean=[0.0], scale=[1.0], coefficients=[-4.0], intercept=-1.0)
    nothing, first_divergence = [0.0] * 3, 7
    tree = Trees(
        roots=[0],
        feature=[first_divergence, -1, -1],
        threshold=nothing,
        left=[1, 0, 0],
        right=[2, 0, 0],
        value=nothing,
    )
    model = Model(base=start, probe=None, trees=tree, calibration=Calibration(slope=1.0, intercept=0.0))
    prompting = Prompting(system=system, max_tokens=max_tokens)
    artefact = tiny_artefact(engine.model, engine.capture_point, aggregates=("mean",), groups=("logprob", "map"))
    return Scorer(artefact.model_copy(update={"prompting": prompting, "scores": {"guard": model}}))


def chat(engine: str = "llama.cpp", **settings: object) -> ChatGuard:
    """A chat model on the embedded model."""
    loaded = embedded(engine)
    return ChatGuard(**{"engine": loaded, "scorer": scorer_for(loaded), **settings})


def policy(rules: str = ACCEPT, *lines: str, name: str = "test") -> Policy:
    """A policy with these rules, and further lines of its document.

    The rules decide about cut answers too, unless a line says otherwise: tests keep answers short.
    """
    cut = [] if any(line.startswith("truncated:") for line in lines) else ["truncated: accept"]
    return parse_policy("\n".join(["version: 1", f"name: {name}", f"rules: {rules}", *cut, *lines]))
