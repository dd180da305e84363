"""guard's score beside LM-Polygraph and UQLM: the same answers of one model, one run, with cost.

    python benchmarks/peers.py kept --data set1.jsonl.gz --data set2.jsonl.gz [--limit 80] [--out peers.json]

SmolLM2 answers through transformers (the embedded GGUF's weights, float32), once for guard and once for LM-Polygraph,
which generates by itself; the share of equal answers is printed. UQLM scores the answers' log-probabilities. guard's
score is that of the shipped scorer, which has seen labels of nine other sets and its own engine's activations only,
and a fit on the other sets of this run. Methods that need a language model for inference (semantic entropy, SAR) are
left out: they read a DeBERTa that is not in this environment. Seconds are CPU time of the process, each kind of method
alone.

Needs lm-polygraph 0.7.0 and uqlm 0.6.7 beside guard and torch, in an environment of their own: both pin older
transformers and numpy than guard, so install them with --no-deps, their requirements by hand, and pyarrow below 22.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from measuring import machine, versions
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer

from guard.calibration.fitting import Examples
from guard.data.graders import grade
from guard.data.labelling import is_wrong
from guard.data.prompts import question_prompt
from guard.data.question_sets import read_sets
from guard.data.questions import Question
from guard.engines import embedded_model, load_engine
from guard.engines.base import BaseEngine
from guard.errors import CalibrationError
from guard.evaluation.bootstrap import Estimate, bootstrap
from guard.evaluation.measures import AUROC, HALF_PRR
from guard.evaluation.predictions import Predictions
from guard.records import Doubles, Generation, Limits, Prompt
from guard.runtime.sources import find_capture_point
from guard.scoring.scorer import Scorer, load_scorer, shipped_scorer
from guard.scoring.signature import FeatureSchema, SignatureObserver, feature_vector

GENERATE = "transformers' generate"
GROUPS = ("logprob", "margin", "length")
OWN, REFITTED = "guard, shipped scorer", "guard, fitted on the other sets"
SAMPLES = 10


@dataclass(frozen=True, slots=True, eq=False)
class PeerAnswer:
    """One answer of guard's engine, with what scores read of it."""

    row: Question
    prompt: Prompt
    generation: Generation
    observer: SignatureObserver
    wrong: bool

    @property
    def logprobs(self) -> list[float]:
        """Log-probabilities of the answer's tokens, without that of its end."""
        values = [float(each) for each in self.generation.logprobs]
        return values[:-1] if self.generation.finish_reason == "stop" and len(values) > 1 else values


def answers_of(engine: BaseEngine, rows: Sequence[Question], scorer: Scorer) -> list[PeerAnswer]:
    """Ask the questions as the shipped scorer's calibration did."""
    prompting, found = scorer.artefact.prompting, []
    for row in rows:
        prompt = question_prompt(row, system=prompting.system, template_options=prompting.template_options)
        observer = SignatureObserver()
        generation = engine.generate(prompt, limits=Limits(max_tokens=prompting.max_tokens), observer=observer)
        found.append(PeerAnswer(row, prompt, generation, observer, is_wrong(row, generation.text, grade)))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class PeerSet:
    """The answers to one set, with every score.

    Attributes:
        name: of the set.
        wrong, same: shape (n,), whether an answer is wrong, and whether LM-Polygraph's is the same.
        scores: by method, shape (n,), which rise with doubt.
        x, activations: what guard's own score is fitted on.
    """

    name: str
    wrong: NDArray[np.bool_]
    same: NDArray[np.bool_]
    scores: Mapping[str, Doubles]
    x: NDArray[np.float32]
    activations: NDArray[np.float16]

    def write(self, path: Path) -> None:
        """Write a file of NumPy's."""
        names = np.array(list(self.scores))
        values = np.array(list(self.scores.values()))
        np.savez(path, wrong=self.wrong, same=self.same, names=names, values=values, x=self.x, layers=self.activations)

    @classmethod
    def read(cls, path: Path) -> PeerSet:
        """Read what `write` wrote."""
        found = np.load(path)
        scores = dict(zip(found["names"].tolist(), found["values"], strict=True))
        return cls(path.stem, found["wrong"], found["same"], scores, found["x"], found["layers"])


@dataclass(frozen=True, slots=True)
class Models:
    """LM-Polygraph's wrappers, with and without attention weights, and whether to sample."""

    eager: Any
    plain: Any
    sampled: bool


