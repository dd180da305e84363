"""Which inputs unlike the calibration data does the out-of-distribution score find, and what does it flag wrongly?

    python benchmarks/out_of_distribution.py --data set1.jsonl.gz --data set2.jsonl.gz --out out-of-distribution.json

Asks the embedded model (or --model) the questions of the sets and the inputs of `unlike_inputs.py`.
Then, in several random divisions of the sets' answers, the detector is fitted on one part, calibrated on a
second, and looks at a third and at the unlike inputs. Last, each set is left out in turn: its questions
are somewhat new too. Labels are not needed. Can be stopped and resumed (--journal).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from unlike_inputs import unlike_inputs

from guard.data.questions import Row, read_rows
from guard.data.recording import Journal, Record, Run, record_rows
from guard.data.sqlite_journal import row_key
from guard.engines import load_engine
from guard.engines.system_messages import SHORT_ANSWER_SYSTEM
from guard.records import Signals
from guard.runtime.sources import find_capture_point
from guard.scoring.ood import OodDetector, fit_ood_detector

#: An input whose score is above one of these counts as out of distribution.
THRESHOLDS = (0.95, 0.99)

#: Shares of the sets' answers: fit, calibrate, and the rest to look at.
FIT, CALIBRATE = 0.5, 0.25

SignalsBySet = dict[str, list[Signals]]


@dataclass(frozen=True, slots=True)
class Found:
    """How the score sees one kind of input, the mean over the divisions.

    Attributes:
        kind: of unlike input, or the set that was left out.
        inputs: how many there are.
        auroc: chance that one of these scores higher than an answer of the sets that calibration
            knows (but not this answer); .5 where they cannot be distinguished.
        flagged: share whose score is above each of `THRESHOLDS`.
        false_alarms: the same share of the sets' own answers, which should be 1 - threshold.
    """

    kind: str
    inputs: int
    auroc: float
    flagged: tuple[float, ...]
    false_alarms: tuple[float, ...]


def main() -> None:
    arguments = _arguments()
    usual, unlike, metadata = _record(arguments)
    seeds = range(arguments.divisions)
    whole = [Division.of(usual, seed=seed) for seed in seeds]
    kinds = [_found(kind, answers, whole) for kind, answers in unlike.items()]
    left_out = [
        _found(name, answers, [Division.of(usual, seed=seed, without=name) for seed in seeds])
        for name, answers in usual.items()
    ]
    report = {
        "command": " ".join(["benchmarks/out_of_distribution.py", *(Path(each).name for each in sys.argv[1:])]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        **metadata,
        "sets": {name: len(answers) for name, answers in usual.items()},
        "divisions": arguments.divisions,
        "thresholds": THRESHOLDS,
        **_cost(usual),
        "unlike": [asdict(found) for found in kinds],
        "left_out_sets": [asdict(found) for found in left_out],
    }
    _print("unlike inputs", kinds)
    _print("sets left out", left_out)
    print(f"{report['ms_an_answer']:.3f} ms an answer, {report['stored_bytes']:,} bytes stored")
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


_PACKAGES = ("ilis-guard", "numpy", "scikit-learn", "llama-cpp-python")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="a question set; may be repeated")
    parser.add_argument("--limit", type=int, default=200, help="questions of each set")
    parser.add_argument("--without", action="append", metavar="KIND", help="a kind of unlike inputs to leave out")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--journal", type=Path, default=Path("out-of-distribution.journal"))
    parser.add_argument("--recorded", action="store_true", help="take what the journal has and ask nothing")
    parser.add_argument("--tau", type=float, action="append", help="as the journal was recorded with (default 1)")
    parser.add_argument("--completion", action="store_true", help="put questions to a base model")
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--divisions", type=int, default=10)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


# -- answers -----------------------------------------------------------------------------------


def _record(arguments: argparse.Namespace) -> tuple[SignalsBySet, SignalsBySet, dict[str, Any]]:
    """Signals of the sets' answers and of the unlike inputs, by set and kind, and metadata of the run."""
    sets: dict[str, Sequence[Row]] = {}
    for file in arguments.data:
        name = file.name.removesuffix(".gz").removesuffix(".jsonl")
        sets[name] = read_rows(file, limit=arguments.limit, seed=0).rows
    unlike = {kind: inputs for kind, inputs in unlike_inputs().items() if kind not in (arguments.without or ())}
    with load_engine(arguments.model, threads=arguments.threads) as engine:
        run = Run(
            model=engine.model,
            capture_point=find_capture_point(engine),
            system=SHORT_ANSWER_SYSTEM,
            max_tokens=arguments.max_tokens,
            temperatures=tuple(arguments.tau or (1.0,)),
            stop=("\n",) if arguments.completion else (),
            completion=arguments.completion,
        )
        with Journal(arguments.journal, run) as journal:
            named = [(name, row) for name, rows in (*sets.items(), *unlike.items()) for row in rows]
            asked = iter(()) if arguments.recorded else record_rows(engine, named, journal, run=run)
            for count, _ in enumerate(asked, start=1):
                print(f"\r{count} answers recorded", end="", file=sys.stderr)
            metadata = {
                "model": {"name": engine.model.name, "weights_sha256": engine.model.weights_sha256},
                "inputs_sha256": _digest(unlike),
            }
            return _answers(journal, sets), _answers(journal, unlike), metadata


