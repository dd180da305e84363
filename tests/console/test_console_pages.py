"""Every page of the console, as people of each role get it, over HTTP and a real store."""

from __future__ import annotations

import html
import json
import re
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from console_pages import MadeConsole
from made_cases import make_escalation
from starlette.testclient import TestClient

from guard.records import Prompt
from guard.review.records import Review, ReviewStatus
from guard.review_terms import LateAction, ReviewTerms


def add(console: MadeConsole, number: int = 0, **changes: Any) -> Review:
    return console.store.add(make_escalation(number, **changes))


def text(page: str) -> str:
    """What a reader reads of a page."""
    plain = re.sub(r"<(script|style|title)[^>]*>.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(plain).split())


# -- the queue ---------------------------------------------------------------------------------


def test_the_queue_lists_what_a_reviewer_may_take(console: MadeConsole) -> None:
    for number in range(3):
        add(console, number)
    mira = console.signed_in("mira")
    page = mira.get("/queue")
    assert page.status_code == 200
    assert [f"Question {number}?" in page.text for number in range(3)] == [True] * 3
    assert "Cases for you" in page.text
    assert 'name="q"' in page.text


def test_the_start_leads_each_role_to_the_first_page_it_reaches(console: MadeConsole) -> None:
    assert console.signed_in("mira").get("/").url.path == "/queue"
    assert console.signed_in("ana", ("admin",)).get("/").url.path == "/settings/users"
    assert console.signed_in("chat", ("caller",)).get("/").status_code == 403


def test_pages_follow_each_other_without_gap_or_repeat(console: MadeConsole) -> None:
    for number in range(60):
        add(console, number)
    mira = console.signed_in("mira")
    seen: list[str] = []
    address = "/queue?view=all"
    for _ in range(4):
        page = mira.get(address).text
        seen += re.findall(r'href="/case/(\w+)"', page)
        further = re.search(r'href="(/queue\?[^"]*after=[^"]*)"', page)
        if further is None:
            break
        address = html.unescape(further[1])
    assert len(seen) == len(set(seen)) == 60
    back = re.search(r'href="(/queue\?[^"]*before=[^"]*)"', page)
    assert back is not None
    assert re.findall(r'href="/case/(\w+)"', mira.get(html.unescape(back[1])).text) == seen[25:50]


def test_filters_live_in_the_address(console: MadeConsole) -> None:
    add(console, 1, question="Is aspirin safe?", route="medical", terms=ReviewTerms(priority="high"))
    add(console, 2, question="Is the lease over?", route="law")
    mira = console.signed_in("mira")

    def found(query: str) -> list[bool]:
        page = mira.get(f"/queue?view=all&{query}").text
        return ["Is aspirin safe?" in page, "Is the lease over?" in page]

    assert found("") == [True, True]
    assert found("q=aspirin") == [True, False]
    assert found("route=law") == [False, True]
    assert found("priority=high") == [True, False]
    assert found("q=nothing") == [False, False]
    assert "No case has these filters" in mira.get("/queue?q=nothing").text


@pytest.mark.parametrize("query", ["after=x", "priority=urgent", "claimed=nobody", "q=%21", "after=a%2Cb&before=c%2Cd"])
def test_filters_that_mean_nothing_are_refused_in_words(console: MadeConsole, query: str) -> None:
    page = console.signed_in("mira").get(f"/queue?{query}")
    assert page.status_code in (200, 422)
    if query != "after=x" and "after" not in query:
        assert page.status_code == 422
        assert "These cases cannot be shown" in page.text


def test_new_cases_are_counted_and_not_slipped_in(console: MadeConsole) -> None:
    now = datetime.now(UTC)
    add(console, 1, created_at=(now - timedelta(hours=1)).isoformat())
    mira = console.signed_in("mira", ("reviewer:medical",))
    since = re.search(r'data-since="([^"]+)"', mira.get("/queue").text)
    assert since is not None
    assert mira.get("/queue/live", params={"since": since[1]}).json() == {"new": 0, "rows": {}}
    add(console, 2, created_at=datetime.now(UTC).isoformat())
    add(console, 3, created_at=datetime.now(UTC).isoformat(), route="law")
    assert mira.get("/queue/live", params={"since": since[1]}).json() == {"new": 1, "rows": {}}


def test_an_open_queue_learns_who_has_its_cases(console: MadeConsole) -> None:
    ids = [add(console, number, route="law" if number == 4 else "medical").id for number in range(5)]
    mira = console.signed_in("mira", ("reviewer:medical",), name="Mira Patel")
    console.signed_in("ana", ("lead",), name="Ana Kovač").get(f"/case/{ids[0]}")
    mira.get(f"/case/{ids[1]}")
    console.store.approve(ids[2], reviewer="ana")
    query = {"since": "2030", "ids": ",".join([*ids, "zzzzzz", "<b>"])}
    rows = mira.get("/queue/live", params=query).json()["rows"]
    assert rows == {ids[0]: "Ana Kovač", ids[1]: "you", ids[2]: "approved by Ana Kovač", ids[3]: "free"}
    page = mira.get("/queue?view=all").text
    assert re.findall(r'data-case="(\w+)".*?data-who="([^"]+)"', page, flags=re.DOTALL) == [
        (ids[0], "Ana Kovač"), (ids[1], "you"), (ids[3], "free"),
    ]  # fmt: skip


def test_an_empty_queue_says_so(console: MadeConsole) -> None:
    assert "Nothing waits here for a person" in console.signed_in("mira").get("/queue").text


def test_after_the_last_decision_nothing_says_that_cases_wait(
    console: MadeConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guard.console.queue.DEAR_S", -1.0)  # as on a slow machine: every number is kept
    case = console.store.add(make_escalation(0))
    ana = console.signed_in("ana")
    assert "Start reviewing" in ana.get("/queue").text
    console.store.approve(case.id, reviewer="ana")
    page = ana.get("/queue", params={"done": case.id}).text
    assert "No case waits for you" in page
    assert 'For you <span class="count">0</span>' in page
    assert "Start reviewing" not in page


def test_decided_cases_are_found_with_who_decided(console: MadeConsole) -> None:
    review = add(console)
    mira = console.signed_in("mira", name="Mira Patel")
    mira.post(f"/case/{review.id}/approve", data={})
    assert "Mira Patel" in console.signed_in("jonas").get("/queue?view=decided").text


# -- one case ----------------------------------------------------------------------------------


def test_opening_a_case_claims_it_and_shows_what_a_reviewer_needs(console: MadeConsole) -> None:
    review = add(console)
    page = console.signed_in("mira").get(f"/case/{review.id}")
    read = text(page.text)
    for needed in ("Question 0?", "Answer 0", "Be brief.", "0.75", "rules[1]", "too likely wrong", "ilis", "customer"):
        assert needed in read
    assert console.store.review(review.id).claimed_by == "mira"
    assert read.index("Question 0?") < read.index("Why it came here")


def test_no_verdict_is_the_default(console: MadeConsole) -> None:
    review = add(console)
    page = console.signed_in("mira").get(f"/case/{review.id}").text
    form = page[page.index('id="decide"') :]
    buttons = [re.search(rf'class="([^"]+)"[^>]*data-key="{key}"', form) for key in "aer"]
    assert [button is not None and "btn-main" not in button[1] for button in buttons] == [True] * 3
    assert "autofocus" not in page


def test_somebody_elses_case_can_be_read_and_not_decided(console: MadeConsole) -> None:
    review = add(console)
    console.signed_in("ana", ("lead",), name="Ana Kovač").get(f"/case/{review.id}")
    page = console.signed_in("mira").get(f"/case/{review.id}")
    assert "Ana Kovač has this case" in page.text
    assert 'id="decide"' not in page.text
    assert console.store.review(review.id).claimed_by == "ana"


def test_a_viewer_reads_and_claims_nothing(console: MadeConsole) -> None:
    review = add(console)
    page = console.signed_in("vera", ("viewer",)).get(f"/case/{review.id}")
    assert page.status_code == 200
    assert 'id="decide"' not in page.text
    assert "History" not in page.text
    assert console.store.review(review.id).claimed_by is None
    assert "History" in console.signed_in("otto", ("auditor",)).get(f"/case/{review.id}").text


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "same-origin", "sec-purpose": "prefetch"},
        {"sec-fetch-site": "none", "purpose": "prefetch"},
    ],
)
def test_a_link_elsewhere_and_a_prefetch_claim_nothing(console: MadeConsole, headers: dict[str, str]) -> None:
    review = add(console)
    mira = console.signed_in("mira")
    assert mira.get(f"/case/{review.id}", headers=headers).status_code == 200
    mira.get("/next", headers=headers)
    assert console.store.review(review.id).claimed_by is None


