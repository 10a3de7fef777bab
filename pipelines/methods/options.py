"""What a job file may say about each method: its name and its options."""

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from pipelines.fields import NOT_BOOL, Bytes, Model, Seconds, needed


class Method(Model):
    """What every method lets a job file say."""

    span_seconds: Annotated[Seconds, Field(gt=0)] = Field("2s", validate_default=True)
    """Work that one task holds, at the least, as the plan estimates it: longer tasks, fewer of them."""


class Exact(Method):
    """A method that finds R of [A b] to roundoff."""

    name: str
    """The name of the method."""
    block: Literal["auto"] | Annotated[int, Field(ge=1), NOT_BOOL] = "auto"
    """Columns of one block reflector in LAPACK's tpqrt (its NB); auto follows the number of columns."""
    slab_bytes: Literal["auto"] | Bytes = "auto"
    """Bytes of rows that one kernel call sees, such as "1 MiB"; auto fits the cache."""


class Tsqr(Exact):
    """QR of [A b] from the bottom of a tree upwards: one pass over the rows, nothing squared."""

    name: Literal["tsqr"] = "tsqr"
    """The name of the method."""
    products: bool = True
    """Add rows by products of matrices where that is as accurate as reflectors, and faster; false: never."""


class CholeskyQr(Exact):
    """Cholesky QR preconditioned by the triangle of a sample of rows: products and sums only, if they are accepted."""

    name: Literal["cholesky_qr"] = "cholesky_qr"
    """The name of the method."""
    sample: Annotated[int, Field(ge=2, le=1000), NOT_BOOL] = 8
    """Rows of the sample for each column; they are read once more."""


class Randomized(Method):
    """What methods that start from a block of random columns share."""

    oversampling: Annotated[int, Field(ge=0), NOT_BOOL] = 10
    """Columns of the random block beyond the values that are asked for."""
    most_columns: Annotated[int, Field(ge=1), NOT_BOOL] = 512
    """Columns of the widest random block that is tried when a tolerance decides how many are needed."""
    seed: Annotated[int, Field(ge=0, lt=2**63), NOT_BOOL] = 0
    """Of the random block: the same seed gives the same bits, on any number of workers."""


class Iterated(Randomized):
    """A randomized method that multiplies by AᵀA again and again."""

    name: str
    """The name of the method."""
    steps: Annotated[int, Field(ge=1, le=50), NOT_BOOL] = 2
    """Products with AᵀA, one read each: every one brings the values nearer."""


class BlockKrylov(Iterated):
    """Randomized block Krylov: all products are kept; after each step, and at the end, one read."""

    name: Literal["block_krylov"] = "block_krylov"
    """The name of the method."""


class SubspaceIteration(Iterated):
    """Randomized subspace iteration: the last product alone is kept; less memory, and more steps needed."""

    name: Literal["subspace_iteration"] = "subspace_iteration"
    """The name of the method."""
    steps: Annotated[int, Field(ge=1, le=50), NOT_BOOL] = 4
    """Products with AᵀA, one read each: every one brings the values nearer."""


class Sketch(Randomized):
    """An estimate from a single read: Nyström's approximation of AᵀA."""

    name: Literal["sketch"] = "sketch"
    """The name of the method."""


class PlainGram(Exact):
    """AᴴA, summed in one read without a division, and x refined until its backward error is that of the others."""

    name: Literal["gram"] = "gram"
    """The name of the method."""
    sample: Annotated[int, Field(ge=2, le=1000), NOT_BOOL] = 8
    """Rows of the sample for each column, which tells whether AᴴA can be used; they are read once more."""


METHODS: dict[str, type[Model]] = {"tsqr": Tsqr, "cholesky_qr": CholeskyQr}
"""The methods of every kind of job by name; adding one is one class here, one name below, one file beside this."""
SOLVING_METHODS = METHODS | {"gram": PlainGram}
"""Those of least squares, where x can be refined."""
LOW_RANK_METHODS = METHODS | {
    "block_krylov": BlockKrylov,
    "subspace_iteration": SubspaceIteration,
    "sketch": Sketch,
}
"""Those of the kinds of job that look for the largest singular values."""


def _spelled_out(names: Collection[str]) -> Callable[[Any], Any]:
    """`method: tsqr` is short for `method: {name: tsqr}`."""

    def spelled_out(value: Any) -> Any:
        if isinstance(value, dict) and "name" not in value:
            raise needed(f"auto, or a name among the options: {{name: {' | '.join(names)}, ...}}")
        return {"name": value} if isinstance(value, str) and value in names else value

    return spelled_out


def _name(value: Any) -> str:
    if isinstance(value, dict):
        return str(value["name"])
    return str(getattr(value, "name", value))


Auto = Annotated[Literal["auto"], Tag("auto")]

MethodChoice = Annotated[
    Auto | Annotated[Tsqr, Tag("tsqr")] | Annotated[CholeskyQr, Tag("cholesky_qr")],
    Discriminator(_name),
    BeforeValidator(_spelled_out(METHODS)),
]
"""auto, the name of a method, or {name: ..., and its options}."""

SolvingChoice = Annotated[
    Auto | Annotated[Tsqr, Tag("tsqr")] | Annotated[CholeskyQr, Tag("cholesky_qr")] | Annotated[PlainGram, Tag("gram")],
    Discriminator(_name),
    BeforeValidator(_spelled_out(SOLVING_METHODS)),
]
"""The same with the method that only least squares knows."""

LowRankChoice = Annotated[
    Auto
    | Annotated[Tsqr, Tag("tsqr")]
    | Annotated[CholeskyQr, Tag("cholesky_qr")]
    | Annotated[BlockKrylov, Tag("block_krylov")]
    | Annotated[SubspaceIteration, Tag("subspace_iteration")]
    | Annotated[Sketch, Tag("sketch")],
    Discriminator(_name),
    BeforeValidator(_spelled_out(LOW_RANK_METHODS)),
]
"""The same with the randomized methods."""
