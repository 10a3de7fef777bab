"""Answers in a narrower number type than they were computed in."""

from typing import Any

import numpy as np

from pipelines.errors import BadData


def rounded(x: np.ndarray, stored: np.dtype[Any]) -> np.ndarray:
    """X as it is once it has been stored as `stored`, in its own type: what a certificate has to be measured on.

    Raises:
        BadData: a number is too large for that type.
    """
    if np.finfo(stored).eps <= np.finfo(x.dtype).eps:
        return x
    with np.errstate(over="ignore"):
        found = x.astype(stored).astype(x.dtype)
    if not np.isfinite(found).all() and np.isfinite(x).all():
        raise BadData(
            f"An entry of the answer is {np.abs(x).max():.1e}, and `dtype: {stored}` has room for numbers up to "
            f"{np.finfo(stored).max:.1e}. Set `dtype: auto` in the job file."
        )
    return found


def unit(stored: np.dtype[Any]) -> float:
    """The relative error of one rounding to this type."""
    return float(np.finfo(stored).eps) / 2
