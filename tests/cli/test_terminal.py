"""Text that guard did not write cannot steer, reorder or hide anything on a terminal, by whatever command."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_cases import make_escalation
from program import run_guard
from rich.table import Table

from guard.cli import output
from guard.cli.screen import Screen
from guard.cli.terminal import json_visible, one_line, shown, visible
from guard.errors import GuardError, InputError
from guard.records import Action, Outcome
from guard.review.store import Store

#: Colour, title, clipboard, screen clear, C1, return, bidirectional, zero-width, tags, line separator, deletion.
EVIL = (
    "a\x1b[31mb\x1b]0;title\x07\x1b]52;c;ZXZpbA==\x07\x1b[2J\x9b2J\x9d52;c;QQ==\x9c\r\x08\x7f"
    "\u202egnp\u2066x\u2069\u200b\u200d\ufeff\u2060\u00ad\U000e0041\U000e007f\u2028\ufe01\ud800[bold]m[/bold]:smile:"
)

#: Marks that are drawn, though Unicode files them under format characters.
DRAWN = {*map(chr, range(0x600, 0x606)), "\u06dd", "\u070f", "\u0890", "\u0891", "\u08e2", "\U000110bd", "\U000110cd"}


def unseen(text: str) -> set[str]:
    """The characters of a text that would do something to a terminal, by Unicode's categories."""
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    return hidden - DRAWN - {"\n", "\t"}


def test_every_control_and_format_character_is_shown_by_its_code() -> None:
    for code in range(sys.maxunicode + 1):
        if unseen(chr(code)):
            assert visible(f"a{chr(code)}b") == "a" + chr(code).encode("unicode_escape").decode() + "b"


@pytest.mark.parametrize("text", ["Ljubljana", "Kö\tln\n", "東京", "שלום", "مرحبا", "👍🏽 ❤️ 1️⃣", "é e\u0301", "\\x1b"])
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_variation_selectors_that_could_carry_a_message_are_shown() -> None:
    assert visible("a\ufe0f❤\ufe0f\ufe0f\ufe00") == "a\\ufe0f❤\ufe0f\\ufe0f\\ufe00"
    assert visible("x\U000e0101") == "x\\U000e0101"


def test_marks_that_pile_up_over_other_lines_are_shown() -> None:
    """Seven and more on one letter reach into the lines around, such as that with the score."""
    piled = "e" + "\u0301" * 9 + "\u20dd"
    assert visible(piled) == "e" + "\u0301" * 6 + "\\u0301" * 3 + "\\u20dd"
    assert visible("x" + "\u0301" * 200).count("\u0301") <= 12
    assert json.loads(json_visible(json.dumps(piled, ensure_ascii=False))) == piled
    for word in ("בְּרֵאשִׁ֖ית", "Việt", "ที่นี่", "हिन्दी"):
        assert visible(word) == word


@given(st.text(st.characters()))
def test_visible_text_is_seen_whole_and_stays_the_same(text: str) -> None:
    seen = visible(text)
    assert not unseen(seen)
    assert visible(seen) == seen
    assert "\n" not in one_line(text)


