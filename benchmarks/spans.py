"""How well the three log columns tell which line of an answer is wrong.

    python benchmarks/spans.py lines.npz

The file has labelled lines of one model's answers: for each line ``wrong``, ``answer_id``, ``set``, ``kind`` (lines of
kind ``final`` repeat the answer and are left out), ``text``, ``value`` (what the label is about), and statistics of
log-probabilities over the line (``lp_line``), the value's tokens (``lp_value``) and the claim's tokens
(``lp_new_words``), named in ``stats``; ``answer_text`` and ``answer_question`` by ``answer_ids``.

Prints AUROC over all lines and within answers, the share of answers whose top line is a wrong one, and Brier: fitted in
folds by answer, and with one set left out; beside two scores that nothing is fitted for.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.calibration.span_fit import SpanExamples, fit_span_model, within_answers
from guard.evaluation.measures import AUROC
from guard.scoring.claims import find_claims
from guard.scoring.metrics import compute_metrics
from guard.scoring.span_scores import p_wrong, span_columns
from guard.scoring.spans import find_spans

#: Sets of the same kind, which are left out together.
WORD_PROBLEMS = ("gsm8k", "multiarith", "singleeq", "addsub")

Lines = Mapping[str, NDArray[Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    lines: Lines = dict(np.load(parser.parse_args().lines))
    kept = lines["kind"] != "final"
    print(f"{kept.sum()} lines, {lines['wrong'][kept].sum()} wrong, of {len(set(lines['answer_id'][kept]))} answers")
    for name, claim in (("value", "lp_value"), ("claim", "lp_new_words")):
        examples = examples_of(lines, claim, kept)
        model = fit_span_model(examples, data=[], max_tokens=160)
        show(f"three columns, {name}", model.metrics)
        sets = np.where(np.isin(lines["set"], WORD_PROBLEMS), "word problems", lines["set"])[kept]
        show(f"three columns, {name}, set left out", left_out(examples, sets))
        show(f"least log-probability of the {name}", measured(-statistic(lines, claim, "lp_min")[kept], examples))
    show("mean log-probability of the line", measured(-statistic(lines, "lp_line", "lp_mean")[kept], examples))
    print_rules(lines)


def examples_of(lines: Lines, claim: str, kept: NDArray[np.bool_]) -> SpanExamples:
    """Return the columns of the lines, with the claim as one of the arrays has it."""
    arrays = [(claim, "lp_min"), (claim, "ent_max"), ("lp_line", "lp_min")]
    values = np.stack([statistic(lines, *each)[kept] for each in arrays], axis=1)
    columns = np.array([span_columns(row[:1], row[1:2], row[2:]) for row in values])
    return SpanExamples(columns, lines["wrong"][kept], lines["answer_id"][kept])


def statistic(lines: Lines, array: str, name: str) -> NDArray[np.float64]:
    """Return one statistic of every line."""
    return lines[array][:, lines["stats"].tolist().index(name)].astype(np.float64)


def left_out(examples: SpanExamples, sets: NDArray[np.str_]) -> dict[str, Any]:
    """Return the measures of probabilities that were fitted on all sets but a line's own."""
    probabilities = np.empty(len(examples))
    for name in np.unique(sets):
        rest, own = np.flatnonzero(sets != name), np.flatnonzero(sets == name)
        model = fit_span_model(examples.take(rest), data=[], max_tokens=160)
        probabilities[own] = p_wrong(model, examples.columns[own])
    return {**asdict(compute_metrics(probabilities, examples.wrong)), **within_answers(probabilities, examples)}


def measured(scores: NDArray[np.float64], examples: SpanExamples) -> dict[str, Any]:
    """Return the measures of scores that are no probabilities."""
    return {"auroc": AUROC.value(scores, examples.wrong), "brier": None, **within_answers(scores, examples)}


def show(name: str, figures: Mapping[str, Any]) -> None:
    """Print one row."""
    brier = "    -" if figures["brier"] is None else f"{figures['brier']:.3f}"
    print(
        f"{name:40s} AUROC {figures['auroc']:.3f}  within {figures['auroc_within']:.3f}  top-1 {figures['top_1']:.2f} "
        f"(chance {figures['top_1_chance']:.2f})  Brier {brier}"
    )


def print_rules(lines: Lines) -> None:
    """Print how many lines are found as one span, and how often its claim holds the value."""
    both = zip(lines["answer_text"].tolist(), lines["answer_question"].tolist(), strict=True)
    texts = dict(zip(lines["answer_ids"].tolist(), both, strict=True))
    found = claimed = 0
    for answer, line, value in zip(lines["answer_id"].tolist(), lines["text"], lines["value"], strict=True):
        text, question = texts[answer]
        spans = find_spans(text)
        at = next((number for number, (start, end) in enumerate(spans) if text[start:end] == str(line).strip()), None)
        if at is not None:
            found += 1
            claimed += any(text[start:end] in str(value) for start, end in find_claims(text, spans, question)[at])
    print(f"rules: {found} of {len(lines['text'])} lines are one span; in {claimed} its claim is part of the value")


if __name__ == "__main__":
    main()
