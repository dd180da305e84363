"""A sample of the fuzzing sessions (`tests/fuzz/session.py`): a few inputs for each target, at every run."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz_targets import TARGETS, attack
from hypothesis import HealthCheck, given, settings


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_withstands_a_sample_of_hostile_inputs(name: str) -> None:
    target = TARGETS[name]

    @settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck])
    @given(target.inputs)
    def sample(value: Any) -> None:
        attack(target, value)

    sample()
