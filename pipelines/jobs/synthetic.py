"""A matrix and a right-hand side that are made from a seed instead of read: what a job file may say of them."""

from typing import Annotated, Any, Literal

from pydantic import Field

from pipelines.fields import NOT_BOOL, Model, needed

Length = Annotated[int, Field(ge=1, le=10**15), NOT_BOOL]


class SyntheticMatrix(Model):
    """A random matrix of known condition number: the same entries on any cluster, however its rows are cut."""

    rows: Length
    """m."""
    columns: Length
    """n; with more columns than rows the columns are made as the rows of a tall matrix are."""
    condition: Annotated[float, Field(ge=1, le=1e300), NOT_BOOL] = 1000.0
    """The condition number: singular values fall geometrically to 1/condition of the largest (about, for a tall A)."""
    seed: Annotated[int, Field(ge=0, lt=2**64), NOT_BOOL] = 0
    """Another seed gives another matrix and other noise."""
    dtype: Literal["float64", "float32"] = "float64"
    """Number type of the entries."""


class SyntheticNoise(Model):
    """b = A·1 + noise of a synthetic matrix, so that x is near ones; 1 + noise where A is wide."""

    noise: Annotated[float, Field(ge=0, le=1e300), NOT_BOOL] = 0.1
    """Standard deviation of the noise; entries of A times the square root of n are at most about 1."""


class FromSeed(Model):
    """A matrix that workers make as they need it, to rehearse a job before its data is there."""

    synthetic: SyntheticMatrix
    """{rows: ..., columns: ..., condition: ..., seed: ..., dtype: ...}"""


class RhsFromSeed(Model):
    """The right-hand side of a synthetic matrix."""

    synthetic: SyntheticNoise
    """{noise: ...}"""


def must_be_beside(rhs: Any, matrix: Any) -> None:
    """Raises PydanticCustomError for a synthetic rhs of a matrix that is not synthetic."""
    if isinstance(rhs, RhsFromSeed) and not isinstance(matrix, FromSeed):
        raise needed(
            f"b itself: a synthetic rhs is A·1 + noise of a synthetic matrix, and the matrix is {_what(matrix)}"
        )


def _what(matrix: Any) -> str:
    if isinstance(matrix, str):
        return matrix
    if hasattr(matrix, "url"):
        return str(matrix.url)
    return f"an array of shape {' × '.join(f'{length:,}' for length in matrix.shape)}"
