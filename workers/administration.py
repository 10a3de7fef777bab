"""The commands of who runs a server: one that serves, one that makes certificates, and those about tokens."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.errors import JobFileError, RunFailed
from workers.output import command, hint, print_one

if TYPE_CHECKING:
    from workers.tokens import Tokens

_FOLDER = click.Path(file_okay=False, path_type=Path)
_NEW_FILE = click.Path(dir_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@command("tallgrass serve", "tallgrass serve --cluster configs/clusters/address.yaml --root /data")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--port", type=click.IntRange(1, 65535), default=8764, show_default=True, help="The port to listen at.")
@click.option(
    "--cluster",
    "cluster_file",
    metavar="FILE",
    type=click.Path(),
    help="Cluster file (configs/clusters/*.yaml); without it, this machine.",
)
@click.option(
    "--root",
    "roots",
    multiple=True,
    metavar="PLACE",
    help="Folder or URL below which jobs may read and write; the current directory when left out. May be repeated.",
)
@click.option(
    "--at-once", type=click.IntRange(1, 100), default=4, show_default=True, help="Jobs that share the workers."
)
@click.option(
    "--most-open",
    type=click.IntRange(1),
    default=10_000,
    show_default=True,
    help="Jobs that one submitter may have waiting or running.",
)
@click.option("--database", metavar="URL", help="sqlite:///PATH or postgresql://...; a file in --state when left out.")
@click.option(
    "--state", metavar="FOLDER", type=_FOLDER, help="For queue and locks; ~/.local/state/tallgrass when left out."
)
@click.option("--cert", type=_FILE, help="Certificate (PEM), to serve https.")
@click.option("--key", type=_FILE, help="Its private key (PEM).")
@click.option(
    "--token-file",
    type=_FILE,
    help="Ask for tokens, of which this file holds one that may submit; it is valid until it is revoked.",
)
def serve(**given: Any) -> None:
    """Take jobs over HTTP, and run them on a cluster that lives as long as the server.

    Jobs that were accepted are in a database: they outlive the server, and go on when it is started again.
    """
    from workers.clusters import Local
    from workers.commands import load_cluster
    from workers.serving import Options, state_folder
    from workers.serving import serve as serve_

    if (given["cert"] is None) != (given["key"] is None):
        raise JobFileError("--cert and --key belong together: give both, or neither.")
    cluster = load_cluster(given.pop("cluster_file")) or Local()
    state = (given.pop("state") or state_folder()).absolute()
    if set("?#%") & set(str(state)):
        raise JobFileError(f"--state: found {state}; needed a folder without ?, # and % in its name")
    database = given.pop("database") or f"sqlite:///{state / 'queue.db'}"
    roots = tuple(root if "://" in root else os.path.realpath(root) for root in given.pop("roots") or (os.curdir,))
    serve_(Options(state=state, database=database, cluster=cluster, roots=roots, **given), hint)


@command(
    "tallgrass certs certificates",
    "tallgrass certs certificates --host scheduler.example --host 10.0.0.1",
    "tallgrass certs certificates --renew",
)
@click.argument("folder", type=_FOLDER)
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="A name or address of the server; this machine's names when left out, and always localhost. May be repeated.",
)
@click.option(
    "--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long the certificates are valid."
)
@click.option("--renew", is_flag=True, help="Let the authority in the folder sign new certificates.")
def certs(folder: Path, hosts: tuple[str, ...], days: int, renew: bool) -> None:
    """Make an authority for a cluster, and certificates for client, scheduler, workers and server.

    Whoever has no certificate of this authority is refused. Its own key, ca-key.pem, is needed to renew them, and
    nowhere else: keep it away from the cluster.
    """
    try:
        from workers import certificates
    except ImportError as error:
        raise RunFailed(
            'The package cryptography, which makes certificates, is missing. Install it: pip install "tallgrass[tls]"'
        ) from error

    made = (certificates.renew if renew else certificates.make)(folder, hosts, days)
    until = f"{made.until:%Y-%m-%d}"
    document = {"folder": str(folder), "hosts": made.hosts, "until": until, "roles": list(certificates.ROLES)}
    print_one({"schema": "certificates/1"} | document, f"{folder}: valid until {until} for {', '.join(made.hosts)}")
    if renew:
        hint("next: give each part its new files and restart it; tasks and jobs that run are begun again")
        return
    files = "--tls-ca-file {0}/ca.pem --tls-cert {0}/{1}.pem --tls-key {0}/{1}-key.pem"
    hint(f"""\
