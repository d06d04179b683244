"""No transaction that writes has more statements for much than for little: everybody waits for the one writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import event, update

from profile_export.domain.catalog.batches import (
    BatchState,
    DataFile,
    IngestedFile,
    NamespaceUse,
    UploadStart,
)
from profile_export.domain.catalog.datasets import (
    DatasetChange,
    DatasetKind,
    FieldDeclaration,
    IdentityField,
    NewDataset,
    Schema,
    SchemaRef,
    Tenant,
)
from profile_export.domain.errors import DomainError, FailedPreconditionError
from profile_export.domain.export.plan import ExportCounts, plan_export
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.export.selection import SegmentFilter
from profile_export.domain.job import JobError, Phase, Progress
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.domain.schemas.types import TEXT, ObjectType, TypeConflictError
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.catalog.schemas import Schemas
from profile_export.store.db.database import Database, database_time
from profile_export.store.db.tables import batches, datasets
from profile_export.store.files.batches import Batches
from profile_export.store.files.snapshots import Snapshots
from profile_export.store.files.uploads import Uploads
from profile_export.store.jobs.attempts import Attempts, Claim, RangeDone
from profile_export.store.jobs.expiries import Expiries
from profile_export.store.jobs.jobs import Jobs, NewJob
from tests.databases import Place

NUMBERS = count()
CLASS = "https://ns.adobe.com/xdm/context/profile"
UNION = f"{CLASS}__union"
HOUR = timedelta(hours=1)
FEW, MANY = 3, 30
RUNNING = Progress(Phase.RUN, 1, 1, 2)
FATAL = JobError("X", "x", "engine", retryable=False, attempt=1)


class Store:
    def __init__(self, place: Place) -> None:
        self.tenant = Tenant()
        self.database = Database(place)
        self.catalog, self.schemas = Catalog(self.database), Schemas(self.database)
        self.uploads = Uploads(self.database)
        self.batches, self.expiries = Batches(self.database), Expiries(self.database)
        self.jobs, self.attempts = Jobs(self.database), Attempts(self.database)

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """Yield the statements that writing transactions run within the block."""
        statements: list[str] = []

        def note(*of: Any) -> None:
            statements.append(of[2])

        engines = {self.database._place.writer, self.database._place.writer_beside}  # noqa: SLF001
        for engine in engines:
            event.listen(engine.sync_engine, "before_cursor_execute", note)
        yield statements
        for engine in engines:
            event.remove(engine.sync_engine, "before_cursor_execute", note)

    async def dataset(self, schema: str = CLASS, identities: Sequence[str] = ()) -> str:
        fields = tuple(IdentityField((f"id{name}",), name) for name in identities)
        new = NewDataset("d", "", SchemaRef(schema), {}, fields)
        made, _ = await self.catalog.create_dataset(self.tenant, new, f"{next(NUMBERS):024x}", "")
        return made.id

    async def open(self, dataset_id: str, batch_id: str, file_name: str = "1") -> IngestedFile:
        start = UploadStart(dataset_id, batch_id, file_name, "csv")
        await self.uploads.open_upload(self.tenant, start, f"{dataset_id}/{batch_id}", f"{next(NUMBERS)}")
        return facts()

    async def several(self, dataset_id: str, number: int) -> dict[str, IngestedFile]:
        """Fill a batch of so many files, each with fields and namespaces of its own."""
        await self.uploads.create_batch(self.tenant, dataset_id, "several", "", f"{dataset_id}/several")
        sent = {}
        for name in names(number):
            start = UploadStart(dataset_id, "several", name, "csv")
            opened = await self.uploads.open_upload(self.tenant, start, "unused", f"{next(NUMBERS)}")
            sent[name] = facts(fields=[name], identities=[name], segments=[name])
            await self.uploads.accept_upload(self.tenant, opened, sent[name])
        return sent

    async def claim(self, segments: int) -> Claim:
        destination = await self.dataset(UNION)
        wanted = names(segments)
        request = ExportRequest(
            destination,
            policy_id=BUILT_IN_POLICY.id,
            segments=tuple(map(SegmentFilter, wanted)),
            segment_per_batch=True,
        )
        folders = {f"{destination}-{name}": f"{destination}/{name}" for name in wanted}
        await self.jobs.create(self.tenant, NewJob(BoundRequest(request, BUILT_IN_POLICY), "", folders))
        claim = await self.attempts.claim("worker")
        assert claim
        return claim


def names(number: int) -> list[str]:
    return [f"n{index:03}" for index in range(number)]


def file(name: str) -> DataFile:
    return DataFile(name, f"x/{name}", 1, 1, "ab")


def facts(
    files: Sequence[str] = (),
    fields: Sequence[str] = ("a",),
    identities: Sequence[str] = (),
    segments: Sequence[str] = (),
) -> IngestedFile:
    use, of_segments = (NamespaceUse(tuple(used), frozenset(used)) for used in (identities, segments))
    known = ObjectType(dict.fromkeys(fields, TEXT))
    return IngestedFile("x", tuple(map(file, files)), 0, 1, known, use, of_segments, (), "sha", 1)


def range_done(claim: Claim) -> RangeDone:
    files = {batch_id: [file("0.parquet")] for batch_id in claim.folders}
    return RangeDone(0, files, ExportCounts(), 1)


async def commit(store: Store, number: int, what: str) -> list[str]:
    dataset_id = await store.dataset()
    await store.open(dataset_id, "b")
    sent = facts(**{what: names(number)})
    with store.counted() as statements:
        await store.uploads.commit_batch(store.tenant, "b", {"1": sent})
    return statements


async def commit_files(store: Store, number: int) -> list[str]:
    return await commit(store, number, "files")


async def commit_fields(store: Store, number: int) -> list[str]:
    return await commit(store, number, "fields")


async def commit_identities(store: Store, number: int) -> list[str]:
    return await commit(store, number, "identities")


async def commit_segments(store: Store, number: int) -> list[str]:
    return await commit(store, number, "segments")


async def complete_several(store: Store, number: int) -> list[str]:
    sent = await store.several(await store.dataset(), number)
    with store.counted() as statements:
        await store.uploads.commit_batch(store.tenant, "several", sent)
    return statements


async def abort_several(store: Store, number: int) -> list[str]:
    await store.several(await store.dataset(), number)
    with store.counted() as statements:
        await store.uploads.abort_batch(store.tenant, "several", "")
    return statements


async def create_dataset(store: Store, number: int) -> list[str]:
    with store.counted() as statements:
        await store.dataset(identities=names(number))
    return statements


async def register_schema(store: Store, number: int) -> list[str]:
    """A schema that so many datasets follow."""

    def schema(*fields: str) -> Schema:
        known = ObjectType(dict.fromkeys(fields, TEXT))
        return Schema(
            "https://x/s", DatasetKind.RECORD, known, class_id=CLASS, title="s", document=str(fields)
        )

    await store.schemas.register(store.tenant, [schema("a")])
    for _ in range(number):
        await store.dataset("https://x/s")
    with store.counted() as statements:
        await store.schemas.register(store.tenant, [schema("a", "b")])
    return statements


async def create_job(store: Store, number: int) -> list[str]:
    with store.counted() as statements:
        await store.claim(number)
    return statements


async def record_range(store: Store, number: int) -> list[str]:
    claim = await store.claim(number)
    with store.counted() as statements:
        await store.attempts.record_range(claim.fence, range_done(claim), RUNNING)
    return statements


async def commit_job(store: Store, number: int) -> list[str]:
    claim = await store.claim(number)
    await store.attempts.record_range(claim.fence, range_done(claim), RUNNING)
    with store.counted() as statements:
        await store.attempts.commit(claim.fence)
    return statements


async def fail_job(store: Store, number: int) -> list[str]:
    claim = await store.claim(number)
    await store.attempts.record_range(claim.fence, range_done(claim), RUNNING)
    with store.counted() as statements:
        await store.attempts.end_with_error(claim.fence, FATAL)
    return statements


async def release_job(store: Store, number: int) -> list[str]:
    claim = await store.claim(number)
    await store.attempts.record_range(claim.fence, range_done(claim), RUNNING)
    with store.counted() as statements:
        await store.attempts.release(claim.fence)
        await store.attempts.leave(claim.fence)
    return statements


async def expire_batches(store: Store, number: int) -> list[str]:
    """As many datasets as batches."""
    for name in names(number):
        dataset_id = await store.dataset()
        await store.open(dataset_id, name)
        await store.uploads.commit_batch(store.tenant, name, {"1": facts()})
    async with store.database.write() as connection:
        before = await database_time(connection) - 2 * HOUR
        await connection.execute(update(batches).values(ingest_time=before))
        await connection.execute(update(datasets).values(batch_retention=HOUR))
    with store.counted() as statements:
        assert len(await store.expiries.expire_batches()) == number
    return statements


async def expire_uploads(store: Store, number: int) -> list[str]:
    dataset_id = await store.dataset()
    for name in names(number):
        await store.open(dataset_id, name)
    with store.counted() as statements:
        assert len((await store.expiries.expire_uploads(timedelta(0))).batches) == number
    return statements


async def expire_jobs(store: Store, number: int) -> list[str]:
    for _ in range(number):
        claim = await store.claim(1)
        await store.attempts.end_with_error(claim.fence, FATAL)
    with store.counted() as statements:
        assert len(await store.expiries.expire_jobs(timedelta(0))) == number
    return statements


async def delete_dataset(store: Store, number: int) -> list[str]:
    """A dataset of a tenant with so many jobs under way."""
    dataset_id = await store.dataset()
    for _ in range(number):
        await store.claim(1)
    with store.counted() as statements, suppress(DomainError):
        await store.catalog.delete_dataset(store.tenant, dataset_id)
    return statements


@pytest_asyncio.fixture
async def store(place: Place) -> AsyncIterator[Store]:
    opened = Store(place)
    await opened.database.open()
    yield opened
    await opened.database.close()


WORK = (
    commit_files,
    commit_fields,
    commit_identities,
    commit_segments,
    complete_several,
    abort_several,
    create_dataset,
    register_schema,
    create_job,
    record_range,
    commit_job,
    fail_job,
    release_job,
    expire_batches,
    expire_uploads,
    expire_jobs,
    delete_dataset,
)


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK, ids=lambda work: work.__name__)
async def test_ten_times_as_much_takes_as_many_statements(store: Store, work: Any) -> None:
    few = await work(store, FEW)
    store.tenant = Tenant("another", "prod")
    many = await work(store, MANY)

    assert len(many) <= len(few) + 2, "\n".join(many)


async def test_what_was_foreseen_beside_other_sources_is_looked_at_again_where_these_know_more_by_then(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await store.dataset(), await store.dataset()
    for dataset_id in (first, second):
        await store.open(dataset_id, dataset_id)
    foreseen = store.uploads._foreseen  # noqa: SLF001 - the moment between the look and the commit

    async def overtaken(*of: Any) -> Any:
        growth = await foreseen(*of)
        monkeypatch.undo()
        await store.uploads.commit_batch(store.tenant, second, {"1": facts(fields=["Name"])})
        return growth

    monkeypatch.setattr(store.uploads, "_foreseen", overtaken)

    with pytest.raises(TypeConflictError):
        await store.uploads.commit_batch(store.tenant, first, {"1": facts(fields=["name"])})

    batch = await store.batches.get_batch(store.tenant, first)
    assert batch.state is BatchState.LOADING


def reads_of_many(statements: Sequence[str]) -> list[str]:
    """Return the statements that read what more than one dataset knows, or the plans of jobs."""
    return [
        statement
        for statement in statements
        if (
            "datasets.fields" in statement
            and "FROM datasets" in statement
            and "datasets.id =" not in statement
        )
        or "jobs.plan," in statement
        or "jobs.plan \n" in statement
    ]


async def create_declared(store: Store, number: int) -> None:
    declared = tuple(FieldDeclaration((name,), TEXT) for name in names(number))
    new = NewDataset("d", "", SchemaRef(CLASS), {}, (), declared)
    await store.catalog.create_dataset(store.tenant, new, f"{next(NUMBERS):024x}", "")


async def declare(store: Store, number: int) -> None:
    dataset_id = await store.dataset()
    added = tuple(FieldDeclaration((f"declared{name}",), TEXT) for name in names(number))
    await store.catalog.update_dataset(store.tenant, dataset_id, DatasetChange(declared_fields=added))


async def become_a_source(store: Store, number: int) -> None:
    dataset_id = await store.dataset()
    for said in ("enabled:false", "enabled:true"):
        change = DatasetChange(tags={"unifiedProfile": (said,)})
        await store.catalog.update_dataset(store.tenant, dataset_id, change)


async def register_followed(store: Store, number: int) -> None:
    await register_schema(store, number)


async def commit_new_fields(store: Store, number: int) -> None:
    await commit_fields(store, number)


JUDGED = (create_declared, declare, become_a_source, register_followed, commit_new_fields)


@pytest.mark.parametrize("work", JUDGED, ids=lambda work: work.__name__)
async def test_what_other_sources_know_is_not_read_while_everybody_waits(store: Store, work: Any) -> None:
    for _ in range(FEW):
        await store.dataset()

    with store.counted() as statements:
        await work(store, FEW)

    assert statements
    assert reads_of_many(statements) == []


async def test_the_union_is_read_once_however_many_datasets_are_made(store: Store) -> None:
    await create_declared(store, FEW)
    read: list[Any] = []
    reader = store.database._place.reader.sync_engine  # noqa: SLF001

    def note(*of: Any) -> None:
        read.append(of[2])

    event.listen(reader, "before_cursor_execute", note)
    for number in range(FEW):
        await create_declared(store, FEW + number)

    assert reads_of_many(read) == []


@pytest.mark.parametrize("other", ["Name", "more"])
async def test_of_datasets_made_at_once_none_contradicts_another(store: Store, other: str) -> None:
    """Two that were judged beside the same sources: the second is judged again."""

    async def make(name: str) -> None:
        declared = (FieldDeclaration((name,), TEXT),)
        new = NewDataset("d", "", SchemaRef(CLASS), {}, (), declared)
        await store.catalog.create_dataset(store.tenant, new, f"{next(NUMBERS):024x}", "")

    await store.dataset()
    ended = await asyncio.gather(make("name"), make(other), return_exceptions=True)

    refused = [one for one in ended if isinstance(one, TypeConflictError)]
    assert len(refused) == (other == "Name")
    known = (await store.catalog.union_fields(store.tenant))[DatasetKind.RECORD].fields
    assert len({"name", other} & set(known)) == 2 - len(refused)


async def test_what_only_a_deleted_source_knew_may_be_said_otherwise(store: Store) -> None:
    dataset_id = await store.dataset()
    change = DatasetChange(declared_fields=(FieldDeclaration(("name",), TEXT),))
    await store.catalog.update_dataset(store.tenant, dataset_id, change)
    new = NewDataset("d", "", SchemaRef(CLASS), {}, (), (FieldDeclaration(("Name",), TEXT),))
    with pytest.raises(TypeConflictError):
        await store.catalog.create_dataset(store.tenant, new, f"{next(NUMBERS):024x}", "")

    await store.catalog.delete_dataset(store.tenant, dataset_id)

    made, _ = await store.catalog.create_dataset(store.tenant, new, f"{next(NUMBERS):024x}", "")
    assert "Name" in made.fields.fields


async def test_plans_are_not_read_while_everybody_waits_for_a_delete(store: Store) -> None:
    source = await store.dataset()
    await store.open(source, "b")
    await store.uploads.commit_batch(store.tenant, "b", {"1": facts(files=["a"])})
    for _ in range(FEW):
        claim = await store.claim(1)
        plan = plan_export(
            claim.job.bound, await Snapshots(store.database).take(store.tenant), claim.job.batch_id
        )
        await store.attempts.begin_phase(claim.fence, RUNNING, plan)
    later = await store.dataset()

    with store.counted() as statements:
        await store.catalog.delete_dataset(store.tenant, later)
        with pytest.raises(FailedPreconditionError) as refused:
            await store.catalog.delete_dataset(store.tenant, source)

    assert statements
    assert reads_of_many(statements) == []
    assert len(refused.value.violations) == FEW
