"""Wake-ups: something about a job or about batches has changed. They carry no data; whoever wakes reads the store."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


class Wakeups:
    """Wake-ups between the tasks of one process; `Notices` carries them to others.

    `pass_on` is told of each change made here: the job's id, or None for batches.
    """

    def __init__(self) -> None:
        self.pass_on: Callable[[int | None], None] = lambda _: None
        self._of_job: dict[int, set[asyncio.Event]] = defaultdict(set)
        self._of_any: set[asyncio.Event] = set()
        self._of_batches: set[asyncio.Event] = set()

    @contextmanager
    def of_job(self, job_id: int) -> Iterator[asyncio.Event]:
        """Yield a flag that is set at each change of this job from now on; its reader clears it."""
        flag = asyncio.Event()
        self._of_job[job_id].add(flag)
        try:
            yield flag
        finally:
            self._of_job[job_id].discard(flag)
            if not self._of_job[job_id]:
                del self._of_job[job_id]

    def of_any_job(self) -> AbstractContextManager[asyncio.Event]:
        """Yield a flag that is set at each change of any job from now on; its reader clears it."""
        return _flag_among(self._of_any)

    def of_batches(self) -> AbstractContextManager[asyncio.Event]:
        """Yield a flag that is set from now on whenever batches come to count or cease to; its reader clears it."""
        return _flag_among(self._of_batches)

    def job_changed(self, job_id: int) -> None:
        """Wake whoever waits for this job, after the transaction that changed it has committed."""
        self.wake(job_id)
        self.pass_on(job_id)

    def batches_changed(self) -> None:
        """Wake whoever waits for batches, after the transaction that made some count, or cease to, has committed."""
        self.wake(None)
        self.pass_on(None)

    def wake(self, changed: int | None) -> None:
        """Wake those here who wait for a job or, for None, for batches."""
        flags = self._of_batches if changed is None else {*self._of_job.get(changed, ()), *self._of_any}
        for flag in flags:
            flag.set()

    def wake_all(self) -> None:
        """Wake everybody here: anything may have changed."""
        for flags in (*self._of_job.values(), self._of_any, self._of_batches):
            for flag in flags:
                flag.set()


@contextmanager
def _flag_among(flags: set[asyncio.Event]) -> Iterator[asyncio.Event]:
    flag = asyncio.Event()
    flags.add(flag)
    try:
        yield flag
    finally:
        flags.discard(flag)
