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
    if "://" in root.removeprefix("file://"):
        return _remote_is_under(url, root)
    if "://" in url.removeprefix("file://"):
        return False
    path, folder = (Path(os.path.realpath(text.removeprefix("file://"))) for text in (url, root))
    return path == folder or folder in path.parents


def _remote_is_under(url: str, root: str) -> bool:
    found, allowed = urlsplit(url), urlsplit(root)
    parts = found.path.split("/")
    if (found.scheme, found.netloc) != (allowed.scheme, allowed.netloc) or ".." in parts or "%" in found.path:
        return False
    prefix = [part for part in allowed.path.split("/") if part]
    return [part for part in parts if part][: len(prefix)] == prefix
