from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text, update

from profile_export.domain.catalog.batches import (
    BatchState,
    DataFile,
    IngestedFile,
    NamespaceUse,
    UploadStart,
)
from profile_export.domain.catalog.datasets import IdentityField, NewDataset, SchemaRef, Tenant
from profile_export.domain.errors import FailedPreconditionError
from profile_export.domain.export.plan import ExportCounts
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.export.selection import SegmentFilter
from profile_export.domain.job import FIRST_BACK_OFF, JobError, JobState, Phase, Progress
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.domain.schemas.types import TEXT, ArrayType, ObjectType
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import Database, database_time, migrate
from profile_export.store.db.tables import jobs, metadata
from profile_export.store.db.transactions import CannotOpenError
from profile_export.store.files.batches import Batches
from profile_export.store.files.folders import DroppedFolders
from profile_export.store.files.snapshots import Snapshots
from profile_export.store.files.uploads import FieldsGrewError, Uploads
from profile_export.store.jobs.attempts import Attempts, Claim, LeaseLostError, RangeDone
from profile_export.store.jobs.jobs import Jobs, NewJob
from tests.databases import Place, engine_of, make_former_tables
from tests.pages import page_of

NUMBERS = count()
TENANT = Tenant()
RECORD = SchemaRef("https://ns.adobe.com/xdm/context/profile")
UNION = SchemaRef("https://ns.adobe.com/xdm/context/profile__union")
FILE = DataFile("0-0.parquet", "x/0-0.parquet", 3, 300, "ab")


RUNNING = Progress(Phase.RUN, 1, 1, 2)


def range_done(claim: Claim, index: int) -> RangeDone:
    return RangeDone(index, {claim.job.batch_id: [FILE]}, ExportCounts(profiles_exported=3), 1)


async def check_that_nothing_is_written(store: Store, claim: Claim) -> None:
    """Every write of an attempt is refused: the job is not its own any more."""
    error = JobError("X", "x", "engine", retryable=True, attempt=1)

    for write in (
        store.attempts.begin_phase(claim.fence, RUNNING),
        store.attempts.heartbeat(claim.fence, RUNNING),
        store.attempts.record_range(claim.fence, range_done(claim, 0), RUNNING),
        store.attempts.commit(claim.fence),
        store.attempts.end_with_error(claim.fence, error),
        store.attempts.let_go(claim.fence),
        store.attempts.release(claim.fence),
    ):
        with pytest.raises(LeaseLostError):
            await write


class Store:
    def __init__(self, place: Place) -> None:
        self.database = Database(place)
        self.catalog = Catalog(self.database)
        self.uploads, self.batches = Uploads(self.database), Batches(self.database)
        self.jobs, self.attempts = Jobs(self.database), Attempts(self.database)
        self.snapshots = Snapshots(self.database)

    async def dataset(self, schema: SchemaRef = RECORD, namespace: str = "CRM") -> str:
        fields = (IdentityField(("id",), namespace, primary=True),) if schema is RECORD else ()
        new = NewDataset("d", "", schema, {}, fields, iceberg=schema is UNION)
        made, _ = await self.catalog.create_dataset(TENANT, new, f"{next(NUMBERS):024x}", "")
        return made.id

    async def upload(self, dataset_id: str, batch_id: str, facts: IngestedFile) -> None:
        await self.open(dataset_id, batch_id)
        await self.uploads.commit_batch(TENANT, batch_id, {"1": facts})

    async def open(self, dataset_id: str, batch_id: str) -> None:
        start = UploadStart(dataset_id, batch_id, "1", "json_lines")
        await self.uploads.open_upload(TENANT, start, f"{dataset_id}/{batch_id}", batch_id)

    async def claimed_of_segments(self, *segment_ids: str) -> Claim:
        """Claim a job of a batch per segment, with the ids of the segments."""
        destination = await self.dataset(UNION)
        request = ExportRequest(
            destination,
            policy_id=BUILT_IN_POLICY.id,
            segments=tuple(map(SegmentFilter, segment_ids)),
            segment_per_batch=True,
        )
        folders = {segment_id: f"{destination}/{segment_id}" for segment_id in segment_ids}
        await self.jobs.create(TENANT, NewJob(BoundRequest(request, BUILT_IN_POLICY), "", folders))
        claim = await self.attempts.claim("worker")
        assert claim
        return claim

    async def succeeded(self) -> list[str]:
        """The batches that count."""
        listed = await self.batches.list_batches(TENANT, "", page_of())
        return [batch.id for batch in listed.items]

    async def claimed(self) -> Claim:
        destination = await self.dataset(UNION)
        request = ExportRequest(destination)
        new = NewJob(BoundRequest(request, BUILT_IN_POLICY), "", {f"batch-{destination}": f"{destination}/f"})
        await self.jobs.create(TENANT, new)
        claim = await self.attempts.claim("worker")
        assert claim
        return claim


