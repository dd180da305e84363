"""What does the score say of answers in situations that its calibration does not have: with a passage, or as JSON?

    python benchmarks/situations.py kept.jsonl --passages halueval_qa.jsonl.gz --data cities.jsonl.gz [--limit 60]

The model (by default the embedded one) answers questions with a passage: none, its own, which says the answer, that of
another question, which does not, and its own with the answer exchanged for that of another question. An answer is wrong
where it is not the true one, whatever the passage says. The questions of --data it answers in a few words, and as the
argument of a tool: a JSON object, decoded by a schema, of which the value is graded. Its scorer scores the answers.

Printed are, for each situation, the share of wrong answers beside the mean p_wrong, AUROC with its 95 % interval over
answers, Brier score, both also for the log-probabilities alone, and the share of answers that the scorer marks: above
an ood_score of .99, or of another form than it was fitted on. Questions that the scorer was fitted on are left out.
Answers are kept, so that a run that is stopped resumes where it was.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from attacks import OOD_ABOVE, fresh_questions
from measuring import machine, versions

from guard.data.graders import grade
from guard.data.in_order import in_order
from guard.data.labelling import is_wrong
from guard.data.prompts import question_prompt
from guard.data.question_sets import read_sets
from guard.data.questions import Question
from guard.engines import EMBEDDED, load_engine
from guard.engines.asked import RequestEngine
from guard.records import Limits
from guard.response_format import ResponseFormat
from guard.runtime.sources import find_capture_point, score_generation
from guard.scoring.metrics import Ranked, auroc
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer

#: The argument of the tool.
TOOL_FORMAT = ResponseFormat.json(
    {
        "type": "object",
        "properties": {"answer": {"type": "string", "maxLength": 60}},
        "required": ["answer"],
        "additionalProperties": False,
    }
)
TOOL_WORDS = ' Call the tool with your answer: write a JSON object like {"answer": "..."}.'
PLAIN, AS_TOOL = "a few words", "argument of a tool"
CHUNK = 16


@dataclass(frozen=True, slots=True)
class SituatedQuestion:
    """One question in one situation."""

    situation: str
    row: Question

    @property
    def key(self) -> str:
        """Unique among all that is asked."""
        return f"{self.situation}/{self.row.id}"


@dataclass(frozen=True, slots=True)
class SituatedAnswer:
    """An answer with its label and scores; ``marked`` where the scorer says that it does not fit."""

    situation: str
    key: str
    text: str
    wrong: bool
    p_wrong: float
    logprob: float
    marked: bool


def with_passages(rows: Sequence[Question]) -> Iterator[SituatedQuestion]:
    """Yield each question in four situations; only those whose passage has the answer's words."""
    kept = [row for row in rows if row.context and row.answers[0].casefold() in row.context.casefold()]
    kept = [replace(row, choices=None, answer_index=None) for row in kept if len(row.answers[0]) > 3]
    for at, row in enumerate(kept):
        other = kept[(at + 1) % len(kept)]
        assert row.context is not None
        changed = re.sub(re.escape(row.answers[0]), lambda _: other.answers[0], row.context, flags=re.IGNORECASE)  # noqa: B023
        yield SituatedQuestion("no passage", replace(row, context=None))
        yield SituatedQuestion("its passage", row)
        yield SituatedQuestion("another passage", replace(row, context=other.context))
        yield SituatedQuestion("passage with another answer", replace(row, context=changed))


def answered(engine: RequestEngine, scorer: Scorer, asked: SituatedQuestion) -> SituatedAnswer:
    """Ask, score, label."""
    prompting, tool = scorer.artefact.prompting, asked.situation == AS_TOOL
    row = replace(asked.row, question=asked.row.question + TOOL_WORDS) if tool else asked.row
    prompt = question_prompt(row, system=prompting.system, template_options=prompting.template_options)
    if tool:
        prompt = replace(prompt, response_format=TOOL_FORMAT)
    observer = scorer.observer()
    generation = engine.generate(prompt, limits=Limits(max_tokens=prompting.max_tokens), observer=observer)
    score = score_generation(generation, observer, scorer, prompt)
    text = _argument(generation.text) if tool else generation.text
    marked = score.unlike is not None or (score.ood_score or 0.0) > OOD_ABOVE
    logprob = score.scores["log-probabilities"].p_wrong
    wrong = is_wrong(asked.row, text, grade)
    return SituatedAnswer(asked.situation, asked.key, generation.text, wrong, score.p_wrong, logprob, marked)


