"""Room that a thread uses again and again: fresh memory would cost a page fault for every 4 KiB, again and again."""

import threading
from typing import Any

import numpy as np

_own = threading.local()


def scratch(what: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """An array in C order with anything in it, this thread's until it asks for the same `what` again."""
    held: dict[str, np.ndarray] = _own.__dict__
    size = int(np.prod(shape))
    if what not in held or held[what].dtype != dtype or held[what].size < size:
        held[what] = np.empty(size, dtype)
    return held[what][:size].reshape(shape)


def adjoint(a: np.ndarray, what: str = "adjoint") -> np.ndarray:
    """Aᴴ: a view of real rows, and of complex ones a copy in scratch."""
    if a.dtype.kind != "c":
        return a.T
    conjugate: np.ndarray = np.conjugate(a, out=scratch(what, a.shape, a.dtype))
    return conjugate.T


def product(a: np.ndarray, b: np.ndarray, what: str) -> np.ndarray:
    """A B in scratch."""
    out = scratch(what, (a.shape[0], b.shape[1]), np.result_type(a, b))
    return np.matmul(a, b, out=out)


def norm2(a: np.ndarray) -> float:
    """‖A‖_F² of an array in C order."""
    return float(np.vdot(a, a).real)
