"""Batch systems: Slurm, PBS, LSF and SGE run the workers as their jobs, through dask-jobqueue."""

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from pipelines.errors import ClusterUnreachable, PlanRefused
from pipelines.fields import Model, Seconds, Url, needed
from workers.clusters.address import check_versions
from workers.clusters.elsewhere import (
    Adaptive,
    Elsewhere,
    Scale,
    Whole,
    await_worker,
    extra,
    most,
    scheduler_options,
    settings,
    trusted,
)
from workers.clusters.local import SETTINGS, WorkerBytes, watched
from workers.clusters.spawn import ENVIRONMENT

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

    from pipelines.plan import Resources

NANNY_BYTES = 256 * 2**20
"""What a batch job asks for beside its workers' memory: the process that watches them lives in the same limits."""

TEND_SECONDS = 5.0
"""How often batch jobs that ended, at the end of their walltime say, are found and submitted again."""
LOST_LOOKS = 4
"""Looks in a row that find none of a batch job's workers, after they had joined, before it is submitted again."""


class System(Model):
    """A batch system as dask-jobqueue knows it."""

    kind: str
    """Its cluster class."""
    submit: str
    """The command that submits a job."""
    account: str
    """What the class calls the account."""


def _one_word(path: str) -> str:
    if "://" in path or set(path) & set(" \t\r\n\"'"):
        raise needed("a path without blanks and quotes: batch systems read it as part of a script")
    return path


ScriptPath = Annotated[str, AfterValidator(_one_word)]
"""A path on the nodes, as it stands in the script of a batch job."""

SYSTEMS = {
    "slurm": System(kind="SLURMCluster", submit="sbatch", account="account"),
    "pbs": System(kind="PBSCluster", submit="qsub", account="account"),
    "lsf": System(kind="LSFCluster", submit="bsub", account="project"),
    "sge": System(kind="SGECluster", submit="qsub", account="project"),
}
"""The batch systems."""


class JobQueue(Elsewhere):
    """Workers as jobs of a batch system.

    The scheduler runs where the command runs, a login node say, and the nodes must be able to connect to it.
    Everything is encrypted, with a key that is made for this cluster and lies in `shared` while it runs. A batch
    job that ends, at the end of its walltime or with its node, is submitted again.
    """

    kind: Literal["jobqueue"] = "jobqueue"
    """The kind of cluster."""
    system: Literal["slurm", "pbs", "lsf", "sge"]
    """The batch system."""
    jobs: Scale
    """Batch jobs, each on one node; a number, or {minimum: 1, maximum: 20} to have as many as there is work for."""
    processes: Whole = 1
    """Worker processes of each batch job."""
    threads: Whole = 1
    """Tasks that one process runs at a time, each with one BLAS thread; the job asks for processes × threads cores."""
    memory: WorkerBytes
    """Memory of each worker process, such as "4 GiB"; the job asks for that of all, and 256 MiB."""
    walltime: Seconds = Field("1h", validate_default=True)
    """How long a batch job may run."""
    queue: str | None = None
    """The queue (Slurm: partition)."""
    account: str | None = None
    """The account (LSF and SGE: project) that pays."""
    directives: tuple[str, ...] = ()
    """Further options for the batch system, such as "--constraint=ib"."""
    prologue: tuple[str, ...] = ()
    """Shell lines that come before the worker, such as "module load python"."""
    python: ScriptPath | None = None
    """The Python that has Tallgrass on the nodes; left out, the same path as here."""
    shared: Annotated[Url, AfterValidator(_one_word)] = Field("~/.tallgrass", validate_default=True)
    """A folder that this machine and the nodes see; certificates and the logs of the batch jobs lie there."""
    scratch: ScriptPath | None = None
    """Folder on each node for what does not fit in memory; a shell variable such as $TMPDIR may be part of it."""
    start_timeout: Seconds = Field("1h", validate_default=True)
    """Time to wait in the batch system's queue for the first worker."""


def resources_of_jobqueue(model: JobQueue) -> "Resources":
    """What the batch jobs offer together, when all of them run."""
    from pipelines.plan import Resources

    return Resources(most(model.jobs) * model.processes, model.threads, model.memory)


@contextmanager
def open_jobqueue(model: JobQueue) -> Iterator["Client"]:
    """A client of workers that the batch system runs; their jobs are cancelled afterwards.

    Raises:
        ClusterUnreachable: the batch system refuses the job, or none ran within `start_timeout`.
        PlanRefused: the batch system's commands or dask-jobqueue are not here.
    """
    _dask_jobqueue()
    submit = SYSTEMS[model.system].submit
    if shutil.which(submit) is None:
        raise PlanRefused(
            f"There is no `{submit}` on this machine's PATH, so no job can be submitted to {model.system}. "
            "Run the command on a machine that submits jobs, such as a login node."
        )
    with ExitStack() as stack:
        stack.enter_context(settings(model.start_timeout))
        security = stack.enter_context(trusted(Path(model.shared)))
        from asyncio import run_coroutine_threadsafe

        import distributed

        cluster = stack.enter_context(watched(_cluster(model, security), model.dashboard))
        client = stack.enter_context(distributed.Client(cluster))
        _rescale(cluster, model)
        tending = run_coroutine_threadsafe(_tend(cluster), cluster.loop.asyncio_loop)
        stack.callback(tending.cancel)
        logs = Path(model.shared) / "logs"
        waiting = f"The batch jobs may still wait in their queue; their logs are in {logs}."
        await_worker(client, model.start_timeout, lambda: waiting)
        check_versions(client)
        yield client


