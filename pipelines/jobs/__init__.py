"""The kinds of job: adding one is one file here, one in pipelines/kinds and one line in each list below.

A kind is imported when a job file asks for it, so that reading one costs no more with every further kind.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Discriminator

if TYPE_CHECKING:
    from pipelines.fields import Model
    from pipelines.jobs.apply import Apply
    from pipelines.jobs.base import ArraySource
    from pipelines.jobs.least_squares import LeastSquares, Require
    from pipelines.jobs.low_rank import LowRank
    from pipelines.jobs.pca import PCA
    from pipelines.jobs.pca_transform import PCATransform
    from pipelines.jobs.pseudoinverse import Pseudoinverse
    from pipelines.jobs.qr import QR
    from pipelines.jobs.svd import SVD

    Job = Annotated[
        LeastSquares | QR | SVD | PCA | Pseudoinverse | LowRank | Apply | PCATransform, Discriminator("kind")
    ]
    """Every kind of job, told apart by `kind`."""

KINDS = {
    "least_squares": "LeastSquares",
    "qr": "QR",
    "svd": "SVD",
    "pca": "PCA",
    "pseudoinverse": "Pseudoinverse",
    "low_rank": "LowRank",
    "apply": "Apply",
    "pca_transform": "PCATransform",
}
"""The class of each kind, which lies in the module of the kind's name."""
_HOMES = {name: kind for kind, name in KINDS.items()} | {"ArraySource": "base", "Require": "least_squares"}

__all__ = [
    "PCA",
    "QR",
    "SVD",
    "Apply",
    "ArraySource",
    "Job",
    "LeastSquares",
    "LowRank",
    "PCATransform",
    "Pseudoinverse",
    "Require",
]


def job_model(kind: str) -> "type[Model]":
    """The class of a kind of job."""
    model: type[Model] = getattr(import_module(f"pipelines.jobs.{kind}"), KINDS[kind])
    return model


def __getattr__(name: str) -> Any:
    if name == "Job":
        least_squares, *others = map(job_model, KINDS)
        union: Any = least_squares
        for other in others:
            union |= other
        return Annotated[union, Discriminator("kind")]
    if name not in _HOMES:
        raise AttributeError(f"module 'pipelines.jobs' has no attribute '{name}'")
    return getattr(import_module(f"pipelines.jobs.{_HOMES[name]}"), name)
