"""Watches of all jobs of a tenant. A change is read and serialised once, and all who watch the tenant get those bytes.

A watch sends the jobs as a list, and then every change; the contract says what it promises.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import takewhile
from typing import Protocol

from profile_export.application.watch.watchers import Intervals, Pacing, Reading, Readings, Watchers, Write
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.job import JobFilter, JobState, JobView, Progress, Transition
from profile_export.store.db.wakeups import Wakeups
from profile_export.store.jobs.changes import Advance, Change, Changes, Head, check_kept

_MOST_CHANGES = 100
"""How many changes are read at once, and sent in one message."""
_MOST_BYTES = 256 * 1024
"""The changes of a message have no more bytes together; a single one may have more."""
_LEAST_SECONDS = 0.02
"""Changes that come within so many seconds are read together."""
_CACHE_BYTES = 32 * 1024 * 1024


class FeedEncoder(Protocol):
    """Serialises what one door sends to the watchers of a tenant's jobs.

    It returns each change as a part of a message. The feed keeps the parts of moves, removals and progress for all
    watchers, chooses for each watcher those that its filter lets through, and has them joined to a message.
    """

    def listed(self, view: JobView) -> bytes:
        """Return the part that lists a job."""

    def moved(self, revision: int, view: JobView, move: Transition, told: JobView | None) -> bytes:
        """Return the part that tells a move of a job; it includes the job as it is in `told`, if that is given.

        The move is the tenant's change number `revision`.
        """

    def removed(self, job_id: int, revision: int = 0) -> bytes:
        """Return the part that tells that a job is gone.

        The removal is the tenant's change number `revision`; 0 means an entry of the list, which has no number.
        """

    def progress(self, job_id: int, progress: Progress) -> bytes:
        """Return the part that tells how far a running job is."""

    def message(
        self, parts: Sequence[bytes], revision: int, now: datetime, *, list_complete: bool = False
    ) -> bytes:
        """Join parts to one message; without parts it is a heartbeat, or the mark that completes the list.

        Args:
            parts: Changes, as the other methods returned them, in their order.
            revision: The revision that the watcher may resume from; 0 while the list is not complete.
            now: When the message is made.
            list_complete: Whether the whole list has been sent.
        """


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What a watcher asks for; `after_revision` None means the list first."""

    wanted: JobFilter
    after_revision: int | None
    intervals: Intervals


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


class _Recent:
    """Entries by tenant and revision, in blocks; those that were asked for longest ago make room."""

    def __init__(self) -> None:
        self._blocks: OrderedDict[tuple[Tenant, int], dict[int, Entry]] = OrderedDict()
        self._bytes = 0

    def block(self, tenant: Tenant, number: int) -> dict[int, Entry]:
        """Return a block as far as it has been read: what several watchers needed of it, perhaps with gaps."""
        block = self._blocks.setdefault((tenant, number), {})
        self._blocks.move_to_end((tenant, number))
        return block

    def add(self, tenant: Tenant, number: int, read: Mapping[int, Entry]) -> dict[int, Entry]:
        """Add to a block what has been read of it; return it."""
        block = self.block(tenant, number)
        new = {revision: entry for revision, entry in read.items() if revision not in block}
        block.update(new)
        self._bytes += _size(new)
        while self._bytes > _CACHE_BYTES and len(self._blocks) > 1:
            _, oldest = self._blocks.popitem(last=False)
            self._bytes -= _size(oldest)
        return block


def _size(block: Mapping[int, Entry]) -> int:
    return sum(len(entry.encoded) for entry in block.values())


class JobFeed(Reading):
    """Where the jobs of one tenant stand."""

    def __init__(self, changes: Changes, wakeups: Wakeups, encoder: FeedEncoder, tenant: Tenant) -> None:
        self.progresses: Sequence[Entry] = ()
        """The latest progress of each running job, the newest last."""
        self._changes = changes
        self._wakeups = wakeups
        self._encoder = encoder
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
        await self._read_while(lambda: self._head.tenant_id is None, self._wakeups.of_any_job())
        if self._head.tenant_id is not None:
            wakeups = self._wakeups.of_tenant(self._head.tenant_id)
            await self._read_while(lambda: True, wakeups, _LEAST_SECONDS)

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
            entry = _progress_entry(self._encoder, self._advanced, advance)
            self._advances[advance.job_id] = (advance, entry)
        self.progresses = sorted(
            (entry for _, entry in self._advances.values()), key=lambda entry: entry.number
        )


