"""Memory that this process may still take: tasks that are short of it read nothing ahead, or run one at a time.

Only when rows are read follows from it, never which: the cut, and so every bit, is the same.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

NEARLY_FULL = 0.7
"""The part of its limit above which a process reads nothing ahead; at 95 % its nanny ends it."""

_one = threading.Lock()
_frugal = threading.local()
_limit = 0


def limited(limit_bytes: int) -> None:
    """This process may have so much; 0 is as much as there is."""
    global _limit  # noqa: PLW0603  # a process has one limit
    _limit = limit_bytes


def scarce() -> bool:
    """Whether this task should take no more than it needs now."""
    if getattr(_frugal, "now", False):
        return True
    return bool(_limit) and psutil.Process().memory_info().rss > NEARLY_FULL * _limit


@contextmanager
def alone(frugal: bool) -> Iterator[None]:
    """A task that is frugal runs while no other frugal one of this process does."""
    if not frugal:
        yield
        return
    with _one:
        _frugal.now = True
        try:
            yield
        finally:
            _frugal.now = False
