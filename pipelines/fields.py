"""Frozen models, and the fields that job and cluster files share: paths, numbers, memory, time."""

import os
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from pipelines.units import parse_bytes, parse_seconds


class Model(BaseModel):
    """What a user writes: frozen, with no field that is not named here, each with its docstring."""

    # Built when it is first used: a job file needs one kind of job, and `check` answers at once.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)


def needed(what: str) -> PydanticCustomError:
    """An error that says what was needed; the loader adds the place and what was found."""
    return PydanticCustomError("needed", "{what}", {"what": what})


def _not_true_or_false(value: Any) -> Any:
    if isinstance(value, bool):
        raise needed("a number")
    return value


NOT_BOOL = BeforeValidator(_not_true_or_false)
"""Comes last on a field of numbers: true and false are not taken for 1 and 0."""

_AMOUNT = {"anyOf": [{"type": "string"}, {"type": "number", "minimum": 0}]}

Bytes = Annotated[
    int,
    BeforeValidator(parse_bytes),
    WithJsonSchema(_AMOUNT | {"examples": ["4 GiB", "500 MB"]}, mode="validation"),
]
"""Memory: "4 GiB", "500 MB", or a plain number of bytes."""

Seconds = Annotated[
    float,
    BeforeValidator(parse_seconds),
    WithJsonSchema(_AMOUNT | {"examples": ["12h30m", "90s"]}, mode="validation"),
]
"""Time: "12h30m", "90s", or a plain number of seconds."""


def path_as_text(value: Any) -> Any:
    """A path-like object as text, with the user's home in place of ~; anything else as it is."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        return text
    if "\0" in text:
        raise needed("a path without a NUL character in it")
    return os.path.expanduser(text) if text.startswith("~") else text


Url = Annotated[str, Field(min_length=1), BeforeValidator(path_as_text)]
"""A path, relative to the directory in which the command runs, or a URL (s3://, gs://, https://, file://)."""
