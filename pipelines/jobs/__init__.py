"""The kinds of job: adding one is one file here and one line in the union."""

from pipelines.jobs.base import ArraySource
from pipelines.jobs.least_squares import LeastSquares, Require

Job = LeastSquares
"""Every kind of job, told apart by `kind`: a union as soon as there are two."""

__all__ = ["ArraySource", "Job", "LeastSquares", "Require"]
