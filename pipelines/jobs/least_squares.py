"""The least-squares job: what its file may say."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipelines.fields import NOT_BOOL, Model, Seconds, Url, needed
from pipelines.jobs.base import (
    ArrayInput,
    Bound,
    MatrixInput,
    NumberType,
    RhsInput,
    Rtol,
    check_storage_options,
    must_be_apart,
)
from pipelines.jobs.synthetic import must_be_beside
from pipelines.methods.options import PlainGram, SolvingChoice
from pipelines.stores import StorageOptions


class Require(Model):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    backward_error: Bound | None = None
    """Largest normwise backward error accepted, such as 1e-12."""
    forward_error: Bound | None = None
    """Largest bound on the relative error of x accepted, such as 1e-6 for six digits."""
    condition_number: Annotated[float, Field(ge=1, allow_inf_nan=False), NOT_BOOL] | None = None
    """Largest condition number accepted, of the columns scaled to equal length."""
    rank: Literal["full"] | Annotated[int, Field(ge=0), NOT_BOOL] | None = None
    """The rank that A must have: full, or a number."""
    checksums: bool = False
    """Refuse stored arrays whose chunks carry no checksum, since damage to them could go unseen."""


class LeastSquares(Model):
    """x that minimises ||A x - b||₂, the shortest such x when there are many, with a certificate."""

    kind: Literal["least_squares"] = "least_squares"
    """The kind of job."""
    matrix: MatrixInput
    """A, shape (m, n): tall, square or wide, of any number type."""
    rhs: RhsInput
    """b, shape (m,) or (m, k): one right-hand side, or k of them."""
    output: Url | None = None
    """Path or URL of the result, a Zarr group; it appears whole or not at all."""
    method: SolvingChoice = "auto"
    """auto, or {name: tsqr | cholesky_qr | gram, and its options}."""
    rtol: Rtol = "auto"
    """Singular values below rtol times the largest count as zero: a number, or whose rule decides."""
    ridge: Annotated[float, Field(ge=0, allow_inf_nan=False), NOT_BOOL] = 0.0
    """λ of ||A x - b||² + λ ||x||² (Tikhonov): not squared here; 0 for none."""
    weights: ArrayInput | None = None
    """w, shape (m,), not negative: minimise the sum of wᵢ rᵢ² over the residuals r = A x - b."""
    nan: Literal["error", "omit_rows"] = "error"
    """What to do with NaN or infinity in A, b or the weights: stop, or leave such rows out and count them."""
    missing_chunks: Literal["error", "fill"] = "error"
    """What to do with chunks that are not in the store: stop, or take the array's fill value for them."""
    fingerprint: Literal["stat", "content"] = "stat"
    """What input chunks are told apart by: stat (size and time, or ETag), or content (their bytes: one read more)."""
    verify: bool = True
    """Read the matrix a second time to measure the residual, certify x, and refine it where that helps."""
    dtype: NumberType = "auto"
    """Number type of the answer; auto is float64, or complex128 for complex input."""
    arrays: tuple[Literal["R", "singular_values"], ...] = ()
    """More arrays to write beside x and residual_norm."""
    require: Require = Require()
    """What the certificate has to reach."""
    overwrite: bool = False
    """Replace the result that is already at the output; without it, an existing result is an error."""
    no_progress_timeout: Seconds = Field("10m", validate_default=True)
    """Time without any progress after which the run is interrupted, such as "10m" or "2h"."""
    checkpoints: bool = True
    """Keep what each span has made beside the output, so that a run that is interrupted goes on from there."""
    storage_options: StorageOptions = Field({})
    """Options of the stores of this job's URLs, such as {region: eu-central-1}; secrets as ${NAME} only."""

    @field_validator("rhs")
    @classmethod
    def _rhs_is_of_the_matrix(cls, rhs: Any, info: ValidationInfo) -> Any:
        if "matrix" in info.data:
            must_be_beside(rhs, info.data["matrix"])
        return rhs

    @field_validator("output")
    @classmethod
    def _output_is_apart(cls, output: str | None, info: ValidationInfo) -> str | None:
        for name in ("matrix", "rhs"):
            must_be_apart(output, name, info.data.get(name))
        return output

    @field_validator("weights")
    @classmethod
    def _weights_are_apart(cls, weights: Any, info: ValidationInfo) -> Any:
        must_be_apart(info.data.get("output"), "weights", weights)
        return weights

    @field_validator("arrays")
    @classmethod
    def _arrays_are_distinct(cls, arrays: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(arrays)) < len(arrays):
            raise needed("each array once")
        return arrays

    @field_validator("require")
    @classmethod
    def _required_errors_are_measured(cls, require: Require, info: ValidationInfo) -> Require:
        asked = [name for name in ("backward_error", "forward_error") if getattr(require, name) is not None]
        if asked and info.data.get("verify") is False:
            raise needed(f"verify: true, since only the verifying pass measures {asked[0]}")
        return require

    @model_validator(mode="after")
    def _gram_is_refined(self) -> Self:
        if isinstance(self.method, PlainGram) and not self.verify:
            raise needed("verify: true with `method: gram`, whose x counts only as far as a read has measured it")
        if isinstance(self.method, PlainGram) and self.arrays:
            raise needed(f"another method than gram for {self.arrays[0]}, which it finds to half of the digits only")
        return self

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        check_storage_options(self)
        return self
