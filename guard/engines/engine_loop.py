"""The thread that owns a model: requests join and leave between its steps.

Each step continues all running answers by a token and the prompts by a part, in one pass of the model. Callers, in
whatever thread or event loop, only put requests in and read what comes out: a caller that is slow, has left or
has died holds up nobody.
"""

from __future__ import annotations

import atexit
import contextlib
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable
from itertools import count

from guard.engines.batch import BatchModel, Feed, PassRow, Start, share_out
from guard.engines.request import POLL_S, Item, Request
from guard.engines.running import ANSWER_ROOM, RunningAnswer
from guard.engines.slots import Placement, SlotTable, common_prefix
from guard.errors import CancelledError, EngineError, GuardError, InputError

#: A request waits for an earlier prompt that is still being read if at least as many more of its tokens are the same.
WORTH_WAITING = 64

#: Signals of a thread's own faults.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS")

#: Loops with a thread, which has to end before the interpreter does.
_loops: weakref.WeakSet[EngineLoop] = weakref.WeakSet()


#: Seconds that the thread waits for another request before it ends. Each thread that calls OpenMP keeps a team of
#: workers, and as soon as a process has more of them than cores, libgomp lets none spin: a model that stops at each
#: layer then wakes its workers at each layer. So a thread with nothing to do leaves the cores to other engines.
LINGER_S = 0.1


