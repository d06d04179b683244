"""What keeps a database of either kind from being opened, and turns at its one writer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from sqlalchemy.exc import DBAPIError

from profile_export.domain.errors import UnavailableError
from profile_export.processes.turns import FairTurns, WaitedTooLongError, computed_for, present_whose

# SQLSTATE `undefined_table` and `undefined_column`; SQLite has no code for them but a text.
_LACKING = {"42P01", "42703"}
_LACKING_TEXT = "no such "


class CannotOpenError(Exception):
    """The database cannot be opened. Its text is one line with the way out."""


class StoreMissingError(CannotOpenError):
    """There is no store in the database, and none may be made. Nothing has been changed."""


def explained(error: Exception) -> str | None:
    """Say in one sentence what a statement's error says of the database; None: that it is no fault of the database."""
    if not isinstance(error, DBAPIError):
        return None
    cause = error.orig.__cause__ or error.orig if error.orig else None
    text = " ".join(str(cause).split())
    if getattr(cause, "sqlstate", None) in _LACKING or text.startswith(_LACKING_TEXT):
        return f"The database lacks what its version has ({text}): put a backup of it in its place, then start again."
    return None


WAIT_SECONDS = 60.0
"""How long a transaction waits for a turn, and for a connection."""
_WRITER = "the writer"
_TENANTS, _NOBODY = "tenants", "nobody"


class WriterTurns:
    """Turns of the transactions of this process that write alone.

    Tenants are served round robin, each one's transactions first come first served. What is for nobody in particular,
    such as chores and the leases of jobs, waits for one transaction of one tenant at most for each of its own.
    """

    def __init__(self, wait_seconds: float = WAIT_SECONDS) -> None:
        self._wait_seconds = wait_seconds
        # The tenant whose turn it is takes turns with nobody.
        self._tenants = FairTurns(1)
        self._writer = FairTurns(1)

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[None]:
        """Wait for a turn of whom this task works for, and hold it.

        Raises:
            UnavailableError: It takes too long.
        """
        whose = present_whose()
        try:
            if whose is None:
                async with self._writer.taken(_NOBODY, self._wait_seconds):
                    yield
            else:
                async with (
                    self._tenants.taken(whose, self._wait_seconds),
                    self._writer.taken(_TENANTS, self._wait_seconds),
                ):
                    # Everybody waits for what is computed now: it stands in no queue of its tenant.
                    with computed_for(_WRITER):
                        yield
        except WaitedTooLongError:
            raise database_busy() from None


def database_busy() -> UnavailableError:
    """Return the answer to who has waited too long."""
    return UnavailableError(
        "DATABASE_BUSY",
        "The server has more to read or write than its database keeps up with. Try again.",
        retry_after=timedelta(seconds=1),
    )
