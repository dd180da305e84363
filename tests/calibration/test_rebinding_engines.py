"""A scorer moves to another engine of its model where both read the same tokens, with options of each engine's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("lightgbm")

from scripted import END, AnsweringEngine, confidence_scorer, scripted_model, tiny_artefact, with_early, with_spans
from sums import half_right, sum_rows
from typer.testing import CliRunner

import guard
from guard import engines
from guard.cli import app
from guard.engines.asked import RequestEngine
from guard.engines.engine_loop import EngineLoop
from guard.engines.request import Request
from guard.errors import CalibrationError, InputError, ScorerMismatchError
from guard.records import CapturePoint, Prompt
from guard.scoring.scorer import Scorer, load_scorer

MOVE: dict[str, Any] = {"model": "m.gguf", "to": "m.gguf", "to_engine": "other"}
COMMAND = ("--model", "m.gguf", "--to", "m.gguf", "--to-engine", "other")


def other_model() -> Any:
    """Another engine hashes another form of the same tokenizer."""
    return scripted_model(engine="other", tokenizer_sha256="d" * 64)


class OtherTokens(AnsweringEngine):
    """Reads some texts as other tokens: by tokenizers of other engines, one word can be two tokens."""

    def __init__(self, *, prompts: str = "\0", answers: str = "\0", end: int = END) -> None:
        super().__init__(half_right, model=other_model())
        self._odd, self._end = (prompts, answers), end

    def encode(self, prompt: Prompt) -> list[int]:
        return [*super().encode(prompt), *([32] if self._odd[0] in prompt.question else [])]

    def encode_text(self, text: str) -> list[int]:
        return [*super().encode_text(text), *([32] if self._odd[1] in text else [])]

    def _end_token(self) -> int:
        return self._end


class NoTokens(RequestEngine):
    """Tokenizes elsewhere, as a server does."""

    capture_point: CapturePoint = "mlp"
    model = other_model()
    at_once = 1

    def __init__(self) -> None:
        super().__init__(EngineLoop(AnsweringEngine(half_right)))

    def check_template_options(self, options: Mapping[str, Any]) -> None:
        """Take any."""

    def _encode(self, request: Request) -> None:
        raise AssertionError("nothing is asked")

    def _free(self) -> None:
        """Nothing was loaded."""


class Loading:
    """Stands for `load_engine`, and keeps what it made, with the options."""

    def __init__(self) -> None:
        self.made: list[Any] = []
        self.options: list[dict[str, Any]] = []
        self.new: Callable[[], Any] = lambda: AnsweringEngine(half_right, model=other_model())

    def __call__(self, model: str, *, engine: str, **options: Any) -> Any:
        self.made.append(AnsweringEngine(half_right) if engine == "scripted" else self.new())
        self.options.append(options)
        return self.made[-1]


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> Loading:
    made = Loading()
    monkeypatch.setattr(engines, "load_engine", made)
    return made


@pytest.fixture
def fitted(tmp_path: Path) -> Path:
    confidence_scorer().save(tmp_path / "fitted.json")
    return tmp_path / "fitted.json"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    (tmp_path / "sums.jsonl").write_text(sum_rows(range(120)))
    return tmp_path / "sums.jsonl"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Questions without labels."""
    rows = [{"id": f"q{n}", "question": f"What is {n} + 1?"} for n in range(60)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "prompts.jsonl"


# -- tokens ------------------------------------------------------------------------------------


@pytest.mark.torch
@pytest.mark.slow
def test_a_scorer_moves_from_llama_cpp_to_transformers_and_back(prompts: Path, tmp_path: Path) -> None:
    """Both hash the tokenizer of one real file in their own way, and read the same tokens."""
    for name in ("llama_cpp", "torch", "transformers", "gguf"):
        pytest.importorskip(name)
    from tiny_gguf import write_tiny_gguf

    file = write_tiny_gguf(tmp_path / "tiny.gguf")
    options = {"engine_options": {"threads": 1, "trial_load": False}, "to_engine_options": {"threads": 1}}
    with engines.load_engine(file, engine="llama.cpp", **options["engine_options"]) as engine:
        Scorer(tiny_artefact(engine.model)).save(tmp_path / "llama.json")
    there, back = tmp_path / "there.json", tmp_path / "back.json"
    move: dict[str, Any] = {"model": file, "to": file, "check": False}
    guard.rebind(tmp_path / "llama.json", prompts, out=there, to_engine="transformers", **options, **move)
    moved, was = (load_scorer(each).artefact.binding for each in (there, tmp_path / "llama.json"))
    assert (moved.engine, moved.weights_sha256) == ("transformers", was.weights_sha256)
    assert moved.tokenizer_sha256 != was.tokenizer_sha256
    swapped = {"engine_options": options["to_engine_options"], "to_engine_options": options["engine_options"]}
    guard.rebind(there, prompts, out=back, to_engine="llama.cpp", **swapped, **move)
    assert load_scorer(back).artefact.binding == was


@pytest.mark.usefixtures("loading")
def test_between_engines_the_tokens_decide_and_not_the_hash(fitted: Path, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    guard.rebind(fitted, questions, out=out, **MOVE)
    assert load_scorer(out).for_model(other_model(), "mlp").calibrated


def test_a_prompt_of_other_tokens_is_refused_by_name_before_anything_is_asked(
    loading: Loading, fitted: Path, questions: Path, tmp_path: Path
) -> None:
    loading.new = lambda: OtherTokens(prompts=" 17 ")
    with pytest.raises(ScorerMismatchError, match="read 'sums/q17' as different tokens") as caught:
        guard.rebind(fitted, questions, out=tmp_path / "out.json", **MOVE)
    assert "What is" not in str(caught.value)
    assert [each.model.engine for each in loading.made] == ["other", "scripted"]
    assert [each.asked for each in loading.made] == [[], []]
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("odd", "row"), [({"answers": "18"}, "sums/q16"), ({"end": 10}, "sums/q0")], ids=["answer", "end token"]
)
def test_an_answer_of_other_tokens_is_refused_by_name(
    odd: dict[str, Any], row: str, loading: Loading, fitted: Path, questions: Path, tmp_path: Path
) -> None:
    loading.new = lambda: OtherTokens(**odd)
    with pytest.raises(ScorerMismatchError, match=f"read '{row}' as different tokens"):
        guard.rebind(fitted, questions, out=tmp_path / "out.json", **MOVE)
    assert not (tmp_path / "out.json").exists()


def test_an_engine_that_shows_no_tokens_is_refused(
    loading: Loading, fitted: Path, questions: Path, tmp_path: Path
) -> None:
    loading.new = NoTokens
    with pytest.raises(ScorerMismatchError, match="the engine 'other' does not show them"):
        guard.rebind(fitted, questions, out=tmp_path / "out.json", **MOVE)
    assert len(loading.made) == 1


# -- options -----------------------------------------------------------------------------------


def test_another_engine_gets_its_own_options_alone(
    loading: Loading, fitted: Path, prompts: Path, tmp_path: Path
) -> None:
    more = ("--gpu-layers", "0", "--to-dtype", "int4", "--to-threads", "1", "--no-check")
    command = ["rebind", str(fitted), "--data", str(prompts), *COMMAND, *more, "--out", str(tmp_path / "out.json")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    new = {"dtype": "int4", "threads": 1}
    assert loading.options == [new, {"gpu_layers": 0}, new]


def test_another_precision_on_one_engine_gets_the_options_of_both(
    loading: Loading, fitted: Path, prompts: Path, tmp_path: Path
) -> None:
    there, precisions = tmp_path / "there.json", ["int4", "none", "int4"]
    guard.rebind(fitted, prompts, out=there, check=False, **MOVE)
    loading.options.clear()
    loading.new = lambda: AnsweringEngine(half_right, model=replace(other_model(), quantization=precisions.pop(0)))
    options = {"engine_options": {"threads": 1, "dtype": "float32"}, "to_engine_options": {"dtype": "int4"}}
    guard.rebind(there, prompts, model="m.gguf", to="m.gguf", out=tmp_path / "int4.json", check=False, **options)
    new = {"threads": 1, "dtype": "int4"}
    assert loading.options == [new, options["engine_options"], new]
    assert load_scorer(tmp_path / "int4.json").artefact.binding.quantization == "int4"


# -- rows --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("loading")
def test_prompts_without_labels_move_a_scorer(fitted: Path, prompts: Path, tmp_path: Path) -> None:
    moved = guard.rebind(fitted, prompts, out=tmp_path / "out.json", check=False, **MOVE)
    rebound = moved.scorer.artefact.rebound
    assert rebound is not None
    assert (rebound.answers, rebound.checked, moved.scorer.calibrated) == (60, 0, False)


@pytest.mark.usefixtures("loading")
def test_labels_of_some_rows_are_checked_and_all_rows_align(
    fitted: Path, prompts: Path, questions: Path, tmp_path: Path
) -> None:
    choices = {"id": "c", "question": "What is 3 + 1?", "choices": ["4", "5"]}
    with prompts.open("a") as file:
        file.write("\n" + json.dumps(choices))
    rebound = guard.rebind(fitted, [prompts, questions], out=tmp_path / "out.json", **MOVE).scorer.artefact.rebound
    assert rebound is not None
    assert (rebound.answers, rebound.checked) == (181, 120)


def test_too_few_rows_or_labels_are_refused_before_anything_is_loaded(
    loading: Loading, fitted: Path, prompts: Path, tmp_path: Path
) -> None:
    with pytest.raises(CalibrationError, match="0 of 60 questions have accepted answers; at least 100"):
        guard.rebind(fitted, prompts, out=tmp_path / "out.json", **MOVE)
    with pytest.raises(CalibrationError, match="39 questions are too few to align the layers"):
        guard.rebind(fitted, prompts, out=tmp_path / "out.json", limit=39, check=False, **MOVE)
    assert loading.made == []


@pytest.mark.usefixtures("loading")
def test_a_grader_and_bad_rows_are_as_for_other_procedures(fitted: Path, questions: Path, tmp_path: Path) -> None:
    with questions.open("a") as file:
        file.write('\n{"question": 7}\n{"prompt": "1 + 1", "response": "2", "wrong": false}\n')
    command = ["rebind", str(fitted), "--data", str(questions), *COMMAND, "--out", str(tmp_path / "out.json")]
    stopped = CliRunner().invoke(app, command)
    assert isinstance(stopped.exception, InputError)
    done = CliRunner().invoke(app, [*command, "--on-bad", "skip", "--grader", "number"])
    assert done.exit_code == 0, done.output
    said = "".join(done.output.split())  # a long path breaks anywhere
    assert "sums.jsonl:121:'question'mustbeatext,gotanumber" in said
    assert "leftout1givenresponses" in said
    with pytest.raises(InputError, match="nothing to grade without a check"):
        guard.rebind(fitted, questions, out=tmp_path / "out.json", grader="number", check=False, **MOVE)


@pytest.mark.usefixtures("loading")
def test_the_grader_decides_the_check(fitted: Path, questions: Path, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="there are 120 answers, 120 of them wrong"):
        guard.rebind(fitted, questions, out=tmp_path / "out.json", grader=lambda row, answer: False, **MOVE)


# -- what stays behind -------------------------------------------------------------------------


@pytest.mark.usefixtures("loading")
@pytest.mark.parametrize("as_json", [True, False])
def test_what_does_not_move_is_said(as_json: bool, fitted: Path, prompts: Path, tmp_path: Path) -> None:
    with_early(with_spans(load_scorer(fitted))).save(fitted)
    command = ["rebind", str(fitted), "--data", str(prompts), *COMMAND, "--no-check", "--out", str(tmp_path / "o.json")]
    done = CliRunner().invoke(app, [*command, *(["--json"] if as_json else [])])
    assert done.exit_code == 0, done.output
    if as_json:
        assert json.loads(done.stdout)["dropped"] == ["spans", "early"]
    else:
        said = " ".join(done.stdout.split())
        assert "not moved: the scores of spans" in said
        assert "guard calibrate --spans FILE --scorer OUT" in said
        assert "not moved: the early stages" in said
