"""A fuzzing session: each target is attacked for some time, with new inputs at every run.

    python tests/fuzz/session.py --seconds 300                  all targets, five minutes each
    python tests/fuzz/session.py --seconds 60 tool-calls chat   these

It prints how many inputs each target took, and for a failure the smallest input; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[2])]

from fuzz_targets import TARGETS, attack  # noqa: E402 - the paths come first
from hypothesis import HealthCheck, given, seed, settings  # noqa: E402

#: Inputs between two looks at the clock.
BATCH = 200


def fuzz(name: str, seconds: float, first_seed: int) -> tuple[int, str | None]:
    """How many inputs were tried, and the report of the first failure."""
    target, tried, end = TARGETS[name], 0, time.monotonic() + seconds
    number = first_seed
    while time.monotonic() < end:
        number += 1

        @seed(number)
        @settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=[*HealthCheck])
        @given(target.inputs)
        def batch(value: Any) -> None:
            nonlocal tried
            tried += 1
            attack(target, value)

        try:
            batch()
        except Exception:  # noqa: BLE001 - whatever it is, it is reported
            return tried, f"seed {number}\n{traceback.format_exc(limit=-4)}"
    return tried, None


def main() -> int:
    """Run the session; 1 where something failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=[], help=f"of {', '.join(TARGETS)}; all by default")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31), help="of the first batch")
    given_options = parser.parse_args()
    unknown = set(given_options.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    failed = False
    for name in given_options.targets or TARGETS:
        tried, report = fuzz(name, given_options.seconds, given_options.seed)
        print(f"{name:12} {tried:9,} inputs  {'ok' if report is None else 'FAILED'}", flush=True)
        if report is not None:
            failed = True
            print(report, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
