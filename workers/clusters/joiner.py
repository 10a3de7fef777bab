"""The workers of one machine that was reached by SSH: they live until standard input is closed.

One line of JSON says what to start and which scheduler to join; the answer is a line of JSON: joined, or an error.
The workers are those of a local cluster, with the same settings.
"""

import asyncio
import json
import os
import sys
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import urlsplit

from pipelines.errors import TallgrassError


def main() -> None:
    """Start the workers, and end them with this process."""
    task = json.loads(sys.stdin.readline())
    try:
        asyncio.run(_join(task))
    except TallgrassError as error:
        _say({"error": str(error)})
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error).rstrip(".")
        _say({"error": f"its workers cannot join {task['scheduler']}: {why}. Look at the firewalls between."})


async def _join(task: dict[str, Any]) -> None:
    import dask
    from distributed.security import Security
    from distributed.utils import get_ip

    from workers.clusters.local import SETTINGS, Local, nanny_class, resources_of_local, scratch_folder
    from workers.clusters.logs import quiet
    from workers.clusters.spawn import fork_server

    with suppress(OSError):
        os.chdir(task["folder"])  # where relative paths start, when it is the same machine room
    scratch = task["scratch"] and os.path.expanduser(task["scratch"])
    model = Local(processes=task["processes"], threads=task["threads"], memory=task["memory"], scratch=scratch)
    offered = resources_of_local(model)
    certificate, key = task["certificate"], task["key"]
    security = Security(
        require_encryption=True, tls_ca_file=certificate, tls_worker_cert=certificate, tls_worker_key=key
    )
    with ExitStack() as stack:
        method = stack.enter_context(fork_server())
        scratch = stack.enter_context(scratch_folder(model.scratch))
        stack.enter_context(quiet())
        here = {"distributed.worker.multiprocessing-method": method, "temporary-directory": str(scratch)}
        stack.enter_context(dask.config.set(SETTINGS | here))
        kind = nanny_class()
        nannies = [
            kind(
                task["scheduler"], nthreads=offered.threads, memory_limit=offered.memory_bytes, security=security,
                name=f"{task['name']}-{number}", host=get_ip(urlsplit(task["scheduler"]).hostname),
                local_directory=str(scratch), silence_logs=50, death_timeout=60,
            )
            for number in range(offered.workers)
        ]  # fmt: skip
        try:
            await asyncio.gather(*nannies)
            _say({"joined": len(nannies)})
            over = asyncio.gather(*(nanny.finished() for nanny in nannies))
            asyncio.get_running_loop().add_reader(sys.stdin, over.cancel)  # nothing more is said there: it was closed
            with suppress(asyncio.CancelledError):
                await over
        finally:
            await asyncio.gather(*(nanny.close() for nanny in nannies), return_exceptions=True)


def _say(document: dict[str, Any]) -> None:
    print(json.dumps(document), flush=True)  # noqa: T201  # this is the protocol


if __name__ == "__main__":
    main()
