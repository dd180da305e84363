"""What a case shows of the answer's doubt: words, sentences and layers, and earlier cases like it."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from console_pages import MadeConsole
from made_cases import PLACES, SPANNED, UNLIKE, make_escalation, make_long, make_spanned
from moved_clock import MovedClock

from guard.console.layers import build_panel
from guard.console.remembered import Remembered
from guard.console.shading import shade
from guard.records import Escalation, Generation, Sampling
from guard.review.answer_signals import unpack_map
from guard.review.records import Review
from guard.review.typical_maps import FEWEST, TypicalMaps
from guard.review_terms import ReviewTerms

HOSTILE = "<b>bold</b> \u202egnol\u202c " + "Donaudampfschifffahrt" * 12 + " & 'end'"


def a_map(seed: int, layers: int = 6) -> Any:
    return np.random.default_rng(seed).random((layers, layers), np.float32)


def with_map(number: int, **changes: Any) -> Escalation:
    """A case whose last attempt has a map of layers."""
    case = make_escalation(number, **{"scorer": "sha256:one", **changes})
    last = case.attempts[-1]
    assert last.score is not None
    return replace(case, attempts=(replace(last, score=replace(last.score, layer_map=a_map(number))),))


# -- words and sentences -----------------------------------------------------------------------


def tokens_of(*pieces: tuple[str, float]) -> tuple[str, list[list[float]]]:
    """A text, and its tokens as a case keeps them."""
    text, kept = "", []
    for piece, probability in pieces:
        text += piece
        kept.append([len(text), float(np.log(probability))])
    return text, kept


def test_a_word_has_the_product_of_its_tokens_probabilities() -> None:
    text, kept = tokens_of(("Oua", 0.9), ("gadougou", 0.5), (",", 0.1), (" 16", 0.8), ("32", 0.8), (".", 0.2))
    (part,) = shade(text, [{"tokens": kept}]).parts
    words = {piece.text: (piece.level, piece.probability) for piece in part.pieces if piece.probability is not None}
    assert {word: level for word, (level, _) in words.items()} == {"Ouagadougou": 3, "1632": 2}
    np.testing.assert_allclose([words["Ouagadougou"][1], words["1632"][1]], [0.45, 0.64])  # type: ignore[arg-type]


def test_the_pieces_are_the_answer_to_the_last_character() -> None:
    for text in (HOSTILE, "", " ", "今日は雨です。明日も雨でしょう", "a\r\nb"):
        kept = [[end, -0.5] for end in range(1, len(text) + 4, 3)]
        spans = [
            {"start": 0, "end": len(text) // 2, "p_wrong": 0.2},
            {"start": len(text) // 2, "end": 900, "p_wrong": 1},
        ]
        for attempt in ({}, {"tokens": kept}, {"tokens": kept, "spans": spans}, {"spans": spans}):
            shading = shade(text, [attempt])
            assert "".join(piece.text for part in shading.parts for piece in part.pieces) == text


def test_a_text_without_spaces_is_shaded_token_by_token() -> None:
    text, kept = tokens_of(*((letter, 0.99) for letter in "今日は雨です明日も"), ("晴", 0.2), ("れ", 0.99))
    assert [piece.text for _, piece in shade(text, [{"tokens": kept}]).unsure] == ["晴"]


def test_sentences_have_levels_of_their_own() -> None:
    spans = [{"start": 4 * at, "end": 4 * at + 3, "p_wrong": p} for at, p in enumerate((0.1, 0.3, 0.6, 0.9))]
    shading = shade("One Two Thr Fou", [{"spans": spans}])
    assert [(part.p_wrong, part.level) for part in shading.parts] == [(0.1, 1), (0.3, 2), (0.6, 3), (0.9, 4)]
    assert shading.sentences
    assert not shading.words


def test_what_is_damaged_shades_nothing() -> None:
    for kept in ("text", [[1]], [["x", 0.1]], [{"end": 1}], 7, None):
        shading = shade("An answer", [{"tokens": kept}])
        assert not shading.words
        assert [piece.level for part in shading.parts for piece in part.pieces] == [0]


def test_a_case_keeps_the_tokens_of_its_answer(console: MadeConsole) -> None:
    """A thought and an end token write nothing; two tokens that write one character count as one."""
    offsets = np.array([[0, 0], [0, 5], [5, 6], [5, 6], [6, 11], [11, 11]], np.int32)
    logprobs = np.log(np.array([0.1, 0.9, 0.5, 0.5, 0.2, 0.1], np.float32))
    generation = Generation(
        "Paris\u20ac1632!", (1, 2, 3, 4, 5, 6), logprobs, logprobs, logprobs, 3, "stop", Sampling(), 0, 0
    )
    case = make_escalation(1, answer=generation.text)
    attempt = replace(case.attempts[-1], answer=generation.text, generation=replace(generation, offsets=offsets))
    review = console.store.add(replace(case, attempts=(attempt,)))
    kept = console.store.review(review.id).attempts[-1]["tokens"]
    assert [end for end, _ in kept] == [5, 6, 11]
    np.testing.assert_allclose(np.exp([value for _, value in kept]), [0.9, 0.25, 0.2], rtol=1e-3)
    page = console.signed_in("mira").get(f"/case/{review.id}").text
    assert '<span class="w u4">1632</span>' in page
    assert "Unsure words as a table" in page
    blind = replace(case, attempts=(attempt,), decision_id="b", route="b", terms=ReviewTerms(reviews=2))
    assert 'class="w ' not in console.signed_in("mira").get(f"/case/{console.store.add(blind).id}").text


# -- layers ------------------------------------------------------------------------------------


def test_a_map_is_kept_with_the_case_to_three_digits(console: MadeConsole) -> None:
    review = console.store.add(with_map(3))
    kept = unpack_map(console.store.review(review.id).attempts[-1]["layer_map"])
    np.testing.assert_allclose(kept, np.log(a_map(3) + 1e-6), rtol=2e-3, atol=2e-3)
    assert [unpack_map(each) for each in (None, {}, {"layers": 2, "log": "AAAA"}, {"layers": 1, "log": "!"})] == [
        None
    ] * 4


def decide(console: MadeConsole, numbers: range, right: bool) -> None:
    for number in numbers:
        review = console.store.add(with_map(number))
        if right:
            console.store.approve(review.id, reviewer="ann")
        else:
            console.store.reject(review.id, reviewer="ann")


def test_typical_maps_are_the_means_of_reviewed_answers(console: MadeConsole) -> None:
    clock, mira = MovedClock(console.store), console.signed_in("mira")
    decide(console, range(100, 100 + FEWEST), right=True)
    decide(console, range(200, 200 + FEWEST - 1), right=False)
    review = console.store.add(with_map(1))
    page = mira.get(f"/case/{review.id}").text
    assert "What the layers say" in page
    assert "0 right and 0 wrong ones have a map" in page  # all of them can still be undone

    clock.move(60)
    console.app.state.desk.typical._kept.clear()
    page = mira.get(f"/case/{review.id}").text
    assert f"mean of {FEWEST} reviewed answers" in page
    assert "Typical right" in page
    assert "Typical wrong" not in page
    assert f"{FEWEST} right and {FEWEST - 1} wrong ones have a map" in page
    assert "How far each layer is from typical right answers" in page


def test_the_panel_says_how_far_each_layer_is() -> None:
    rights = np.log(np.stack([a_map(seed) for seed in range(20)]) + 1e-6)
    own = rights.mean(axis=0)
    own[2] += 4
    own[:, 2] += 4
    spread = np.full(6, 0.5, np.float32)
    panel = build_panel(own, TypicalMaps(rights.mean(axis=0), None, 20, 0, spread), 0.7)
    assert panel.unlike == 1
    assert "The furthest of 6 layers is 3 with +8.0." in str(panel.bars)
    assert [figure.title for figure in panel.maps] == ["This answer", "Typical right"]


def test_without_a_map_there_is_no_panel(console: MadeConsole) -> None:
    review = console.store.add(make_escalation(1))
    assert "What the layers say" not in console.signed_in("mira").get(f"/case/{review.id}").text


def test_maps_of_another_size_are_not_compared(console: MadeConsole) -> None:
    typical = TypicalMaps(np.zeros((3, 3), np.float32), np.zeros((3, 3), np.float32), 12, 12, np.ones(3, np.float32))
    panel = build_panel(np.zeros((6, 6), np.float32), typical, None)
    assert (len(panel.maps), panel.bars) == (1, None)


# -- similar cases -----------------------------------------------------------------------------

QUESTIONS = (
    "How many hours should pass between two doses of paracetamol?",
    "How many doses of paracetamol may a child take within 24 hours?",
    "What is the capital of Burkina Faso?",
)


def decided(console: MadeConsole, number: int, **changes: Any) -> Review:
    review = console.store.add(make_escalation(number, **changes))
    return console.store.reject(review.id, reviewer="ann", note=f"note {number}")


def test_similar_decided_cases_are_shown_with_their_verdicts(console: MadeConsole) -> None:
    clock = MovedClock(console.store)
    earlier = [decided(console, number, question=question) for number, question in enumerate(QUESTIONS)]
    waiting = console.store.add(make_escalation(50, question="Hours between two doses of paracetamol?"))
    console.store.add(make_escalation(51, question="Are two hours between two doses of paracetamol enough?"))
    mira = console.signed_in("mira")
    assert "Similar earlier cases" not in mira.get(f"/case/{waiting.id}").text  # they can still be undone
    clock.move(60)
    page = mira.get(f"/case/{waiting.id}").text
    shown = page[page.index("Similar earlier cases") : page.index("History")]
    assert re.findall(r'href="/case/(\w+)"', shown) == [earlier[0].id, earlier[1].id]
    assert "rejected" in shown
    assert "note 0" in shown


def test_similar_cases_are_of_routes_that_the_reader_sees(console: MadeConsole) -> None:
    clock = MovedClock(console.store)
    decided(console, 1, question=QUESTIONS[0], route="law")
    clock.move(60)
    waiting = console.store.add(make_escalation(50, question=QUESTIONS[0]))
    assert "Similar earlier cases" in console.signed_in("mira").get(f"/case/{waiting.id}").text
    only = console.signed_in("jonas", ("reviewer:medical",)).get(f"/case/{waiting.id}").text
    assert "Similar earlier cases" not in only


def test_a_count_that_took_long_is_shown_for_some_seconds() -> None:
    now = [0.0]
    remembered: Remembered[int] = Remembered(10, clock=lambda: now[0])

    def made(value: int, seconds: float) -> int:
        now[0] += seconds
        return value

    assert remembered.get("a", lambda: made(1, 0.001), dear_s=0.01) == 1
    assert remembered.get("a", lambda: made(2, 0.5), dear_s=0.01) == 2
    assert remembered.get("a", lambda: made(3, 0.5), dear_s=0.01) == 2
    now[0] += 10
    assert remembered.get("a", lambda: made(4, 0.5), dear_s=0.01) == 4


# -- the form of an answer, and all of its sentences ------------------------------------------


def of_the_form(page: str) -> list[bool]:
    """Whether a page shows why an answer is unlike others, how attempts ended, and whether anything is wrong in it."""
    words = " ".join(html.unescape(page).split())
    shown = (UNLIKE, "Unlike the answers of the calibration", "cut at its token limit", "by itself", "Ended")
    return [each in words for each in (*shown, "Is anything wrong in it?", '<span class="v">0.94</span>')]


def test_a_case_says_how_attempts_ended_why_the_answer_is_unlike_others_and_whether_anything_is_wrong(
    console: MadeConsole,
) -> None:
    review = console.store.add(make_long(1))
    page = console.signed_in("mira").get(f"/case/{review.id}").text
    assert of_the_form(page) == [True] * 7
    assert "More unusual than" not in page
    usual = console.signed_in("mira").get(f"/case/{console.store.add(with_map(2, route='other')).id}").text
    assert of_the_form(usual) == [False, False, False, False, True, False, False]


def test_a_blind_reviewer_sees_neither_the_form_nor_what_all_sentences_say(console: MadeConsole) -> None:
    review = console.store.add(make_long(1, terms=ReviewTerms(reviews=2)))
    assert of_the_form(console.signed_in("mira").get(f"/case/{review.id}").text) == [False] * 7
    console.store.reject(review.id, reviewer="mira")
    assert of_the_form(console.signed_in("jonas").get(f"/case/{review.id}").text) == [False] * 7


# -- blind verdicts ----------------------------------------------------------------------------


def test_nothing_leads_a_blind_verdict(console: MadeConsole) -> None:
    clock = MovedClock(console.store)
    decide(console, range(100, 100 + FEWEST), right=True)
    decided(console, 7, question=QUESTIONS[0])
    clock.move(60)
    case = with_map(1, question=QUESTIONS[0], terms=ReviewTerms(reviews=2))
    seen = {}
    for name, terms in (("blind", ReviewTerms(reviews=2)), ("open", ReviewTerms())):
        review = console.store.add(replace(case, terms=terms, decision_id=name, route=name))
        seen[name] = html.unescape(console.signed_in(name).get(f"/case/{review.id}").text)
    leads = ("0.75", "rules[1]", "too likely wrong", "What the layers say", "Similar earlier cases", 'class="heat"')
    assert [lead in seen["open"] for lead in leads] == [True] * 6
    assert [lead in seen["blind"] for lead in (*leads, "note 7", 'class="w ', "p(wrong)", "Shade")] == [False] * 10


def test_hostile_questions_and_notes_of_similar_cases_stay_text(console: MadeConsole) -> None:
    clock = MovedClock(console.store)
    question = "Is paracetamol <script>alert(1)</script> safe?"
    review = console.store.add(make_escalation(1, question=question))
    console.store.reject(review.id, reviewer="ann", note=HOSTILE)
    clock.move(60)
    waiting = console.store.add(make_escalation(2, question=question))
    page = console.signed_in("mira").get(f"/case/{waiting.id}").text
    assert "Similar earlier cases" in page
    assert "<script>alert" not in page
    assert "<b>bold" not in page
    assert "U+202E" in page


# -- marks of sentences ------------------------------------------------------------------------

SECOND, THIRD = "mark-10-25", "mark-28-41"


def fields(page: str) -> dict[str, str]:
    """The marks that are chosen in a page's form."""
    found = re.findall(r'name="(mark-[\d-]+)" value="(\w*)" form="decide"( checked)?', page)
    return {name: value for name, value, checked in found if checked}


