"""The kinds of job: adding one is one file here, one in pipelines/kinds and one line in the union."""

from typing import Annotated

from pydantic import Discriminator

from pipelines.jobs.base import ArraySource
from pipelines.jobs.least_squares import LeastSquares, Require
from pipelines.jobs.pca import PCA
from pipelines.jobs.pseudoinverse import Pseudoinverse
from pipelines.jobs.qr import QR
from pipelines.jobs.svd import SVD

Job = Annotated[LeastSquares | QR | SVD | PCA | Pseudoinverse, Discriminator("kind")]
"""Every kind of job, told apart by `kind`."""

__all__ = ["PCA", "QR", "SVD", "ArraySource", "Job", "LeastSquares", "Pseudoinverse", "Require"]
