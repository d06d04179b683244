"""What no row ever named is moved, kept for its time and told; what one did name leaves the disk at once."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from shutil import copyfile

import asyncpg
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from profile_export.application.loading import Loading, RowLimits
from profile_export.domain.catalog.batches import MERGED_FROM, BatchState
from profile_export.ingest.task import Expense
from profile_export.lake.local import Trash
from profile_export.processes.supervisor import Pool, Supervisor
from profile_export.runner.belonging import Belonging
from profile_export.runner.leftovers import Leftovers, StoreAndLake
from profile_export.store.catalog.schemas import Schemas
from profile_export.store.db.database import Instance, Instances
from profile_export.store.files.folders import Named
from tests.contract.house import TENANT, UNION, House, opened
from tests.contract.test_sweep import Attempted
from tests.databases import Place, Postgres

DAYS = timedelta(days=30)
NOBODY_ELSE = timedelta(0)


@dataclass
class Keeper:
    """A house with what clears it up."""

    house: House

    async def start(self) -> None:
        """Become an installation, as a first start does."""
        instances = Instances(self.house.database)
        belonging = Belonging(instances, Named(self.house.database), self.house.lake, adopt=False)
        await belonging.settle(Instance("1", b"key"))

    @property
    def leftovers(self) -> Leftovers:
        house, database = self.house, self.house.database
        loading = Loading(
            house.catalog,
            Schemas(database),
            house.uploads,
            house.lake,
            house.children,
            RowLimits(100_000, 10_000),
            Expense(),
            house.new_id,
        )
        both = StoreAndLake(
            Instances(database), Named(database), house.compactions, house.dropped, house.lake
        )
        return Leftovers(both, loading, DAYS)

    def put(self, path: str, content: bytes = b"PAR1") -> None:
        place = self.house.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    def files(self) -> set[str]:
        """What lies in the lake and among the uploads, as paths in the data directory."""
        return {
            str(path.relative_to(self.house.folder))
            for top in ("lake", "uploads")
            for path in (self.house.folder / top).rglob("*")
            if path.is_file() and path.name != "instance"
        }

    def trash(self) -> set[str]:
        """What lies in the trash, by the former paths."""
        return {path.partition("/")[2] for path in self.house.lake.trash()}


@pytest_asyncio.fixture
async def keeper(tmp_path: Path, place: Place) -> AsyncIterator[Keeper]:
    async with opened(House(tmp_path, Pool(Supervisor()), place)) as house:
        made = Keeper(house)
        await made.start()
        yield made


STRANGE = (
    "lake/{dataset}/manual/deep/er/x.csv",
    "lake/somebody/else/x.parquet",
    "lake/0123456789abcdef01234567/0123456789abcdef01234567/1/0-0.parquet",
    "lake/estimates/mine/x.parquet",
    "lake/mappings/mine/x.txt",
    "uploads/mine.jsonl",
    "uploads/folder/of/mine.jsonl",
)


async def test_what_nobody_named_is_moved_and_said(keeper: Keeper) -> None:
    dataset = await keeper.house.dataset()
    await keeper.house.people(dataset, 1, 2)
    keeper.put(f"lake/{dataset}/a_file_in_nobodys_way.txt")
    before = keeper.files()
    strange = {path.format(dataset=dataset) for path in STRANGE}
    for path in strange:
        keeper.put(path)

    with capture_logs() as said:
        await keeper.leftovers.clear(NOBODY_ELSE)

    assert keeper.files() == before
    assert keeper.trash() == strange
    [line] = [one for one in said if one["event"] == "moved_to_trash"]
    assert f"lake/{dataset}/manual" in line["paths"]
    with capture_logs() as said:
        await keeper.leftovers.clear(NOBODY_ELSE)
    assert said == []


async def test_what_somebody_has_linked_into_the_lake_is_left_alone(keeper: Keeper, tmp_path: Path) -> None:
    await keeper.start()
    elsewhere = tmp_path / "elsewhere" / "kept"
    elsewhere.mkdir(parents=True)
    (elsewhere / "file").write_bytes(b"not ours")
    keeper.put("lake/d1/b1/00000.parquet")
    for name, to in (("linked", elsewhere.parent), ("alias", keeper.house.lake.root)):
        (keeper.house.lake.root / name).symlink_to(to)
    (keeper.house.lake.root / "d1" / "inner").symlink_to(elsewhere)

    with capture_logs() as logs:
        await keeper.leftovers.clear(NOBODY_ELSE)

    assert (elsewhere / "file").read_bytes() == b"not ours"
    [moved] = [log for log in logs if log["event"] == "moved_to_trash"]
    assert moved["paths"] == ["lake/d1/b1"]


async def test_what_somebody_may_be_writing_is_left_alone(keeper: Keeper) -> None:
    keeper.put("lake/d/young/1/0-0.parquet")

    await keeper.leftovers.clear(timedelta(hours=1))

    assert keeper.files() == {"lake/d/young/1/0-0.parquet"}


@pytest.mark.parametrize("state", [BatchState.ABORTED, BatchState.FAILED, BatchState.REVERTED])
async def test_what_an_ended_batch_left_leaves_the_disk_at_once(keeper: Keeper, state: BatchState) -> None:
    dataset = await keeper.house.dataset()
    await keeper.house.people(dataset, 1, 2)
    keeper.put("uploads/p1", b"sent")
    await keeper.house.ended("p1", state)

    await keeper.leftovers.clear(NOBODY_ELSE)

    assert all(path.startswith(f"lake/{dataset}/p2/") for path in keeper.files())
    assert keeper.trash() == set()


async def test_what_was_made_for_one_call_leaves_the_disk_at_once(keeper: Keeper) -> None:
    for top in ("estimates", "mappings"):
        keeper.put(f"lake/{top}/{'a' * 24}/spill/0.tmp")

    await keeper.leftovers.clear(NOBODY_ELSE)

    assert keeper.files() == set()
    assert keeper.trash() == set()


async def test_a_merge_that_broke_off_leaves_the_disk_at_once(keeper: Keeper) -> None:
    # given a server that dies in a merge
    dataset = await keeper.house.dataset()
    await keeper.house.people(dataset, *range(MERGED_FROM))
    before = keeper.files()
    folder = f"{dataset}/merged"
    await keeper.house.compactions.begin(folder)
    keeper.put(f"lake/{folder}/00000.parquet")
    await keeper.house.compactions.begin(f"{dataset}/not_a_byte_yet")

    # when others are at work, and when nobody is
    await keeper.leftovers.clear(timedelta(hours=1))
    assert f"lake/{folder}/00000.parquet" in keeper.files()
    await keeper.leftovers.clear(NOBODY_ELSE)

    assert keeper.files() == before
    assert keeper.trash() == set()
    assert await keeper.house.compactions.begun(NOBODY_ELSE) == []


async def test_a_merge_that_was_committed_is_named_once(keeper: Keeper) -> None:
    dataset = await keeper.house.dataset()
    await keeper.house.people(dataset, *range(MERGED_FROM))
    assert await keeper.house.compact() == 1
    before = keeper.files()

    await keeper.leftovers.clear(NOBODY_ELSE)

    assert keeper.files() == before
    assert await keeper.house.compactions.begun(NOBODY_ELSE) == []


async def test_a_batch_keeps_what_is_no_attempts_from_being_tidied_up(keeper: Keeper) -> None:
    dataset = await keeper.house.dataset()
    folder = f"lake/{dataset}/b"
    for path in ("notes.txt", "1/0-0.parquet", "2/0-0.parquet", "copy/0-0.parquet"):
        keeper.put(f"{folder}/{path}")

    keeper.house.lake.keep_only(f"{dataset}/b", [f"{dataset}/b/2/0-0.parquet"])

    assert keeper.files() == {f"{folder}/2/0-0.parquet"}
    assert keeper.trash() == {f"{folder}/notes.txt", f"{folder}/copy/0-0.parquet"}


async def test_nothing_is_judged_by_a_database_that_lost_the_lake(keeper: Keeper) -> None:
    keeper.put("lake/d/b/1/0-0.parquet")
    keeper.house.lake.become("another")

    with capture_logs() as said:
        await keeper.leftovers.clear(NOBODY_ELSE)

    assert keeper.files() == {"lake/d/b/1/0-0.parquet"}
    assert [line["event"] for line in said] == ["lake_of_another_database"]


# --- An older backup ---


async def test_what_was_committed_after_a_backup_is_kept_when_the_backup_takes_its_place(
    tmp_path: Path, place: Place, postgres: Postgres
) -> None:
    # given a backup between two batches, while a third was loaded and a fourth exported
    async with opened(House(tmp_path, Pool(Supervisor()), place)) as house:
        await Keeper(house).start()
        dataset, union = await house.dataset(), await house.dataset(UNION)
        await house.people(dataset, 1)
        await house.uploads.create_batch(TENANT, dataset, "open", "", f"{dataset}/open")
    async with backup_of(tmp_path, place, postgres) as backup:
        async with opened(House(tmp_path, Pool(Supervisor()), place)) as house:
            house.numbers = count(1_000)
            keeper = Keeper(house)
            await house.upload(dataset, "after", {"crmId": "C2"})
            keeper.put(f"lake/{dataset}/open/{'b' * 24}/00000.parquet", b"committed later")
            before = keeper.files()
            hours_ago = time.time() - 7_200
            for path in (tmp_path / "lake").rglob("*"):
                os.utime(path, (hours_ago, hours_ago))

        # when it takes the place of the database
        async with opened(House(tmp_path, Pool(Supervisor()), restored(tmp_path, backup))) as house:
            keeper = Keeper(house)
            await keeper.start()
            await keeper.leftovers.step()
            await house.sweep()

            # then nothing is lost
            assert keeper.trash() == {
                path for path in before if path.startswith((f"lake/{dataset}/after", f"lake/{dataset}/open"))
            }
            assert keeper.files() | keeper.trash() == before
    assert union


async def test_an_export_that_has_counted_is_kept_when_a_backup_says_that_it_runs(keeper: Keeper) -> None:
    # given a database that knows one of two files of an export, beside a receipt of both
    folder = await exporting(keeper)
    for path in ("1/recorded", "1/left", "receipt.json"):
        keeper.put(f"lake/{folder}/{path}")

    await keeper.leftovers.clear(NOBODY_ELSE)

    assert keeper.files() == {f"lake/{folder}/1/recorded"}
    assert keeper.trash() == {f"lake/{folder}/1/left", f"lake/{folder}/receipt.json"}


async def test_what_an_export_under_way_has_written_is_left_to_the_sweeper(keeper: Keeper) -> None:
    folder = await exporting(keeper)
    for path in ("1/recorded", "1/left"):
        keeper.put(f"lake/{folder}/{path}")
    before = keeper.files()

    await keeper.leftovers.clear(NOBODY_ELSE)

    assert keeper.files() == before


# --- Its end ---


def test_the_trash_goes_when_its_name_says_so_and_nothing_else_does(tmp_path: Path) -> None:
    trash = Trash(tmp_path)
    (tmp_path / "lake" / "d").mkdir(parents=True)
    (tmp_path / "lake" / "d" / "x").write_bytes(b"x")
    trash.put(["lake/d", "lake/not_there"])
    [folder] = (tmp_path / "trash").iterdir()
    now = datetime.now(UTC)
    for name in ("mine", "20200101T000000Z", "20200101T000000Z-XYZ", f"x{folder.name}"):
        (tmp_path / "trash" / name).mkdir()
    (tmp_path / "trash" / "20200101T000000Z-00000000").symlink_to(tmp_path / "trash" / "mine")
    (tmp_path / "trash" / "20200101T000000Z-00000001").write_bytes(b"a file")

    assert trash.empty(now + timedelta(days=29), DAYS) == []
    assert (folder / "lake" / "d" / "x").read_bytes() == b"x"
    assert trash.empty(now + timedelta(days=31), DAYS) == [folder.name]
    assert len(list((tmp_path / "trash").iterdir())) == 6


def test_what_cannot_be_moved_stays_and_is_said(tmp_path: Path) -> None:
    (tmp_path / "lake").mkdir()
    (tmp_path / "lake" / "x").write_bytes(b"x")
    (tmp_path / "trash").write_bytes(b"no folder")

    with capture_logs() as said:
        Trash(tmp_path).put(["lake/x"])

    assert (tmp_path / "lake" / "x").exists()
    assert [line["event"] for line in said] == ["not_moved_to_trash"]


async def exporting(keeper: Keeper) -> str:
    """Begin an export whose first attempt has recorded a file; return the folder of its batch."""
    attempted = await Attempted.at(keeper.house)
    folder = attempted.claim.folders["b"]
    for left in attempted.folder.iterdir():
        left.unlink()
    return folder


@asynccontextmanager
async def backup_of(data_dir: Path, place: Place, postgres: Postgres) -> AsyncIterator[Place]:
    """Copy a store that nobody has open."""
    if isinstance(place, Path):
        copyfile(place / "store.sqlite", data_dir / "backup")
        yield data_dir / "backup"
        return
    async with postgres.database(with_tables=False) as url:
        name, copy = (one.partition("?")[0].rpartition("/")[2] for one in (place, url))
        connection = await asyncpg.connect(postgres.url("postgres"))
        await connection.execute(f"DROP DATABASE {copy}")
        await connection.execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
        await connection.close()
        yield url


def restored(data_dir: Path, backup: Place) -> Place:
    if isinstance(backup, str):
        return backup
    copyfile(backup, data_dir / "store.sqlite")
    return data_dir
