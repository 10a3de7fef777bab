"""The commands of who uses a server: thin over its client."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipelines.errors import Interrupted, JobCancelled, JobFileError, RunFailed
from workers.output import answer, asked, command, deaf, hint, print_one, say

if TYPE_CHECKING:
    from workers import api
    from workers.client import Client

_server = click.option("--server", "url", metavar="URL", help="The server; $TALLGRASS_SERVER, or this machine's own.")
_id = click.argument("job", metavar="ID")
_ids = click.argument("jobs", metavar="ID...", nargs=-1, required=True)
STATES = ("queued", "starting", "running", "stopping", "cancelled", "succeeded", "failed", "interrupted")
WATCH_SECONDS = 1.0


@contextmanager
def _client(url: str | None) -> Iterator["Client"]:
    from workers.client import Client

    with Client(url) as client:
        yield client


@command(
    "tallgrass submit configs/jobs/flights.yaml",
    "tallgrass submit configs/jobs/flights.yaml --set ridge=0.1,1,10",
    "id=$(tallgrass submit configs/jobs/flights.yaml) && tallgrass wait $id",
)
@click.argument("job_files", metavar="JOB...", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="PLACE=VALUE[,VALUE...]",
    help="Change a value of the job file; several values make a job for each, with outputs named after them.",
)
@click.option("--name", help="What to call the job; the last part of its output when left out.")
@click.option("--priority", type=click.IntRange(-1000, 1000), default=0, help="Higher ones are taken first.")
@click.option("--idempotency-key", metavar="KEY", help="The same key with the same job gives the job that is there.")
@click.option("--wait", is_flag=True, help="Wait for the end, and exit as `tallgrass run` would have.")
@click.option("--follow", is_flag=True, help="The same, and show the log meanwhile.")
@_server
def submit(
    job_files: tuple[str, ...],
    overrides: tuple[str, ...],
    name: str | None,
    priority: int,
    idempotency_key: str | None,
    wait: bool,
    follow: bool,
    url: str | None,
) -> None:
    """Give jobs to a server, and print their ids."""
    from pipelines.load import load_job
    from workers.sweep import variants

    wanted = [load_job(file, chosen) for file in job_files for chosen in variants(file, overrides)]
    _differ([job.output for job in wanted])
    with _client(url) as client:
        several = len(wanted) > 1 and idempotency_key is not None
        found: list[api.JobDetails] = []
        try:
            for number, job in enumerate(wanted):
                key = f"{idempotency_key}-{number}" if several else idempotency_key
                found.append(client.submit(job, name=name, priority=priority, idempotency_key=key))
        except KeyboardInterrupt:
            raise Interrupted(f"Interrupted. {len(found)} of {len(wanted)} jobs were submitted.") from None
        finally:
            if found:
                _print_submitted(found)  # these are there, whatever became of the others
        if wait or follow:
            _wait_for(client, [job.id for job in found], None, follow=follow)


def _differ(outputs: list[str | None]) -> None:
    twice = next((output for output in outputs if outputs.count(output) > 1), None)
    if twice is not None:
        raise JobFileError(f"Two of these jobs would write to {twice}. Give each an output of its own.")


def _print_submitted(found: "list[api.JobDetails]") -> None:
    if asked("json"):
        documents = [job.model_dump(mode="json") for job in found]
        print_one(documents[0] if len(documents) == 1 else documents, "")
        return
    if not sys.stdout.isatty():
        answer("\n".join(job.id for job in found))
        return
    for job in found:
        answer(f"{job.id}  {job.name}")
    first = found[0].id
    hint(f"next: tallgrass status {first}    what it is doing\n      tallgrass logs -f {first}    follow it")
    hint(f"      tallgrass cancel {first}    end it")


@command(
    "tallgrass list",
    "tallgrass list --state running --state queued --watch",
    "tallgrass list --json | jq .items[].id",
    name="list",
)
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; may be given many times."
)
@click.option("--name", help="Only jobs of this name.")
@click.option("--kind", help="Only jobs of this kind.")
@click.option("--limit", type=click.IntRange(1, 500), default=50, help="At most so many, the newest first.")
@click.option("--cursor", help="Where the page before ended (`next` of --json).")
@click.option("--watch", is_flag=True, help="Show them again every second, until Ctrl-C.")
@_server
def list_(
    states: tuple[str, ...],
    name: str | None,
    kind: str | None,
    limit: int,
    cursor: str | None,
    watch: bool,
    url: str | None,
) -> None:
    """Show the jobs of a server."""
    from workers.render import job_table

    with _client(url) as client:
        while True:
            page = client.page(states, name=name, kind=kind, limit=limit, cursor=cursor)
            if watch and sys.stdout.isatty():
                click.clear()
            print_one(page.model_dump(mode="json"), job_table(page.items))
            if not watch or deaf():
                break
            time.sleep(WATCH_SECONDS)
    if page.next is not None:
        hint(f"next: tallgrass list --cursor {page.next}")


@command("tallgrass status k7wq", "tallgrass status k7wq --json | jq -r .state")
@_id
@_server
def status(job: str, url: str | None) -> None:
    """Say what a job is doing, or how it ended."""
    from workers.render import job_status

    with _client(url) as client:
        found = client.job(job)
    print_one(found.model_dump(mode="json"), job_status(found))


@command("tallgrass logs k7wq", "tallgrass logs -f k7wq")
@_id
@click.option("--follow", "-f", is_flag=True, help="Go on until the job is over.")
@_server
def logs(job: str, follow: bool, url: str | None) -> None:
    """Print what a job said."""
    with _client(url) as client, _detaching(job):
        for line in client.follow(job, until_over=follow):
            _print_line(line)
            if deaf():
                break


def _print_line(line: "api.LogLine") -> None:
    at = line.at.astimezone()
    if asked("json"):
        answer(line.model_dump_json())
    else:
        answer(f"{at:%H:%M:%S}  {line.text}")


@command("tallgrass cancel k7wq", "tallgrass cancel $(tallgrass list --state queued --json | jq -r .items[].id)")
@_ids
@_server
def cancel(jobs: tuple[str, ...], url: str | None) -> None:
    """End jobs: those that wait at once, those that run within seconds. Nothing half-written stays."""
    with _client(url) as client:
        found = [client.cancel(job) for job in jobs]
    documents = [job.model_dump(mode="json") for job in found]
    text = "\n".join(f"{job.id}  {job.state}" for job in found)
    print_one(documents[0] if len(documents) == 1 else documents, text)


@command("tallgrass wait k7wq && tallgrass result k7wq", "tallgrass wait k7wq --timeout 1h")
@_ids
@click.option("--timeout", metavar="TIME", help='At most so long, such as "90s" or "2h"; then the exit code is 6.')
@_server
def wait(jobs: tuple[str, ...], timeout: str | None, url: str | None) -> None:
    """Wait until jobs are over, and exit as the first that failed did."""
    from pipelines.units import parse_seconds

    try:
        seconds = None if timeout is None else parse_seconds(timeout)
    except ValueError as error:
        raise JobFileError(f"--timeout: {error}") from None
    with _client(url) as client:
        _wait_for(client, list(jobs), seconds, follow=False)


def _wait_for(client: "Client", jobs: list[str], seconds: float | None, *, follow: bool) -> None:
    """Ends with the exit code of the first job that did not succeed."""
    end = None if seconds is None else time.monotonic() + seconds
    codes = []
    for job in jobs:
        with _detaching(job):
            if follow:
                for line in client.follow(job):
                    say(line.text)
            left = None if end is None else max(0.0, end - time.monotonic())
            codes.append(_told(client.wait(job, left)))
    if any(codes):
        click.get_current_context().exit(next(filter(None, codes)))


def _told(job: "api.JobDetails") -> int:
    """How a job ended, in a line, and the exit code of that."""
    if job.state == "cancelled":
        letter = f"Job {job.id} was cancelled."
        code: int = JobCancelled.exit_code
    elif job.error is not None:
        letter, code = job.error.message, job.error.exit_code
    else:
        letter, code = "", job.exit_code or 0
    if code:
        say(letter)
    elif not asked("quiet") and job.summary is not None:
        say(f"{job.id}  {job.state}: {job.summary['certificate']['statement']}")
    return code


@contextmanager
def _detaching(job: str) -> Iterator[None]:
    """Ctrl-C ends the watching and not the job."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"Job {job} goes on without us. To end it: tallgrass cancel {job}") from None


