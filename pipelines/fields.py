"""Frozen models, and the fields that job and cluster files share: paths, numbers, memory, time."""

import os
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from pipelines.units import parse_bytes, parse_seconds


class Model(BaseModel):
    """What a user writes: frozen, with no field that is not named here, each with its docstring."""

    # Built when it is first used: a job file needs one kind of job, and `check` answers at once.
    # Errors do not repeat what was given: it may be a secret in the wrong place.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True, hide_input_in_errors=True
    )


def needed(what: str) -> PydanticCustomError:
    """An error that says what was needed; the loader adds the place and what was found."""
    return PydanticCustomError("needed", "{what}", {"what": what})


def redacted(text: str) -> str:
    """The text without the passwords and signatures of URLs in it."""
    text = re.sub(r"://[^/\s@]*:[^/\s@]*@", "://***@", text)
    return re.sub(r"""(://[^\s?#'"<>)]*)[?#][^\s'"<>)]*""", r"\1?***", text)


def letter(text: str, *below: str) -> PydanticCustomError:
    """An error that says all there is to say, and does not repeat what was found, at a place below the field's."""
    return PydanticCustomError("letter", "{what}", {"what": text, "below": below})


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


def place_without_secrets(text: str, *below: str) -> str:
    """A path or URL, unless there is a password or a signature in it, or anything where those would be.

    Raises:
        PydanticCustomError: there is; the letter does not repeat it.
    """
    scheme, separator, rest = text.partition("://")
    host, user = rest.partition("/")[0], rest.partition("/")[0].rpartition("@")[0]
    if not separator or scheme == "file":
        return text
    if ":" in user or (user and scheme not in ("abfs", "abfss")):
        raise letter(
            f"found a URL with a user or password before {host.rpartition('@')[2]}, which would be stored with the "
            "result. Take it out, and give credentials in the environment or by storage_options",
            *below,
        )
    if "?" in rest or "#" in rest:
        raise letter(
            f"found a URL that goes on after {re.split('[?#]', rest)[0]!r} with ? or #, where signatures stand; needed "
            "one without. Give credentials in the environment or by storage_options",
            *below,
        )
    return text


Url = Annotated[str, Field(min_length=1), BeforeValidator(path_as_text), AfterValidator(place_without_secrets)]
"""A path, relative to the directory in which the command runs, or a URL (s3://, gs://, https://, file://)."""