def test_a_case_left_without_a_decision_is_free_again(console: MadeConsole) -> None:
    first, second = add(console, 1), add(console, 2)
    mira = console.signed_in("mira")
    mira.get(f"/case/{first.id}")
    page = mira.get(f"/next?leave={first.id}")
    assert page.url.path == f"/case/{second.id}"
    assert console.store.review(first.id).claimed_by is None
    mira.get(f"/queue?leave={second.id}")
    assert console.store.review(second.id).claimed_by is None


@pytest.mark.parametrize("name", ["zzzzzz", "x", "%00", "..%2F..", "a" * 300])
def test_a_case_that_is_not_there_is_said_to_be_missing(console: MadeConsole, name: str) -> None:
    page = console.signed_in("mira").get(f"/case/{name}")
    assert page.status_code == 404
    assert "Traceback" not in page.text


@pytest.mark.parametrize("deed", ["approve", "reject", "edit", "skip", "undo", "keep", "assign", "adjudicate"])
def test_the_beginning_of_an_id_shows_a_case_and_decides_nothing(console: MadeConsole, deed: str) -> None:
    review = console.store.add(make_escalation())
    mira = console.signed_in("mira", ("reviewer", "lead"))
    assert mira.get(f"/case/{review.id[:4]}").status_code == 200
    console.store.claim(review.id, reviewer="mira")
    before = console.store.history(review.id)
    page = mira.post(f"/case/{review.id[:4]}/{deed}", data={"answer": "x", "draft": "wrong", "to": "mira"})
    assert (page.status_code, "not the whole id" in page.text) == (404, True)
    assert console.store.history(review.id) == before


