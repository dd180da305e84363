"""How well scores tell which line or sentence of an answer is wrong.

    python benchmarks/spans.py kept.jsonl [--from other.jsonl] [--out spans.json]
    python benchmarks/spans.py lines.npz

A `.jsonl` file is what `span_answers.py` keeps. A `.npz` file has labelled lines of one model's answers: for each
``wrong``, ``answer_id``, ``set``, ``kind`` (lines of kind ``final`` repeat the answer and are left out), ``text``,
``value`` (what the label is about), and statistics of log-probabilities over the line (``lp_line``), the value's
tokens (``lp_value``) and the claim's tokens (``lp_new_words``), named in ``stats``; ``answer_text`` and
``answer_question`` by ``answer_ids``.

Prints AUROC over all lines and within answers, the share of answers whose top line is a wrong one, and Brier, of
guard's three columns, fitted in folds by answer, with one set left out, and on another model's lines (--from); of
scores that nothing is fitted for; and of a control that reads the texts only. Intervals are of 1,000 samples of the
answers; the gain is that of the three columns, fitted without the line's own set, over another score, on the same
samples. Then the same for each group of sets.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, versions
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from guard.calibration.span_fit import FOLDS, SpanExamples, fit_span_model, within_answers
from guard.errors import CalibrationError
from guard.evaluation.measures import AUROC
from guard.records import Doubles
from guard.scoring.claims import find_claims
from guard.scoring.metrics import compute_metrics
from guard.scoring.span_scores import p_wrong, span_columns
from guard.scoring.spans import find_spans

#: Sets of the same kind, which are left out together.
WORD_PROBLEMS = ("gsm8k", "multiarith", "singleeq", "addsub")
DRAWS = 1000
MEAN, OWN = "mean log-probability of the line", "three columns, set left out"

LineRows = NDArray[np.intp]
#: Returns probabilities of some lines by a fit to others.
SpanFit = Callable[[LineRows, LineRows], Doubles]


@dataclass(frozen=True, slots=True, eq=False)
class SpanLines:
    """Labelled lines of one model.

    Attributes:
        examples: columns, labels and answers.
        dataset, text: shape (n,).
        unfitted: scores that nothing is fitted for, by name, shape (n,), which rise with doubt.
    """

    examples: SpanExamples
    dataset: NDArray[np.str_]
    text: NDArray[np.str_]
    unfitted: Mapping[str, Doubles]

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def given(self) -> NDArray[np.bool_]:
        """Whether each line was given to the model; nothing is fitted on those."""
        return np.char.startswith(self.dataset, "given")

    def take(self, rows: LineRows) -> SpanLines:
        """Return some of the lines."""
        unfitted = {name: values[rows] for name, values in self.unfitted.items()}
        return SpanLines(self.examples.take(rows), self.dataset[rows], self.text[rows], unfitted)


def read(path: Path, claim: str = "lp_new_words") -> SpanLines:
    """Read a file; for an older one, which array stands for the claim."""
    return from_arrays(dict(np.load(path)), claim) if path.suffix == ".npz" else from_answers(path)


def from_answers(path: Path) -> SpanLines:
    """Read what `span_answers.py` kept."""
    answers = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    found = [(answer, line) for answer in answers for line in answer["lines"]]
    examples = SpanExamples(
        np.array([line["columns"] for _, line in found], np.float64),
        np.array([line["wrong"] for _, line in found], np.bool_),
        np.array([_answer_of(answer) for answer, _ in found]),
    )
    columns = {name: np.array([-line[name] for _, line in found], np.float64) for name in ("mean", "least", "ccp")}
    unfitted = {
        MEAN: columns["mean"],
        "least log-probability of the claim": columns["least"],
        "claim-conditioned probability": columns["ccp"],
    }
    texts = np.array([line["text"] for _, line in found])
    return SpanLines(examples, np.array([answer["set"] for answer, _ in found]), texts, unfitted)


def _answer_of(answer: Mapping[str, Any]) -> str:
    """Return which lines are compared within an answer: of given answers, all to one question."""
    key = str(answer["key"])
    return key.rpartition("/")[0] if answer["set"].startswith("given") else key


def from_arrays(arrays: Mapping[str, NDArray[Any]], claim: str) -> SpanLines:
    """Return lines of the older form."""
    kept = arrays["kind"] != "final"
    columns = [
        statistic(arrays, *each)[kept] for each in ((claim, "lp_min"), (claim, "ent_max"), ("lp_line", "lp_min"))
    ]
    values = np.array([span_columns(a, b, c) for a, b, c in np.stack(columns, axis=1)[:, :, None]])
    examples = SpanExamples(values, arrays["wrong"][kept], arrays["answer_id"][kept])
    unfitted = {
        MEAN: -statistic(arrays, "lp_line", "lp_mean")[kept],
        "least log-probability of the claim": -columns[0],
    }
    sets = np.where(np.isin(arrays["set"], WORD_PROBLEMS), "word problems", arrays["set"])[kept]
    return SpanLines(examples, sets, arrays["text"][kept].astype(np.str_), unfitted)


def statistic(arrays: Mapping[str, NDArray[Any]], array: str, name: str) -> Doubles:
    """Return one statistic of every line."""
    values: Doubles = arrays[array][:, arrays["stats"].tolist().index(name)].astype(np.float64)
    return values


# -- fitting -----------------------------------------------------------------------------------


def by_columns(lines: SpanLines) -> SpanFit:
    """Return what fits guard's model of spans."""

    def fit(learn: LineRows, out: LineRows) -> Doubles:
        model = fit_span_model(lines.examples.take(learn), data=[], max_tokens=160)
        return p_wrong(model, lines.examples.columns[out])

    return fit


