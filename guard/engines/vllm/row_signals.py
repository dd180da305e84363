"""Signals of many rows of logits at once, in torch, on whatever device the rows are.

A row has as many numbers as the vocabulary, and a step a row for each request: what a worker computes from them is a
noticeable part of a small model's step. So each row is read few times, and few copies are made.
"""

from __future__ import annotations

import torch

from guard.engines.sampling import TokenSignals

#: Numbers of a row that are compared at once. Searching a whole row for its two largest takes ten times as long.
_BLOCK = 64


class RowSignals:
    """What the rows say before a token is chosen, and the signals of a choice.

    Attributes:
        largest: the largest number of each row, shape (B,), on the host; NaN if the row has one.

    Examples:
        >>> rows = torch.tensor([[0.0, 1.0], [2.0, 2.0]])
        >>> [round(each.margin, 3) for each in RowSignals(rows).of([1, 0])]
        [1.0, 0.0]
    """

    def __init__(self, rows: torch.Tensor) -> None:
        """
        Args:
            rows: logits, shape (B, V), float32; single ones may be -inf. They are changed.
        """
        first, second = largest_two(rows).unbind(1)
        self._shifted = rows.sub_(first[:, None])
        weights = self._shifted.softmax(1)
        self._log_totals = -weights.amax(1).log()  # the largest weight is one over the total
        # A masked token (-inf) weighs nothing, but 0 x -inf is nan.
        entropies = self._log_totals - torch.linalg.vecdot(weights, self._shifted.clamp_min(-1e30))
        # One copy to the host for all rows.
        seen = torch.stack([first, first - second, entropies.clamp_min(0)]).cpu().numpy()
        self.largest, self._margins, self._entropies = seen

    def of(self, tokens: list[int]) -> list[TokenSignals]:
        """Return the signals of the token that was chosen from each row."""
        chosen = torch.tensor(tokens, device=self._shifted.device)[:, None]
        logprobs = (self._shifted.gather(1, chosen)[:, 0] - self._log_totals).cpu().numpy()
        return [
            TokenSignals(float(logprob), float(entropy), float(margin))
            for logprob, entropy, margin in zip(logprobs, self._entropies, self._margins, strict=True)
        ]


def largest_two(rows: torch.Tensor) -> torch.Tensor:
    """Return the two largest numbers of each row, shape (B, 2), the largest first.

    Args:
        rows: shape (B, V) with V of at least 2.

    Examples:
        >>> largest_two(torch.arange(200.0)[None]).tolist()
        [[199.0, 198.0]]
    """
    whole = rows.shape[1] // _BLOCK * _BLOCK
    if whole < 2 * _BLOCK:
        return rows.topk(2).values
    blocks = rows[:, :whole].view(len(rows), whole // _BLOCK, _BLOCK)
    tops = blocks.amax(2).topk(2)
    best = blocks[torch.arange(len(rows), device=rows.device), tops.indices[:, 0]]
    return torch.cat([best, tops.values[:, 1:], rows[:, whole:]], 1).topk(2).values
