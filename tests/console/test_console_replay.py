"""The page that tries a policy on recorded calls: its figures, who may, and policies that mean harm."""

from __future__ import annotations

import html
import json
import re
from itertools import islice
from pathlib import Path

import pytest
from console_pages import MadeConsole
from made_certificates import GUARANTEE, certificate, certificates
from scripted import AnsweringEngine, confidence_scorer

from guard.console import replaying
from guard.console.replaying import measures
from guard.policy.policy import parse_policy
from guard.records import Limits
from guard.replay.comparison import replay
from guard.runtime.guard import Guard

SCORES = [0.02, 0.08, 0.15, 0.22, 0.3, 0.37, 0.45, 0.55, 0.66, 0.78, 0.9, 0.97]

PRESENT = """version: 1
name: present
rules: [accept: {below: 0.25}, escalate: {to: [review]}]
routes: {clinic: {rules: [escalate: {to: [review]}]}}
"""
STRICTER = PRESENT.replace("present", "stricter <b>").replace("0.25", "0.1")
GUARANTEEING = (
    f"version: 1\nname: test\nrules:\n{GUARANTEE}\n  - escalate: {{to: [review]}}\nroutes: {{clinic: {{}}}}\n"
)


@pytest.fixture
def asked(console: MadeConsole) -> MadeConsole:
    """A console over the log of twelve calls, three of which were accepted, and one more on a route."""

    def script(prompt: object, number: int) -> tuple[str, float]:
        return "an answer", SCORES[int(str(getattr(prompt, "question", "")).split()[-1])]

    log, store = console.store.audit_log(), console.store
    with Guard(
        AnsweringEngine(script), confidence_scorer(), parse_policy(PRESENT), store=store, audit_log=log
    ) as guard:
        for number in range(len(SCORES)):
            guard.ask(f"question {number}", limits=Limits(max_tokens=40))
        guard.ask("question 0", route="clinic", limits=Limits(max_tokens=40))
    return console


