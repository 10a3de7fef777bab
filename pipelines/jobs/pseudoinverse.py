"""The pseudoinverse job: what its file may say."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from pipelines.fields import NOT_BOOL, Bytes, needed
from pipelines.jobs.base import Bound, MatrixJob, RequireFactors, Rtol


class RequirePseudoinverse(RequireFactors):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    penrose: Bound | None = None
    """Largest residual accepted of Penrose's four conditions, as the certificate scales them."""


class Pseudoinverse(MatrixJob):
    """A⁺, shape (n, m): the Moore-Penrose inverse, or that of the nearest matrix of lower rank, or Tikhonov's."""

    kind: Literal["pseudoinverse"] = "pseudoinverse"
    """The kind of job."""
    form: Literal["auto", "explicit", "operator"] = "auto"
    """explicit writes A⁺; operator keeps its factors, for `kind: apply`; auto is explicit up to explicit_at_most."""
    explicit_at_most: Bytes = Field("64 GB", validate_default=True)
    """Largest A⁺ that form: auto writes, such as "64 GB"."""
    side: Literal["any", "left", "right"] = "any"
    """left needs independent columns (A⁺A = I), right independent rows (AA⁺ = I); any needs neither."""
    rtol: Rtol = "auto"
    """Singular values below rtol times the largest count as zero: a number, or whose rule decides."""
    rank: Annotated[int, Field(ge=1), NOT_BOOL] | None = None
    """Keep this many of the largest singular values, and no more."""
    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False), NOT_BOOL] = 0.0
    """λ of (AᵀA + λI)⁻¹Aᵀ (Tikhonov): not squared here; 0 for none."""
    require: RequirePseudoinverse = RequirePseudoinverse()
    """What the certificate has to reach."""

    @field_validator("ridge")
    @classmethod
    def _ridge_is_not_cut(cls, ridge: float, info: ValidationInfo) -> float:
        if ridge and info.data.get("rank") is not None:
            raise needed("a ridge or a rank, not both: a ridge keeps every direction")
        if ridge and info.data.get("side") != "any":
            raise needed("side: any, since with a ridge neither A⁺A nor AA⁺ is the identity")
        return ridge
