"""The configuration file of a server: models, policies, limits. Errors have lines and hints, as for policies.

    version: 1
    models:
      smollm2:
        policy: balanced
        policies: {strict: strict, ours: ./ours.yaml}

Paths in it are relative to the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from guard.errors import did_you_mean
from guard.policy.check import value_problem
from guard.policy.yaml_source import (
    InvalidPolicyError,
    Location,
    Problem,
    YamlSource,
    location_text,
    read_text,
    read_yaml,
)
from guard.serve.asked import Bounds
from guard.serve.bodies import Hold
from guard.serve.settings import ServeSettings

_ModelKey = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\s\x00-\x1f\x7f:,]+$")]


class _ConfigPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class ListenSection(_ConfigPart):
    """The address of the server."""

    host: str = Field(default="127.0.0.1", description="Addresses other than loopback need keys.")
    port: int = Field(default=8080, ge=0, le=65535)


class BackendSection(_ConfigPart):
    """One of several served models that answer under one name."""

    model: str = Field(min_length=1, description="Its address: http://HOST:PORT/v1#NAME.")
    scorer: str | None = Field(default=None, description="Of its answers; by default the model's.")
    engine_options: dict[str, Any] = Field(default_factory=dict, description="Beside those of the model.")


class ModelSection(_ConfigPart):
    """One model; the key is its name for clients."""

    model: str | None = Field(default=None, description="smollm2, a GGUF file or a folder; by default the key.")
    scorer: str | None = Field(default=None, description="Scorer file of guard calibrate; not needed for smollm2.")
    engine: str | None = Field(default=None, description="llama.cpp or transformers, where both can load the model.")
    engine_options: dict[str, Any] = Field(default_factory=dict, description="Options of the engine's load.")
    force_scorer: bool = Field(default=False, description="Use a scorer of another model.")
    template_options: dict[str, Any] | None = Field(default=None, description="Variables of the chat template.")
    policy: str = Field(default="balanced", description="Default policy: a file or a built-in name.")
    certificate: str | None = Field(default=None, description="Certificate of the default policy, if it needs one.")
    policies: dict[_ModelKey, str] = Field(default_factory=dict, description="Further policies that requests may name.")
    handlers: dict[_ModelKey, str] = Field(default_factory=dict, description="Escalation handlers, as MODULE:FUNCTION.")
    fallbacks: dict[_ModelKey, str] = Field(default_factory=dict, description="Fallbacks, as MODULE:FUNCTION.")
    max_tokens: int | None = Field(default=None, ge=1, description="Token limit of an answer if the request has none.")
    background: str | None = Field(default=None, description="Route of clients' side requests.")
    backends: tuple[BackendSection, ...] = Field(
        default=(), max_length=100, description="Served models that answer under this name, in place of one."
    )


class LimitsSection(_ConfigPart):
    """Limits on requests."""

    answer_tokens: int = Field(default=4096, ge=1)
    prompt_characters: int = Field(default=1_000_000, ge=1)
    seconds: float = Field(default=300.0, gt=0, description="Time limit of a request, including the queue.")
    requests: int = Field(default=128, ge=1, description="Concurrent requests; further ones get 429.")
    body_bytes: int = Field(default=4_000_000, ge=1000)
    body_seconds: float = Field(default=30.0, gt=0)
    review_seconds: float = Field(default=60.0, gt=0, le=600, description="Longest wait for a person.")
    shutdown_seconds: float = Field(default=30.0, gt=0)


class StreamingSection(_ConfigPart):
    """What a held stream sends before its decision."""

    hold: Hold = "comments"
    comment_seconds: float = Field(default=10.0, gt=0)


class MetricsSection(_ConfigPart):
    """Access to /metrics."""

    open: bool = Field(default=False, description="Allow access without a key even if the other endpoints need one.")


class ConsoleSection(_ConfigPart):
    """The review console below /console; it needs an account and the extra ``console``."""

    https: bool = Field(default=False, description="Whether browsers reach it by HTTPS, through a proxy.")
    names: tuple[str, ...] = Field(default=(), description="Host names under which it answers; by default any.")
    proxies: tuple[str, ...] = Field(
        default=(), description="Addresses of that proxy; it states the visitor's in X-Forwarded-For."
    )


class ServeConfig(_ConfigPart):
    """The configuration of a server."""

    version: Literal[1]
    models: dict[_ModelKey, ModelSection] = Field(min_length=1, max_length=50)
    listen: ListenSection = Field(default_factory=ListenSection)
    keys: bool | None = Field(default=None, description="Whether requests need an API key; by default off loopback.")
    store: str | None = Field(default=None, description="SQLite file or URL of reviews and keys.")
    audit_log: bool = Field(default=False, description="Write every decision to the store's audit log first.")
    limits: LimitsSection = Field(default_factory=LimitsSection)
    streaming: StreamingSection = Field(default_factory=StreamingSection)
    content_filter: bool = Field(default=False, description="Abstentions end with content_filter, not stop.")
    unguarded_keys: tuple[str, ...] = Field(
        default=(), description="Names of API keys whose side requests are answered without a policy."
    )
    console: ConsoleSection | None = Field(default=None, description="The review console, below /console.")
    opentelemetry: bool = Field(default=False, description="Send traces and metrics to the process's providers.")
    metrics: MetricsSection = Field(default_factory=MetricsSection)

    def settings(self) -> ServeSettings:
        """Return the settings of the application."""
        limits = self.limits
        return ServeSettings(
            bounds=Bounds(limits.answer_tokens, limits.prompt_characters, limits.seconds),
            most_requests=limits.requests,
            body_bytes=limits.body_bytes,
            body_seconds=limits.body_seconds,
            hold=self.streaming.hold,
            comment_seconds=self.streaming.comment_seconds,
            content_filter=self.content_filter,
            unguarded_keys=self.unguarded_keys,
            review_seconds=limits.review_seconds,
            shutdown_seconds=limits.shutdown_seconds,
            open_metrics=self.metrics.open,
        )


class InvalidConfigError(InvalidPolicyError):
    """A configuration file is invalid; each problem has its line and column."""


def load_config(path: str | Path) -> ServeConfig:
    """Read a configuration file.

    Raises:
        PolicyError: the file cannot be read.
        InvalidConfigError: the file is invalid.
    """
    file = Path(path)
    return _with_paths(parse_config(read_text(file), where=str(file)), file.parent)


def parse_config(text: str, *, where: str = "<server>") -> ServeConfig:
    """Read a configuration from text.

    Examples:
        >>> parse_config("{version: 1, models: {smollm2: {policy: strict}}}").models["smollm2"].policy
        'strict'
        >>> parse_config("{version: 1, modles: {smollm2: {}}}")
        Traceback (most recent call last):
        guard.serve.config.InvalidConfigError: <server>:1:1: 'models' is missing. ...
    """
    try:
        source = read_yaml(text, where=where, wanted="a server's file is a mapping with 'version' and 'models'")
    except InvalidPolicyError as error:
        raise InvalidConfigError.of(error.problems) from error
    problems = [*source.problems]
    config = None
    try:
        config = ServeConfig.model_validate(_without_empty(source))
    except ValidationError as error:
        problems += [_problem(details, source) for details in error.errors(include_url=False)]
    if problems or config is None:
        raise InvalidConfigError.of(problems)
    return config


def _without_empty(source: YamlSource) -> Any:
    """Return the data with an empty mapping for a model or console without settings (``smollm2:``)."""
    if "console" in source.data and source.data["console"] is None:
        source.data["console"] = {}
    models = source.data.get("models")
    if isinstance(models, dict):
        source.data["models"] = {name: {} if value is None else value for name, value in models.items()}
    return source.data


def _problem(details: ErrorDetails, source: YamlSource) -> Problem:
    location, kind = details["loc"], details["type"]
    if kind == "missing":
        place = location_text(location[:-1])
        return source.problem(location, f"'{location[-1]}' is missing" + (f" in {place}" if place else ""))
    if kind == "extra_forbidden":
        place = f" in {location_text(location[:-1])}" if location[:-1] else ""
        hint = did_you_mean(str(location[-1]), _keys_at(location[:-1]))
        return source.problem(location, f"unknown key '{location[-1]:.60}'{place}. {hint}", at_key=True)
    if location[-1] == "[key]":
        message = f"'{location[-2]:.60}' must be a name without spaces, colons and commas"
        return source.problem(location[:-1], message, at_key=True)
    return value_problem(details, source)


def _keys_at(location: Location) -> list[str]:
    """Return the valid keys of the mapping at a location."""
    if location[:1] == ("models",):
        return [*(BackendSection if "backends" in location else ModelSection).model_fields]
    sections = {"console": ConsoleSection}
    section: Any = ServeConfig
    for step in location:
        section = sections.get(str(step)) or section.model_fields[str(step)].annotation
    return [*section.model_fields]


def _with_paths(config: ServeConfig, folder: Path) -> ServeConfig:
    """Return the configuration with absolute paths."""
    models = {name: _model_with_paths(model, folder) for name, model in config.models.items()}
    store = config.store
    if store is not None and "://" not in store:
        store = str(folder / Path(store).expanduser())
    return config.model_copy(update={"models": models, "store": store})


def _model_with_paths(model: ModelSection, folder: Path) -> ModelSection:
    own: Mapping[str, str | None] = {
        name: getattr(model, name) for name in ("model", "scorer", "policy", "certificate")
    }
    found = {name: None if text is None else _path(text, folder) for name, text in own.items()}
    if not _is_of_a_file(model):
        found["model"] = model.model
    policies = {name: _path(text, folder) for name, text in model.policies.items()}
    changed = {"policies": policies, "engine_options": _options_with_paths(model.engine_options, folder)}
    backends = tuple(_backend_with_paths(each, folder) for each in model.backends)
    return model.model_copy(update={**found, **changed, "backends": backends})


def _backend_with_paths(backend: BackendSection, folder: Path) -> BackendSection:
    scorer = None if backend.scorer is None else _path(backend.scorer, folder)
    options = _options_with_paths(backend.engine_options, folder)
    return backend.model_copy(update={"scorer": scorer, "engine_options": options})


def _options_with_paths(given: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    options = dict(given)
    if isinstance(key := options.get("api_key_file"), str):
        options["api_key_file"] = str(folder / Path(key).expanduser())
    return options


def _is_of_a_file(model: ModelSection) -> bool:
    """Return whether the model is a file, not an address or a name that the engine resolves."""
    return model.engine in (None, "llama.cpp", "transformers", "vllm") and "://" not in (model.model or "")


def _path(text: str, folder: Path) -> str:
    """Return a path relative to the file; a plain name such as ``balanced`` is unchanged."""
    path = Path(text).expanduser()
    is_name = path.parent == Path() and not path.suffix
    return text if is_name else str(folder / path)
