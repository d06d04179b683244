"""A database and a lake belong together, or nothing starts and nothing changes."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from shutil import copyfile, rmtree

import asyncpg
import pytest

from profile_export.app.jobs import JobRunner
from profile_export.app.processes import StartError
from profile_export.config import load
from profile_export.processes.supervisor import Pool, Supervisor
from tests.contract.house import House, opened
from tests.databases import Place, Postgres

STORE = "store.sqlite"


@asynccontextmanager
async def started(
    data_dir: Path, place: Place | None = None, *, adopt: bool = False
) -> AsyncIterator[JobRunner]:
    """What a server and a worker open before anything else, and close."""
    url = place if isinstance(place, str) else None
    runner = JobRunner(load({"data_dir": str(data_dir), "database_url": url, "adopt_lake": adopt}, {}))
    try:
        await runner.open()
        yield runner
    finally:
        await runner.close()


async def refusal(data_dir: Path, place: Place | None = None) -> str:
    with pytest.raises(StartError) as caught:
        async with started(data_dir, place):
            pass
    return str(caught.value)


async def fill(data_dir: Path, place: Place | None = None) -> dict[Path, bytes]:
    """Start once and upload something; return the files."""
    async with started(data_dir, place):
        pass
    async with opened(House(data_dir, Pool(Supervisor()), place)) as house:
        await house.people(await house.dataset(), 1, 2)
    return lake(data_dir)


def lake(data_dir: Path) -> dict[Path, bytes]:
    """All files that belong to callers."""
    return {
        path: path.read_bytes()
        for top in ("lake", "uploads")
        for path in (data_dir / top).rglob("*")
        if path.is_file() and path.name != "instance"
    }


def instance(data_dir: Path) -> str:
    return (data_dir / "lake" / "instance").read_text()


def sizes(data_dir: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in data_dir.glob(f"{STORE}*")}


def moved_away(data_dir: Path) -> None:
    for file in data_dir.glob(f"{STORE}*"):
        file.rename(data_dir / f"away-{file.name}")


def truncated(data_dir: Path) -> None:
    (data_dir / STORE).write_bytes(b"")


def of_something_else(data_dir: Path) -> None:
    (data_dir / STORE).unlink()
    with closing(sqlite3.connect(data_dir / STORE)) as store:
        store.execute("CREATE TABLE t (x)")


@pytest.mark.parametrize("lose", [moved_away, truncated, of_something_else])
async def test_nothing_starts_beside_a_lake_whose_database_is_gone(
    tmp_path: Path, lose: Callable[[Path], None]
) -> None:
    before = await fill(tmp_path)
    copyfile(tmp_path / STORE, tmp_path / "backup")
    lose(tmp_path)
    there = sizes(tmp_path)

    line = await refusal(tmp_path)

    assert await refusal(tmp_path) == line
    assert "\n" not in line
    assert "--adopt-lake" in line
    assert "Restore the database" in line
    assert lake(tmp_path) == before
    assert sizes(tmp_path) == there
    copyfile(tmp_path / "backup", tmp_path / STORE)
    async with started(tmp_path):
        assert lake(tmp_path) == before


async def test_nothing_starts_beside_the_lake_of_another_installation(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    before = await fill(ours)
    await fill(theirs)
    copyfile(theirs / STORE, ours / STORE)

    assert "--adopt-lake" in await refusal(ours)
    assert lake(ours) == before


async def test_nothing_starts_where_a_copy_of_the_lake_lies_beside_a_new_database(tmp_path: Path) -> None:
    before = await fill(tmp_path)
    moved_away(tmp_path)
    (tmp_path / "lake" / "instance").unlink()

    assert "--adopt-lake" in await refusal(tmp_path)
    assert lake(tmp_path) == before


async def test_bytes_of_uploads_alone_are_reason_enough(tmp_path: Path) -> None:
    async with started(tmp_path):
        pass
    moved_away(tmp_path)
    (tmp_path / "uploads" / "a").write_bytes(b"sent")

    assert "--adopt-lake" in await refusal(tmp_path)
    assert lake(tmp_path) == {tmp_path / "uploads" / "a": b"sent"}


async def test_an_empty_lake_takes_any_database(tmp_path: Path) -> None:
    for _ in range(2):
        async with started(tmp_path) as runner:
            there = await runner.instances.get()
            assert there
            assert instance(tmp_path).strip() == there.id
        moved_away(tmp_path)


async def test_a_wrong_url_is_refused_with_nothing_made_and_the_right_one_goes_on(
    tmp_path: Path, postgres: Postgres
) -> None:
    async with postgres.database(with_tables=True) as right, postgres.database(with_tables=False) as empty:
        before = await fill(tmp_path, right)

        for wrong in (empty, None):
            assert "--adopt-lake" in await refusal(tmp_path, wrong)
        connection = await asyncpg.connect(empty)
        tables = await connection.fetchval("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        await connection.close()
        async with started(tmp_path, right):
            assert lake(tmp_path) == before
    assert tables == 0
    assert sizes(tmp_path) == {}


@pytest.mark.parametrize("lacks", [("database",), ("lake",), ("database", "lake")])
async def test_an_installation_without_an_id_is_taken_for_what_it_is(
    tmp_path: Path, place: Place, lacks: tuple[str, ...]
) -> None:
    # given what an older version, a backup that it made, or a start that broke off has left
    before = await fill(tmp_path, place)
    if "lake" in lacks:
        (tmp_path / "lake" / "instance").unlink()
    if "database" in lacks:
        await forget_instance(tmp_path, place)

    # when it starts, twice
    ids = set()
    for _ in range(2):
        async with started(tmp_path, place):
            ids.add(instance(tmp_path))

    # then it is one installation from here on
    assert len(ids) == 1
    assert lake(tmp_path) == before


async def forget_instance(data_dir: Path, place: Place) -> None:
    statement = "DELETE FROM instance"
    if isinstance(place, str):
        connection = await asyncpg.connect(place)
        await connection.execute(statement)
        await connection.close()
    else:
        with closing(sqlite3.connect(data_dir / STORE)) as store, store:
            store.execute(statement)


async def test_an_adopted_lake_is_the_databases_from_then_on(tmp_path: Path) -> None:
    before = await fill(tmp_path)
    graph = tmp_path / "lake" / "graphs" / "1" / "x.parquet"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(b"of another tenant 1")
    truncated(tmp_path)

    async with started(tmp_path, adopt=True):
        adopted = instance(tmp_path)
    async with started(tmp_path):
        assert instance(tmp_path) == adopted

    assert lake(tmp_path) == before


@pytest.mark.slow
async def test_a_lake_that_another_databases_server_uses_is_not_adopted(
    tmp_path: Path, postgres: Postgres
) -> None:
    async with postgres.database(with_tables=False) as ours, postgres.database(with_tables=False) as wrong:
        before = await fill(tmp_path, ours)
        async with started(tmp_path, ours), started(tmp_path, ours, adopt=True):
            of = instance(tmp_path)
            for other in (wrong, None):
                with pytest.raises(StartError, match="of another database uses"):
                    async with started(tmp_path, other, adopt=True):
                        pass
            assert instance(tmp_path) == of
            async with started(tmp_path, ours):
                assert lake(tmp_path) == before

        async with started(tmp_path, wrong, adopt=True):
            assert instance(tmp_path) != of


def not_mounted(data_dir: Path) -> None:
    """What stands in the place of a folder of the network that is away."""
    (data_dir / "lake").rename(data_dir / "away")
    (data_dir / "lake").mkdir()


def another_empty_one(data_dir: Path) -> None:
    not_mounted(data_dir)
    (data_dir / "lake" / "instance").write_text("another\n")


def gone(data_dir: Path) -> None:
    (data_dir / "lake").rename(data_dir / "away")


def gone_while_bytes_of_uploads_are_there(data_dir: Path) -> None:
    gone(data_dir)
    (data_dir / "uploads" / "a").write_bytes(b"sent")


@pytest.mark.parametrize(
    "lose", [not_mounted, another_empty_one, gone, gone_while_bytes_of_uploads_are_there]
)
async def test_nothing_starts_beside_a_database_whose_lake_is_gone(
    tmp_path: Path, place: Place, lose: Callable[[Path], None]
) -> None:
    before = await fill(tmp_path, place)
    lose(tmp_path)
    there = sorted((tmp_path / "lake").rglob("*"))

    line = await refusal(tmp_path, place)

    assert await refusal(tmp_path, place) == line
    assert "\n" not in line
    assert "--adopt-lake" in line
    assert sorted((tmp_path / "lake").rglob("*")) == there
    rmtree(tmp_path / "lake", ignore_errors=True)
    (tmp_path / "away").rename(tmp_path / "lake")
    (tmp_path / "uploads" / "a").unlink(missing_ok=True)
    async with started(tmp_path, place):
        assert lake(tmp_path) == before


async def test_a_lake_that_is_gone_for_good_is_given_up_on_purpose_and_once(
    tmp_path: Path, place: Place
) -> None:
    await fill(tmp_path, place)
    gone(tmp_path)

    async with started(tmp_path, place, adopt=True) as runner:
        there = await runner.instances.get()
    async with started(tmp_path, place):
        assert there
        assert instance(tmp_path).strip() == there.id


async def test_a_database_that_names_no_files_needs_no_lake(tmp_path: Path, place: Place) -> None:
    async with started(tmp_path, place):
        pass
    async with opened(House(tmp_path, Pool(Supervisor()), place)) as house:
        await house.dataset()
    rmtree(tmp_path / "lake")

    async with started(tmp_path, place) as runner:
        there = await runner.instances.get()
        assert there
        assert instance(tmp_path).strip() == there.id


async def test_processes_that_start_at_once_agree(tmp_path: Path, postgres: Postgres) -> None:
    async with (
        postgres.database(with_tables=False) as url,
        started(tmp_path, url) as one,
        started(tmp_path, url) as another,
    ):
        assert await one.instances.get() == await another.instances.get()
