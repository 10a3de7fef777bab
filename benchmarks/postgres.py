"""A PostgreSQL server for as long as it is needed, from the system's own package."""

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The folder of initdb and pg_ctl, or None where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]))
    return Path(found).parent if found else places[-1] if places else None


@contextmanager
def postgres(folder: Path, *options: str) -> Iterator[str]:
    """The address of an empty database below a folder; the server ends with the context."""
    found, data = programs(), folder / "data"
    assert found is not None, "PostgreSQL is not installed"
    # PostgreSQL refuses to run as root.
    as_user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    if as_user:
        for place in (folder, *folder.parents[:-1]):
            if place.stat().st_uid == 0 and not place.stat().st_mode & 0o001:
                place.chmod(place.stat().st_mode | 0o011)
        folder.chmod(0o777)
    name = "nobody" if as_user else pwd.getpwuid(os.getuid()).pw_name
    _quiet([*as_user, found / "initdb", "-D", data, "--auth=trust"], folder)
    control = [*as_user, found / "pg_ctl", "-D", data, "-w", "-l", folder / "log"]
    _quiet([*control, "-o", " ".join([f"-k {folder} -c listen_addresses=", *options]), "start"], folder)
    try:
        yield f"postgresql://{name}@/postgres?host={folder}"
    finally:
        _quiet([*control, "-m", "immediate", "stop"], folder)


def _quiet(command: list[str | Path], folder: Path) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder)
