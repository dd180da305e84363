"""Who gets which slot, what is kept in it and who is evicted: pure bookkeeping, whoever comes and goes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from guard.engines.batch import PROMPT_TOKENS_BESIDE_ANSWERS, share_out
from guard.engines.slots import Reuse, SlotTable, common_prefix

HELLO = [1, 2, 3, 4]


def answered(table: SlotTable, prompt: list[int], answer: list[int], key: str | None = None) -> int:
    """Run a request to its end; the token chosen last is never evaluated."""
    placement = table.place(prompt, len(prompt) + len(answer) + 1, key)
    assert placement is not None
    table.extend(placement.slot, [*prompt[placement.keep :], *answer])
    table.release(placement.slot)
    return placement.slot


# -- which slot ------------------------------------------------------------------------------------


def test_the_next_turn_of_a_conversation_takes_its_slot_and_evaluates_the_new_tokens_only() -> None:
    table = SlotTable(4, 100, "copy")
    first = answered(table, HELLO, [5, 6])
    answered(table, [9, 9], [9])
    placement = table.place([*HELLO, 5, 6, 7, 8], 20, None)
    assert placement is not None
    assert (placement.slot, placement.keep, placement.source, placement.evicted) == (first, 6, None, ())


def test_the_same_prompt_again_evaluates_its_last_token_only_and_leaves_the_conversation_alone() -> None:
    table = SlotTable(4, 100, "copy")
    first = answered(table, HELLO, [5, 6])
    placement = table.place(HELLO, 20, None)
    assert placement is not None
    assert (placement.keep, placement.source) == (3, first)
    assert placement.slot != first
    assert table.slots[first].tokens == [*HELLO, 5, 6]
    assert table.used == 6, "what they have in common is held once"


def test_a_prefix_is_taken_from_a_slot_that_is_busy() -> None:
    table = SlotTable(2, 100, "copy")
    running = table.place(HELLO, 50, None)
    assert running is not None
    table.extend(running.slot, HELLO)
    other = table.place([1, 2, 3, 9, 9], 10, None)
    assert other is not None
    assert (other.keep, other.source) == (3, running.slot)
    assert other.slot != running.slot


@pytest.mark.parametrize(
    ("reuse", "prompt", "kept"),
    [
        ("nothing", [*HELLO, 5, 7], 0),
        ("continuation", [*HELLO, 5, 7], 5),
        ("continuation", [*HELLO, 7, 7], 0),
        ("continuation", [*HELLO, 5], 0),  # the last token is evaluated, and the state cannot go back by one
        ("prefix", [*HELLO, 7, 7], 4),
        ("prefix", [*HELLO, 5], 4),
        ("copy", [*HELLO, 7, 7], 4),
    ],
)
def test_what_is_kept_depends_on_what_the_model_can_drop(reuse: Reuse, prompt: list[int], kept: int) -> None:
    table = SlotTable(1, 100, reuse)
    answered(table, HELLO, [5])
    placement = table.place(prompt, 20, None)
    assert placement is not None
    assert placement.keep == kept


def test_nothing_is_shared_between_different_keys() -> None:
    table = SlotTable(4, 100, "copy")
    answered(table, HELLO, [5], key="ann")
    for key, kept in (("bob", 0), (None, 0), ("ann", 3)):
        placement = table.place(HELLO, 10, key)
        assert placement is not None
        assert placement.keep == kept
        table.release(placement.slot)


# -- eviction --------------------------------------------------------------------------------------


def test_the_least_recently_used_conversation_is_evicted_when_cells_run_out() -> None:
    table = SlotTable(4, 30, "copy")
    old, middle, new = (answered(table, [number] * 8, [number]) for number in (1, 2, 3))
    placement = table.place([4] * 5, 10, None)
    assert placement is not None
    assert placement.evicted == (old,)
    assert [bool(table.slots[number].tokens) for number in (old, middle, new)] == [False, True, True]


def test_the_prefix_that_a_request_takes_over_needs_its_room_before_idle_slots() -> None:
    table = SlotTable(4, 24, "copy")
    old = answered(table, list(range(11)), [11])
    new = answered(table, [99] * 7, [99])
    placement = table.place([*range(6), 50, 51], 17, None)
    assert placement is not None
    assert (placement.keep, placement.source, placement.evicted) == (6, old, (new,))
    assert table.used + table.reserved == 12 + 11


def test_a_request_waits_where_busy_ones_may_need_the_room() -> None:
    table = SlotTable(4, 30, "copy")
    first = table.place(HELLO, 20, None)
    assert first is not None
    assert table.place([9] * 5, 11, None) is None
    assert table.place([9] * 5, 10, None) is not None
    table.release(first.slot)
    assert table.place([8] * 5, 20, None) is not None


def test_a_request_waits_where_all_slots_are_busy_and_takes_nothing_meanwhile() -> None:
    table = SlotTable(1, 100, "copy")
    answered(table, HELLO, [5])
    running = table.place([*HELLO, 5, 6], 20, None)
    assert running is not None
    assert table.place(HELLO, 10, None) is None
    assert table.slots[0].tokens == [*HELLO, 5]


def test_a_busy_slot_grows_into_the_room_of_idle_ones_and_not_into_that_of_others() -> None:
    table = SlotTable(3, 30, "copy")
    idle = answered(table, [7] * 10, [])
    first, second = (table.place([number], 5, None) for number in (1, 2))
    assert first is not None
    assert second is not None
    assert table.grow(first.slot, 15) == ()
    assert table.grow(first.slot, 25) == (idle,)
    assert table.grow(second.slot, 6) is None
    table.release(first.slot)
    assert table.grow(second.slot, 30) == ()


# -- whoever comes and goes --------------------------------------------------------------------------

TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@dataclass
class Arrived:
    slot: int
    prompt: list[int]
    room: int
    key: str | None
    fed: list[int] = field(default_factory=list)


class Arrivals(RuleBasedStateMachine):
    """Requests come, are continued, end and are cut short; beside the table a model keeps the sequences themselves."""

    running = Bundle("running")

    @initialize(slots=st.integers(1, 4), cells=st.integers(20, 60), reuse=st.sampled_from(Reuse.__args__))  # type: ignore[attr-defined]
    def begin(self, slots: int, cells: int, reuse: Reuse) -> None:
        self.table = SlotTable(slots, cells, reuse)
        self.memory: dict[int, list[int]] = {number: [] for number in range(slots)}
        self.keys: dict[int, str | None] = {}
        self.busy: dict[int, Arrived] = {}

    @rule(target=running, prompt=TOKENS, answer=st.integers(1, 8), key=st.sampled_from([None, "ann", "bob"]))
    def arrive(self, prompt: list[int], answer: int, key: str | None) -> Arrived | None:
        room = len(prompt) + answer
        before = {number: list(tokens) for number, tokens in self.memory.items()}
        placement = self.table.place(prompt, room, key)
        if placement is None:
            assert self.busy, "a request that is alone always finds room"
            return None
        assert placement.slot not in self.busy
        assert not set(placement.evicted) & set(self.busy)
        assert placement.keep < len(prompt)
        source = placement.slot if placement.source is None else placement.source
        if placement.keep:
            assert self.keys[source] == key, "only requests with the same key share"
        assert before[source][: placement.keep] == prompt[: placement.keep]
        # The model does as it is told.
        self.memory[placement.slot] = before[source][: placement.keep]
        for number in placement.evicted:
            self.memory[number] = []
        self.keys[placement.slot] = key
        arrived = Arrived(placement.slot, prompt, room, key, prompt[: placement.keep])
        self.busy[placement.slot] = arrived
        return arrived

    @rule(running=running, count=st.integers(1, 5), token=st.integers(0, 2))
    def go_on(self, running: Arrived | None, count: int, token: int) -> None:
        if running is None or self.busy.get(running.slot) is not running:
            return
        tokens = (running.prompt[len(running.fed) :] or [token])[:count]
        if len(running.fed) + len(tokens) <= running.room:
            running.fed = [*running.fed, *tokens]
            self.memory[running.slot] = list(running.fed)
            self.table.extend(running.slot, tokens)

    @rule(running=running, more=st.integers(1, 8))
    def grow(self, running: Arrived | None, more: int) -> None:
        if running is None or self.busy.get(running.slot) is not running:
            return
        evicted = self.table.grow(running.slot, running.room + more)
        if evicted is None:
            assert len(self.busy) > 1 or running.room + more > self.table.cells, "one that is alone may fill all"
            return
        assert not set(evicted) & set(self.busy)
        running.room += more
        for number in evicted:
            self.memory[number] = []

    @rule(running=consumes(running))
    def leave(self, running: Arrived | None) -> None:
        if running is not None and self.busy.get(running.slot) is running:
            del self.busy[running.slot]
            self.table.release(running.slot)

    @precondition(lambda self: hasattr(self, "table"))
    @rule()
    def fail(self) -> None:
        for number in list(self.busy):
            del self.busy[number]
            self.table.release(number)
        self.table.clear()
        self.memory = {number: [] for number in self.memory}

    @invariant()
    def what_is_noted_is_what_the_model_holds_and_fits(self) -> None:
        if not hasattr(self, "table"):
            return
        for slot in self.table.slots:
            if slot.tokens:
                assert slot.tokens == self.memory[slot.number]
            assert len(slot.cells) == len(slot.tokens)
        held = {cell for slot in self.table.slots for cell in slot.cells}
        assert self.table.used == len(held)
        assert self.table.used + self.table.reserved <= self.table.cells, "every request has its room"


TestArrivals = Arrivals.TestCase


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_common_prefixes(one: list[int], other: list[int]) -> None:
    length = common_prefix(one, other)
    assert one[:length] == other[:length]
    assert one[: length + 1] != other[: length + 1] or length == min(len(one), len(other))


# -- steps -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 900), max_size=20), st.integers(64, 512))
def test_every_answer_is_continued_in_every_step_and_prompts_in_order(pending: list[int], tokens: int) -> None:
    counts = share_out(pending, tokens)
    assert all(count == want for count, want in zip(counts, pending, strict=True) if want <= 1)
    assert sum(counts) <= tokens
    prompts = [(count, want) for count, want in zip(counts, pending, strict=True) if want > 1]
    unfinished = next((at for at, (count, want) in enumerate(prompts) if count < want), len(prompts))
    assert all(count == want for count, want in prompts[:unfinished])
    answers = pending.count(1)
    left = min(tokens - answers, PROMPT_TOKENS_BESIDE_ANSWERS if answers else tokens)
    share = left // (2 * len(prompts) or 1)
    assert all(count >= min(want, share) for count, want in prompts), "a short prompt does not wait for the long ones"
    later = prompts[unfinished + 1 :]
    assert all(count == min(want, share) for count, want in later), "beside these shares first come, first served"
    if answers:
        assert sum(count for count, _ in prompts) <= PROMPT_TOKENS_BESIDE_ANSWERS
    if any(pending):
        assert sum(counts) > 0
