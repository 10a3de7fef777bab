"""The low-rank job: what its file may say."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipelines.fields import NOT_BOOL, needed
from pipelines.jobs.base import Bound, MatrixJob, RequireFactors, Rtol
from pipelines.methods.options import LowRankChoice


class RequireLowRank(RequireFactors):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    reconstruction_error: Bound | None = None
    """Largest ||A - L R|| / ||A|| accepted (Frobenius norm)."""


class LowRank(MatrixJob):
    """A ≈ L R with L (m, r) and R (r, n): the nearest pair of rank r, or the smallest that is near enough."""

    kind: Literal["low_rank"] = "low_rank"
    """The kind of job."""
    rank: Annotated[int, Field(ge=1), NOT_BOOL] | None = None
    """r; or leave it out and give a tolerance."""
    tolerance: Annotated[float, Field(gt=0, lt=1), NOT_BOOL] | None = Field(None, validate_default=True)
    """Largest ||A - L R|| / ||A|| (Frobenius norm): r is the smallest rank that reaches it."""
    weight: Literal["both", "left", "right"] = "both"
    """Where the singular values go: √S into both factors, or S into L (left) or into R (right)."""
    method: LowRankChoice = "auto"  # type: ignore[assignment]  # more choices than other kinds have
    """auto, {name: tsqr} for the best pair to the last digit, or block_krylov, subspace_iteration, sketch."""
    rtol: Rtol = "auto"
    """Singular values below rtol times the largest count as zero, and add no columns to L."""
    require: RequireLowRank = RequireLowRank()
    """What the certificate has to reach."""

    @field_validator("tolerance")
    @classmethod
    def _one_of_two(cls, tolerance: float | None, info: ValidationInfo) -> float | None:
        rank = info.data.get("rank")
        if tolerance is None and rank is None and "rank" in info.data:
            raise needed("a rank or a tolerance")
        if tolerance is not None and rank is not None:
            raise needed("a rank or a tolerance, not both: they may contradict each other")
        return tolerance
