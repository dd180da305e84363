"""The embedded model, loaded once, for all tests that need a real one."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
from embedded_model import smollm2_file
from scripted import tiny_artefact

from guard.engines import trial_load
from guard.scoring.scorer import Scorer
from guard.scoring.scorer_file import Trees

if TYPE_CHECKING:
    from guard.engines.llama_cpp import LlamaCppEngine

# A process started in the background ignores Ctrl-C, and so do its children; tests of Ctrl-C need the default.
signal.signal(signal.SIGINT, signal.default_int_handler)

_RUN_TRIAL = trial_load.run_trial

pytest_plugins = ["strict_skips", "empty_databases"]

# CI tries the same examples at every run, without a deadline: a loaded machine must not turn a run red.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None)
hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes, one of them runs all that load llama.cpp, whose threads spin."""
    for item in items:
        if item.get_closest_marker("model") or "llama" in item.path.name:
            item.add_marker(pytest.mark.xdist_group("llama.cpp"))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Hashes of weights and reviews are kept in the user's folders; not in the tester's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_trials() -> Iterator[None]:
    """Tests write hundreds of tiny models; a child process for each would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial_load, "run_trial", lambda file, options: None)
        yield


@pytest.fixture
def real_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first load in a child process, as users have it."""
    monkeypatch.setattr(trial_load, "run_trial", _RUN_TRIAL)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The embedded model's file; tests that need it are skipped where it is not installed."""
    file = smollm2_file()
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed")
    return file


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[LlamaCppEngine]:
    """The embedded model on llama.cpp, deterministic. Tests share it and must leave it open.

    It has one thread: several spin, and on a busy machine wait for one another for minutes.
    """
    from guard.engines.llama_cpp import LlamaCppEngine

    with LlamaCppEngine.load(smollm2_path, context_tokens=2048, threads=1, deterministic=True) as engine:
        yield engine


@pytest.fixture(scope="session")
def smollm2_scorer(smollm2: LlamaCppEngine) -> Scorer:
    """A scorer for the embedded model, made by hand: a linear start and two stumps over the map."""
    names = tiny_artefact(smollm2.model).feature_names
    first, second = names.index("map.1.mean.3>7"), names.index("norms.last.20")
    trees = Trees(
        roots=[0, 3],
        feature=[first, -1, -1, second, -1, -1],
        threshold=[-1.0, 0.0, 0.0, 0.5, 0.0, 0.0],
        left=[1, 0, 0, 4, 0, 0],
        right=[2, 0, 0, 5, 0, 0],
        value=[0.0, -0.25, 0.25, 0.0, 0.125, -0.125],
    )
    return Scorer(tiny_artefact(smollm2.model, trees=trees))
