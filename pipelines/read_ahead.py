"""Pieces read one after the other, or one ahead of whoever works on them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from pipelines.room import scarce

Buffers = Sequence[np.ndarray | None]
"""Memory for two pieces, or None for each where the reader has its own."""


def one_by_one[T](
    read: Callable[[int, int, np.ndarray | None], T], pieces: Sequence[tuple[int, int]], buffers: Buffers
) -> Iterator[T]:
    """Read each piece when the consumer is through with the one before: it still lies in the cache then."""
    for start, stop in pieces:
        yield read(start, stop, _first(buffers[0], stop - start))


def ahead[T](
    read: Callable[[int, int, np.ndarray | None], T], pieces: Sequence[tuple[int, int]], buffers: Buffers
) -> Iterator[T]:
    """Read each piece, one ahead of the consumer where memory is not scarce, in a thread of its own."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        pending: Future[T] | None = None
        for number, (start, stop) in enumerate(pieces):
            if pending is not None and scarce():
                yield pending.result()
                pending = None  # the only one who has it now is the consumer, who is through with it
            following = pool.submit(read, start, stop, _first(buffers[number % 2], stop - start))
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _first(buffer: np.ndarray | None, rows: int) -> np.ndarray | None:
    return None if buffer is None else buffer[:rows]
