"""Questions about made-up countries, and a script that answers them line by line, unsure where it is mostly wrong."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from scripted import AnsweringEngine

from guard.records import Prompt


def country_rows(count: int = 40) -> list[dict[str, Any]]:
    """Labelled spans: two claims and an equation a question."""
    return [
        {
            "question": f"Facts about country {number}:",
            "claims": [
                {"about": "capital", "answers": [f"Arl{number}"]},
                {"about": "founded", "answers": [str(1000 + number)]},
            ],
        }
        for number in range(count)
    ]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def answer_lines(number: int) -> list[tuple[str, str, bool, bool]]:
    """Each line's beginning and claim, whether it is wrong, and whether the engine is unsure of it."""
    draw = random.Random(number)
    found = []
    for start, right, other in (
        ("Capital: ", f"Arl{number}", f"Ber{number}"),
        ("Founded: ", str(1000 + number), str(3000 + number)),
        (f"{number} + 500 = ", str(number + 500), str(number + 700)),
    ):
        wrong = draw.random() < 0.4
        found.append((start, other if wrong else right, wrong, (draw.random() < 0.15) != wrong))
    return found


def country_engine() -> AnsweringEngine:
    """Answers these questions; given answers as they are."""

    def script(prompt: Prompt, _: int) -> tuple[str, float]:
        lines = answer_lines(int("".join(filter(str.isdigit, prompt.question)) or "0"))
        engine.unsure = tuple(claim for _, claim, _, unsure in lines if unsure)
        return "\n".join(f"- {start}{claim}" for start, claim, _, _ in lines), 0.05

    engine = AnsweringEngine(script)
    return engine
