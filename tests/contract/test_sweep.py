"""What has been dropped leaves the disk when nobody can be reading it, and nothing else does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest_asyncio
from sqlalchemy import delete, insert, select, update

from profile_export.domain.catalog.batches import DataFile
from profile_export.domain.export.plan import ExportCounts
from profile_export.domain.export.request import BoundRequest, ExportRequest
from profile_export.domain.job import LEASE_TTL, Phase, Progress
from profile_export.domain.merging.policy import BUILT_IN_POLICY
from profile_export.processes.supervisor import Pool, Supervisor
from profile_export.store.db.database import database_time
from profile_export.store.db.tables import batches, dropped_folders, mirrored_batches, mirrors
from profile_export.store.files.folders import drop
from profile_export.store.jobs.attempts import Claim, RangeDone
from profile_export.store.jobs.jobs import NewJob
from tests.contract.house import TENANT, UNION, House, opened
from tests.databases import Place


@pytest_asyncio.fixture
async def house(tmp_path: Path, place: Place) -> AsyncIterator[House]:
    async with opened(House(tmp_path, Pool(Supervisor()), place)) as made:
        yield made


async def test_a_dropped_folder_leaves_the_disk_when_its_time_has_passed_and_nothing_else_does(
    house: House,
) -> None:
    crm = await house.dataset()
    await house.people(crm, 1, 2, 3)
    async with house.database.write() as connection:
        await drop(connection, [f"{crm}/p1"])
        await drop(connection, [f"{crm}/p2"])
        await drop(connection, [f"{crm}/p1"])
        mirrored = select(batches.c.key).where(batches.c.id == "p2").scalar_subquery()
        await connection.execute(insert(mirrors).values(dataset_id=crm))
        await connection.execute(insert(mirrored_batches).values(dataset_id=crm, batch_key=mirrored))

    await house.sweep(timedelta(hours=1))
    early = house.on_disk(crm)
    await house.sweep()

    assert early == {f"{crm}/p1", f"{crm}/p2", f"{crm}/p3"}
    assert house.on_disk(crm) == {f"{crm}/p2", f"{crm}/p3"}
    assert await house.dropped.folders() == [f"{crm}/p2"]
    async with house.database.write() as connection:
        await connection.execute(delete(mirrored_batches))
    await house.sweep()
    assert house.on_disk(crm) == {f"{crm}/p3"}


async def test_the_grace_counts_from_the_first_drop(house: House) -> None:
    async with house.database.write() as connection:
        await drop(connection, ["d/b"])
        an_hour_ago = await database_time(connection) - timedelta(hours=1)
        await connection.execute(update(dropped_folders).values(drop_time=an_hour_ago))
        await drop(connection, ["d/b"])

    assert await house.dropped.due(timedelta(hours=2)) == []
    assert await house.dropped.due(timedelta(minutes=59)) == ["d/b"]


async def test_a_folder_that_was_removed_before_the_server_died_is_forgotten_by_the_next(
    house: House,
) -> None:
    async with house.database.write() as connection:
        await drop(connection, ["d/gone"])

    await house.sweep()

    assert await house.dropped.folders() == []


# --- What attempts leave ---


@dataclass
class Attempted:
    """A job whose first attempt has recorded a file and left another one behind."""

    house: House
    claim: Claim

    @classmethod
    async def at(cls, house: House) -> Attempted:
        union = await house.dataset(UNION)
        bound = BoundRequest(ExportRequest(union), BUILT_IN_POLICY)
        await house.jobs.create(TENANT, NewJob(bound, "", {"b": f"{union}/b"}))
        claim = await house.attempts.claim("worker")
        assert claim
        made = cls(house, claim)
        made.write("recorded")
        made.write("left")
        file = DataFile("recorded", f"{union}/b/1/recorded", 1, 1, "")
        await house.attempts.record_range(
            claim.fence, RangeDone(0, {"b": [file]}, ExportCounts(), 1), Progress(Phase.RUN, 1, 0, 0)
        )
        return made

    @property
    def folder(self) -> Path:
        return self.house.lake.staging(f"{self.claim.folders['b']}/{self.claim.fence.attempt}")

    def write(self, name: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / name).touch()

    def on_disk(self) -> list[str]:
        return sorted(path.name for path in self.folder.parent.rglob("*") if path.is_file())

    async def lease_time_passes(self) -> None:
        async with self.house.database.write() as connection:
            before = await database_time(connection) - LEASE_TTL
            await connection.execute(update(dropped_folders).values(drop_time=before))


async def test_a_file_that_a_dead_attempt_has_not_recorded_goes_after_the_time_of_a_lease(
    house: House,
) -> None:
    # given an attempt that is given up
    attempted = await Attempted.at(house)
    await house.attempts.release(attempted.claim.fence)

    # when it is swept at once, and after the time in which its worker has to stop
    await house.sweep()
    early = attempted.on_disk()
    await attempted.lease_time_passes()
    await house.sweep()

    # then what the next attempt goes on from is there, and nothing else
    assert early == ["left", "recorded"]
    assert attempted.on_disk() == ["recorded"]
    again = await house.attempts.claim("another")
    assert again
    assert again.recorded == {0}


async def test_nothing_that_a_running_attempt_writes_is_swept(house: House) -> None:
    attempted = await Attempted.at(house)

    await attempted.lease_time_passes()
    await house.sweep()

    assert attempted.on_disk() == ["left", "recorded"]


async def test_no_file_of_a_cancelled_job_stays(house: House) -> None:
    attempted = await Attempted.at(house)
    await house.jobs.cancel(TENANT, attempted.claim.job.id, "me", "")
    await house.attempts.let_go(attempted.claim.fence)

    await attempted.lease_time_passes()
    await house.sweep()

    assert not attempted.folder.parent.exists()
    assert await house.dropped.left_behind() == []


async def test_of_a_batch_that_counts_the_files_stay_and_nothing_else(house: House) -> None:
    attempted = await Attempted.at(house)
    await house.attempts.commit(attempted.claim.fence)
    house.lake.write(f"{attempted.claim.folders['b']}/receipt.json", b"{}")

    await attempted.lease_time_passes()
    await house.sweep()

    assert attempted.on_disk() == ["receipt.json", "recorded"]


async def test_what_a_lost_attempt_wrote_before_it_noticed_is_swept_too(house: House) -> None:
    attempted = await Attempted.at(house)
    await house.attempts.release(attempted.claim.fence)
    await attempted.lease_time_passes()
    await house.sweep()

    attempted.write("late")
    await house.attempts.leave(attempted.claim.fence)
    await attempted.lease_time_passes()
    await house.sweep()

    assert attempted.on_disk() == ["recorded"]