def _dask_jobqueue() -> Any:
    """The package; imported, it takes Ctrl-C for itself: 0.9 ends the program then, with the exit code of success."""
    before = signal.getsignal(signal.SIGINT)
    try:
        return extra("dask_jobqueue", "jobqueue")
    finally:
        if signal.getsignal(signal.SIGINT) is not before:
            signal.signal(signal.SIGINT, before)


def _cluster(model: JobQueue, security: "Security") -> Any:
    """dask-jobqueue's cluster, with no jobs yet."""
    kind = getattr(_dask_jobqueue(), SYSTEMS[model.system].kind)
    return kind(
        scheduler_options=scheduler_options(model, security), security=security, protocol="tls://", silence_logs=50,
        job_cls=_closing(kind.job_cls), **job_options(model),
    )  # fmt: skip


def _closing(job: Any) -> Any:
    """A batch job that is closed when it was closed: dask-jobqueue 0.9 leaves that out, and Dask insists on it."""
    from distributed.deploy.spec import ProcessInterface

    class Job(job):
        async def close(self) -> None:
            await super().close()
            await ProcessInterface.close(self)

    return Job


def job_options(model: JobQueue) -> dict[str, Any]:
    """A batch job as dask-jobqueue wants it described."""
    memory = model.processes * model.memory
    options = {
        "cores": model.processes * model.threads, "processes": model.processes, "memory": f"{memory} B",
        "walltime": _walltime(model), "queue": model.queue, SYSTEMS[model.system].account: model.account,
        "python": model.python or shlex.quote(sys.executable),
        "local_directory": model.scratch, "interface": model.interface,
        "job_extra_directives": list(model.directives),
        "job_script_prologue": [*_exports(), f"cd {shlex.quote(os.getcwd())}", *model.prologue],
        "log_directory": f"{model.shared}/logs", "job_name": "tallgrass", "death_timeout": "60",
        "worker_extra_args": ["--no-dashboard"],  # which would show itself to the whole network
    } | _asked_memory(model, memory + NANNY_BYTES)  # fmt: skip
    return {name: value for name, value in options.items() if value is not None}


def _exports() -> list[str]:
    """The environment of every worker: what a local one has, and the settings of Dask that concern workers."""
    configured = {
        f"DASK_{key.upper().replace('.', '__').replace('-', '_')}": str(value)
        for key, value in SETTINGS.items()
        if key.startswith(("distributed.worker.memory", "distributed.comm"))
    }
    return [f"export {name}={shlex.quote(value)}" for name, value in (ENVIRONMENT | configured).items()]


def _walltime(model: JobQueue) -> str:
    minutes = max(1, round(model.walltime / 60))
    clock = f"{minutes // 60:02}:{minutes % 60:02}"
    return clock if model.system == "lsf" else f"{clock}:00"


def _asked_memory(model: JobQueue, size: int) -> dict[str, Any]:
    """What each batch system calls the memory of a job."""
    cores = model.processes * model.threads
    mebibytes = -(-size // 2**20)
    match model.system:
        case "slurm":
            return {"job_mem": f"{mebibytes}M"}
        case "pbs":
            return {"resource_spec": f"select=1:ncpus={cores}:mem={mebibytes}MB"}
        case "lsf":
            return {"mem": size}
        case _:  # SGE counts per core
            return {"resource_spec": f"h_vmem={-(-mebibytes // cores)}M"}


def _rescale(cluster: Any, model: JobQueue) -> None:
    """Submit the batch jobs; what refuses them is raised here, which `cluster.scale` would only log."""
    if isinstance(model.jobs, Adaptive):
        cluster.adapt(minimum_jobs=model.jobs.minimum, maximum_jobs=model.jobs.maximum)
        return

    async def ask() -> None:
        cluster.scale(jobs=model.jobs)
        await cluster._correct_state()  # noqa: SLF001  # what `scale` begins, and nobody waits for

    try:
        cluster.sync(ask)
    except (RuntimeError, ValueError, OSError) as error:
        _forget_refused(cluster)
        raise ClusterUnreachable(
            f"{model.system} refuses the job: {_said_by(error)}. Change queue, account, walltime, memory or directives "
            "in the cluster file."
        ) from error


def _said_by(error: Exception) -> str:
    """What the submitting command wrote to stderr; dask-jobqueue puts it under a heading of its own."""
    said = str(error).partition("stderr:\n")[2] or str(error)
    return " ".join(said.split()).rstrip(".")


def _forget_refused(cluster: Any) -> None:
    """Batch jobs that could not be submitted: Dask would not submit them again, and could not be closed."""
    from distributed.core import Status

    for name, job in list(cluster.workers.items()):
        if job.status is Status.created:
            job.status = Status.failed
            del cluster.workers[name]


async def _tend(cluster: Any) -> None:
    """Submit batch jobs again that have ended, while the cluster runs.

    Dask does that by itself only for workers that it was asked to add, and only when each job has one worker.
    """
    import asyncio

    absent: dict[Any, int] = {}
    while True:
        await asyncio.sleep(TEND_SECONDS)
        here = {str(worker.name) for worker in cluster.scheduler.workers.values()}
        for name, job in list(cluster.workers.items()):
            if any(worker == str(name) or worker.startswith(f"{name}-") for worker in here):
                absent[name] = 0
            elif name in absent:
                absent[name] += 1
            if absent.get(name, 0) >= LOST_LOOKS:
                del absent[name], cluster.workers[name]
                with suppress(Exception):
                    await job.close()
        _forget_refused(cluster)
        with suppress(Exception):  # the batch system is away, or full: once more later
            await cluster._correct_state()  # noqa: SLF001
