"""The job that applies a stored operator: what its file may say."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from pipelines.fields import Model, Seconds, Url, needed, path_as_text, place_without_secrets
from pipelines.jobs.base import (
    Compressor,
    MatrixInput,
    NumberType,
    RhsInput,
    check_storage_options,
    must_be_apart,
)
from pipelines.jobs.synthetic import must_be_beside
from pipelines.stores import StorageOptions

Computed = Literal[
    "pinv",
    "pinv_adjoint",
    "project_range",
    "project_left_null",
    "project_row_space",
    "project_null",
    "leverage",
    "Q",
    "Q_adjoint",
]
"""What an operator can do: see Apply.compute."""
OF_M_ROWS = ("pinv", "project_range", "project_left_null", "Q_adjoint")
"""What takes a right-hand side with as many rows as A."""
OF_N_ROWS = ("pinv_adjoint", "project_row_space", "project_null", "Q")
"""What takes one with as many rows as A has columns."""


def _is_operator(value: Any) -> Any:
    """A path or URL, or (in Python) a result."""
    if hasattr(value, "summary"):
        return value
    path = path_as_text(value)
    if not isinstance(path, str) or not path:
        raise needed("the path or URL of a result")
    return place_without_secrets(path)


def _url_of(operator: Any) -> str:
    return operator if isinstance(operator, str) else str(operator.url or "in memory")


OperatorInput = Annotated[
    Any,
    BeforeValidator(_is_operator),
    PlainSerializer(_url_of, when_used="json"),
    WithJsonSchema({"type": "string", "minLength": 1}),
]


class RequireChecksums(Model):
    """What the input has to offer."""

    checksums: bool = False
    """Refuse stored arrays whose chunks carry no checksum, since damage to them could go unseen."""


class Apply(Model):
    """Products with a pseudoinverse or a Q that were kept as operators: A is read again, nothing is factored."""

    method: ClassVar[str] = "auto"
    verify: ClassVar[bool] = True

    kind: Literal["apply"] = "apply"
    """The kind of job."""
    operator: OperatorInput
    """Path or URL of a result: of `kind: pseudoinverse` with `form: operator`, or `kind: qr` with `form: implicit`."""
    compute: tuple[Computed, ...] = Field(min_length=1)
    """Any of pinv (A⁺B), pinv_adjoint (A⁺ᵀB), project_range (AA⁺B), project_left_null (B - AA⁺B), project_row_space
    (A⁺AB), project_null (B - A⁺AB), leverage (the diagonal of AA⁺); of a Q: Q (QB), Q_adjoint (QᵀB)."""
    rhs: RhsInput | None = Field(None, validate_default=True)
    """B, shape (m,) or (m, k), or (n,) or (n, k), as what is computed needs; none for leverage."""
    matrix: MatrixInput | None = None
    """A, where it lies now; left out, it is where it was factored."""
    output: Url | None = None
    """Path or URL of the result, a Zarr group with an array for each of `compute`; it appears whole or not at all."""
    nan: Literal["as_factored", "error", "omit_rows"] = "as_factored"
    """What to do with NaN or infinity in A: as when it was factored, stop, or take such rows as zeros."""
    missing_chunks: Literal["as_factored", "error", "fill"] = "as_factored"
    """What to do with chunks that are not in the store: as when A was factored, stop, or take the fill value."""
    fingerprint: Literal["as_factored", "stat", "content"] = "as_factored"
    """What input chunks are told apart by: as when A was factored, size and time, or content (their bytes)."""
    dtype: NumberType = "auto"
    """Number type of the answer; auto is float64, or complex128 for complex input."""
    compressor: Compressor = "none"
    """How chunks of large arrays are compressed: none, zstd, blosc (lz4, shuffled) or gzip; always with checksums."""
    require: RequireChecksums = RequireChecksums()
    """What the input has to offer."""
    overwrite: bool = False
    """Replace the result that is already at the output; without it, an existing result is an error."""
    no_progress_timeout: Seconds = Field("10m", validate_default=True)
    """Time without any progress after which the run is interrupted, such as "10m" or "2h"."""
    checkpoints: bool = True
    """Keep what each span has made beside the output, so that a run that is interrupted goes on from there."""
    storage_options: StorageOptions = Field({})
    """Options of the stores of this job's URLs, such as {region: eu-central-1}; secrets as ${NAME} only."""

    @field_validator("compute", mode="before")
    @classmethod
    def _one_is_a_list(cls, compute: Any) -> Any:
        return (compute,) if isinstance(compute, str) else compute

    @field_validator("compute")
    @classmethod
    def _of_one_length(cls, compute: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(compute)) < len(compute):
            raise needed("each of them once")
        both = [next((one for one in compute if one in names), None) for names in (OF_M_ROWS, OF_N_ROWS)]
        if all(both):
            raise needed(f"{both[0]} and {both[1]} in two jobs: one takes m rows of B, the other n")
        return compute

    @field_validator("rhs")
    @classmethod
    def _rhs_where_needed(cls, rhs: Any, info: ValidationInfo) -> Any:
        compute = info.data.get("compute", ())
        if rhs is not None and set(compute) == {"leverage"}:
            raise needed("no rhs: leverage takes none")
        if rhs is None and any(one != "leverage" for one in compute):
            raise needed(f"B, which {next(one for one in compute if one != 'leverage')} is applied to")
        return rhs

    @field_validator("matrix")
    @classmethod
    def _rhs_is_of_the_matrix(cls, matrix: Any, info: ValidationInfo) -> Any:
        if matrix is not None:
            must_be_beside(info.data.get("rhs"), matrix)
        return matrix

    @field_validator("output")
    @classmethod
    def _output_is_apart(cls, output: str | None, info: ValidationInfo) -> str | None:
        for name in ("operator", "matrix", "rhs"):
            must_be_apart(output, name, info.data.get(name))
        return output

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        check_storage_options(self)
        return self
