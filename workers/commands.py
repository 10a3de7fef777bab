"""The commands: each reads what it was given, asks the library, and prints one thing on stdout."""

import json
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import CertificateFallsShort, InputChanged, JobFileError
from workers.output import asked, command, error_document, hint, print_one, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipelines.plan import Resources
    from pipelines.result import Result

_job = click.argument("job_file", metavar="JOB", type=click.Path())
_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PLACE=VALUE",
    help="Change one value of the job file: rtol=1e-10, require.rank=full. May be given many times.",
)
_cluster = click.option(
    "--cluster",
    "cluster_file",
    metavar="FILE",
    type=click.Path(),
    help="Cluster file (configs/clusters/*.yaml); without it, this machine.",
)


@command(
    "tallgrass check configs/jobs/flights.yaml",
    "tallgrass check configs/jobs/flights.yaml --set rtol=1e-10 --json",
)
@_job
@_set
def check(job_file: str, overrides: tuple[str, ...]) -> None:
    """Say whether a job file is right. Reads no data."""
    from pipelines.load import load_job

    job = load_job(job_file, overrides)
    document = {"schema": "job/1", "file": job_file, "job": job.model_dump(mode="json")}
    print_one(document, f"{job_file}: a valid {job.kind} job")
    hint(f"next: tallgrass plan {job_file}")


@command(
    "tallgrass plan configs/jobs/flights.yaml",
    'tallgrass plan configs/jobs/flights.yaml --workers 1000 --memory "16 GiB"',
)
@_job
@click.option("--workers", type=click.IntRange(min=1), help="Workers to plan for.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of each worker.")
@click.option("--memory", metavar="SIZE", help='Memory of each worker, such as "16 GiB".')
@_cluster
@click.option("--server", "url", metavar="URL", help="Plan for the cluster of this server.")
@_set
def plan(
    job_file: str,
    workers: int | None,
    threads: int | None,
    memory: str | None,
    cluster_file: str | None,
    url: str | None,
    overrides: tuple[str, ...],
) -> None:
    """Say what a job will cost: time, memory, bytes read.

    No data is read. The workers, threads and memory that you name need not exist.
    """
    from pipelines.load import load_job
    from pipelines.plan import make_plan
    from pipelines.report import render_plan

    job = load_job(job_file, overrides)
    if url is None:
        document = make_plan(job, _resources(cluster_file, workers, threads, memory)).to_dict()
    elif any((workers, threads, memory, cluster_file)):
        raise JobFileError("--server plans for that server's cluster: leave out --cluster, --workers and the like.")
    else:
        document = _planned_by(url, job)
    print_one(document, render_plan(document))
    _hint_of_output(job)
    hint(f"next: tallgrass run {job_file}")


def _planned_by(url: str, job: Any) -> dict[str, Any]:
    from workers.client import Client

    with Client(url) as client:
        return client.plan(job)


def _hint_of_output(job: Any) -> None:
    """What a run would say of the place of its result."""
    from pipelines.errors import PlanRefused
    from pipelines.jobs.base import address_of
    from pipelines.storage import check_output

    try:
        if job.output is not None:
            check_output(address_of(job.output, job), overwrite=job.overwrite)
    except PlanRefused as error:
        hint(f"note: a run would be refused now. {error}")


@command(
    "tallgrass run configs/jobs/flights.yaml",
    "tallgrass run configs/jobs/flights.yaml --set overwrite=true --set ridge=0.1",
    "tallgrass run configs/jobs/flights.yaml --cluster configs/clusters/local.yaml --json",
)
@_job
@_cluster
@_set
@click.option("--restart", is_flag=True, help="Begin anew: forget what an interrupted run has done.")
def run(job_file: str, cluster_file: str | None, overrides: tuple[str, ...], restart: bool) -> None:
    """Run a job, and say how far to trust the answer.

    The result appears whole or not at all. A run that is interrupted, by Ctrl-C or by an accident,
    leaves what it has done beside the output, and the same command goes on from there.
    """
    from pipelines.load import load_job
    from pipelines.report import render_result

    job, cluster = load_job(job_file, overrides), load_cluster(cluster_file)
    result = _run(job, cluster, restart=restart)
    short = "\n".join(f"the certificate falls short: {text}" for text in result.shortfalls)
    shortfall = CertificateFallsShort(short) if short else None
    print_one(result.summary | (error_document(shortfall) if shortfall else {}), render_result(result.summary))
    if shortfall:
        say(str(shortfall))
        click.get_current_context().exit(shortfall.exit_code)
    hint(f"next: tallgrass show {job.output}")