# -- guard -------------------------------------------------------------------------------------


def by_shipped_scorer(answers: Sequence[PeerAnswer], scorer: Scorer) -> dict[str, Doubles]:
    """Return the shipped scorer's probabilities, and those that it gives from log-probabilities alone."""
    scores = [scorer.score(each.generation.signals(each.observer.signature())) for each in answers]
    return {
        OWN: np.array([each.p_wrong for each in scores]),
        "guard, log-probabilities": np.array([each.scores["log-probabilities"].p_wrong for each in scores]),
    }


def by_other_sets(parts: Sequence[PeerSet]) -> Doubles:
    """Return probabilities of guard's own score, fitted for each set on the others of this run."""
    from early import fitted_probabilities

    activations = np.concatenate([each.activations for each in parts])
    schema = FeatureSchema(layers=activations.shape[2], groups=GROUPS)
    sets = np.repeat([each.name for each in parts], [len(each.wrong) for each in parts])
    wrong = np.concatenate([each.wrong for each in parts])
    examples = Examples(np.concatenate([each.x for each in parts]), wrong, sets, activations)
    found = np.full(len(wrong), np.nan)
    for name in np.unique(sets):
        learn, out = np.flatnonzero(sets != name), np.flatnonzero(sets == name)
        try:
            found[out] = fitted_probabilities(examples, schema, learn, out)
        except CalibrationError:
            continue
    return found


# -- the peers ---------------------------------------------------------------------------------


def polygraph(attention: str) -> Any:
    """Return LM-Polygraph's wrapper of the same weights."""
    from lm_polygraph.utils.generation_parameters import GenerationParameters
    from lm_polygraph.utils.model import WhiteboxModel

    path = Path(embedded_model())
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, attn_implementation=attention)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    parameters = GenerationParameters(temperature=1.0, top_p=1.0, top_k=50)
    return WhiteboxModel(model.eval(), tokenizer, str(path), "CausalLM", parameters)


def rendered(model: Any, answers: Sequence[PeerAnswer]) -> list[str]:
    """Return the prompts as the text that the model reads."""
    return [
        model.tokenizer.apply_chat_template(
            list(each.prompt.messages or ()), add_generation_prompt=True, tokenize=False
        )
        for each in answers
    ]


def managed(model: Any, texts: Sequence[str], estimators: Sequence[Any], tokens: int) -> tuple[dict[str, Doubles], Any]:
    """Let LM-Polygraph generate answers and estimate; return uncertainties by method, and its texts."""
    from lm_polygraph.defaults.register_default_stat_calculators import register_default_stat_calculators
    from lm_polygraph.utils.builder_enviroment_stat_calculator import BuilderEnvironmentStatCalculator
    from lm_polygraph.utils.dataset import Dataset
    from lm_polygraph.utils.manager import UEManager

    manager = UEManager(
        Dataset(list(texts), [""] * len(texts), batch_size=1),
        model,
        list(estimators),
        available_stat_calculators=register_default_stat_calculators("Whitebox"),
        builder_env_stat_calc=BuilderEnvironmentStatCalculator(model),
        generation_metrics=[],
        ue_metrics=[],
        processors=[],
        ignore_exceptions=False,
        verbose=False,
        max_new_tokens=tokens,
    )
    manager()
    found = {f"LM-Polygraph, {name}": np.array(values, np.float64) for (_, name), values in manager.estimations.items()}
    return found, manager.stats.get("greedy_texts")


def p_true(model: Any, answers: Sequence[PeerAnswer]) -> Doubles:
    """Return LM-Polygraph's P(true) of the answers, asked as a chat message, without the system message."""
    from lm_polygraph.stat_calculators.prompt import PromptCalculator

    model.instruct = True
    asked = [str((question_prompt(each.row, system="").messages or ())[0]["content"]) for each in answers]
    found = []
    for text, each in zip(asked, answers, strict=True):
        stats = {"greedy_texts": [each.generation.text], "input_texts": [text]}
        found.append(-float(PromptCalculator()(stats, [text], model)["p_true"][0]))
    model.instruct = False
    return np.array(found)


def uqlm_scores(answers: Sequence[PeerAnswer]) -> dict[str, Doubles]:
    """Return one minus UQLM's confidences, from the answers' log-probabilities."""
    from uqlm import WhiteBoxUQ

    scorers = ["sequence_probability", "min_probability"]
    logprobs = [[{"token": "", "logprob": value} for value in each.logprobs] for each in answers]
    scored = asyncio.run(WhiteBoxUQ(scorers=scorers).score(logprobs_results=logprobs, show_progress_bars=False))
    return {f"UQLM, {name}": 1 - np.array(scored.data[name], np.float64) for name in scorers}


