"""What the fuzzing sessions try: hostile inputs by hypothesis, and what must hold whatever they are."""

from __future__ import annotations

import json
import math
import re
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from chat_templates import CHATML
from hypothesis import strategies as st
from nasty_templates import nasty_templates
from scripted import AnsweringEngine, confidence_scorer, scripted_model

from guard.cli.terminal import json_visible, one_line, visible
from guard.data.graders import GRADERS
from guard.data.questions import Question, read_rows
from guard.engines.chat_template import MAX_CHARACTERS, render
from guard.engines.control_text import ControlTexts, split_prompt
from guard.engines.thinking import MARKS, HarmonySplitter, Splitter, TaggedSplitter, without_thoughts
from guard.errors import ChatTemplateError, GuardError, InputError
from guard.files import checked_json
from guard.policy.policy import builtin_policies, decide, parse_policy
from guard.records import Action, Limits, Prompt
from guard.runtime.guard import Guard
from guard.scoring.scorer import parse_scorer


@dataclass(frozen=True, slots=True)
class Target:
    """Something to be attacked.

    Attributes:
        inputs: hostile ones.
        check: fails where what must hold does not; errors of guard's own are no failures.
    """

    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


def _joined(pieces: Sequence[str], most: int = 25) -> st.SearchStrategy[str]:
    return st.lists(st.one_of(st.sampled_from(pieces), st.text(max_size=4)), max_size=most).map("".join)


_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.just("\ud800")
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)

# -- policies ------------------------------------------------------------------------------------

_WORDS = (
    *("version: 1\n", "name: x\n", "mode: shadow\n", "rules:\n", "  - accept: {below: 0.5}\n", "  - abstain\n"),
    *("  - retry: {below: 0.9, times: 2}\n", "  - escalate: {to: [log]}\n", "  - accept\n", "on_error: abstain\n"),
    *("truncated: accept\n", "empty: retry\n", "out_of_distribution: {above: 0.9, then: abstain}\n", "routes:\n"),
    *(
        "  a:\n    rules: [abstain]\n",
        "tools:\n",
        "budget: {attempts: 3}\n",
        "  ",
        "\n",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
    ),
    *("below: ", "above: ", "1e999", ".nan", "-1", "0", "~", "&a ", "*a", "!!python/name:os.system ", "<<: ", "|", ">"),
    *('"', "'", "# ", "---\n", "\t", "\x00", "\ufeff", "true", "max_error_rate: 0.05", "confidence: 0.9"),
)


@cache
def _policy_lines() -> tuple[str, ...]:
    texts = [Path(path).read_text() for path in builtin_policies().values()]
    return tuple(f"{line}\n" for text in texts for line in text.splitlines())


def _check_policy(text: str) -> None:
    policy = parse_policy(text)
    for route in (None, *policy.routes):
        for p_wrong in (None, math.nan, 2.0, -1.0):
            decision = decide(policy, p_wrong=p_wrong, ood_score=None, route=route)
            written = policy.plan(route).on_error
            assert decision.action is not Action.ACCEPT or "accept" in repr(written).lower(), "no score is no reason"
        assert decide(
            policy, p_wrong=0.0, ood_score=0.0, route=route, defects=("empty",)
        ).action is not Action.ACCEPT or ("accept" in text)


# -- data ----------------------------------------------------------------------------------------

_KEYS = st.sampled_from(
    (
        "id",
        "question",
        "answers",
        "choices",
        "answer_index",
        "grader",
        "context",
        "meta",
        "prompt",
        "response",
        "correct",
    )
)
_ROWS = st.lists(st.dictionaries(_KEYS, _JSON, max_size=6), max_size=4).map(
    lambda rows: "\n".join(json.dumps(row, ensure_ascii=True) for row in rows).encode()
)
_GOOD = b'{"id": "a", "question": "q", "answers": ["b"]}\n'


def _check_data(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(_GOOD + content)
        for row in read_rows(path, on_bad="skip").rows:
            assert row.id
            row.id.encode()
            assert ":" not in (getattr(row, "grader", None) or "")


# -- artefacts -----------------------------------------------------------------------------------


@cache
def _scorer() -> str:
    with tempfile.TemporaryDirectory() as folder:
        confidence_scorer().save(Path(folder) / "scorer.json")
        return (Path(folder) / "scorer.json").read_text()


def _mutated(changes: list[tuple[float, Any]]) -> bytes:
    """The scorer's file with some values replaced, and its checksum made right again."""
    content = deepcopy(json.loads(_scorer()))
    content.pop("sha256")
    for where, value in changes:
        places = [*_places(content)]
        holder, key = places[int(where * len(places)) % len(places)]
        holder[key] = value
    try:
        return json.dumps({**content, "sha256": checked_json.digest(content)}).encode()
    except (ValueError, TypeError):
        return b""


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in _places(value[key])]


