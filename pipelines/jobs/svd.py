"""The SVD job: what its file may say."""

from typing import Annotated, Literal

from pydantic import Field

from pipelines.fields import NOT_BOOL, Model
from pipelines.jobs.base import Bound, MatrixJob, RequireFactors, Rtol


class RequireSVD(RequireFactors):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    orthogonality: Bound | None = None
    """Largest ||UᵀU - I|| accepted (Frobenius norm)."""
    reconstruction_error: Bound | None = None
    """Largest ||A - U S Vᵀ|| / ||A|| accepted (Frobenius norm)."""


class Relative(Model):
    """Singular values down to a part of the largest."""

    tolerance: Annotated[float, Field(gt=0, lt=1), NOT_BOOL]
    """Values below this times the largest are left out."""


class SVD(MatrixJob):
    """A = U S Vᵀ with orthonormal U and V; s descends and is not negative."""

    kind: Literal["svd"] = "svd"
    """The kind of job."""
    values: Literal["all"] | Annotated[int, Field(ge=1), NOT_BOOL] | Relative = "all"
    """all of them, the k largest, or {tolerance: 1e-6} for those above that part of the largest."""
    vectors: Literal["none", "right", "both"] = "none"
    """none writes s alone, right Vt too, both U as well, chunk by chunk as A is stored."""
    rtol: Rtol = "auto"
    """The rank: singular values below rtol times the largest count as zero, and no vectors are written for them."""
    require: RequireSVD = RequireSVD()
    """What the certificate has to reach."""
