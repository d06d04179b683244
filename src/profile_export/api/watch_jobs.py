"""WatchJobs: the jobs of a tenant as a list, and then every change; the checks are in the contract."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from profile_export.api.convert import instant, timestamp
from profile_export.api.convert_jobs import job_states
from profile_export.api.job_feed import MOST_CHANGES, Entry, JobFeed, JobFeeds, listed, removed
from profile_export.api.watchers import Intervals, Pacing, Watchers, Write, after_revision, intervals
from profile_export.domain.catalog import Tenant
from profile_export.domain.job_filter import JobFilter
from profile_export.v1 import export_service_pb2 as pb

_MOST_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What a watcher asks for; `after_revision` None means the list first."""

    wanted: JobFilter
    after_revision: int | None
    intervals: Intervals

    @classmethod
    def of(cls, request: pb.WatchJobsRequest) -> FeedOptions:
        """Read and check a request.

        Raises:
            InvalidArgumentError: A state is none, the revision is negative, or an interval out of bounds.
        """
        wanted = JobFilter(
            job_states(request.states, "states"),
            request.dataset_id,
            instant(request, "from_create_time"),
        )
        return cls(wanted, after_revision(request), intervals(request))


class FeedWatches:
    """All watches of all jobs of this process."""

    def __init__(self, watchers: Watchers, feeds: JobFeeds, now: Callable[[], datetime]) -> None:
        self._watchers = watchers
        self._feeds = feeds
        self._now = now

    async def serve(self, tenant: Tenant, options: FeedOptions, write: Write) -> None:
        """Write to one watcher, until it goes.

        A slow reader holds up only its own coroutine: between two writes it has a revision and a flag, no queue.

        Raises:
            PastEndError: `after_revision` is newer than what there is, or older than what is kept.
            UnavailableError: The server is draining.
            ExhaustedError: The tenant has as many watches as it may have.
        """
        with self._watchers.one(tenant) as flag:
            async with self._feeds.of(tenant, flag) as feed:
                if options.after_revision is None:
                    revision = await self._list(tenant, options.wanted, write)
                else:
                    revision = options.after_revision
                    feed.check_kept(revision)
                await self._follow(tenant, feed, flag, options, revision, write)

    async def _list(self, tenant: Tenant, wanted: JobFilter, write: Write) -> int:
        """Write the list; return the revision that it is of, once it is complete.

        It is read piece by piece. What has changed meanwhile is told anew, until nothing has.
        """
        page = await self._feeds.changes.list(tenant, wanted, 0, MOST_CHANGES)
        revision = page.revision
        while True:
            for _, part in _parts((0, listed(view)) for view in page.views):
                await write(self._message(0, part))
            self._watchers.check_goes_on()
            if not page.has_more:
                break
            page = await self._feeds.changes.list(tenant, wanted, page.views[-1].job.id, MOST_CHANGES)
        while True:
            self._watchers.check_goes_on()
            revision, now = await self._feeds.changes.changed_since(tenant, wanted, revision, MOST_CHANGES)
            changed = [listed(view) for view in now.views] + [removed(job_id) for job_id in now.removed]
            for _, part in _parts((0, change) for change in changed):
                await write(self._message(0, part))
            if revision == now.revision:
                await write(self._message(revision, b"", list_complete=True))
                return revision

    async def _follow(
        self,
        tenant: Tenant,
        feed: JobFeed,
        flag: asyncio.Event,
        options: FeedOptions,
        revision: int,
        write: Write,
    ) -> None:
        pacing = Pacing(options.intervals)
        told = 0
        while True:
            flag.clear()
            self._watchers.check_goes_on()
            progresses = _newer(feed.progresses, told, options.wanted)
            if revision < feed.revision:
                entries = await self._feeds.after(tenant, revision, feed.revision)
                revision = entries[-1].number
                for bookmark, part in _parts(
                    (one.number, one.encoded) for one in entries if one.passes(options.wanted)
                ):
                    await write(self._message(bookmark, part))
                    pacing.wrote()
            elif progresses and pacing.progress_due:
                told = progresses[-1].number
                for _, part in _parts((0, one.encoded) for one in progresses):
                    await write(self._message(revision, part))
                pacing.wrote(progress=True)
            elif pacing.heartbeat_due:
                await write(self._message(revision, b""))
                pacing.wrote()
            else:
                await pacing.pause(flag, progress_waits=bool(progresses))

    def _message(self, revision: int, changes: bytes, *, list_complete: bool = False) -> bytes:
        rest = pb.WatchJobsResponse(
            revision=revision, list_complete=list_complete, server_time=timestamp(self._now())
        )
        # Fields of a message may come one by one, and in any order.
        return changes + rest.SerializeToString()


def _newer(progresses: Sequence[Entry], told: int, wanted: JobFilter) -> Sequence[Entry]:
    return [one for one in progresses if one.number > told and one.passes(wanted)]


def _parts(changes: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Put changes together into what one message may hold, each with the number of its last change."""
    part: list[bytes] = []
    size = number = 0
    for following, change in changes:
        if part and (size + len(change) > _MOST_BYTES or len(part) == MOST_CHANGES):
            yield number, b"".join(part)
            part, size = [], 0
        part.append(change)
        size += len(change)
        number = following
    if part:
        yield number, b"".join(part)
