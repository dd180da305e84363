"""Test the risk guarantee and measure its coverage: certify many resamples of real scores.

    python benchmarks/risk_guarantee.py --scores scores.jsonl.gz --risk 0.05 --risk 0.1 --out risk-guarantee.json

Each line of the scores is one answer: {"p_wrong": 0.31, "wrong": true}. All answers together are the
population, which has a true error rate below each threshold. The program draws labels from it with replacement a
thousand times, certifies a threshold, and counts how often its risk is too high in the population, and in a separate
test draw. The oracle's threshold is the laxest with a low enough risk in the population; no procedure that sees only
labels can count on more coverage.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import platform
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from guard.certification.fixed_sequence import Certified, NotCertifiable, Trials, find_threshold
from guard.policy.bounds import upper_bound

#: Two-sided, of everything that is counted in the draws.
INTERVAL = 0.95


@dataclass(frozen=True, slots=True)
class World:
    """All answers, likeliest right first: scores of shape (n,), and errors among the first k, shape (n + 1,)."""

    p_wrong: NDArray[np.float64]
    wrong: NDArray[np.bool_]
    errors: NDArray[np.intp]

    @classmethod
    def of(cls, p_wrong: NDArray[np.float64], wrong: NDArray[np.bool_]) -> World:
        order = np.argsort(p_wrong, kind="stable")
        return cls(p_wrong[order], wrong[order], np.concatenate([[0], np.cumsum(wrong[order])]))

    def at(self, threshold: float) -> tuple[float, float]:
        """Coverage and true error rate at a threshold."""
        accepted = int(np.searchsorted(self.p_wrong, threshold, "left"))
        return accepted / len(self.p_wrong), float(self.errors[accepted]) / max(accepted, 1)

    def oracle(self, risk: float) -> float:
        """Return the largest coverage with a true error rate within the risk."""
        thresholds = np.unique(np.append(self.p_wrong, np.inf))
        return max((coverage for coverage, rate in map(self.at, thresholds) if rate <= risk), default=0.0)

    def draw(self, rng: np.random.Generator, n: int) -> Trials:
        """Fresh labels."""
        rows = rng.integers(0, len(self.p_wrong), n)
        return Trials.from_scores(self.p_wrong[rows], self.wrong[rows])


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out at one risk.

    Attributes:
        broken: share of draws whose certified threshold has a higher risk in the population.
        broken_interval: its Monte Carlo interval (Clopper-Pearson).
        holds: whether that interval includes 1 - confidence or less.
        test_broken: share of draws that see more errors than guaranteed in a test draw of n answers; above
            ``broken``, since a draw scatters about its true rate.
        naive_broken: of the laxest threshold whose observed error rate is low enough, for comparison.
        certified: share of draws with a certificate.
        coverage: mean, with 0 where there is no certificate.
        oracle: largest coverage within the risk.
        share_of_oracle: coverage / oracle; None where the oracle accepts nothing.
        mapie_agrees: share of draws where MAPIE's fixed-sequence procedure deploys the same threshold for
            the same p-values; None where MAPIE is not installed.
    """

    risk: float
    confidence: float
    n: int
    draws: int
    broken: float
    broken_interval: tuple[float, float]
    holds: bool
    test_broken: float
    naive_broken: float
    certified: float
    coverage: float
    oracle: float
    share_of_oracle: float | None
    mapie_agrees: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--of", default="", help="what the scores are of, for the tables")
    parser.add_argument("--risk", type=float, action="append", required=True)
    parser.add_argument("--confidence", type=float, default=0.9)
    parser.add_argument("--labels", type=int, default=2000, help="n of each draw")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    p_wrong, wrong = read_scores(arguments.scores)
    world = World.of(p_wrong, wrong)
    print(f"{len(wrong)} answers, {wrong.mean():.0%} wrong; {arguments.draws} draws of {arguments.labels} labels")
    print("risk  violated [95 %]              naive  certified  coverage  oracle  share  MAPIE")
    results = []
    for risk in arguments.risk:
        measured = measure(world, risk, arguments.confidence, arguments.labels, arguments.draws, arguments.seed)
        results.append(measured)
        print(_line(measured), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(_describe(arguments, wrong, results), indent=1) + "\n", encoding="utf-8")