def test_a_case_without_an_answer_cannot_be_approved(console: MadeConsole) -> None:
    review = add(console, answer=None, p_wrong=None)
    mira = console.signed_in("mira")
    page = mira.get(f"/case/{review.id}")
    assert "There is no answer to approve" in page.text
    assert "no score" in page.text
    assert mira.post(f"/case/{review.id}/approve", data={}).status_code == 422
    mira.post(f"/case/{review.id}/edit", data={"answer": "Paris"})
    assert console.store.review(review.id).final_answer == "Paris"


def test_a_late_case_says_what_the_caller_has(console: MadeConsole) -> None:
    terms = ReviewTerms(within_s=60, late=LateAction())
    review = add(console, terms=terms)  # of January
    page = console.signed_in("mira").get(f"/case/{review.id}").text
    assert "Late: the caller has no answer already" in page


def test_raw_prompts_and_structured_metadata_are_shown(console: MadeConsole) -> None:
    review = add(console, prompt=Prompt.raw("Q: why?"), metadata={"deep": {"a": ["<b>"]}})
    page = console.signed_in("mira").get(f"/case/{review.id}").text
    assert "Q: why?" in page
    assert "<b>" not in page


# -- deciding ----------------------------------------------------------------------------------


def test_approving_leads_to_the_next_case_with_ten_seconds_to_undo(console: MadeConsole) -> None:
    first, second = add(console, 1), add(console, 2)
    mira = console.signed_in("mira")
    mira.get(f"/case/{first.id}")
    page = mira.post(f"/case/{first.id}/approve", data={"note": " fine "})
    assert page.url.path == f"/case/{second.id}"
    assert f"Approved {first.id}" in page.text
    decided = console.store.review(first.id)
    assert (decided.status, decided.reviewer, decided.note) == (ReviewStatus.APPROVED, "mira", "fine")
    undone = mira.post(f"/case/{first.id}/undo", data={})
    assert undone.url.path == f"/case/{first.id}"
    assert console.store.review(first.id).status is ReviewStatus.PENDING
    assert console.store.review(first.id).claimed_by == "mira"


def test_what_is_final_or_another_persons_is_not_undone(console: MadeConsole) -> None:
    review = add(console)
    console.store.approve(review.id, reviewer="mira")
    refused = console.signed_in("jonas").post(f"/case/{review.id}/undo", data={})
    assert refused.status_code == 409
    assert "Not undone" in refused.text
    assert console.store.review(review.id).status is ReviewStatus.APPROVED


