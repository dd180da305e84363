"""The demo on a scripted engine: what is shown, counted and drawn, and where its cases go."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from scripted import AnsweringEngine, confidence_scorer
from typer.testing import CliRunner

from guard.cli import app
from guard.cli import demo_questions as demo
from guard.cli.demo_picture import picture
from guard.data.graders import grade
from guard.errors import InputError
from guard.policy.policy import parse_policy
from guard.review.store import Store
from guard.runtime.guard import Guard

RULES = """version: 1
name: small
rules:
  - accept: {below: 0.3}
  - retry: {below: 0.5, times: 1, seed: 1}
  - escalate: {reply: A person will look.}
"""
#: What the scripted model says, and how sure it seems: the rest is wrong and doubtful.
SAID = {
    "What is the capital of France?": ("Paris", 0.1),
    "What is the capital of Japan?": ("Oslo<&>\x1b", 0.2),
    "How many legs does a spider have?": ("eight legs", 0.8),
    "What is 7 + 8?": ("15", 0.4),
}


def scripted_guard(store: Any = None) -> Guard:
    engine = AnsweringEngine(lambda prompt, number: SAID.get(prompt.question, ("54", 0.9)))
    return Guard(engine, confidence_scorer(), parse_policy(RULES), store=store)


@pytest.fixture
def shown(tmp_path: Path) -> list[demo.Shown]:
    with scripted_guard(tmp_path / "reviews.db") as guard:
        return list(demo.run(guard))


def test_accepted_answers_are_right_and_those_of_other_questions_are_not() -> None:
    for question in demo.QUESTIONS:
        for answer in question.answers:
            assert grade(question, f"It is {answer}.") is True
        others = [other.answers[0] for other in demo.QUESTIONS if other is not question]
        assert [answer for answer in others if grade(question, f"It is {answer}.")] == []


def test_the_line_counts_wrong_answers_and_right_ones_that_were_held_back(shown: list[demo.Shown]) -> None:
    value = demo.worth(shown)
    assert value == demo.Worth(answers=12, wrong=9, given=2, given_wrong=1, held_right=2)
    assert value.without() == "12 answers, 9 wrong"
    assert value.with_guard() == "2 answers, 1 wrong; 10 held back (2 right)"
    assert demo.Worth(3, 1, 2, 0, 0).with_guard() == "2 answers, none wrong; 1 held back (none right)"


def test_an_answer_that_a_retry_gave_counts_as_it_came_out(tmp_path: Path) -> None:
    answers = iter([("54", 0.4), ("15", 0.1)])
    engine = AnsweringEngine(lambda prompt, number: next(answers))
    with Guard(engine, confidence_scorer(), parse_policy(RULES), store=tmp_path / "reviews.db") as guard:
        question = next(each for each in demo.QUESTIONS if each.answers == ("15",))
        one = demo.Shown(question, guard.ask(question.question))
    assert demo.worth([one]) == demo.Worth(answers=1, wrong=1, given=1, given_wrong=0, held_right=0)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    monkeypatch.setenv("COLUMNS", "80")
    # The session's data folder holds the cases of other tests.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(Guard, "load", lambda **given: scripted_guard(given["store"]))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["demo", *arguments])
        if isinstance(result.exception, InputError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_the_demo_shows_right_and_wrong_and_what_guarding_was_worth(command: Callable[..., str]) -> None:
    told = command()
    assert max(map(len, told.replace(str(demo.store_path()), "").splitlines())) <= 80
    lines = [" ".join(line.split()) for line in told.splitlines()]
    assert "Paris right p(wrong) 0.10 accept" in lines
    assert "eight legs right p(wrong) 0.80 escalate" in lines
    assert "15 right p(wrong) 0.40 retry" in lines
    assert "Without guard: 12 answers, 9 wrong." in lines
    assert "With guard: 2 answers, 1 wrong; 10 held back (2 right)." in lines
    assert "\x1b" not in told


def test_each_line_comes_as_soon_as_it_is_known(command: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    out: list[str] = []
    printed_before: list[int] = []
    asked = AnsweringEngine.encode

    def encode(self: AnsweringEngine, prompt: Any) -> list[int]:
        printed_before.append(len(out))
        return asked(self, prompt)

    monkeypatch.setattr(sys.modules["guard.cli.demo"], "_print_one", lambda _, each: out.append(each.question.id))
    monkeypatch.setattr(AnsweringEngine, "encode", encode)
    command()
    assert printed_before[0] == 0
    assert sorted(set(printed_before)) == list(range(12))


def test_the_demos_cases_are_not_among_the_users_own(command: Callable[..., str]) -> None:
    told = command()
    assert f"guard review list --store {demo.store_path()}" in told.replace("\n", "")
    with Store.open(demo.store_path()) as own:
        first = own.count()
        assert first > 0
    with Store.open() as users:
        assert users.count() == 0
    command()
    with Store.open(demo.store_path()) as own:
        assert own.count() == first  # a second run repeats the cases of the first


def test_a_store_can_be_given(command: Callable[..., str], tmp_path: Path) -> None:
    assert "--store" in command("--store", str(tmp_path / "mine.db"))
    with Store.open(tmp_path / "mine.db") as store:
        assert store.count() > 0


def test_the_demo_as_json(command: Callable[..., str]) -> None:
    rows = json.loads(command("--json"))
    assert [row["question"] for row in rows] == [question.question for question in demo.QUESTIONS]
    assert sum(row["right"] for row in rows) == 3


# -- the picture -------------------------------------------------------------------------------


def test_the_picture_is_whole_readable_and_needs_no_web_font(shown: list[demo.Shown]) -> None:
    text = picture(shown, "a model, policy 'small'")
    root = ElementTree.fromstring(text)
    assert "@font-face" not in text
    assert "url(" not in text
    assert "&lt;&amp;&gt;" in text
    words = " ".join("".join(element.itertext()) for element in root)
    for part in ("Paris", "right", "wrong", "accept", "escalate", "12 answers, 9 wrong", "10 held back"):
        assert part in words
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    namespace = "{http://www.w3.org/2000/svg}"
    for element in root.iter(f"{namespace}text"):
        assert 0 < float(element.attrib["x"]) < width
        assert 0 < float(element.attrib["y"]) < height
    # On a phone of 360 points the picture is drawn at about half its size.
    sizes = [int(size) for size in re.findall(r"font-size:(\d+)px", text)]
    assert min(sizes) * 360 / width >= 9


def test_the_command_writes_the_picture(command: Callable[..., str], tmp_path: Path) -> None:
    command("--svg", str(tmp_path / "demo.svg"))
    assert ElementTree.parse(tmp_path / "demo.svg").getroot().tag.endswith("svg")
    with pytest.raises(InputError, match="Cannot write the picture"):
        command("--svg", str(tmp_path / "no" / "demo.svg"))


def test_the_documents_picture_was_made_by_this_command() -> None:
    text = (Path(__file__).parents[2] / "docs" / "demo.svg").read_text(encoding="utf-8")
    described = ElementTree.fromstring(text).findtext("{http://www.w3.org/2000/svg}desc") or ""
    assert all(question.question in described for question in demo.QUESTIONS)
    assert "Without guard 12 answers" in described
