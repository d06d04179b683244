"""What uploads leave on the disk: nothing but what the store names."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import grpc.aio
import pytest

from profile_export.app import Application
from profile_export.config import load
from profile_export.v1 import batch_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.conftest import settings_for
from tests.service.harness import Caller, json_lines, refusal_of

SOURCE_FIELDS = {"id": "Test"}
AT_ONCE = 4


def people(name: str, count: int = 500) -> bytes:
    return json_lines({"id": f"{name}-{number}"} for number in range(count))


def files_below(place: Path) -> set[Path]:
    return {path for path in place.rglob("*") if path.is_file()}


async def named(caller: Caller, batch_id: str) -> set[Path]:
    return {Path(unquote(urlsplit(file.location).path)) for file in await caller.files(batch_id)}


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def open_batch(caller: Caller, source: str, batch_id: str) -> None:
    """Fill a batch in an order that makes its completion ingest a file again."""
    await caller.create_batch(source, batch_id)
    for name in ("2", "1"):
        await caller.send(source, batch_id, people(name), file_name=name)


@pytest.mark.parametrize("after", [0, 100, 300, 500, 1_000])
async def test_a_call_that_completes_and_goes_away_leaves_nothing_but_the_batch(
    caller: Caller, data_dir: Path, after: int
) -> None:
    # given a batch, and a call that completes it and is cancelled some turns of the loop later
    source = await caller.dataset("record", SOURCE_FIELDS)
    of_other_tests = files_below(data_dir / "uploads")
    await open_batch(caller, source, "b")
    request = ds.CompleteBatchRequest(batch_id="b")
    call = caller.datasets.CompleteBatch(request, metadata=caller.metadata)
    await turns(after)
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call

    # when it is completed again
    completed = await caller.complete("b")

    # then the disk has the files of the batch, and nothing of what was sent
    assert completed.batch.rows == 1_000
    assert files_below((data_dir / "lake" / source).resolve()) == await named(caller, "b")
    assert files_below(data_dir / "uploads") == of_other_tests


async def test_calls_that_complete_at_once_complete_once_and_leave_nothing_else(
    caller: Caller, data_dir: Path
) -> None:
    source = await caller.dataset("record", SOURCE_FIELDS)
    await open_batch(caller, source, "b")

    answers = await asyncio.gather(*(caller.complete("b") for _ in range(AT_ONCE)))

    assert sorted(answer.replayed for answer in answers) == [False] + [True] * (AT_ONCE - 1)
    assert all(answer.batch == answers[0].batch for answer in answers)
    assert files_below((data_dir / "lake" / source).resolve()) == await named(caller, "b")


async def test_rejected_rows_of_a_file_that_a_batch_does_without_stay_to_be_read(caller: Caller) -> None:
    source = await caller.dataset("record", SOURCE_FIELDS)
    await caller.create_batch(source, "b")
    await caller.send(source, "b", people("1"), file_name="1")
    await refusal_of(caller.send(source, "b", b"no json\n", file_name="2"))

    batch = (await caller.complete("b")).batch

    assert batch.rejected_rows == 1
    assert [row.row for row in (await caller.rejected("b")).rows] == ["no json"]


async def test_a_file_that_contradicts_another_dataset_leaves_nothing(caller: Caller, data_dir: Path) -> None:
    source, other = [await caller.dataset("record", SOURCE_FIELDS, name=name) for name in ("a", "b")]
    await caller.upload(other, "other", [{"id": "1", "age": 40}])

    await refusal_of(caller.upload(source, "b", [{"id": "1", "age": "forty"}]))

    assert files_below(data_dir / "lake" / source) == set()


@asynccontextmanager
async def serving(data_dir: Path) -> AsyncIterator[Caller]:
    server = Application(load(settings_for(data_dir), {}))
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Caller(channel, "org")
    await server.stop()


def staged_name(data_dir: Path) -> str:
    """Tell under which name the bytes of the one upload were kept."""
    with closing(sqlite3.connect(data_dir / "store.sqlite")) as store:
        [(name,)] = store.execute("SELECT staged_as FROM uploads")
    return str(name)


@pytest.mark.slow
async def test_what_a_killed_server_left_of_batches_that_count_is_removed_at_the_next_start(
    tmp_path: Path,
) -> None:
    # given a server that ended after a batch counted, and before it had cleared up
    async with serving(tmp_path) as caller:
        source = await caller.dataset("record", SOURCE_FIELDS)
        await caller.send(source, "b", people("1") + b"no json\n", max_bad_records=1)
        [file] = await named(caller, "b")
        staged_as = staged_name(tmp_path)
    (tmp_path / "uploads" / staged_as).write_bytes(people("1"))
    kept = files_below(tmp_path / "lake" / source)
    left = file.parents[1] / "attempt" / "00000.parquet"
    left.parent.mkdir()
    left.write_bytes(b"PAR1")

    # when the next one starts
    async with serving(tmp_path) as caller:
        # then the batch is as it was, and nothing else is there
        assert (await caller.batch("b")).state == batch_pb2.BATCH_STATE_SUCCEEDED
        assert len((await caller.rejected("b")).rows) == 1
        assert file in kept
        assert files_below(tmp_path / "lake" / source) == kept
        assert files_below(tmp_path / "uploads") == set()
