"""Wake-ups: something about a job or about batches has changed. They carry no data; whoever wakes reads the store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple


class ChangedJob(NamedTuple):
    """A job that has changed, and whose it is, by their keys; and whether a worker may find one to take since."""

    job_id: int
    tenant_id: int
    one_may_be_due: bool


class Wakeups:
    """Wake-ups between the tasks of one process; `Notices` carries them to others.

    `pass_on` is told of each change made here: the job, or None for batches.
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

    def job_changed(self, job_id: int, tenant_id: int, *, one_may_be_due: bool = False) -> None:
        """Wake whoever waits for this job, after the transaction that changed it has committed.

        A job may be due once one is new or one that ran does so no longer, since a tenant runs only so many.
        """
        changed = ChangedJob(job_id, tenant_id, one_may_be_due)
        self.wake(changed)
        self.pass_on(changed)

    def batches_changed(self) -> None:
        """Wake whoever waits for batches, after the transaction that made some count, or cease to, has committed."""
        self.wake(None)
        self.pass_on(None)

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
