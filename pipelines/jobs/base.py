"""The arrays that a job reads: stored ones by path or URL, or (in Python) arrays themselves."""

import os
import posixpath
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, PlainSerializer, Tag, ValidationInfo, field_validator, model_validator
from pydantic.json_schema import SkipJsonSchema

from pipelines.addresses import Address
from pipelines.fields import NOT_BOOL, Model, Seconds, Url, needed
from pipelines.jobs.synthetic import FromSeed, RhsFromSeed
from pipelines.methods.options import MethodChoice
from pipelines.stores import StorageOptions, check_options

Index = Annotated[int, NOT_BOOL]
Bound = Annotated[float, Field(gt=0, allow_inf_nan=False), NOT_BOOL]
Rtol = Literal["auto", "numpy", "scipy", "gelsd"] | Annotated[float, Field(ge=0, lt=1), NOT_BOOL]
NumberType = Literal["auto", "float32", "float64", "complex64", "complex128"]


class ArraySource(Model):
    """A stored Zarr array (version 2 or 3), or a part of one."""

    url: Url
    """Path or URL of the array: the array itself, not the group that holds it."""
    rows: tuple[Index, Index] | None = None
    """[start, stop]: rows start to stop - 1, counted from 0; all rows when left out."""
    columns: tuple[Index, ...] | None = None
    """Indices of the columns to use, counted from 0, in this order and none twice; all when left out."""
    storage_options: StorageOptions = Field({})
    """Options of the store of this array, in place of those of the job."""

    @field_validator("rows")
    @classmethod
    def _rows_are_a_range(cls, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        if rows is not None and not 0 <= rows[0] < rows[1]:
            raise needed("[start, stop] with 0 <= start < stop")
        return rows

    @field_validator("columns")
    @classmethod
    def _columns_are_distinct(cls, columns: tuple[int, ...] | None) -> tuple[int, ...] | None:
        seen: set[int] = set()
        for place, column in enumerate(columns or ()):
            if column < 0:
                raise needed(f"indices counted from 0; {column} at position {place} is below 0")
            if column in seen:
                raise needed(f"each column once; {column} stands there twice")
            seen.add(column)
        return columns


def _spelling(value: Any) -> str | None:
    """How an array is given: by its url, by a source, by a seed, or as an array of Python."""
    if isinstance(value, str | os.PathLike):
        return "url"
    if isinstance(value, FromSeed | RhsFromSeed) or (isinstance(value, Mapping) and "synthetic" in value):
        return "synthetic"
    if isinstance(value, Mapping | ArraySource):
        return "source"
    return "array" if hasattr(value, "shape") and hasattr(value, "dtype") else None


def _described(array: Any) -> dict[str, Any]:
    """What a summary says of an array that lives in this process only."""
    kind = type(array)
    return {
        "array": f"{kind.__module__}.{kind.__qualname__}",
        "shape": [int(length) for length in array.shape],
        "dtype": str(array.dtype),
    }


InPython = SkipJsonSchema[Annotated[Any, Tag("array"), PlainSerializer(_described, when_used="json")]]
SOURCE = "a path or URL, or {url: ..., rows: [start, stop], columns: [...]}"

ArrayInput = Annotated[
    Annotated[Url, Tag("url")] | Annotated[ArraySource, Tag("source")] | InPython,
    Discriminator(_spelling, custom_error_type="needed", custom_error_message=SOURCE),
]
"""An array: a path or URL, a source, or (in Python only) anything with a shape and a dtype."""
MatrixInput = Annotated[
    Annotated[Url, Tag("url")]
    | Annotated[ArraySource, Tag("source")]
    | Annotated[FromSeed, Tag("synthetic")]
    | InPython,
    Discriminator(
        _spelling,
        custom_error_type="needed",
        custom_error_message=f"{SOURCE}, or {{synthetic: {{rows: ..., columns: ...}}}}",
    ),
]
"""The same, or a matrix that is made from a seed."""
RhsInput = Annotated[
    Annotated[Url, Tag("url")]
    | Annotated[ArraySource, Tag("source")]
    | Annotated[RhsFromSeed, Tag("synthetic")]
    | InPython,
    Discriminator(
        _spelling, custom_error_type="needed", custom_error_message=f"{SOURCE}, or {{synthetic: {{noise: ...}}}}"
    ),
]
"""The same, or that of a matrix that is made from a seed."""


def as_source(array: Any) -> Any:
    """The ArraySource of a stored array; what is made from a seed, and an array of Python, as it is."""
    return ArraySource(url=array) if isinstance(array, str) else array


Compressor = Literal["none", "zstd", "blosc", "gzip"]


class RequireFactors(Model):
    """What the certificate has to reach; a job that finishes below it exits with code 8."""

    rank: Literal["full"] | Annotated[int, Field(ge=0), NOT_BOOL] | None = None
    """The rank that A must have: full, or a number."""
    condition_number: Annotated[float, Field(ge=1, allow_inf_nan=False), NOT_BOOL] | None = None
    """Largest condition number accepted."""
    checksums: bool = False
    """Refuse stored arrays whose chunks carry no checksum, since damage to them could go unseen."""


class MatrixJob(Model):
    """What all kinds of job on one matrix share."""

    kind: str
    """The kind of job."""
    matrix: MatrixInput
    """A, shape (m, n): tall, square or wide, of any number type."""
    output: Url | None = None
    """Path or URL of the result, a Zarr group; it appears whole or not at all."""
    method: MethodChoice = "auto"
    """auto, or {name: tsqr | cholesky_qr, and its options}."""
    nan: Literal["error", "omit_rows"] = "error"
    """What to do with NaN or infinity in A: stop, or leave such rows out: they count, and are written, as zeros."""
    missing_chunks: Literal["error", "fill"] = "error"
    """What to do with chunks that are not in the store: stop, or take the array's fill value for them."""
    fingerprint: Literal["stat", "content"] = "stat"
    """What input chunks are told apart by: stat (size and time, or ETag), or content (their bytes: one read more)."""
    verify: bool = True
    """Measure what was made: the errors that the certificate names."""
    dtype: NumberType = "auto"
    """Number type of the answer; auto is float64, or complex128 for complex input."""
    compressor: Compressor = "none"
    """How chunks of large arrays are compressed: none, zstd, blosc (lz4, shuffled) or gzip; always with checksums."""
    overwrite: bool = False
    """Replace the result that is already at the output; without it, an existing result is an error."""
    no_progress_timeout: Seconds = Field("10m", validate_default=True)
    """Time without any progress after which the run is interrupted, such as "10m" or "2h"."""
    checkpoints: bool = True
    """Keep what each span has made beside the output, so that a run that is interrupted goes on from there."""
    storage_options: StorageOptions = Field({})
    """Options of the stores of this job's URLs, such as {region: eu-central-1}; secrets as ${NAME} only."""

    @field_validator("output")
    @classmethod
    def _output_is_apart(cls, output: str | None, info: ValidationInfo) -> str | None:
        must_be_apart(output, "matrix", info.data.get("matrix"))
        return output

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        check_storage_options(self)
        return self


def check_storage_options(job: Any) -> None:
    """Raises PydanticCustomError where an option does not go with the store of a URL."""
    fields = {name: getattr(job, name) for name in type(job).model_fields}
    sources = {name: value for name, value in fields.items() if isinstance(value, ArraySource)}
    own = {name for name, source in sources.items() if source.storage_options}
    for name in own:
        check_options(sources[name].storage_options, {name: sources[name].url}, name)
    urls = {name: getattr(value, "url", value) for name, value in fields.items() if name not in own}
    check_options(job.storage_options, {name: url for name, url in urls.items() if isinstance(url, str)})


def address_of(source: Any, job: Any) -> Address:
    """Where a path, URL or source lies, with its own options or those of the job."""
    if isinstance(source, ArraySource):
        return Address(source.url, source.storage_options or job.storage_options)
    return Address(source, job.storage_options)


def must_be_apart(output: str | None, name: str, array: Any) -> None:
    """Writing the result must not touch the input: neither may lie inside the other."""
    if output is not None and canonical(output) == os.path.sep:
        raise needed("an output with a name, such as results/x.zarr; this is the root of the file system")
    url = array.url if isinstance(array, ArraySource) else array
    if output is None or not isinstance(url, str):
        return
    result, stored = canonical(output), canonical(url)
    if (result + "/").startswith(stored + "/"):
        raise needed(f"an output outside the input; {output} lies inside {name}, {url}")
    if (stored + "/").startswith(result + "/"):
        raise needed(f"an output outside the input; {name}, {url}, lies inside {output} and would be replaced")


def canonical(url: str) -> str:
    """One spelling for every way to write a place."""
    if "://" in url and not url.startswith("file://"):
        scheme, _, rest = url.partition("://")
        return f"{scheme}://{posixpath.normpath(rest)}"
    return os.path.realpath(url.removeprefix("file://"))  # where it is written to, whatever links lead there


__all__ = [
    "ArrayInput",
    "ArraySource",
    "Bound",
    "Compressor",
    "MatrixInput",
    "MatrixJob",
    "Model",
    "NumberType",
    "RequireFactors",
    "RhsInput",
    "Rtol",
    "address_of",
    "as_source",
    "canonical",
    "check_storage_options",
    "must_be_apart",
]
