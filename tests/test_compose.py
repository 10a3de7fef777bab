"""What docker-compose.yml promises, as far as it can be seen without containers; `make test-compose` runs them."""

import json
import os
import shutil
import stat
import subprocess

import pytest
from ruamel.yaml import YAML

from tests.compose.engine import with_commands
from tests.conftest import ROOT
from workers.certificates import days_left
from workers.tokens import Tokens

COMPOSE = YAML(typ="safe").load(ROOT / "docker-compose.yml")
SERVICES = COMPOSE["services"]
ENTRY_POINT = ROOT / "workers" / "entrypoint.sh"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder in which `make secrets` has run."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy2(ROOT / name, folder)
    with_commands(folder)
    done = subprocess.run(["make", "secrets"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return folder


def test_ports_are_open_to_this_machine_only():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 4
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert "ports" not in SERVICES["database"]


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_every_service_is_watched_limited_unprivileged_and_started_again(name):
    entry = SERVICES[name]
    assert {"healthcheck", "mem_limit", "secrets"} <= entry.keys()
    assert (entry["restart"], entry["init"], entry["cap_drop"]) == ("always", True, ["ALL"])
    assert entry["security_opt"] == ["no-new-privileges:true"]
    assert entry["user"] == "${TALLGRASS_UID:?is not known. Run: make secrets}"
    assert "privileged" not in entry


@pytest.mark.parametrize("name", ["scheduler", "worker", "server"])
def test_our_services_write_only_where_they_are_told_and_encrypt_what_dask_says(name):
    entry = SERVICES[name]
    assert entry["read_only"]
    assert entry["environment"]["OPENBLAS_NUM_THREADS"] == "1"
    assert entry["environment"]["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "True"
    assert {"ca", name, f"{name}-key"} <= set(entry["secrets"])
    others = {"scheduler", "worker", "server"} - {name}
    assert not others & set(entry["secrets"])


def test_jobs_run_where_the_database_cannot_be_reached():
    assert SERVICES["database"]["networks"] == ["queue"]
    assert [name for name, entry in SERVICES.items() if "queue" in entry.get("networks", [])] == ["server", "database"]
    assert COMPOSE["networks"]["queue"]["internal"]


def test_what_is_secret_comes_from_files_that_make_secrets_makes_for_one_user(made):
    user = (made / ".env").read_text()
    number = 10001 if os.getuid() == 0 else os.getuid()
    assert user == f"TALLGRASS_UID={number}\n"
    files = {name: made / secret["file"] for name, secret in COMPOSE["secrets"].items()}
    for name, file in files.items():
        assert file.stat().st_uid == number
        public = file.suffix == ".pem" and not file.name.endswith("-key.pem")
        assert public or stat.S_IMODE(file.stat().st_mode) == 0o600, name
    assert {name for entry in SERVICES.values() for name in entry["secrets"]} == files.keys()
    assert stat.S_IMODE((made / "secrets").stat().st_mode) == 0o700
    assert days_left(made / "secrets" / "server.pem") > 364
    for entry in SERVICES.values():
        for name, value in entry.get("environment", {}).items():
            assert name.endswith("_FILE") or not {"PASSWORD", "KEY", "SECRET", "TOKEN"} & set(name.split("_"))
            assert not name.endswith("_FILE") or value.removeprefix("/run/secrets/") in entry["secrets"]
    keys = json.loads((made / "secrets" / "store.json").read_text())["identities"][0]["credentials"][0]
    assert keys["accessKey"] == (made / "secrets" / "store-key-id").read_text().strip()
    assert keys["secretKey"] == (made / "secrets" / "store-key").read_text().strip()
    assert len({file.read_text() for file in files.values()}) == len(files)


def test_make_secrets_overwrites_nothing_and_makes_what_is_missing(made):
    before = {path: path.read_bytes() for path in (made / "secrets").iterdir()}
    (made / "secrets" / "token").unlink()
    done = subprocess.run(["make", "secrets"], cwd=made, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    after = {path: path.read_bytes() for path in (made / "secrets").iterdir()}
    assert after.keys() == before.keys()
    assert [path.name for path in after if after[path] != before[path]] == ["token"]


def compose_words():
    """Compose, of either generation, or None."""
    if shutil.which("docker"):
        found = subprocess.run(["docker", "compose", "version"], capture_output=True, timeout=60)
        if found.returncode == 0:
            return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def test_compose_files_of_both_generations_can_read_ours(tmp_path):
    assert not {"version", "name"} & COMPOSE.keys()
    words = compose_words()
    if words is None:
        pytest.skip("Compose is not installed (Debian: apt-get install docker-compose)")
    shutil.copy(ROOT / "docker-compose.yml", tmp_path)
    check = [*words, "config", "-q"]
    done = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "is not known. Run: make secrets" in done.stderr
    (tmp_path / ".env").write_text("TALLGRASS_UID=10001\n")
    subprocess.run(check, cwd=tmp_path, check=True, timeout=60)


def test_images_are_named_with_their_version():
    for name in ("database", "store"):
        assert SERVICES[name]["image"].partition(":")[2][:1].isdigit()


def test_the_entry_point_reads_files_into_the_environment_of_the_command_alone(tmp_path):
    (tmp_path / "password").write_text("p$ `w` 'x'\n")
    environment = {"PATH": os.environ["PATH"], "PGPASSWORD_FILE": str(tmp_path / "password")}
    command = [ENTRY_POINT, "sh", "-c", 'printf %s "$PGPASSWORD"']
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "p$ `w` 'x'")
    environment["AWS_ACCESS_KEY_ID_FILE"] = str(tmp_path / "nothing")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert (done.stdout, "nothing" in done.stderr) == ("", True)


def test_the_token_of_make_secrets_is_one(made, tmp_path):
    from workers.database import Database

    database = Database(f"sqlite:///{tmp_path}/queue.db")
    token = (made / "secrets" / "token").read_text().strip()
    Tokens(database).admit(token, "compose", "submit")
    assert Tokens(database).scope_of(token)[1] == "submit"
    database.close()
