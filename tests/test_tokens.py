"""Tokens that come from a file: made without a server, kept by it as a hash, valid until they are revoked."""

import stat
import subprocess
import sys

import httpx
import psycopg
import pytest

from pipelines.errors import JobFileError, TallgrassError
from tests.postgres import postgres
from tests.served import Served, free_port
from workers import Client
from workers.database import Database
from workers.tokens import Tokens, draw


@pytest.fixture
def tokens(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/queue.db")
    yield Tokens(database)
    database.close()


def tallgrass(*words):
    command = [sys.executable, "-m", "workers.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_token_that_was_drawn_elsewhere_is_admitted_once(tokens):
    token = draw()
    assert tokens.scope_of(token) is None
    for _ in range(2):
        tokens.admit(token, "file", "submit")
    assert tokens.scope_of(token) == (token[3:13], "submit")
    assert [found["name"] for found in tokens.all()] == ["file"]


def test_a_token_that_was_revoked_stays_so(tokens):
    token = draw()
    tokens.admit(token, "file", "submit")
    assert tokens.revoke(token[3:13])
    tokens.admit(token, "file", "submit")
    assert tokens.scope_of(token) is None


@pytest.mark.parametrize("text", ["", "x", "tg_short_x", "password", pytest.param(draw() + "\nmore", id="two lines")])
def test_what_does_not_look_like_a_token_is_refused(tokens, text):
    with pytest.raises(JobFileError, match=rf"found a token of {len(text)} characters that does not look like ours"):
        tokens.admit(text, "file", "submit")
    assert tokens.all() == []


def test_a_token_is_written_for_its_owner_alone_and_never_over_another(tmp_path):
    file = tmp_path / "token"
    done = tallgrass("token", "create", "ci", "--file", file)
    assert (done.returncode, done.stdout) == (0, f"{file}\n")
    assert f"next: tallgrass serve --token-file {file}" in done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_text()
    done = tallgrass("token", "create", "ci", "--file", file)
    assert (done.returncode, file.read_text()) == (1, before)
    assert f"{file} cannot be written: File exists. Name another file." in done.stderr
    done = tallgrass("token", "create", "ci", "--file", tmp_path / "other", "--scope", "read")
    assert done.returncode == 2
    assert "--file is for a token that may submit" in done.stderr
    assert not (tmp_path / "other").exists()


def test_a_server_with_a_token_file_asks_for_tokens_on_this_machine_too(tmp_path):
    tallgrass("token", "create", "ci", "--file", tmp_path / "token")
    with Served(tmp_path, "--token-file", str(tmp_path / "token")) as served:
        assert httpx.get(f"{served.url}/v1/jobs").status_code == 401
        token = (tmp_path / "token").read_text()
        assert token.strip() not in served.said()
        with Client(served.url, token) as client:
            assert list(client.jobs()) == []
            database = Database(served.database)
            assert [found["name"] for found in Tokens(database).all()] == ["token"]
            Tokens(database).revoke(token[3:13])
            database.close()
            with pytest.raises(TallgrassError, match="token"):
                client.page()


@pytest.mark.parametrize(("content", "says"), [
    (b"nothing", "found a token of 7 characters that does not look like ours"),
    (b"\xff", "cannot be read (no text). Make it with tallgrass token create."),
])  # fmt: skip
def test_a_token_file_that_holds_none_is_said(tmp_path, content, says):
    (tmp_path / "token").write_bytes(content)
    place = ("--port", free_port(), "--state", tmp_path, "--root", tmp_path)
    done = tallgrass("serve", *place, "--token-file", tmp_path / "token")
    assert done.returncode == 2
    assert says in done.stderr


def test_a_database_made_without_a_locale_keeps_text_too():
    with postgres() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE DATABASE plain ENCODING 'SQL_ASCII' LOCALE 'C' TEMPLATE template0")
        database = Database(url.replace("/postgres?", "/plain?"))
        token = Tokens(database).create("naïve ≠ ascii", "read")
        assert [found["name"] for found in Tokens(database).all()] == ["naïve ≠ ascii"]
        assert Tokens(database).scope_of(token) is not None
        database.close()