def by_texts(lines: SpanLines) -> SpanFit:
    """Return what fits the control: words and letters of the lines."""

    def fit(learn: LineRows, out: LineRows) -> Doubles:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        learned = sparse.hstack([each.fit_transform(lines.text[learn]) for each in (words, letters)])
        model = LogisticRegression(max_iter=1000).fit(learned, lines.examples.wrong[learn])
        shown = sparse.hstack([each.transform(lines.text[out]) for each in (words, letters)])
        return np.asarray(model.predict_proba(shown)[:, 1])

    return fit


def in_folds(lines: SpanLines, fit: SpanFit) -> Doubles:
    """Return probabilities of each line by a fit to other answers of the model."""
    found, own = np.empty(len(lines)), np.flatnonzero(~lines.given)
    for learn, out in GroupKFold(FOLDS).split(own, groups=lines.examples.answer[own]):
        found[own[out]] = fit(own[learn], own[out])
    if lines.given.any():
        found[lines.given] = fit(own, np.flatnonzero(lines.given))
    return found


def left_out(lines: SpanLines, fit: SpanFit) -> Doubles:
    """Return probabilities of each line by a fit to the model's answers of other sets."""
    found = np.empty(len(lines))
    for name in np.unique(lines.dataset):
        rest, out = (lines.dataset != name) & ~lines.given, np.flatnonzero(lines.dataset == name)
        found[out] = fit(np.flatnonzero(rest), out)
    return found


def scores_of(lines: SpanLines, other: SpanLines | None) -> dict[str, Doubles]:
    """Return all scores of the lines, by name; those that cannot be fitted are left out."""
    columns, texts = by_columns(lines), by_texts(lines)
    wanted: dict[str, Callable[[], Doubles]] = {
        "three columns": lambda: in_folds(lines, columns),
        OWN: lambda: left_out(lines, columns),
        "text only": lambda: in_folds(lines, texts),
        "text only, set left out": lambda: left_out(lines, texts),
    }
    if other is not None:
        model = fit_span_model(other.examples, data=[], max_tokens=160)
        wanted["three columns, fitted on the other model"] = lambda: p_wrong(model, lines.examples.columns)
    found = {}
    for name, score in wanted.items():
        try:
            found[name] = score()
        except CalibrationError as error:
            print(f"{name}: {error}")
    return {**found, **lines.unfitted}


# -- measuring ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SpanFigures:
    """One score; intervals are of 95 %, and the gain is that of `OWN` over it within answers."""

    auroc: tuple[float, float, float] | None
    within: tuple[float, float, float] | None
    gain: tuple[float, float, float] | None
    top_1: float | None
    brier: float | None


def measured(lines: SpanLines, scores: Mapping[str, Doubles]) -> dict[str, SpanFigures]:
    """Measure all scores on the same samples of the answers."""
    draws = list(_samples(lines.examples.answer))
    pooled = {name: _auroc(lines, each) for name, each in scores.items()}
    within = {name: _within(lines, each) for name, each in scores.items()}
    found = {}
    for name, each in scores.items():
        fitted = name not in lines.unfitted
        counted = within_answers(each, lines.examples)
        brier = compute_metrics(each, lines.examples.wrong).brier if fitted else None
        found[name] = SpanFigures(
            _interval(pooled[name], draws),
            _interval(within[name], draws),
            _interval(_difference(within[OWN], within[name]), draws) if OWN in within else None,
            counted["top_1"],
            brier,
        )
    return found


def _difference(one: Callable[[LineRows], float], other: Callable[[LineRows], float]) -> Callable[[LineRows], float]:
    return lambda rows: one(rows) - other(rows)


