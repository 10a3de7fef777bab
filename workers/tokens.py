"""Tokens: what opens a server to those who were given one, and is kept as its hash alone."""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql

from workers.database import Database, new_id, tokens


@dataclass(frozen=True)
class Tokens:
    """The tokens of a database."""

    database: Database

    def create(self, name: str, scope: str) -> str:
        """A new token, which is shown once: the database keeps its hash."""
        token_id, secret = new_id(), secrets.token_urlsafe(32)
        with self.database.transaction() as connection:
            row = {
                "id": token_id,
                "name": name,
                "hash": hashed(secret),
                "scope": scope,
                "created_at": self.database.clock(),
            }
            connection.execute(sql.insert(tokens).values(row))
        return f"tg_{token_id}_{secret}"

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
