"""WatchJobs at a server that only serves: jobs are NEW until they are cancelled, and so move when a test says so."""

from __future__ import annotations

import asyncio
import secrets
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.app import Application
from profile_export.config import ServeSettings, load
from profile_export.domain.catalog.datasets import Tenant
from profile_export.store.db.database import Database
from profile_export.store.jobs.changes import Changes
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import job_pb2
from tests.service.conftest import settings_for
from tests.service.harness import Caller, refusal_of

NEW, CANCELLED = job_pb2.JOB_STATE_NEW, job_pb2.JOB_STATE_CANCELLED
SOON = Duration(seconds=1)
MADE = 20


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def idle(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Application]:
    server = Application(load({**settings_for(tmp_path_factory.mktemp("idle")), "workers": "0"}, {}))
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def caller(idle: Application) -> AsyncIterator[Caller]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{idle.port}") as channel:
        yield Caller(channel, f"org-{secrets.token_hex(6)}")


@pytest.fixture
async def union(caller: Caller) -> str:
    await caller.dataset("record", {"id": "CRM"})
    return await caller.dataset("union")


@asynccontextmanager
async def served(settings: ServeSettings) -> AsyncIterator[Caller]:
    server = Application(settings)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Caller(channel, "org")
    await server.stop()


async def feed(
    caller: Caller, after_revision: int | None = None, **asked: Any
) -> AsyncGenerator[es.WatchJobsResponse]:
    request = es.WatchJobsRequest(after_revision=after_revision, **asked)
    call = caller.exports.WatchJobs(request, metadata=caller.metadata)
    try:
        async for message in call:
            yield message
    finally:
        call.cancel()


async def up_to(stream: AsyncIterator[es.WatchJobsResponse], revision: int) -> list[es.WatchJobsResponse]:
    """Read until the bookmark is there."""
    read = [await anext(stream)]
    while read[-1].revision < revision:
        read.append(await anext(stream))
    return read


async def complete(stream: AsyncIterator[es.WatchJobsResponse]) -> list[es.WatchJobsResponse]:
    """Read to the end of the list."""
    read = [await anext(stream)]
    while not read[-1].list_complete:
        read.append(await anext(stream))
    return read


def changes(messages: Sequence[es.WatchJobsResponse]) -> list[es.JobChange]:
    return [change for message in messages for change in message.changes]


async def cancel(caller: Caller, job_id: int) -> job_pb2.ExportJob:
    request = es.CancelJobRequest(job_id=job_id)
    return (await caller.exports.CancelJob(request, metadata=caller.metadata)).job


async def test_a_list_and_its_end_come_first_and_then_every_change_once(caller: Caller, union: str) -> None:
    # given one job that waits and one that has ended
    waiting, ended = await caller.job(union), await caller.job(union)
    ended = await cancel(caller, ended.id)

    async with aclosing(feed(caller)) as stream:
        listed = await complete(stream)
        # when another one is made, and both that wait end
        newest = await caller.job(union)
        await cancel(caller, newest.id)
        await cancel(caller, waiting.id)
        following = await up_to(stream, 6)

    # then the list has the first two as they were, and the changes come in their order
    assert [(one.job_id, one.job.state, one.revision) for one in changes(listed)] == [
        (waiting.id, NEW, 0),
        (ended.id, CANCELLED, 0),
    ]
    assert [message.revision for message in listed] == [0, 3]
    assert [(one.revision, one.job_id, one.transition.to_state) for one in changes(following)] == [
        (4, newest.id, NEW),
        (5, newest.id, CANCELLED),
        (6, waiting.id, CANCELLED),
    ]
    # and a creation has the job as created, an end the job as it ended
    created, cancelled, _ = changes(following)
    created.job.ClearField("metrics")  # of the moment at which it was asked for
    newest.ClearField("metrics")
    assert created.job == newest
    assert cancelled.job.HasField("end_time")
    assert cancelled.job.revision == cancelled.transition.revision == 2


async def test_a_watch_of_a_tenant_without_anything_completes_its_empty_list(caller: Caller) -> None:
    async with aclosing(feed(caller)) as stream:
        [message] = await complete(stream)

    assert (message.revision, len(message.changes)) == (0, 0)


