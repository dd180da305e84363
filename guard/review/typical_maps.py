"""What the layers look like in answers that people found right, and in those that they found wrong.

A scorer's file has no maps, so these are the means over reviewed cases of the same scorer: the newest ones, for as
long as there are enough of a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy import Connection

from guard.records import Floats
from guard.review.answer_signals import unpack_map
from guard.review.migrations.tables import REVIEWS
from guard.review.records import storable_text

if TYPE_CHECKING:
    from guard.review.store import Store

#: Fewer reviewed answers of a kind than this are not typical of anything.
FEWEST = 10

#: Newest verdicts that are looked through.
_NEWEST = 400


@dataclass(frozen=True, slots=True, eq=False)
class TypicalMaps:
    """Reviewed answers of one scorer.

    Attributes:
        right, wrong: shape (L, L), mean of the logarithms; None with fewer than `FEWEST` answers.
        rights, wrongs: numbers of answers with a map.
        spread: shape (L,), standard deviation over right answers of what `of_layers` gives; None as for `right`.
    """

    right: Floats | None
    wrong: Floats | None
    rights: int
    wrongs: int
    spread: Floats | None

    def distances(self, layer_map: Floats) -> Floats | None:
        """Return by how many standard deviations each layer is further from the others than in right answers.

        Args:
            layer_map: shape (L, L), logarithms.

        Returns:
            shape (L,); None without enough right answers, or where they have another number of layers.
        """
        if self.right is None or self.spread is None or self.right.shape != layer_map.shape:
            return None
        away = of_layers(layer_map) - of_layers(self.right)
        return np.asarray(away / np.maximum(self.spread, np.float32(1e-6)), np.float32)


def of_layers(layer_map: Floats) -> Floats:
    """Return how far each layer is from the others on average, shape (L,), in the map's logarithms.

    Examples:
        >>> of_layers(np.array([[-13.8, 2.0], [4.0, -13.8]])).tolist()
        [3.0, 3.0]
    """
    count = len(layer_map)
    off = np.where(np.eye(count, dtype=bool), 0, layer_map)
    return np.asarray((off.sum(axis=0) + off.sum(axis=1)) / max(2 * (count - 1), 1), np.float32)


def typical_maps(store: Store, scorer: str | None) -> TypicalMaps:
    """Return the means over reviewed answers; verdicts that can still be undone do not count.

    Args:
        store: where they are.
        scorer: digest of the scorer, as in `guard.review.records.Review`; of None there are none.
    """
    if scorer is None:
        return TypicalMaps(None, None, 0, 0, None)
    with store._database.read() as connection:
        found = _read(connection, scorer, store._database.now(connection))
    right, wrong = ([each for label, each in found if label == kind] for kind in ("right", "wrong"))
    spread = np.std([of_layers(each) for each in right], axis=0, dtype=np.float32) if len(right) >= FEWEST else None
    return TypicalMaps(_mean(right), _mean(wrong), len(right), len(wrong), spread)


def _read(connection: Connection, scorer: str, at: str) -> list[tuple[str, Floats]]:
    """Return label and map of the newest verdicts; maps of another size than the newest one's are left out."""
    newest = sa.select(REVIEWS.c.id).where(REVIEWS.c.decided_at.is_not(None), REVIEWS.c.final_at <= at)
    newest = newest.order_by(REVIEWS.c.decided_at.desc()).limit(_NEWEST)
    query = sa.select(REVIEWS.c.draft, REVIEWS.c.attempts).where(
        REVIEWS.c.id.in_(newest), REVIEWS.c.scorer == storable_text(scorer), REVIEWS.c.draft.is_not(None)
    )
    rows = connection.execute(query.order_by(REVIEWS.c.decided_at.desc()))
    maps = [(str(row.draft), found) for row in rows if (found := read_layer_map(row.attempts)) is not None]
    return [(label, each) for label, each in maps if each.shape == maps[0][1].shape]


def read_layer_map(attempts: Sequence[Any]) -> Floats | None:
    """Return the logarithms of the map of a case's answer: of its last attempt; None where none was kept."""
    return unpack_map(attempts[-1].get("layer_map")) if attempts else None


def _mean(maps: list[Floats]) -> Floats | None:
    return np.mean(maps, axis=0) if len(maps) >= FEWEST else None
