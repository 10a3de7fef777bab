"""Imported last by the server that workers are forked from: they print nothing, since the driver tells what matters.

What Dask logs in a worker can still be asked for (`client.get_worker_logs()`), and how a process ended is in the
log of the nanny, which runs in the driver.
"""

import logging
import sys
from types import TracebackType

from workers.clusters.logs import divert


def _say_nothing(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Instead of a traceback on the terminal, when a worker is ended while it starts."""


divert(logging.NullHandler())
sys.excepthook = _say_nothing
