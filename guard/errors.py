"""The exception tree. Every error says what went wrong, with which value, why, and what to do.

Each class also sets the command line's exit code, by which scripts distinguish a misspelt policy (2) from a missing
engine (4).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from typing import Any


class GuardError(Exception):
    """Base of all errors that guard raises on purpose.

    Args:
        what: what went wrong, with the offending name or value.
        why: the reason, when it is known and not already in ``what``.
        fix: what the reader can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        self.what = what
        self.why = why
        self.fix = fix
        super().__init__(what, why, fix)

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions cross process borders by their arguments, which are keywords here.
        return partial(type(self), self.what, why=self.why, fix=self.fix), ()

    def __str__(self) -> str:
        if "\n" in self.why:  # several reasons, one per line
            return "\n".join([f"{self.what.rstrip('.')}:", self.why, *filter(None, [self.fix and _sentence(self.fix)])])
        what = f"{self.what.rstrip('.')}: {self.why}" if self.why else self.what
        return " ".join(_sentence(part) for part in (what, self.fix) if part)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


class InputError(GuardError):
    """The caller passed something that cannot be used: a value, a file, a row."""

    exit_code = 2


class MissingExtraError(GuardError):
    """An optional dependency is not installed."""

    exit_code = 4


# -- engines -----------------------------------------------------------------------------------


class EngineError(GuardError):
    """An engine could not be built or could not answer."""

    exit_code = 4


class ModelFileError(EngineError):
    """The weights are missing, truncated, or not of a format that the engine reads."""


class UnsupportedArchitectureError(EngineError):
    """The model's layers were not found where their MLP outputs are expected."""


class ChatTemplateError(EngineError):
    """The model has no chat template, or its template refuses the messages."""


class PromptTooLongError(EngineError):
    """The prompt does not fit into the model's context."""

    exit_code = 2


class OutOfMemoryError(EngineError):
    """The engine could not get the memory that the model or its context needs."""


class EngineTimeoutError(EngineError):
    """The deadline passed while the request was queued or generating."""

    exit_code = 5


class CancelledError(EngineError):
    """The caller cancelled the request."""

    exit_code = 5


class ForkError(EngineError):
    """The engine was loaded before this process was forked. This is a fault of the program, so no policy decides about
    it.
    """


class HandOverError(EngineError):
    """The engine cannot answer now, and whoever made the guarded call asks another one: no policy decides about it."""


class CaptureError(EngineError):
    """The layers' activations could not be recorded for this generation."""


# -- scoring -----------------------------------------------------------------------------------


class ScorerError(GuardError):
    """A scorer artefact cannot be read, or cannot score this generation."""

    exit_code = 3


class ScorerMismatchError(ScorerError):
    """The scorer was fitted on another model, engine or feature schema."""


class CalibrationError(GuardError):
    """A scorer cannot be fitted from the given records."""

    exit_code = 3


# -- deciding and acting -----------------------------------------------------------------------


class PolicyError(InputError):
    """A policy file is wrong; the message names file, line and column."""


class AbstainedError(GuardError):
    """Replaces an answer if the policy abstains by ``abstain: {raise: true}``."""

    exit_code = 10


class EscalationError(GuardError):
    """No escalation handler accepted the case."""

    exit_code = 6


class StoreError(GuardError):
    """The review store could not be opened, read or written."""

    exit_code = 6


class ReviewError(InputError):
    """A review does not exist or has been decided already."""


class AccessError(InputError):
    """A user, key, session or link does not exist or cannot be used, or a login failed."""


def error_text(error: BaseException) -> str:
    """Return an error's message, or its type's name if the message is empty or cannot be read."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a foreign error's own code
        text = ""
    return text or type(error).__name__


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``Did you mean 'x'?`` for the nearest known name, or the list of known names."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known: {', '.join(names)}" if names else ""


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Return the error for an optional dependency that is not installed."""
    return MissingExtraError(f"{package} is not installed", fix=f"Run: pip install 'ilis-guard[{extra}]'")