def facts(
    fields: ObjectType, sent: tuple[str, ...] = (), untyped: tuple[tuple[str, ...], ...] = ()
) -> IngestedFile:
    use = NamespaceUse(sent[:1], frozenset(sent))
    return IngestedFile("x", (FILE,), 0, 3, fields, use, NamespaceUse(), untyped, "sha", 10)


@pytest_asyncio.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = Store(place)
    await opened.database.open()
    yield opened
    await opened.database.close()


async def test_the_migrations_make_the_tables_that_the_code_uses(empty_place: Place) -> None:
    engine = engine_of(empty_place)
    await migrate(engine)

    async with engine.connect() as connection:
        differences = await connection.run_sync(
            lambda found: compare_metadata(MigrationContext.configure(found), metadata)
        )

    assert differences == []


async def test_a_second_process_is_refused_with_a_sentence(tmp_path: Path) -> None:
    first, second = Database(tmp_path), Database(tmp_path)
    await first.open()

    with pytest.raises(CannotOpenError, match="is in use by another process"):
        await second.open()

    await second.close()
    await first.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://nobody@localhost:1/none",
        "postgresql://nobody@/none?host=/nowhere",
        "postgresql://a@b/c?sslmode=perhaps",
    ],
)
async def test_a_database_that_cannot_be_reached_is_told_in_a_sentence(url: str) -> None:
    database = Database(url)

    with pytest.raises(CannotOpenError, match=r"PostgreSQL cannot be reached: .+"):
        await database.open()

    await database.close()


def test_a_missing_driver_is_told_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)

    with pytest.raises(CannotOpenError, match=r"pip install 'profile-export\[postgres\]'"):
        Database("postgresql://localhost/x")


async def test_what_is_committed_is_on_the_disk_in_full(tmp_path: Path) -> None:
    database = Database(tmp_path)
    await database.open()

    async with database.write() as writer:
        mode = (await writer.exec_driver_sql("PRAGMA journal_mode")).scalar_one()
        synchronous = (await writer.exec_driver_sql("PRAGMA synchronous")).scalar_one()

    await database.close()
    assert (mode, synchronous) == ("wal", 2)


@pytest.mark.parametrize("first", ["cancel", "commit"])
async def test_a_cancel_and_a_commit_at_the_same_moment_have_one_winner(store: Store, first: str) -> None:
    claim = await store.claimed()
    await store.attempts.record_range(claim.fence, range_done(claim, 0), RUNNING)
    cancel = store.jobs.cancel(TENANT, claim.job.id, "me", "")
    commit = store.attempts.commit(claim.fence)

    outcomes = await asyncio.gather(
        *((cancel, commit) if first == "cancel" else (commit, cancel)), return_exceptions=True
    )

    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(refused) == 1
    assert isinstance(refused[0], FailedPreconditionError)
    job = (await store.jobs.get(TENANT, claim.job.id)).job
    batch = await store.batches.get_batch(TENANT, job.batch_id)
    listed = await store.batches.list_batches(TENANT, "", page_of())
    if job.state is JobState.SUCCEEDED:
        assert [found.id for found in listed.items] == [job.batch_id]
        assert (batch.state, batch.rows, batch.number) == (BatchState.SUCCEEDED, 3, 1)
        assert job.metrics.counts.profiles_exported == 3
    else:
        assert job.state is JobState.CANCELLING
        await store.attempts.let_go(claim.fence)
        batch = await store.batches.get_batch(TENANT, job.batch_id)
        assert (batch.state, listed.items) == (BatchState.ABORTED, ())


def range_of_segments(index: int, *batch_ids: str) -> RangeDone:
    files = {
        batch_id: [DataFile(f"{index}-0.parquet", f"x/{batch_id}/{index}-0.parquet", 3, 300, "ab")]
        for batch_id in batch_ids
    }
    return RangeDone(index, files, ExportCounts(profiles_exported=3), 1)