class EngineLoop:
    """Runs an engine's requests in a thread of its own, which starts with a request and ends soon after the last.

    The thread keeps the engine alive only while there is something to do.
    """

    def __init__(self, engine: BatchModel) -> None:
        self._engine = weakref.ref(engine, self._wake)
        self._changed = threading.Condition()
        self._waiting: deque[Request] = deque()
        self._running: list[RunningAnswer] = []
        #: Answers that had to give up their slots, in the order in which they came.
        self._paused: list[RunningAnswer] = []
        self._turns = count()
        self._table: SlotTable | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._at_end: Callable[[], None] = _nothing
        #: How many tokens the model has evaluated.
        self.evaluated = 0

    # -- for callers -----------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many requests have no slot yet."""
        with self._changed:
            return len(self._waiting)

    def submit(self, request: Request) -> None:
        """Put a request in; what becomes of it is in its outbox.

        Raises:
            EngineError: the engine is closed.
            InputError: an observer or ``on_token`` of another request asks, which would wait for itself.
        """
        self.refuse_own_thread()
        with self._changed:
            if self._closed:
                raise closed_error()
            self._waiting.append(request)
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def refuse_own_thread(self) -> None:
        """Refuse a call from the engine's own thread, which would wait for itself.

        Raises:
            InputError: an observer or ``on_token`` calls.
        """
        if threading.current_thread() is self._thread:
            raise InputError(
                "An observer or on_token asks the engine that calls it", fix="Ask once the answer is complete"
            )

    def leave(self, request: Request) -> None:
        """Say that nobody reads a request's outbox any more; harmless where it has ended.

        A thread waits until the model has let go of the request, which takes a step at most; a task does not.
        """
        outbox = request.outbox
        outbox.abandon()
        self._pop(request)
        while not outbox.in_task and self._thread not in (None, threading.current_thread()):
            if outbox.ended.wait(POLL_S):
                return

    def close(self, at_end: Callable[[], None]) -> None:
        """End all requests with an error, and the thread.

        Args:
            at_end: called when no thread uses the model any more.
        """
        with self._changed:
            self._closed, self._at_end = True, at_end
            thread = self._thread
            self._changed.notify_all()
        if thread is None:
            at_end()
        elif thread is not threading.current_thread():
            thread.join()

    # -- the thread ------------------------------------------------------------------------------

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._work, name="guard-engine", daemon=True)
        _loops.add(self)
        self._thread.start()

    def _wake(self, _: object) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        _leave_signals_to_others()
        while self._has_work():
            engine = self._engine()
            if engine is not None:
                self._serve(engine)
            del engine  # one that nobody else uses is freed here

    def _has_work(self) -> bool:
        """Wait for a request; where none comes, or none can come, return False: the loop has no thread any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_over(), LINGER_S)
            over = self._is_over()
            if self._waiting and not over:
                return True
            self._thread = None  # the next request starts another
        if over:
            self._end_waiting(closed_error())
            self._at_end()
        return False

    def _is_over(self) -> bool:
        return self._closed or self._engine() is None

    def _serve(self, engine: BatchModel) -> None:
        """Make steps until nothing is left to do."""
        try:
            while self._waiting or self._running or self._paused:
                if self._closed:
                    raise closed_error()
                self._step(engine)
        except BaseException as error:  # noqa: BLE001 - the callers raise it
            self._end_running(engine, error)
            self._end_paused(error)
            self._end_waiting(error)

    # -- one step --------------------------------------------------------------------------------

    def _step(self, engine: BatchModel) -> None:
        """Let requests in, and continue those that run by one pass."""
        self._end_interrupted(engine)
        self._make_room(engine)
        self._admit(engine)
        counts = share_out([running.pending for running in self._running], engine.batch_tokens)
        turns = [(running, running.feed(count)) for running, count in zip(self._running, counts, strict=True) if count]
        if not turns:
            return
        try:
            rows = iter(engine._evaluate([feed for _, feed in turns]))
        except BaseException as error:  # noqa: BLE001 - the callers raise it
            self._forget_all(engine)
            self._end_running(engine, error)
            return
        for running, feed in turns:
            self._slots(engine).extend(feed.slot, feed.tokens)
            self.evaluated += len(feed.tokens)
            self._take(engine, running, feed, next(rows) if feed.chooses else None)

    def _take(self, engine: BatchModel, running: RunningAnswer, feed: Feed, row: PassRow | None) -> None:
        try:
            running.take(feed, row)
        except BaseException as error:  # noqa: BLE001 - its caller raises it, and the others continue
            self._end(engine, running, error)
        else:
            if running.done is not None:
                self._end(engine, running, running.done)

    # -- requests join ---------------------------------------------------------------------------

    def _admit(self, engine: BatchModel) -> None:
        """Give slots to requests, first come, first served: to those that had one before, then to waiting ones."""
        while not (engine.one_at_a_time and self._running):
            if not (self._resume(engine) if self._paused else self._start_next(engine)):
                return

    def _resume(self, engine: BatchModel) -> bool:
        """Let the first paused answer continue; return whether there is room for it."""
        running = self._paused[0]
        placement = self._slots(engine).place(running.tokens, running.room, running.request.prompt.cache_key)
        if placement is not None:
            self._begin(engine, self._paused.pop(0), placement)
        return placement is not None

    def _start_next(self, engine: BatchModel) -> bool:
        """Let the first waiting request begin; return False where there is none, or no room for it now."""
        request, table = self._first(), self._slots(engine)
        if request is None or self._is_about_to_share(table, request):
            return False
        room = min(request.room, len(request.tokens) + ANSWER_ROOM)
        placement = table.place(request.tokens, room, request.prompt.cache_key)
        if placement is None:
            return False
        if not self._pop(request):  # its caller has just left
            table.release(placement.slot)
        elif running := self._opened(engine, request, placement.slot):
            self._begin(engine, running, placement)
        return True

    def _opened(self, engine: BatchModel, request: Request, slot: int) -> RunningAnswer | None:
        """Return a request that has a slot now; None where it fails at once."""
        try:
            return RunningAnswer(request, slot, next(self._turns), engine._reader)
        except BaseException as error:  # noqa: BLE001 - its caller raises it
            self._slots(engine).shorten(slot, 0)
            self._slots(engine).release(slot)
            _close(request, error)
            return None

    def _first(self) -> Request | None:
        with self._changed:
            return self._waiting[0] if self._waiting else None

    def _pop(self, request: Request) -> bool:
        """Take a request out of the queue; return whether it was still there."""
        with self._changed:
            if request not in self._waiting:
                return False
            self._waiting.remove(request)
            if request.outbox.abandoned:
                request.outbox.ended.set()
            return not request.outbox.abandoned

    def _is_about_to_share(self, table: SlotTable, request: Request) -> bool:
        """Return whether an earlier prompt that is still being read has much more in common with a request's."""
        key, tokens = request.prompt.cache_key, request.tokens
        unread = [each.unread for each in self._running if each.request.prompt.cache_key == key]
        if not table.copies or not any(unread):
            return False
        soon = max(common_prefix(prompt, tokens) for prompt in unread)
        return soon >= max(table.shared(slot, tokens, key) for slot in table.slots) + WORTH_WAITING

    def _begin(self, engine: BatchModel, running: RunningAnswer, placement: Placement) -> None:
        slot, table, request = placement.slot, self._slots(engine), running.request
        start = Start(slot, running.tokens, placement.keep, placement.source, request.reader is not None)
        try:
            kept = engine._begin(start)
            for number in placement.evicted:  # now that what they had in common with the prompt is copied
                engine._forget(number)
        except BaseException as error:  # noqa: BLE001 - its caller raises it
            table.shorten(slot, 0)
            self._free_slot(engine, slot)
            _close(request, error)
            return
        table.shorten(slot, kept)
        running.begin(slot, kept)
        self._running.append(running)

    # -- answers grow ----------------------------------------------------------------------------

    def _make_room(self, engine: BatchModel) -> None:
        """Let answers grow, first come, first served. For want of room the one that came last gives up its slot.

        It continues once there is room again. So an answer takes the room that it fills, whatever its limit is, and
        the request that came first is never held up by later ones.
        """
        for running in sorted(self._running, key=_turn):
            while running in self._running and not self._has_room(engine, running):
                self._pause(engine, max(self._running, key=_turn))

    def _has_room(self, engine: BatchModel, running: RunningAnswer) -> bool:
        table = self._slots(engine)
        if len(running.tokens) <= table.slots[running.slot].room:
            return True
        evicted = table.grow(running.slot, running.room)
        for number in evicted or ():
            engine._forget(number)
        return evicted is not None

    def _pause(self, engine: BatchModel, running: RunningAnswer) -> None:
        self._running.remove(running)
        if error := self._free_slot(engine, running.slot):
            _close(running.request, error)
        else:
            self._paused = sorted([*self._paused, running], key=_turn)

    # -- requests leave --------------------------------------------------------------------------

    def _end_interrupted(self, engine: BatchModel) -> None:
        """End what was cancelled, is late, or is read by nobody."""
        for running in [*self._running]:
            if error := interruption(running.request):
                self._end(engine, running, error)
        for paused in [*self._paused]:
            if error := interruption(paused.request):
                self._paused.remove(paused)
                _close(paused.request, error)
        with self._changed:
            waiting = [*self._waiting]
        for request in waiting:
            if (error := interruption(request)) and self._pop(request):
                _close(request, error)

    def _end_running(self, engine: BatchModel, item: Item) -> None:
        for running in [*self._running]:
            self._end(engine, running, item)

    def _end_paused(self, item: Item) -> None:
        while self._paused:
            _close(self._paused.pop().request, item)

    def _end_waiting(self, item: Item) -> None:
        while request := self._first():
            if self._pop(request):
                _close(request, item)

    def _end(self, engine: BatchModel, running: RunningAnswer, item: Item) -> None:
        """Free a slot, and hand over what became of its request."""
        self._running.remove(running)
        _close(running.request, self._free_slot(engine, running.slot) or item)

    def _free_slot(self, engine: BatchModel, slot: int) -> BaseException | None:
        """Let go of a slot; return what the engine raises meanwhile."""
        try:
            engine._release(slot)
        except BaseException as error:  # noqa: BLE001 - a caller raises it
            return error
        finally:
            self._slots(engine).release(slot)
        return None

    def _forget_all(self, engine: BatchModel) -> None:
        """After a pass that failed, nobody knows what the model's memory holds."""
        self._slots(engine).clear()
        with contextlib.suppress(EngineError):  # it is closed
            engine._forget(None)

    def _slots(self, engine: BatchModel) -> SlotTable:
        if self._table is None:
            self._table = SlotTable(engine.slots, engine.cache_tokens, engine.reuse)
        return self._table


def _leave_signals_to_others() -> None:
    """Let Ctrl-C and other signals wake the main thread, where their handlers run; a crash is still a crash here."""
    if hasattr(signal, "pthread_sigmask"):
        faults = {getattr(signal, name) for name in _FAULTS if hasattr(signal, name)}
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)


def closed_error() -> EngineError:
    """Return the error of those who use an engine that is closed."""
    return EngineError("The engine or its model has been closed", fix="Build a new engine")


def interruption(request: Request) -> BaseException | None:
    """Return why a request has to end now; None where it need not."""
    if request.outbox.abandoned:
        return CancelledError("The request was cancelled")
    try:
        request.interrupt.check()
    except GuardError as error:
        return error
    return None


def _turn(running: RunningAnswer) -> int:
    return running.turn


def _close(request: Request, item: Item) -> None:
    request.outbox.ended.set()
    request.outbox.put(item)


def _nothing() -> None:
    """Nothing is left to do."""


@atexit.register
def _end_loops() -> None:
    """No thread may run a model while the interpreter ends; nobody is left to read what it writes."""
    for loop in [*_loops]:
        loop.close(_nothing)
