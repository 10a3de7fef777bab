"""How much is measured, and where it lies meanwhile."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The repository."""


@dataclass(frozen=True)
class Settings:
    """One run of the benchmarks."""

    folder: Path
    """For data, which is written before each measurement and deleted after it."""
    rounds: int
    """Times that each contender is measured."""
    scale: float = 1.0
    """Part of the full size: 1/50 for a quick look that measures nothing."""

    @property
    def quick(self) -> bool:
        """True when the numbers mean nothing."""
        return self.scale < 1

    def bytes(self, gigabytes: float) -> int:
        """Bytes of a data set that has `gigabytes` (10⁹ bytes) at full size."""
        return int(gigabytes * 1e9 * self.scale)


def say(text: str) -> None:
    """A line about how far we are."""
    print(text, flush=True)