def _run(job: Any, cluster: Any, *, restart: bool) -> "Result":
    """The result of a job on a cluster that lives as long as the run; what cannot fit never starts one."""
    from pipelines.execute import run as execute
    from pipelines.progress import Note
    from workers.clusters import dashboard_link, open_cluster, promised
    from workers.terminal import watching

    spans = _spans(job, cluster)
    try:
        with watching(asked("quiet")) as listener, open_cluster(cluster, spans) as client:
            if link := dashboard_link(client):
                listener(Note(f"dashboard: {link}"))
            return execute(job, client=client, listener=listener, resources=promised(cluster), restart=restart)
    except BaseException as error:
        if job.output is not None:
            _after_the_end(job.output, goes_on=not isinstance(error, InputChanged))
        raise


def _after_the_end(output: str, *, goes_on: bool) -> None:
    """Remove what workers wrote while they were being ended, and say what is kept."""
    from pipelines.storage import leftovers, sweep
    from pipelines.units import format_bytes

    sweep(output)
    if goes_on and "://" not in output and (kept := leftovers(output)):
        hint(
            f"What was done is kept beside the output ({format_bytes(sum(size for _, size in kept))}): the same "
            f"command goes on from there, and `tallgrass clean {output}` removes it."
        )


def _spans(job: Any, cluster: Any) -> int | None:
    """Tasks that can run at the same time: a local cluster starts no more workers than that."""
    from pipelines.plan import make_plan
    from workers.clusters import Local

    return make_plan(job, _offer(cluster)).spans if isinstance(cluster, Local | None) else None


@command(
    "tallgrass clean results/flights.zarr",
    "tallgrass clean results --dry-run",
    "tallgrass clean job.yaml",
)
@click.argument("places", metavar="PLACE...", nargs=-1, required=True, type=click.Path())
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
def clean(places: tuple[str, ...], dry_run: bool) -> None:
    """Remove what interrupted runs have left: of a result, a job's, or all in a folder.

    Results, and what belongs to a run that goes on, stay as they are.
    """
    from pipelines import storage
    from pipelines.units import format_bytes

    remove = storage.leftovers if dry_run else storage.clean
    found = [one for place in places for output in _outputs(place) for one in remove(output)]
    verb = "would remove" if dry_run else "removed"
    lines = [f"{verb} {place}" + (f" ({format_bytes(size)})" if size else "") for place, size in found]
    removed = [{"place": place, "bytes": size} for place, size in found]
    document = {"schema": "clean/1", "dry_run": dry_run, "removed": removed}
    print_one(document, "\n".join(lines) or "nothing is left over")


def _outputs(place: str) -> "Sequence[str]":
    """The results that a place means: that of a job file, one, or all in a folder."""
    from pipelines.jobs.base import address_of
    from pipelines.load import load_job
    from pipelines.storage import outputs_at

    if not place.endswith((".yaml", ".yml")):
        return outputs_at(place)
    job = load_job(place)
    return [] if job.output is None else [address_of(job.output, job)]


@command(
    "tallgrass show results/flights.zarr",
    "tallgrass show results/flights.zarr --json | jq .certificate.rank",
)
@click.argument("result", type=click.Path())
def show(result: str) -> None:
    """Say what a finished job found."""
    from pipelines.report import render_result
    from pipelines.result import read_summary

    document = read_summary(result)
    print_one(document, render_result({"url": result} | document))


