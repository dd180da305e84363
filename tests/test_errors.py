"""Every exception of the tree says what, why and what to do, and ends the command line in its own way."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil

import pytest

import guard
from guard.errors import GuardError, InputError, did_you_mean, missing_extra

#: What docs/reference/cli.md promises.
EXIT_CODES = {1, 2, 3, 4, 5, 6, 10}


def tree(root: type[GuardError] = GuardError) -> list[type[GuardError]]:
    """All classes below and with the root, those of other modules too."""
    return [root, *(below for child in root.__subclasses__() for below in tree(child))]


def import_everything() -> None:
    for module in pkgutil.walk_packages(guard.__path__, "guard."):
        try:
            importlib.import_module(module.name)
        except (ImportError, GuardError):
            continue  # an optional package that is not installed
        except AttributeError:
            assert module.name == "guard.review.migrations.env"  # runs within Alembic only
            continue


import_everything()
CLASSES = sorted({error for error in tree() if error.__module__.startswith("guard")}, key=lambda error: error.__name__)


def test_the_tree_is_all_there() -> None:
    names = {error.__name__ for error in CLASSES}
    assert {"GuardError", "ModelFileError", "ScorerMismatchError", "InvalidPolicyError", "ReviewError"} <= names
    assert len(names) == len(CLASSES), "two classes of one name"
    assert len(CLASSES) > 20


@pytest.mark.parametrize("error", CLASSES)
def test_each_class_is_documented_and_has_an_exit_code(error: type[GuardError]) -> None:
    assert error.__doc__
    assert vars(error).get("__doc__"), "a docstring of its own"
    assert error.exit_code in EXIT_CODES


@pytest.mark.parametrize("error", CLASSES)
def test_each_says_what_why_and_what_to_do(error: type[GuardError]) -> None:
    raised = error("The file 'x' is gone", why="somebody deleted it", fix="Restore it")
    assert (raised.what, raised.why, raised.fix) == ("The file 'x' is gone", "somebody deleted it", "Restore it")
    assert str(raised) == "The file 'x' is gone: somebody deleted it. Restore it."
    assert str(error("No")) == "No."
    assert str(error("No.", fix="Ask again?")) == "No. Ask again?"
    assert isinstance(raised, GuardError)


@pytest.mark.parametrize("error", CLASSES)
def test_each_crosses_process_borders(error: type[GuardError]) -> None:
    raised = error("It broke", why="of age", fix="Buy a new one")
    for other in (pickle.loads(pickle.dumps(raised)), copy.copy(raised)):  # noqa: S301 - our own bytes
        assert type(other) is error
        assert str(other) == str(raised)
        assert (other.what, other.why, other.fix) == (raised.what, raised.why, raised.fix)


def test_one_exit_code_a_kind_of_trouble() -> None:
    from guard import errors

    assert issubclass(errors.PolicyError, InputError)
    codes = {
        errors.InputError: 2,
        errors.PolicyError: 2,
        errors.PromptTooLongError: 2,
        errors.ScorerMismatchError: 3,
        errors.CalibrationError: 3,
        errors.ModelFileError: 4,
        errors.MissingExtraError: 4,
        errors.EngineTimeoutError: 5,
        errors.CancelledError: 5,
        errors.StoreError: 6,
        errors.EscalationError: 6,
        errors.AbstainedError: 10,
    }
    assert {error: error.exit_code for error in codes} == codes


def test_suggestions() -> None:
    known = ["strict", "balanced", "permissive"]
    assert did_you_mean("balancd", known) == "Did you mean 'balanced'?"
    assert did_you_mean("xyz", known) == "Known: balanced, permissive, strict"
    assert did_you_mean("xyz", []) == ""
    missing = missing_extra("torch", "transformers")
    assert str(missing) == "torch is not installed. Run: pip install 'ilis-guard[transformers]'."
