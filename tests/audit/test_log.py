"""The audit log in real databases: what was added is there, and whatever was done to it afterwards is found."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from made_cases import make_escalation

from guard.audit import merkle
from guard.audit.log import AuditLog, InclusionProof, Verification
from guard.audit.notes import SigningKey
from guard.errors import InputError, StoreError
from guard.review.store import Store


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate("test/guard")


def fill(log: AuditLog, count: int) -> None:
    for number in range(count):
        log.append("decision", f"d{number}", {"p_wrong": number / 100}, texts={"answer": f"answer {number}"})


def without_triggers(store: Store, *statements: str) -> None:
    """Do what the owner of the database can do: drop the triggers, then change rows."""
    with store._database.write() as connection:
        if connection.dialect.name == "postgresql":
            for table in ("audit_entries", "audit_texts", "audit_checkpoints"):
                connection.exec_driver_sql(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        else:
            triggers = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'").scalars()
            for name in [each for each in triggers if each.startswith("audit_")]:
                connection.exec_driver_sql(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.exec_driver_sql(statement)


def test_events_are_numbered_and_come_back_in_order(store: Store) -> None:
    log = store.audit_log()
    fill(log, 5)
    entries = list(log.entries())
    assert [entry.number for entry in entries] == list(range(5))
    event = json.loads(entries[3].event)
    assert (event["kind"], event["subject"], event["p_wrong"]) == ("decision", "d3", 0.03)
    assert [entry.number for entry in log.entries(subject="d4")] == [4]
    assert len(log) == 5
    assert log.verify().ok


def test_the_log_holds_no_text_unless_it_is_asked_to(store: Store) -> None:
    store.audit_log().append("decision", "d", {}, texts={"answer": "a secret", "note": None})
    exported = "".join(store.audit_log().export())
    assert "a secret" not in exported
    opening = json.loads(exported)["openings"]["answer"]
    assert opening["content"] is None
    assert json.loads(json.loads(exported)["event"])["texts"]["note"] is None


def test_kept_texts_open_their_hashes_and_can_be_erased(store: Store) -> None:
    log = store.audit_log(keep_text=True)
    log.append("decision", "d", {}, texts={"answer": "Paris", "question": "What is the capital of France?"})
    log.checkpoint()
    assert log.verify() == Verification(1, merkle.leaf_hash(next(log.entries()).event.encode()), 1, 0, 2, ())
    assert '"content":"Paris"' in next(log.export())
    assert log.erase(before="2000-01-01T00:00:00+00:00") == 0
    assert log.erase(before="2100-01-01T00:00:00+02:00") == 2
    assert "Paris" not in next(log.export())
    assert log.prove(0)[0].holds()
    assert log.verify().ok
    assert log.verify().texts == 0


def test_a_redacted_text_is_what_is_kept_and_hashed(store: Store) -> None:
    def redact(field: str, text: str) -> str | None:
        return text.replace("Ada", "[name]") if field == "question" else None

    log = store.audit_log(keep_text=True, redaction=redact)
    log.append("decision", "d", {}, texts={"question": "How old is Ada?", "answer": "Ada is 36"})
    kept = json.loads(next(log.export()))["openings"]
    assert kept["question"]["content"] == "How old is [name]?"
    assert kept["answer"]["content"] is None
    assert log.verify().texts == 1
    assert log.verify().ok


def test_half_a_character_and_nul_are_kept_as_a_database_can_hold_them(store: Store) -> None:
    log = store.audit_log(keep_text=True)
    log.append("decision", "d0", {}, texts={"answer": "a\ud800b\0c"})
    (line,) = log.export()
    assert json.loads(line)["openings"]["answer"]["content"] == "a?b\ufffdc"
    assert log.verify().ok


def test_equal_texts_have_different_hashes(store: Store) -> None:
    log = store.audit_log()
    for name in ("a", "b"):
        log.append("decision", name, {}, texts={"answer": "yes"})
    first, second = (json.loads(entry.event)["texts"]["answer"] for entry in log.entries())
    assert first != second
    assert hashlib.sha256(b"yes").hexdigest() not in (first, second)


@pytest.mark.parametrize("value", [float("nan"), {1: 2}, object(), "\ud800", 2**70])
def test_what_json_cannot_hold_is_refused_and_leaves_no_entry(store: Store, value: object) -> None:
    with pytest.raises(InputError, match="cannot hold"):
        store.audit_log().append("decision", "d", {"value": value}, texts={})
    assert len(store.audit_log()) == 0


def test_the_database_refuses_changes(store: Store) -> None:
    log = store.audit_log()
    fill(log, 2)
    log.checkpoint()
    statements = [
        "UPDATE audit_entries SET event = '{}' WHERE number = 0",
        "DELETE FROM audit_entries",
        "UPDATE audit_texts SET content = 'x'",
        "UPDATE audit_checkpoints SET root = '00'",
        "DELETE FROM audit_checkpoints",
    ]
    if store._database.engine.dialect.name == "postgresql":
        statements += [f"TRUNCATE {name} CASCADE" for name in ("audit_entries", "audit_texts", "audit_checkpoints")]
    else:
        statements.append("INSERT OR REPLACE INTO audit_entries VALUES (0, 'd0', '{}', '00')")
    for statement in statements:
        with pytest.raises(StoreError, match="append-only"), store._database.write() as connection:
            connection.exec_driver_sql(statement)
    assert log.verify().ok
    assert len(log) == 2


TAMPERINGS: dict[str, list[str]] = {
    "changed": ["UPDATE audit_entries SET event = replace(event, '0.03', '0.02') WHERE number = 3"],
    "changed with its hash": [
        "UPDATE audit_entries SET event = (SELECT event FROM audit_entries WHERE number = 5), "
        "leaf = (SELECT leaf FROM audit_entries WHERE number = 5) WHERE number = 3"
    ],
    "dropped": ["DELETE FROM audit_texts WHERE number = 3", "DELETE FROM audit_entries WHERE number = 3"],
    "dropped and closed up": [
        "DELETE FROM audit_texts WHERE number >= 3",
        "DELETE FROM audit_entries WHERE number = 3",
        "UPDATE audit_entries SET number = number - 1 WHERE number > 3",
    ],
    "exchanged": [
        "DELETE FROM audit_texts",
        "UPDATE audit_entries SET number = -1 WHERE number = 3",
        "UPDATE audit_entries SET number = 3 WHERE number = 4",
        "UPDATE audit_entries SET number = 4 WHERE number = -1",
    ],
    "cut off": ["DELETE FROM audit_texts WHERE number > 6", "DELETE FROM audit_entries WHERE number > 6"],
    "no event": ["UPDATE audit_entries SET event = '[]' WHERE number = 3"],
    "no hash": ["UPDATE audit_entries SET leaf = 'zz' WHERE number = 3"],
    "no salt": ["UPDATE audit_texts SET salt = 'zz' WHERE number = 3"],
    "no root": ["UPDATE audit_checkpoints SET root = 'zz'"],
    "text changed": ["UPDATE audit_texts SET content = 'another' WHERE number = 3"],
    "checkpoint changed": ["UPDATE audit_checkpoints SET root = '" + "00" * 32 + "'"],
}


@pytest.mark.parametrize("statements", TAMPERINGS.values(), ids=TAMPERINGS.keys())
def test_what_the_owner_changes_is_found(store: Store, statements: list[str]) -> None:
    log = store.audit_log(keep_text=True)
    fill(log, 10)
    log.checkpoint()
    assert log.verify().ok
    without_triggers(store, *statements)
    found = log.verify()
    assert not found.ok
    assert found.problems[0]


@pytest.mark.parametrize(
    "statement", ["UPDATE audit_entries SET leaf = 'zz' WHERE number = 3", "UPDATE audit_checkpoints SET root = 'zz'"]
)
def test_rows_that_cannot_be_read_are_proven_to_nobody(store: Store, statement: str) -> None:
    log = store.audit_log()
    fill(log, 5)
    log.checkpoint()
    without_triggers(store, statement)
    with pytest.raises(StoreError, match="guard audit verify"):
        log.prove(1)


def test_a_log_that_was_made_again_is_found_only_by_a_copy(store: Store, key: SigningKey) -> None:
    log = store.audit_log()
    fill(log, 4)
    copy = log.checkpoint(key)
    without_triggers(store, "DELETE FROM audit_texts", "DELETE FROM audit_checkpoints", "DELETE FROM audit_entries")
    fill(log, 4)
    log.checkpoint()
    assert log.verify().ok
    found = log.verify(key=key.public, copies=(copy,))
    assert not found.ok
    assert "The first 4 entries are not those of the checkpoint" in found.problems[0]


def test_a_cut_off_end_is_found_by_a_copy(store: Store, key: SigningKey) -> None:
    log = store.audit_log()
    fill(log, 4)
    copy = log.checkpoint(key)
    without_triggers(
        store,
        "DELETE FROM audit_texts",
        "DELETE FROM audit_checkpoints",
        "DELETE FROM audit_entries WHERE number > 1",
    )
    assert log.verify().ok
    assert "its end was cut off" in log.verify(key=key.public, copies=(copy,)).problems[0]


def test_copies_need_the_key_that_signed_them(store: Store, key: SigningKey) -> None:
    log = store.audit_log()
    fill(log, 1)
    copy = log.checkpoint(key)
    with pytest.raises(InputError, match="needs the key"):
        log.verify(copies=(copy,))
    with pytest.raises(InputError, match="not signed"):
        log.verify(key=SigningKey.generate("other").public, copies=(copy,))
    assert log.verify(key=key.public, copies=(copy,)).signed == 2
    assert "not signed by other" in log.verify(key=SigningKey.generate("other").public).problems[0]


def test_checkpoints_continue_where_the_last_one_ended(store: Store, key: SigningKey) -> None:
    log = store.audit_log()
    assert log.checkpoint(key).split("\n")[1] == "0"
    for size in (1, 2, 5, 8, 13):
        fill(log, size - len(log))
        assert log.checkpoint(key).split("\n")[1] == str(size)
    leaves = [bytes.fromhex(entry.leaf) for entry in log.entries()]
    found = log.verify(key=key.public)
    assert (found.size, found.checkpoints, found.signed, found.ok) == (13, 6, 6, True)
    assert found.root == merkle.root_hash(leaves)


def check_alone(exported: str, proof: InclusionProof) -> bool:
    """An independent check of a proof: RFC 9162, section 2.1.3.2, in the order of its text."""
    row = json.loads(exported)
    node = hashlib.sha256(b"\x00" + row["event"].encode()).digest()
    fn, sn = row["number"], proof.checkpoint.size - 1
    for sibling in map(bytes.fromhex, proof.path):
        if sn == 0:
            return False
        if fn % 2 == 1 or fn == sn:
            node = hashlib.sha256(b"\x01" + sibling + node).digest()
            while fn % 2 == 0 and fn != 0:
                fn, sn = fn // 2, sn // 2
        else:
            node = hashlib.sha256(b"\x01" + node + sibling).digest()
        fn, sn = fn // 2, sn // 2
    return sn == 0 and node == proof.checkpoint.root


def test_proofs_hold_for_an_independent_check(store: Store, key: SigningKey) -> None:
    log = store.audit_log()
    fill(log, 21)
    log.checkpoint(key)
    fill(log, 3)
    proofs = log.prove(*range(21))
    for number, exported in enumerate(log.export()):
        if number < 21:
            proof = proofs[number]
            assert proof.holds()
            assert check_alone(exported, proof)
            assert not check_alone(exported.replace("decision", "decisiom"), proof)
    with pytest.raises(InputError, match="No checkpoint covers entry 21"):
        log.prove(21)
    with pytest.raises(InputError, match="no entry 99"):
        log.prove(99)


def test_every_single_change_of_ten_thousand_rows_is_found() -> None:
    """In the tree itself: an altered, dropped, moved or truncated leaf gives another root, wherever it is."""
    count = 10_000
    leaves = [merkle.leaf_hash(str(number).encode()) for number in range(count)]
    levels = [leaves]
    while len(levels[-1]) > 1:
        row = levels[-1]
        pairs = [merkle.node_hash(*row[at : at + 2]) for at in range(0, len(row) - 1, 2)]
        levels.append(pairs + row[len(pairs) * 2 :])
    root = levels[-1][0]
    assert root == merkle.root_hash(leaves)
    for index in range(count):
        path, at = [], index
        for row in levels[:-1]:
            if at ^ 1 < len(row):
                path.append(row[at ^ 1])
            at //= 2
        assert merkle.includes(leaves[index], index=index, size=count, proof=path, root=root)
        altered, moved = merkle.leaf_hash(b"altered"), leaves[(index + 1) % count]
        for wrong in (altered, moved):
            assert not merkle.includes(wrong, index=index, size=count, proof=path, root=root)
        assert not merkle.includes(leaves[index], index=index, size=count - 1, proof=path[:-1], root=root)


def test_many_writers_number_without_gaps(url: str) -> None:
    def write(number: int) -> None:
        with Store.open(url) as own:
            fill(own.audit_log(), 10 + number % 2)

    Store.open(url).close()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    with Store.open(url) as store:
        log = store.audit_log()
        assert len(log) == 84
        log.checkpoint()
        assert log.verify().ok


def test_cases_and_verdicts_are_logged_with_their_transaction(store: Store) -> None:
    first, second = store.add(make_escalation(1)), store.add(make_escalation(2))
    store.add(make_escalation(1))
    store.approve(first.id, reviewer="ada", note="checked")
    with pytest.raises(InputError):
        store.reject(second.id, reviewer=" ")
    store.edit(second.id, answer="Paris", draft="wrong", reviewer="bob")
    store.undo(second.id, reviewer="bob")
    events = [json.loads(entry.event) for entry in store.audit_log().entries()]
    assert [(event["what"], event["subject"]) for event in events] == [
        *[("added", "decision-1"), ("added", "decision-2")],
        *[("approved", "decision-1"), ("edited", "decision-2"), ("undone", "decision-2")],
    ]
    assert (events[2]["who"], events[3]["draft"]) == ("ada", "wrong")
    assert "Paris" not in "".join(store.audit_log().export())


def test_a_verdict_that_cannot_be_logged_is_not_given(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    review = store.add(make_escalation(1))

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr("guard.review.queries.add_entry", fail)
    with pytest.raises(RuntimeError):
        store.approve(review.id, reviewer="ada")
    assert store.review(review.id).status == "pending"


@pytest.mark.parametrize("time", ["yesterday", "2026-11-26", "2026-11-26T00:00:00", ""])
def test_texts_are_erased_only_by_a_time_with_an_offset(store: Store, time: str) -> None:
    with pytest.raises(InputError, match="ISO 8601"):
        store.audit_log().erase(before=time)
