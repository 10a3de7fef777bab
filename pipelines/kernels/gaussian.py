"""Gaussian random blocks whose every entry depends on the seed and its place alone, not on who draws it and when.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3" (2011): Philox turns
a counter into bits, so any rows can be drawn without those before them.
"""

import numpy as np
from scipy.special import ndtri

WORDS = 4
"""64-bit words that Philox makes of one counter."""


def gaussian(seed: int, start: int, stop: int, columns: int) -> np.ndarray:
    """Rows start..stop of a matrix of independent standard normal numbers, (stop − start, columns)."""
    blocks = -(-columns // WORDS)
    bits = np.random.Philox(key=seed, counter=start * blocks).random_raw((stop - start) * blocks * WORDS)
    # The middle of one of 2⁵³ equal parts of (0, 1): never 0 or 1, whose normal quantiles are infinite.
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53
    drawn: np.ndarray = ndtri(uniform.reshape(stop - start, blocks * WORDS)[:, :columns])
    return drawn
