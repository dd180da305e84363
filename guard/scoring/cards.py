"""Cards of scorers: information for users, read from a TOML file into the scorer file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from guard.errors import InputError, did_you_mean
from guard.scoring.provenance import Card
from guard.scoring.scorer import Scorer


def read_card(path: str | Path, scorer: Scorer) -> Card:
    """Read the card of a scorer.

    Args:
        path: a TOML file with the fields of `guard.scoring.provenance.Card`.
        scorer: the card must state the licence of each of its data sets.

    Raises:
        InputError: the file cannot be read, or is not a card of this scorer.

    Examples:
        >>> from guard.scoring import load_scorer, shipped_scorer
        >>> read_card("no.toml", load_scorer(shipped_scorer()))  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    content = _read(Path(path).expanduser())
    for name in content:
        if name not in Card.model_fields:
            raise InputError(f"A card has no field '{name}'", fix=did_you_mean(name, Card.model_fields))
    try:
        card = Card.model_validate(content)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise InputError(f"'{path}' is not a card", why=f"{place}: {problem['msg']}") from error
    _check_licences(card, scorer)
    return card


def with_card(scorer: Scorer, card: Card) -> Scorer:
    """Return the scorer with a card. Scores are unchanged, but the checksum changes, to which certificates are bound.

    Examples:
        >>> from guard.scoring import load_scorer, shipped_scorer
        >>> shipped = load_scorer(shipped_scorer())
        >>> with_card(shipped, shipped.artefact.card).sha256 == shipped.sha256
        True
    """
    return Scorer(scorer.artefact.model_copy(update={"card": card}), calibrated=scorer.calibrated)


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"Cannot read the card '{path}'", why=error.strerror or str(error)) from error
    except ValueError as error:  # invalid TOML or UTF-8
        raise InputError(f"'{path}' is not a card", why=f"invalid TOML: {error}") from error


def _check_licences(card: Card, scorer: Scorer) -> None:
    names = {each.name for each in scorer.artefact.data}
    for name in sorted(names - card.data.keys()):
        raise InputError(f"The card does not state the licence of the data set '{name}'", fix="Write it under [data]")
    for name in sorted(card.data.keys() - names):
        why = "the scorer was not fitted on it"
        raise InputError(f"The card names the data set '{name}'", why=why, fix=did_you_mean(name, names) or "")