class FeedWatches:
    """All watches of all jobs of a tenant that one door serves, and the changes that any of them read lately."""

    def __init__(
        self,
        watchers: Watchers,
        changes: Changes,
        wakeups: Wakeups,
        encoder: FeedEncoder,
        now: Callable[[], datetime],
    ) -> None:
        self._watchers, self._changes, self._encoder, self._now = watchers, changes, encoder, now
        self._feeds = Readings[Tenant, JobFeed](lambda tenant: JobFeed(changes, wakeups, encoder, tenant))
        self._recent = _Recent()

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
        page = await self._changes.list(tenant, wanted, 0, _MOST_CHANGES)
        revision = page.revision
        while True:
            for _, parts in _fitting((0, self._encoder.listed(view)) for view in page.views):
                await write(self._message(parts, 0))
            self._watchers.check_goes_on()
            if not page.has_more:
                break
            page = await self._changes.list(tenant, wanted, page.views[-1].job.id, _MOST_CHANGES)
        while True:
            self._watchers.check_goes_on()
            revision, now = await self._changes.changed_since(tenant, wanted, revision, _MOST_CHANGES)
            changed = [self._encoder.listed(view) for view in now.views]
            changed += [self._encoder.removed(job_id) for job_id in now.removed]
            for _, parts in _fitting((0, change) for change in changed):
                await write(self._message(parts, 0))
            if revision == now.revision:
                await write(self._message((), revision, list_complete=True))
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
                entries = await self._after(tenant, revision, feed.revision)
                revision = entries[-1].number
                for bookmark, parts in _fitting(
                    (one.number, one.encoded) for one in entries if one.passes(options.wanted)
                ):
                    await write(self._message(parts, bookmark))
                    pacing.wrote()
            elif progresses and pacing.progress_due:
                told = progresses[-1].number
                for _, parts in _fitting((0, one.encoded) for one in progresses):
                    await write(self._message(parts, revision))
                pacing.wrote(progress=True)
            elif pacing.heartbeat_due:
                await write(self._message((), revision))
                pacing.wrote()
            else:
                await pacing.pause(flag, progress_waits=bool(progresses))

    async def _after(self, tenant: Tenant, revision: int, newest: int) -> Sequence[Entry]:
        """Return the changes that follow a revision, some of those there are up to the newest; at least one.

        Raises:
            PastEndError: They are not kept any more.
        """
        number = revision // _MOST_CHANGES
        last = min(newest, (number + 1) * _MOST_CHANGES)
        wanted = range(revision + 1, last + 1)
        known = self._recent.block(tenant, number)
        if not all(one in known for one in wanted):
            read = await self._changes.between(tenant, revision, last)
            entries = {change.revision: _entry(self._encoder, change) for change in read}
            known = self._recent.add(tenant, number, entries)
        return [known[one] for one in takewhile(known.__contains__, wanted)]

    def _message(self, parts: Sequence[bytes], revision: int, *, list_complete: bool = False) -> bytes:
        return self._encoder.message(parts, revision, self._now(), list_complete=list_complete)


def _newer(progresses: Sequence[Entry], told: int, wanted: JobFilter) -> Sequence[Entry]:
    return [one for one in progresses if one.number > told and one.passes(wanted)]


def _fitting(changes: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, Sequence[bytes]]]:
    """Divide changes among messages, as many as one may hold; yield each message's parts and the last one's number."""
    parts: list[bytes] = []
    size = number = 0
    for following, change in changes:
        if parts and (size + len(change) > _MOST_BYTES or len(parts) == _MOST_CHANGES):
            yield number, parts
            parts, size = [], 0
        parts.append(change)
        size += len(change)
        number = following
    if parts:
        yield number, parts


def _entry(encoder: FeedEncoder, change: Change) -> Entry:
    if change.view and change.transition:
        told = _told(change, change.view, change.transition)
        encoded = encoder.moved(change.revision, change.view, change.transition, told)
    else:
        encoded = encoder.removed(change.job_id, change.revision)
    return Entry(
        change.revision,
        encoded,
        (change.from_state, change.to_state),
        change.destination_id,
        change.create_time,
    )


def _told(change: Change, view: JobView, move: Transition) -> JobView | None:
    """Return the job that a change includes: the first move includes it as created, the last one as it ended."""
    if change.from_state is None:
        return _as_created(view)
    return view if view.job.revision == move.revision and view.job.is_final else None


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


def _progress_entry(encoder: FeedEncoder, number: int, advance: Advance) -> Entry:
    encoded = encoder.progress(advance.job_id, advance.progress)
    running = (JobState.PROCESSING,)
    return Entry(number, encoded, running, advance.destination_id, advance.create_time)
