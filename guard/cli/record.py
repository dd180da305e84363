"""``guard record``: labelled questions in, one file of answers with all their signals out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guard.cli.asking import (
    DataSpecs,
    GraderName,
    Limit,
    MaxTokens,
    OnBad,
    System,
    Tau,
    bad_rows_of,
    check_writable,
    read_data,
    rows_in_turn,
    run_of,
)
from guard.cli.output import (
    AsJson,
    ContextTokens,
    Dtype,
    Engine,
    GpuLayers,
    ModelName,
    TemplateOptions,
    Threads,
    console,
    engine_options,
    print_json,
)
from guard.cli.progress import under_progress
from guard.errors import InputError, UnsupportedArchitectureError, missing_extra

if TYPE_CHECKING:
    from guard.data.answers import Answers
    from guard.data.logit_lens import Lens
    from guard.data.questions import Row
    from guard.data.recording import Skipped
    from guard.data.sets import DataSource
    from guard.engines.base import BaseEngine


def record(
    data: DataSpecs,
    out: Annotated[Path, typer.Option("--out", "-o", help="Where the answers are written, as Parquet.")],
    model: ModelName = "smollm2",
    engine: Engine = None,
    dtype: Dtype = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    context: ContextTokens = None,
    grader: GraderName = None,
    on_bad: OnBad = "stop",
    limit: Limit = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the rows that are drawn.")] = 0,
    system: System = None,
    max_tokens: MaxTokens = None,
    template_option: TemplateOptions = None,
    tau: Tau = None,
    samples: Annotated[int, typer.Option(min=0, max=100, help="Sample so many further answers.")] = 0,
    sampled_rows: Annotated[int, typer.Option(min=1, help="To so many questions of each set.")] = 200,
    completion: Annotated[
        bool | None,
        typer.Option("--completion/--chat", help="Let it continue a text; by default where it has no chat template."),
    ] = None,
    lens: Annotated[bool, typer.Option(help="Record the residual stream too (a GGUF on llama.cpp).")] = True,
    journal: Annotated[Path | None, typer.Option(help="Where answers are kept; by default OUT.journal.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Ask nothing, write what the journal has.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put labelled questions to a model once, and keep what all methods of guard evaluate need.

    Can be stopped at any moment; the same command goes on where it was, and with --partial it writes what is
    there. Data sets take turns, so that a run that was stopped has about as many answers of each.
    """
    from guard.data.answers import Answers
    from guard.data.graders import grade, load_grader
    from guard.data.recording import Journal, of_this_model, record_rows, template_date_of
    from guard.data.sqlite_journal import row_key

    check_writable(out, "answers")
    _check_pyarrow()
    grader_function = load_grader(grader) if grader else grade
    sources = read_data(data, on_bad=on_bad, limit=limit, seed=seed)
    rows = rows_in_turn(sources)
    kept = _journal_file(journal or out.with_name(f"{out.name}.journal"), partial=partial)
    loading = engine_options(dtype=dtype, threads=threads, gpu_layers=gpu_layers, context=context)
    options = {"engine": engine, **loading, "template_date": template_date_of(kept)}
    with _Loaded.load(model, options, lens=lens and not partial) as loaded:
        rows, others = of_this_model(rows, loaded.engine.model.name)
        run = run_of(loaded.engine, sources, system, max_tokens, tau, completion, template_option, capture_point="mlp")
        with Journal(kept, run) as answers:
            if not partial:
                sampling = {"samples": samples, "sampled_rows": sampled_rows}
                asked = record_rows(loaded.engine, rows, answers, run=run, lens=loaded.lens, **sampling)
                under_progress(asked, rows=rows, known=answers.keys())
            metadata = _metadata(sources, grader=grader, limit=limit, seed=seed)
            table = Answers.from_journal(answers, rows, grader_function, metadata=metadata)
            skipped = answers.skipped({row_key(name, row) for name, row in rows})
    table.write(out)
    notes = [*loaded.notes, *_notes(table, rows, skipped, samples, sampled_rows)]
    notes += [f"left out {count} responses of another model, {name}" for name, count in others.items()]
    left_out = [f"{file}:{bad.line}: {bad.reason}" for file, bad in bad_rows_of(sources)]
    _report(table, out, notes, [*left_out, *(f"{each.key}: {each.reason}" for each in skipped)], as_json=as_json)


def _check_pyarrow() -> None:
    """Better said now than after an hour of questions."""
    import importlib.util

    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("pyarrow", "evaluate")


