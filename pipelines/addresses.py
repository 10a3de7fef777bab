"""Addresses of arrays and results: paths, and URLs that know the options of their stores."""

from collections.abc import Mapping
from typing import Any

Value = str | bool | float
STORES = {
    "s3": "s3", "s3a": "s3", "gs": "gs", "az": "az", "abfs": "az", "abfss": "az", "http": "web", "https": "web",
}  # fmt: skip
"""The kind of store of each scheme."""


class Address(str):
    """A path or URL as text, which knows the options of its store."""

    __slots__ = ("options",)
    options: dict[str, Value]

    def __new__(cls, url: str, options: Mapping[str, Value] | None = None) -> "Address":
        """The address; of an address, one with its options unless others are given."""
        made = super().__new__(cls, url)
        made.options = dict(options or getattr(url, "options", {}))
        return made

    def __truediv__(self, name: str) -> "Address":
        """What has this name below it."""
        return Address(f"{self}/{name}", self.options)

    def __reduce__(self) -> tuple[Any, ...]:
        return Address, (str(self), self.options)

    @property
    def store(self) -> str | None:
        """The kind of its store; None for a path."""
        return store_of(self)


def store_of(url: str) -> str | None:
    """The kind of store that a URL names; None for a path and for what no store is known for."""
    scheme, separator, _ = url.partition("://")
    return STORES.get(scheme.lower()) if separator else None