@command(
    "tallgrass verify results/flights.zarr",
    "tallgrass verify results/flights.zarr --cluster configs/clusters/local.yaml --json | jq .holds",
)
@click.argument("result", type=click.Path())
@_cluster
def verify(result: str, cluster_file: str | None) -> None:
    """Measure a stored result on its input again, and say whether its certificate still holds.

    Reads the input 1 to 5 times and writes nothing. The exit code is 8 when it does not hold.
    """
    from pipelines.errors import CertificateFallsShort
    from pipelines.report import render_verification
    from pipelines.verification import verify as verified
    from workers.clusters import open_cluster
    from workers.terminal import watching

    with watching(asked("quiet")) as listener, open_cluster(load_cluster(cluster_file)) as client:
        found = verified(result, client, listener)
    print_one({"schema": "verification/1", "result": result} | found.to_dict(), render_verification(found.to_dict()))
    if found.holds is False:
        click.get_current_context().exit(CertificateFallsShort.exit_code)


@command("tallgrass schema > configs/schema.json")
def schema() -> None:
    """Print the JSON schema of job files, for editors."""
    from pipelines.load import job_schema

    click.echo(json.dumps(job_schema(), indent=2, ensure_ascii=False))


@command(
    "tallgrass doctor",
    "tallgrass doctor --calibrate",
    "tallgrass doctor --cluster configs/clusters/address.yaml",
    "tallgrass doctor --cluster configs/clusters/address.yaml job.yaml",
)
@click.argument("job_file", metavar="[JOB]", type=click.Path(), required=False)
@click.option("--calibrate", is_flag=True, help="Measure this machine's speeds, which plans are made from.")
@_cluster
def doctor(calibrate: bool, cluster_file: str | None, job_file: str | None) -> None:
    """Examine this installation and its cluster.

    With a job file also: whether all of the cluster sees its arrays, and can write where its result goes.
    """
    from dataclasses import asdict

    from pipelines.load import load_job
    from pipelines.report import render_findings

    job = None if job_file is None else load_job(job_file)
    findings = [asdict(finding) for finding in _examined(calibrate, load_cluster(cluster_file), job)]
    healthy = all(finding["ok"] for finding in findings)
    print_one({"schema": "doctor/1", "ok": healthy, "findings": findings}, render_findings(findings))


def _examined(calibrate: bool, cluster: Any, job: Any) -> list[Any]:
    from workers import doctor
    from workers.cluster_doctor import examine_certificates, examine_cluster
    from workers.clusters import open_cluster

    if calibrate:
        hint("measuring this machine's speeds; this takes some seconds")
        doctor.calibrate()
    findings = doctor.examine()
    if (tls := getattr(cluster, "tls", None)) is not None:
        findings.append(examine_certificates(tls))
    if cluster is not None or job is not None:
        with open_cluster(cluster) as client:
            findings += examine_cluster(client, job)
    return findings


@click.command(
    epilog="""\b
Examples:
  tallgrass completion bash >> ~/.bashrc
  tallgrass completion zsh >> ~/.zshrc
  tallgrass completion fish > ~/.config/fish/completions/tallgrass.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script for completion in your shell."""
    from click.shell_completion import get_completion_class

    group = click.get_current_context().find_root().command
    script = get_completion_class(shell)
    assert script is not None, "the choices above are the shells that click knows"
    click.echo(script(group, {}, "tallgrass", "_TALLGRASS_COMPLETE").source())


ALL = (check, plan, run, clean, show, verify, schema, doctor, completion)


def version() -> str:
    """The installed version of Tallgrass."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("tallgrass")
    except PackageNotFoundError:
        return "(not installed: runs from its source folder)"


def load_cluster(path: str | None) -> Any:
    """The cluster that a file describes; None without a file."""
    if path is None:
        return None
    from pipelines.load import load_file
    from workers.clusters import Cluster

    return load_file(path, Cluster)


def _offer(cluster: Any) -> "Resources":
    from workers.clusters import resources_of

    return resources_of(cluster)


def _resources(cluster_file: str | None, workers: int | None, threads: int | None, memory: str | None) -> "Resources":
    """What the cluster offers, with what the command line says instead."""
    from dataclasses import replace

    from pipelines.units import parse_bytes

    try:
        size = None if memory is None else parse_bytes(memory)
        named = {"workers": workers, "threads": threads, "memory_bytes": size}
    except ValueError as error:
        raise JobFileError(f"--memory: {error}") from None
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    return replace(_offer(load_cluster(cluster_file)), **given)
