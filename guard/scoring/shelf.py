"""The shelf of scorers: those that come with guard, and those in a folder of the user's, each by its name."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from guard.errors import InputError, ScorerError
from guard.records import ModelInfo
from guard.scoring.provenance import Binding

#: Environment variable that names another folder.
ENVIRONMENT = "GUARD_SCORERS"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

#: What an engine is loaded with because a scorer says so, and therefore no property of the model.
_SET_BY_SCORER = frozenset({"capture_point", "template_date"})


def shelf_folder() -> Path:
    """Return the user's folder of scorers: ``$GUARD_SCORERS``, or else ``scorers`` in guard's data folder."""
    import platformdirs

    return Path(os.environ.get(ENVIRONMENT) or platformdirs.user_data_path("guard") / "scorers").expanduser()


def shipped_folder() -> Path:
    """Return the folder of the scorers that come with guard.

    Examples:
        >>> sorted(each.name for each in shipped_folder().glob("*.json"))
        ['gemma-3-270m-q4_k_m.json', 'qwen2.5-coder-1.5b-instruct-q4_k_m.json', 'smollm2-135m-instruct-q4_1.json']
    """
    return Path(str(files("guard") / "scoring" / "shipped"))


def shelved() -> dict[str, Path]:
    """Return the files of the scorers on the shelf by name; a user's one cannot replace one that comes with guard.

    Examples:
        >>> shelved()["smollm2-135m-instruct-q4_1"].name
        'smollm2-135m-instruct-q4_1.json'
    """
    folders = (shipped_folder(), shelf_folder())
    found = [path for folder in folders if folder.is_dir() for path in sorted(folder.glob("*.json"))]
    return {path.stem: path for path in reversed(found)}


def scorer_path(named: str | Path) -> Path:
    """Return the file that a path or a name on the shelf stands for; a file that exists goes before a name.

    Examples:
        >>> scorer_path("smollm2-135m-instruct-q4_1").name
        'smollm2-135m-instruct-q4_1.json'
        >>> scorer_path("no-such-scorer").name
        'no-such-scorer'
    """
    path = Path(named)
    if not isinstance(named, str) or not _NAME.fullmatch(named) or path.exists():
        return path
    return shelved().get(named, path)


def scorers_for(model: ModelInfo) -> list[str]:
    """Return the names of the scorers on the shelf that were fitted on a loaded model. guard uses none of them unasked.

    Files that are no scorers are passed over; ``guard scorers list`` shows why.

    Args:
        model: weights, tokenizer, chat template and engine must be those of the scorer.
    """
    return [name for name, path in sorted(shelved().items()) if _is_of(path, model)]


def missing_scorer(model: str | Path, fitting: Sequence[str] | None = None) -> ScorerError:
    """Return the error of loading a model without a scorer; it names those on the shelf, or those of the model.

    Args:
        model: its name.
        fitting: names on the shelf that were fitted on it; None where the model could not be compared.

    Examples:
        >>> print(missing_scorer("my-model.gguf").what)
        There is no scorer for 'my-model.gguf'
    """
    why = "only the embedded model is loaded without naming one"
    fix = "Fit one: guard calibrate --model MODEL --data QUESTIONS.jsonl --out scorer.json"
    if fitting is None:
        fix += (
            f". Or name one of the shelf ({', '.join(sorted(shelved()))}), if guard scorers check NAME --model MODEL "
        )
        fix += "says that it fits"
    elif fitting:
        fix = f"Name the one on the shelf that was fitted on this very model: --scorer {' or '.join(fitting)}. {fix}"
    else:
        fix += ". None on the shelf was fitted on this model"
    return ScorerError(f"There is no scorer for '{model}'", why=why, fix=fix)


def place_for(name: str) -> Path:
    """Return where a scorer of this name stands on the user's shelf.

    Raises:
        InputError: the name is none, or belongs to a scorer that comes with guard.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' is no name for a scorer", fix="Use letters, digits, dots, dashes and underscores")
    if (shipped_folder() / f"{name}.json").exists():
        raise InputError(f"'{name}' comes with guard", fix="Give another name with --name")
    return shelf_folder() / f"{name}.json"


def _is_of(path: Path, model: ModelInfo) -> bool:
    try:
        fitted = Binding.model_validate(json.loads(path.read_bytes())["binding"])
    except (OSError, ValueError, LookupError, TypeError):
        return False
    return all(getattr(fitted, name) == getattr(model, name) for name in Binding.model_fields.keys() - _SET_BY_SCORER)
