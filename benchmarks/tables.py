"""Put the figures of the last results into the documents, between their markers.

    python benchmarks/tables.py [REPORT.json]

From docs/evidence/figures.json and benchmarks/results/ (`risk_guarantee.py`, `overhead.py`). With the JSON that
`guard evaluate` writes beside its report, figures.json is first written from it: means, intervals and verdicts, without
curves and single cells, which belong in the report. A test compares the documents with these figures.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from guard.evaluation.bootstrap import Estimate
from guard.evaluation.evaluate import CROSSED, OWN
from guard.evaluation.measures import measure_named
from guard.evaluation.predictions import HELD_OUT, LEAVE_ONE_OUT, SAMPLED, SHIFT, WITHIN
from guard.evaluation.result import EvaluationResult, ModelResult, SettingResult

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "docs" / "evidence" / "figures.json"
MEASURED = ROOT / "benchmarks" / "results"

#: What was measured of the cost, in the table's order.
COSTS = {
    "smollm2-llama-cpp.json": "SmolLM2-135M Q4_1, llama.cpp",
    "qwen2.5-1.5b-llama-cpp.json": "Qwen2.5-Coder-1.5B Q4_K_M, llama.cpp",
    "smollm2-transformers.json": "SmolLM2-135M float32, transformers",
}

#: What was measured where requests share an engine, in the documents' order; a file for each model.
SHARED = ("conversations", "attention", "clients", "threads", "recordings", "busy", "stability")

#: What people call a model whose file calls it otherwise.
NAMES = {
    "Smollm2 135M 8k Lc100K Mix1 Ep2": "SmolLM2-135M-Instruct",
    "SmolLM2-135M-Instruct.Q4_1": "SmolLM2-135M-Instruct",
    "Gemma 3 270m": "Gemma 3 270M (base)",
    "Qwen2.5 Coder 1.5B Instruct GGUF": "Qwen2.5-Coder-1.5B-Instruct",
}
_MEASURES = ("AUROC", "AUPRC (wrong)", "AUPRC (right)", "Brier", "ECE", "PRR")
_SETTINGS = {
    LEAVE_ONE_OUT: "Fitted on all sets but one, tested on that one; mean over the sets:",
    WITHIN: "Fitted and tested within each set (five folds); mean over the sets where the method could be fitted:",
    HELD_OUT: "Fitted on all sets, tested on further ones that had no part in making the method; mean over these:",
    SAMPLED: "Fitted on all sets but one, tested on that one, answers that were sampled again only; cost of a score:",
}


#: Methods whose Brier score the README shows, and the share of wrong answers at which it says how many are accepted.
_BRIER, _AT_MOST = (OWN, "log-probabilities"), 0.2


def overview(result: EvaluationResult) -> str:
    """Return the README's table: guard and other methods on sets that they were not fitted on."""
    names = ["guard" if name == OWN else name for name in CROSSED]
    lines = _header(
        "model", *names, "Brier: guard", "log-probabilities", f"accepted at {_AT_MOST:.0%}".replace("%", " %")
    )
    for model in result.models:
        if model is not _largest(model, result.models):
            continue
        lines += _overview(_setting(model, LEAVE_ONE_OUT), _name(model), _coverage(model))
        if new := model.setting(HELD_OUT):
            lines += _overview(new, f"{_name(model)}, new sets", "")
    return "\n".join(lines) + "\n"


def _overview(found: SettingResult, name: str, accepted: str) -> Iterator[str]:
    values, brier = ([_value(found, each, "AUROC") for each in CROSSED], [_value(found, x, "Brier") for x in _BRIER])
    yield _row(name, *_best(values, "AUROC"), *_best(brier, "Brier"), accepted)


def _coverage(model: ModelResult) -> str:
    """Say how many answers one threshold accepts with at most `_AT_MOST` wrong ones among them."""
    points = model.pooled.points if model.pooled else ()
    found = next((each.coverage.value for each in points if each.risk == _AT_MOST), None)
    return "" if found is None else f"{100 * found:.0f} %"


