"""`guard review` against a real store: what people read, what programs read, what is refused."""

from __future__ import annotations

import json
import os
import pty
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer
from made_cases import make_escalation
from moved_clock import MovedClock
from program import run_guard
from typer.testing import CliRunner

from guard.cli import review as command
from guard.cli import review_tables
from guard.errors import GuardError, InputError, ReviewError, StoreError
from guard.records import Prompt
from guard.review.store import Review, ReviewStatus, Store


@dataclass
class Shell:
    """Runs commands on one store."""

    path: Path

    def __call__(self, *arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(command.app, [*arguments, "--store", str(self.path)])
        if isinstance(result.exception, GuardError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.output

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.delenv("GUARD_STORE", raising=False)
    return Shell(tmp_path / "reviews.db")


@pytest.fixture
def store(shell: Shell) -> Iterator[Store]:
    with Store.open(shell.path) as opened:
        yield opened


@pytest.fixture
def case(store: Store) -> Review:
    return store.add(make_escalation(1, answer="Lyon"))


# -- reading -----------------------------------------------------------------------------------


def test_an_empty_queue_says_so(shell: Shell, store: Store) -> None:
    assert store.count() == 0
    assert shell("list") == "No pending reviews.\n"
    assert shell.json("list") == {"total": 0, "reviews": []}


def test_the_list_fits_80_columns(shell: Shell, store: Store) -> None:
    case = store.add(make_escalation(1, question="Why " * 100 + "\nthis?", route="a-route-with-a-long-name"))
    other = store.add(make_escalation(2, route=None, p_wrong=None))
    text = shell("list")
    assert max(len(line) for line in text.splitlines()) <= 80
    lines = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    for part in (" d ", "0.750", "Why Why", "Answer 1"):
        assert part in lines[case.id]
    assert " - " in lines[other.id]
    assert f"2 of 2 pending reviews. Read one: guard review show {case.id}" in text


def test_the_list_with_all_statuses_fits_too(shell: Shell, store: Store, case: Review) -> None:
    store.reject(case.id, reviewer="bob")
    text = shell("list", "--status", "all")
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "rejected" in text
    assert case.id not in shell("list")


def test_the_list_filters(shell: Shell, store: Store) -> None:
    for number in range(4):
        store.add(make_escalation(number, route="even" if number % 2 == 0 else "odd"))
    store.approve("decision-0", reviewer="bob")

    def decisions(*options: str) -> list[str]:
        return [review["decision_id"] for review in shell.json("list", *options)["reviews"]]

    assert decisions() == ["decision-1", "decision-2", "decision-3"]
    assert decisions("--route", "even") == ["decision-2"]
    assert decisions("--status", "approved") == ["decision-0"]
    assert decisions("--status", "all", "--limit", "2") == ["decision-0", "decision-1"]
    assert shell.json("list", "--limit", "1")["total"] == 3


def test_show_has_everything_a_reviewer_needs(shell: Shell, store: Store, case: Review) -> None:
    text = shell("show", case.id)
    for part in ("Question 1?", "Lyon", "0.750", "rules[1]", "too likely wrong", "balanced", "medical", "tiny"):
        assert part in text
    assert "The layers were not recorded" in " ".join(text.split())  # an attempt's error
    assert "added by guard" in text
    for part in ("Be brief.", '{"customer": 1}', "decision-1"):  # the system message, the metadata
        assert part in text
    assert max(len(line) for line in text.splitlines()) <= 80
    store.edit(case.id, answer="Paris", draft="wrong", reviewer="bob", note="the capital")
    decided = shell("show", case.id[:4])
    for part in ("edited by bob", "Paris", "the capital", "was wrong"):
        assert part in decided


def test_show_says_which_attempt_was_cut(shell: Shell, store: Store) -> None:
    """How the other ended is not known; the table still fits into 80 columns."""
    failed, answered = make_escalation().attempts
    case = store.add(make_escalation(attempts=(failed, replace(answered, finish_reason="length"))))
    text = shell("show", case.id)
    (cut,) = (line for line in text.splitlines() if " length " in line)
    assert "escalate" in cut
    assert max(len(line) for line in text.splitlines()) <= 80


def test_show_as_json(shell: Shell, case: Review) -> None:
    shown = shell.json("show", case.id)
    assert shown["prompt"]["messages"][1] == {"role": "user", "content": "Question 1?"}
    assert (shown["answer"], shown["p_wrong"], shown["status"]) == ("Lyon", 0.75, "pending")
    assert len(shown["attempts"]) == 2
    assert [event["what"] for event in shown["history"]] == ["added"]


def test_a_case_without_answer_or_score(shell: Shell, store: Store) -> None:
    case = store.add(make_escalation(answer=None, p_wrong=None, route=None, attempts=()))
    text = shell("show", case.id)
    assert "(none: generation failed)" in text
    assert "route" not in text


@pytest.mark.parametrize("subcommand", ["list", "show"])
def test_answers_cannot_steer_the_terminal(shell: Shell, store: Store, subcommand: str) -> None:
    evil = "\x1b[2J\x1b]0;title\x07\x9b31m [bold]not markup[/bold] \r"
    attempts = make_escalation().attempts
    case = store.add(make_escalation(question=evil, answer=evil, route=evil, reason=evil, attempts=attempts))
    text = shell(subcommand, *([case.id] if subcommand == "show" else []))
    assert not set(text) & {"\x1b", "\x07", "\x9b", "\r"}
    if subcommand == "show":
        assert "[bold]not markup[/bold]" in " ".join(text.split())


# -- deciding ----------------------------------------------------------------------------------


def test_approve_by_the_login_name(shell: Shell, store: Store, case: Review) -> None:
    assert shell("approve", case.id).splitlines() == [
        f"{case.id} approved by ann. To undo it within ten seconds: guard review undo {case.id}",
        "Question 1? -> Lyon",
    ]
    review = store.review(case.id)
    assert (review.status, review.final_answer, review.reviewer) == (ReviewStatus.APPROVED, "Lyon", "ann")


def test_edit_with_a_note(shell: Shell, store: Store, case: Review) -> None:
    arguments = ("edit", case.id, "--answer", "Paris", "--draft", "wrong", "--reviewer", "bob", "--note", "capital")
    assert shell.json(*arguments)["final_answer"] == "Paris"
    review = store.review(case.id)
    assert (review.status, review.reviewer, review.note) == (ReviewStatus.EDITED, "bob", "capital")


def test_reject_with_and_without_an_answer(shell: Shell, store: Store, case: Review) -> None:
    other = store.add(make_escalation(2))
    shell("reject", case.id)
    shell("reject", other.id, "--answer", "Paris")
    assert store.review(case.id).final_answer is None
    assert store.review(other.id).final_answer == "Paris"


def test_a_second_decision_is_refused(shell: Shell, case: Review) -> None:
    shell("approve", case.id)
    with pytest.raises(ReviewError, match="approved by ann at 20") as caught:
        shell("reject", case.id, "--reviewer", "bob")
    assert caught.value.exit_code == 2


def test_edit_needs_an_answer_where_no_person_is(shell: Shell, store: Store, case: Review) -> None:
    with pytest.raises(InputError, match="--answer"):
        shell("edit", case.id, "--draft", "wrong")
    assert store.review(case.id).status is ReviewStatus.PENDING


def test_an_unknown_login_name(shell: Shell, case: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.setattr("getpass.getuser", unknown)
    with pytest.raises(InputError, match="--reviewer"):
        shell("approve", case.id)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Standard input is a terminal."""
    controller, end = pty.openpty()
    with os.fdopen(end, "r") as stdin:
        monkeypatch.setattr(command.sys, "stdin", stdin)
        yield
    os.close(controller)


def edit_with(editor: str, name: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `guard review edit` does, past the test runner, which would replace standard input."""
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", editor)
    command.edit(name, answer=None, draft="wrong", reviewer="bob", yes=True, store=store.place)


@pytest.mark.usefixtures("terminal")
def test_edit_in_an_editor(store: Store, case: Review, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "my editor.py"
    script.write_text(
        "import pathlib, sys; file = pathlib.Path(sys.argv[1]);"
        "file.write_text(file.read_text().replace('Lyon', 'Päris') + '\\n', encoding='utf-8')"
    )
    edit_with(f"{sys.executable} '{script}'", case.id, store, monkeypatch)
    assert store.review(case.id).final_answer == "Päris"


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize(
    ("editor", "says"),
    [
        ("true", "unchanged"),
        ("false", "failed"),
        ("no-such-editor-anywhere", "failed"),
        ("'unbalanced", "failed"),
        ("rm -f", "failed"),
    ],
)
def test_an_editor_that_does_not_edit(
    store: Store, case: Review, editor: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=says):
        edit_with(editor, case.id, store, monkeypatch)
    assert store.review(case.id).status is ReviewStatus.PENDING


# -- which case is decided ---------------------------------------------------------------------


@pytest.mark.parametrize("subcommand", ["approve", "reject", "edit"])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_part_of_an_id_decides_nothing_where_nobody_confirms_it(
    shell: Shell, store: Store, case: Review, subcommand: str, length: int
) -> None:
    more = ["--answer", "x", "--draft", "wrong"] if subcommand == "edit" else []
    for yes in ([], ["--yes"], ["--json"]):
        with pytest.raises(ReviewError, match="too short" if length < 4 else f"whole id: {case.id}"):
            shell(subcommand, case.id[:length], *more, *yes)
    assert store.review(case.id).status is ReviewStatus.PENDING


@pytest.mark.parametrize(("answer", "status"), [("y", ReviewStatus.APPROVED), ("n", ReviewStatus.PENDING)])
def test_a_person_sees_the_case_and_confirms_it(
    store: Store,
    case: Review,
    answer: str,
    status: ReviewStatus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    controller, end = pty.openpty()
    os.write(controller, f"{answer}\n".encode())
    with os.fdopen(end, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        with nullcontext() if answer == "y" else pytest.raises(typer.Exit):
            command.approve(case.id[:4], reviewer="ann", store=store.place)
    os.close(controller)
    told = capsys.readouterr().out
    assert told.index("Question 1?") < told.index("Lyon") < told.index("Approve it?")
    assert store.review(case.id).status is status


def test_an_edit_asks_whether_the_answer_was_right(store: Store, case: Review, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, end = pty.openpty()
    os.write(controller, b"maybe\nright\n")
    with os.fdopen(end, "r") as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        command.edit(case.id, answer="Paris", reviewer="ann", yes=True, store=store.place)
    os.close(controller)
    assert store.review(case.id).draft == "right"


@pytest.mark.parametrize(("draft", "says"), [("rigth", "Did you mean 'right'"), (None, "right or wrong")])
def test_an_edit_without_a_label_is_refused(
    shell: Shell, store: Store, case: Review, draft: str | None, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        shell("edit", case.id, "--answer", "Paris", *(["--draft", draft] if draft else []))
    assert store.review(case.id).status is ReviewStatus.PENDING


# -- what is shown -----------------------------------------------------------------------------


def test_show_has_the_whole_prompt_and_the_repeats(shell: Shell, store: Store) -> None:
    turns = [
        {"role": "user", "content": "Who wrote Faust?"},
        {"role": "assistant", "content": "Goethe."},
        {"role": "tool", "content": "Weimar, 1808", "name": "search"},
        {"role": "user", "content": "Where?"},
    ]
    tools = [{"type": "function", "function": {"name": "search"}}]
    prompt = Prompt.chat(turns, system="Answer as a librarian.", tools=tools)
    for number in range(3):
        store.add(make_escalation(0, question="Where?", prompt=prompt, decision_id=f"d{number}"))
    text = " ".join(shell("show", "d2").split())
    for part in (
        "Answer as a librarian.",
        "Who wrote Faust?",
        "Goethe.",
        "Weimar, 1808",
        "tools search",
        "2 times more",
    ):
        assert part in text
    assert [each["decision_id"] for each in shell.json("show", "d0")["repeated"]] == ["d1", "d2"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "now"), (0, "now"), (59, "59 s"), (60, "1 min"), (7200, "2 h"), (86400 * 40, "40 d")]
)
def test_an_age_is_in_its_largest_unit(seconds: int, said: str) -> None:
    now = datetime(2026, 3, 1, tzinfo=UTC)
    assert review_tables.age((now - timedelta(seconds=seconds)).isoformat(), now) == said


# -- exporting ---------------------------------------------------------------------------------


@pytest.fixture
def decided(store: Store) -> list[Review]:
    """Decisions that are final by now."""
    MovedClock(store)
    names = [store.add(make_escalation(number, answer=f"Anträge {number}")).id for number in range(3)]
    return [
        store.approve(names[0], reviewer="bob"),
        store.edit(names[1], answer="Paris", draft="right", reviewer="bob", note="less is more"),
        store.reject(names[2], reviewer="bob"),
    ]


def test_export_to_standard_output(shell: Shell, decided: list[Review]) -> None:
    rows = [json.loads(line) for line in shell("export").splitlines()]
    assert [(row["id"], row["response"], row["label"]) for row in rows] == [
        (decided[0].id, "Anträge 0", 0),
        (decided[1].id, "Anträge 1", 0),
        (decided[2].id, "Anträge 2", 1),
    ]
    assert [(row["verdict"], row["better"], row["note"]) for row in rows] == [
        ("approved", None, None),
        ("edited", "Paris", "less is more"),
        ("rejected", None, None),
    ]
    assert {(row["model"], row["policy"], row["reviewer"]) for row in rows} == {("tiny", "balanced", "bob")}


def test_an_export_is_a_file_that_calibration_reads(shell: Shell, decided: list[Review], tmp_path: Path) -> None:
    from guard.data.questions import LabelledResponse, read_rows

    out = tmp_path / "labels.jsonl"
    shell("export", "--out", str(out))
    rows = [row for row in read_rows(out).rows if isinstance(row, LabelledResponse)]
    assert [(row.prompt, row.response, row.wrong) for row in rows] == [
        (review.prompt, review.answer, review.draft == "wrong") for review in decided
    ]


def test_an_export_takes_one_model_and_says_where_there_are_several(
    shell: Shell, store: Store, decided: list[Review], tmp_path: Path
) -> None:
    store.approve(store.add(make_escalation(7, model="other")).id, reviewer="bob")
    out = tmp_path / "labels.jsonl"
    assert "answers of 2 models: tiny (3), other (1)" in shell("export", "--out", str(out))
    assert shell.json("export", "--out", str(out), "--model", "other")["models"] == {"other": 1}
    assert json.loads(out.read_text())["model"] == "other"
    assert "models" not in shell("export", "--out", str(out), "--model", "tiny")
    assert len(out.read_text().splitlines()) == len(decided)


def test_export_to_a_file(shell: Shell, decided: list[Review], tmp_path: Path) -> None:
    out = tmp_path / "labels.jsonl"
    out.write_text("old")
    assert "3 labelled rows written to" in shell("export", "--out", str(out))
    assert out.read_text(encoding="utf-8") == shell("export")
    assert shell.json("export", "--out", str(out), "--route", "none") == {"rows": 0, "out": str(out), "models": {}}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600  # though the old one was everybody's
    assert {path.name for path in tmp_path.iterdir()} <= {
        "labels.jsonl",
        "reviews.db",
        "reviews.db-host",
        *_wal(shell.path),
    }
    assert len(decided) == 3


def _wal(path: Path) -> set[str]:
    return {f"{path.name}-wal", f"{path.name}-shm"}


@pytest.mark.parametrize("where", [".", "no-such-folder/labels.jsonl", "reviews.db/labels.jsonl"])
def test_a_file_that_cannot_be_written(shell: Shell, decided: list[Review], where: str) -> None:
    with pytest.raises(InputError, match=r"is not a file|cannot be written"):
        shell("export", "--out", str(shell.path.parent / where))
    assert decided


def test_a_device_is_not_replaced(shell: Shell, decided: list[Review]) -> None:
    with pytest.raises(InputError, match="is not a file"):
        shell("export", "--out", os.devnull)
    assert not Path(os.devnull).is_file()
    assert decided


# -- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("subcommand", ["show", "approve", "reject", "edit"])
def test_unknown_ids(shell: Shell, case: Review, subcommand: str) -> None:
    more = ["--answer", "x", "--draft", "wrong"] if subcommand == "edit" else []
    with pytest.raises(ReviewError, match=r"no review '~~'.*" + case.id):
        shell(subcommand, "~~", *more)


def test_a_misspelt_status(shell: Shell) -> None:
    with pytest.raises(InputError, match="Did you mean 'pending'"):
        shell("list", "--status", "pendig")


def test_a_store_that_is_not_there_is_not_made(shell: Shell) -> None:
    with pytest.raises(StoreError, match="There is no review store"):
        shell("list")
    assert not shell.path.exists()


def test_the_users_own_store_is_made(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUARD_STORE", str(shell.path))
    result = CliRunner().invoke(command.app, ["list"])
    assert result.output == "No pending reviews.\n"
    assert shell.path.exists()


# -- the whole program -------------------------------------------------------------------------


def test_the_program_reports_errors_with_their_exit_code(shell: Shell, case: Review) -> None:
    listed = run_guard("review", "list", "--json", "--store", str(shell.path))
    assert (listed.returncode, json.loads(listed.stdout)["total"]) == (0, 1)
    missing = run_guard("review", "show", "zzzzzz", "--store", str(shell.path))
    assert (missing.returncode, missing.stdout) == (2, "")
    assert f"There is no review 'zzzzzz'. Known: {case.id}." in missing.stderr
    assert "Traceback" not in missing.stderr
    broken = run_guard("review", "list", "--json", "--store", str(shell.path.parent))
    assert broken.returncode == 6
    assert json.loads(broken.stdout)["error"]["type"] == "StoreError"


def test_help_loads_no_database() -> None:
    code = (
        "import sys; sys.argv = ['guard', 'review', '--help']\n"
        "import guard.cli\n"
        "try: guard.cli.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'sqlalchemy', 'alembic'} & set(sys.modules)), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "approve" in run.stdout
    assert run.stderr.strip() == "[]"
