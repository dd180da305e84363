"""Code in the documents runs: Python programs, policies, rows of data, and the arguments of guard commands.

A Python block runs in the order of its page, in one namespace and one folder. A block that a comment
``<!-- not run: REASON -->`` stands before is compiled only, and its imports must exist; so are all blocks of a page
that has ``<!-- python not run: REASON -->``. ``<!-- needs model -->`` runs a page's blocks on the embedded model.
A block of a language that no test reads is an error.
"""

from __future__ import annotations

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pages import NAMES, PAGES

from guard.cli import app
from guard.data.labelled_spans import read_span_rows
from guard.data.questions import read_rows
from guard.policy import parse_policy

FENCE = re.compile(r"((?:^<!-- [^\n]* -->\n+)?)^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
#: `sql` is run by tests/review/test_store.py. `text` is what commands print, with figures that vary.
LANGUAGES = {"python", "yaml", "json", "toml", "console", "sql", "text"}
#: What a part of a policy leaves out.
REQUIRED = {"version": "1", "name": "part", "rules": "[abstain]"}
#: Files that programs in the documents read.
QUESTIONS = "".join(f'{{"question": "What is {n} + 1?", "answers": ["{n + 1}"]}}\n' for n in range(40))


def fenced(page: Path, language: str) -> list[tuple[str, str]]:
    """The blocks of a language, each with the comment before it."""
    return [(mark, code) for mark, found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def programs(page: Path) -> tuple[list[str], list[str]]:
    """A page's Python blocks: those that run, and those that are only compiled."""
    whole = "<!-- python not run: " in page.read_text(encoding="utf-8")
    runs, compiled = [], []
    for mark, code in fenced(page, "python"):
        (compiled if whole or "not run: " in mark else runs).append(code)
    return runs, compiled


def needs_model(page: Path) -> bool:
    return "<!-- needs model -->" in page.read_text(encoding="utf-8") or page.name == "README.md"


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's programs in a folder that has its policies and a file of questions."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GUARD_STORE", str(folder / "reviews.db"))
    (folder / "questions.jsonl").write_text(QUESTIONS, encoding="utf-8")
    for _, text in fenced(page, "yaml"):
        if "name: " in text:
            (folder / f"{re.findall('^name: (.+)$', text, re.MULTILINE)[0]}.yaml").write_text(text, encoding="utf-8")
    names: dict[str, object] = {"__name__": "documentation"}
    for program in programs(page)[0]:
        exec(compile(program, page.name, "exec"), names)  # noqa: S102 - our own text


WITHOUT_MODEL = [page for page in PAGES if programs(page)[0] and not needs_model(page)]
WITH_MODEL = [page for page in PAGES if programs(page)[0] and needs_model(page) and page.name != "README.md"]


@pytest.mark.parametrize("page", WITHOUT_MODEL, ids=lambda page: page.stem)
def test_python_in_the_documents_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(page, tmp_path, monkeypatch)


@pytest.mark.model
@pytest.mark.parametrize("page", WITH_MODEL, ids=lambda page: page.stem)
def test_python_on_the_embedded_model_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, smollm2_path: Path
) -> None:
    run(page, tmp_path, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_that_does_not_run_here_compiles_and_imports_what_exists(page: Path) -> None:
    for program in programs(page)[1]:
        for node in ast.walk(
            compile(program, page.name, "exec", flags=ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        ):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "guard":
                module = import_module(str(node.module))
                assert [each.name for each in node.names if not hasattr(module, each.name)] == []


def test_every_block_that_does_not_run_says_why() -> None:
    for page in PAGES:
        for reason in re.findall(r"<!-- (?:python )?not run: ?(.*?) ?-->", page.read_text(encoding="utf-8")):
            assert len(reason.split()) >= 3, (page.name, reason)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_each_block_has_a_language_that_tests_read(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [language for _, language, _ in FENCE.findall(text)]
    assert 2 * len(found) == len(re.findall("^```", text, re.MULTILINE)), "a fence without a language"
    assert set(found) <= LANGUAGES


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_code_is_outside_fences(page: Path) -> None:
    """Nothing would read an indented block."""
    assert re.findall(r"\n\n {4}\S.*", FENCE.sub("", page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_policies_in_the_documents_are_valid(page: Path) -> None:
    """A block that shows a part of a policy is completed by what is required."""
    for mark, text in fenced(page, "yaml"):
        if "not run: " in mark:
            continue
        missing = {key: value for key, value in REQUIRED.items() if not re.search(f"^{key}:", text, re.MULTILINE)}
        parse_policy(text + "".join(f"{key}: {value}\n" for key, value in missing.items()))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_rows_in_the_documents_are_read(page: Path, tmp_path: Path) -> None:
    for mark, text in fenced(page, "json"):
        if "not run: " in mark:
            continue
        rows = re.sub(r"\n ", " ", text)  # a row that is broken over lines
        file = tmp_path / "rows.jsonl"
        file.write_text(rows, encoding="utf-8")
        read = read_span_rows(file) if '"claims"' in rows else read_rows(file).rows
        assert len(read) == len(rows.splitlines())


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of each guard command of a page's console blocks."""
    for mark, text in fenced(page, "console"):
        for line in text.replace("\\\n", " ").splitlines():
            command = re.match(r"\$ (?:.* \| )?((?:\.venv/bin/)?guard [^|>]*)", line)
            if command and "not run: " not in mark:
                yield shlex.split(command[1], comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_the_documents_have_arguments_that_guard_takes(page: Path) -> None:
    group = typer.main.get_command(app)
    for words in commands(page):
        _parse(group, "guard", words)


def _parse(command: Any, name: str, words: list[str]) -> None:
    """Parse arguments as the command line does, and call nothing."""
    groups: dict[str, Any] = getattr(command, "commands", {})
    if groups and words and not words[0].startswith("-"):
        assert words[0] in groups, f"there is no command {name} {words[0]}"
        _parse(groups[words[0]], f"{name} {words[0]}", words[1:])
    elif not {"--help", "--version", "--install-completion"} & set(words):
        command.make_context(name, list(words))


def test_commands_are_found() -> None:
    assert sum(1 for page in PAGES for _ in commands(page)) > 30


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_settings_of_a_package_are_toml(page: Path) -> None:
    for _, text in fenced(page, "toml"):
        assert tomllib.loads(text)
