"""Spans that reviewers mark: a part of the verdict, hidden and undone with it, and labels for calibration."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from made_cases import PLACES, SPANNED, make_escalation, make_spanned
from moved_clock import MovedClock
from past_guard import run_past_guard

from guard.audit.tables import ENTRIES
from guard.errors import ReviewError, StoreError
from guard.policy.document import Retry
from guard.records import Action, Decision, Prompt
from guard.review import migrations
from guard.review.records import UNDO_S, ReviewStatus
from guard.review.span_marks import SpanMark, describe_marks, numbered_marks
from guard.review.store import Store
from guard.review_terms import AuditDraw, ReviewTerms

TWO = ReviewTerms(reviews=2)
WRONG, RIGHT = SpanMark(*PLACES[1], wrong=True), SpanMark(*PLACES[2], wrong=False)


def final_marks(store: Store, clock: MovedClock, **chosen: Any) -> list[dict[str, Any]]:
    """The rows of marks once nothing can be undone."""
    clock.move(UNDO_S)
    return list(store.marked(**chosen).rows)


# -- a part of the verdict ---------------------------------------------------------------------


def test_marks_are_kept_with_the_verdict_and_in_its_trail(store: Store) -> None:
    name = store.add(make_spanned()).id
    decided = store.reject(name, reviewer="ann", marks=[RIGHT, WRONG])
    assert decided.span_marks == store.review(name).span_marks == (WRONG, RIGHT)
    event = store.history(name)[-1]
    assert (event.what, event.span_marks) == ("rejected", (WRONG, RIGHT))
    assert describe_marks(event.span_marks) == "1 span marked wrong, 1 right"
    edited = store.edit(
        store.add(make_spanned(1)).id, answer="Oslo", draft="right", reviewer="ann", marks=iter([WRONG])
    )
    assert edited.span_marks == (WRONG,)
    approved = store.approve(store.add(make_spanned(2)).id, reviewer="ann", marks=[RIGHT])
    assert (approved.status, approved.span_marks) == (ReviewStatus.APPROVED, (RIGHT,))
    assert store.approve(store.add(make_spanned(3)).id, reviewer="ann").span_marks == ()


def test_marks_are_undone_with_their_verdict(store: Store) -> None:
    name = store.add(make_spanned()).id
    store.reject(name, reviewer="ann", marks=[WRONG])
    assert store.undo(name, reviewer="ann").span_marks == ()
    assert store.reject(name, reviewer="ann", marks=[RIGHT]).span_marks == (RIGHT,)
    assert [event.span_marks for event in store.history(name) if event.what == "rejected"] == [(WRONG,), (RIGHT,)]


@pytest.mark.parametrize(
    ("marks", "says"),
    [
        ([SpanMark(0, 6, True)], r"no span from 0 to 6: its spans are 1: 0-7, 2: 10-25, 3: 28-41"),
        ([SpanMark(8, 25, True)], "no span from 8 to 25"),
        ([WRONG, replace(WRONG, wrong=False)], "Span 2 has two marks"),
        ([RIGHT, RIGHT], "Span 3 has two marks"),
    ],
)
def test_a_mark_that_no_stored_span_has_is_refused_and_decides_nothing(
    store: Store, marks: list[SpanMark], says: str
) -> None:
    name = store.add(make_spanned()).id
    with pytest.raises(ReviewError, match=says):
        store.reject(name, reviewer="ann", marks=marks)
    assert store.review(name).status is ReviewStatus.PENDING
    assert [event.what for event in store.history(name)] == ["added"]


def test_an_answer_without_spans_cannot_be_marked(store: Store) -> None:
    name = store.add(make_escalation()).id
    with pytest.raises(ReviewError, match="no spans are stored with it"):
        store.reject(name, reviewer="ann", marks=[WRONG])


def test_an_answer_with_a_span_marked_wrong_is_not_approved(store: Store) -> None:
    name = store.add(make_spanned()).id
    with pytest.raises(ReviewError, match=r"cannot be approved.*the caller would get that span"):
        store.approve(name, reviewer="ann", marks=[WRONG])
    assert store.review(name).status is ReviewStatus.PENDING


def test_spans_are_numbered_in_their_order() -> None:
    attempts = [{"spans": [{"start": start, "end": end} for start, end in reversed(PLACES)]}]
    assert numbered_marks(attempts, wrong=[2], right=[3]) == (WRONG, RIGHT)
    for number in (0, 4, -1):
        with pytest.raises(ReviewError, match=f"no span number {number}"):
            numbered_marks(attempts, right=[number])


# -- two reviewers -----------------------------------------------------------------------------


def test_the_second_reviewer_does_not_see_the_marks_of_the_first(store: Store) -> None:
    name = store.add(make_spanned(terms=TWO)).id
    assert store.reject(name, reviewer="ann", marks=[WRONG]).span_marks == ()
    assert [event.span_marks for event in store.history(name)] == [(), ()]
    assert store.history(name, whole=True)[-1].span_marks == (WRONG,)
    settled = store.reject(name, reviewer="bob", marks=[RIGHT])
    assert (settled.status, settled.span_marks) == (ReviewStatus.REJECTED, (WRONG, RIGHT))


def test_a_span_that_two_reviewers_mark_differently_has_no_mark(store: Store) -> None:
    name = store.add(make_spanned(terms=TWO)).id
    store.reject(name, reviewer="ann", marks=[WRONG, RIGHT])
    settled = store.reject(name, reviewer="bob", marks=[replace(WRONG, wrong=False), RIGHT])
    assert settled.span_marks == (RIGHT,)
    assert [each.span_marks for each in store.opinions(name)] == [
        *((WRONG, RIGHT), (replace(WRONG, wrong=False), RIGHT)),
    ]
    assert store.undo(name, reviewer="bob").span_marks == ()


def test_of_a_disputed_case_the_third_persons_marks_count(store: Store) -> None:
    name = store.add(make_spanned(terms=TWO)).id
    store.reject(name, reviewer="ann", marks=[WRONG])
    assert store.approve(name, reviewer="bob", marks=[RIGHT]).disputed
    assert store.reject(name, reviewer="cyd").span_marks == ()


# -- past guard --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE reviews SET span_marks = '[]' WHERE decision_id = 'decision-0'",
        "UPDATE reviews SET span_marks = NULL WHERE decision_id = 'decision-1'",
        "UPDATE reviews SET span_marks = '[]' WHERE decision_id = 'decision-1'",
        "UPDATE review_events SET span_marks = NULL",
    ],
)
def test_the_database_refuses_marks_that_are_not_in_the_trail(store: Store, statement: str) -> None:
    store.add(make_spanned(0))
    decided = store.reject(store.add(make_spanned(1)).id, reviewer="ann", marks=[WRONG])
    with pytest.raises(StoreError, match=r"not in the audit trail|append-only|cannot be changed"):
        run_past_guard(store, statement)
    assert store.review("decision-0").span_marks == ()
    assert store.review("decision-1") == decided


def test_a_verdict_is_refused_with_other_marks_than_its_events(store: Store, clock: MovedClock) -> None:
    store.add(make_spanned())
    at, until = "'2026-01-02T00:01:00.000000+00:00'", "'2026-01-02T00:01:10.000000+00:00'"
    statements = (
        "INSERT INTO review_events (review_id, at, who, what, draft, span_marks) "
        f"SELECT id, {at}, 'ann', 'rejected', 'wrong', '[]' FROM reviews",
        "UPDATE reviews SET status = 'rejected', reviewer = 'ann', draft = 'wrong', "
        f"decided_at = {at}, final_at = {until}, span_marks = NULL",
    )
    with pytest.raises(StoreError, match="the marks of spans are not in the audit trail"):
        run_past_guard(store, *statements)


def test_forged_marks_are_found_when_they_are_read(store: Store) -> None:
    store.reject(store.add(make_spanned()).id, reviewer="ann", marks=[WRONG])
    on = " ON reviews" if "://" in store.place else ""
    forged = json.dumps([{"start": 10, "end": 25, "wrong": False}])
    drops = [f"DROP TRIGGER {name}{on}" for name in ("reviews_keep_verdicts", "reviews_keep_marks")]
    run_past_guard(store, *drops, f"UPDATE reviews SET span_marks = '{forged}'")
    for read in (store.reviews, store.marked, lambda: list(store.labelled())):
        with pytest.raises(StoreError, match="not the one in its audit trail"):
            read()


def test_the_audit_log_has_marks_without_texts(store: Store) -> None:
    store.reject(store.add(make_spanned()).id, reviewer="ann", marks=[WRONG])
    with store._database.read() as connection:
        event = connection.execute(ENTRIES.select().order_by(ENTRIES.c.number.desc())).first()
    assert event is not None
    assert json.loads(event.event)["span_marks"] == [{"start": 10, "end": 25, "wrong": True}]
    assert "Bergen" not in event.event


def test_a_store_goes_back_to_0015_without_marks_and_forwards_again(store: Store) -> None:
    name = store.add(make_spanned()).id
    store.reject(name, reviewer="ann", note="made up", marks=[WRONG])
    with store._database.write() as connection:
        migrations.downgrade(connection, to="0015")
        assert migrations.current(connection) == "0015"
        migrations.upgrade(connection)
    review = store.review(name)
    assert (review.status, review.note, review.span_marks) == (ReviewStatus.REJECTED, "made up", ())
    store.add(make_spanned(1))
    assert store.reject("decision-1", reviewer="ann", marks=[WRONG]).span_marks == (WRONG,)


# -- labels ------------------------------------------------------------------------------------


def test_marks_become_rows_with_the_prompt_that_the_model_read(store: Store, clock: MovedClock) -> None:
    store.reject(store.add(make_spanned()).id, reviewer="ann", marks=[WRONG, RIGHT])
    store.reject(store.add(make_spanned(1)).id, reviewer="ann")
    assert store.marked().rows == (), "it can still be undone"
    assert final_marks(store, clock) == [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Question 0?"}],
            "response": SPANNED,
            "spans": [{"start": 10, "end": 25, "wrong": True}, {"start": 28, "end": 41, "wrong": False}],
            "equations": False,
            "model": "tiny",
        }
    ]
    assert store.marked().models == {"tiny": 1}


def test_rows_are_chosen_as_labels_are(store: Store, clock: MovedClock) -> None:
    audit = ReviewTerms(audit=AuditDraw(rate=0.5, certificate=None), within_s=1000.0)
    for number, changes in enumerate(({"route": "law"}, {"model": "other"}, {"terms": audit})):
        case = make_spanned(number, **changes)
        store.reject(store.add(case).id, reviewer="ann", marks=[WRONG])
    assert len(final_marks(store, clock)) == 3
    assert [row["model"] for row in store.marked(model="other").rows] == ["other"]
    for chosen in ({"route": "law"}, {"kind": "audit"}):
        assert len(store.marked(**chosen).rows) == len(list(store.labelled(**chosen))) == 1  # type: ignore[arg-type]


def test_an_answer_that_was_reviewed_twice_is_one_row_with_the_latest_marks(store: Store, clock: MovedClock) -> None:
    store.reject(store.add(make_spanned()).id, reviewer="ann", marks=[WRONG, RIGHT])
    clock.move(UNDO_S)
    store.edit(
        store.add(make_spanned(decision_id="later")).id,
        answer="Oslo",
        draft="right",
        reviewer="bob",
        marks=[replace(WRONG, wrong=False)],
    )
    (row,) = final_marks(store, clock)
    assert row["spans"] == [
        *({"start": 10, "end": 25, "wrong": False}, {"start": 28, "end": 41, "wrong": False}),
    ]


def test_a_retrys_instruction_is_a_part_of_its_prompt(store: Store, clock: MovedClock) -> None:
    case = make_spanned()
    retry = Decision(Action.RETRY, "rules[0]", "doubtful", 0.6, Retry(instruction="Think again."))
    before = replace(case.attempts[0], decision=retry)
    store.reject(store.add(replace(case, attempts=(before, *case.attempts))).id, reviewer="ann", marks=[WRONG])
    (row,), (label,) = final_marks(store, clock), store.labelled()
    assert row["prompt"][-1]["content"] == "Question 0?\n\nThink again."
    assert label["prompt"] == row["prompt"]


@pytest.mark.parametrize("change", ["fallback", "thought", "chain", "older guard"])
def test_an_answer_whose_prompt_is_not_stored_is_counted_and_no_row(
    store: Store, clock: MovedClock, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_spanned()
    last = case.attempts[0]
    changes: dict[str, Any] = {"fallback": {"source": "big"}, "thought": {"reasoning": "Hm."}}
    changes["chain"] = {"generation": None}
    attempts = (replace(last, **changes.get(change, {})),)
    if change == "older guard":
        from guard.review import records

        kept = records._attempt
        monkeypatch.setattr(
            records,
            "_attempt",
            lambda attempt: {key: value for key, value in kept(attempt).items() if key != "instruction"},
        )
        attempts = (last, last)
    store.reject(store.add(replace(case, attempts=attempts)).id, reviewer="ann", marks=[WRONG])
    assert final_marks(store, clock) == []
    assert store.marked().left_out == 1


def test_raw_prompts_and_tools_are_kept(store: Store, clock: MovedClock) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    prompts = (Prompt.raw("Q: 1\nA:"), Prompt.chat("Question?", tools=[tool], template_options={"thinking": False}))
    for number, prompt in enumerate(prompts):
        store.reject(store.add(make_spanned(number, prompt=prompt)).id, reviewer="ann", marks=[WRONG])
    raw, tools = final_marks(store, clock)
    assert (raw["prompt"], raw["raw"], raw["control_tokens"]) == ("Q: 1\nA:", True, True)
    assert (tools["tools"], tools["template_options"]) == ([tool], {"thinking": False})