async def test_after_any_revision_comes_exactly_what_would_have_come(caller: Caller, union: str) -> None:
    # given some changes
    jobs = [await caller.job(union) for _ in range(3)]
    for job in jobs:
        await cancel(caller, job.id)

    async def after(revision: int) -> list[es.JobChange]:
        async with aclosing(feed(caller, revision, heartbeat_interval=SOON)) as stream:
            return changes(await up_to(stream, 6))

    # then each watch that goes on has what follows, whole
    whole = await after(0)
    assert [change.revision for change in whole] == [1, 2, 3, 4, 5, 6]
    for revision in range(1, 7):
        assert await after(revision) == whole[revision:]


async def test_watches_that_go_on_from_anywhere_share_what_was_read(caller: Caller, union: str) -> None:
    async def after(revision: int, newest: int) -> list[int]:
        async with aclosing(feed(caller, revision)) as stream:
            return [change.revision for change in changes(await up_to(stream, newest))]

    # given that the first and the last changes have been read, and none between them
    for _ in range(2):
        await caller.job(union)
    assert await after(0, 2) == [1, 2]
    for _ in range(4):
        await caller.job(union)
    assert await after(4, 6) == [5, 6]

    # then a watch that needs those, and some that were read, has all
    assert await after(1, 6) == [2, 3, 4, 5, 6]


async def test_lists_that_begin_while_jobs_are_made_miss_none_and_repeat_none(
    caller: Caller, union: str
) -> None:
    async def seen() -> list[int]:
        async with aclosing(feed(caller)) as stream:
            listed = await complete(stream)
            following = await up_to(stream, MADE) if listed[-1].revision < MADE else []
        return [one.job_id for one in changes([*listed, *following])]

    watching = asyncio.gather(*(seen() for _ in range(MADE)))
    made = await asyncio.gather(*(caller.job(union) for _ in range(MADE)))

    # then each job is in the list or a change, once
    for ids in await watching:
        assert sorted(ids) == sorted(job.id for job in made)


async def test_a_filter_lets_a_job_through_that_enters_or_leaves_it(caller: Caller, union: str) -> None:
    # given jobs of two destinations
    other = await caller.dataset("union", name="other")
    before = await caller.job(union)
    elsewhere = await caller.job(other)
    await cancel(caller, before.id)
    after = await caller.job(union)
    await cancel(caller, after.id)

    async def seen(**asked: Any) -> list[tuple[int, int]]:
        async with aclosing(feed(caller, 0, heartbeat_interval=SOON, **asked)) as stream:
            return [(one.job_id, one.revision) for one in changes(await up_to(stream, 5))]

    async def listed(**asked: Any) -> list[int]:
        async with aclosing(feed(caller, **asked)) as stream:
            return [one.job_id for one in changes(await complete(stream))]

    time = Timestamp()
    time.CopyFrom(after.create_time)
    assert await seen(states=[NEW]) == [
        (before.id, 1),
        (elsewhere.id, 2),
        (before.id, 3),
        (after.id, 4),
        (after.id, 5),
    ]
    assert await seen(states=[CANCELLED]) == [(before.id, 3), (after.id, 5)]
    assert await seen(dataset_id=other) == [(elsewhere.id, 2)]
    assert await seen(from_create_time=time) == [(after.id, 4), (after.id, 5)]
    assert await seen(states=[job_pb2.JOB_STATE_FAILED]) == []
    assert await listed(states=[NEW]) == [elsewhere.id]
    assert await listed(states=[CANCELLED], dataset_id=union, from_create_time=time) == [after.id]


async def test_another_tenant_sees_nothing(caller: Caller, union: str, idle: Application) -> None:
    await caller.job(union)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{idle.port}") as channel:
        stranger = Caller(channel, "stranger")
        async with aclosing(feed(stranger)) as stream:
            assert not changes(await complete(stream))


async def test_messages_are_cut_at_a_hundred_changes_and_lists_as_well(caller: Caller, union: str) -> None:
    made = sorted([job.id for job in await asyncio.gather(*(caller.job(union) for _ in range(105)))])

    async with aclosing(feed(caller)) as stream:
        listed = await complete(stream)
    async with aclosing(feed(caller, 0)) as stream:
        told = await up_to(stream, 105)

    assert [one.job_id for one in changes(listed)] == made
    assert [one.revision for one in changes(told)] == list(range(1, 106))
    assert max(len(message.changes) for message in (*listed, *told)) == 100
    assert max(message.ByteSize() for message in (*listed, *told)) < 300_000
    bookmarks = [message.revision for message in told]
    assert bookmarks == sorted(bookmarks)
    assert all(message.changes[-1].revision <= message.revision for message in told if message.changes)


