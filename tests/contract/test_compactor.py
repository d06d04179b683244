"""The compactor: many small batches become few files behind their rows, which no pin and no batch can tell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update
from structlog.testing import capture_logs

from profile_export.domain.catalog.batches import FULL_ROWS, BatchState
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import Phase, Progress
from profile_export.domain.merging.policy import BUILT_IN_POLICY, IdentityGraph
from profile_export.lake.compaction import CompactTask, Merger, compact
from profile_export.processes.messages import Limits
from profile_export.processes.supervisor import Pool, Supervisor
from profile_export.runner.chores import Compactor, keep_at
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.tables import batches, files
from profile_export.store.jobs.expiries import Expiries
from profile_export.store.jobs.jobs import NewJob
from tests.contract.house import EVENT, NO_GRACE, TENANT, UNION, House, children, opened, pinned

__all__ = ["children"]  # a fixture


@pytest_asyncio.fixture
async def house(tmp_path: Path, children: Pool) -> AsyncIterator[House]:
    async with opened(House(tmp_path, children)) as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("graph", IdentityGraph)
async def test_a_snapshot_pins_one_file_for_many_batches_and_exports_the_same_rows(
    house: House, graph: IdentityGraph
) -> None:
    crm, web = await house.dataset(), await house.dataset(EVENT)
    for number in range(12):
        person = {"crmId": f"C{number % 7}", "email": f"e{number // 3}", "name": f"n{number}"}
        event = {
            "_id": f"{number % 9}",
            "timestamp": f"2026-03-01T10:{number:02}:00Z",
            "identityMap": {"Email": [{"id": f"e{number // 4}", "primary": True}]},
        }
        await house.upload(crm, f"p{number}", person)
        await house.upload(web, f"e{number}", event)
    before, rows = await house.plan(graph), await house.export(graph)

    merges = await house.compact()

    after = await house.plan(graph)
    assert (len(pinned(before)), len(pinned(after)), merges) == (24, 2, 2)
    assert after.batches == before.batches
    assert await house.export(graph) == rows
    assert rows == house.run(before)


async def test_a_revert_hides_a_compacted_batch_and_its_links_at_once(house: House) -> None:
    crm = await house.dataset()
    await house.people(crm, *range(0, 20, 2))
    await house.upload(crm, "link", {"crmId": "C0", "email": "e1", "name": "linked"})
    await house.compact()
    linked = await house.export()

    await house.ended("link", BatchState.REVERTED)

    plan = await house.plan()
    assert len(linked) == 9  # C0 and C2 are one person
    rows = house.run(plan)
    assert len(rows) == 10
    assert not any("linked" in row for row in rows)
    assert len(pinned(plan)) == 10


@pytest.mark.parametrize("end", [BatchState.REVERTED, BatchState.EXPIRED])
async def test_what_is_left_after_a_revert_or_an_expiry_is_compacted_anew(
    house: House, end: BatchState
) -> None:
    crm = await house.dataset()
    await house.people(crm, *range(11))
    await house.compact()
    (first,) = await house.compactions.folders()
    await house.ended("p5", end)
    rows = await house.export()

    await house.compact()

    (second,) = await house.compactions.folders()
    assert first != second
    assert await house.dropped.folders() == [first]
    assert pinned(await house.plan()) == [f"{second}/00000.parquet"]
    assert await house.export() == rows


async def test_a_merge_that_a_revert_overtakes_is_void(house: House) -> None:
    crm = await house.dataset()
    await house.people(crm, *range(10))
    merge = await house.compactions.next_merge(())
    assert merge
    sources = tuple(house.lake.root / path for one in merge.runs for path in one.paths)
    file = compact(CompactTask(sources, house.lake.staging(f"{crm}/merged") / "0.parquet"))

    await house.ended("p3", BatchState.REVERTED)
    committed = await house.compactions.commit(merge, f"{crm}/merged", file)

    assert not committed
    assert len(pinned(await house.plan())) == 9
    assert await house.compactions.folders() == []


@pytest.mark.slow
async def test_a_merge_of_merged_files_is_void_when_one_of_them_is_gone(house: House) -> None:
    crm = await house.dataset()
    for first in range(0, 100, 10):
        await house.people(crm, *range(first, first + 10))
        if first < 90:
            await house.compact()
    await house.compactor.step()
    merge = await house.compactions.next_merge(())
    assert merge
    assert [one.is_compacted for one in merge.runs] == [True] * 10
    sources = tuple(house.lake.root / path for one in merge.runs for path in one.paths)
    file = compact(CompactTask(sources, house.lake.staging(f"{crm}/merged") / "0.parquet"))

    await house.ended("p3", BatchState.REVERTED)
    committed = await house.compactions.commit(merge, f"{crm}/merged", file)

    assert not committed
    assert await house.dropped.folders() == []


class Hooked(Pool):
    """Children of whom every result is followed by something."""

    after: Callable[[], Awaitable[None]]

    async def run(self, *work: Any) -> Any:
        result = await super().run(*work)
        await self.after()
        return result


@pytest_asyncio.fixture
async def hooked() -> AsyncIterator[Hooked]:
    supervisor = Supervisor()
    yield Hooked(supervisor)
    await supervisor.close()


async def test_a_void_merge_leaves_no_file(tmp_path: Path, hooked: Hooked) -> None:
    async with opened(House(tmp_path, hooked)) as house:
        crm = await house.dataset()
        await house.people(crm, *range(10))
        before = house.on_disk(crm)
        hooked.after = lambda: house.ended("p3", BatchState.REVERTED)

        again = await house.compactor.step()

        assert again
        assert house.on_disk(crm) == before


async def test_a_stop_in_the_middle_of_a_commit_takes_no_file_away(tmp_path: Path, hooked: Hooked) -> None:
    async with opened(House(tmp_path, hooked)) as house:
        await house.people(await house.dataset(), *range(10))
        rows, merged, go_on = await house.export(), asyncio.Event(), asyncio.Event()

        async def tell() -> None:
            merged.set()
            await go_on.wait()

        hooked.after = tell
        step = asyncio.create_task(house.compactor.step())
        await merged.wait()
        async with house.database.write():  # the commit waits for it
            go_on.set()
            await asyncio.wait([step], timeout=0.5)
            step.cancel()
            await asyncio.wait([step])

        async with house.database.write():  # it comes after the commit
            assert len(await house.compactions.folders()) == 1
        assert await house.export() == rows


@pytest.mark.slow
async def test_a_file_that_has_been_merged_further_stays_for_the_job_that_pinned_it(house: House) -> None:
    crm, union = await house.dataset(), await house.dataset(UNION)
    for first in range(0, 90, 10):
        await house.people(crm, *range(first, first + 10))
        await house.compact()
    plan, rows = await house.plan(), await house.export()
    request = BoundRequest(ExportRequest(union), BUILT_IN_POLICY)
    await house.jobs.create(TENANT, NewJob(request, "", {"export": f"{union}/export"}))
    claim = await house.attempts.claim("worker")
    assert claim
    await house.attempts.begin_phase(claim.fence, Progress(Phase.RESOLVE, 1, 0, 0), plan)
    superseded = set(await house.compactions.folders())

    await house.people(crm, *range(90, 100))
    await house.compact()
    await house.sweep()

    assert len(superseded) == 9
    assert len(await house.compactions.folders()) == 1
    assert superseded <= house.on_disk(crm)
    assert house.run(plan) == rows
    await house.attempts.commit(claim.fence)
    await house.sweep()
    assert not superseded & house.on_disk(crm)
    assert await house.dropped.folders() == []


async def test_what_is_large_or_exported_or_of_other_fields_is_left_alone(house: House) -> None:
    crm, other, union = await house.dataset(), await house.dataset(), await house.dataset(UNION)
    for number in range(10):
        await house.upload(crm, f"large{number}", {"crmId": "C"})
        await house.upload(other, f"grown{number}", {"crmId": "C", f"field{number}": "x"})
        await house.upload(other, f"empty{number}")
    async with house.database.write() as connection:
        large = batches.c.id.like("large%")
        await connection.execute(update(batches).where(large).values(rows=FULL_ROWS))
        exported = [
            {
                "tenant_id": 1,
                "id": f"x{number}",
                "dataset_id": union,
                "state": "succeeded",
                "rows": 1,
                "folder": "f",
                "create_time": (await house.catalog.get_dataset(TENANT, union)).create_time,
            }
            for number in range(10)
        ]
        await connection.execute(batches.insert(), exported)

    assert await house.compact() == 0


async def test_a_batch_whose_files_were_written_with_different_fields_stays_as_it_is(house: House) -> None:
    crm = await house.dataset()
    await house.upload(crm, "first", {"crmId": "C", "name": "n"})
    await house.people(crm, *range(9))
    async with house.database.write() as connection:
        # A second file of other fields in the first batch.
        await connection.execute(update(files).where(files.c.name == "00000.parquet").values(name="0"))
        row = {"name": "1", "path": "x", "rows": 1, "bytes": 1, "sha256": "", "field_set_id": None}
        await connection.execute(files.insert(), row | {"batch_key": 1})

    assert await house.compact() == 0


async def test_a_dataset_whose_merge_fails_rests_while_others_have_their_turn(house: House) -> None:
    broken, sound = await house.dataset(), await house.dataset()
    for number in range(10):
        await house.upload(broken, f"b{number}", {"crmId": "C"})
    house.lake.remove(f"{broken}/b3")
    with pytest.raises(FileNotFoundError):
        await house.compactor.step()
    for number in range(10):
        await house.upload(sound, f"s{number}", {"crmId": "C"})

    merges = await house.compact()

    assert merges == 1
    assert [folder.split("/")[0] for folder in await house.compactions.folders()] == [sound]
    assert len(house.on_disk(broken)) == 9


async def test_a_merge_over_its_limits_is_made_later_while_others_go_on(tmp_path: Path) -> None:
    supervisor = Supervisor()
    tight, roomy = Pool(supervisor, limits=Limits(memory_bytes=40_000_000)), Pool(supervisor)
    async with opened(House(tmp_path, tight)) as house:
        crm = await house.dataset()
        await house.people(crm, *range(10))
        before, rows = house.on_disk(crm), await house.export()

        with capture_logs() as logs:
            merged = await house.compactor.step()
        other = await roomy.run(len, "another's")
        again = await house.compactor.step()

        assert merged
        assert [(log["event"], log["dataset_id"], log["reason"]) for log in logs] == [
            ("not_compacted", crm, "It took more than 40 MB of memory.")
        ]
        assert other == 9
        assert not again
        assert house.on_disk(crm) == before
        assert await house.compactions.begun(timedelta()) == []
        next_server = Compactor(house.compactions, house.lake, Merger(roomy), house.new_id)
        assert await next_server.step()
        assert len(pinned(await house.plan())) == 1
        assert await house.export() == rows
    await supervisor.close()


async def test_the_compactor_wakes_when_batches_have_come(house: House) -> None:
    begun = asyncio.Event()
    house.when_named = begun.set
    crm = await house.dataset()
    begun.clear()
    compacting = asyncio.create_task(keep_at(house.compactor, house.wakeups))

    await house.people(crm, *range(10))

    async with asyncio.timeout(30):  # half of what it waits if nobody wakes it
        await begun.wait()
    compacting.cancel()


async def test_a_dataset_that_goes_takes_its_compacted_files_along(house: House) -> None:
    crm, other = await house.dataset(), await house.dataset()
    await house.people(crm, *range(10))
    for number in range(10):
        await house.upload(other, f"o{number}", {"crmId": "C"})
    await house.compact()
    folders = await house.compactions.folders()

    await Catalog(house.database, grace=NO_GRACE).delete_dataset(TENANT, crm)
    await Expiries(house.database).purge_datasets()

    (kept,) = await house.compactions.folders()
    assert kept.startswith(other)
    assert set(await house.dropped.folders()) == {crm, *folders} - {kept}