async def test_s21_the_batches_of_segments_count_all_from_one_commit_on(store: Store) -> None:
    # given a job of two segments, the second of which nobody was in within the first range
    claim = await store.claimed_of_segments("gold", "vip")
    await store.attempts.record_range(claim.fence, range_of_segments(0, "gold"), RUNNING)
    await store.attempts.record_range(claim.fence, range_of_segments(1, "gold", "vip"), RUNNING)
    before = await store.succeeded()

    # when it is committed
    files = await store.attempts.commit(claim.fence)

    # then both count, in the order of the segments, each with its own files
    assert list(claim.folders) == ["gold", "vip"]
    assert (before, await store.succeeded()) == ([], ["gold", "vip"])
    batches = [await store.batches.get_batch(TENANT, batch_id) for batch_id in ("gold", "vip")]
    assert [(batch.number, batch.rows) for batch in batches] == [(1, 6), (2, 3)]
    assert sorted(file.path for file in files) == [
        "x/gold/0-0.parquet",
        "x/gold/1-0.parquet",
        "x/vip/1-0.parquet",
    ]
    job = (await store.jobs.get(TENANT, claim.job.id)).job
    assert (job.state, job.batch_id, job.segment_batches) == (JobState.SUCCEEDED, "", ("gold", "vip"))


async def test_s21_a_cancel_drops_the_batches_of_all_segments(store: Store) -> None:
    claim = await store.claimed_of_segments("gold", "vip")
    await store.attempts.record_range(claim.fence, range_of_segments(0, "gold", "vip"), RUNNING)

    await store.jobs.cancel(TENANT, claim.job.id, "me", "")
    with pytest.raises(FailedPreconditionError):
        await store.attempts.commit(claim.fence)
    await store.attempts.let_go(claim.fence)

    assert await store.succeeded() == []
    for batch_id in ("gold", "vip"):
        batch = await store.batches.get_batch(TENANT, batch_id)
        assert (batch.state, batch.rows) == (BatchState.ABORTED, 0)


async def test_a_lease_that_is_gone_refuses_every_write(store: Store) -> None:
    claim = await store.claimed()
    await store.attempts.release(claim.fence)

    await check_that_nothing_is_written(store, claim)

    job = (await store.jobs.get(TENANT, claim.job.id)).job
    assert (job.state, job.revision) == (JobState.NEW, 3)


async def test_a_released_job_keeps_the_ranges_it_recorded(store: Store) -> None:
    claim = await store.claimed()
    await store.attempts.record_range(claim.fence, range_done(claim, 4), RUNNING)

    await store.attempts.release(claim.fence)
    again = await store.attempts.claim("another")

    assert again
    assert (again.recorded, again.fence.attempt) == (frozenset({4}), 2)
    assert await store.attempts.commit(again.fence) == [FILE]


async def test_what_was_written_for_unfinished_jobs_by_the_former_keys_is_made_anew(
    empty_place: Place,
) -> None:
    # given a store of before, with a job that has recorded a range and one that has succeeded
    await make_former_tables(empty_place, "0007")
    engine = engine_of(empty_place)
    async with engine.begin() as connection:
        for number, state in ((1, "new"), (2, "succeeded")):
            for table, values in {
                "tenants": {"id": number, "org": state, "sandbox": "s", "last_batch_number": 0},
                "datasets": {
                    "id": state,
                    "tenant_id": number,
                    "name": "",
                    "description": "",
                    "schema_id": "",
                    "content_type": "",
                    "kind": "union",
                    "tags": "{}",
                    "identity_fields": "[]",
                    "fields": "{}",
                    "iceberg": False,
                    "create_time": 0,
                    "update_time": 0,
                },
                "jobs": {
                    "id": number,
                    "tenant_id": number,
                    "bound": "{}",
                    "destination_id": state,
                    "batch_id": state,
                    "state": state,
                    "revision": 1,
                    "attempt": 1,
                    "create_time": 0,
                    "update_time": 0,
                    "errors": "[]",
                    "metrics": "{}",
                    "notes": "[]",
                    "plan": "pinned",
                },
                "batches": {
                    "key": number,
                    "tenant_id": number,
                    "id": state,
                    "dataset_id": state,
                    "job_id": number,
                    "state": "loading",
                    "create_time": 0,
                    "rows": 1,
                    "bytes": 1,
                    "file_count": 1,
                    "folder": state,
                    "several_files": False,
                    "state_reason": "",
                },
                "files": {
                    "batch_key": number,
                    "name": state,
                    "path": state,
                    "rows": 1,
                    "bytes": 1,
                    "sha256": "",
                },
                "job_ranges": {
                    "job_id": number,
                    "range_index": 0,
                    "attempt": 1,
                    "counts": "{}",
                    "peak_memory_bytes": 1,
                },
            }.items():
                places = ", ".join(f":{column}" for column in values)
                await connection.execute(
                    text(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})"), values
                )

    # when it is brought up to date
    await migrate(engine)

    # then only what the finished one has written is left, and the other still reads what it had pinned
    async with engine.connect() as connection:
        for query, left in (
            ("SELECT job_id FROM job_ranges", [2]),
            ("SELECT name FROM files", ["succeeded"]),
            ("SELECT plan FROM jobs", ["pinned"] * 2),
        ):
            assert (await connection.execute(text(query))).scalars().all() == left


