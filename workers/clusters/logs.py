"""What Dask logs while a cluster of ours is open: kept for explanations, not printed."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.failures import RECENT

ROOTS = ("distributed", "bokeh", "tornado")
"""Loggers, with all below them, whose lines mean something to developers of Dask, not to who runs a job."""


class _Keep(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        RECENT.append(record.getMessage())


@contextmanager
def quiet() -> Iterator[None]:
    """While this lasts, nothing that Dask, bokeh or tornado log reaches the terminal; RECENT has it."""
    RECENT.clear()
    before = divert(_Keep())
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


def divert(keep: logging.Handler) -> list[tuple[logging.Logger, list[logging.Handler], bool, int]]:
    """Send the lines of these loggers to `keep` alone; gives back what each had before."""
    roots = [logging.getLogger(name) for name in ROOTS]
    below = [logging.getLogger(name) for name in sorted(logging.root.manager.loggerDict) if name.startswith(_BELOW)]
    before = [(logger, list(logger.handlers), logger.propagate, logger.level) for logger in [*roots, *below]]
    for logger in roots:
        logger.handlers[:], logger.propagate = [keep], False
        logger.setLevel(logging.INFO)  # that a process was killed by a signal is told at this level
    for logger in below:  # Dask gives some of them handlers of their own
        if logger.handlers:
            logger.handlers[:], logger.propagate = [], True
    return before


_BELOW = tuple(f"{root}." for root in ROOTS)