def report(result: EvaluationResult) -> str:
    """The evidence's tables, model by model."""
    parts = [f"Made on {result.provenance.created[:10]}, {result.provenance.machine}.\n"]
    for model in result.models:
        parts.append(f"### {_name(model)}: {model.answers:,} answers\n")
        parts.append(_accepted(model))
        parts += [f"{title}\n\n{_methods(model, name)}" for name, title in _SETTINGS.items() if model.setting(name)]
        shifts = "\n".join(_shifts(model))
        if shifts:
            parts.append(
                "Fitted on the records of the model as it is, tested on the same model otherwise (within each set, "
                "never on a question that it was fitted on). A mean is over the sets where the method could be "
                "fitted and that have right and wrong answers; one over fewer sets than others says so and cannot be "
                f"compared with them. Gains below are over common sets:\n\n{shifts}\n"
            )
        parts.append(f"Claims (gain and 95 % interval, paired bootstrap):\n\n{_verdicts(model)}")
        parts.append("\n".join(_groups(model)) + "\n")
    return "\n".join(part for part in parts if part.strip())


def risk_guarantees(files: Sequence[Path]) -> str:
    """The certificates' tables: what a thousand certifications of recorded scores came to."""
    parts = []
    for file in files:
        data = json.loads(file.read_text(encoding="utf-8"))
        scores, first = data["scores"], data["results"][0]
        parts.append(
            f"{scores['of']}: {scores['answers']:,} answers, {scores['wrong']:.0%} wrong; {first['draws']:,} draws of "
            f"{first['n']:,} labels, confidence {first['confidence']:.0%} ({data['date'][:10]}).\n".replace("%", " %")
        )
        lines = _header("risk", "broken", "95 % interval", "naive", "certified", "coverage", "oracle", "share")
        for each in data["results"]:
            low, high = each["broken_interval"]
            shares = [f"{each['risk']:.0%}", f"{each['broken']:.1%}", f"{low:.1%} to {high:.1%}"]
            shares += [f"{each['naive_broken']:.0%}", f"{each['certified']:.0%}"]
            places = [f"{each['coverage']:.3f}", f"{each['oracle']:.3f}"]
            of_oracle = "" if each["share_of_oracle"] is None else f"{each['share_of_oracle']:.0%}"
            lines.append(_row(*(x.replace("%", " %") for x in (*shares, *places, of_oracle))))
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def costs() -> str:
    """What guarding costs, by engine."""
    ratios = (
        "guarded / library's own generation",
        "guarded / guard's loop without capture",
        "log-probabilities only / guard's loop without capture",
        "guard's loop / itself",
    )
    lines = _header("model and engine", *ratios, "bare ms per token", "scoring an answer, ms", "date")
    for file, name in COSTS.items():
        data = json.loads((MEASURED / file).read_text(encoding="utf-8"))
        shown = [f"{x['median']:.3f} ({x['smallest']:.2f} to {x['largest']:.2f})" for x in data["ratios"]]
        shown += [""] * (len(ratios) - len(shown))
        rest = (f"{data['ratios'][0]['bare']:.1f}", f"{data['score_ms']:.2f}", _when(data))
        lines.append(_row(name, *shown, *rest))
    return "\n".join(lines) + "\n"


