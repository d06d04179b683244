"""The mirror over a real store and lake: what it follows, what it remembers, and what it does about trouble."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Collection, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import pytest_asyncio
from sqlalchemy import select, text, update
from structlog.testing import capture_logs

from profile_export.domain.catalog.batches import MirroredBatch, MirroredDataset, MirrorStatus, TableState
from profile_export.lake.iceberg import IcebergMirror
from profile_export.processes.messages import Limits
from profile_export.processes.supervisor import Pool, Supervisor
from profile_export.runner.chores import keep_at
from profile_export.runner.mirror import Mirror
from profile_export.store.catalog.datasets import Catalog
from profile_export.store.db.database import migrate
from profile_export.store.db.tables import datasets, mirrors
from profile_export.store.files.mirrors import MirrorLostError, Mirrors
from tests.databases import Place, engine_of, make_former_tables
from tests.mirroring import HOUR, TENANT, Threads, World

TIGHT = Limits(memory_bytes=40_000_000)
"""Less than the libraries take."""


@pytest_asyncio.fixture
async def world(place: Place, tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, place)
    await made.database.open()
    yield made
    await made.database.close()


class Overtaken(IcebergMirror):
    """Tables that somebody else makes the same change to just before."""

    def sync(
        self,
        dataset: MirroredDataset,
        base: TableState,
        add: Sequence[MirroredBatch],
        remove: Collection[str],
    ) -> TableState:
        super().sync(dataset, base, add, remove)
        return super().sync(dataset, base, add, remove)


class Dying(IcebergMirror):
    """Tables whose process ends when one of them is looked at."""

    def look(self, dataset: MirroredDataset) -> TableState | None:  # noqa: ARG002 - the signature of the tables
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


async def again_at_once(world: World) -> None:
    """Let the back-off be over."""
    async with world.database.write() as connection:
        await connection.execute(update(mirrors).values(not_before=None))


# --- Following ---


async def test_a_table_follows_the_batches_that_count(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.batch("d1", "b2", [])
    await world.batch("d1", "b3")
    before = await world.status("d1")

    await world.follow()

    assert world.held("d1") == ["b1", "b3"]
    assert before == MirrorStatus(
        enabled=True,
        table="default__prod.d_d1",
        metadata_location="",
        mirrored_batches=0,
        pending_changes=3,
        last_batch_id="",
        mirror_time=None,
        error_message="",
    )
    after = await world.status("d1")
    assert (after.mirrored_batches, after.pending_changes, after.last_batch_id) == (3, 0, "b3")
    state = world.tables.look(world.mirrored("d1"))
    assert state
    assert after.metadata_location == state.metadata_location
    assert state.snapshots == 1


async def test_a_reverted_batch_leaves_the_table_with_the_next_change(world: World) -> None:
    await world.dataset("d1")
    for batch_id in ("b1", "b2", "b3"):
        await world.batch("d1", batch_id)
    await world.follow()
    await world.revert("b3")
    await world.revert("b1")
    before = await world.status("d1")

    await world.follow()

    assert (before.mirrored_batches, before.pending_changes, before.last_batch_id) == (3, 2, "b3")
    assert world.held("d1") == ["b2"]
    status = await world.status("d1")
    assert (status.mirrored_batches, status.pending_changes, status.last_batch_id) == (1, 0, "b2")


async def test_a_batch_that_is_reverted_before_it_was_mirrored_never_gets_in(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.revert("b1")

    await world.follow()

    assert world.held("d1") == []
    assert await world.folders() == []


async def test_more_batches_than_one_commit_takes_follow_with_the_next(world: World) -> None:
    world.mirrors = Mirrors(world.database, max_batches=2)
    await world.dataset("d1")
    await world.batch("d1", "b0")
    await world.follow()
    for number in range(1, 4):
        await world.batch("d1", f"b{number}")

    assert await world.mirror().step()
    first = await world.status("d1")
    await world.follow()

    assert (first.mirrored_batches, first.pending_changes, first.last_batch_id) == (3, 1, "b2")
    assert world.held("d1") == ["b0", "b1", "b2", "b3"]


async def test_a_mirror_that_is_switched_off_leaves_the_table_as_it_is_and_catches_up_later(
    world: World,
) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.follow()

    async def switch(*, on: bool) -> None:
        async with world.database.write() as connection:
            await connection.execute(update(datasets).values(iceberg=on))

    await switch(on=False)
    await world.batch("d1", "b2")
    await world.revert("b1")
    await world.follow()
    off = world.held("d1")
    assert not (await world.status("d1")).enabled
    await switch(on=True)
    await world.follow()

    assert off == ["b1"]
    assert world.held("d1") == ["b2"]


async def test_a_dataset_that_was_never_mirrored_has_no_status(world: World) -> None:
    await world.dataset("d1", iceberg=False)
    await world.batch("d1", "b1")
    await world.follow()

    assert await Mirrors(world.database).of(["d1"]) == {}


async def test_types_that_grow_wider_are_followed(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1", [{"n": 1}])
    await world.follow()
    await world.batch("d1", "b2", [{"n": 2.5}])

    await world.follow()

    assert world.held("d1") == ["b1", "b2"]
    assert (await world.status("d1")).error_message == ""


# --- Files that a snapshot may name ---


@pytest.mark.parametrize("end", ["reverted", "expired"])
async def test_files_may_go_once_no_kept_snapshot_can_name_them(world: World, end: str) -> None:
    # given a batch that was taken out of the table, and snapshots that may go at the next check
    world.keep = timedelta(0)
    await world.dataset("d1")
    for batch_id in ("b1", "b2"):
        await world.batch("d1", batch_id)
    mirror = world.mirror()
    await mirror.step()
    await (world.revert("b1") if end == "reverted" else world.expire("d1", "b1"))
    ended = await world.folders()

    # when it is taken out, and when snapshots expire
    await mirror.step()
    taken_out = await world.folders()
    held = world.held("d1")
    await world.mirrors.release_all()
    await mirror.step()

    # then the files stay until then
    assert (ended, taken_out, held) == (["b1", "b2"], ["b1", "b2"], ["b2"])
    assert await world.folders() == ["b2"]


async def test_files_of_a_batch_that_may_have_got_into_the_table_stay(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    work = await world.mirrors.claim("one that is killed now")
    assert work
    await world.revert("b1")

    assert await world.folders() == ["b1"]


# --- The store's memory and the table ---


async def test_a_kill_between_the_tables_commit_and_the_stores_doubles_nothing(world: World) -> None:
    # given a table that has moved on without the store's knowing
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.follow()
    await world.batch("d1", "b2")
    work = await world.mirrors.claim("one that is killed now")
    state = world.tables.look(world.mirrored("d1"))
    assert work
    assert state
    world.tables.sync(world.mirrored("d1"), state, work.add, work.remove)

    # when the next process takes over, with another batch gone meanwhile
    await world.revert("b1")
    await world.mirrors.release_all()
    await world.follow()

    # then
    assert world.held("d1") == ["b2"]
    status = await world.status("d1")
    assert (status.mirrored_batches, status.pending_changes) == (1, 0)


async def test_a_table_that_was_dropped_is_found_at_the_next_check_and_built_anew(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.batch("d1", "b2")
    await world.follow()
    await world.revert("b1")
    await world.follow()
    world.tables.drop(world.mirrored("d1"))
    await world.follow()
    unnoticed = world.held("d1")

    await world.mirrors.release_all()
    await world.follow()

    assert unnoticed == []
    assert world.held("d1") == ["b2"]
    assert await world.folders() == ["b2"]  # the old table's snapshots are gone with it


async def test_a_former_holder_writes_nothing_down(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    former = await world.mirrors.claim("former")
    assert former
    assert await world.mirrors.claim("too early") is None
    await world.mirrors.release_all()
    assert await world.mirrors.claim("new")

    for attempt in (
        world.mirrors.renew(former),
        world.mirrors.everything(former),
        world.mirrors.done(former, None, timedelta(0)),
        world.mirrors.failed(former, "no"),
        world.mirrors.dropped(former),
    ):
        with pytest.raises(MirrorLostError):
            await attempt
    await world.mirrors.release(former)
    assert await world.mirrors.claim("still held") is None


async def test_a_deleted_datasets_table_is_dropped_and_forgotten(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.follow()
    await world.batch("d1", "b2")
    await world.revert("b1")
    await Catalog(world.database).delete_dataset(TENANT, "d1")

    await world.follow()

    assert world.tables.look(world.mirrored("d1")) is None
    assert await world.folders() == ["b2"]
    assert await Mirrors(world.database).of(["d1"]) == {}
    async with world.database.read() as connection:
        assert (await connection.execute(select(mirrors))).all() == []


async def test_the_table_of_a_dataset_that_comes_back_holds_all_that_counts(world: World) -> None:
    # given tables of datasets that are deleted: one table is dropped, of one the drop is under way, of one it is not
    catalog = Catalog(world.database)
    for name in ("d1", "d2", "d3"):
        await world.dataset(name)
        await world.batch(name, f"{name}-b1")
        await world.batch(name, f"{name}-b2")
    await world.follow()
    await catalog.delete_dataset(TENANT, "d1")
    await world.follow()
    await world.revert("d2-b1")
    await catalog.delete_dataset(TENANT, "d2")
    dropping = await world.mirrors.claim("dropping")
    assert dropping
    await catalog.delete_dataset(TENANT, "d3")

    # when they come back, and the drop that was under way ends after that
    for name in ("d1", "d2", "d3"):
        await catalog.undelete_dataset(TENANT, name)
    world.tables.drop(world.mirrored("d2"))
    await world.mirrors.dropped(dropping)
    await world.follow()

    # then each table holds what counts
    assert (dropping.dataset.id, dropping.drop) == ("d2", True)
    assert world.held("d1") == ["d1-b1", "d1-b2"]
    assert world.held("d2") == ["d2-b2"]
    assert world.held("d3") == ["d3-b1", "d3-b2"]
    for name in ("d1", "d2", "d3"):
        status = await world.status(name)
        assert (status.enabled, status.pending_changes, status.error_message) == (True, 0, "")


async def test_a_table_that_was_dropped_by_one_who_could_not_say_so_is_built_anew(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.follow()
    catalog = Catalog(world.database)
    await catalog.delete_dataset(TENANT, "d1")
    dropping = await world.mirrors.claim("dropping")
    assert dropping
    world.tables.drop(world.mirrored("d1"))
    await catalog.undelete_dataset(TENANT, "d1")
    await world.mirrors.release(dropping)

    await world.follow()

    assert world.held("d1") == ["b1"]


async def test_datasets_made_before_there_were_mirrors_are_mirrored_if_exports_write_to_them(
    empty_place: Place,
) -> None:
    # given a store of before
    await make_former_tables(empty_place, "0001")
    engine = engine_of(empty_place)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO tenants VALUES (1, 'o', 's', 0, NULL)"))
        for kind in ("record", "event", "union"):
            row = f"('{kind}', 1, 'n', '', 's', '', '{kind}', '{{}}', '[]', '{{}}', 0, 0, NULL, NULL)"
            await connection.execute(text(f"INSERT INTO datasets VALUES {row}"))

    # when the store is brought up to date
    await migrate(engine)

    # then
    async with engine.connect() as connection:
        query = select(datasets.c.kind).where(datasets.c.iceberg)
        found = (await connection.execute(query)).scalars().all()
    assert found == ["union"]


# --- Trouble ---


async def test_a_failure_is_told_and_tried_again_later(world: World) -> None:
    # given a batch whose file says another batch
    await world.dataset("d1")
    await world.batch("d1", "b1", [{"_batch_id": "other"}])

    # when the mirror tries twice
    await world.follow()
    first = await world.status("d1")
    assert not await world.mirror().step()  # not before its time
    await again_at_once(world)
    await world.follow()

    # then it says why, waits longer, and goes on once the trouble is over
    assert "does not say that its rows are of the batch 'b1'" in first.error_message
    assert first.pending_changes == 1
    async with world.database.read() as connection:
        assert (await connection.execute(select(mirrors.c.failures))).scalar() == 2
    await world.revert("b1")
    await world.batch("d1", "b2")
    await again_at_once(world)
    await world.follow()
    assert world.held("d1") == ["b2"]
    assert (await world.status("d1")).error_message == ""


async def test_an_unforeseen_failure_is_told_without_its_text(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    (world.data_dir / "lake" / "d1" / "b1" / "0.parquet").unlink()

    await world.follow()

    assert (await world.status("d1")).error_message == "FileNotFoundError; the server's log has it."


async def test_trouble_with_one_table_does_not_keep_another_waiting(world: World) -> None:
    await world.dataset("d1")
    await world.dataset("d2")
    await world.batch("d1", "b1", [{"_batch_id": "other"}])
    await world.batch("d2", "b2")

    await world.follow()

    assert world.held("d2") == ["b2"]


async def test_a_change_that_another_mirror_makes_first_is_decided_anew(world: World) -> None:
    # given a mirror that another one overtakes between its look and its commit, once
    await world.dataset("d1")
    await world.batch("d1", "b1")
    await world.follow()
    await world.batch("d1", "b2")
    overtaken = Overtaken(world.data_dir, HOUR, world.catalog_url)
    mirror = Mirror("slow", world.mirrors, overtaken, Threads(), world.lake, HOUR)

    # when
    await mirror.step()
    after_conflict = await world.status("d1")
    await mirror.step()

    # then the batch is there once, and nobody calls it an error
    assert world.held("d1") == ["b1", "b2"]
    assert (after_conflict.pending_changes, after_conflict.error_message) == (1, "")
    assert (await world.status("d1")).pending_changes == 0


async def test_a_mirror_whose_process_is_ended_as_it_stops_gives_its_work_back_without_an_error(
    world: World,
) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    supervisor = Supervisor()
    await supervisor.close()
    mirror = Mirror("ended", world.mirrors, world.tables, Pool(supervisor), world.lake, HOUR)
    mirror.stopping.set()

    await mirror.step()

    status = await world.status("d1")
    assert (status.pending_changes, status.error_message) == (1, "")
    await world.follow()
    assert world.held("d1") == ["b1"]


@pytest.mark.slow
async def test_a_mirror_works_in_a_process_of_its_own_and_in_the_next_when_that_dies(world: World) -> None:
    # given one that dies in the middle
    await world.dataset("d1")
    await world.batch("d1", "b1")
    supervisor = Supervisor()
    children = Pool(supervisor)
    dying = Mirror(
        "dying",
        world.mirrors,
        Dying(world.data_dir, HOUR, world.catalog_url),
        children,
        world.lake,
        HOUR,
    )
    await dying.step()
    told = (await world.status("d1")).error_message

    # when another one tries again in the same place
    await again_at_once(world)
    await Mirror("next", world.mirrors, world.tables, children, world.lake, HOUR).step()
    await supervisor.close()

    assert told == "The process that did the work has ended."
    assert world.held("d1") == ["b1"]
    assert (await world.status("d1")).error_message == ""


async def test_a_change_over_its_limits_is_tried_again_while_others_go_on(world: World) -> None:
    await world.dataset("d1")
    await world.batch("d1", "b1")
    supervisor = Supervisor()
    tight, roomy = Pool(supervisor, limits=TIGHT), Pool(supervisor)

    with capture_logs() as logs:
        await Mirror("tight", world.mirrors, world.tables, tight, world.lake, HOUR).step()
    told = (await world.status("d1")).error_message
    other = await roomy.run(len, "another's")
    at_once = await Mirror("next", world.mirrors, world.tables, roomy, world.lake, HOUR).step()
    await again_at_once(world)
    await Mirror("next", world.mirrors, world.tables, roomy, world.lake, HOUR).step()
    await supervisor.close()

    assert told == "It took more than 40 MB of memory."
    assert [(log["event"], log["reason"]) for log in logs] == [("mirror_failed", told)]
    assert other == 9
    assert not at_once
    assert world.held("d1") == ["b1"]
    assert (await world.status("d1")).error_message == ""


async def test_a_running_mirror_follows_when_it_is_woken_and_stops_when_told(world: World) -> None:
    await world.dataset("d1")
    mirror = world.mirror()
    running = asyncio.create_task(keep_at(mirror, world.wakeups, until=mirror.stopping))
    await world.batch("d1", "b1")
    world.wakeups.fire([None])
    while (await world.status("d1")).pending_changes:
        await asyncio.wait([running], timeout=0.01)

    mirror.stopping.set()
    await running

    assert world.held("d1") == ["b1"]
