"""Renewing leases from a thread: what keeps the loop busy must not cost the jobs that are run beside it."""

from __future__ import annotations

import sqlite3

from sqlalchemy import update
from sqlalchemy.exc import SQLAlchemyError

from profile_export.domain.job import LEASE_TTL
from profile_export.store.database import Database, database_time_within
from profile_export.store.job_tables import leases
from profile_export.store.leases import Fence


class Renewals:
    """Renewals of the leases of all jobs. Calls block."""

    def __init__(self, database: Database) -> None:
        self._engine = database.renewer

    def renew(self, fence: Fence) -> bool:
        """Renew a lease; False where the attempt has it no longer, or the database does not answer.

        One that is over, but that nobody has ended, is renewed as by a heartbeat: it may have run out while a
        transaction of this process kept out all that would have renewed it. What the attempt had reached stays as its
        heartbeat has told it.
        """
        try:
            with self._engine.begin() as connection:
                now = database_time_within(connection)
                its_lease = update(leases).where(
                    leases.c.job_id == fence.job_id,
                    leases.c.attempt == fence.attempt,
                    leases.c.worker == fence.worker,
                )
                return connection.execute(its_lease.values(expire_time=now + LEASE_TTL)).rowcount == 1
        except SQLAlchemyError as error:
            # A transaction of this process is under way, and no other process could take the job over.
            cause = getattr(error, "orig", None)
            return getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