def shared_costs(folder: Path = MEASURED) -> str:
    """What guarding costs where requests share an engine: conversations, clients, threads, recordings."""
    parts = []
    for file in sorted(each for kind in SHARED for each in folder.glob(f"{kind}-*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        model, lines = data["model"], []
        ratios = [each for each in data["found"] if "median" in each]
        if ratios:
            lines += _header("what", "against", "guarded", "bare", "ratio", "wanted")
        for each in ratios:
            figures = [f"{each[name]:.3g} {each['unit']}" for name in ("guarded", "bare")]
            spread = f"{each['median']:.3f} ({each['smallest']:.2f} to {each['largest']:.2f})"
            lines.append(_row(each["what"], each["against"], *figures, spread, each["wanted"]))
        single = [each for each in data["found"] if "value" in each]
        if single:
            lines += ["", *_header("what", "", "")] if lines else _header("what", "", "")
        lines += [_row(each["what"], f"{each['value']:.4g} {each['unit']}".strip(), each["note"]) for each in single]
        name = NAMES.get(model["name"], model["name"])
        parts.append(f"{name}, {model['quantization']}, on {model['engine']} ({_when(data)}):\n")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _when(data: Mapping[str, Any]) -> str:
    """Say when a figure was measured, how where it is not wall time on all cores, and how busy the machine was."""
    cpu = data.get("clock", "").startswith("CPU")
    how = [data["date"][:10], *(["CPU time"] if cpu else []), *([f"threads: {data['threads']}"] if cpu else [])]
    others = data.get("busy_with_others")
    return ", ".join([*how, *([] if others is None else [f"other programs used {others:.1f} cores"])])


def _accepted(model: ModelResult) -> str:
    """Say what one threshold over the answers of all test sets accepts; empty where no protocol tells."""
    if (found := model.pooled) is None:
        return ""
    fitted = {LEAVE_ONE_OUT: "scored by a fit on all sets but its own", WITHIN: "scored by a fit on others of its set"}
    lines = _header("wrong answers among the accepted, at most", "accepted", "95 % interval")
    for each in found.points:
        low, high = (f"{100 * (value or 0.0):.1f}" for value in (each.coverage.low, each.coverage.high))
        accepted = f"{100 * (each.coverage.value or 0.0):.1f} %"
        lines.append(_row(f"{100 * each.risk:.0f} %", accepted, f"{low} to {high} %"))
    return (
        f"One threshold over {found.answers:,} answers to {found.sets} sets, of which {100 * found.wrong:.0f} % are "
        f"wrong, each {fitted[found.setting]}:\n\n" + "\n".join(lines) + "\n"
    )


def _methods(model: ModelResult, setting: str) -> str:
    found = _setting(model, setting)
    costs = setting == SAMPLED
    lines = _header("method", "sets", *_MEASURES, *(["seconds"] if costs else []))
    for card in model.methods:
        ranked = found.score(card.name, "AUROC")
        if ranked and ranked.cells:
            values = [f"{_value(found, card.name, each):.3f}" for each in _MEASURES]
            seconds = "" if card.seconds is None else f"{card.seconds:.4f}"
            lines.append(_row(card.name, str(ranked.cells), *values, *([seconds] if costs else [])))
    return "\n".join(lines) + "\n"


def _shifts(model: ModelResult) -> Iterator[str]:
    shifts = [each for each in model.settings if each.setting.startswith(f"{SHIFT}: ")]
    if not shifts:
        return
    measures = ("AUROC", "AUPRC (wrong)", "Brier")
    yield from _header("shift", "", *CROSSED)
    for each in shifts:
        for measure in measures:
            name = each.setting.removeprefix(f"{SHIFT}: ") if measure == measures[0] else ""
            yield _row(name, measure, *_on_their_sets(each, measure))


def _on_their_sets(found: SettingResult, measure: str) -> list[str]:
    """Values of the methods; one that is over fewer sets than others says so."""
    sets = {name: score.cells for name in CROSSED if (score := found.score(name, measure))}
    most, shown = max(sets.values()), []
    for name in CROSSED:
        value = f"{_value(found, name, measure):.3f}" if sets[name] else ""
        shown.append(value if sets[name] in (0, most) else f"{value} ({sets[name]} sets)")
    return shown


def _verdicts(model: ModelResult) -> str:
    lines = _header("claim", "against", "gain", "interval", "outcome")
    for each in model.verdicts:
        gain = each.estimate
        value = "" if gain.value is None else f"{gain.value:+.3f}"
        lines.append(_row(each.claim.text, each.against, value, _interval(gain), each.outcome))
    return "\n".join(lines) + "\n"


def _groups(model: ModelResult) -> Iterator[str]:
    for each in model.groups:
        gain = each.gain.estimate
        if each.setting == LEAVE_ONE_OUT and each.measure in ("AUROC", "AUPRC (wrong)") and gain.value is not None:
            yield f"- {each.group}: {gain.value:+.3f} {each.measure} ({_interval(gain)}) over the score without"


def _interval(estimate: Estimate) -> str:
    return "" if estimate.low is None or estimate.high is None else f"{estimate.low:+.3f} to {estimate.high:+.3f}"


def _best(values: list[float], measure: str) -> list[str]:
    best = max(values) if measure_named(measure).direction == "higher" else min(values)
    return [f"**{value:.3f}**" if round(value, 3) == round(best, 3) else f"{value:.3f}" for value in values]


def _setting(model: ModelResult, name: str) -> SettingResult:
    found = model.setting(name)
    if found is None:
        raise SystemExit(f"{model.model.name} was not evaluated {name}")
    return found


def _value(found: SettingResult, method: str, measure: str) -> float:
    score = found.score(method, measure)
    if score is None or score.estimate.value is None:
        raise SystemExit(f"{method} has no {measure} in {found.setting}")
    return score.estimate.value


def _largest(model: ModelResult, models: Sequence[ModelResult]) -> ModelResult:
    """Of the results of one model's answers the one with most of them."""
    weights = model.model.weights_sha256
    return max((each for each in models if each.model.weights_sha256 == weights), key=lambda each: each.answers)


def _name(model: ModelResult) -> str:
    return f"{NAMES.get(model.model.name, model.model.name)}, {model.model.quantization}"


def _header(*names: str) -> list[str]:
    return [_row(*names), _row(*["---"] * len(names))]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def filled() -> dict[Path, str]:
    """All documents as they should be, with the last results' figures."""
    result = EvaluationResult.from_json(RESULT.read_text(encoding="utf-8"))
    figures = {
        ROOT / "README.md": {"evidence": overview(result)},
        ROOT / "docs" / "reference" / "engines.md": {"cost": costs(), "shared-cost": shared_costs()},
        ROOT / "docs" / "evidence" / "README.md": {"evidence": report(result)},
        ROOT / "docs" / "how-to" / "certificates.md": {
            "risk-guarantees": risk_guarantees(sorted(MEASURED.glob("risk-guarantee-*.json")))
        },
    }
    return {document: _with_figures(document, named) for document, named in figures.items()}


def _with_figures(document: Path, figures: Mapping[str, str]) -> str:
    text = document.read_text(encoding="utf-8")
    for name, figure in figures.items():
        begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->\n"
        before, begun, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (begun and ended):
            raise SystemExit(f"{document} has no place for figures: {begin.strip()} and {end.strip()}")
        text = f"{before}{begin}\n{figure}\n{end}{after}"
    return text


def figures_of(result: EvaluationResult) -> EvaluationResult:
    """What the documents show of an evaluation."""
    empty: dict[str, tuple[()]] = {"per_cell": (), "missing": (), "curves": (), "reliability": ()}
    models = [
        replace(
            model,
            importance=None,
            settings=tuple(replace(each, oracle=None, random=None, **empty) for each in model.settings),
        )
        for model in result.models
    ]
    commands = tuple(map(without_folders, result.provenance.commands))
    return replace(result, models=tuple(models), provenance=replace(result.provenance, commands=commands))


def without_folders(command: str) -> str:
    """Return a command with the names of its files only: their folders are of one machine."""
    return shlex.join(Path(part).name if "/" in part else part for part in shlex.split(command))


def main() -> None:
    """Keep the figures of a report, where one is given; fill all documents."""
    for report_file in sys.argv[1:2]:
        whole = EvaluationResult.from_json(Path(report_file).read_text(encoding="utf-8"))
        kept = json.loads(figures_of(whole).to_json())
        RESULT.write_text(json.dumps(kept, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
    for document, text in filled().items():
        document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
