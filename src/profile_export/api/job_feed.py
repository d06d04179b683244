"""What all watches of a tenant's jobs write: its changes, read once and serialised once for all of them."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile

from profile_export.api import convert_jobs
from profile_export.api.reading import Reading, Readings
from profile_export.domain.catalog import Tenant
from profile_export.domain.job import JobState
from profile_export.domain.job_filter import JobFilter
from profile_export.store.changes import Advance, Change, Changes, Head, check_kept
from profile_export.store.events import Wakeups
from profile_export.store.job_rows import JobView
from profile_export.v1 import export_service_pb2 as pb

MOST_CHANGES = 100
"""As many are read, and sent in a message, at once."""
_LEAST_SECONDS = 0.02
"""What comes within so short a time is read together."""
_CACHE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """A change, or the progress of a job, as part of a message, and what filters ask about it.

    `number` is the tenant's revision or, of progress, grows with each that is new.
    """

    number: int
    encoded: bytes
    states: tuple[JobState | None, ...]
    destination_id: str
    create_time: datetime

    def passes(self, wanted: JobFilter) -> bool:
        """Whether a filter lets it through."""
        return wanted.admits(self, self.states)


class JobFeeds:
    """The feeds of the tenants that are watched, and the changes that were read lately, of whatever age."""

    def __init__(self, changes: Changes, wakeups: Wakeups) -> None:
        self.changes = changes
        self._feeds = Readings[Tenant, JobFeed](lambda tenant: JobFeed(changes, wakeups, tenant))
        self._recent = _Recent()

    def of(self, tenant: Tenant, flag: asyncio.Event) -> AbstractAsyncContextManager[JobFeed]:
        """Give a tenant's feed to a watcher, whose flag is set whenever it has grown, or some progress is new.

        It knows of all that had been written down before the call.
        """
        return self._feeds.of(tenant, flag)

    async def after(self, tenant: Tenant, revision: int, newest: int) -> Sequence[Entry]:
        """Return the changes that follow a revision, some of those there are up to the newest; at least one.

        Raises:
            PastEndError: They are not kept any more.
        """
        number = revision // MOST_CHANGES
        last = min(newest, (number + 1) * MOST_CHANGES)
        wanted = range(revision + 1, last + 1)
        known = self._recent.block(tenant, number)
        if not all(one in known for one in wanted):
            read = await self.changes.between(tenant, revision, last)
            known = self._recent.add(tenant, number, {change.revision: _entry(change) for change in read})
        return [known[one] for one in takewhile(known.__contains__, wanted)]


class _Recent:
    """Entries by tenant and revision, in blocks; those that were asked for longest ago make room."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[Tenant, int], dict[int, Entry]] = OrderedDict()
        self._bytes = 0

    def block(self, tenant: Tenant, number: int) -> Mapping[int, Entry]:
        """Return a block as far as it has been read: what several watchers needed of it, perhaps with gaps."""
        return self._block((tenant, number))

    def add(self, tenant: Tenant, number: int, read: Mapping[int, Entry]) -> Mapping[int, Entry]:
        """Add to a block what has been read of it; return it."""
        block = self._block((tenant, number))
        new = {revision: entry for revision, entry in read.items() if revision not in block}
        block.update(new)
        self._bytes += _size(new)
        while self._bytes > _CACHE_BYTES and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._bytes -= _size(oldest)
        return block

    def _block(self, key: tuple[Tenant, int]) -> dict[int, Entry]:
        block = self._blocks.setdefault(key, {})
        self._blocks.move_to_end(key)
        return block


def _size(block: Mapping[int, Entry]) -> int:
    return sum(len(entry.encoded) for entry in block.values())


class JobFeed(Reading):
    """Where the jobs of one tenant stand."""

    def __init__(self, changes: Changes, wakeups: Wakeups, tenant: Tenant) -> None:
        self.progresses: Sequence[Entry] = ()
        """The latest of each running job, the newest last."""
        self._changes = changes
        self._wakeups = wakeups
        self._tenant = tenant
        self._advances: dict[int, tuple[Advance, Entry]] = {}
        self._advanced = 0
        self._head = Head(None, 0, 0, ())
        super().__init__()

    @property
    def revision(self) -> int:
        """The tenant's newest revision.

        Raises what kept it from being read.
        """
        self.check()
        return self._head.revision

    def check_kept(self, after: int) -> None:
        """Refuse to go on after a revision that has not come, or from which on not all is kept.

        Raises:
            PastEndError: One of the two.
        """
        check_kept(after, self._head.revision, self._head.forgotten)

    async def _read_on(self) -> None:
        # Registered before the changes are read, so that none falls between the two.
        with self._wakeups.of_any_job() as self._asked:
            await self._read()
            while self._head.tenant_id is None and not self.failed:
                await self._pause()
                await self._read()
        if self._head.tenant_id is not None:
            with self._wakeups.of_tenant(self._head.tenant_id) as self._asked:
                while not self.failed:
                    await self._read()
                    await asyncio.sleep(_LEAST_SECONDS)
                    await self._pause()

    async def _take_news(self) -> bool:
        head = await self._changes.head(self._tenant)
        has_news = head != self._head
        self._take(head)
        return has_news

    def _take(self, head: Head) -> None:
        self._head = head
        known = self._advances
        self._advances = {}
        for advance in head.advances:
            before = known.get(advance.job_id)
            if before and before[0] == advance:
                self._advances[advance.job_id] = before
                continue
            self._advanced += 1
            self._advances[advance.job_id] = (advance, _progress_entry(self._advanced, advance))
        self.progresses = sorted(
            (entry for _, entry in self._advances.values()), key=lambda entry: entry.number
        )


def listed(view: JobView) -> bytes:
    """Return a job of the list as part of a message."""
    return _encoded(pb.JobChange(job_id=view.job.id, job=convert_jobs.export_job(view)))


def removed(job_id: int) -> bytes:
    """Return as part of a message that a job of the list is gone."""
    return _encoded(pb.JobChange(job_id=job_id, removed=True))


def _entry(change: Change) -> Entry:
    message = pb.JobChange(job_id=change.job_id, revision=change.revision)
    if change.view and change.transition:
        message.transition.CopyFrom(convert_jobs.job_transition(change.view, change.transition))
        if change.from_state is None:
            message.job.CopyFrom(convert_jobs.export_job(_as_created(change.view)))
        elif change.view.job.revision == change.transition.revision and change.view.job.is_final:
            message.job.CopyFrom(convert_jobs.export_job(change.view))
    else:
        message.removed = True
    return Entry(
        change.revision,
        _encoded(message),
        (change.from_state, change.to_state),
        change.destination_id,
        change.create_time,
    )


def _progress_entry(number: int, advance: Advance) -> Entry:
    message = pb.JobChange(job_id=advance.job_id, progress=convert_jobs.progress(advance.progress))
    running = (JobState.PROCESSING,)
    return Entry(number, _encoded(message), running, advance.destination_id, advance.create_time)


def _as_created(view: JobView) -> JobView:
    job = view.job.as_created
    return replace(
        view,
        job=job,
        phases=tuple(replace(phase, end_time=None) for phase in view.phases[:1]),
        progress=None,
        until=job.create_time,
        expire_time=None,
    )


def _encoded(change: pb.JobChange) -> bytes:
    # One field of a message: they may come one by one.
    return pb.WatchJobsResponse(changes=[change]).SerializeToString()