@command("tallgrass retry k7wq")
@_id
@_server
def retry(job: str, url: str | None) -> None:
    """Queue an interrupted job again; of one that is over, a new one like it."""
    with _client(url) as client:
        found = client.retry(job)
    _print_submitted([found])


@command(
    "tallgrass result k7wq",
    "tallgrass result k7wq --json | jq .certificate.rank",
    "tallgrass result k7wq --copy x.zarr",
)
@_id
@click.option("--copy", "folder", metavar="FOLDER", type=click.Path(), help="Copy the stored arrays there.")
@_server
def result(job: str, folder: str | None, url: str | None) -> None:
    """Say what a finished job found, as `show` does."""
    from pipelines.report import render_result

    with _client(url) as client:
        found = client.job(job)
    if found.summary is None:
        error = found.error.message if found.error else f"`tallgrass wait {found.id}` waits for it."
        raise JobFileError(f"Job {found.id} is {found.state} and has no result. {error}")
    if folder is not None:
        from pipelines.addresses import Address
        from pipelines.storage import copy_result

        assert found.output is not None
        copy_result(Address(found.output, found.job.get("storage_options")), folder)
    print_one(found.summary, render_result({"url": folder or found.output} | found.summary))


@command("tallgrass report k7wq -o report.html")
@_id
@click.option("--output", "-o", type=click.Path(dir_okay=False), help="The file to write; stdout when left out.")
@_server
def report(job: str, output: str | None, url: str | None) -> None:
    """Make a page of HTML about a job: what it found, how far to trust it, what it took."""
    with _client(url) as client:
        page = client.report(job)
    if output is None:
        print_one({"html": page}, page)
        return
    try:
        Path(output).write_text(page)
    except OSError as error:
        raise RunFailed(f"{output} cannot be written: {error.strerror}. Name another file.") from error
    print_one({"file": output}, output)


ALL: tuple[click.Command, ...] = (submit, list_, status, logs, cancel, wait, retry, result, report)
