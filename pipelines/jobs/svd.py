"""The SVD job: what its file may say."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipelines.fields import NOT_BOOL, Model, needed
from pipelines.jobs.base import Bound, MatrixJob, RequireFactors, Rtol
from pipelines.methods.options import LowRankChoice, Randomized


class RequireSVD(RequireFactors):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    orthogonality: Bound | None = None
    """Largest ||UᵀU - I|| accepted (Frobenius norm)."""
    reconstruction_error: Bound | None = None
    """Largest ||A - U S Vᵀ|| / ||A|| accepted (Frobenius norm)."""
    values_error: Bound | None = None
    """Largest error bound of a singular value accepted, relative to the largest value."""


class Relative(Model):
    """Singular values down to a part of the largest."""

    tolerance: Annotated[float, Field(gt=0, lt=1), NOT_BOOL]
    """Values below this times the largest are left out."""


class SVD(MatrixJob):
    """A = U S Vᵀ with orthonormal U and V; s descends and is not negative."""

    kind: Literal["svd"] = "svd"
    """The kind of job."""
    values: Literal["all"] | Annotated[int, Field(ge=1), NOT_BOOL] | Relative = Field("all", validate_default=True)
    """all of them, the k largest, or {tolerance: 1e-6} for those above that part of the largest."""
    method: LowRankChoice = "auto"  # type: ignore[assignment]  # more choices than other kinds have
    """auto, {name: tsqr} for all values to the last digit, or block_krylov, subspace_iteration, sketch: randomized."""
    vectors: Literal["none", "right", "both"] = "none"
    """none writes s alone, right Vt too, both U as well, chunk by chunk as A is stored."""
    rtol: Rtol = "auto"
    """The rank: singular values below rtol times the largest count as zero, and no vectors are written for them."""
    require: RequireSVD = RequireSVD()
    """What the certificate has to reach."""

    @field_validator("values")
    @classmethod
    def _all_are_exact(cls, values: Any, info: ValidationInfo) -> Any:
        if values == "all" and isinstance(info.data.get("method"), Randomized):
            raise needed("a number or {tolerance: ...} with a randomized method, which finds the largest values only")
        return values