next: dask scheduler --protocol tls --dashboard-address 127.0.0.1:8787 {files.format(folder, "scheduler")}
      dask worker tls://{made.hosts[0]}:8786 --nthreads 1 {files.format(folder, "worker")}
      tallgrass run JOB.yaml --cluster CLUSTER.yaml    a file like configs/clusters/tls.yaml, with
        tls: {{ca: {folder}/ca.pem, cert: {folder}/client.pem, key: {folder}/client-key.pem}}
      tallgrass serve --cluster CLUSTER.yaml --cert {folder}/server.pem --key {folder}/server-key.pem
      export TALLGRASS_CA={folder}/ca.pem    where jobs are submitted""")


@click.group(
    epilog="""\b
Examples:
  tallgrass token create alice --scope submit
  tallgrass token list
  tallgrass token revoke t5fnahhsb5"""
)
def token() -> None:
    """Make and revoke the tokens that a server asks for."""


_database = click.option("--database", metavar="URL", help="As of `serve`.")


def _tokens(database: str | None) -> "Tokens":
    from workers.database import Database
    from workers.serving import state_folder
    from workers.tokens import Tokens

    return Tokens(Database(database or f"sqlite:///{state_folder() / 'queue.db'}"))


@command("tallgrass token create ci --scope submit", "tallgrass token create ci --file token", name="create")
@click.argument("name")
@click.option("--scope", type=click.Choice(["read", "submit"]), default="submit", show_default=True)
@click.option("--file", type=_NEW_FILE, help="Write it there, for `serve --token-file`, and into no database.")
@_database
def token_create(name: str, scope: str, file: Path | None, database: str | None) -> None:
    """Print a new token, which cannot be shown again."""
    if file is not None:
        _write_token(file, scope, database)
        print_one({"file": str(file), "name": name, "scope": scope}, str(file))
        hint(f"next: tallgrass serve --token-file {file}; and TALLGRASS_TOKEN=$(cat {file}) where jobs are submitted")
        return
    made = _tokens(database).create(name, scope)
    print_one({"token": made, "name": name, "scope": scope}, made)
    hint("next: export TALLGRASS_TOKEN=... where jobs are submitted")


def _write_token(file: Path, scope: str, database: str | None) -> None:
    from workers.tokens import draw

    if scope != "submit" or database is not None:
        raise JobFileError("--file is for a token that may submit, and that no database knows: leave out the rest.")
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(draw() + "\n")
    except OSError as error:
        raise RunFailed(f"{file} cannot be written: {error.strerror}. Name another file.") from error


@command("tallgrass token list", name="list")
@_database
def token_list(database: str | None) -> None:
    """Show the tokens that there are; what would open anything is not kept."""
    found = _tokens(database).all()
    lines = [f"{t['id']}  {t['scope']:6}  {'revoked' if t['revoked_at'] else 'valid':7}  {t['name']}" for t in found]
    print_one(found, "\n".join(lines) or "no tokens")


@command("tallgrass token revoke t5fnahhsb5", name="revoke")
@click.argument("token_id", metavar="ID")
@_database
def token_revoke(token_id: str, database: str | None) -> None:
    """Make a token worthless, from the next request on."""
    if not _tokens(database).revoke(token_id):
        raise JobFileError(f'There is no valid token "{token_id[:40]}". `tallgrass token list` shows them.')
    print_one({"revoked": token_id}, f"{token_id} revoked")


for _command in (token_create, token_list, token_revoke):
    token.add_command(_command)

ALL: tuple[click.Command, ...] = (serve, certs, token)
