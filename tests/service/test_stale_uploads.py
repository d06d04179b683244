"""Uploads that nobody goes on with end, visibly, and give back what they held: a stream, a share, the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path

import asyncpg
import grpc.aio
import pytest

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import batch_pb2
from profile_export.v1 import export_service_pb2 as es
from tests.databases import Place
from tests.service.conftest import settings_for
from tests.service.harness import Caller, json_lines, refusal_from, refusal_of, upload_messages

ROWS = json_lines({"id": f"p{number}"} for number in range(100))
LOADING, FAILED, SUCCEEDED = (
    batch_pb2.BATCH_STATE_LOADING,
    batch_pb2.BATCH_STATE_FAILED,
    batch_pb2.BATCH_STATE_SUCCEEDED,
)


@asynccontextmanager
async def serving(data_dir: Path, place: Place, **options: str) -> AsyncIterator[Caller]:
    """A server for one tenant."""
    async with serving_any(data_dir, place, **options) as channel:
        yield Caller(channel, "org")


@asynccontextmanager
async def serving_any(data_dir: Path, place: Place, **options: str) -> AsyncIterator[grpc.aio.Channel]:
    given = {**settings_for(data_dir), **options}
    if isinstance(place, str):
        given["database_url"] = place
    server = Application(load(given, {}))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel
    await server.stop()


async def time_passes(data_dir: Path, place: Place, hours: int) -> None:
    """Move into the past when batches were heard of last."""
    statement = f"UPDATE batches SET active_time = active_time - {timedelta(hours=hours) // timedelta(microseconds=1)}"
    if isinstance(place, str):
        connection = await asyncpg.connect(place)
        await connection.execute(statement)
        await connection.close()
    else:
        with closing(sqlite3.connect(data_dir / "store.sqlite")) as store, store:
            store.execute(statement)


class SlowUpload:
    """An upload that sends its next messages when it is told to."""

    def __init__(self, caller: Caller, dataset_id: str, batch_id: str, data: bytes = ROWS) -> None:
        self._messages = upload_messages(dataset_id, batch_id, data)
        self.call = caller.datasets.UploadBatch(metadata=caller.metadata)

    async def send(self, count: int) -> None:
        for _ in range(count):
            await self.call.write(self._messages.pop(0))


async def until_received(caller: Caller, batch_id: str, count: int) -> None:
    """Ask until so many bytes have arrived; pytest's time-out ends a wait for nothing."""
    while True:
        try:
            if [one.received_bytes for one in (await caller.batch(batch_id)).uploads] == [count]:
                return
        except grpc.aio.AioRpcError as error:
            if refusal_from(error).reason != "BATCH_NOT_FOUND":
                raise


async def until_failed(caller: Caller, batch_id: str) -> batch_pb2.Batch:
    while (batch := await caller.batch(batch_id)).state != FAILED:
        pass
    return batch


def staged(data_dir: Path) -> Sequence[Path]:
    return [*(data_dir / "uploads").iterdir()]


@pytest.mark.slow
async def test_what_nobody_goes_on_with_is_given_up_over_restarts_and_can_be_uploaded_again(
    tmp_path: Path, place: Place
) -> None:
    # given an upload that broke off in the middle, a batch with one of its files, and an empty one
    async with serving(tmp_path, place) as caller:
        source = await caller.dataset("record", {"id": "CRM"})
        broken = SlowUpload(caller, source, "broken")
        await broken.send(2)
        await until_received(caller, "broken", len(ROWS))
        broken.call.cancel()
        for name in ("half", "empty"):
            await caller.create_batch(source, name)
        await caller.send(source, "half", ROWS, file_name="1")
    assert len(staged(tmp_path)) == 2

    # when less than a day passes, all of it is there after a restart
    await time_passes(tmp_path, place, 23)
    async with serving(tmp_path, place) as caller:
        assert [(await caller.batch(name)).state for name in ("broken", "half", "empty")] == [LOADING] * 3
        assert len(staged(tmp_path)) == 2

    # when a day has passed, nothing but the rows that say so
    await time_passes(tmp_path, place, 2)
    async with serving(tmp_path, place) as caller:
        for name in ("broken", "half", "empty"):
            batch = await until_failed(caller, name)
            assert batch.state_reason == "Given up: nothing was sent for 1 day. Upload it again."
        while staged(tmp_path):
            await caller.batch("broken")
        half = await caller.batch("half")
        assert [(one.received_bytes, one.complete) for one in half.uploads] == [(0, False)]
        assert not list((tmp_path / "lake").rglob("*.parquet"))
        # and the same ids take the files anew
        assert (await caller.upload(source, "broken", [{"id": "1"}])).state == SUCCEEDED
        assert (await caller.send(source, "half", ROWS, file_name="1")).batch.state == LOADING
        assert (await caller.complete("half")).batch.rows == 100


