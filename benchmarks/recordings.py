"""Recording short answers: several at once, against one at a time from an empty cache.

    python benchmarks/recordings.py [--model FILE.gguf] [--answers 200]

`guard.record` asks, keeps each answer in its journal and writes the file, both times; only how the engine is loaded
differs.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import Ratio, arguments, compared, print_ratios, provenance, seconds_of, write

import guard
from guard.engines import EMBEDDED, load_engine


def questions(file: Path, number: int, count: int) -> None:
    """Write sums as questions; another number gives other ones."""
    rows = [(each, 10 + number, each + 10 + number) for each in range(count)]
    lines = [json.dumps({"id": f"{a}", "question": f"What is {a} + {b}?", "answers": [f"{c}"]}) for a, b, c in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure(model: str, *, answers: int, pairs: int, options: dict[str, Any]) -> Ratio:
    """Compare how long `guard.record` takes, loading included."""

    def recorded(number: int, **loading: Any) -> float:
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "sums.jsonl"
            questions(data, number, answers if number >= 0 else 4)
            out = Path(folder) / "answers.parquet"
            engine_options = {**options, **loading}
            return seconds_of(
                lambda: guard.record(
                    data, out=out, model=model, max_tokens=24, lens=False, engine_options=engine_options
                )
            )

    return compared(
        f"recording {answers} short answers, times faster",
        "one at a time",
        lambda number: 1 / recorded(number),
        lambda number: 1 / recorded(number, deterministic=True),
        unit="1/s",
        pairs=pairs,
        wanted=">= 2.5",
    )


def main() -> None:
    parser = arguments(__doc__, pairs=1)
    parser.add_argument("--answers", type=int, default=200)
    asked = parser.parse_args()
    model = asked.model or EMBEDDED
    options: dict[str, Any] = {"threads": asked.threads, "trial_load": False}
    found = measure(model, answers=asked.answers, pairs=asked.pairs, options=options)
    with load_engine(model, **options) as engine:
        about = provenance(engine)
    print_ratios("Recording", [found], about=about)
    write({**about, "threads": asked.threads, "found": [asdict(found)]}, asked.out)


if __name__ == "__main__":
    main()
