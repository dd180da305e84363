"""Signals of many rows at once are those of each row alone, whatever is masked, tied or not a number."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from guard.engines.sampling import token_signals  # noqa: E402
from guard.engines.vllm.row_signals import RowSignals, largest_two  # noqa: E402

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("size", [2, 100, 128, 1000, 49_152])
@pytest.mark.parametrize("scale", [0.01, 3.0, 40.0])
def test_signals_are_those_of_each_row_alone(size: int, scale: float) -> None:
    rng = np.random.default_rng(size)
    rows = (rng.standard_normal((5, size)) * scale + 20).astype(np.float32)
    rows[1, rng.integers(size)] = -np.inf
    rows[2, :2] = rows[2].max() + 1  # two that are the largest
    rows[3, -1] = rows[3].max() + 5
    tokens = [int(row.argmin()) if at % 2 else int(row.argmax()) for at, row in enumerate(rows)]
    for row, token, found in zip(rows, tokens, RowSignals(torch.from_numpy(rows.copy())).of(tokens), strict=True):
        wanted = token_signals(row, token)
        assert found.logprob == pytest.approx(wanted.logprob, abs=2e-5 * max(1, abs(wanted.logprob)))
        assert found.entropy == pytest.approx(wanted.entropy, abs=1e-4)
        assert found.margin == pytest.approx(wanted.margin, abs=1e-5)


@pytest.mark.parametrize("size", [2, 63, 127, 128, 129, 500])
def test_the_two_largest_are_found_wherever_they_are(size: int) -> None:
    rng = np.random.default_rng(size)
    rows = rng.standard_normal((200, size)).astype(np.float32)
    for row in rows:
        row[rng.integers(size, size=2)] += 9.0
    assert (largest_two(torch.from_numpy(rows)).numpy() == -np.sort(-rows)[:, :2]).all()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_row_that_is_not_of_numbers_shows_in_its_largest_and_leaves_the_others(wrong: float) -> None:
    rows = np.zeros((3, 300), np.float32)
    rows[1, 150] = wrong
    signals = RowSignals(torch.from_numpy(rows))
    assert np.isfinite(signals.largest).tolist() == [True, False, True]
    assert signals.of([0, 0, 0])[2].entropy == pytest.approx(np.log(300), abs=1e-4)
