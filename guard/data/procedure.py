"""From labelled questions to one file of answers with all their signals, for evaluation."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from guard import engines
from guard.checked import checked_seed, whole_number
from guard.data.answers import Answers
from guard.data.asked_alone import asked_alone
from guard.data.further_calls import FurtherCalls
from guard.data.graders import Grader, choose_grader
from guard.data.logit_lens import Lens
from guard.data.progress import ProgressCallback, ask_with_progress, ignore_progress
from guard.data.question_sets import DataSpecs, list_bad_rows, read_sets, round_robin
from guard.data.questions import Question, Row
from guard.data.rauq import check_attention
from guard.data.recording import Journal, Run, Skipped, find_template_date, of_this_model, record_rows
from guard.data.run_settings import settings_of_run
from guard.data.sets import DataSource, OnBad
from guard.data.shards import RunPart, Shard, select_part
from guard.data.sqlite_journal import row_key
from guard.engines.asked import RequestEngine
from guard.errors import InputError, UnsupportedArchitectureError, missing_extra
from guard.files.output_file import check_writable, choose_journal


@dataclass(frozen=True, slots=True, eq=False)
class RecordingResult:
    """Recorded answers, and what is not in them.

    Attributes:
        out: the Parquet file; of a shard its journal.
        answers: its content.
        notes: what a reader of the file should know, such as a missing residual stream or questions not asked yet.
        left_out: rows that cannot be used and questions that the model could not be asked, each with its reason.
    """

    out: Path
    answers: Answers
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def record(
    data: DataSpecs,
    *,
    out: str | Path,
    model: str | Path = engines.EMBEDDED,
    engine: str | None = None,
    engine_options: Mapping[str, Any] | None = None,
    grader: str | Grader | None = None,
    on_bad: OnBad = "stop",
    limit: int | None = None,
    seed: int = 0,
    system: str | None = None,
    max_tokens: int | None = None,
    template_options: Mapping[str, Any] | None = None,
    tau: Sequence[float] = (1.0,),
    samples: int = 0,
    sampled_rows: int = 200,
    p_true: bool = False,
    rauq: bool = False,
    completion: bool | None = None,
    lens: bool = True,
    journal: str | Path | None = None,
    partial: bool = False,
    shard: str | None = None,
    progress: ProgressCallback = ignore_progress,
) -> RecordingResult:
    """Ask labelled questions once, and keep what every method of `guard.evaluate` needs.

    ``guard record`` calls this function: the same arguments and journal give the same file, byte for byte. Answers are
    kept in a journal, one transaction per question, so that an interrupted run can be repeated without asking anything
    twice. Data sets take turns, so that an interrupted run has about as many answers of each.

    Args:
        data: one or several JSON Lines files or named sets (``NAME@FOLDER``, ``hub:NAME``).
        out: where the answers are written, as Parquet.
        model: ``smollm2`` (the embedded model), a GGUF file, or a model folder.
        engine: ``llama.cpp`` or ``transformers``, where both can load the model.
        engine_options: for the engine's ``load``, such as ``{"threads": 4, "context_tokens": 8192}``.
        grader: ``text``, ``number``, ``choice``, ``regex``, ``module:function`` or a function of question and answer;
            by default each question's own.
        on_bad: ``stop`` raises where a row cannot be used, ``skip`` leaves the row out.
        limit: maximal number of rows of each data set, drawn by ``seed``.
        seed: of the rows that are drawn, from 0 to 2**31 - 1.
        system: system message of every question, empty for none; by default that of the data sets.
        max_tokens: token limit of an answer; by default that of the data sets, mostly 32.
        template_options: variables of the model's chat template, such as ``{"enable_thinking": False}``.
        tau: temperatures of the signature's softmax.
        samples: number of further answers, sampled at temperature 1, to some questions of each set.
        sampled_rows: number of questions of each set that get these samples.
        p_true: ask the model once more whether each of its answers is right, and keep the probability of "true".
        rauq: read the model's attention over each answer in one more pass, and keep RAUQ; only on transformers.
        completion: ask by a text to continue; by default only where the model has no chat template.
        lens: record the residual stream too, where the model is a GGUF file on llama.cpp.
        journal: where answers are kept; by default ``OUT.journal``, or ``OUT.3-of-8.journal`` for a shard.
        partial: ask nothing and write what the journal has.
        shard: ask this part of the questions only, such as ``3/8``, and write no file but its journal; `merge_shards`
            joins the journals, and the same call with the result writes the file.
        progress: called with a `guard.Progress` before the first question and after each answer.

    Returns:
        the recorded answers, and what is not in them.

    Raises:
        InputError: data, output, options or journal cannot be used.
        MissingExtraError: pyarrow is not installed.
        ModelFileError, EngineError: the model cannot be loaded or fails.

    Examples:
        >>> import guard
        >>> result = guard.record(["a.jsonl", "b.jsonl"], out="answers.parquet", samples=5)  # doctest: +SKIP
        >>> result.answers.wrong.mean()  # doctest: +SKIP
        0.41
        >>> guard.record("no.jsonl", out="answers.parquet")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        guard.errors.InputError: ...
    """
    out = Path(out)
    check_writable(out, "answers")
    _check_pyarrow()
    grade, grader_name = choose_grader(grader)
    _check_counts(seed, samples, sampled_rows)
    chosen = _parse_shard(shard, partial=partial)
    sources = read_sets(data, on_bad=on_bad, limit=limit, seed=seed)
    kept = _existing_if(partial, chosen.journal(out, journal) if chosen else choose_journal(out, journal))
    options = {"engine": engine, **(engine_options or {}), "template_date": find_template_date(kept)}
    with _Loaded.load(model, options, lens=lens and not partial) as loaded:
        if rauq:
            check_attention(loaded.engine)
        rows, others = of_this_model(round_robin(sources), loaded.engine.model.name)
        notes: list[str] = [*loaded.notes]
        run = settings_of_run(
            loaded.engine,
            sources,
            system=system,
            max_tokens=max_tokens,
            tau=tau,
            completion=completion,
            template_options=template_options,
            capture_point="mlp",
        )
        part = select_part(rows, chosen)
        with Journal(kept, run, part.header) as answers:
            if not partial:
                calls = FurtherCalls(samples=samples, p_true=p_true, rauq=rauq)
                more = {"calls": calls, "sampled_rows": sampled_rows}
                notes += _ask(loaded, rows, part, answers, run, more, progress)
            metadata = _metadata(sources, grader=grader_name, limit=limit, seed=seed)
            table = Answers.from_journal(answers, part.rows, grade, metadata=metadata)
            skipped = answers.skipped(part.keys)
    if chosen is None:
        table.write(out)
        notes += _notes(table, rows, skipped, samples, sampled_rows)
    notes += [f"left out {count} responses of another model, {name}" for name, count in others.items()]
    left_out = [f"{file}:{bad.line}: {bad.reason}" for file, bad in list_bad_rows(sources)]
    left_out += [f"{each.key}: {each.reason}" for each in skipped]
    return RecordingResult(out if chosen is None else kept, table, tuple(notes), tuple(left_out))


def _parse_shard(shard: str | None, *, partial: bool) -> Shard | None:
    if shard is not None and partial:
        raise InputError(
            "A shard has no file to write in part",
            why="--partial (partial=) writes the answers of a whole run",
            fix="Leave --partial out, or merge the shards first",
        )
    return None if shard is None else Shard.parse(shard)


def _ask(
    loaded: _Loaded,
    rows: Sequence[tuple[str, Row]],
    part: RunPart,
    answers: Journal,
    run: Run,
    more: Mapping[str, Any],
    progress: ProgressCallback,
) -> Sequence[str]:
    """Ask the rows of a part that have no answer yet; return notes on answers that depend on their neighbours.

    All rows decide which of them get samples.
    """
    known = answers.answered()
    only = None if part.header is None else part.keys
    asked = record_rows(loaded.engine, rows, answers, run=run, lens=loaded.lens, only=only, **more)
    ask_with_progress(asked, rows=part.rows, known=known, progress=progress)
    new = [pair for pair in part.rows if row_key(*pair) not in known]
    return () if loaded.lens else asked_alone(loaded.engine, new, answers)


def _check_pyarrow() -> None:
    """Refuse before hours of questions."""
    if importlib.util.find_spec("pyarrow") is None:
        raise missing_extra("pyarrow", "evaluate")


def _check_counts(seed: int, samples: int, sampled_rows: int) -> None:
    checked_seed(seed)
    whole_number("samples", samples, least=0, most=100)
    whole_number("sampled_rows", sampled_rows, least=1)


def _existing_if(partial: bool, journal: Path) -> Path:
    """Refuse a missing journal if nothing is asked: its name is misspelt."""
    if partial and not journal.is_file():
        raise InputError(
            f"There is no journal '{journal}'", fix="Leave --partial (partial=) out to begin, or name the journal"
        )
    return journal


# -- the model ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A model with the lens that reads its residual stream, or with a note why it has none."""

    engine: RequestEngine
    lens: Lens | None
    notes: tuple[str, ...]

    @classmethod
    def load(cls, model: str | Path, options: dict[str, Any], *, lens: bool) -> Self:
        notes: tuple[str, ...] = ()
        if lens:
            try:
                return cls(*_load_with_lens(model, options), ())
            except (InputError, UnsupportedArchitectureError) as error:
                why = ": ".join(part for part in (error.what, error.why) if part)
                notes = (f"Recorded without the residual stream. {why}",)
        return cls(engines.load_engine(model, capture_point="mlp", **options), None, notes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()


def _load_with_lens(model: str | Path, options: dict[str, Any]) -> tuple[RequestEngine, Lens]:
    path = engines.embedded_model() if str(model) == engines.EMBEDDED else Path(model)
    if options["engine"] not in (None, "llama.cpp") or path.is_dir():
        raise InputError("Only a GGUF file on llama.cpp has a logit lens here")
    engine = engines.load_engine(model, capture_point="mlp+block", **options)
    try:
        return engine, Lens.load(engine, path)
    except BaseException:
        engine.close()
        raise


# -- what is not in the file -------------------------------------------------------------------


def _metadata(sources: Sequence[DataSource], *, grader: str, limit: int | None, seed: int) -> dict[str, Any]:
    digests = {f"data.{source.name}.sha256": source.sha256 for source in sources}
    return {**digests, "data.limit": limit, "data.seed": seed, "grader": grader}


def _notes(
    table: Answers, rows: Sequence[tuple[str, Row]], skipped: Sequence[Skipped], samples: int, sampled_rows: int
) -> list[str]:
    """Return what a reader of the file should know of what is not in it."""
    notes = []
    missing = len({row_key(name, row) for name, row in rows} - {*table.key} - {each.key for each in skipped})
    if missing:
        notes.append(f"{missing} questions are not asked yet: the same command without --partial asks them")
    if samples:
        wanted = _to_sample(rows, sampled_rows)
        pairs = zip(table.key, table.samples, strict=True)
        without = sum(key in wanted and not sampled for key, sampled in pairs)
        if without:
            notes.append(f"{without} answers were recorded without samples before: only another --journal gets them")
    return notes


def _to_sample(rows: Sequence[tuple[str, Row]], sampled_rows: int) -> set[str]:
    seen: Counter[str] = Counter()
    wanted = set()
    for name, row in rows:
        seen[name] += 1
        if seen[name] <= sampled_rows and isinstance(row, Question):
            wanted.add(row_key(name, row))
    return wanted