def _samples(answer: NDArray[np.str_]) -> Iterator[LineRows]:
    """Yield all lines, then those of samples of the answers, one answer's lines as often as it is drawn."""
    yield np.arange(len(answer))
    _, number = np.unique(answer, return_inverse=True)
    members = [np.flatnonzero(number == each) for each in range(number.max() + 1)]
    rng = np.random.default_rng(0)
    for _ in range(DRAWS):
        yield np.concatenate([members[each] for each in rng.integers(len(members), size=len(members))])


def _auroc(lines: SpanLines, scores: Doubles) -> Callable[[LineRows], float]:
    wrong = lines.examples.wrong
    return lambda rows: float(AUROC.value(scores[rows], wrong[rows])) if 0 < wrong[rows].mean() < 1 else float("nan")


def _within(lines: SpanLines, scores: Doubles) -> Callable[[LineRows], float]:
    """Return the share of the pairs of one answer that are in order, by rows; they count once for each answer drawn."""
    _, number = np.unique(lines.examples.answer, return_inverse=True)
    ordered, pairs = np.zeros(number.max() + 1), np.zeros(number.max() + 1)
    sizes = np.bincount(number)
    for each in range(len(sizes)):
        own = number == each
        wrong, right = scores[own & lines.examples.wrong], scores[own & ~lines.examples.wrong]
        differences = wrong[:, None] - right[None, :]
        pairs[each] = differences.size
        ordered[each] = (differences > 0).sum() + 0.5 * (differences == 0).sum()

    def share(rows: LineRows) -> float:
        times = np.bincount(number[rows], minlength=len(sizes)) / sizes
        total = float(times @ pairs)
        return float(times @ ordered) / total if total else float("nan")

    return share


def _interval(value: Callable[[LineRows], float], draws: Sequence[LineRows]) -> tuple[float, float, float] | None:
    values = np.array([value(rows) for rows in draws])
    if not np.isfinite(values[0]):
        return None
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return round(float(values[0]), 3), round(float(low), 3), round(float(high), 3)


def show(title: str, lines: SpanLines, found: Mapping[str, SpanFigures]) -> None:
    """Print a table."""
    wrong, answers = int(lines.examples.wrong.sum()), len(np.unique(lines.examples.answer))
    chance = within_answers(np.zeros(len(lines)), lines.examples)["top_1_chance"]
    print(
        f"\n{title}: {len(lines)} lines, {wrong} wrong, of {answers} answers; top line by chance {_number(chance, 2)}"
    )
    print(
        "| score | AUROC | within answers | gain within answers | top line is a wrong one | Brier |\n"
        + "| --- " * 6
        + "|"
    )
    for name, each in found.items():
        cells = [_three(each.auroc), _three(each.within), "" if name == OWN else _three(each.gain, "+")]
        print("| " + " | ".join([name, *cells, _number(each.top_1, 2), _number(each.brier, 3)]) + " |")


def _three(value: tuple[float, float, float] | None, sign: str = "") -> str:
    return "-" if value is None else f"{value[0]:{sign}.3f} ({value[1]:{sign}.3f} to {value[2]:{sign}.3f})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def groups_of(lines: SpanLines) -> dict[str, LineRows]:
    """Return the lines of each group of sets, named before the colon; and all that the model wrote itself."""
    group = np.array(
        [
            name.partition(":")[0] if not given else name
            for name, given in zip(lines.dataset.tolist(), lines.given, strict=True)
        ]
    )
    return {
        "all": np.flatnonzero(~lines.given),
        **{name: np.flatnonzero(group == name) for name in np.unique(group).tolist()},
    }


def print_rules(lines: Mapping[str, NDArray[Any]]) -> None:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    parser.add_argument(
        "--from", dest="other", type=Path, help="lines of another model, which the columns are fitted on"
    )
    parser.add_argument("--claim", default="lp_new_words", help="of an older file: lp_new_words or lp_value")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    lines = read(asked.lines, asked.claim)
    scores = scores_of(lines, read(asked.other) if asked.other else None)
    report = {}
    for title, rows in groups_of(lines).items():
        part = lines.take(rows)
        if 0 < part.examples.wrong.sum() < len(part):
            found = measured(part, {name: values[rows] for name, values in scores.items()})
            show(title, part, found)
            report[title] = {"lines": len(part), "wrong": int(part.examples.wrong.sum())}
            report[title] |= {"scores": {name: asdict(each) for name, each in found.items()}}
    if asked.lines.suffix == ".npz":
        print_rules(dict(np.load(asked.lines)))
    if asked.out:
        about = {"machine": machine(), "versions": versions(), "lines": asked.lines.name}
        asked.out.write_text(json.dumps({**about, "groups": report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
