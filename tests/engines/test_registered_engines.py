"""Engines of other distributions, found by their entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from guard.engines import load_engine
from guard.engines.loading import engine_names
from guard.errors import EngineError, InputError
from guard.records import Prompt

MODULE = """
from pathlib import Path
from scripted import AnsweringEngine

class CannedEngine(AnsweringEngine):
    @classmethod
    def load(cls, model, *, answer="Paris", **options):
        engine = cls(lambda prompt, number: (answer, 0.1))
        engine.loaded = (model, options)
        return engine

NOT_AN_ENGINE = 7
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a distribution with these entry points on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "canned_engine.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "canned_engine", raising=False)

    def install(distribution: str, **points: str) -> None:
        folder = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[guard.engines]", *lines]) + "\n")

    return install


def test_a_registered_engine_is_loaded_by_its_name(install: Callable[..., None]) -> None:
    install("guard-canned", canned="canned_engine:CannedEngine")
    with load_engine("a name of its own", engine="canned", answer="Rome", dtype="int8") as engine:
        assert engine.generate(Prompt.raw("Where?")).text == "Rome"
        assert engine.loaded == ("a name of its own", {"dtype": "int8"})  # type: ignore[attr-defined]


def test_registered_names_are_listed_and_suggested(install: Callable[..., None], tmp_path: Path) -> None:
    install("guard-canned", canned="canned_engine:CannedEngine")
    assert {"canned", "llama.cpp", "transformers"} <= set(engine_names())
    with pytest.raises(InputError, match=r"Unknown engine 'caned'.*Did you mean 'canned'"):
        load_engine(tmp_path, engine="caned")
    with pytest.raises(InputError, match=r"Unknown engine 'transformer'.*Did you mean 'transformers'"):
        load_engine(tmp_path, engine="transformer")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_module:Engine", "'canned' of guard-canned cannot be imported: ModuleNotFoundError"),
        ("canned_engine:Missing", "'canned' of guard-canned cannot be imported: AttributeError"),
        ("canned_engine:NOT_AN_ENGINE", "'canned' of guard-canned is no engine"),
        ("canned_engine:Path", "'canned_engine:Path' is not a subclass of guard.engines.BaseEngine"),
    ],
)
def test_what_is_no_engine_is_named_with_its_distribution(
    install: Callable[..., None], value: str, message: str
) -> None:
    install("guard-canned", canned=value)
    with pytest.raises(EngineError, match=message):
        load_engine("x", engine="canned")


def test_a_name_that_two_distributions_register_is_refused(install: Callable[..., None]) -> None:
    install("guard-canned", canned="canned_engine:CannedEngine")
    install("guard-other", canned="canned_engine:Path")
    with pytest.raises(InputError, match=r"'canned' is registered more than once: guard-canned: .*guard-other: "):
        load_engine("x", engine="canned")


def test_built_in_engines_are_not_replaced(install: Callable[..., None], tmp_path: Path) -> None:
    install("guard-canned", **{"llama.cpp": "canned_engine:CannedEngine"})
    with pytest.raises(InputError, match="cannot be loaded as int4"):
        load_engine(tmp_path, engine="llama.cpp", dtype="int4")
