"""A local cluster in a process of its own, for an agent: it lives until its standard input is closed.

The agent writes the cluster's model as one line of JSON; the answer is one line of JSON: the scheduler's address and
the dashboard's, or an error.
"""

import json
import sys

from pipelines.errors import TallgrassError


def main() -> None:
    """Start the cluster, say where it is, and wait."""
    from workers.clusters import Local, dashboard_link, open_cluster

    model = Local.model_validate_json(sys.stdin.readline())
    try:
        with open_cluster(model) as client:
            assert client.scheduler is not None
            _say({"address": client.scheduler.address, "dashboard": dashboard_link(client)})
            sys.stdin.read()
    except TallgrassError as error:
        _say({"error": str(error)})


def _say(document: dict[str, str | None]) -> None:
    print(json.dumps(document), flush=True)  # noqa: T201  # this is the protocol


if __name__ == "__main__":
    main()