def _answers(journal: Journal, rows: Mapping[str, Sequence[Row]]) -> SignalsBySet:
    """Signals by set; rows that could not be put to the model (too long, say) are left out."""
    found: SignalsBySet = {}
    for name, members in rows.items():
        records = (journal.record(row_key(name, row)) for row in members)
        found[name] = [record.signals for record in records if isinstance(record, Record)]
    return {name: signals for name, signals in found.items() if signals}


def _digest(unlike: Mapping[str, Sequence[Any]]) -> str:
    texts = {kind: [question.question for question in questions] for kind, questions in unlike.items()}
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


# -- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Division:
    """One random division of the sets' answers.

    Attributes:
        detector: fitted and calibrated on two parts.
        known: scores of the answers of the third part, shape (n,).
    """

    detector: OodDetector
    known: NDArray[np.float64]

    @classmethod
    def of(cls, usual: SignalsBySet, *, seed: int, without: str | None = None) -> Division:
        pool = [answer for name, answers in usual.items() if name != without for answer in answers]
        order = np.random.default_rng(seed).permutation(len(pool))
        cuts = [int(FIT * len(pool)), int((FIT + CALIBRATE) * len(pool))]
        fit, calibrate, rest = ([pool[at] for at in part] for part in np.split(order, cuts))
        detector = fit_ood_detector(fit, calibrate)
        return cls(detector, _ood_scores(detector, rest))


def _ood_scores(detector: OodDetector, answers: list[Signals]) -> NDArray[np.float64]:
    return np.array([detector.ood_score(answer) for answer in answers])


def _found(kind: str, answers: list[Signals], divisions: list[Division]) -> Found:
    aurocs, flagged, alarms = [], [], []
    for division in divisions:
        known, unlike = division.known, _ood_scores(division.detector, answers)
        labels = np.repeat([0, 1], [len(known), len(unlike)])
        aurocs.append(roc_auc_score(labels, np.concatenate([known, unlike])))
        flagged.append([(unlike > threshold).mean() for threshold in THRESHOLDS])
        alarms.append([(known > threshold).mean() for threshold in THRESHOLDS])
    return Found(
        kind=kind,
        inputs=len(answers),
        auroc=float(np.mean(aurocs)),
        flagged=tuple(np.mean(flagged, axis=0).tolist()),
        false_alarms=tuple(np.mean(alarms, axis=0).tolist()),
    )


def _cost(usual: SignalsBySet) -> dict[str, Any]:
    pool = [answer for answers in usual.values() for answer in answers]
    detector = fit_ood_detector(pool[::2], pool[1::2])
    times = []
    for answer in pool[:500]:
        started = time.perf_counter()
        detector.ood_score(answer)
        times.append(time.perf_counter() - started)
    stored = len(detector.stored().model_dump_json())
    return {"layers": detector.layers, "ms_an_answer": 1000 * float(np.median(times)), "stored_bytes": stored}


def _print(title: str, rows: list[Found]) -> None:
    heads = "".join(f"   > {threshold:g}" for threshold in THRESHOLDS)
    print(f"{title:24s} inputs   AUROC{heads}   usual{heads}")
    for row in rows:
        flagged, alarms = ("".join(f"  {share:6.1%}" for share in part) for part in (row.flagged, row.false_alarms))
        print(f"{row.kind:24s} {row.inputs:6d}   {row.auroc:.3f}{flagged}        {alarms}")
    print()


if __name__ == "__main__":
    main()
