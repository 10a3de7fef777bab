"""What a job file may say about each method: its name and its options."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from pipelines.fields import NOT_BOOL, Bytes, Model, Seconds, needed


class Tsqr(Model):
    """QR of [A b] from the bottom of a tree upwards: one pass over the rows, nothing squared."""

    name: Literal["tsqr"] = "tsqr"
    """The name of the method."""
    block: Literal["auto"] | Annotated[int, Field(ge=1), NOT_BOOL] = "auto"
    """Columns of one block reflector in LAPACK's tpqrt (its NB); auto follows the number of columns."""
    products: bool = True
    """Add rows by products of matrices where that is as accurate as reflectors, and faster; false: never."""
    slab_bytes: Literal["auto"] | Bytes = "auto"
    """Bytes of rows that one kernel call sees, such as "1 MiB"; auto fits the cache."""
    span_seconds: Annotated[Seconds, Field(gt=0)] = Field("2s", validate_default=True)
    """Work that one task holds, at the least, as the plan estimates it: longer tasks, fewer of them."""


METHODS: dict[str, type[Model]] = {"tsqr": Tsqr}
"""The methods by name; adding one is one class here, one line in MethodChoice, one file beside this."""


def _spelled_out(value: Any) -> Any:
    """`method: tsqr` is short for `method: {name: tsqr}`."""
    if isinstance(value, dict) and "name" not in value:
        raise needed(f"auto, or a name among the options: {{name: {' | '.join(METHODS)}, ...}}")
    return {"name": value} if isinstance(value, str) and value in METHODS else value


def _name(value: Any) -> str | None:
    if isinstance(value, dict):
        return str(value["name"])
    return getattr(value, "name", value if isinstance(value, str) else None)


MethodChoice = Annotated[
    Annotated[Literal["auto"], Tag("auto")] | Annotated[Tsqr, Tag("tsqr")],
    Discriminator(_name),
    BeforeValidator(_spelled_out),
]
"""auto, the name of a method, or {name: ..., and its options}."""
