"""From recorded answers to a report: read, run the protocols, join, write JSON and HTML."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from guard.checked import checked_choice, whole_number
from guard.data.answers import Answers, concatenate
from guard.data.progress import Progress, ProgressCallback, ignore_progress
from guard.errors import InputError
from guard.evaluation.evaluate import EvaluationPlan, model_card
from guard.evaluation.evaluate import evaluate as run_protocols
from guard.evaluation.predictions import HELD_OUT, PROTOCOLS, SHIFT
from guard.evaluation.protocol import ProtocolStep, capped
from guard.evaluation.report import render
from guard.evaluation.result import EvaluationResult, ModelCard, ModelResult, Note, Provenance
from guard.files.output_file import check_writable
from guard.files.write_whole import write_whole

TITLE = "How well does it know when it is wrong?"

#: One file, or several.
Files = str | Path | Sequence[str | Path]


def evaluate(
    records: Files = (),
    *,
    out: str | Path,
    result: str | Path | None = None,
    shift: Files = (),
    new: str | Path | None = None,
    protocol: str | Sequence[str] = (),
    parts: bool = True,
    per_set: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    title: str = TITLE,
    notes: Mapping[str, str] | str | Path | None = None,
    results: Files = (),
    progress: ProgressCallback = ignore_progress,
) -> EvaluationResult:
    """Compare guard's score with other methods on recorded answers: within data sets, across them, under shifts.

    ``guard evaluate`` calls this function: the same arguments give the same files, except for the date, measured times
    and library versions.

    Args:
        records: what `guard.record` wrote, one file per model.
        out: the report, one HTML file.
        result: where the numbers are written, as JSON; by default ``out`` with the suffix ``.json``.
        shift: records of the first model under another precision or engine.
        new: records of the first model on further data sets, for testing only.
        protocol: one or several of `guard.evaluation.predictions.PROTOCOLS`; by default all that the records allow.
        parts: fit guard's own score with each part left out, too.
        per_set: maximal number of answers of each data set, at least 10.
        draws: number of bootstrap resamples, at least 1.
        seed: seed of folds, methods and resamples, from 0 to 2**31 - 1.
        title: title of the report.
        notes: negative results: texts by title, or a JSON file of these.
        results: JSON files of earlier evaluations, to combine in one report instead of ``records``.
        progress: called with a `guard.Progress` before each piece of work, per model and protocol.

    Returns:
        the numbers behind the report.

    Raises:
        InputError: neither or both of records and results are given, files cannot be read or do not belong together,
            or options exclude one another.

    Examples:
        >>> import guard
        >>> found = guard.evaluate("answers.parquet", out="report.html", draws=200)  # doctest: +SKIP
        >>> [verdict.outcome for model in found.models for verdict in model.verdicts]  # doctest: +SKIP
        ['reached', 'reached', 'undecided']
        >>> guard.evaluate(out="report.html")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    out, fresh, shifted, earlier = Path(out), _files(records), _files(shift), _files(results)
    figures = Path(result) if result else out.with_suffix(".json")
    _check_outputs(out, figures)
    if bool(fresh) == bool(earlier):
        raise InputError(
            "Give records to evaluate, or results with --from (results=)", fix="Give one of the two, not both"
        )
    wanted = (protocol,) if isinstance(protocol, str) else tuple(protocol)
    protocols = _protocols(wanted, new, shifted, fresh, per_set)
    texts = _notes(notes)
    if earlier:
        found = _joined([EvaluationResult.from_json(_text(file)) for file in earlier], title, texts)
    else:
        plan = EvaluationPlan(protocols=protocols, parts=parts, draws=draws, seed=seed)
        models = _run(fresh, new, shifted, plan, per_set, progress)
        given: dict[str, object] = {
            "shift": shifted,
            "new": new,
            "protocol": wanted,
            "per_set": per_set,
            "parts": parts,
        }
        given |= {"result": result, "draws": draws, "seed": seed, "title": title}
        given["notes"] = None if isinstance(notes, Mapping) else notes
        command = _command(fresh, out, given)
        provenance = Provenance.here(commands=[command], seeds={"folds, methods and resamples": seed})
        found = EvaluationResult(title, tuple(models), texts, provenance)
    write_whole(figures, found.to_json() + "\n")
    write_whole(out, render(found))
    return found


def _check_outputs(out: Path, figures: Path) -> None:
    """Check both files before anything is computed."""
    check_writable(out, "report")
    check_writable(figures, "figures")
    if figures == out:
        raise InputError(f"The report and its figures would both be '{out}'", fix="Give the report a name with .html")


def _files(given: Files) -> tuple[Path, ...]:
    return (Path(given),) if isinstance(given, str | Path) else tuple(map(Path, given))


def _protocols(
    wanted: Sequence[str],
    new: str | Path | None,
    shift: Sequence[Path],
    records: Sequence[Path],
    per_set: int | None,
) -> tuple[str, ...]:
    """Return the protocols to run; refuse invalid combinations before the work starts."""
    for name in wanted:
        checked_choice("protocol", name, PROTOCOLS)
    if per_set is not None:
        whole_number("per_set", per_set, least=10)
    if not records and (wanted or new or shift or per_set):
        options = "--protocol, --new, --shift and --per-set"
        raise InputError(f"{options} are for records, not for results", fix="Leave --from out")
    for name, option, given in ((HELD_OUT, "--new", bool(new)), (SHIFT, "--shift", bool(shift))):
        if wanted and given != (name in wanted):
            what = f"--protocol '{name}' needs {option} RECORDS, and the other way round"
            raise InputError(what, fix="Give both, or neither")
    if wanted and len(records) > 1 and set(wanted) <= {HELD_OUT, SHIFT}:
        why = f"they belong to the first, and there are {len(records)}"
        raise InputError("New sets and shifts are of one model", why=why, fix="Give one file of records")
    return tuple(wanted or PROTOCOLS)