def test_rejecting_and_skipping(console: MadeConsole) -> None:
    first, second = add(console, 1), add(console, 2)
    mira = console.signed_in("mira")
    mira.post(f"/case/{first.id}/reject", data={"note": "no"})
    assert console.store.review(first.id).status is ReviewStatus.REJECTED
    page = mira.post(f"/case/{second.id}/skip", data={"note": "not a pharmacist"})
    assert page.url.path == "/queue"  # it is not offered again
    assert console.store.review(second.id).status is ReviewStatus.PENDING
    assert "not a pharmacist" in console.signed_in("jonas").get(f"/case/{second.id}").text


def test_an_edit_needs_the_label_and_keeps_what_was_typed(console: MadeConsole) -> None:
    review = add(console)
    mira = console.signed_in("mira")
    assert '<textarea id="new"' in mira.get(f"/case/{review.id}?edit=1").text
    refused = mira.post(f"/case/{review.id}/edit", data={"answer": "Better <answer>", "note": "hm"})
    assert refused.status_code == 422
    assert "Better &lt;answer&gt;" in refused.text
    assert "right or wrong" in refused.text
    saved = mira.post(f"/case/{review.id}/edit", data={"answer": "Better\r\nanswer", "draft": "wrong"})
    assert saved.status_code == 200
    decided = console.store.review(review.id)
    assert (decided.status, decided.final_answer, decided.draft) == (ReviewStatus.EDITED, "Better\nanswer", "wrong")
    assert "<ins>" in mira.get(f"/case/{review.id}").text


def test_an_edit_that_changes_nothing_is_refused_with_the_text(console: MadeConsole) -> None:
    review = add(console)
    mira = console.signed_in("mira")
    same = mira.post(f"/case/{review.id}/edit", data={"answer": review.answer, "draft": "right"})
    assert same.status_code == 422
    assert "is unchanged" in text(same.text)
    assert console.store.review(review.id).status is ReviewStatus.PENDING


def test_a_decision_that_comes_too_late_is_not_saved_and_its_text_is_kept(console: MadeConsole) -> None:
    review = add(console)
    mira = console.signed_in("mira")
    mira.get(f"/case/{review.id}")
    console.access.users.add("ana", name="Ana Kovač", grants=console.access.users.get("mira").grants)
    console.store.release(review.id, reviewer="mira")
    console.store.approve(review.id, reviewer="ana")
    page = mira.post(f"/case/{review.id}/edit", data={"answer": "My long answer", "draft": "wrong"})
    assert page.status_code == 409
    assert "Not saved: Ana Kovač approved this case at" in page.text
    assert "My long answer" in page.text
    assert console.store.review(review.id).reviewer == "ana"


def test_a_decision_on_a_case_that_somebody_else_took_is_not_saved(console: MadeConsole) -> None:
    review = add(console)
    console.signed_in("ana", ("lead",), name="Ana").get(f"/case/{review.id}")
    page = console.signed_in("mira").post(f"/case/{review.id}/approve", data={"note": "mine"})
    assert page.status_code == 409
    assert "Not saved: Ana has this case now" in page.text
    assert console.store.review(review.id).status is ReviewStatus.PENDING


def test_typing_keeps_a_claim_and_cannot_take_one(console: MadeConsole) -> None:
    review = add(console)
    mira, jonas = console.signed_in("mira"), console.signed_in("jonas")
    mira.get(f"/case/{review.id}")
    assert mira.post(f"/case/{review.id}/keep", data={}).status_code == 204
    assert jonas.post(f"/case/{review.id}/keep", data={}).status_code == 409
    assert console.store.review(review.id).claimed_by == "mira"


def test_a_lead_assigns_a_case_and_a_reviewer_does_not(console: MadeConsole) -> None:
    review = add(console)
    ana, mira = console.signed_in("ana", ("lead",)), console.signed_in("mira")
    assert mira.post(f"/case/{review.id}/assign", data={"to": "mira"}).status_code == 403
    assert ana.post(f"/case/{review.id}/assign", data={"to": "nobody"}).status_code == 409
    assert ana.post(f"/case/{review.id}/assign", data={"to": "mira"}).status_code == 200
    assert console.store.review(review.id).assigned_to == "mira"
    assert "is assigned to mira" in text(console.signed_in("jonas").get(f"/case/{review.id}").text)
    ana.post(f"/case/{review.id}/assign", data={"to": ""})
    assert console.store.review(review.id).assigned_to is None


