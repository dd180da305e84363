"""Mathematical answers that only computing can compare, by math-verify in a child process."""

from __future__ import annotations

import importlib.util
import threading

import pytest

from guard.data import computed_answers
from guard.data.computed_answers import computed_equal
from guard.data.graders import grade
from guard.data.questions import Question

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)

EQUAL = [
    ("x+1", "1+x"),
    (r"\sqrt{12}", r"2\sqrt{3}"),
    ("2^{10}", "1024"),
    (r"50\%", "0.5"),
    (r"\frac{2x}{4}", r"\frac{x}{2}"),
    ("(x-1)^2", "x^2-2x+1"),
    (r"\binom{5}{2}", "10"),
    (r"\sqrt{1/2}", r"\frac{\sqrt{2}}{2}"),
    ("y = x + 1", "1+x"),
]
OTHER = [
    ("x+1", "x+2"),
    ("5", "5m"),
    ("A", "a"),
    ("(1,2)", r"\{1,2\}"),
    ("1,1,2", "1,2,2"),
    ("12_3", "12_4"),
    ("12:30", "12/30"),
    ("3", "1 2"),
    (r"\frac{1}{3}", "0.333333"),
    ("10^{-7}", r"2\cdot10^{-7}"),
    (r"\frac{1}{0}", r"\frac{2}{0}"),
    ("x=3", "y=2"),
    ("", ""),
    ("5 or 6", "11"),
    (r"\pi", "3.14159"),
]


@needs_math_verify
@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_expressions_of_one_value_are_equal(one: str, other: str) -> None:
    assert computed_equal(one, other)
    assert computed_equal(other, one)
    assert grade(Question("1", "?", (one,), grader="math"), rf"It is \boxed{{{other}}}.")


@needs_math_verify
@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_the_library_would_drop_is_not_computed(one: str, other: str) -> None:
    assert not computed_equal(one, other)
    assert not computed_equal(other, one)


@needs_math_verify
def test_a_computation_that_never_ends_is_wrong_and_harms_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(computed_answers, "MAX_SECONDS", 1.0)
    assert not computed_equal("9^{9^{9^{9}}}", "9^{9^{9}}-1")
    monkeypatch.undo()
    assert computed_equal("x+1", "1+x")


@needs_math_verify
def test_threads_get_their_own_replies() -> None:
    """math-verify's own timeouts work in the main thread only."""
    pairs = [(f"x+{at}", f"{at + at % 2}+x") for at in range(8)]
    found: dict[int, bool] = {}
    threads = [
        threading.Thread(target=lambda at=at: found.update({at: computed_equal(*pairs[at])}))
        for at in range(len(pairs))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {at: at % 2 == 0 for at in range(len(pairs))}


@needs_math_verify
def test_a_process_that_has_ended_is_replaced() -> None:
    assert computed_equal("x+1", "1+x")
    process = computed_answers._worker._process
    assert process is not None
    process.kill()
    process.wait()
    assert not computed_equal("x+1", "1+x"), "the reply that was lost counts as wrong"
    assert computed_equal("x+1", "1+x")


def test_without_the_package_only_the_notation_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(computed_answers, "_worker", None)
    question = Question("1", "?", (r"\frac{1}{2}",), grader="math")
    assert grade(question, r"\boxed{0.5}")
    assert not grade(question, r"\boxed{\frac{x}{2x}}")
    assert not grade(Question("1", "?", ("x+1",), grader="math"), r"\boxed{1+x}")