def test_the_mark_of_a_list_item_stands_with_it() -> None:
    shading = shade(SPANNED, make_spanned_attempts())
    lines = ["".join(piece.text for piece in part.pieces) for part in shading.parts]
    assert lines == ["Norway:\n", "- Capital: Bergen\n", "- Founded: 1040"]
    assert [part.place for part in shading.parts] == [*PLACES]


def make_spanned_attempts() -> list[dict[str, Any]]:
    return [{"spans": [{"start": start, "end": end, "p_wrong": 0.1} for start, end in PLACES]}]


def test_marks_are_kept_with_a_verdict_and_shown_with_it(console: MadeConsole) -> None:
    mira = console.signed_in("mira")
    review = console.store.add(make_spanned())
    assert fields(mira.get(f"/case/{review.id}").text) == {"mark-0-7": "", SECOND: "", THIRD: ""}
    mira.post(f"/case/{review.id}/reject", data={"note": "no", "mark-0-7": "", SECOND: "wrong", THIRD: "right"})
    decided = console.store.review(review.id)
    assert [(mark.place, mark.wrong) for mark in decided.span_marks] == [(PLACES[1], True), (PLACES[2], False)]
    page = mira.get(f"/case/{review.id}").text
    assert re.findall(r'data-mark="(\w+)"', page) == ["wrong", "right"]
    assert "rejected it, 1 span marked wrong, 1 right" in page
    assert fields(page) == {}
    mira.post(f"/case/{review.id}/undo")
    assert "data-mark=" not in mira.get(f"/case/{review.id}").text
    edited = {"answer": "Oslo", "draft": "wrong", SECOND: "wrong"}
    assert f"{SECOND}" in mira.get(f"/case/{review.id}?edit=1").text
    mira.post(f"/case/{review.id}/edit", data=edited)
    assert [mark.place for mark in console.store.review(review.id).span_marks] == [PLACES[1]]


