"""One file for each kind of job: what it costs, and how its passes become a result."""

from typing import Any

from pipelines.kinds import apply, least_squares, low_rank, pca, pca_transform, pseudoinverse, qr, svd
from pipelines.kinds.base import Kind

KINDS: dict[str, Kind] = {
    "apply": apply,
    "least_squares": least_squares,
    "low_rank": low_rank,
    "pca": pca,
    "pca_transform": pca_transform,
    "pseudoinverse": pseudoinverse,
    "qr": qr,
    "svd": svd,
}
"""The kinds by name; adding one is one file here and one in pipelines/jobs."""


def kind_of(job: Any) -> Kind:
    """The module that knows how to do this job."""
    return KINDS[job.kind]


def resolved(job: Any) -> Any:
    """The job with all that it takes from an earlier result, opened; other jobs as they are.

    Raises:
        BadData: there is no such result.
    """
    if job.kind == "apply":
        return apply.resolved(job)
    return pca_transform.resolved(job) if job.kind == "pca_transform" else job
