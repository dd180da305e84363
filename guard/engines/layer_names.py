"""Finding a model's layers by name. Pure code over names, so that it is tested without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from guard.errors import UnsupportedArchitectureError

#: Modules of Hugging Face models whose output is the MLP's, before the residual add. The first
#: template that a layer has wins. Bloom and MPT add the residual inside their MLP module, so there
#: the last projection is read (which is the MLP's whole output, also in Falcon, of the same names).
MLP_TEMPLATES = (
    "transformer.h.{n}.mlp.dense_4h_to_h",
    "transformer.blocks.{n}.ffn.down_proj",
    "transformer.blocks.{n}.ffn",
    "model.layers.{n}.mlp",
    "model.layers.{n}.feed_forward",
    "model.layers.{n}.block_sparse_moe",
    "model.layers.{n}.shared_mlp",
    "model.layers.{n}.fc2",
    "model.language_model.layers.{n}.mlp",
    "model.language_model.layers.{n}.feed_forward",
    "language_model.model.layers.{n}.mlp",
    "language_model.model.layers.{n}.feed_forward",
    "transformer.h.{n}.mlp",
    "transformer.h.{n}.ffn",
    "transformer.layers.{n}.ffn",
    "transformer.encoder.layers.{n}.mlp",
    "gpt_neox.layers.{n}.mlp",
    "model.decoder.layers.{n}.fc2",
    "biogpt.layers.{n}.fc2",
)

#: Modules of Hugging Face models whose output is the residual stream after a whole block.
BLOCK_TEMPLATES = (
    "model.layers.{n}",
    "model.language_model.layers.{n}",
    "language_model.model.layers.{n}",
    "transformer.h.{n}",
    "transformer.blocks.{n}",
    "transformer.layers.{n}",
    "transformer.encoder.layers.{n}",
    "gpt_neox.layers.{n}",
    "model.decoder.layers.{n}",
    "biogpt.layers.{n}",
)

_SHOWN = 12


def find_layers(names: Iterable[str], templates: Sequence[str], layers: int | None) -> list[str]:
    """Return the name of each layer's output, in order.

    Args:
        names: every name the model has (modules, or nodes of its graph).
        templates: names with ``{n}`` for the layer's number from 0. For each layer the first
            template that it has wins, so that a model may mix kinds of layers.
        layers: how many there must be; None takes as many as follow one another from 0. Names
            beyond that number (extra prediction heads) are left out.

    Raises:
        UnsupportedArchitectureError: no layer, or not every layer, has a name of these templates.
    """
    known = list(names)
    found: dict[int, str] = {}
    for template in templates:
        before, _, after = template.partition("{n}")
        pattern = re.compile(f"{re.escape(before)}(0|[1-9][0-9]*){re.escape(after)}")
        for match in filter(None, map(pattern.fullmatch, known)):
            found.setdefault(int(match[1]), match[0])
    wanted = range(layers if layers is not None else max(found, default=-1) + 1)
    missing = [number for number in wanted if number not in found]
    if missing or not found:
        raise _unsupported(known, wanted, missing)
    return [found[number] for number in wanted]


def _unsupported(names: Sequence[str], wanted: range, missing: Sequence[int]) -> UnsupportedArchitectureError:
    if not missing or len(missing) == len(wanted):
        what = "None of the model's layers has a name that is known"
    else:
        what = f"Of the model's {len(wanted)} layers, layer {missing[0]} has no name that is known"
    return UnsupportedArchitectureError(
        what,
        why=f"the names found are {summarise(names)}",
        fix="Use a decoder-only language model with its output head, or ask for this architecture to be added",
    )


def summarise(names: Iterable[str]) -> str:
    """Return names on one line: layers' numbers become ``{n}``, and of many kinds the most frequent are shown."""
    kinds = Counter(re.sub(r"(?<![A-Za-z0-9])[0-9]+(?![A-Za-z0-9])", "{n}", name) for name in names if name)
    if not kinds:
        return "none"
    # Layers' names first, of these the least nested, of these the most frequent.
    kinds_shown = sorted(kinds, key=lambda kind: ("{n}" not in kind, kind.count("."), -kinds[kind]))
    shown = [f"{kind} ({kinds[kind]} times)" if kinds[kind] > 1 else kind for kind in kinds_shown]
    more = f", and {len(shown) - _SHOWN} more kinds" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more