# -- two opinions ------------------------------------------------------------------------------


@pytest.fixture
def doubled(console: MadeConsole) -> Review:
    return add(console, p_wrong=0.7312, reason="too likely wrong to say", terms=ReviewTerms(reviews=2))


LEADING = ("0.73", "0.75", "0.50", "too likely wrong to say", "rules[1]", "Parts of the score", "Attempts:")


@pytest.mark.parametrize("role", ["reviewer", "lead", "viewer", "auditor"])
def test_nothing_leads_a_blind_verdict(console: MadeConsole, doubled: Review, role: str) -> None:
    reader = console.signed_in("rita", (role,))
    for place in (f"/case/{doubled.id}", f"/case/{doubled.id}?edit=1", "/queue?view=all"):
        page = reader.get(place).text
        assert [said for said in LEADING if said in page] == []
        assert "hidden" in page


def test_the_second_reviewer_sees_nothing_of_the_first_opinion(console: MadeConsole, doubled: Review) -> None:
    mira = console.signed_in("mira", name="Mira")
    mira.post(f"/case/{doubled.id}/edit", data={"answer": "Mira's words", "draft": "wrong", "note": "Mira's note"})
    for who in ("jonas", "mira"):
        page = text(console.signed_in(who).get(f"/case/{doubled.id}").text)
        assert "Mira's words" not in page
        assert "Mira's note" not in page
        assert "edited" not in page
    assert "Second opinion" in page or "You can only read" in page


def test_a_lead_decides_between_two_opinions_without_their_names(console: MadeConsole, doubled: Review) -> None:
    mira, jonas = console.signed_in("mira", name="Mira Patel"), console.signed_in("jonas", name="Jonas Weber")
    mira.post(f"/case/{doubled.id}/approve", data={})
    jonas.post(f"/case/{doubled.id}/edit", data={"answer": "Jonas's words", "draft": "wrong"})
    assert console.store.review(doubled.id).disputed
    assert console.signed_in("otto").post(f"/case/{doubled.id}/approve", data={}).status_code == 403
    assert console.signed_in("otto").post(f"/case/{doubled.id}/adjudicate", data={"which": "2"}).status_code == 403
    ana = console.signed_in("ana", ("lead",))
    page = ana.get(f"/case/{doubled.id}").text
    two = page[page.index("Two reviewers, two verdicts") : page.index("<aside")]
    assert "Jonas's words" in html.unescape(two)
    assert "Jonas Weber" not in two
    told = page[page.index("<h2>History") :].partition("</ol>")[0]
    assert told.count("A reviewer</strong> gave an opinion<br>") == 2
    assert "Jonas Weber" not in told
    assert ana.post(f"/case/{doubled.id}/adjudicate", data={"which": "3"}).status_code == 409
    ana.post(f"/case/{doubled.id}/adjudicate", data={"which": "2"})
    decided = console.store.review(doubled.id)
    assert (decided.status, decided.final_answer, decided.reviewer) == (ReviewStatus.EDITED, "Jonas's words", "ana")
    assert "Jonas Weber</strong> gave an opinion: edited" in ana.get(f"/case/{doubled.id}").text


def test_an_opinion_can_be_taken_back(console: MadeConsole, doubled: Review) -> None:
    mira = console.signed_in("mira")
    page = mira.post(f"/case/{doubled.id}/approve", data={})
    assert f"Opinion on {doubled.id} kept" in page.text
    mira.post(f"/case/{doubled.id}/undo", data={})
    assert console.store.review(doubled.id).opinions == 0


# -- routes ------------------------------------------------------------------------------------


def test_a_role_on_a_route_reaches_nothing_of_another(console: MadeConsole) -> None:
    law, medical, none = add(console, 1, route="law"), add(console, 2), add(console, 3, route=None)
    mira = console.signed_in("mira", ("reviewer:medical",))
    queue = mira.get("/queue?view=all").text
    assert [f"Question {number}?" in queue for number in (1, 2, 3)] == [False, True, False]
    assert "law" not in queue
    for review in (law, none):
        assert mira.get(f"/case/{review.id}").status_code == 403
        assert "Question" not in mira.get(f"/case/{review.id}").text
        for deed in ("approve", "reject", "skip", "undo", "keep", "assign", "adjudicate"):
            assert mira.post(f"/case/{review.id}/{deed}", data={"which": "1"}).status_code == 403
        assert console.store.review(review.id).status is ReviewStatus.PENDING
    assert mira.get("/next").url.path == f"/case/{medical.id}"
    assert "Question 1?" not in mira.get("/queue?view=all&route=law").text
    assert 'value="law"' not in mira.get("/insights").text
    assert 'value="law"' not in queue