async def test_a_bookmark_moves_on_though_a_filter_hides_what_happens(caller: Caller, union: str) -> None:
    async with aclosing(feed(caller, states=[job_pb2.JOB_STATE_FAILED], heartbeat_interval=SOON)) as stream:
        await complete(stream)
        await caller.job(union)
        beats = await up_to(stream, 1)

    assert not changes(beats)


async def test_a_revision_that_has_not_come_is_out_of_range(caller: Caller, union: str) -> None:
    await caller.job(union)

    refusal = await refusal_of(anext(feed(caller, 2)))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "REVISION_OUT_OF_RANGE")
    assert refusal.metadata["revision"] == "1"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"after_revision": -1}, "after_revision"),
        ({"states": [NEW, job_pb2.JOB_STATE_UNSPECIFIED]}, "states[1]"),
        ({"states": [99]}, "states[0]"),
        ({"from_create_time": Timestamp(seconds=2**40)}, "from_create_time"),
        ({"heartbeat_interval": Duration(seconds=61)}, "heartbeat_interval"),
        ({"min_progress_interval": Duration(seconds=-1)}, "min_progress_interval"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_request_that_cannot_be_is_refused(caller: Caller, asked: dict[str, Any], field: str) -> None:
    refusal = await refusal_of(anext(feed(caller, **asked)))

    assert (refusal.code, refusal.fields) == (grpc.StatusCode.INVALID_ARGUMENT, [field])


async def test_a_dataset_that_is_not_there_is_not_found(caller: Caller) -> None:
    refusal = await refusal_of(anext(feed(caller, dataset_id="f" * 24)))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")


@pytest.mark.slow
async def test_history_that_is_not_kept_is_refused_with_the_oldest_revision_there_is(tmp_path: Path) -> None:
    # given changes that a server keeps no longer, and one that came after
    settings = load({**settings_for(tmp_path), "workers": "0"}, {})
    async with served(settings) as caller:
        union = await caller.dataset("union")
        for _ in range(3):
            await caller.job(union)
    database = Database(tmp_path)
    await database.open()
    await Changes(database).forget(timedelta(0))
    await Changes(database).forget(timedelta(0))
    assert (await Changes(database).head(Tenant("org"))).forgotten == 3
    await database.close()

    async with served(settings) as caller:
        await caller.job(union)
        refusal = await refusal_of(anext(feed(caller, 2)))
        async with aclosing(feed(caller, 3)) as stream:
            kept = changes(await up_to(stream, 4))
        async with aclosing(feed(caller)) as stream:
            listed = changes(await complete(stream))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.OUT_OF_RANGE, "HISTORY_COMPACTED")
    assert refusal.metadata["oldest_revision"] == "3"
    assert [change.revision for change in kept] == [4]
    assert len(listed) == 4


@pytest.mark.slow
async def test_a_job_that_retention_removes_is_told_and_what_came_before_is_not_kept(tmp_path: Path) -> None:
    # given a job that ended two days ago, and one that waits
    settings = load({**settings_for(tmp_path), "workers": "0", "job_retention_days": "1"}, {})
    async with served(settings) as caller:
        union = await caller.dataset("union")
        gone = await caller.job(union)
        await cancel(caller, gone.id)
        await caller.job(union)
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as store, store:
        store.execute("UPDATE jobs SET end_time = end_time - ?", [2 * 86_400 * 10**6])

    # when the next server removes it
    async with served(settings) as caller:
        async with aclosing(feed(caller, 3, states=[CANCELLED])) as stream:
            [change] = changes(await up_to(stream, 4))
        refusal = await refusal_of(anext(feed(caller, 1)))
        async with aclosing(feed(caller, 2)) as stream:
            told = changes(await up_to(stream, 4))

    # then a watcher sees it leave, and nobody misses a part of what it did
    assert (change.job_id, change.revision, change.removed) == (gone.id, 4, True)
    assert refusal.metadata["oldest_revision"] == "2"
    assert [one.revision for one in told] == [3, 4]


async def test_a_server_that_stops_ends_the_watch_with_advice(tmp_path: Path) -> None:
    settings = load({**settings_for(tmp_path), "workers": "0"}, {})
    server = Application(settings)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        stream = feed(Caller(channel, "org"))
        await complete(stream)
        await server.stop()
        refusal = await refusal_of(anext(stream))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
    assert refusal.retry_seconds is not None
