"""A process that does what `tallgrass run JOB` does, step by step, and prints the seconds of each as JSON.

    python -m benchmarks.steps JOB BEGAN

BEGAN is the time (time.time()) at which the parent started this process.
"""

import json
import sys
import time


class Clock:
    """Seconds of each step, since the last one ended."""

    def __init__(self, began: float) -> None:
        self.last = began
        self.seconds: dict[str, float] = {}

    def done(self, step: str) -> None:
        """The step ends now."""
        now = time.time()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self.last
        self.last = now


def main(job_file: str, began: float) -> None:
    clock = Clock(began)
    import workers.cli  # noqa: F401  # the imports of the command line are the first step

    clock.done("start Python and the command line")
    from pipelines.load import load_job

    job = load_job(job_file)
    clock.done("read the job file")
    from pipelines.execute import run
    from pipelines.plan import make_plan
    from workers.clusters import open_cluster, resources_of

    clock.done("import NumPy, SciPy, Zarr")
    spans = make_plan(job, resources_of()).spans
    clock.done("plan")
    with open_cluster(None, spans) as client:
        clock.done("import Dask, start the workers")
        run(job, client=client, listener=lambda event: _heard(clock, event))
        clock.done("solve, certify, write the result")
    clock.done("close the workers")
    print(json.dumps({"seconds": clock.seconds, "ended": time.time()}))


def _heard(clock: Clock, event: object) -> None:
    from pipelines.progress import PassFinished, PassStarted

    if isinstance(event, PassStarted):
        clock.done("open and plan again" if event.number == 1 else "solve, certify, write the result")
    elif isinstance(event, PassFinished):
        clock.done("passes")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
