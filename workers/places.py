"""The paths and URLs in a job: where it reads and writes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.errors import JobFileError, PlanRefused
from pipelines.roots import check_inside
from pipelines.stores import check_free

FIELDS = ("matrix", "rhs", "weights", "operator", "pca", "output")
"""Fields of jobs that name a place; the first four may be {url: ..., ...} instead."""

LONGEST = 1000
"""Characters of a path or URL: databases do not find longer ones."""


def places_of(job: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The name of each field that is given, and its path or URL."""
    for name in FIELDS:
        value = job.get(name)
        url = value.get("url") if isinstance(value, Mapping) else value
        if isinstance(url, str):
            yield name, url


def absolute(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job with every relative path made absolute: what a server, which is elsewhere, can understand."""
    found = dict(job)
    for name, url in places_of(job):
        if "://" not in url:
            path = os.path.abspath(os.path.expanduser(url))
            found[name] = path if isinstance(job[name], str) else dict(job[name]) | {"url": path}
    return found


def check_places(job: Mapping[str, Any], roots: Sequence[str] | None) -> None:
    """Raises JobFileError for what a server cannot find, PlanRefused for what it may not touch or be told."""
    if roots is not None:
        check_free(job.get("storage_options", {}))
        for source in job.values():
            check_free(source.get("storage_options", {}) if isinstance(source, Mapping) else {})
    for name, url in places_of(job):
        if len(url) > LONGEST:
            raise JobFileError(f"{name}: found a place of {len(url):,} characters; needed at most {LONGEST:,}")
        if "://" not in url and not os.path.isabs(url):
            raise JobFileError(
                f'{name}: found the relative path "{url}"; needed an absolute one, or a URL: the server does not know '
                "your directory. `tallgrass submit` makes paths absolute."
            )
        if roots is not None:
            try:
                check_inside(url, roots)
            except PlanRefused as error:
                raise PlanRefused(f"{name}: {error}") from None
