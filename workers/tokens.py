"""Tokens: what opens a server to those who were given one, and is kept as its hash alone."""

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from pipelines.errors import JobFileError
from workers.database import Database, new_id, one_at_a_time, tokens

_TOKEN = re.compile(r"tg_([a-z2-9]{10})_([\w-]{43})")


def draw() -> str:
    """A token that no database knows yet."""
    return f"tg_{new_id()}_{secrets.token_urlsafe(32)}"


@dataclass(frozen=True)
class Tokens:
    """The tokens of a database."""

    database: Database

    def create(self, name: str, scope: str) -> str:
        """A new token, which is shown once: the database keeps its hash."""
        token = draw()
        self.admit(token, name, scope)
        return token

    def admit(self, token: str, name: str, scope: str) -> None:
        """A token that was drawn elsewhere opens the server from now on; one that was revoked does not.

        Raises:
            JobFileError: it has not the form of a token.
        """
        found = _TOKEN.fullmatch(token)
        if found is None:
            raise JobFileError(
                f"found a token of {len(token)} characters that does not look like ours; needed one that `tallgrass "
                "token create NAME --file FILE` made"
            )
        row = {"id": found[1], "name": name, "hash": hashed(found[2]), "scope": scope}
        with self.database.transaction() as connection:
            one_at_a_time(connection)
            if connection.execute(sql.select(tokens.c.id).where(tokens.c.id == found[1])).first() is None:
                connection.execute(sql.insert(tokens).values(row | {"created_at": self.database.clock()}))

    def revoke(self, token_id: str) -> bool:
        """Whether there was such a token; it opens nothing any more."""
        here = (tokens.c.id == token_id) & tokens.c.revoked_at.is_(None)
        with self.database.transaction() as connection:
            return bool(
                connection.execute(sql.update(tokens).where(here).values(revoked_at=self.database.clock())).rowcount
            )

    def all(self) -> list[dict[str, Any]]:
        """All tokens, without what would open anything."""
        columns = [column for column in tokens.c if column.name != "hash"]
        with self.database.reading() as connection:
            return [dict(row) for row in connection.execute(sql.select(*columns).order_by("created_at")).mappings()]

    def scope_of(self, token: str) -> tuple[str, str] | None:
        """(id, scope) of a token that is valid, compared in constant time; None for any other text."""
        prefix, _, rest = token.partition("_")
        token_id, _, secret = rest.partition("_")
        with self.database.reading() as connection:
            query = sql.select(tokens).where((tokens.c.id == token_id) & tokens.c.revoked_at.is_(None))
            row = connection.execute(query).mappings().one_or_none()
        expected = row["hash"] if row is not None else hashed("")
        same = secrets.compare_digest(hashed(secret), expected)
        return (row["id"], row["scope"]) if row is not None and prefix == "tg" and same else None


def hashed(secret: str) -> str:
    """What the database keeps of a token: secrets of 256 random bits need no slow hash."""
    return hashlib.sha256(secret.encode()).hexdigest()