def _check_artefact(data: bytes) -> None:
    scorer = parse_scorer(data)
    engine = AnsweringEngine(lambda _prompt, _number: ("yes", 0.1))
    fitted = scorer.for_model(engine.model, "mlp", force=True)
    policy = "version: 1\nname: p\nrules:\n  - accept: {below: 0.5}\n  - abstain\non_error: abstain\n"
    outcome = Guard(engine, fitted, parse_policy(policy), force_scorer=True, template_options={}).ask("q")
    assert outcome.p_wrong is None or 0 <= outcome.p_wrong <= 1
    assert outcome.p_wrong is not None or outcome.action is Action.ABSTAIN


# -- templates -----------------------------------------------------------------------------------


def _check_template(template: str) -> None:
    assert len(render(template, [{"role": "user", "content": "x"}])) <= MAX_CHARACTERS


# -- tool calls ----------------------------------------------------------------------------------

_CALL_PIECES = (
    *('<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>', "<tool_call>", "</tool_call>", "[TOOL_CALLS]"),
    *("<function=add>", "<parameter=a>", "</parameter>", "</function>", "<|python_tag|>", "<｜tool▁call▁begin｜>"),
    *("<|channel|>commentary to=add<|message|>", "<arg_key>", "<arg_value>", "<think>", "</think>", "<|tool_call|>"),
    *("<|tool_call_begin|>", "`", "```", "~~~", "\n", "\n\n    ", "> ", "{}", "{", "}", "[", "]", '"', "'", "“", "”"),
    *("<code>", "</code>", "<!--", "-->", "add", " ", "NaN", "1e999", '"a": 1', "<pre x=1>", "~~", "\\begin{verbatim}"),
)


def _check_calls(text: str) -> None:
    from guard.engines.tool_calls import _FORMATS, parse_tool_calls

    for form in _FORMATS.values():
        answer = parse_tool_calls(text, ["add"], form)
        assert all(call["name"] == "add" and isinstance(call["args"], dict) for call in answer.calls)
        assert "NaN" not in json.dumps([call["args"] for call in answer.calls])
        inside = text.replace("`", "").replace("~", "")
        for around in ("```\n{}\n```", "<think>{}", "<!-- {}"):
            closed = inside.replace("</think>", "").replace("-->", "").replace("--&gt;", "")
            assert not parse_tool_calls(
                around.format("").replace("```\n\n```", "```\n" + closed + "\n```")
                if "`" in around
                else around.format(closed),
                ["add"],
                form,
            ).calls


# -- terminal ------------------------------------------------------------------------------------

_SIGNS = (
    *(
        "\x1b[31m",
        "\x1b]52;c;aGk=\x07",
        "\x9b2J",
        "\x90",
        "\r",
        "\x08",
        "\u202e",
        "\u2066",
        "\u200b",
        "\ufeff",
        "\ufe0f",
    ),
    *(
        "\U000e0041",
        "\u2028",
        "\x85",
        "\ud800",
        "\u061c",
        "a",
        "é",
        "👍",
        "👩\u200d💻",
        "[red]",
        "[/]",
        "\\x1b",
        "\n",
        "\t",
    ),
)


def _check_terminal(text: str) -> None:
    seen = visible(text)
    bad = [sign for sign in seen if unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") and sign not in "\n\t"]
    assert not bad
    formats = [sign for sign in seen if unicodedata.category(sign) == "Cf"]
    # Signs that are drawn, though Unicode calls them formats: Arabic number signs and their kin.
    assert all(
        "\u0600" <= sign <= "\u0605" or sign in "\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd" for sign in formats
    )
    assert "\n" not in one_line(text)
    assert "\t" not in one_line(text)
    assert json.loads(json_visible(json.dumps(text, ensure_ascii=False))) == text


# -- chat messages -------------------------------------------------------------------------------

_CONTROLS = ControlTexts(["<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]"])
_CONTENTS = _joined(
    ("<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<s>", "</s>", "[INST]", "<", "\ue000", "\ue001", "\n")
)
_TURNS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), _CONTENTS), min_size=1, max_size=5
)


def _controls(turns: Sequence[tuple[str, str]], note: str) -> int:
    template = "{{ note }}" + CHATML
    messages = tuple({"role": role, "content": text} for role, text in turns)
    asked = partial(render, template, bos_token="<s>", eos_token="</s>", options={"note": note})
    pieces = split_prompt(Prompt(messages=messages, template_options={"note": note}), template, _CONTROLS, asked)
    return sum(_CONTROLS.count(piece.text) for piece in pieces if piece.control)


