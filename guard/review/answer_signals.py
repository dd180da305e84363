"""What a case keeps of an answer's tokens and layers, for the people who review it: plain data, and small."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from guard.records import Generation

#: Added to divergences before the logarithm, as in the scorer's features.
_LEAST = 1e-6

#: What stands for a token that the model ruled out altogether.
_RULED_OUT = -99.0


def kept_tokens(generation: Generation | None) -> list[list[float]] | None:
    """Return where each token of an answer ends, and its log-probability: ``[[4, -0.012], ...]``.

    Tokens that write one character together count as one; those that write none are left out. None where the engine
    does not say which characters a token writes.
    """
    if generation is None or generation.offsets is None:
        return None
    kept: list[list[float]] = []
    for (begin, end), logprob in zip(generation.offsets.tolist(), generation.logprobs.tolist(), strict=True):
        value = round(max(logprob, _RULED_OUT), 4)
        if kept and kept[-1][0] == end and begin < end:
            kept[-1][1] += value
        elif begin < end:
            kept.append([end, value])
    return kept


def pack_map(layer_map: NDArray[np.float32] | None) -> dict[str, Any] | None:
    """Return a map of layers as it is kept: the number of layers, and base64 of little-endian float16 logarithms.

    Args:
        layer_map: shape (L, L), in nats; None stays None.
    """
    import numpy as np

    if layer_map is None:
        return None
    logarithms = np.log(layer_map + np.float32(_LEAST)).astype("<f2")
    return {"layers": len(layer_map), "log": base64.b64encode(logarithms.tobytes()).decode()}


def unpack_map(kept: Any) -> NDArray[np.float32] | None:
    """Return the logarithms of a kept map, shape (L, L); None where there is none or it is damaged.

    Examples:
        >>> import numpy as np
        >>> unpack_map(pack_map(np.ones((2, 2), np.float32))).round(3).tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    import numpy as np

    if not isinstance(kept, Mapping):
        return None
    try:
        data, layers = base64.b64decode(kept["log"], validate=True), int(kept["layers"])
        found = np.frombuffer(data, "<f2").astype(np.float32).reshape(layers, layers)
    except (KeyError, TypeError, ValueError, binascii.Error):
        return None
    return found if layers and np.isfinite(found).all() else None
