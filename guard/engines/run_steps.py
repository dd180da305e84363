"""Step through the generator of one request: pieces of text, and the generation as its return value."""

from __future__ import annotations

from collections.abc import Generator

from guard.records import Chunk, Generation


def drain(run: Generator[str, None, Generation]) -> Generation:
    """Return the generation of a run; its pieces of text are in it."""
    while True:
        piece = advance(run)
        if isinstance(piece, Generation):
            return piece


def advance(run: Generator[str, None, Generation]) -> str | Generation:
    """Return the next piece of text, or the generation at the end (StopIteration cannot cross threads)."""
    try:
        return next(run)
    except StopIteration as end:
        generation: Generation = end.value
        return generation


def chunks(run: Generator[str, None, Generation]) -> Generator[Chunk, None, Generation]:
    """Yield the pieces of text as chunks and return the generation; the run is closed in every case."""
    try:
        while True:
            piece = advance(run)
            if isinstance(piece, Generation):
                return piece
            yield Chunk(piece)
    finally:
        run.close()
