"""A file that llama.cpp ends the process over ends a child process, never the user's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

from tiny_gguf import write_tiny_gguf

from guard.engines import trial_load
from guard.engines.llama_cpp import LlamaCppEngine
from guard.errors import EngineError, GuardError, InputError, ModelFileError, OutOfMemoryError
from guard.records import Limits, Prompt

pytestmark = pytest.mark.usefixtures("real_trials")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fatal(tmp_path: Path) -> Path:
    """A file that the reader accepts and llama.cpp ends the process over: its vocabulary is not its tokenizer's."""
    data = bytearray(write_tiny_gguf(tmp_path / "fatal.gguf").read_bytes())
    at = data.index(b"\4\0\0\0\0\0\0\0gpt2") + 8
    data[at : at + 4] = b"rwkv"
    (tmp_path / "fatal.gguf").write_bytes(data)
    return tmp_path / "fatal.gguf"


def count_trials(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    trials: list[Path] = []
    run = trial_load.run_trial

    def counted(file: Path, options: dict[str, Any]) -> None:
        trials.append(file)
        run(file, options)

    monkeypatch.setattr(trial_load, "run_trial", counted)
    return trials


def load(path: Path, **options: Any) -> LlamaCppEngine:
    return LlamaCppEngine.load(path, threads=1, gpu_layers=0, **{"context_tokens": 64, **options})


def test_a_file_that_llama_cpp_ends_the_process_over_is_an_error(fatal: Path) -> None:
    for _ in range(2):  # a failure is not remembered as a success
        with pytest.raises(ModelFileError, match=r"ends the process over .*fatal\.gguf.*SIGABRT.*trial_load=False"):
            load(fatal)


def test_without_the_trial_the_same_file_ends_the_process(fatal: Path) -> None:
    code = (
        "import sys; from guard.engines.llama_cpp import LlamaCppEngine; from guard.records import Prompt\n"
        "engine = LlamaCppEngine.load(sys.argv[1], threads=1, gpu_layers=0, context_tokens=64, trial_load=False)\n"
        "engine.generate(Prompt.raw('Hi the'))"
    )
    command = [sys.executable, "-c", code, str(fatal)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # gdb, where it is installed, can hang over the end
    assert subprocess.run(command, capture_output=True, timeout=60, check=False, env=environment).returncode < 0


def test_a_file_is_tried_once_by_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = count_trials(monkeypatch)
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    for _ in range(2):
        with load(path) as engine:
            assert engine.generate(Prompt.raw("hi"), limits=Limits(max_tokens=2)).token_ids
    path.rename(tmp_path / "moved.gguf")
    load(tmp_path / "moved.gguf").close()
    assert trials == [path]
    load(tmp_path / "moved.gguf", context_tokens=128).close()
    load(write_tiny_gguf(tmp_path / "other.gguf", seed=1)).close()
    assert [file.name for file in trials[1:]] == ["moved.gguf", "other.gguf"]


def test_another_binding_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llama_cpp

    trials = count_trials(monkeypatch)
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    load(path).close()
    monkeypatch.setattr(llama_cpp, "__version__", "99.0")
    load(path).close()
    assert len(trials) == 2


def test_a_trusted_file_is_not_tried(tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = count_trials(monkeypatch)
    load(write_tiny_gguf(tmp_path / "tiny.gguf"), trial_load=False).close()
    assert trials == []
    assert not (empty_cache / "guard" / "trial-loads").exists()


def test_a_damaged_memory_is_no_success(fatal: Path, tmp_path: Path, empty_cache: Path) -> None:
    load(write_tiny_gguf(tmp_path / "tiny.gguf")).close()
    (entry,) = (empty_cache / "guard" / "trial-loads").iterdir()
    options = {"context_tokens": 64, "gpu_layers": 0, "capture_point": "mlp"}
    asked = {"weights_sha256": "0" * 64, "binding_version": "1", "options": options}
    remembered = trial_load._cache_file({"trial": 1, "weights_sha256": "0" * 64, "binding": "1", **options})
    for content in (b"", b"{", b"[" * 100_000, entry.read_bytes()):
        remembered.write_bytes(content)
        with pytest.raises(ModelFileError, match="ends the process"):
            trial_load.check_survives(fatal, **asked)


def test_what_the_first_process_refuses_is_refused_by_it(tmp_path: Path) -> None:
    """A `GuardError` in the child is survival; the caller gets the error of its own load."""
    with pytest.raises(InputError, match="Unknown capture point 'mpl'"):
        load(write_tiny_gguf(tmp_path / "tiny.gguf"), capture_point="mpl")


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("import time; time.sleep(60)", ModelFileError, r"took more than 1 s.*trial_load=False"),
        ("import os; os.kill(os.getpid(), 9)", OutOfMemoryError, "killed.*memory runs out"),
        ("import os; os.abort()", ModelFileError, "SIGABRT: it gave no reason"),
        ("raise ValueError('odd')", EngineError, "failed: ValueError: odd"),
        ("pass", EngineError, "failed: it gave no reason"),
    ],
)
def test_other_ends_of_the_child_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, error: type[GuardError], message: str
) -> None:
    monkeypatch.setattr(trial_load, "_PROGRAM", code)
    monkeypatch.setattr(trial_load, "_SECONDS", 1.0 if "sleep" in code else 60.0)
    with pytest.raises(error, match=message):
        load(write_tiny_gguf(tmp_path / "tiny.gguf"))


def test_where_no_process_can_be_started_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(EngineError, match="Cannot start the process that tries a model file"):
        load(write_tiny_gguf(tmp_path / "tiny.gguf"))


def test_a_tokenizer_name_that_is_a_list_is_refused(tmp_path: Path) -> None:
    """Found by tests/fuzz/gguf_loading.py: it was a ValueError of numpy."""

    def change(writer: Any) -> None:
        writer.kv_data[0]["tokenizer.ggml.model"].value = [1, 2, 3]
        writer.kv_data[0]["tokenizer.ggml.model"].type = type(writer.kv_data[0]["tokenizer.ggml.model"].type).ARRAY

    with pytest.raises(ModelFileError, match=r"tokenizer\.ggml\.model is a .*, not a text"):
        load(write_tiny_gguf(tmp_path / "tiny.gguf", change=change))


def test_transformers_has_no_trial(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from guard.engines import load_engine

    with pytest.raises(InputError, match="Leave trial_load out"):
        load_engine(tmp_path, trial_load=False)