def test_an_approval_of_a_wrong_sentence_is_not_saved_and_keeps_the_marks(console: MadeConsole) -> None:
    mira, review = console.signed_in("mira"), console.store.add(make_spanned())
    mira.get(f"/case/{review.id}")
    page = mira.post(f"/case/{review.id}/approve", data={SECOND: "wrong", THIRD: "right"})
    assert page.status_code == 422
    assert "cannot be approved with a span marked wrong" in page.text
    assert fields(page.text) == {"mark-0-7": "", SECOND: "wrong", THIRD: "right"}
    assert console.store.review(review.id).reviewer is None


@pytest.mark.parametrize(
    "form", [{"mark-1-2": "wrong"}, {"mark-x": "right"}, {SECOND: "maybe"}, {"mark-10-25-3": "wrong"}]
)
def test_a_mark_that_the_page_does_not_offer_is_refused(console: MadeConsole, form: dict[str, str]) -> None:
    mira, review = console.signed_in("mira"), console.store.add(make_spanned())
    mira.get(f"/case/{review.id}")
    page = mira.post(f"/case/{review.id}/reject", data=form)
    assert page.status_code == 422
    assert "Not saved" in page.text
    assert console.store.review(review.id).reviewer is None


def test_a_blind_reviewer_marks_sentences_and_sees_no_score_and_no_marks(console: MadeConsole) -> None:
    review = console.store.add(make_spanned(terms=ReviewTerms(reviews=2)))
    console.signed_in("mira").post(f"/case/{review.id}/reject", data={SECOND: "wrong"})
    jonas = console.signed_in("jonas")
    for place in (f"/case/{review.id}", f"/case/{review.id}?edit=1"):
        page = jonas.get(place).text
        assert fields(page) == {"mark-0-7": "", SECOND: "", THIRD: ""}
        said = ('data-mark="', "span marked", "0.90", "p(wrong)", 'class="gut"', 'data-level="4"', "Shade")
        assert [each for each in said if each in page] == []
    jonas.post(f"/case/{review.id}/reject", data={THIRD: "right"})
    assert len(console.store.review(review.id).span_marks) == 2


