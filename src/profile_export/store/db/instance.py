"""Which installation a database is of, and what it signs with: one row, made once and never changed."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.store.db.database import Database, Store, uninterruptible
from profile_export.store.db.tables import instance


@dataclass(frozen=True, slots=True)
class Instance:
    """One installation: its database, and the lake that goes with it.

    `token_key` is 32 random bytes, for what is handed out and must come back as it was. It never leaves the servers.
    """

    id: str
    token_key: bytes = field(repr=False)


class Instances(Store):
    """The instance of a database."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._token_key: bytes | None = None

    @uninterruptible
    async def get(self) -> Instance | None:
        """Return the instance; None before the first start."""
        async with self.database.read() as connection:
            return await _found(connection)

    async def token_key(self) -> bytes:
        """Return what the instance signs with; it is read once."""
        if self._token_key is None:
            found = await self.get()
            if found is None:
                raise RuntimeError("No token can be signed before the start has made the instance.")
            self._token_key = found.token_key
        return self._token_key

    @uninterruptible
    async def settle(self, proposed: Instance) -> Instance:
        """Return the instance, which becomes the proposed one if there is none: all who propose get the same."""
        async with self.database.write() as connection:
            if there := await _found(connection):
                return there
            await connection.execute(insert(instance).values(id=proposed.id, token_key=proposed.token_key))
        return proposed


async def _found(connection: AsyncConnection) -> Instance | None:
    row = (await connection.execute(select(instance.c.id, instance.c.token_key))).one_or_none()
    return Instance(row.id, row.token_key) if row else None
