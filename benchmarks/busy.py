"""Short answers on a machine that is busy: llama.cpp with one thread and with two, beside programs that never wait.

    python benchmarks/busy.py [--model FILE.gguf] [--answers 12]

llama.cpp's threads spin while they wait for each other, so that a thread that has lost its core keeps the others from
working. Each case is a process of its own, since OpenMP reads its environment when it is loaded: with
`OMP_WAIT_POLICY=passive` waiting threads sleep at once, with `GOMP_SPINCOUNT` after that number of turns. Milliseconds
are per token by the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path

from measuring import Figure, arguments, print_ratios, provenance, seconds_of, write

from guard.engines import embedded_model
from guard.engines.llama_cpp import LlamaCppEngine
from guard.records import Limits, Prompt

#: Tokens of each answer, threads, programs that run beside, and settings of OpenMP.
TOKENS, THREADS, BESIDE = 16, (1, 2), (0, 1, 2)
SETTINGS = ("", "OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=1000", "GOMP_SPINCOUNT=10000", "GOMP_SPINCOUNT=100000")


def per_token_ms(model: Path, *, threads: int, answers: int) -> float:
    """Milliseconds that a token of short answers takes, prompts included."""
    with LlamaCppEngine.load(model, threads=threads, trial_load=False) as engine:

        def answer(number: int) -> None:
            engine.generate(Prompt.chat(f"Story {number}: a ship in the fog."), limits=Limits(max_tokens=TOKENS))

        answer(-1)
        seconds = seconds_of(lambda: [answer(number) for number in range(answers)])
    return 1000 * seconds / (TOKENS * answers)


def measured(model: Path, *, threads: int, beside: int, setting: str, answers: int) -> Figure:
    """Measure a case in a process of its own, beside as many programs that never wait."""
    command = [sys.executable, __file__, "--model", str(model), "--threads", str(threads), "--answers", str(answers)]
    environment = {**os.environ, **dict([setting.split("=")] if setting else [])}
    with ExitStack() as others:
        for _ in range(beside):
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            others.callback(other.wait)  # the last of these comes first
            others.callback(other.kill)
        ran = subprocess.run([*command, "--case"], env=environment, capture_output=True, text=True, check=True)
    who = {0: "alone", 1: "beside one busy program"}.get(beside, f"beside {beside} busy programs")
    return Figure(", ".join(filter(None, (f"threads: {threads}", who, setting))), json.loads(ran.stdout), "ms/token")


def main() -> None:
    parser = arguments(__doc__, pairs=1)
    parser.add_argument("--answers", type=int, default=12)
    parser.add_argument("--case", action="store_true", help="measure one case, without others; for this program itself")
    asked = parser.parse_args()
    model = Path(asked.model) if asked.model else embedded_model()
    if asked.case:
        print(json.dumps(per_token_ms(model, threads=asked.threads, answers=asked.answers)))
        return
    found = [
        measured(model, threads=threads, beside=beside, setting=setting, answers=asked.answers)
        for setting, beside, threads in product(SETTINGS, BESIDE, THREADS)
        if not setting or threads > 1
    ]
    with LlamaCppEngine.load(model, trial_load=False) as engine:
        about = provenance(engine)
    print_ratios("A busy machine", found, about=about)
    write({**about, "found": [asdict(each) for each in found]}, asked.out)


if __name__ == "__main__":
    main()
