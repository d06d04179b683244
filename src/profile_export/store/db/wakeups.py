"""Wake-ups within a process, and by LISTEN and NOTIFY to others. Without data: whoever wakes reads the store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import structlog

from profile_export.domain.errors import UnavailableError
from profile_export.store.db.postgresql import connector
from profile_export.store.db.transactions import ChangedJob


class Wakeups:
    """Wake-ups between the tasks of one process; `Notices` carries them to others.

    `pass_on` is told of each change made here, as a `Transaction` collects it.
    """

    def __init__(self) -> None:
        self.pass_on: Callable[[ChangedJob | None], None] = lambda _: None
        self._flags: dict[Hashable, set[asyncio.Event]] = defaultdict(set)

    def of_job(self, job_id: int) -> AbstractContextManager[asyncio.Event]:
        """Yield a flag that is set at each change of this job from now on; its reader clears it."""
        return self._flag("job", job_id)

    def of_tenant(self, tenant_id: int) -> AbstractContextManager[asyncio.Event]:
        """Yield a flag that is set at each change of any job of this tenant from now on; its reader clears it."""
        return self._flag("tenant", tenant_id)

    def of_any_job(self) -> AbstractContextManager[asyncio.Event]:
        """Yield a flag that is set at each change of any job from now on; its reader clears it."""
        return self._flag("job", None)

    def of_due_jobs(self) -> AbstractContextManager[asyncio.Event]:
        """Yield a flag that is set from now on whenever a job may have come to be due; its reader clears it."""
        return self._flag("due", None)

    def of_batches(self) -> AbstractContextManager[asyncio.Event]:
        """Yield a flag that is set from now on whenever batches come to count or cease to; its reader clears it."""
        return self._flag("batches", None)

    def fire(self, changes: Iterable[ChangedJob | None]) -> None:
        """Wake all who wait for what a transaction has changed, after its commit."""
        for changed in changes:
            self.wake(changed)
            self.pass_on(changed)

    def wake(self, changed: ChangedJob | None) -> None:
        """Wake those here who wait for a job or, for None, for batches."""
        if changed is None:
            self._set("batches", None)
        else:
            self._set("job", changed.job_id)
            self._set("job", None)
            self._set("tenant", changed.tenant_id)
            if changed.one_may_be_due:
                self._set("due", None)

    def wake_all(self) -> None:
        """Wake everybody here: anything may have changed."""
        for flags in self._flags.values():
            for flag in flags:
                flag.set()

    @contextmanager
    def _flag(self, *of: Hashable) -> Iterator[asyncio.Event]:
        flag = asyncio.Event()
        self._flags[of].add(flag)
        try:
            yield flag
        finally:
            self._flags[of].discard(flag)
            if not self._flags[of]:
                del self._flags[of]

    def _set(self, *of: Hashable) -> None:
        for flag in self._flags.get(of, ()):
            flag.set()


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