# -- all of it ---------------------------------------------------------------------------------


def seconds_of(run: Callable[[], Any], count: int) -> float:
    """Return CPU seconds of this process for each of several answers: the clock says little on a shared machine."""
    started = time.process_time()
    run()
    return (time.process_time() - started) / count


def costs(engine: BaseEngine, models: Models, answers: Sequence[PeerAnswer], scorer: Scorer) -> dict[str, float]:
    """Return the CPU seconds of one answer with each kind of method alone, and of plain generation on both engines."""
    from lm_polygraph.estimators import RAUQ, LexicalSimilarity, MaximumSequenceProbability

    model, plain = models.eager, models.plain
    texts, tokens = rendered(model, answers), scorer.artefact.prompting.max_tokens
    count, limits = len(answers), Limits(max_tokens=tokens)

    def guarded() -> None:
        for each in answers:
            observer = scorer.observer()
            generation = engine.generate(each.prompt, limits=limits, observer=observer)
            scorer.score(generation.signals(observer.signature()))

    def generated(of: Any) -> None:
        for text in texts:
            of.model.generate(**of.tokenizer(text, return_tensors="pt"), max_new_tokens=tokens, do_sample=False)

    runs: dict[str, Callable[[], Any]] = {
        GENERATE: lambda: generated(plain),
        "guard's engine, bare": lambda: [engine.generate(each.prompt, limits=limits) for each in answers],
        "guard's engine, scored": guarded,
        "LM-Polygraph, MaximumSequenceProbability": lambda: managed(
            model, texts, [MaximumSequenceProbability()], tokens
        ),
        "LM-Polygraph, RAUQ": lambda: managed(model, texts, [RAUQ(instruct=True)], tokens),
        "LM-Polygraph, PTrue alone": lambda: p_true(model, answers),
    }
    if models.sampled:
        name = f"LM-Polygraph, {SAMPLES} samples"
        runs[name] = lambda: managed(model, texts, [LexicalSimilarity("rougeL")], tokens)
    return {name: seconds_of(run, count) for name, run in runs.items()}


def judged(parts: Sequence[PeerSet]) -> dict[str, Any]:
    """Return AUROC and PRR to one half of each method, pooled and as means over the sets, and guard's gains."""
    wrong = np.concatenate([each.wrong for each in parts])
    names = [name for name in parts[0].scores if all(name in each.scores for each in parts)]
    scores = {name: np.concatenate([each.scores[name] for each in parts]) for name in names}
    scores[REFITTED] = by_other_sets(parts)
    sets = np.repeat([each.name for each in parts], [len(each.wrong) for each in parts])
    cells = [_cell(name, np.flatnonzero(sets == name), scores, wrong) for name in np.unique(sets)]
    pooled = bootstrap([_cell("all", np.arange(len(wrong)), scores, wrong)], [AUROC, HALF_PRR])
    mean = bootstrap(cells, [AUROC])
    return {
        name: {
            "pooled AUROC": _text(pooled.mean(name, AUROC.name)[0]),
            "pooled PRR to one half": _text(pooled.mean(name, HALF_PRR.name)[0]),
            "mean AUROC": _text(mean.mean(name, AUROC.name)[0]),
            "gain of guard": _text(pooled.gain(OWN, name, AUROC.name).estimate),
        }
        for name in scores
    }


def _cell(name: str, rows: NDArray[np.intp], scores: Mapping[str, Doubles], wrong: NDArray[np.bool_]) -> Predictions:
    known = {method: values[rows] for method, values in scores.items() if not np.isnan(values[rows]).any()}
    missing = dict.fromkeys(scores.keys() - known.keys(), "not fitted")
    return Predictions("peers", "", name, wrong[rows], np.arange(len(rows)), known, missing)


def _text(estimate: Estimate) -> list[float | None]:
    return [None if each is None else round(each, 3) for each in (estimate.value, estimate.low, estimate.high)]