async def test_an_upload_that_sends_nothing_is_ended_and_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("profile_export.app.server.timedelta", _a_minute_is_a_moment)
    async with serving(tmp_path, tmp_path, upload_idle_minutes="7") as caller:
        source = await caller.dataset("record", {"id": "CRM"})
        mute, broken = SlowUpload(caller, source, "mute"), SlowUpload(caller, source, "broken")
        await broken.send(2)

        refusals = [await refusal_of(one.call) for one in (mute, broken)]

        assert [(one.code, one.reason) for one in refusals] == [(grpc.StatusCode.ABORTED, "UPLOAD_IDLE")] * 2
        assert [one.retry_seconds for one in refusals] == [1.0, 1.0]
        resumed = await caller.send(source, "broken", ROWS, offset=len(ROWS))
        assert resumed.batch.rows == 100


def _a_minute_is_a_moment(*days: float, **length: float) -> timedelta:
    return timedelta(milliseconds=100) if length == {"minutes": 7} else timedelta(*days, **length)


@pytest.mark.slow
async def test_an_upload_of_which_bytes_arrive_is_not_given_up(tmp_path: Path, place: Place) -> None:
    async with serving(tmp_path, place, upload_expiry_hours="1") as caller:
        source = await caller.dataset("record", {"id": "CRM"})
        slow = SlowUpload(caller, source, "slow", ROWS * 20_000)
        await slow.send(2)
        await until_received(caller, "slow", 1024 * 1024)
        await time_passes(tmp_path, place, 5)
        # It needs more room with its next bytes, which says that they arrive.
        await slow.send(1)
        await until_received(caller, "slow", 2 * 1024 * 1024)

    async with serving(tmp_path, place, upload_expiry_hours="1") as caller:
        assert (await caller.batch("slow")).state == LOADING


async def test_a_tenant_has_no_more_streams_open_than_it_may_and_room_again_when_they_end(
    tmp_path: Path,
) -> None:
    async with serving_any(tmp_path, tmp_path, quota_transfers="2", quota_watches="2") as channel:
        caller, stranger = Caller(channel, "one"), Caller(channel, "another")
        source, theirs = await caller.dataset("record", {"id": "CRM"}), await stranger.dataset("record")
        await caller.upload(source, "b", [{"id": "1"}])
        [file] = await caller.files("b")
        watch = es.WatchJobsRequest()
        watches = [caller.exports.WatchJobs(watch, metadata=caller.metadata) for _ in range(2)]
        for one in watches:
            await one.read()
        slow = [SlowUpload(caller, source, f"slow{number}") for number in range(2)]
        for number, upload in enumerate(slow):
            await upload.send(2)
            await until_received(caller, f"slow{number}", len(ROWS))

        asked: list[tuple[str, Callable[[], Awaitable[object]]]] = [
            ("watches", lambda: caller.exports.WatchJobs(watch, metadata=caller.metadata).read()),
            ("transfers", lambda: caller.send(source, "more", ROWS)),
            ("transfers", lambda: caller.download("b", file.name)),
        ]
        for quota, further in asked:
            refused = await refusal_of(further())

            assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUOTA_EXCEEDED")
            assert refused.metadata == {"quota": quota, "limit": "2", "used": "2"}
            assert refused.retry_seconds == 1.0
        identified = {"identityMap": {"CRM": [{"id": "1", "primary": True}]}}
        assert (await stranger.upload(theirs, "b", [identified])).rows == 1

        for call in (*watches, *(upload.call for upload in slow)):
            call.cancel()
        # There is room as soon as the server has noticed that they are gone.
        await granted(lambda: caller.exports.WatchJobs(watch, metadata=caller.metadata).read())
        await granted(lambda: caller.download("b", file.name))


async def granted(call: Callable[[], Awaitable[object]]) -> None:
    """Ask until there is room."""
    for _ in range(1_000):
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            if refusal_from(error).reason != "QUOTA_EXCEEDED":
                raise
        else:
            return
    raise AssertionError


@pytest.mark.slow
async def test_an_upload_that_has_no_room_keeps_what_has_arrived_and_goes_on_when_there_is(
    tmp_path: Path,
) -> None:
    async with serving(tmp_path, tmp_path, quota_staged_mb="2") as caller:
        source = await caller.dataset("record", {"id": "CRM"})
        waiting = SlowUpload(caller, source, "waiting")
        await waiting.send(2)
        await until_received(caller, "waiting", len(ROWS))
        waiting.call.cancel()
        data = json_lines({"id": f"p{number}"} for number in range(100_000))

        refused = await refusal_of(caller.send(source, "large", data))

        assert (refused.reason, refused.metadata["quota"]) == ("QUOTA_EXCEEDED", "staged_bytes")
        assert not await caller.visible_batches(source)
        await caller.abort("waiting")
        arrived = (await caller.batch("large")).uploads[0].received_bytes
        assert 0 <= arrived < len(data)
        sent = await caller.send(source, "large", data, offset=arrived)
        assert (sent.batch.state, sent.batch.rows) == (SUCCEEDED, 100_000)
