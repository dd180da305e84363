"""Settings of a run: those of the caller, or else those of the data sets and the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from guard.data.questions import LabelledResponse
from guard.data.recording import Run
from guard.data.sets import DataSource
from guard.engines.asked import RequestEngine
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.errors import InputError
from guard.records import CapturePoint
from guard.runtime.base_models import COMPLETION_STOP, is_base_model

_ValueT = TypeVar("_ValueT", str, int)

#: Token limit of answers to questions from files, and of most named sets.
_MAX_TOKENS = 32


def how_to_ask(sources: Sequence[DataSource], *, system: str | None, max_tokens: int | None) -> tuple[str, int]:
    """Return the system message and the token limit: the given ones, or else those that all data sets agree on.

    Raises:
        InputError: the data sets disagree, and nothing is given.
    """
    systems = {each.name: each.named.system if each.named else SHORT_ANSWER_SYSTEM for each in sources}
    limits = {each.name: each.named.max_tokens if each.named else _MAX_TOKENS for each in sources}
    if system is None:
        system = _agreed("--system", systems)
    return system, _agreed("--max-tokens", limits) if max_tokens is None else max_tokens


def _agreed(option: str, wanted: dict[str, _ValueT]) -> _ValueT:
    distinct = {value: name for name, value in reversed(wanted.items())}
    if len(distinct) > 1:
        raise InputError(
            "These data sets are asked differently",
            why="; ".join(f"{name} with {option} {value!r}" for value, name in reversed(distinct.items())),
            fix=f"Give {option} ({_python(option)}) for all of them, or use them one by one",
        )
    return next(iter(distinct))


def _python(option: str) -> str:
    return f"{option.removeprefix('--').replace('-', '_')}="


def settings_of_run(
    engine: RequestEngine,
    sources: Sequence[DataSource],
    *,
    system: str | None,
    max_tokens: int | None,
    tau: Sequence[float],
    completion: bool | None,
    template_options: Mapping[str, Any] | None,
    capture_point: CapturePoint,
) -> Run:
    """Return the settings of a run: chat messages, or a text to continue for a model without a chat template.

    Args:
        engine: the loaded model.
        sources: the data sets; see `how_to_ask`.
        system: system message of every question; None for that of the data sets.
        max_tokens: token limit of an answer; None for that of the data sets.
        tau: temperatures of the signature's softmax.
        completion: ask by a text to continue; None decides by the model's chat template.
        template_options: variables of the model's chat template.
        capture_point: where the signature's activations are read.

    Raises:
        InputError: options exclude one another, or the data has responses to chat messages and the model has no chat
            template.
    """
    options = dict(template_options or {})
    if completion is None:
        completion = is_base_model(engine.model)
    if completion:
        _check_completion(engine, sources, system, options)
        system = ""
    engine.check_template_options(options)
    system, tokens = how_to_ask(sources, system=system, max_tokens=max_tokens)
    return Run(
        model=engine.model,
        # The signature reads the MLPs only, even if the residual stream is recorded too.
        capture_point=capture_point,
        system=system,
        max_tokens=tokens,
        temperatures=tuple(tau),
        stop=COMPLETION_STOP if completion else (),
        completion=completion,
        template_options=options,
    )


def _check_completion(
    engine: RequestEngine, sources: Sequence[DataSource], system: str | None, options: Mapping[str, Any]
) -> None:
    if system:
        raise InputError(
            "A text to continue has no system message",
            why=f"{engine.model.name} is asked by a text, since it has no chat template or --completion was given",
            fix="Leave --system (system=) out",
        )
    if options:
        raise InputError(
            "A text to continue uses no chat template", fix="Leave --template-option (template_options=) out"
        )
    rows = (row for source in sources for row in source.rows)
    if any(isinstance(row, LabelledResponse) and row.prompt.messages is not None for row in rows):
        raise InputError(
            "Responses to chat messages cannot be given to a model that is asked by a text to continue",
            fix='Give questions with accepted answers, or responses to texts ("raw": true)',
        )
