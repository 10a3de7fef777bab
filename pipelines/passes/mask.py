"""Which equations of a wide system are finite: a read of Aᴴ that only looks, before rows are left out."""

from dataclasses import dataclass

import numpy as np

from pipelines.matrix import Slab, Span


@dataclass(frozen=True)
class Mask:
    """(m,) bool: True where row i of A holds no NaN and no infinity."""

    m: int
    slab_rows: int
    group: int = 64
    fan_in: int = 8
    name: str = "look"

    def start(self) -> np.ndarray:
        return np.ones(self.m, bool)

    def absorb(self, state: np.ndarray, slab: Slab) -> np.ndarray:
        result: np.ndarray = state & np.isfinite(slab.a).all(axis=0)
        return result

    def merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return left & right

    def finish(self, state: np.ndarray, span: Span) -> np.ndarray:
        return state

    def finite(self, state: np.ndarray) -> bool:
        return True  # finding what is not finite is what this pass is for
