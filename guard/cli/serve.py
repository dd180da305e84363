"""``guard serve``: guarded models behind OpenAI's API."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from guard.cli.engine_options import EngineOption, EngineOptions, loads_a_model
from guard.cli.output import (
    AuditLogOption,
    CertificateOption,
    ForceOption,
    ScorerOption,
    StoreOption,
    TemplateOption,
    template_options,
)
from guard.errors import InputError


@loads_a_model()
def serve(
    config: Annotated[
        str | None,
        typer.Option("--config", metavar="FILE", help="YAML configuration file, for several models, limits and more."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", help="GGUF file, model folder, smollm2 (default), or URL#NAME of a served model."
        ),
    ] = None,
    scorer: ScorerOption = None,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="Policy file or built-in name; by default balanced.")
    ] = None,
    certificate: CertificateOption = None,
    engine: EngineOption = None,
    engine_options: EngineOptions = None,
    template_option: TemplateOption = None,
    force: ForceOption = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on; by default 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on, 0 for a free one; by default 8080.")
    ] = None,
    keys: Annotated[
        bool | None,
        typer.Option("--keys/--no-keys", help="Require an API key; by default only beyond loopback."),
    ] = None,
    store: StoreOption = None,
    audit_log: AuditLogOption = False,
) -> None:
    """Serve guarded models over OpenAI's API: chat, completions, responses, and guard's own endpoints."""
    from guard.serve.running import run_server

    about_model = {
        "model": model,
        "scorer": scorer,
        "policy": policy,
        "certificate": certificate,
        "engine": engine,
        "engine_options": engine_options or None,
        "template_options": template_options(template_option),
        "force_scorer": force or None,
    }
    given = {name: value for name, value in about_model.items() if value is not None}
    listen = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    rest = {
        name: value
        for name, value in (("keys", keys), ("store", store), ("audit_log", audit_log or None))
        if value is not None
    }
    run_server(_config(config, given, listen, rest))


def _config(file: str | None, model: dict[str, Any], listen: dict[str, Any], rest: dict[str, Any]) -> Any:
    """Return the server's settings: of the file, or of one model."""
    import re
    from pathlib import Path

    from guard.serve.config import ModelSection, ServeConfig, load_config

    if file is not None and model:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in model)
        raise InputError(f"--config and {names} cannot be combined", fix="Write them into the file")
    if file is not None:
        base = load_config(file)
    else:
        name = re.sub(r"[^\w.-]+", "-", Path(model.get("model", "smollm2")).stem)[:100]
        base = ServeConfig(version=1, models={name: ModelSection(**{"model": "smollm2", **model})})
    return base.model_copy(update={"listen": base.listen.model_copy(update=listen), **rest})