def _joined(results: list[EvaluationResult], title: str, notes: tuple[Note, ...]) -> EvaluationResult:
    """Join results of several runs: settings of the first, the latest date, all commands.

    Protocols that were run separately on the same records become one result.
    """
    models: dict[tuple[ModelCard, str], ModelResult] = {}
    for model in (model for each in results for model in each.models):
        same = model.model, model.records
        models[same] = models[same].joined(model) if same in models else model
    commands = tuple(command for each in results for command in each.provenance.commands)
    created = max(each.provenance.created for each in results)
    return replace(
        results[0],
        title=title,
        models=tuple(models.values()),
        did_not_work=notes or tuple(note for each in results for note in each.did_not_work),
        provenance=replace(results[0].provenance, commands=commands, created=created),
    )


# -- running -----------------------------------------------------------------------------------


def _run(
    records: Sequence[Path],
    new: str | Path | None,
    shifts: Sequence[Path],
    plan: EvaluationPlan,
    per_set: int | None,
    progress: ProgressCallback,
) -> list[ModelResult]:
    def read(file: str | Path) -> Answers:
        table = Answers.read(file)
        if not table.layers:
            raise InputError(
                f"'{file}' has the answers of a served model, which shows no layers",
                why="an evaluation compares scores that read layers with others",
                fix="guard calibrate prints the metrics of its score on held-out questions",
            )
        # A separate table, so that cached values are computed for these answers only.
        return table if per_set is None else concatenate([capped(table, per_set=per_set, seed=plan.seed)])

    models = []
    for number, file in enumerate(records):
        table = read(file)
        fresh = None if number or new is None else _of_this_model(table, read(new))
        shifted = {} if number else _named_shifts(table, [read(other) for other in shifts])
        report = _protocol_progress(table, progress)
        models.append(run_protocols(table, plan, new=fresh, shifted=shifted, progress=report))
    return models


def _protocol_progress(table: Answers, progress: ProgressCallback) -> Callable[[ProtocolStep], None]:
    def report(step: ProtocolStep) -> None:
        progress(Progress(f"{table.metadata['model.name']}: {step.setting}", step.done + 1, step.total))

    return report


def _of_this_model(table: Answers, new: Answers) -> Answers:
    here, there = model_card(table), model_card(new)
    if here != there:
        was, now = (f"{each.name} {each.quantization} on {each.engine}" for each in (here, there))
        raise InputError(
            "The records of --new are of another model, precision or engine",
            why=f"{now}, not {was}" if was != now else f"both are {was}, with other weights",
            fix="Record the new sets with the same model; --shift is for another precision or engine",
        )
    return new


def _named_shifts(table: Answers, others: list[Answers]) -> dict[str, Answers]:
    for other in others:
        shape, theirs = ((each.metadata["model.layers"], each.metadata["model.width"]) for each in (table, other))
        if shape != theirs:
            raise InputError(
                f"The records of --shift are of another model, {other.metadata['model.name']}",
                why=f"it has {theirs[0]} layers of {theirs[1]}, not {shape[0]} of {shape[1]}",
                fix="Give records of the same model under another precision or engine",
            )
    named = {_shift_name(table, other): other for other in others}
    if len(named) < len(others):
        raise InputError("Two records of --shift have the same precision and engine", fix="Leave one out")
    return named


def _shift_name(table: Answers, other: Answers) -> str:
    names = ("model.engine", "model.quantization", "model.weights_sha256")
    (engine, was, weights), (other_engine, now, other_weights) = (
        [str(each.metadata[name]) for name in names] for each in (table, other)
    )
    if engine != other_engine:
        return f"{engine} {was} to {other_engine} {now}"
    return f"{was} as it was" if (was, weights) == (now, other_weights) else f"{was} to {now}"


# -- provenance --------------------------------------------------------------------------------


def _command(records: Sequence[Path], out: Path, options: Mapping[str, object]) -> str:
    """Return the equivalent command line, without default values."""
    defaults = {"parts": True, "draws": 1000, "seed": 0, "title": TITLE}
    words = ["guard", "evaluate", *map(str, records), "--out", str(out)]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value == defaults.get(name) or value in (None, ()):
            continue
        if name == "parts":
            words.append("--no-parts")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [word for each in values for word in (option, str(each))]
    return shlex.join(words)


def _notes(given: Mapping[str, str] | str | Path | None) -> tuple[Note, ...]:
    if given is None:
        return ()
    if isinstance(given, Mapping):
        value: object = dict(given)
    else:
        value = _json(Path(given))
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise InputError(f"'{given}' has no notes", fix='Write {"title": "text", ...}')
    return tuple(Note(title, text) for title, text in value.items())


def _json(file: Path) -> object:
    try:
        return json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise InputError(f"'{file}' is not JSON", why=str(error)) from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read '{file}'", why=str(error)) from error
