"""One thing that was examined, and how it was found."""

from collections.abc import Callable
from dataclasses import dataclass

from pipelines.errors import TallgrassError


@dataclass(frozen=True)
class Finding:
    """One thing that was examined."""

    name: str
    """What was examined, in two or three words."""
    ok: bool
    """Whether it is as it should be."""
    detail: str
    """What was found, with its numbers."""
    advice: str = ""
    """What to do, when it is not as it should be."""


SCRATCH_BYTES = 2 * 2**30
"""Free disk below which a worker that has to put states on disk may get stuck."""


def looked_at(name: str, check: Callable[[], Finding]) -> Finding:
    """The finding, also when the check itself breaks on what it finds."""
    try:
        return check()
    except TallgrassError as error:
        return Finding(name, False, str(error))
    except Exception as error:  # noqa: BLE001  # a doctor who faints at the sight of blood is of no use
        return Finding(name, False, f"{type(error).__name__}: {error}", "Install Tallgrass anew: make venv")