def words(page: str) -> str:
    """What a page says, without its markup."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page[page.index("<main") :])).split())


def test_a_lead_sees_the_policy_beside_the_present_one(asked: MadeConsole) -> None:
    lea = asked.signed_in("lea", ("lead",))
    assert 'href="/replay"' in lea.get("/insights").text
    page = lea.post("/replay", data={"policy": STRICTER, "days": "7"})
    assert page.status_code == 200
    said = words(page.text)
    found = replay(asked.store, parse_policy(STRICTER), since="7d")
    for row in measures(found):
        assert row.name in said
        for figure, under in (row.now, row.proposed):
            assert f"{figure} {under}".strip() in said, row
    assert f"{4 / 13:.1%}".replace("%", " %") in said
    assert "−15.4 points" in said, "two of thirteen"
    assert "13 calls since" in said
    assert "from the scores alone" in said
    assert "stricter <b>" in said
    assert "<b>" not in page.text, "the name is text"
    assert "now 30.8 % accepted at" in said, "the picture says what it shows"
    assert re.search(r'<td class="chg">2</td>', page.text)
    assert html.escape("name: stricter <b>", quote=False) in page.text, "the text is still there to be changed"


def test_the_change_of_the_policy_is_shown_line_by_line(asked: MadeConsole) -> None:
    lea = asked.signed_in("lea", ("lead",))
    page = lea.post("/replay", data={"policy": STRICTER}).text
    for sign, line in (("rem", "name: present"), ("rem", "accept: {below: 0.25}"), ("add", "accept: {below: 0.1}")):
        assert re.search(rf'<li class="{sign}"><span class="n">.<span class="vh">[^/]*</span></span>[^/]*{line}', page)
    assert "name: &#34;stricter &lt;b&gt;&#34;" in page, "a text of the policy is text"
    assert "both policies say the same" in words(lea.post("/replay", data={"policy": PRESENT}).text)


def test_without_the_present_policys_text_the_page_says_so(asked: MadeConsole, monkeypatch: pytest.MonkeyPatch) -> None:
    lea = asked.signed_in("lea", ("lead",))
    log = asked.store.audit_log()
    (decision,) = [json.loads(entry.event) for entry in islice(log.entries(1), 1)]
    log.append("decision", "d", {**decision, "policy_sha256": "f" * 64}, texts={})
    assert "does not have the text of the present policy" in words(lea.post("/replay", data={"policy": PRESENT}).text)
    assert "the present policy" not in words(lea.get("/replay").text)


def test_one_can_begin_with_the_present_policy(asked: MadeConsole) -> None:
    lea = asked.signed_in("lea", ("lead",))
    page = html.unescape(lea.get("/replay", params={"start": "present"}).text)
    text = page[page.index('maxlength="100000">') :].partition(">")[2].partition("</textarea>")[0]
    assert parse_policy(text).sha256 == parse_policy(PRESENT).sha256
    assert "the present policy" in words(page)


def test_without_a_decision_there_is_no_present_policy_to_begin_with(console: MadeConsole) -> None:
    lea = console.signed_in("lea", ("lead",))
    assert "the present policy" not in words(lea.get("/replay").text)
    assert lea.get("/replay", params={"start": "present"}).status_code == 200


def test_trying_changes_nothing(asked: MadeConsole) -> None:
    lea, before = asked.signed_in("lea", ("lead",)), len(asked.store.audit_log())
    cases = asked.store.count()
    assert lea.post("/replay", data={"policy": STRICTER}).status_code == 200
    assert (len(asked.store.audit_log()), asked.store.count()) == (before, cases)


def test_a_built_in_policy_is_where_one_can_begin(asked: MadeConsole) -> None:
    lea = asked.signed_in("lea", ("lead",))
    page = lea.get("/replay", params={"start": "strict"}).text
    assert "name: strict" in page
    assert lea.get("/replay", params={"start": "../strict"}).status_code == 404


@pytest.mark.parametrize("role", ["viewer", "reviewer", "auditor", "admin", "lead:clinic"])
def test_only_leads_of_all_routes_try_policies_on_all_calls(asked: MadeConsole, role: str) -> None:
    visitor = asked.signed_in("vera", (role,))
    assert visitor.post("/replay", data={"policy": STRICTER}).status_code == 403
    if role != "lead:clinic":
        assert visitor.get("/replay").status_code == 403
        assert visitor.post("/replay", data={"policy": STRICTER, "route": "clinic"}).status_code == 403
        assert 'href="/replay"' not in visitor.get("/insights").text


def test_a_lead_of_a_route_tries_policies_on_its_calls(asked: MadeConsole) -> None:
    lea = asked.signed_in("lea", ("lead:clinic",))
    assert "all routes" not in lea.get("/replay").text
    assert "1 calls since" in words(lea.post("/replay", data={"policy": STRICTER, "route": "clinic"}).text)
    assert lea.post("/replay", data={"policy": STRICTER, "route": "law"}).status_code == 403


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"}])
def test_a_request_from_another_site_tries_nothing(asked: MadeConsole, headers: dict[str, str]) -> None:
    page = asked.signed_in("lea", ("lead",)).post("/replay", data={"policy": STRICTER}, headers=headers)
    assert page.status_code == 403
    assert "did not come from the console" in page.text


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}, *{old}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "policy"),
        ("\0", "policy:1"),
        ("rules: [", "policy:1"),
        ("version: 1\nname: x\nrules: [accept: {belw: 0.2}, abstain]", "belw"),
        (BOMB, "policy:1"),
        ("[" * 5000, "policy:1"),
        ("!!python/object/apply:os.system ['id']", "policy:1"),
        ("version: 1\nname: x\nrules: [abstain]\n" + "# long\n" * 20_000, "at most 100,000 characters"),
        ("version: 1\nname: x\nrules: [abstain]\nroutes: {other: {}}\n", "no route 'clinic'"),
    ],
)
def test_a_policy_that_cannot_be_used_is_refused_with_its_reason(asked: MadeConsole, text: str, why: str) -> None:
    page = asked.signed_in("lea", ("lead",)).post("/replay", data={"policy": text})
    assert page.status_code == 422
    assert "Nothing was tried" in page.text
    assert why in words(page.text)


def test_markup_in_a_problem_is_text(asked: MadeConsole) -> None:
    text = "version: 1\nname: x\nrules: [accept: {'<script>alert(1)</script>\u202e': 0.2}, abstain]"
    page = asked.signed_in("lea", ("lead",)).post("/replay", data={"policy": text}).text
    assert "<script>alert" not in page
    alert = page[page.index('role="alert"') :].partition("</ul>")[0]
    assert "script" in alert
    assert "\u202e" not in alert


def test_files_that_a_policy_names_are_not_opened(asked: MadeConsole, tmp_path: Path) -> None:
    made = tmp_path / "certificate.json"
    certificates(certificate(parse_policy(GUARANTEEING))).save(made)
    lea = asked.signed_in("lea", ("lead",))
    for named in (made, "/etc/passwd"):
        page = lea.post("/replay", data={"policy": f"{GUARANTEEING}certificate: {named}\n", "route": ""})
        assert page.status_code == 422
        assert "Paste the certificate file too" in page.text


def test_a_guarantee_is_tried_with_the_threshold_of_its_pasted_certificate(asked: MadeConsole, tmp_path: Path) -> None:
    chosen, made = parse_policy(GUARANTEEING), tmp_path / "certificate.json"
    certificates(certificate(chosen), certificate(chosen, route="clinic")).save(made)
    lea = asked.signed_in("lea", ("lead",))
    pasted = {"policy": GUARANTEEING, "certificate": made.read_text()}
    page = lea.post("/replay", data=pasted)
    assert page.status_code == 200, words(page.text)
    assert "+7.7 points" in words(page.text), "below 0.25 as now, and the one on the route"
    for damaged in ("{}", "nonsense", made.read_text().replace("0.25", "0.35")):
        page = lea.post("/replay", data={**pasted, "certificate": damaged})
        assert (page.status_code, "Nothing was tried" in page.text) == (422, True)
    stricter = GUARANTEEING.replace("max_error_rate: 0.05", "max_error_rate: 0.02")
    assert "max_error_rate was 0.05" in words(lea.post("/replay", data={**pasted, "policy": stricter}).text)


def test_no_more_than_the_newest_entries_are_read_and_the_page_says_so(
    asked: MadeConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    lea = asked.signed_in("lea", ("lead",))
    assert "more of this time" not in lea.post("/replay", data={"policy": STRICTER}).text
    monkeypatch.setattr(replaying, "MOST", 5)
    page = lea.post("/replay", data={"policy": STRICTER}).text
    assert "The audit log has more of this time than is read here" in page
    number = int(re.search(r"(\d+) calls since", words(page))[1])  # type: ignore[index]
    assert 1 <= number <= 5


@pytest.mark.parametrize("days", ["0", "8", "-1", "x", "7d", ""])
def test_other_ranges_are_refused(asked: MadeConsole, days: str) -> None:
    page = asked.signed_in("lea", ("lead",)).post("/replay", data={"policy": STRICTER, "days": days})
    assert (page.status_code, "There is no such range" in page.text) == (422, True)


def test_an_empty_log_has_nothing_to_replay(console: MadeConsole) -> None:
    page = console.signed_in("lea", ("lead",)).post("/replay", data={"policy": STRICTER})
    assert (page.status_code, "There is nothing to replay" in page.text) == (422, True)