def test_of_two_opinions_the_chosen_ones_marks_count(console: MadeConsole) -> None:
    review = console.store.add(make_spanned(terms=ReviewTerms(reviews=2)))
    console.signed_in("mira").post(f"/case/{review.id}/approve", data={SECOND: "right"})
    console.signed_in("jonas").post(f"/case/{review.id}/reject", data={SECOND: "wrong"})
    ana = console.signed_in("ana", ("lead",))
    page = ana.get(f"/case/{review.id}").text
    two = page[page.index("Two reviewers, two verdicts") : page.index("<aside")]
    assert re.findall(r'class="tag tag-\w+">(wrong|right)</span> <span class="foreign" dir="auto">([^<]+)<', two) == [
        *(("right", "Capital: Bergen"), ("wrong", "Capital: Bergen")),
    ]
    ana.post(f"/case/{review.id}/adjudicate", data={"which": "2"})
    (mark,) = console.store.review(review.id).span_marks
    assert (mark.place, mark.wrong) == (PLACES[1], True)


def test_nobody_marks_without_the_case(console: MadeConsole) -> None:
    review = console.store.add(make_spanned())
    console.signed_in("mira").get(f"/case/{review.id}")
    for who, role in (("jonas", "reviewer"), ("vera", "viewer")):
        reader = console.signed_in(who, (role,))
        assert fields(reader.get(f"/case/{review.id}").text) == {}
        reader.post(f"/case/{review.id}/reject", data={SECOND: "wrong"})
    assert console.store.review(review.id).span_marks == ()


def test_an_answer_of_many_sentences_fits_into_the_form(console: MadeConsole) -> None:
    mira, review = console.signed_in("mira"), console.store.add(make_spanned())
    mira.get(f"/case/{review.id}")
    unmarked = {f"mark-{at}-{at + 1}": "" for at in range(100, 1900)}
    mira.post(f"/case/{review.id}/reject", data={**unmarked, SECOND: "wrong"})
    assert len(console.store.review(review.id).span_marks) == 1