def part_of(engine: BaseEngine, models: Any, scorer: Scorer, name: str, rows: Sequence[Question]) -> PeerSet:
    """Ask the questions of one set, and score the answers by all methods."""
    from lm_polygraph.estimators import (
        RAUQ,
        LexicalSimilarity,
        MaximumSequenceProbability,
        MeanTokenEntropy,
        MonteCarloSequenceEntropy,
        Perplexity,
    )

    answers, tokens = answers_of(engine, rows, scorer), scorer.artefact.prompting.max_tokens
    scores = {**by_shipped_scorer(answers, scorer), **uqlm_scores(answers)}
    single = [MaximumSequenceProbability(), Perplexity(), MeanTokenEntropy(), RAUQ(instruct=True)]
    found, texts = managed(models.eager, rendered(models.eager, answers), single, tokens)
    scores |= {**found, "LM-Polygraph, PTrue": p_true(models.eager, answers)}
    if models.sampled:
        sampling = [LexicalSimilarity("rougeL"), MonteCarloSequenceEntropy()]
        scores |= managed(models.plain, rendered(models.plain, answers), sampling, tokens)[0]
    same = [a.strip() == b.generation.text.strip() for a, b in zip(texts, answers, strict=True)]
    signals = [each.generation.signals(each.observer.signature()) for each in answers]
    schema = FeatureSchema(layers=engine.model.layers, groups=GROUPS)
    return PeerSet(
        name=name,
        wrong=np.array([each.wrong for each in answers]),
        same=np.array(same),
        scores=scores,
        x=np.array([feature_vector(each, schema) for each in signals], np.float32),
        activations=np.stack([each.signature.activations for each in signals]).astype(np.float16),
    )


def ask(asked: argparse.Namespace) -> None:
    """Ask the sets that have no file yet; several of these programs can work beside each other."""
    sources = read_sets(asked.data, limit=asked.limit, seed=0)
    if all(asked.path(name).exists() for name in ("seconds", *(each.name for each in sources))):
        return
    with load_engine(embedded_model(), engine="transformers", dtype="float32", deterministic=True) as engine:
        scorer = load_scorer(shipped_scorer()).for_model(engine.model, find_capture_point(engine), force=True)
        models = Models(polygraph("eager"), polygraph("sdpa"), asked.sampled)
        for source in sources:
            if not asked.path(source.name).exists():
                rows = [row for row in source.rows if isinstance(row, Question)]
                part = part_of(engine, models, scorer, source.name, rows)
                part.write(asked.path(source.name))
                print(f"{source.name}: {len(rows)} answers, {part.wrong.mean():.0%} wrong", flush=True)
        if not asked.path("seconds").exists():
            rows = [row for row in sources[0].rows if isinstance(row, Question)]
            seconds = costs(engine, models, answers_of(engine, rows[: asked.timed], scorer), scorer)
            asked.path("seconds").write_text(json.dumps(seconds), encoding="utf-8")


def main() -> None:
    """Run, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kept", type=Path, help="folder of what was asked and scored, a file for each set")
    parser.add_argument("--data", action="append", required=True)
    parser.add_argument("--limit", type=int, default=80, help="questions of each set")
    parser.add_argument("--timed", type=int, default=30, help="answers for the costs")
    parser.add_argument("--sampled", action=argparse.BooleanOptionalAction, default=True, help="methods with samples")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    asked.kept.mkdir(exist_ok=True)
    asked.path = lambda name: asked.kept / f"{name}.{'json' if name == 'seconds' else 'npz'}"
    ask(asked)
    parts = [PeerSet.read(file) for file in sorted(asked.kept.glob("*.npz"))]
    seconds = json.loads(asked.path("seconds").read_text(encoding="utf-8"))
    report = {
        "answers": sum(len(each.wrong) for each in parts),
        "wrong": float(np.concatenate([each.wrong for each in parts]).mean()),
        "sets": [each.name for each in parts],
        "same answers": float(np.concatenate([each.same for each in parts]).mean()),
        "judged": judged(parts),
        "seconds": seconds,
    }
    for name in ("answers", "wrong", "sets", "same answers"):
        print(f"{name}: {report[name]}")
    for name, values in report["judged"].items():
        print(f"{name:>45}: " + ", ".join(f"{what} {value}" for what, value in values.items()))
    for name, each in seconds.items():
        print(f"{name:>45}: {each:.3f} s of CPU time an answer, {each / seconds[GENERATE]:.2f} times generate")
    if asked.out:
        packages = {name: version(name) for name in ("lm-polygraph", "uqlm")}
        about = {"machine": machine(), "versions": {**versions(), **packages}, "limit": asked.limit}
        asked.out.write_text(json.dumps({**about, **report}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
