"""Notices: wake-ups from process to process, by PostgreSQL's LISTEN and NOTIFY. Whoever misses one polls."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog

from profile_export.domain.errors import UnavailableError
from profile_export.store.events import ChangedJob, Wakeups
from profile_export.store.postgresql import connector

_CHANNEL = "profile_export"
_BATCHES = "batches"
_AGAIN_SECONDS = 1.0
_log = structlog.get_logger(__name__)


class Notices:
    """The notices of one process, sent and heard on a connection of their own."""

    def __init__(self, url: str, wakeups: Wakeups) -> None:
        """Make those of the PostgreSQL database that a URL names.

        Raises:
            CannotOpenError: The driver is not installed.
        """
        self._connect = connector(url)
        self._wakeups = wakeups
        self._changed: set[ChangedJob | None] = set()
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Tell others what changes here and wake those here for what changes elsewhere, until cancelled."""
        self._wakeups.pass_on = self._note
        while True:
            try:
                await self._exchange()
            except UnavailableError as error:
                _log.warning("notices_failed", reason=error.reason)
            except Exception:  # noqa: BLE001 - whatever it is, polling goes on and the next connection may hold
                _log.exception("notices_failed")
            await asyncio.sleep(_AGAIN_SECONDS)

    def _note(self, changed: ChangedJob | None) -> None:
        self._changed.add(changed)
        self._news.set()

    async def _exchange(self) -> None:
        connection = await self._connect()
        try:
            connection.add_termination_listener(lambda _: self._news.set())
            await connection.add_listener(_CHANNEL, self._hear)
            # What happened before went unheard.
            self._wakeups.wake_all()
            while not connection.is_closed():
                changed, self._changed = self._changed, set()
                if changed:
                    notices = [(_CHANNEL, _written(one)) for one in changed]
                    await connection.executemany("SELECT pg_notify($1, $2)", notices)
                await self._news.wait()
                self._news.clear()
        finally:
            connection.terminate()

    def _hear(self, connection: Any, sender: int, _channel: str, notice: str) -> None:
        if sender != connection.get_server_pid():
            self._wakeups.wake(_read(notice))


def _written(changed: ChangedJob | None) -> str:
    return _BATCHES if changed is None else f"{changed.job_id} {changed.tenant_id} {changed.one_may_be_due:d}"


def _read(notice: str) -> ChangedJob | None:
    if notice == _BATCHES:
        return None
    job_id, tenant_id, one_may_be_due = map(int, notice.split())
    return ChangedJob(job_id, tenant_id, bool(one_may_be_due))