def _argument(text: str) -> str:
    """Return the value of the answer; nothing where the object was cut."""
    try:
        return str(json.loads(text)["answer"])
    except (ValueError, KeyError, TypeError):
        return ""


def ask(engine: RequestEngine, scorer: Scorer, wanted: Sequence[SituatedQuestion], kept: Path) -> list[SituatedAnswer]:
    """Ask what is not kept yet, and return all answers."""
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    known = {each.key: each for each in (SituatedAnswer(**json.loads(line)) for line in lines)}
    rest = [each for each in wanted if each.key not in known]
    with kept.open("a", encoding="utf-8") as file:
        for start in range(0, len(rest), CHUNK):
            part = rest[start : start + CHUNK]
            for each in in_order(lambda asked, _: answered(engine, scorer, asked), part, at_once=8):
                file.write(json.dumps(asdict(each)) + "\n")
                known[each.key] = each
            file.flush()
            print(f"{start + len(part)} of {len(rest)}", flush=True)
    return [known[each.key] for each in wanted]


# -- what comes of it --------------------------------------------------------------------------


def judged(answers: Sequence[SituatedAnswer]) -> dict[str, Any]:
    """Return the figures of one situation."""
    wrong = np.array([each.wrong for each in answers])
    found: dict[str, Any] = {"answers": len(answers), "wrong": round(float(wrong.mean()), 3)}
    found["marked"] = round(float(np.mean([each.marked for each in answers])), 3)
    for name, scores in (("guard", [each.p_wrong for each in answers]), ("logprob", [x.logprob for x in answers])):
        values = np.array(scores)
        found[f"{name} mean p_wrong"] = round(float(values.mean()), 3)
        found[f"{name} AUROC"] = _auroc(values, wrong)
        found[f"{name} Brier"] = round(float(((values - wrong) ** 2).mean()), 3)
    return found


def _auroc(scores: np.ndarray, wrong: np.ndarray) -> tuple[float, float, float] | None:
    rng, values = np.random.default_rng(0), []
    for draw in range(1001):
        rows = rng.integers(len(wrong), size=len(wrong)) if draw else np.arange(len(wrong))
        if 0 < wrong[rows].mean() < 1:
            values.append(float(auroc(Ranked.from_scores(scores[rows], wrong[rows]))[0]))
        elif not draw:
            return None
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return round(values[0], 3), round(float(low), 3), round(float(high), 3)


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table."""
    names = list(next(iter(found.values())))
    print("| situation | " + " | ".join(names) + " |\n" + "| --- " * (len(names) + 1) + "|")
    for situation, figures in found.items():
        cells = [
            f"{value[0]} ({value[1]} to {value[2]})" if isinstance(value, tuple) else f"{value}"
            for value in figures.values()
        ]
        print(f"| {situation} | " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--passages", action="append", default=[], help="a set with passages; repeatable")
    parser.add_argument("--data", action="append", default=[], help="a set for a tool's arguments; repeatable")
    parser.add_argument("--limit", type=int, default=60, help="questions of each set")
    parser.add_argument("--model", default=EMBEDDED, help="GGUF file; by default the embedded model")
    parser.add_argument("--scorer", type=Path, help="of the model; by default the embedded model's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    scorer, wanted = load_scorer(asked.scorer or shipped_scorer()), list[SituatedQuestion]()
    if asked.passages:
        wanted += with_passages(fresh_questions(read_sets(asked.passages), scorer, limit=asked.limit))
    if asked.data:
        rows = fresh_questions(read_sets(asked.data), scorer, limit=asked.limit)
        wanted += [SituatedQuestion(situation, row) for row in rows for situation in (PLAIN, AS_TOOL)]
    with load_engine(asked.model, threads=asked.threads, trial_load=False) as engine:
        scorer = scorer.for_model(engine.model, find_capture_point(engine))
        answers = ask(engine, scorer, wanted, asked.kept)
    situations = dict.fromkeys(each.situation for each in answers)
    found = {name: judged([each for each in answers if each.situation == name]) for name in situations}
    show(found)
    if asked.out:
        about = {"model": Path(asked.model).name, "machine": machine(), "versions": versions(), "limit": asked.limit}
        asked.out.write_text(json.dumps({**about, "situations": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
