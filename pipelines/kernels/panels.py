"""WᴴW of wide rows by panels of columns, on several threads: one state for a whole machine.

Each panel is a product of its own, cut the same whatever the number of threads, so the bits do not depend on it.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from pipelines.kernels.blas import multiply

FROM_COLUMNS = 4096
"""Narrower states are small enough for each thread to have one."""
PANEL = 512
"""Columns of a panel: products with so many reach the speed of larger ones."""

_threads = 1


def use_threads(count: int) -> None:
    """Panels run on so many threads of this process from now on."""
    global _threads  # noqa: PLW0603  # a process has so many
    _threads = count


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "panel")


def panels(p: int) -> list[tuple[int, int]]:
    """First and last column of each, the longest ones, which are to the right, first."""
    return [(start, min(start + PANEL, p)) for start in reversed(range(0, p, PANEL))]


def divided(S: np.ndarray, P: np.ndarray, W: np.ndarray) -> np.ndarray:
    """W = S P of real S (rows, p) and W in row order, and upper triangular P (p, p) in column order."""

    def one(panel: tuple[int, int]) -> None:
        low, high = panel
        multiply(P[:high, low:high].T, S.T[:high], W.T[low:high])

    _each(one, panels(len(P)))
    return W


def add_gram(W: np.ndarray, G: np.ndarray) -> None:
    """G += WᵀW (p, p), upper triangle, in place; real W (rows, p) is in row order, G in column order."""

    def one(panel: tuple[int, int]) -> None:
        low, high = panel
        multiply(W.T[:high], W[:, low:high], G[:high, low:high], add=True)

    _each(one, panels(len(G)))


def _each(one: Callable[[Any], None], parts: Iterable[Any]) -> None:
    list(_pool(_threads).map(one, parts))
