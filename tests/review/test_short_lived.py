"""What several servers remember together: found by its owner only, replaced by name, gone when its time is up."""

from __future__ import annotations

import threading

import pytest
from moved_clock import MovedClock

from guard.review.short_lived import ShortLived
from guard.review.store import Store


def test_a_text_is_found_by_kind_owner_and_name_until_its_time_is_up(store: Store, clock: MovedClock) -> None:
    memory, other = ShortLived(store._database), ShortLived(store._database)
    memory.keep("decision", "a", {"1": "one", "2": "two"}, seconds=60)
    memory.keep("decision", "b", {"1": "another"}, seconds=60)
    other.keep("decision", "a", {"2": "two again"}, seconds=120)
    assert [other.find("decision", "a", name) for name in ("1", "2", "3")] == ["one", "two again", None]
    assert (other.find("decision", "b", "1"), other.find("call", "a", "1")) == ("another", None)
    clock.move(60)
    assert [memory.find("decision", "a", name) for name in ("1", "2")] == [None, "two again"]
    assert memory.sweep() == 2
    assert memory.find("decision", "a", "2") == "two again"


def test_another_text_of_that_name_leaves_neither(store: Store, clock: MovedClock) -> None:
    memory = ShortLived(store._database)
    for text, found in (("one", "one"), ("one", "one"), ("two", "-"), ("one", "-")):
        memory.keep("call", "a", {"1": text}, seconds=60, otherwise="-")
        assert memory.find("call", "a", "1") == found
    clock.move(60)
    memory.keep("call", "a", {"1": "two"}, seconds=60, otherwise="-")
    assert memory.find("call", "a", "1") == "two", "the others' time was up"


def test_expired_texts_are_removed_as_others_are_kept(
    store: Store, clock: MovedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, drawn = ShortLived(store._database), iter([1, 0])
    memory.keep("decision", "a", {"old": ""}, seconds=1)
    clock.move(2)
    monkeypatch.setattr("random.randrange", lambda count: next(drawn))
    left = []
    for number in range(2):
        memory.keep("decision", "a", {"new": str(number)}, seconds=60)
        with store._database.read() as connection:
            left.append(connection.exec_driver_sql("SELECT count(*) FROM short_lived").scalar_one())
    assert left == [2, 1], "with some of the writes, here the second"


def test_servers_that_keep_the_same_texts_at_once_do_not_block_each_other(store: Store) -> None:
    names = [f"{number}" for number in range(20)]
    errors: list[BaseException] = []

    def keep(order: list[str]) -> None:
        try:
            for _ in range(10):
                ShortLived(store._database).keep("call", "a", dict.fromkeys(order, order[0]), seconds=60)
        except BaseException as error:  # noqa: BLE001 - of a thread
            errors.append(error)

    threads = [threading.Thread(target=keep, args=(order,)) for order in (names, names[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    found = {ShortLived(store._database).find("call", "a", name) for name in names}
    assert found in ({"0"}, {"19"})


def test_only_a_database_that_hosts_share_has_a_common_memory(store: Store) -> None:
    assert (store.short_lived() is not None) == ("postgresql" in store.place)
