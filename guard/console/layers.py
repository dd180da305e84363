"""What the layers say about one answer, beside what they say in reviewed ones."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from guard.console.charts import Said
from guard.console.desk import ReviewDesk
from guard.console.layer_charts import UNLIKE, difference_map, layer_bars, layer_map
from guard.records import Floats
from guard.review.records import Review
from guard.review.typical_maps import FEWEST, TypicalMaps, read_layer_map, typical_maps


@dataclass(frozen=True, slots=True)
class MapFigure:
    """One map.

    Attributes:
        title, caption: for people.
        picture: the map itself.
    """

    title: str
    caption: str
    picture: Markup


@dataclass(frozen=True, slots=True)
class Layers:
    """The panel of one case.

    Attributes:
        count: number of layers.
        maps: this answer, typical right and typical wrong ones, as far as there are any.
        differences: this answer less the typical ones.
        bars: one bar a layer; None without enough reviewed answers.
        unlike: layers beyond two standard deviations.
        missing: one sentence on what is not shown, or empty.
    """

    count: int
    maps: tuple[MapFigure, ...]
    differences: tuple[MapFigure, ...]
    bars: Markup | None
    unlike: int
    missing: str


def read_layers(desk: ReviewDesk, review: Review) -> Layers | None:
    """Return the panel of a case; None where no map was kept with it."""
    own = read_layer_map(review.attempts)
    if own is None:
        return None
    typical = desk.typical.get(review.scorer, lambda: typical_maps(desk.store, review.scorer))
    return build_panel(own, typical, review.p_wrong)


def build_panel(own: Floats, typical: TypicalMaps, p_wrong: float | None) -> Layers:
    """Return the panel of an answer.

    Args:
        own: logarithms of its map, shape (L, L).
        typical: of its scorer.
        p_wrong: its score.
    """
    there = {
        f"typical {kind}": (found, count)
        for kind, found, count in (("right", typical.right, typical.rights), ("wrong", typical.wrong, typical.wrongs))
        if found is not None and found.shape == own.shape
    }
    among = [own, *(found for found, _ in there.values())]
    score = "no score" if p_wrong is None else f"p(wrong) {p_wrong:.2f}"
    this = MapFigure("This answer", score, layer_map(own, among, Said("map-0", "Map of this answer", _finding(own))))
    distances = typical.distances(own)
    return Layers(
        len(own),
        (this, *(_figure(at, name, *each, among) for at, (name, each) in enumerate(there.items(), 1))),
        tuple(_difference(at, name, own, found) for at, (name, (found, _)) in enumerate(there.items())),
        None if distances is None else layer_bars(distances, _bars_said(distances)),
        0 if distances is None else int((abs(distances) > UNLIKE).sum()),
        _missing(typical) if len(there) < 2 else "",
    )


def _figure(at: int, name: str, found: Floats, count: int, among: list[Floats]) -> MapFigure:
    said = Said(f"map-{at}", f"Map of {name} answers", f"Mean of {count} reviewed answers. {_finding(found)}")
    return MapFigure(name.capitalize(), f"mean of {count} reviewed answers", layer_map(found, among, said))


def _difference(at: int, name: str, own: Floats, found: Floats) -> MapFigure:
    differences = own - found
    more = int((differences > 0).sum())
    said = Said(
        f"less-{at}",
        f"This answer less {name} ones",
        f"Of {differences.size - len(own)} pairs of layers {more} disagree more than in {name} answers.",
    )
    return MapFigure("This answer", f"against {name}", difference_map(own, found, said))


def _finding(logarithms: Floats) -> str:
    away = logarithms.copy()
    for layer in range(len(away)):
        away[layer, layer] = away.min()
    first, second = divmod(int(away.argmax()), len(away))
    return f"Layers {first + 1} and {second + 1} disagree most."


def _bars_said(distances: Floats) -> Said:
    furthest = int(abs(distances).argmax())
    finding = f"The furthest of {len(distances)} layers is {furthest + 1} with {distances[furthest]:+.1f}."
    return Said("bars", "Each layer against typical right answers, in standard deviations", finding)


def _missing(typical: TypicalMaps) -> str:
    return (
        f"What is typical comes from reviewed answers of the same scorer, {FEWEST} at least of each kind; so far "
        f"{typical.rights} right and {typical.wrongs} wrong ones have a map."
    )