def test_somebody_who_views_one_route_and_decides_another_decides_only_that(console: MadeConsole) -> None:
    law = add(console, 1, route="law")
    mira = console.signed_in("mira", ("reviewer:medical", "viewer"))
    assert mira.get(f"/case/{law.id}").status_code == 200
    assert console.store.review(law.id).claimed_by is None
    assert mira.post(f"/case/{law.id}/approve", data={}).status_code == 403
    assert "Question 1?" not in mira.get("/queue").text


# -- insights ----------------------------------------------------------------------------------


def test_a_lead_sees_what_came_and_what_became_of_it(console: MadeConsole) -> None:
    now = datetime.now(UTC)
    for number in range(6):
        review = add(console, number, p_wrong=number / 10, created_at=(now - timedelta(days=number)).isoformat())
        if number < 3:
            console.store.approve(review.id, reviewer="mira")
        elif number < 5:
            console.store.reject(review.id, reviewer="jonas")
    add(console, 7, p_wrong=None, created_at=now.isoformat(), route="law")
    ana = console.signed_in("ana", ("lead",))
    console.add("mira", "reviewer", name="Mira Patel")
    page = ana.get("/insights?days=7")
    read = text(page.text)
    assert "Came 7" in read
    assert "Decided 5" in read
    assert "Mira Patel 3" in read
    assert "1 cases have no score" in read
    assert text(ana.get("/insights?days=28&route=law").text).count("Came 1 ") == 1
    assert ana.get("/insights?days=3").status_code == 404


def test_insights_of_nothing_are_empty_and_no_error(console: MadeConsole) -> None:
    page = console.signed_in("ana", ("lead",)).get("/insights")
    assert page.status_code == 200
    assert "There were no cases" in page.text


def test_agreement_is_shown_from_twenty_shared_cases_on(console: MadeConsole) -> None:
    ana = console.signed_in("ana", ("lead",))
    assert "Nobody has shared a case yet" in ana.get("/insights/agreement").text
    console.add("mira", "reviewer", name="Mira Patel")
    for number in range(20):
        review = add(console, number, terms=ReviewTerms(reviews=2))
        console.store.approve(review.id, reviewer="mira")
        decide = console.store.reject if number % 4 == 0 else console.store.approve
        decide(review.id, reviewer="jonas")
        if number == 18:
            read = text(ana.get("/insights/agreement").text)
            assert "jonas and Mira Patel 19 -" in read
    assert re.search(r"jonas and Mira Patel 20 -?0\.\d\d", text(ana.get("/insights/agreement").text))
    assert console.signed_in("vera", ("viewer:law",)).get("/insights/agreement").status_code == 403


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["/settings", "/settings/users", "/settings/keys"])
@pytest.mark.parametrize("role", ["viewer", "reviewer", "lead", "auditor", "caller"])
def test_only_an_admin_reaches_the_settings(console: MadeConsole, place: str, role: str) -> None:
    visitor = console.signed_in("vera", (role,))
    assert visitor.get(place).status_code == 403
    for deed in ("/settings/users", "/settings/users/vera/roles", "/settings/keys", "/settings/keys/x/revoke"):
        refused = visitor.post(deed, data={"login": "eve", "name": "eve", "roles": "admin"})
        assert refused.status_code == 403
    assert [user.id for user in console.access.users.all()] == ["vera"]
    assert console.access.keys.all() == []
    assert str(console.access.users.get("vera").grants[0]) == role


def test_an_admin_makes_a_user_whose_link_sets_the_password(console: MadeConsole) -> None:
    ana = console.signed_in("ana", ("admin",))
    page = ana.post("/settings/users", data={"login": "mira", "name": "Mira", "roles": "reviewer:medical, viewer"})
    link = re.search(r"<code>http://testserver(/welcome/[^<]+)</code>", page.text)
    assert link is not None
    visitor = console.visitor()
    assert "Set a password" in visitor.get(link[1]).text
    assert visitor.post(link[1], data={"password": "short"}).status_code == 422
    assert visitor.post(link[1], data={"password": "three plain words"}).url.path == "/queue"
    assert visitor.post(link[1], data={"password": "three other words"}).status_code == 404
    assert console.access.users.check_login("mira", "three plain words").name == "Mira"


