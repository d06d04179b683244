"""WatchJob: a job's log as a stream. The log is the truth, wake-ups carry no data; the promises are in the contract."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from profile_export.api.job_log import JobLog
from profile_export.api.reading import Readings
from profile_export.api.watchers import Intervals, Pacing, Watchers, Write, after_revision, intervals
from profile_export.domain.catalog import Tenant
from profile_export.v1 import export_service_pb2 as pb


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What a watcher asks for; `after_revision` None means a snapshot first."""

    job_id: int
    after_revision: int | None
    intervals: Intervals

    @classmethod
    def of(cls, request: pb.WatchJobRequest) -> WatchOptions:
        """Read and check a request.

        Raises:
            InvalidArgumentError: The revision is negative, or an interval out of bounds.
        """
        return cls(request.job_id, after_revision(request), intervals(request))


class JobWatches:
    """All watches of single jobs of this process."""

    def __init__(self, watchers: Watchers, logs: Readings[tuple[Tenant, int], JobLog]) -> None:
        self._watchers = watchers
        self._logs = logs

    async def serve(self, tenant: Tenant, options: WatchOptions, write: Write) -> None:
        """Write to one watcher until the job is final.

        A slow reader holds up only its own coroutine: between two writes it has a revision and a flag, no queue.

        Raises:
            NotFoundError: The tenant has no such job.
            PastEndError: `after_revision` is newer than the job.
            UnavailableError: The server is draining.
            ExhaustedError: The tenant has as many watches as it may have.
        """
        with self._watchers.one(tenant) as flag:
            async with self._logs.of((tenant, options.job_id), flag) as log:
                log.view.job.check_reached(options.after_revision or 0)
                await self._follow(log, flag, options, write)

    async def _follow(self, log: JobLog, flag: asyncio.Event, options: WatchOptions, write: Write) -> None:
        pacing = Pacing(options.intervals)
        revision = options.after_revision
        told = log.progress_number if revision is None else 0
        while True:
            flag.clear()
            self._watchers.check_goes_on()
            job = log.view.job
            if revision is None or job.is_final or revision < job.revision:
                # A snapshot, moves, or the end told again to one that resumes there.
                message = log.snapshot() if revision is None else log.moves_after(revision)
                revision = job.revision
                await write(message)
                pacing.wrote()
                if job.is_final:
                    return
            elif log.progress_number not in {0, told} and pacing.progress_due:
                told = log.progress_number
                await write(log.progress())
                pacing.wrote(progress=True)
            elif pacing.heartbeat_due:
                await write(log.heartbeat())
                pacing.wrote()
            else:
                await pacing.pause(flag, progress_waits=log.progress_number not in {0, told})
