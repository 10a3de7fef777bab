"""The arrays that a job reads: stored ones by path or URL, or (in Python) arrays themselves."""

import os
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Discriminator, PlainSerializer, Tag, field_validator
from pydantic.json_schema import SkipJsonSchema

from pipelines.fields import NOT_BOOL, Model, Url, needed

Index = Annotated[int, NOT_BOOL]


class ArraySource(Model):
    """A stored Zarr array (version 2 or 3), or a part of one."""

    url: Url
    """Path or URL of the array: the array itself, not the group that holds it."""
    rows: tuple[Index, Index] | None = None
    """[start, stop]: rows start to stop - 1, counted from 0; all rows when left out."""
    columns: tuple[Index, ...] | None = None
    """Indices of the columns to use, counted from 0, in this order and none twice; all when left out."""

    @field_validator("rows")
    @classmethod
    def _rows_are_a_range(cls, rows: tuple[int, int] | None) -> tuple[int, int] | None:
        if rows is not None and not 0 <= rows[0] < rows[1]:
            raise needed("[start, stop] with 0 <= start < stop")
        return rows

    @field_validator("columns")
    @classmethod
    def _columns_are_distinct(cls, columns: tuple[int, ...] | None) -> tuple[int, ...] | None:
        for place, column in enumerate(columns or ()):
            if column < 0:
                raise needed(f"indices counted from 0; {column} at position {place} is below 0")
            if column in (columns or ())[:place]:
                raise needed(f"each column once; {column} stands there twice")
        return columns


def _spelling(value: Any) -> str | None:
    """How an array is given: by its url, by a source, or as an array of Python."""
    if isinstance(value, str | os.PathLike):
        return "url"
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


ArrayInput = Annotated[
    Annotated[Url, Tag("url")]
    | Annotated[ArraySource, Tag("source")]
    | SkipJsonSchema[Annotated[Any, Tag("array"), PlainSerializer(_described, when_used="json")]],
    Discriminator(
        _spelling,
        custom_error_type="needed",
        custom_error_message="a path or URL, or {url: ..., rows: [start, stop], columns: [...]}",
    ),
]
"""An array: a path or URL, a source, or (in Python only) anything with a shape and a dtype."""


def as_source(array: Any) -> Any:
    """The ArraySource of a stored array; an array of Python as it is."""
    return ArraySource(url=array) if isinstance(array, str) else array


__all__ = ["ArrayInput", "ArraySource", "Model", "as_source"]
