"""Clusters, the service, the doctor, and the command line."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.client import Client

__all__ = ["Client"]


def __getattr__(name: str) -> Any:
    if name == "Client":  # when it is asked for: `tallgrass --help` needs no HTTP
        from workers.client import Client

        return Client
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