def read_scores(path: Path) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Scores and labels, each shape (n,), from JSON Lines, plain or gzip."""
    content = path.read_bytes()
    text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    return np.array([row["p_wrong"] for row in rows], float), np.array([row["wrong"] for row in rows], bool)


def measure(world: World, risk: float, confidence: float, n: int, draws: int, seed: int) -> Measured:
    """Certify this many draws, and look each result up in the world."""
    coverages, counts = [], {"broken": 0, "test": 0, "naive": 0, "certified": 0, "agree": 0}
    for number in range(draws):
        rng = np.random.default_rng([seed, number])
        labels, test = world.draw(rng, n), world.draw(rng, n)
        result = find_threshold(labels, risk=risk, confidence=confidence, seed=number, estimate=False)
        counts["naive"] += int(world.at(_naive_threshold(labels, risk))[1] > risk)
        counts["agree"] += _mapie_agrees(labels, result, number)
        if isinstance(result, Certified):
            coverage, rate = world.at(result.threshold)
            accepted, errors = test.at(result.threshold)
            coverages.append(coverage)
            counts["certified"] += 1
            counts["broken"] += int(rate > risk)
            counts["test"] += int(errors > risk * accepted)
    coverage, oracle = sum(coverages) / draws, world.oracle(risk)
    interval = _interval(counts["broken"], draws)
    return Measured(
        risk=risk,
        confidence=confidence,
        n=n,
        draws=draws,
        broken=counts["broken"] / draws,
        broken_interval=interval,
        holds=interval[0] <= 1 - confidence,
        test_broken=counts["test"] / draws,
        naive_broken=counts["naive"] / draws,
        certified=counts["certified"] / draws,
        coverage=coverage,
        oracle=oracle,
        share_of_oracle=coverage / oracle if oracle else None,
        mapie_agrees=counts["agree"] / draws if _mapie() else None,
    )


def _naive_threshold(labels: Trials, risk: float) -> float:
    order = np.argsort(labels.p_wrong[:, 0], kind="stable")
    rates = np.cumsum(labels.wrong[order, 0]) / np.arange(1, len(order) + 1)
    kept = np.flatnonzero(rates <= risk)
    return float(np.nextafter(labels.p_wrong[order[kept[-1]], 0], 1.0)) if len(kept) else 0.0


def _mapie() -> bool:
    try:
        import mapie  # noqa: F401
    except ImportError:
        return False
    return True


def _mapie_agrees(labels: Trials, result: Certified | NotCertifiable, seed: int) -> bool:
    """Whether MAPIE's walk over the same thresholds and p-values ends at the same one."""
    if not _mapie():
        return False
    from mapie.risk_control.fwer_control import control_fwer
    from scipy.stats import binom

    from guard.certification.fixed_sequence import grid

    order = np.random.default_rng(seed).permutation(len(labels))
    fresh = labels.take(order[result.grid_rows :])
    thresholds = grid(labels.take(order[: result.grid_rows]).scores, len(fresh), result.risk, result.confidence)
    counts = np.array([fresh.at(threshold) for threshold in thresholds])
    p_values = binom.cdf(counts[:, 1], counts[:, 0], result.risk)
    valid = control_fwer(p_values, 1 - result.confidence, "fixed_sequence")
    theirs = float(thresholds[valid[-1]]) if len(valid) else None
    return theirs == (result.threshold if isinstance(result, Certified) else None)


def _interval(count: int, draws: int) -> tuple[float, float]:
    side = (1 + INTERVAL) / 2
    return 1 - upper_bound(draws - count, draws, side), upper_bound(count, draws, side)


def _line(measured: Measured) -> str:
    low, high = measured.broken_interval
    share = "    -" if measured.share_of_oracle is None else f"{measured.share_of_oracle:5.0%}"
    agree = "    -" if measured.mapie_agrees is None else f"{measured.mapie_agrees:5.0%}"
    broken = f"{measured.broken:.3f} [{low:.3f}, {high:.3f}] {'ok' if measured.holds else 'BROKEN'}"
    numbers = (
        f"{measured.naive_broken:5.0%}  {measured.certified:9.0%}  {measured.coverage:8.3f}  {measured.oracle:6.3f}"
    )
    return f"{measured.risk:4g}  {broken:28s} {numbers}  {share}  {agree}"


def _describe(arguments: argparse.Namespace, wrong: NDArray[np.bool_], results: list[Measured]) -> dict[str, object]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "benchmarks/risk_guarantee.py", *sys.argv[1:]],
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("ilis-guard", "numpy")}},
        "scores": {
            "file": arguments.scores.name,
            "of": arguments.of,
            "sha256": hashlib.sha256(arguments.scores.read_bytes()).hexdigest(),
            "answers": len(wrong),
            "wrong": float(wrong.mean()),
        },
        "seed": arguments.seed,
        "results": [asdict(result) for result in results],
    }


if __name__ == "__main__":
    main()
