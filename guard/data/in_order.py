"""Pieces of work in several threads, whose results come in the order of the pieces."""

from __future__ import annotations

import contextvars
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Piece, threading.Event], Result], pieces: Iterable[Piece], *, at_once: int
) -> Generator[Result, None, None]:
    """Do pieces of work, several at once; yield each one's result in the order of the pieces.

    At most twice as many pieces are begun as results were taken, so that little is lost where it ends early.

    Args:
        work: gets a piece, and an event that is set when nobody wants its result any more.
        pieces: are taken one by one.
        at_once: how many threads there are; with one, the work is done in the caller's.

    Raises:
        Exception: whatever a piece of work raises, in its turn; the later ones are cancelled.

    Examples:
        >>> [*in_order(lambda number, cancel: number**2, range(5), at_once=3)]
        [0, 1, 4, 9, 16]
    """
    cancel = threading.Event()
    if at_once == 1:
        yield from (work(piece, cancel) for piece in pieces)
        return
    begun: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="guard-asking")
    try:
        for piece in pieces:
            begun.append(pool.submit(contextvars.copy_context().run, work, piece, cancel))
            if len(begun) >= 2 * at_once:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()
    finally:
        cancel.set()
        pool.shutdown(cancel_futures=True)
