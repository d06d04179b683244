"""A deleted dataset is hidden at once, can be brought back for a while, and then leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import update

from profile_export.domain.catalog.allowances import Quotas
from profile_export.domain.catalog.batches import MERGED_FROM, UploadStart
from profile_export.domain.catalog.datasets import DatasetChange, FieldDeclaration, NewDataset, Tenant
from profile_export.domain.errors import (
    AlreadyExistsError,
    DomainError,
    ExhaustedError,
    FailedPreconditionError,
    NotFoundError,
)
from profile_export.domain.schemas.types import LONG, TEXT
from profile_export.processes.supervisor import Pool, Supervisor
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import database_time
from profile_export.store.db.tables import datasets
from profile_export.store.files.batches import Batches, Receipts
from profile_export.store.files.folders import Named
from profile_export.store.jobs.expiries import Expiries
from tests.contract.house import RECORD, TENANT, House, opened
from tests.databases import Place
from tests.pages import page_of


@dataclass
class Bin:
    """A house in which datasets are deleted and come back, and what makes time pass in it."""

    house: House

    @property
    def catalog(self) -> Catalog:
        return self.house.catalog

    async def time_is_up(self) -> None:
        """Let nothing deleted come back any longer, but do not clear it away yet."""
        async with self.house.database.write() as connection:
            now = await database_time(connection)
            await connection.execute(
                update(datasets).where(datasets.c.delete_time.is_not(None)).values(purge_time=now)
            )

    async def purge(self) -> list[str]:
        return list(await Expiries(self.house.database).purge_datasets())

    async def batches(self, dataset_id: str) -> list[str]:
        page = await Batches(self.house.database).list_batches(TENANT, dataset_id, page_of())
        return [batch.id for batch in page.items]

    async def listed(self, *, show_deleted: bool) -> list[str]:
        page = await self.catalog.list_datasets(TENANT, page_of(), show_deleted=show_deleted)
        return [dataset.id for dataset in page.items]

    async def made(self, request_id: str, *declared: FieldDeclaration) -> str:
        new = NewDataset("d", "", RECORD, {}, (), declared)
        return (await self.catalog.create_dataset(TENANT, new, self.house.new_id(), request_id))[0].id


@pytest_asyncio.fixture
async def bin_(tmp_path: Path, place: Place, children: Pool) -> AsyncIterator[Bin]:
    async with opened(House(tmp_path, children, place)) as house:
        yield Bin(house)


@pytest_asyncio.fixture(scope="module")
async def children() -> AsyncIterator[Pool]:
    supervisor = Supervisor()
    yield Pool(supervisor, niceness=1)
    await supervisor.close()


async def refusal(call: object) -> DomainError:
    with pytest.raises(DomainError) as refused:
        await call  # type: ignore[misc]
    return refused.value


async def test_what_is_brought_back_is_all_there_and_exported_as_before(bin_: Bin) -> None:
    # given a dataset, some of its batches in a compacted file, one reverted, one still being uploaded
    house = bin_.house
    crm = await house.dataset()
    await house.people(crm, *range(MERGED_FROM + 2))
    assert await house.compact()
    await house.people(crm, 99)
    await Batches(house.database).revert(TENANT, "p99", "wrong")
    await house.uploads.open_upload(
        TENANT, UploadStart(crm, "open", "1", "json_lines"), f"{crm}/open", "open"
    )
    rows, listed, before = (
        await house.export(),
        await bin_.batches(crm),
        await bin_.catalog.get_dataset(TENANT, crm),
    )
    files = {path for path in house.lake.staging(crm).rglob("*.parquet") if "/p99/" not in str(path)}

    # when it is deleted, everything that clears up has its turn, and it comes back
    deleted = await bin_.catalog.delete_dataset(TENANT, crm)
    between = await house.export()
    assert await bin_.purge() == []
    assert not await house.compact()
    await house.sweep()
    kept = await Named(house.database).kept_folders()
    back = await bin_.catalog.undelete_dataset(TENANT, crm)

    # then nothing was exported meanwhile, and nothing is missing now
    assert between == []
    assert deleted.delete_time is not None
    assert deleted.purge_time == deleted.delete_time + timedelta(hours=1)
    assert back == before
    assert files <= set(house.lake.staging(crm).rglob("*.parquet"))
    assert await bin_.batches(crm) == listed
    assert {f"{crm}/open", f"{crm}/p0"} <= set(kept)
    assert await Named(house.database).kept_uploads() == ["open"]
    assert await house.export() == rows
    assert len(await house.compactions.folders()) == 1
    assert f"{crm}/p99" not in house.on_disk(crm)


async def test_what_was_compacted_before_a_delete_is_compacted_further_after_it(bin_: Bin) -> None:
    house = bin_.house
    crm = await house.dataset()
    await house.people(crm, *range(MERGED_FROM))
    assert await house.compact()
    await bin_.catalog.delete_dataset(TENANT, crm)
    await bin_.catalog.undelete_dataset(TENANT, crm)
    rows = await house.export()

    await house.people(crm, *range(100, 100 + MERGED_FROM))

    assert await house.compact()
    assert len(await house.export()) == 2 * len(rows)


async def test_a_deleted_dataset_is_seen_by_who_asks_for_it_only(bin_: Bin) -> None:
    kept, gone = await bin_.house.dataset(), await bin_.house.dataset()
    deleted = await bin_.catalog.delete_dataset(TENANT, gone)

    found = await bin_.catalog.look_dataset_up(TENANT, gone)
    told = await refusal(bin_.catalog.get_dataset(TENANT, gone))
    again = await refusal(bin_.catalog.delete_dataset(TENANT, gone))
    elsewhere = await refusal(bin_.catalog.look_dataset_up(Tenant("other"), gone))

    assert found == deleted
    assert await bin_.listed(show_deleted=False) == [kept]
    assert await bin_.listed(show_deleted=True) == [kept, gone]
    for missing in (told, again):
        assert isinstance(missing, NotFoundError)
        assert missing.reason == "DATASET_NOT_FOUND"
        assert "UndeleteDataset brings it back until" in missing.message
        assert set(missing.metadata) == {"id", "delete_time", "purge_time"}
    assert (elsewhere.reason, set(elsewhere.metadata)) == ("DATASET_NOT_FOUND", {"id"})


@pytest.mark.parametrize("asked", ["get_batch", "list_files", "revert", "complete", "receipt"])
async def test_a_batch_of_a_deleted_dataset_says_how_it_comes_back_and_until_when(
    bin_: Bin, asked: str
) -> None:
    house = bin_.house
    crm, batches = await house.dataset(), Batches(house.database)
    await house.upload(crm, "b", {"crmId": "1"})
    await bin_.catalog.delete_dataset(TENANT, crm)

    async def told() -> DomainError:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "get_batch": lambda: batches.get_batch(TENANT, "b"),
            "list_files": lambda: batches.list_files(TENANT, "b", page_of()),
            "revert": lambda: batches.revert(TENANT, "b", ""),
            "complete": lambda: house.uploads.loading_batch(TENANT, "b"),
            "receipt": lambda: Receipts(house.database).get(TENANT, "b"),
        }
        return await refusal(calls[asked]())

    missing = await told()
    await bin_.time_is_up()
    await bin_.purge()
    purged = await told()

    assert (missing.reason, purged.reason) == ("BATCH_NOT_FOUND", "BATCH_NOT_FOUND")
    assert missing.message.startswith(f"The batch 'b' is not there. The dataset '{crm}' was deleted at ")
    assert "UndeleteDataset brings it back until" in missing.message
    assert set(missing.metadata) == {"id", "dataset_id", "delete_time", "purge_time"}
    assert (purged.message, purged.metadata) == ("There is no batch 'b'.", {"id": "b"})


async def test_after_its_time_a_dataset_is_gone_for_good_with_its_files(bin_: Bin) -> None:
    # given a deleted dataset whose time is up, and another one that is deleted
    house = bin_.house
    over, kept = await house.dataset(), await house.dataset()
    await house.people(over, *range(MERGED_FROM))
    await house.upload(kept, "k", {"crmId": "1"})
    assert await house.compact()
    await bin_.catalog.delete_dataset(TENANT, over)
    await bin_.time_is_up()
    await bin_.catalog.delete_dataset(TENANT, kept)

    # when it is asked for, before and after it is purged
    early = await refusal(bin_.catalog.undelete_dataset(TENANT, over))
    purged = await bin_.purge()
    late = await refusal(bin_.catalog.undelete_dataset(TENANT, over))
    await house.sweep(timedelta(minutes=1))
    during = house.on_disk(over)
    await house.sweep()

    # then it is gone, as its files are once nobody can be reading them, and the other one is not
    assert purged == [over]
    assert [(one.reason, set(one.metadata)) for one in (early, late)] == [
        ("EXPIRED", {"id", "delete_time"})
    ] * 2
    assert (await refusal(bin_.catalog.look_dataset_up(TENANT, over))).reason == "DATASET_NOT_FOUND"
    assert await bin_.listed(show_deleted=True) == [kept]
    assert during
    assert not house.lake.staging(over).exists()
    assert await house.compactions.folders() == []
    assert house.on_disk(kept) == {f"{kept}/k"}
    assert await bin_.purge() == []


async def test_what_is_not_deleted_is_not_brought_back(bin_: Bin) -> None:
    there = await bin_.house.dataset()
    await bin_.catalog.delete_dataset(TENANT, there)
    await bin_.catalog.undelete_dataset(TENANT, there)

    again = await refusal(bin_.catalog.undelete_dataset(TENANT, there))
    unknown = await refusal(bin_.catalog.undelete_dataset(TENANT, "f" * 24))
    others = await refusal(bin_.catalog.undelete_dataset(Tenant("other"), there))

    assert isinstance(again, AlreadyExistsError)
    assert again.reason == "DATASET_NOT_DELETED"
    assert [one.reason for one in (unknown, others)] == ["DATASET_NOT_FOUND"] * 2


async def test_of_many_who_bring_a_dataset_back_at_once_one_does(bin_: Bin) -> None:
    crm = await bin_.house.dataset()
    await bin_.catalog.delete_dataset(TENANT, crm)

    done = await asyncio.gather(
        *(bin_.catalog.undelete_dataset(TENANT, crm) for _ in range(4)), return_exceptions=True
    )

    assert sum(isinstance(one, AlreadyExistsError) for one in done) == 3


async def test_a_request_id_comes_back_with_its_dataset_unless_another_has_got_it(bin_: Bin) -> None:
    first, second = await bin_.made("free"), await bin_.made("taken")
    for one in (first, second):
        await bin_.catalog.delete_dataset(TENANT, one)
    other = await bin_.made("taken")

    for one in (first, second):
        await bin_.catalog.undelete_dataset(TENANT, one)

    assert (await bin_.made("free"), await bin_.made("taken")) == (first, other)
    assert await bin_.listed(show_deleted=False) == [first, second, other]


async def test_types_that_others_came_to_know_meanwhile_keep_a_dataset_out(bin_: Bin) -> None:
    # given a deleted dataset, and another one that knows one of its fields otherwise
    gone = await bin_.made("", FieldDeclaration(("age",), LONG))
    await bin_.catalog.delete_dataset(TENANT, gone)
    other = await bin_.made("", FieldDeclaration(("age",), TEXT))

    refused = await refusal(bin_.catalog.undelete_dataset(TENANT, gone))

    # then it is told which, and comes back once that takes no part
    assert isinstance(refused, FailedPreconditionError)
    assert refused.reason == "FIELD_TYPE_CONFLICT"
    assert refused.metadata["path"] == "age"
    assert refused.metadata["other_dataset_id"] == other
    assert refused.message == (
        f"The field 'age' is long in 'd' ({gone}), but string in 'd' ({other}). Delete that one, or give it the tag "
        "unifiedProfile: enabled:false with UpdateDataset; then try again."
    )
    tags = {"unifiedProfile": ("enabled:false",)}
    await bin_.catalog.update_dataset(TENANT, other, DatasetChange(tags=tags))
    await bin_.catalog.undelete_dataset(TENANT, gone)
    assert {source.id for source in await bin_.catalog.sources(TENANT)} == {gone}


async def test_a_tenant_that_has_as_many_datasets_as_it_may_brings_none_back(bin_: Bin) -> None:
    catalog = Catalog(bin_.house.database, Quotas(datasets=1))
    gone = await bin_.house.dataset()
    await catalog.delete_dataset(TENANT, gone)
    other = await bin_.house.dataset()

    refused = await refusal(catalog.undelete_dataset(TENANT, gone))

    assert isinstance(refused, ExhaustedError)
    assert refused.reason == "QUOTA_EXCEEDED"
    await catalog.delete_dataset(TENANT, other)
    await catalog.undelete_dataset(TENANT, gone)


async def test_whoever_waits_for_batches_is_woken_when_a_dataset_comes_back(bin_: Bin) -> None:
    crm = await bin_.house.dataset()
    await bin_.catalog.delete_dataset(TENANT, crm)

    with bin_.house.wakeups.of_batches() as changed:
        await bin_.catalog.undelete_dataset(TENANT, crm)

        assert changed.is_set()