def test_an_admin_changes_roles_disables_and_enables(console: MadeConsole) -> None:
    ana, mira = console.signed_in("ana", ("admin",)), console.signed_in("mira")
    ana.post("/settings/users/mira/roles", data={"roles": "lead viewer:law"})
    assert sorted(map(str, console.access.users.get("mira").grants)) == ["lead", "viewer:law"]
    ana.post("/settings/users/mira/disable", data={})
    assert mira.get("/queue").url.path == "/login"
    ana.post("/settings/users/mira/enable", data={})
    assert console.access.users.get("mira").disabled_at is None
    for wrong in ("/settings/users/ana/disable", "/settings/users/nobody/disable", "/settings/users/mira/promote"):
        assert ana.post(wrong, data={}).status_code == 422
    assert ana.post("/settings/users/mira/roles", data={"roles": "boss"}).status_code == 422


def test_an_admin_makes_a_key_whose_secret_is_shown_once(console: MadeConsole) -> None:
    ana = console.signed_in("ana", ("admin",))
    page = ana.post("/settings/keys", data={"name": "chat", "roles": "caller:medical", "tokens_per_month": "1,000"})
    secret = re.search(r"<code>(grd_[^<]+)</code>", page.text)
    assert secret is not None
    found = console.access.keys.find(secret[1])
    assert found is not None
    assert found.limits.tokens_per_month == 1000
    assert secret[1] not in ana.get("/settings/keys").text
    for limit in ("many", "-1", "9" * 25):
        form = {"name": "x", "roles": "caller", "tokens_per_minute": limit}
        assert ana.post("/settings/keys", data=form).status_code == 422
    ana.post(f"/settings/keys/{found.prefix}/revoke", data={})
    assert console.access.keys.find(secret[1]) is None


# -- mounted -----------------------------------------------------------------------------------


def test_mounted_on_another_application_all_addresses_stay_below_it(console: MadeConsole) -> None:
    from fastapi import FastAPI

    review = add(console)
    site = FastAPI()
    site.mount("/console", console.app)
    console.add("mira", "reviewer")
    visitor = TestClient(site, headers={"sec-fetch-site": "same-origin"})
    assert visitor.get("/console/").url.path == "/console/login"
    visitor.cookies.set("guard", console.access.sessions.begin("mira"))
    assert visitor.get("/console/").url.path == "/console/queue"
    page = visitor.get(f"/console/case/{review.id}")
    links = re.findall(r'(?:href|src|action|formaction|data-keep)="([^"#]+)"', page.text)
    assert links
    assert [link for link in links if not link.startswith("/console/")] == []
    assert visitor.get("/console/static/console.js").status_code == 200
    assert visitor.post(f"/console/case/{review.id}/approve", data={}).url.path == "/console/queue"
    assert json.loads(visitor.get("/console/queue/live?since=2020").text) == {"new": 0, "rows": {}}


def log_decisions(console: MadeConsole, *routes: str) -> None:
    """A decision of each action on each route, in the audit log."""
    log = console.store.audit_log()
    for number, (route, action) in enumerate(product(routes, ("accept", "retry", "fallback", "escalate", "abstain"))):
        fields = {"action": action, "route": route, "p_wrong": 0.1 + number % 5 / 5, "ood_score": 0.97}
        log.append("decision", f"made-{number}", fields, texts={})


def test_insights_show_all_answers_where_a_guard_logs_them(console: MadeConsole) -> None:
    lea = console.signed_in("lea", ("lead",))
    assert "Only cases that came to people are counted" in lea.get("/insights").text
    log_decisions(console, "medical", "<b>law</b>")
    console.app.state.desk.decided._kept.clear()
    page = lea.get("/insights").text
    assert "10 answers, 20 % accepted." in page
    assert "Most are between 0.10 and 0.15." in page
    assert "<b>law" not in page
    assert re.search(r"<title[^>]*>Mean p\(wrong\) and share of unusual inputs by day</title>", page)
    only = console.signed_in("mira", ("reviewer:medical",)).get("/insights").text
    assert "5 answers, 20 % accepted." in only
    assert "law" not in only