@given(st.text(st.characters()))
def test_json_keeps_the_value_and_shows_the_rest(text: str) -> None:
    written = json_visible(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(written) == {text: text}
    assert not unseen(written)


def printed(*things: Any) -> str:
    file = io.StringIO()
    output.console(file=file, width=200).print(*things)
    return file.getvalue()


def test_the_console_lets_nothing_through_however_it_is_printed() -> None:
    table = Table(title=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    table.add_row(shown(EVIL))
    for thing in (EVIL, shown(EVIL), table):
        assert not unseen(printed(thing))
        assert "\\u202egnp" in printed(thing)
        assert "[bold]m[/bold]:smile:" in printed(shown(EVIL))


def test_the_consoles_own_colours_are_kept() -> None:
    file = io.StringIO()
    console = output.console(file=file, width=80)
    console._force_terminal = True
    assert console.render_lines(shown("x", "red"))[0][0].style is not None


def test_ask_shows_an_answer_that_would_steer_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    attempts = make_escalation(answer=EVIL).attempts
    outcome = Outcome(
        EVIL, Action.ESCALATE, EVIL, EVIL, 0.5, EVIL, EVIL, "enforce", None, attempts, (EVIL, "review"), (EVIL,)
    )
    sys.modules["guard.cli.ask"]._print(outcome, 0.5)  # the package has the command under this name
    told = capsys.readouterr().out
    assert not unseen(told)
    assert "\\x1b]52;c;" in told


def test_errors_show_foreign_text_and_cannot_pose_as_two_messages(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    error = InputError(f"No scorer {EVIL}", why="a key\nerror: all is well", fix=EVIL)
    monkeypatch.setattr(sys, "argv", ["guard", "ask"])
    with pytest.raises(SystemExit) as left:
        output.fail(error)
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert not unseen(told)
    assert [line for line in told.splitlines() if line.startswith("error:")] == [told.splitlines()[0]]


def test_errors_as_json_keep_what_they_quote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["guard", "ask", "--json"])
    with pytest.raises(SystemExit):
        output.fail(GuardError(EVIL))
    told = capsys.readouterr().out
    assert not unseen(told)
    assert json.loads(told)["error"]["what"] == EVIL


def test_json_is_readable_where_the_output_has_another_encoding() -> None:
    code = "import sys; from guard.cli.output import print_json; print_json({'answer': 'Köln \\u202e \\U0001f600'})"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert json.loads(run.stdout.decode("ascii")) == {"answer": "Köln \u202e \U0001f600"}


# -- whole commands ----------------------------------------------------------------------------


@pytest.fixture
def hostile_store(tmp_path: Path) -> Path:
    path = tmp_path / "reviews.db"
    attempts = make_escalation(answer=EVIL).attempts
    fields = ("question", "answer", "route", "reason", "rule", "policy", "model")
    case = make_escalation(1, **dict.fromkeys(fields, EVIL), metadata={EVIL: EVIL}, attempts=attempts)
    with Store.open(path) as store:
        store.add(case)
    return path


def test_no_command_of_the_review_queue_lets_it_through(hostile_store: Path) -> None:
    at = ("--store", str(hostile_store))
    whole = json.loads(run_guard("review", "list", "--json", *at).stdout)["reviews"][0]["id"]
    commands = [
        ("list",),
        ("list", "--json"),
        ("show", whole),
        ("show", whole, "--json"),
        ("show", EVIL.replace("\ud800", "")),
        ("approve", whole, "--reviewer", "\x1b[2Jann\u202e", "--note", "\x9b\u200b"),
        ("show", whole),
        ("approve", whole),
        ("export",),
    ]
    for command in commands:
        run = run_guard("review", *command, *at)
        assert not unseen(run.stdout + run.stderr), command
        assert "Traceback" not in run.stderr
        # The verdict can still be undone, so it is no label yet.
        assert run.stdout or run.returncode == 2 or command == ("export",)


@pytest.mark.parametrize("command", ["check", "explain"])
def test_policies_cannot_steer_the_terminal(tmp_path: Path, command: str) -> None:
    evil = json.dumps(EVIL.replace("\ud800", ""))
    policy = tmp_path / "policy.yaml"
    for text in (
        f"version: 1\nname: {evil}\nrules:\n  - accept: {{below: 0.5, name: {evil}}}\n  - abstain: {{}}\n",
        f"version: 1\nname: x\n{evil}: 1\nrules:\n  - {evil}: {{}}\n  - accept: {{below: {evil}}}\n",
        f"version: 1\nname: x\nrules:\n  - fallback: {{below: 0.5, to: {evil}}}\n  - escalate: {{to: [{evil}]}}\n",
    ):
        policy.write_text(text)
        more = ("--score", "0.2") if command == "explain" else ()
        run = run_guard("policy", command, str(policy), *more)
        assert not unseen(run.stdout + run.stderr)
        assert "Traceback" not in run.stderr


def test_an_unexpected_error_is_shown_too() -> None:
    code = (
        "import guard.cli as cli\n"
        "def fail(**_): raise RuntimeError('\\x1b]0;title\\x07\\u202e')\n"
        "cli.app = fail\n"
        "cli.main()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1
    assert "RuntimeError: \\x1b]0;title\\x07\\u202e" in run.stderr
    assert not unseen(run.stderr)


@pytest.mark.parametrize("kind", ["scorer", "calibrate", "score", "certify", "evaluate", "record"])
def test_files_and_names_in_errors_cannot_steer_the_terminal(tmp_path: Path, kind: str) -> None:
    evil = EVIL.replace("\ud800", "")
    data = tmp_path / "data.jsonl"
    data.write_text(json.dumps({"id": evil, "question": evil, evil: 1, "grader": evil}) + "\n" + evil + "\n", "utf-8")
    scorer = tmp_path / "scorer.json"
    scorer.write_text(json.dumps({evil: evil, "format": evil, "model": {evil: 1}}))
    guarantee = ("--risk", "0.1", "--confidence", "0.9")
    commands = {
        "scorer": ("ask", "x", "--scorer", str(scorer)),
        "calibrate": ("calibrate", "--data", str(data), "--out", str(tmp_path / "out.json")),
        "score": ("score", str(data), "--scorer", str(scorer)),
        "certify": (
            "certify",
            "--data",
            str(data),
            "--scorer",
            str(scorer),
            "--out",
            str(tmp_path / "c.json"),
            *guarantee,
        ),
        "evaluate": ("evaluate", str(tmp_path / "\x1b[2Jtable.parquet"), "--out", str(tmp_path / "out.html")),
        "record": ("record", "--data", str(data), "--out", str(tmp_path / "out.parquet")),
    }
    run = run_guard(*commands[kind])
    assert run.returncode != 0
    assert not unseen(run.stdout + run.stderr)
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_errors_break_between_words_on_a_terminal_and_stay_whole_elsewhere(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [f"word{number}" for number in range(40)]
    stream = io.StringIO()
    screen = Screen(file=stream, width=50, force_terminal=terminal, color_system=None)
    monkeypatch.setattr(output, "console", lambda *, stderr=False: screen)
    output._print_error(" ".join(words))
    lines = stream.getvalue().splitlines()
    assert " ".join(lines).split() == ["error:", *words], "no word is broken"
    assert (len(lines) > 5) is terminal
    assert not terminal or max(map(len, lines)) <= 50


@pytest.mark.parametrize(
    ("words", "shown_as"),
    [
        (["ask", "--x\u202egnp\x1b[31m", "Q"], "--x\\u202egnp\\x1b[31m"),
        (["ask", "Q", "a\u2066b\x1b]0;title\x07"], "a\\u2066b\\x1b]0;title\\x07"),
        (["re\u200bview\x1b[2J"], "re\\u200bview\\x1b[2J"),
        (["review", "list", "--kind", "\u202e\x1b[2J"], "\\u202e\\x1b[2J"),
        (["ask", "--json", "Q", "\u202e"], "\\u202e"),
    ],
)
def test_what_is_misspelt_on_the_command_line_is_quoted_visibly(words: list[str], shown_as: str) -> None:
    """As a script passes it on, from a file's name or a line of a file."""
    run = run_guard(*words)
    assert run.returncode == 2
    assert shown_as in run.stdout + run.stderr
    assert not unseen(run.stdout + run.stderr)
