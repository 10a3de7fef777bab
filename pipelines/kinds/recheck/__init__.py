"""Stored results measured once more: what a read of the input says of the arrays as they are now.

One file for each kind of result, whose `recheck` gives what the certificate would say today, and how far those arrays
are from what follows from the input that no certificate has a number for.  Nothing is taken from what the job once
computed but the arrays themselves; of a randomized method, whose vectors are measured, also the rank that it found.
"""

from collections.abc import Callable

from pipelines.kinds.base import Work
from pipelines.kinds.recheck import apply, least_squares, low_rank, pca, pca_transform, pseudoinverse, qr, svd
from pipelines.kinds.recheck.base import Rechecked
from pipelines.result import Result

RECHECKS: dict[str, Callable[[Work, Result], Rechecked]] = {
    "apply": apply.recheck,
    "least_squares": least_squares.recheck,
    "low_rank": low_rank.recheck,
    "pca": pca.recheck,
    "pca_transform": pca_transform.recheck,
    "pseudoinverse": pseudoinverse.recheck,
    "qr": qr.recheck,
    "svd": svd.recheck,
}
"""By kind of job."""
