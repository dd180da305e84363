"""Thoughts are split off from answers by the models' own marks, in any pieces, and take no part in what follows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_observer import Recording
from scripted import END, AnsweringEngine, confidence_scorer, scripted_model

from guard.engines.batch import Feed, PassRow
from guard.engines.detokenizer import BytesDetokenizer, Detokenizer
from guard.engines.thinking import HarmonySplitter, Splitter, TaggedSplitter, read_thinking, without_thoughts
from guard.policy.policy import parse_policy
from guard.records import Floats, Limits, Prompt
from guard.runtime.guard import Guard

POLICY = parse_policy("""
version: 1
name: test
rules:
  - accept: {below: 0.5}
  - abstain: {text: I do not know.}
on_error:
  abstain: {text: It failed.}
""")

HARMONY = (
    "<|channel|>analysis<|message|>Lyon? No.<|end|><|start|>assistant<|channel|>final<|message|>Paris is the capital."
)


def split(text: str, sizes: Sequence[int], splitter: Splitter) -> tuple[str, str | None]:
    """Answer and thought of a text that comes in pieces of these sizes."""
    answer, at, pieces = "", 0, []
    for size in sizes:
        pieces.append(text[at : at + size])
        at += size
    for take, piece in (*((splitter.push, each) for each in (*pieces, text[at:])), (splitter.finish, "")):
        before = splitter.retractions
        given = take(piece)
        answer = given if splitter.retractions > before else answer + given
    return answer, splitter.reasoning


SIZES = st.lists(st.integers(1, 5), max_size=60)


@settings(max_examples=40)
@given(sizes=SIZES)
@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        ("Paris", "Paris", None),
        ("  Paris ", "  Paris ", None),
        ("<think>Lyon? No.</think>\n\nParis", "Paris", "Lyon? No."),
        ("\n<think>\nLyon?\n</think>Paris\n", "Paris\n", "Lyon?"),
        ("<think>a</think>\n<think>b</think>c", "c", "a\n\nb"),
        ("<think></think>Paris", "Paris", None),
        ("<think>Is it Paris? Let me", "", "Is it Paris? Let me"),
        ("<think>Paris.</think>\n\n", "", "Paris."),
        ("Write `<think>` first.", "Write `<think>` first.", None),
        ("<thin", "<thin", None),
        ("<think", "<think", None),
        ("1 < 2", "1 < 2", None),
        ("", "", None),
    ],
)
def test_tags_are_found_however_the_text_comes(text: str, answer: str, thought: str | None, sizes: list[int]) -> None:
    assert split(text, sizes, TaggedSplitter()) == (answer, thought)


@settings(max_examples=40)
@given(sizes=SIZES)
@pytest.mark.parametrize(
    ("text", "answer", "thought"),
    [
        (HARMONY, "Paris is the capital.", "Lyon? No."),
        ("<|channel|>final<|message|>Paris", "Paris", None),
        ("<|channel|>analysis<|message|>Is it Par", "", "Is it Par"),
        ("<|channel|>analysis<|message|>Done.<|end|>", "", "Done."),
        ("<|channel|>ana", "", None),
        ("Paris", "Paris", None),
        (
            "<|channel|>commentary<|message|>Let me look.<|end|><|start|>assistant<|channel|>final<|message|>Paris",
            "Let me look.\n\nParis",
            None,
        ),
        (
            "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
            'to=functions.add <|constrain|>json<|message|>{"a": 1}<|call|>',
            '<|channel|>commentary to=functions.add<|message|>{"a": 1}',
            "Look.",
        ),
        (
            '<|start|>assistant to=functions.add<|channel|>commentary json<|message|>{"a": 1}',
            '<|channel|>commentary to=functions.add<|message|>{"a": 1}',
            None,
        ),
        ("<|channel|>analysis to=python<|message|>print(1)", "", "print(1)"),
    ],
)
def test_channels_are_distinguished_however_the_text_comes(
    text: str, answer: str, thought: str | None, sizes: list[int]
) -> None:
    assert split(text, sizes, HarmonySplitter()) == (answer, thought)


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "<thi", "nk>", " ", "\n", "\r", "a", "a.", "<", "/", "```"])).map(
        "".join
    ),
    SIZES,
)
def test_the_pieces_make_no_difference(text: str, sizes: list[int]) -> None:
    whole = TaggedSplitter()
    assert split(text, sizes, TaggedSplitter()) == (whole.finish(text), whole.reasoning)


CLOSED = [
    ("Lyon? No.\n</think>\n\nParis", "Paris", "Lyon? No."),
    ("Lyon? No.</think>\nParis", "Paris", "Lyon? No."),
    ("Lyon? No.\n  </think> \t\r\nParis", "Paris", "Lyon? No."),
    ("Lyon?\n</think>\nNo.\n</think>\nParis", "Paris", "Lyon?\n\nNo."),
    ("Lyon?\n</think>\n<think>No.</think>Paris", "Paris", "Lyon?\n\nNo."),
    ("<think>a</think>Lyon?\n</think>\nParis", "Paris", "a\n\nLyon?"),
    ("Is it Paris?\n</think>", "", "Is it Paris?"),
    ("Is it Paris?\n</think>\n", "", "Is it Paris?"),
    ("里昂？不。</think>\n巴黎", "巴黎", "里昂？不。"),
    ("Lyon?\n[/THINK]\nParis", "Paris", "Lyon?"),
]

#: Answers that write the mark.
QUOTED = [
    "</think>",
    "Close it with </think> and go on.",
    "The tag is </think>\nNo more.",
    "Write\n<think>\na\n</think>\nThen answer.",
    "Write\n```\na\n</think>\n```\nThen answer.",
    "a\n</think>b",
    "a\n</thin",
    "a\n</thinking>\nb",
]


@settings(max_examples=40)
@given(sizes=SIZES)
@pytest.mark.parametrize(("text", "answer", "thought"), [*CLOSED, *((text, text, None) for text in QUOTED)])
def test_a_thought_that_only_plain_text_closes_is_taken_out_and_a_quoted_mark_is_not(
    text: str, answer: str, thought: str | None, sizes: list[int]
) -> None:
    splitter = read_thinking("", lambda _: None).splitter("<|im_start|>assistant\n")
    assert split(text, sizes, splitter) == (answer, thought)
    assert bool(splitter.retractions) == (thought is not None)


@pytest.mark.parametrize(
    ("template", "prompt_end", "text", "answer", "thought"),
    [
        ("[THINK]", "[/INST]", "[THINK]Hm.[/THINK]Paris", "Paris", "Hm."),
        ("<seed:think>", "assistant\n", "<seed:think>Hm.</seed:think>Paris", "Paris", "Hm."),
        ("<|channel>thought", "<|turn>model\n", "<|channel>thought\nHm.\n<channel|>Paris", "Paris", "Hm."),
        ("<|START_THINKING|>", "", "<|START_THINKING|>Hm.<|END_THINKING|>Paris", "Paris", "Hm."),
        ("<thought>", "", "<thought>Hm.</thought>Paris", "Paris", "Hm."),
        ("<thought>", "", "Hm.\n</thought>\nParis", "Paris", "Hm."),
        ("", "", "Hm.\n</thought>\nParis", "Hm.\n</thought>\nParis", None),
        ("", "", "[THINK]Hm.[/THINK]Paris", "Paris", "Hm."),
        ("", "", "<|START_THINKING|>Hm.<|END_THINKING|>Paris", "Paris", "Hm."),
        ("", "", "<thought>Hm.</thought>Paris", "<thought>Hm.</thought>Paris", None),
        ("", "<|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nParis", "Paris", "Hm."),
        ("", "<｜Assistant｜><think>\n", "Hm. Is it", "", "Hm. Is it"),
        ("", "<|im_start|>assistant\n<think>\n\n</think>\n\n", "Paris", "Paris", None),
        ("[THINK]", "[THINK]", "Hm.[/THINK]Paris", "Paris", "Hm."),
        ("<|channel|><|message|><|start|>", "<|start|>assistant", HARMONY, "Paris is the capital.", "Lyon? No."),
        ("<|channel|><|message|><|start|>", "<|start|>assistant<|channel|>final<|message|>", "Paris", "Paris", None),
        ("<|channel|><|message|><|start|>", "<|start|>assistant<|channel|>analysis<|message|>", "Hm.", "", "Hm."),
    ],
)
def test_the_template_says_which_marks_there_are_and_whether_one_is_open(
    template: str, prompt_end: str, text: str, answer: str, thought: str | None
) -> None:
    splitter = read_thinking(template, lambda _: None).splitter(prompt_end)
    assert split(text, [1] * len(text), splitter) == (answer, thought)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nParis\n</think>\nLyon", "Lyon"),
        ("<think>Is it Paris?", ""),
        ("Is it Paris? Or Rome?\n</think>\n\nLyon", "Lyon"),
        ("[THINK]Paris[/THINK]Lyon", "Lyon"),
        (HARMONY, "Paris is the capital."),
        ("Paris", "Paris"),
        ("Write <think> and </think>.", "Write <think> and </think>."),
    ],
)
def test_thoughts_in_given_texts_are_left_out(text: str, answer: str) -> None:
    assert without_thoughts(text) == answer


# -- in the decoding loop ------------------------------------------------------------------------


class MarkedEngine(AnsweringEngine):
    """Has tokens of their own for marks, which its detokenizer leaves out, as those of real models do."""

    tokens: tuple[str, ...] = ("<think>", "</think>")
    template = ""

    @property
    def chat_template(self) -> str:
        return self.template

    def _token_id(self, text: str) -> int | None:
        return 300 + self.tokens.index(text) if text in self.tokens else None

    def encode(self, prompt: Prompt) -> list[int]:
        return self.encode_marked(prompt.question)

    def encode_marked(self, text: str) -> list[int]:
        for number, mark in enumerate(self.tokens):
            text = text.replace(mark, chr(0xE000 + number))
        ids: list[int] = []
        for character in text:
            ids += [300 + ord(character) - 0xE000] if ord(character) >= 0xE000 else [*character.encode()]
        return ids

    def _detokenizer(self) -> Detokenizer:
        return BytesDetokenizer(lambda token: bytes([token]) if token < END else b"")

    def _evaluate(self, feeds: Sequence[Feed]) -> Sequence[PassRow]:
        (feed,) = feeds
        self.passes = 1 if feed.position == 0 else self.passes + 1
        return [self]

    def logits(self) -> Floats:
        script = [*self.encode_marked(self.script(Prompt.raw(""), 0)[0]), END]
        logits = np.zeros(400, np.float32)
        logits[script[min(self.passes - 1, len(script) - 1)]] = 9.0
        return logits

    def activations(self) -> Floats:
        return np.random.default_rng(self.passes).normal(size=(3, 8)).astype(np.float32)


def engine_saying(text: str, kind: type[AnsweringEngine] = AnsweringEngine) -> AnsweringEngine:
    return kind(lambda prompt, number: (text, 0.05), model=scripted_model(context_tokens=4000))


@pytest.mark.parametrize("kind", [AnsweringEngine, MarkedEngine])
@pytest.mark.parametrize("gap", ["", "\n\n"])
def test_only_the_answers_tokens_are_observed(kind: type[AnsweringEngine], gap: str) -> None:
    plain, thinking = Recording(), Recording()
    engine_saying("Paris", kind).generate(Prompt.raw("q"), observer=plain)
    answer = engine_saying(f"<think>Lyon?</think>{gap}Paris", kind).generate(Prompt.raw("q"), observer=thinking)
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("Paris", "Lyon?", "stop")
    assert len(thinking.seen) == len(plain.seen) == len("Paris") + 1
    assert answer.in_answer is not None
    assert answer.in_answer.tolist() == [False] * (len(answer.token_ids) - 6) + [True] * 6
    assert answer.answer_start == len(answer.token_ids) - 6
    # The layers are those of the passes that chose these tokens.
    every = [thinking.seen[0], thinking.seen[-1]]
    assert all(np.isfinite(row).all() for row in every)
    assert bytes(answer.answer_token_ids[:-1]) == b"Paris"


def test_the_layers_kept_while_it_is_not_known_whether_a_thought_begins_are_the_right_ones() -> None:
    seen, expected = Recording(), Recording()
    engine_saying("<thing>", MarkedEngine).generate(Prompt.raw("q"), observer=seen)
    expected.seen = [np.random.default_rng(at + 1).normal(size=(3, 8)).astype(np.float32) for at in range(8)]
    np.testing.assert_array_equal(np.stack(seen.seen), np.stack(expected.seen))


def test_a_thought_that_is_never_closed_leaves_an_empty_answer() -> None:
    engine = engine_saying("<think>Is it Paris? Let me think about it for long")
    answer = engine.generate(Prompt.raw("q"), limits=Limits(max_tokens=len("<think>Is it Paris?")))
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("", "Is it Paris?", "length")
    assert answer.answer_start == len(answer.token_ids)


def test_streams_show_no_thought() -> None:
    pieces = list(engine_saying("<think>Lyon?</think>\n\nParis").stream(Prompt.raw("q")))
    assert "".join(piece.text for piece in pieces) == "Paris"
    assert pieces[-1].generation is not None
    assert pieces[-1].generation.reasoning == "Lyon?"


def test_a_stop_string_in_a_thought_stops_nothing() -> None:
    engine = engine_saying("<think>a\nb</think>Paris\nLyon")
    answer = engine.generate(Prompt.raw("q"), limits=Limits(stop=("\n",)))
    assert (answer.text, answer.finish_reason) == ("Paris", "stop_string")


def test_a_thought_that_the_prompt_opens_is_a_thought() -> None:
    answer = engine_saying("Lyon?\n</think>\n\nParis", MarkedEngine).generate(Prompt.raw("why?<think>\n"))
    assert (answer.text, answer.reasoning) == ("Paris", "Lyon?")


def test_an_answer_is_replayed_behind_the_thought_that_the_prompt_opens() -> None:
    seen = Recording()
    answer = engine_saying("", MarkedEngine).generate(Prompt.raw("why?<think>\n"), completion="Paris", observer=seen)
    assert (answer.text, answer.reasoning) == ("Paris", None)
    assert bytes(answer.answer_token_ids[:-1]) == b"Paris"
    assert len(seen.seen) == 6


def test_a_marks_own_token_opens_a_thought_within_an_answer_too() -> None:
    answer = engine_saying("Let me see. <think>Lyon?</think>Paris", MarkedEngine).generate(Prompt.raw("q"))
    assert (answer.text, answer.reasoning) == ("Let me see. Paris", "Lyon?")


def test_a_thought_that_ends_without_having_begun_is_taken_out_and_not_scored() -> None:
    guard = Guard(
        engine := engine_saying("Lyon? No.</think>Paris", MarkedEngine), confidence_scorer(engine.model), POLICY
    )
    answer = engine.generate(Prompt.raw("q"), observer=Recording())
    assert (answer.text, answer.reasoning) == ("Paris", "Lyon? No.")
    assert answer.capture_error is not None
    assert guard.ask("q").answer == "It failed."


@pytest.mark.parametrize("text", [text for text, answer, _ in CLOSED if answer])
def test_a_thought_that_plain_text_closes_is_not_scored(text: str) -> None:
    engine = engine_saying(text)
    guard = Guard(engine, confidence_scorer(engine.model), POLICY)
    limits = Limits(max_tokens=200)
    outcome = guard.ask("q", limits=limits)
    assert (outcome.answer, outcome.p_wrong) == ("It failed.", None)
    pieces = list(engine.stream(Prompt.raw("q"), limits=limits))
    assert pieces[-1].generation is not None
    assert "</think>" not in pieces[-1].generation.text


def test_a_thought_is_taken_back_where_the_capture_had_failed_before() -> None:
    """Before, an earlier failure of the capture left the thought in the answer."""

    class Failing(Recording):
        def observe(self, activations: Floats) -> None:
            raise ValueError("no layers")

    answer = engine_saying("Lyon? No.</think>Paris", MarkedEngine).generate(Prompt.raw("q"), observer=Failing())
    assert (answer.text, answer.reasoning, answer.capture_error) == ("Paris", "Lyon? No.", "no layers")


def test_channels_whose_tokens_the_detokenizer_leaves_out_are_distinguished() -> None:
    class Harmony(MarkedEngine):
        tokens = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>")

    answer = engine_saying(HARMONY, Harmony).generate(Prompt.raw("q<|start|>assistant"))
    assert (answer.text, answer.reasoning) == ("Paris is the capital.", "Lyon? No.")


# -- in a guarded call ---------------------------------------------------------------------------


def test_the_score_is_the_answers_and_the_thought_is_kept_beside_it() -> None:
    def guarded(text: str) -> Guard:
        engine = engine_saying(text)
        return Guard(engine, confidence_scorer(engine.model), POLICY)

    plain = guarded("Paris").ask("q", limits=Limits(max_tokens=99))
    outcome = guarded("<think>Lyon? No.</think>Paris").ask("q", limits=Limits(max_tokens=99))
    assert (outcome.answer, outcome.reasoning) == ("Paris", "Lyon? No.")
    assert outcome.attempts[0].reasoning == "Lyon? No."
    assert plain.reasoning is None
    assert outcome.p_wrong == pytest.approx(plain.p_wrong)


def test_a_cut_thought_has_no_score_and_what_it_thought_is_no_answer() -> None:
    engine = engine_saying("<think>It is Paris, I am certain of it")
    outcome = Guard(engine, confidence_scorer(engine.model), POLICY).ask("q", limits=Limits(max_tokens=30))
    assert (outcome.answer, outcome.action.value, outcome.p_wrong) == ("It failed.", "abstain", None)
    assert outcome.reasoning is None
