"""The same questions under several policies, such as without and with early decisions: what they accept, and cost.

    python benchmarks/early_policies.py --model model.gguf --scorer scorer.json --policy complete.yaml \
        --policy early.yaml --data set1.jsonl.gz --data set2.jsonl.gz [--limit 50] [--out early-policies.json]

Each policy decides about every question, through `Guard.ask`, as for a caller. Printed are the answers that it accepts
and how many of these are wrong, the answers that it stops, and the tokens that the model generates. The questions
should be none that scorer, stages or certificates have seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, versions
from scipy.stats import binomtest

from guard.data.graders import grade
from guard.data.in_order import in_order
from guard.data.labelling import is_wrong
from guard.data.prompts import fitted_prompt
from guard.data.question_sets import read_sets, round_robin
from guard.data.questions import Question
from guard.engines import EMBEDDED
from guard.records import Outcome
from guard.runtime.guard import Guard


@dataclass(frozen=True, slots=True)
class Decided:
    """What a policy decided about one question."""

    accepted: bool
    wrong: bool
    stopped: bool
    tokens: int

    @classmethod
    def from_outcome(cls, question: Question, outcome: Outcome) -> Decided:
        """Grade what the model wrote; a stopped answer is never accepted."""
        last = outcome.attempts[-1]
        return cls(
            accepted=outcome.action == "accept",
            wrong=is_wrong(question, last.answer or "", grade),
            stopped=last.finish_reason == "early",
            tokens=sum(each.completion_tokens for each in outcome.attempts),
        )


def decide(own: Guard, questions: Sequence[Question]) -> list[Decided]:
    """Ask every question under the guard's policy."""
    prompting = own.scorer.artefact.prompting

    def one(question: Question, _: object) -> Decided:
        return Decided.from_outcome(question, own.ask(fitted_prompt(question, prompting)))

    return list(in_order(one, questions, at_once=8))


def figures(name: str, found: Sequence[Decided], complete: Sequence[Decided]) -> dict[str, Any]:
    """Return one row, and print it; what is saved and lost is in comparison with the first policy."""
    accepted = [each for each in found if each.accepted]
    wrong = sum(each.wrong for each in accepted)
    bound = binomtest(wrong, len(accepted)).proportion_ci(0.95, "exact") if accepted else None
    right = [at for at, each in enumerate(complete) if each.accepted and not each.wrong]
    row = {
        "policy": name,
        "questions": len(found),
        "accepted": len(accepted),
        "wrong_accepted": wrong,
        "wrong_95": bound and [round(float(each), 4) for each in bound],
        "stopped": sum(each.stopped for each in found),
        "tokens": sum(each.tokens for each in found),
        "tokens_saved": round(1 - sum(each.tokens for each in found) / sum(each.tokens for each in complete), 4),
        "accepted_right": len(right),
        "accepted_right_lost": sum(not found[at].accepted for at in right),
    }
    print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return row


def main() -> None:
    """Ask, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=EMBEDDED)
    parser.add_argument("--scorer", required=True)
    parser.add_argument("--policy", action="append", required=True, type=Path)
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--limit", type=int, default=50, help="questions of each set")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = [row for _, row in round_robin(read_sets(asked.data, limit=asked.limit, seed=asked.seed))]
    questions = [row for row in rows if isinstance(row, Question)]
    options, decided = {"threads": asked.threads}, []
    for policy in asked.policy:
        with Guard.load(asked.model, scorer=asked.scorer, policy=policy, engine_options=options) as own:
            decided.append(decide(own, questions))
    table = [figures(policy.stem, found, decided[0]) for policy, found in zip(asked.policy, decided, strict=True)]
    if asked.out:
        wrong = float(np.mean([each.wrong for each in decided[0]]))
        about = {"machine": machine(), "versions": versions(), "model": Path(asked.model).name, "wrong": wrong}
        asked.out.write_text(json.dumps({**about, "policies": table}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
