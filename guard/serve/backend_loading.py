"""From the back ends in a server's file to a pool: engines loaded, scorers bound, guards made for every policy."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from guard.engines import load_engine
from guard.engines.remote.standby import StandbyEngine
from guard.errors import EngineError, InputError
from guard.policy.policy import Policy
from guard.runtime.guard import Guard
from guard.runtime.sources import declared_sources, loading_options
from guard.scoring.scorer import Scorer, load_scorer
from guard.serve.backends import Backend, BackendPool
from guard.serve.config import BackendSection, ModelSection

#: A request goes to another back end sooner than it is tried again.
_ATTEMPTS = 1


@dataclass(frozen=True, slots=True)
class _Shared:
    """What the back ends of a model have in common.

    Attributes:
        model: its settings.
        policies: by the name that clients may give.
        sources: fallbacks of each policy.
        options: what all guards of the server share, and the model's functions, by the names of `Guard`.
    """

    model: ModelSection
    policies: Mapping[str, Policy]
    sources: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]


def load_backends(
    name: str,
    model: ModelSection,
    policies: Mapping[str, Policy],
    options: Mapping[str, Any],
    opened: ExitStack,
) -> BackendPool:
    """Connect the back ends of a model; those that are not there yet are connected when they are.

    Args:
        name: of the model, as clients write it.
        model: its settings.
        policies: by name.
        options: of all guards, by the names of `Guard`; ``fallbacks`` are functions.
        opened: closes what is loaded.

    Raises:
        InputError: the settings do not fit together, or scorers ask in different ways.
        EngineError: no back end is there.
        GuardError: one is there, and cannot be used.
    """
    _check_section(name, model)
    scorers = [_load_scorer(name, model, each) for each in model.backends]
    _check_prompting(name, scorers)
    given = options["fallbacks"]

    def load(model: str, options: dict[str, Any]) -> Any:
        return opened.enter_context(load_engine(model, **options))

    sources = {key: declared_sources(policy, given=given, load=load) for key, policy in policies.items()}
    shared, lock = _Shared(model, policies, sources, options), threading.Lock()

    def backend(section: BackendSection, scorer: Scorer) -> Backend:
        def connect() -> tuple[StandbyEngine, Mapping[str, Guard]]:
            with ExitStack() as loaded:
                engine = loaded.enter_context(_load_engine(model, section, scorer))
                guards = {key: _guard(engine, scorer, key, shared) for key in policies}
                with lock:
                    opened.push(loaded.pop_all())
                return engine, guards

        return Backend(section.model, connect)

    backends = [backend(*pair) for pair in zip(model.backends, scorers, strict=True)]
    if not [each for each in backends if each.connect()]:
        raise EngineError(f"No back end of '{name}' is there", fix="Start one of them, or correct their addresses")
    return opened.enter_context(BackendPool(backends))


def _check_section(name: str, model: ModelSection) -> None:
    if model.model is not None or model.engine not in (None, "openai"):
        raise InputError(
            f"The model '{name}' has backends, and another 'model' or 'engine'",
            fix="Write the address of each server below backends, as model: http://HOST:PORT/v1#NAME",
        )
    names = [each.model for each in model.backends]
    if len(set(names)) < len(names):
        raise InputError(f"The model '{name}' has the same back end twice", fix="Write each address once")


def _load_scorer(name: str, model: ModelSection, section: BackendSection) -> Scorer:
    file = section.scorer or model.scorer
    if file is None:
        raise InputError(
            f"The back end '{section.model}' of '{name}' has no scorer",
            why="an answer of it could not be scored",
            fix="Fit one with guard calibrate, and name it at the back end or at the model",
        )
    return load_scorer(file)


def _check_prompting(name: str, scorers: Sequence[Scorer]) -> None:
    """A request is put once, whoever answers it."""
    first = scorers[0].artefact.prompting
    if any(each.artefact.prompting != first for each in scorers):
        raise InputError(
            f"The scorers of the back ends of '{name}' ask in different ways",
            why="system message, token limit or template options of their calibrations differ",
            fix="Calibrate them with the same --system, --max-tokens and --template-option",
        )


def _load_engine(model: ModelSection, section: BackendSection, scorer: Scorer) -> StandbyEngine:
    options = {"attempts": _ATTEMPTS, **model.engine_options, **section.engine_options}
    engine = StandbyEngine.load(section.model, **loading_options(scorer, options))
    assert isinstance(engine, StandbyEngine)
    return engine


def _guard(engine: StandbyEngine, scorer: Scorer, key: str, shared: _Shared) -> Guard:
    policy, model = shared.policies[key], shared.model
    own = next(iter(shared.policies))
    return Guard(
        engine,
        scorer,
        policy,
        certificate=model.certificate if key == own else None,
        force_scorer=model.force_scorer,
        template_options=model.template_options,
        **{**shared.options, "fallbacks": {**shared.sources[key], **shared.options["fallbacks"]}},
    )
