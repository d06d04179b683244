"""Quotas: what a tenant may have at a time, counted exactly, whoever else is asking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import fields
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import func, insert, select, update

from profile_export.domain.catalog.allowances import Quotas
from profile_export.domain.catalog.batches import MOST_FILES, BatchState, RowError, UploadStart
from profile_export.domain.catalog.datasets import IdentityField, NewDataset, SchemaRef, Tenant
from profile_export.domain.errors import ExhaustedError, FailedPreconditionError, InvalidArgumentError
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import Database, database_time
from profile_export.store.db.tables import batches, uploads
from profile_export.store.files.batches import Batches
from profile_export.store.files.uploads import FIRST_BYTES, OpenUpload, Uploads
from profile_export.store.jobs.attempts import Attempts
from profile_export.store.jobs.expiries import Expiries
from profile_export.store.jobs.jobs import Jobs, NewJob
from tests.databases import Place

NUMBERS = count()
XDM = "https://ns.adobe.com/xdm/context"
RECORD, UNION = SchemaRef(f"{XDM}/profile"), SchemaRef(f"{XDM}/profile__union")
A, B = Tenant("a", "prod"), Tenant("b", "prod")
MIB = 1024 * 1024


class Store:
    """A store of small quotas."""

    def __init__(self, place: Place, **quotas: int | None) -> None:
        shares = Quotas(**quotas)
        self.database = Database(place)
        self.catalog = Catalog(self.database, shares)
        self.jobs = Jobs(self.database, None, shares)
        self.attempts = Attempts(self.database, shares)
        self.uploads = Uploads(self.database, shares)
        self.batches, self.expiries = Batches(self.database), Expiries(self.database)

    async def dataset(self, tenant: Tenant, schema: SchemaRef = RECORD, request_id: str = "") -> str:
        identities = (IdentityField(("id",), "CRM", primary=True),) if schema is RECORD else ()
        new = NewDataset("d", "", schema, {}, identities)
        made, _ = await self.catalog.create_dataset(tenant, new, f"{next(NUMBERS):024x}", request_id)
        return made.id

    async def job(self, tenant: Tenant, destination: str, request_id: str = "") -> int:
        bound = BoundRequest(ExportRequest(destination), BUILT_IN_POLICY)
        folders = {f"batch-{next(NUMBERS)}": f"folder-{next(NUMBERS)}"}
        return (await self.jobs.create(tenant, NewJob(bound, request_id, folders)))[0].job.id

    async def open(self, tenant: Tenant, dataset_id: str, batch_id: str, file_name: str = "1") -> OpenUpload:
        start = UploadStart(dataset_id, batch_id, file_name, "csv")
        name = f"{next(NUMBERS)}"
        return await self.uploads.open_upload(tenant, start, f"{dataset_id}/{name}", name)


@pytest_asyncio.fixture
async def opened(place: Place, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    store = Store(place, **request.param)
    await store.database.open()
    yield store
    await store.database.close()


def of(**quotas: int | None) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", [quotas], indirect=True)


async def refusals(*calls: Any) -> Sequence[ExhaustedError]:
    """Make calls at once; return what was refused for a quota."""
    done = await asyncio.gather(*calls, return_exceptions=True)
    failed = [one for one in done if isinstance(one, BaseException)]
    refused = [one for one in failed if isinstance(one, ExhaustedError)]
    assert failed == refused
    return refused


def told(error: ExhaustedError, quota: str, limit: int) -> None:
    assert error.reason == "QUOTA_EXCEEDED"
    assert (error.metadata["quota"], error.metadata["limit"]) == (quota, str(limit))
    assert int(error.metadata["used"]) >= limit or quota == "staged_bytes"


@of()
async def test_a_batch_shows_the_first_errors_of_the_first_files(opened: Store) -> None:
    source = await opened.dataset(A)
    await opened.uploads.create_batch(A, source, "b", "", folder=f"{source}/b")
    for name, found in (("a", 0), ("c", 60), ("d", 60), ("e", 60)):
        errors = [RowError(row, "VALUE_INVALID", f"of {name}") for row in range(1, found + 1)]
        await opened.uploads.refuse_upload(A, await opened.open(A, source, "b", name), errors, found, "")

    batch = await opened.batches.get_batch(A, "b")

    shown = {upload.file_name: [error.row for error in upload.errors] for upload in batch.uploads}
    assert shown == {"a": [], "c": [*range(1, 61)], "d": [*range(1, 41)], "e": []}
    assert batch.rejected_rows == 180


@of(waiting_jobs=3)
async def test_of_many_jobs_made_at_once_as_many_wait_as_may(opened: Store) -> None:
    mine, other = await opened.dataset(A, UNION), await opened.dataset(B, UNION)

    refused = await refusals(*(opened.job(A, mine) for _ in range(8)), opened.job(B, other))

    assert len(refused) == 5
    told(refused[0], "waiting_jobs", 3)
    assert refused[0].retry_after
    async with opened.database.read() as connection:
        # Nothing of what was refused is there.
        assert (await connection.execute(select(func.count()).select_from(batches))).scalar_one() == 4


@of(waiting_jobs=1)
async def test_a_job_that_is_taken_or_cancelled_makes_room_for_another(opened: Store) -> None:
    destination = await opened.dataset(A, UNION)
    await opened.job(A, destination)

    assert await opened.attempts.claim("worker")
    waiting = await opened.job(A, destination)
    await opened.jobs.cancel(A, waiting, "me", "")

    await opened.job(A, destination)


@of(waiting_jobs=1, datasets=1)
async def test_a_repetition_is_never_refused_for_a_quota(opened: Store) -> None:
    destination = await opened.dataset(A, UNION, "d")
    made = await opened.job(A, destination, "j")

    assert await opened.dataset(A, UNION, "d") == destination
    assert await opened.job(A, destination, "j") == made
    assert (
        len(await refusals(opened.job(A, destination, "another"), opened.dataset(A, UNION, "another"))) == 2
    )


@of(datasets=2)
async def test_of_many_datasets_made_at_once_there_are_as_many_as_may_be(opened: Store) -> None:
    refused = await refusals(*(opened.dataset(A) for _ in range(5)), opened.dataset(B))

    assert len(refused) == 3
    told(refused[0], "datasets", 2)


@of(datasets=1)
async def test_a_deleted_dataset_makes_room_for_another(opened: Store) -> None:
    await opened.catalog.delete_dataset(A, await opened.dataset(A))

    await opened.dataset(A)


@of(loading_batches=2)
async def test_a_tenant_uploads_no_more_batches_at_once_than_it_may(opened: Store) -> None:
    mine, other = await opened.dataset(A), await opened.dataset(B)

    refused = await refusals(
        *(opened.open(A, mine, f"u{number}") for number in range(3)),
        *(opened.uploads.create_batch(A, mine, f"c{number}", "", f"f{number}") for number in range(3)),
        opened.open(B, other, "u"),
    )

    assert len(refused) == 4
    told(refused[0], "loading_batches", 2)
    for batch_id in ("u0", "u1", "u2", "c0", "c1", "c2"):
        if await _is_loading(opened, batch_id):
            await opened.uploads.abort_batch(A, batch_id, "")
    await opened.open(A, mine, "after")


@of(loading_batches=1)
async def test_going_on_with_a_batch_is_not_refused_and_beginning_a_failed_one_anew_may_be(
    opened: Store,
) -> None:
    dataset_id = await opened.dataset(A)
    failed = await opened.open(A, dataset_id, "failed")
    await opened.uploads.refuse_upload(A, failed, (), 0, "")
    await opened.open(A, dataset_id, "goes-on")

    await opened.open(A, dataset_id, "goes-on")

    assert len(await refusals(opened.open(A, dataset_id, "failed"))) == 1
    assert (await opened.batches.get_batch(A, "failed")).state is BatchState.FAILED


@of()
async def test_a_batch_has_no_more_files_than_it_can_have(opened: Store) -> None:
    dataset_id = await opened.dataset(A)
    await opened.uploads.create_batch(A, dataset_id, "many", "", f"{dataset_id}/many")
    await opened.open(A, dataset_id, "many", "0")
    async with opened.database.write() as connection:
        row = (await connection.execute(select(uploads))).one()._asdict()
        del row["key"]
        more = [{**row, "file_name": f"{number}"} for number in range(1, MOST_FILES)]
        await connection.execute(insert(uploads), more)

    with pytest.raises(InvalidArgumentError) as caught:
        await opened.open(A, dataset_id, "many", "one-more")

    assert caught.value.reason == "TOO_MANY_FILES"
    assert caught.value.metadata["limit"] == str(MOST_FILES)
    await opened.open(A, dataset_id, "many", "7")


@of(staged_bytes=10 * MIB)
async def test_bytes_under_way_are_counted_over_all_files_of_a_tenant(opened: Store) -> None:
    mine, other = await opened.dataset(A), await opened.dataset(B)
    files = [await opened.open(A, mine, f"b{number}") for number in range(4)]
    theirs = await opened.open(B, other, "b")

    refused = await refusals(
        *(opened.uploads.reserve(A, file, 3 * MIB, 3 * MIB) for file in files),
        opened.uploads.reserve(B, theirs, 10 * MIB, 10 * MIB),
    )

    # Three files have 3 MiB by now, and the fourth keeps what it had.
    assert len(refused) == 1
    told(refused[0], "staged_bytes", 10 * MIB)
    assert await _staged(opened, A) == 10 * MIB


@of(staged_bytes=5 * MIB)
async def test_what_is_left_is_given_where_less_than_wanted_is_enough(opened: Store) -> None:
    dataset_id = await opened.dataset(A)
    first, second = await opened.open(A, dataset_id, "1"), await opened.open(A, dataset_id, "2")
    assert (first.upload.staged_bytes, second.upload.staged_bytes) == (FIRST_BYTES, FIRST_BYTES)

    assert await opened.uploads.reserve(A, first, 2 * MIB, 18 * MIB) == 4 * MIB

    assert len(await refusals(opened.uploads.reserve(A, second, MIB + 1, 18 * MIB))) == 1
    assert len(await refusals(opened.open(A, dataset_id, "3"))) == 1
    # Nothing is left behind of a file that had no room for its first byte.
    assert not await _is_loading(opened, "3")


@of(staged_bytes=2 * MIB)
@pytest.mark.parametrize("end", ["abort", "refuse", "give up"])
async def test_what_ends_makes_room_for_other_bytes(opened: Store, end: str) -> None:
    dataset_id = await opened.dataset(A)
    first = await opened.open(A, dataset_id, "1")
    await opened.uploads.reserve(A, first, 2 * MIB, 2 * MIB)
    assert len(await refusals(opened.open(A, dataset_id, "2"))) == 1

    match end:
        case "abort":
            await opened.uploads.abort_batch(A, "1", "")
        case "refuse":
            await opened.uploads.refuse_upload(A, first, (), 0, "")
        case _:
            assert (await opened.expiries.expire_uploads(timedelta(0))).batches == ["1"]

    await opened.open(A, dataset_id, "2")
    if end != "refuse":
        with pytest.raises(FailedPreconditionError):
            await opened.uploads.reserve(A, first, 2 * MIB, 2 * MIB)


@of(**{share.name: None for share in fields(Quotas)})
async def test_without_quotas_nothing_is_refused(opened: Store) -> None:
    mine, destination = await opened.dataset(A), await opened.dataset(A, UNION)
    for number in range(3):
        await opened.job(A, destination)
        file = await opened.open(A, mine, f"b{number}")
        assert await opened.uploads.reserve(A, file, 10**15, 10**15) == 10**15


@of()
async def test_batches_that_are_silent_for_too_long_are_given_up_and_no_others(opened: Store) -> None:
    dataset_id = await opened.dataset(A)
    silent = await opened.open(A, dataset_id, "silent")
    alive = await opened.open(A, dataset_id, "alive")
    await opened.uploads.create_batch(A, dataset_id, "empty", "", f"{dataset_id}/empty")
    destination = await opened.dataset(A, UNION)
    await opened.job(A, destination)
    hour = timedelta(hours=1)
    async with opened.database.write() as connection:
        before = await database_time(connection) - 2 * hour
        await connection.execute(update(batches).values(active_time=before))
    await opened.uploads.reserve(A, alive, 1, 1)

    given_up = await opened.expiries.expire_uploads(hour)

    assert sorted(given_up.batches) == ["empty", "silent"]
    assert list(given_up.staged) == [silent.upload.staged_as]
    batch = await opened.batches.get_batch(A, "silent")
    assert batch.state is BatchState.FAILED
    assert batch.state_reason == "Given up: nothing was sent for 1 hour. Upload it again."
    assert (await opened.batches.get_batch(A, "alive")).state is BatchState.LOADING
    assert await opened.expiries.expire_uploads(hour) == type(given_up)()
    # It begins anew, under the same id and with a folder of its own.
    again = await opened.open(A, dataset_id, "silent")
    assert again.folder != silent.folder
    assert (again.batch.state, again.batch.state_reason) == (BatchState.LOADING, "")


async def _is_loading(store: Store, batch_id: str) -> bool:
    query = select(batches.c.key).where(batches.c.id == batch_id, batches.c.state == BatchState.LOADING.value)
    async with store.database.read() as connection:
        return (await connection.execute(query)).first() is not None


async def _staged(store: Store, tenant: Tenant) -> int:
    async with store.database.read() as connection:
        rows = (await connection.execute(select(batches.c.dataset_id, batches.c.staged_bytes))).all()
    datasets = {one.id for one in await store.catalog.sources(tenant)}
    return sum(row.staged_bytes for row in rows if row.dataset_id in datasets)
