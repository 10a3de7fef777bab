"""Pieces read one after the other, or one ahead of whoever works on them."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

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
    """Read each piece, one ahead of the consumer, in a thread of its own."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:
        pending = None
        for number, (start, stop) in enumerate(pieces):
            following = pool.submit(read, start, stop, _first(buffers[number % 2], stop - start))
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def _first(buffer: np.ndarray | None, rows: int) -> np.ndarray | None:
    return None if buffer is None else buffer[:rows]
