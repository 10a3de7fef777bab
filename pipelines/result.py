"""A result: arrays, a certificate, and where they come from; stored as a Zarr group with the Xarray conventions."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.addresses import Address
from pipelines.errors import BadData
from pipelines.roots import check_allowed

if TYPE_CHECKING:
    import numpy as np

    from pipelines.certify import Certificate, FactorCertificate

SCHEMA = "result/1"
"""The form of a summary that this version writes and reads."""
KEY = "tallgrass"
"""The attribute of the group that holds the summary."""


@dataclass(frozen=True)
class Result:
    """What a job found.  `x` is (n,) or (n, k), as the right-hand side was."""

    url: Address | None
    """Where it is stored, or None when it lives in memory only."""
    summary: dict[str, Any]
    """What the group's attributes say, as `tallgrass show --json` prints it."""
    arrays: dict[str, "np.ndarray"]
    """By name; those that are not in memory are read from the store when first asked for."""
    shortfalls: tuple[str, ...] = ()
    """What the job requires and the certificate does not reach."""

    @property
    def certificate(self) -> "Certificate | FactorCertificate":
        """How far to trust it."""
        from pipelines.certify import Certificate, FactorCertificate

        kind = Certificate if self.summary["kind"] == "least_squares" else FactorCertificate
        return kind.from_dict(self.summary["certificate"])

    @cached_property
    def names(self) -> list[str]:
        """The arrays that it holds, as they are when somebody asks first."""
        if self.url is None:
            return sorted(self.arrays)
        from pipelines import storage

        return storage.array_names(self.url)

    @property
    def x(self) -> "np.ndarray":
        """The solution, (n,) or (n, k)."""
        return self["x"]

    @property
    def residual_norm(self) -> "np.ndarray":
        """‖b − A x‖ of each right-hand side, () or (k,)."""
        return self["residual_norm"]

    def __getitem__(self, name: str) -> "np.ndarray":
        """An array of the result: x, residual_norm, singular_values, backward_error, forward_error_bound, R.

        Raises:
            KeyError: the result has no such array.
        """
        if name not in self.arrays:
            if self.url is None:
                raise KeyError(f"{name}; this result holds {', '.join(sorted(self.arrays))}")
            self.arrays[name] = _read(self.url, name, self.names)
        return self.arrays[name]


@contextmanager
def whole(where: str) -> Iterator[None]:
    """Parts of a stored result are taken; what is missing or damaged is a letter.

    Raises:
        BadData: something is not as it was written.
    """
    try:
        yield
    except BadData:
        raise
    except Exception as error:  # codecs, stores and hand-edited metadata raise anything
        said = str(error).strip("'\"").partition("\n")[0]
        raise BadData(
            f"The result {where} is damaged or not complete ({type(error).__name__}: {said}). Run the job that made it "
            "again."
        ) from error


def read_summary(url: str) -> dict[str, Any]:
    """The summary of a stored result; a local one is read without importing anything heavy.

    Raises:
        BadData: there is no result at `url`.
    """
    check_allowed(url)
    path = Path(url.removeprefix("file://"))
    try:
        text = (path / "zarr.json").read_text() if "://" not in url.removeprefix("file://") else _remote_root(url)
        summary: dict[str, Any] = json.loads(text)["attributes"][KEY]
        _must_be_summary(url, summary)
    except FileNotFoundError as error:
        raise BadData(
            f"There is no result at {url}. Check the path; a job that failed or was stopped leaves none."
        ) from error
    except PermissionError as error:
        raise BadData(f"The result at {url} cannot be read: permission denied.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadData(
            f"What is at {url} is not a result of Tallgrass. Give the path that the job file names as output."
        ) from error
    return summary


def _must_be_summary(url: str, summary: Any) -> None:
    """Raises ValueError for what no version of ours wrote, BadData for what a later one may have written."""
    schema = summary["schema"]
    if not isinstance(summary["certificate"]["statement"], str) or not str(schema).startswith("result/"):
        raise ValueError("not a summary")
    if schema != SCHEMA:
        raise BadData(
            f"The result at {url} is of the form {schema}, and this version of Tallgrass reads {SCHEMA}. Use the "
            "version that wrote it, or a newer one."
        )


def open_result(url: str, storage_options: Mapping[str, Any] | None = None) -> Result:
    """A stored result, its arrays read when they are asked for; options are those of a job file.

    Raises:
        BadData: there is no result at `url`, or the options are not right.
    """
    address = Address(url) if storage_options is None else _with_options(url, storage_options)
    return Result(address, read_summary(address), {})


def _with_options(url: str, given: Mapping[str, Any]) -> Address:
    from pydantic_core import PydanticCustomError

    from pipelines.stores import options_of

    try:
        return Address(url, options_of(given))
    except PydanticCustomError as error:
        raise BadData(f"storage_options: {'.'.join((error.context or {})['below'])} {error.message()}.") from None


def _remote_root(url: str) -> str:
    from pipelines.storage import read_text

    return read_text(url, "zarr.json")


def _read(url: Address, name: str, names: list[str]) -> "np.ndarray":
    import numpy as np

    from pipelines import storage

    if name not in names:
        raise KeyError(f"{name}; this result holds {', '.join(names)}")
    return np.asarray(storage.open_array(url / name)[...])
