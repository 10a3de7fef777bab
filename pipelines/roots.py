"""Where a process may read and write at all: a server keeps its jobs under the folders and buckets it was given."""

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from pipelines.errors import PlanRefused

_roots: tuple[str, ...] | None = None


def confine(roots: Sequence[str]) -> None:
    """From now on this process opens nothing outside of these folders and URLs; it cannot be undone."""
    global _roots  # noqa: PLW0603  # a property of the process
    _roots = tuple(roots)


def is_confined() -> bool:
    """Whether this process runs what others submit."""
    return _roots is not None


def check_allowed(url: str) -> None:
    """Raises PlanRefused when this process is confined and `url` lies outside."""
    if _roots is not None:
        check_inside(url, _roots)


def check_inside(url: str, roots: Sequence[str]) -> None:
    """Raises PlanRefused unless a path or URL lies under one of the roots, once `..` and links are resolved."""
    if not any(_is_under(url, root) for root in roots):
        raise PlanRefused(
            f"{url} is outside of what this server may read and write: {', '.join(roots) or 'nothing'}. Move it there, "
            "or start the server with a further --root."
        )


def _is_under(url: str, root: str) -> bool:
    place, allowed = _local(url), _local(root)
    if place is None or allowed is None:
        return place is allowed is None and _remote_is_under(url, root)
    path, folder = Path(os.path.realpath(place)), Path(os.path.realpath(allowed))
    return path == folder or folder in path.parents


def _local(url: str) -> str | None:
    """The path that a path or file:// URL names, read in the one way in which nobody can read it differently."""
    if not url.lower().startswith("file:"):
        return None if "://" in url else url
    plain = url.startswith("file:///") and not set("?#%") & set(url)
    return url.removeprefix("file://") if plain else None


def _remote_is_under(url: str, root: str) -> bool:
    found, allowed = urlsplit(url), urlsplit(root)
    parts = found.path.split("/")
    if found.scheme in ("", "file") or (found.scheme, found.netloc) != (allowed.scheme, allowed.netloc):
        return False
    if ".." in parts or set("\\%?#") & set(url):
        return False
    prefix = [part for part in allowed.path.split("/") if part]
    return [part for part in parts if part][: len(prefix)] == prefix
