"""A cluster's process of its own, for an agent: it lives until its standard input is closed.

The agent writes the cluster's model as one line of JSON; the answer is one line of JSON: the scheduler's address and
the dashboard's, or an error.  Each further line is what the dashboard's page of jobs is to show.
"""

import functools
import json
import sys
from contextlib import suppress
from typing import Any

from pydantic import TypeAdapter

from pipelines.errors import TallgrassError


def main() -> None:
    """Start the cluster, or connect to it; say where it is; show what the agent says."""
    from workers.clusters import Cluster, dashboard, dashboard_link, open_cluster

    model: Any = TypeAdapter(Cluster).validate_json(sys.stdin.readline())
    dashboard.before.append(_register)
    try:
        with open_cluster(model) as client:
            assert client.scheduler is not None
            jobs_page = model.kind == "local" or _has_page(client)
            said = {"address": client.scheduler.address, "dashboard": dashboard_link(client), "jobs_page": jobs_page}
            _say(said)
            for line in sys.stdin:
                if jobs_page:
                    _show(client, json.loads(line))
    except TallgrassError as error:
        _say({"error": str(error)})


def _register() -> None:
    from workers.dashboard import register

    register()


def _has_page(client: Any) -> bool:
    """Whether a scheduler that runs elsewhere was started with our page."""
    try:
        return bool(client.run_on_scheduler(_preloaded))
    except Exception:  # noqa: BLE001  # it has no Tallgrass at all, which it needs for nothing else
        return False


def _preloaded() -> bool:
    return "workers.clusters.preload" in sys.modules


def _show(client: Any, board: dict[str, Any]) -> None:
    from workers.dashboard import show

    with suppress(Exception):  # a page that is a second old is no failure of the cluster
        client.run_on_scheduler(functools.partial(show, board))


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)  # noqa: T201  # this is the protocol


if __name__ == "__main__":
    main()
