"""Work in several threads, with results in the order of the pieces of work."""

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
    """Do several pieces of work at once; yield their results in the order of the pieces.

    At most twice ``at_once`` pieces are started ahead of the results, so little work is lost if the caller stops early.

    Args:
        work: function of a piece and of an event that is set when its result is no longer wanted.
        pieces: pieces of work, taken one by one.
        at_once: number of threads; with one, the work is done in the caller's thread.

    Raises:
        Exception: the error of a piece of work, in its turn; later pieces are cancelled.

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