def _journal_file(file: Path, *, partial: bool) -> Path:
    """Without asking, a journal that is not there is a misspelt one."""
    if partial and not file.is_file():
        raise InputError(f"There is no journal '{file}'", fix="Leave --partial out to begin, or name it with --journal")
    return file


# -- the model ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model, what reads its residual stream, and what is to be said about that."""

    engine: BaseEngine
    lens: Lens | None
    notes: tuple[str, ...]

    @classmethod
    def load(cls, model: str, options: dict[str, Any], *, lens: bool) -> _Loaded:
        from guard.engines import load_engine

        notes: tuple[str, ...] = ()
        if lens:
            try:
                return cls(*_load_with_lens(model, options), ())
            except (InputError, UnsupportedArchitectureError) as error:
                why = ": ".join(part for part in (error.what, error.why) if part)
                notes = (f"Recorded without the residual stream. {why}",)
        return cls(load_engine(model, capture_point="mlp", **options), None, notes)

    def __enter__(self) -> _Loaded:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()


def _load_with_lens(model: str, options: dict[str, Any]) -> tuple[BaseEngine, Lens]:
    from guard.data.logit_lens import Lens
    from guard.engines import EMBEDDED, embedded_model, load_engine

    path = embedded_model() if model == EMBEDDED else Path(model)
    if options["engine"] == "transformers" or path.is_dir():
        raise InputError("Only a GGUF file on llama.cpp has a logit lens here")
    engine = load_engine(model, capture_point="mlp+block", **options)
    try:
        return engine, Lens.load(engine, path)
    except BaseException:
        engine.close()
        raise


# -- what is said ------------------------------------------------------------------------------


def _metadata(sources: Sequence[DataSource], *, grader: str | None, limit: int | None, seed: int) -> dict[str, Any]:
    digests = {f"data.{source.name}.sha256": source.sha256 for source in sources}
    return {**digests, "data.limit": limit, "data.seed": seed, "grader": grader or "by the row"}


def _notes(
    table: Answers, rows: Sequence[tuple[str, Row]], skipped: Sequence[Skipped], samples: int, sampled_rows: int
) -> list[str]:
    """What a reader of the file should know of what is not in it."""
    from guard.data.questions import Question
    from guard.data.sqlite_journal import row_key

    notes = []
    missing = len({row_key(name, row) for name, row in rows} - {*table.key} - {each.key for each in skipped})
    if missing:
        notes.append(f"{missing} questions are not asked yet: the same command without --partial asks them")
    if samples:
        seen: Counter[str] = Counter()
        wanted = set()
        for name, row in rows:
            seen[name] += 1
            if seen[name] <= sampled_rows and isinstance(row, Question):
                wanted.add(row_key(name, row))
        pairs = zip(table.key, table.samples, strict=True)
        without = sum(key in wanted and not sampled for key, sampled in pairs)
        if without:
            notes.append(f"{without} answers were recorded without samples before: only another --journal gets them")
    return notes


def _report(table: Answers, out: Path, notes: Sequence[str], left_out: Sequence[str], *, as_json: bool) -> None:
    sets = [_summary(table, str(name)) for name in dict.fromkeys(table.dataset)]
    if as_json:
        recorded = {"residual": table.lens is not None, "completion": table.metadata["completion"]}
        print_json({"out": str(out), "n": len(table), **recorded, "sets": sets, "notes": notes, "left_out": left_out})
        return
    from rich.table import Table

    screen = console()
    shown = Table(title="Recorded answers", title_justify="left")
    shown.add_column("set")
    for name in ("n", "wrong", "cut", "tokens", "seconds", "sampled"):
        shown.add_column(name, justify="right")
    for each in sets:
        share = f"{each['wrong'] / each['n']:.0%}"
        counts = (str(each["truncated"]), f"{each['tokens']:.1f}", f"{each['seconds']:.2f}", str(each["sampled"]))
        shown.add_row(each["name"], str(each["n"]), share, *counts)
    screen.print(shown)
    screen.print("Tokens and seconds: mean of an answer.", style="dim")
    for line in (*notes, *(f"left out {each}" for each in left_out)):
        screen.print(line, style="yellow", markup=False)
    screen.print(f"Answers written to {out}", markup=False)


def _summary(table: Answers, name: str) -> dict[str, Any]:
    import numpy as np

    part = table.take(np.flatnonzero(table.dataset == name))
    return {
        "name": name,
        "n": len(part),
        "wrong": int(part.wrong.sum()),
        "truncated": int(part.truncated.sum()),
        "tokens": float(part.tokens.mean()),
        "seconds": float(part.seconds.mean()),
        "sampled": sum(map(bool, part.samples)),
    }