async def test_a_job_that_backs_off_is_not_due_yet(store: Store) -> None:
    claim = await store.claimed()
    error = JobError("ENGINE_CRASHED", "It died.", "engine", retryable=True, attempt=1)

    job = await store.attempts.end_with_error(claim.fence, error)

    assert job.state is JobState.NEW
    assert job.not_before
    assert timedelta() < job.not_before - job.update_time <= FIRST_BACK_OFF
    for later, due in ((timedelta(hours=1), False), (timedelta(), True)):
        async with store.database.write() as connection:
            not_before = await database_time(connection) + later
            await connection.execute(update(jobs).values(not_before=not_before))
        assert bool(await store.attempts.claim("worker")) == due


async def test_s2_a_namespace_is_written_as_it_was_registered_first(store: Store) -> None:
    declared = await store.dataset(namespace="Email")
    other = await store.dataset(namespace="EMAIL")
    await store.upload(other, "b", facts(ObjectType({"id": TEXT}), ("email", "eMail")))
    await store.upload(declared, "c", facts(ObjectType({"id": TEXT}), ("Phone",)))

    snapshot = await store.snapshots.take(TENANT)

    assert snapshot.namespaces == {"EMAIL": "Email", "email": "Email", "eMail": "Email"}


async def test_s8_batch_numbers_and_ingest_times_grow(store: Store) -> None:
    dataset = await store.dataset()
    for batch in "abc":
        await store.upload(dataset, batch, facts(ObjectType({"id": TEXT})))

    snapshot = await store.snapshots.take(TENANT)

    assert [batch.number for batch in snapshot.batches] == [1, 2, 3]
    times = [batch.ingest_time for batch in snapshot.batches]
    assert times == sorted(set(times))


async def test_s13_an_upload_that_lacked_a_type_is_told_when_the_dataset_came_to_know_it(
    store: Store,
) -> None:
    dataset = await store.dataset()
    await store.open(dataset, "late")
    await store.upload(dataset, "first", facts(ObjectType({"id": TEXT, "tags": ArrayType(TEXT)})))

    late = facts(ObjectType({"id": TEXT}), untyped=(("tags",),))
    with pytest.raises(FieldsGrewError):
        await store.uploads.commit_batch(TENANT, "late", {"1": late})

    assert (await store.batches.get_batch(TENANT, "late")).state is BatchState.LOADING


@pytest.mark.parametrize("turns", range(0, 60, 3))
async def test_a_caller_that_goes_away_at_any_moment_leaves_no_lock_behind(store: Store, turns: int) -> None:
    call = asyncio.create_task(store.dataset())
    for _ in range(turns):
        await asyncio.sleep(0)  # one turn of the loop

    call.cancel()

    async with asyncio.timeout(5):
        await store.dataset()


async def test_what_is_left_of_a_refused_upload_is_dropped_when_it_is_uploaded_again(store: Store) -> None:
    dataset = await store.dataset()
    start = UploadStart(dataset, "b", "1", "json_lines")
    opened = await store.uploads.open_upload(TENANT, start, f"{dataset}/first", "staged")
    await store.uploads.refuse_upload(TENANT, opened, (), 1, f"{dataset}/first/rejected")

    again = await store.uploads.open_upload(TENANT, start, f"{dataset}/second", "staged anew")

    assert again.folder == f"{dataset}/second"
    assert await DroppedFolders(store.database).folders() == [f"{dataset}/first"]