def _check_chat(turns: list[tuple[str, str]]) -> None:
    note = turns[-1][1]
    assert _controls(turns, note) == _controls([(role, "x") for role, _ in turns], "y")


# -- answers, thoughts, graders ------------------------------------------------------------------

_ANSWERS = _joined(
    (
        *(mark for each in MARKS for mark in (each.opening, each.closing)),
        *(
            "<|channel|>analysis<|message|>",
            "<|channel|>final<|message|>",
            "<|end|>",
            "Paris",
            " ",
            "\n",
            "\u200b",
            "�",
        ),
    )
)


def _splitter(text: str) -> Splitter:
    return HarmonySplitter() if text.startswith("<|") else TaggedSplitter(MARKS)


def _check_thoughts(text: str) -> None:
    whole, pieces = _splitter(text), _splitter(text)
    at_once, by_signs = whole.finish(text), ""
    for take, sign in (*((pieces.push, sign) for sign in text), (pieces.finish, "")):
        before = pieces.retractions
        given = take(sign)
        by_signs = given if pieces.retractions > before else by_signs + given
    assert at_once == by_signs
    assert whole.reasoning == pieces.reasoning
    assert not any(at_once.lstrip().startswith(each.opening) for each in MARKS) or text.startswith("<|")
    assert len(without_thoughts(text)) <= len(text) + 1


_POLICY = "version: 1\nname: p\nrules:\n  - accept: {below: 0.5}\n  - abstain: {text: dunno}\non_error: abstain\n"


def _check_answer(text: str) -> None:
    text = text.encode(errors="replace").decode()
    for limit in (3, 2000):
        engine = AnsweringEngine(lambda _prompt, _number: (text, 0.05), model=scripted_model(context_tokens=4000))
        outcome = Guard(engine, confidence_scorer(engine.model), parse_policy(_POLICY)).ask(
            "q", limits=Limits(max_tokens=limit)
        )
        if outcome.action is Action.ACCEPT:
            answer, last = outcome.answer or "", outcome.attempts[-1]
            assert last.finish_reason != "length"
            assert any(unicodedata.category(sign)[0] in "LNPS" for sign in answer) or unicodedata.normalize(
                "NFC", answer
            )
            assert not answer.lstrip().startswith("<think>")


_SAID = _joined(
    (
        *("Paris", "5", "A", "B", "is", "not", "The answer is", "\\boxed{", "}", "$", ",", ".", "-", "%", "10^", "1/2"),
        *(" ", "\n", "?", "**", "twenty-one", "十", "and", "or", "'", "：", "\\frac", "{", "½", "e5", "°", "9" * 400),
    )
)


def _check_graders(text: str) -> None:
    question = Question(
        "q", "Capital?", ("Paris",), choices=("Paris", "Rome"), answer_index=0, meta={"answer_regex": "Paris"}
    )
    number = Question("n", "How many?", ("5",))
    one_sentence = re.sub(r"[.\n\r?!。！？]", " ", text)  # behind a full stop another answer may stand
    for name, grader in GRADERS.items():
        asked = number if name == "number" else question
        assert isinstance(grader(asked, text), bool)
        assert name not in ("text", "number") or not grader(asked, f"It is not {one_sentence}")


#: All that can be attacked, by name.
TARGETS = {
    "policies": Target(
        st.one_of(
            _joined(_WORDS),
            st.builds("".join, st.lists(st.deferred(lambda: st.sampled_from(_policy_lines())), max_size=40)),
        ),
        _check_policy,
    ),
    "data": Target(st.one_of(_ROWS, st.binary(max_size=60)), _check_data),
    "artefacts": Target(
        st.one_of(st.lists(st.tuples(st.floats(0, 0.999), _JSON), max_size=3).map(_mutated), st.binary(max_size=60)),
        _check_artefact,
    ),
    "templates": Target(nasty_templates, _check_template),
    "tool-calls": Target(_joined(_CALL_PIECES), _check_calls),
    "terminal": Target(_joined(_SIGNS), _check_terminal),
    "chat": Target(_TURNS, _check_chat),
    "thoughts": Target(_ANSWERS, _check_thoughts),
    "answers": Target(st.one_of(_ANSWERS, _joined(_SIGNS)), _check_answer),
    "graders": Target(_SAID, _check_graders),
}


def attack(target: Target, value: Any) -> None:
    """Try one input. An error of guard's own is an answer too; any other is a fault."""
    try:
        target.check(value)
    except (GuardError, InputError, ChatTemplateError) as error:
        str(error).encode(errors="strict")
