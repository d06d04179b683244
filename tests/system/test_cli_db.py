"""`profile-export db`: how a store stands, its upgrade, and whether it agrees with its files; also beside a server."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from profile_export.store.db.database import Database
from tests.databases import Place, Postgres, make_former_tables
from tests.system.terminal import Terminal, served

HERE = Terminal("127.0.0.1:1", "")


def options(data_dir: Path, url: str | None) -> tuple[str, ...]:
    return ("--data-dir", str(data_dir), *(("--database-url", url) if url else ()))


def asked(data_dir: Path, command: str, url: str | None = None, code: int = 0) -> dict[str, object]:
    done = HERE.type("db", command, *options(data_dir, url), "--json")
    assert (done.returncode, done.stderr) == (code, "")
    found: dict[str, object] = json.loads(done.stdout)
    return found


def refused(data_dir: Path, command: str, url: str | None = None) -> str:
    done = HERE.type("db", command, *options(data_dir, url))
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    return line


def fill(address: str, folder: Path) -> None:
    terminal = Terminal(address, "prod")
    source = terminal.get("datasets", "create", "CRM", "--kind", "record", "--primary", "id=Test")
    rows = folder / "rows.jsonl"
    rows.write_text('{"id": "1"}\n')
    for number in range(3):
        assert not terminal.type("datasets", "upload", source, rows, "--batch-id", f"b{number}").returncode


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory that a server has left, after it was asked about."""
    folder = tmp_path_factory.mktemp("filled")
    with served(folder) as (_, address):
        fill(address, folder)
        data_dir = folder / "data"
        running = asked(data_dir, "status")
        assert running["in_use"] is True
        assert running["revision"] == running["newest_revision"]
        assert running["database_instance"] == running["lake_instance"] is not None
        assert asked(data_dir, "check")["agree"] is True
        assert "Others have the database open" in refused(data_dir, "upgrade")
    return data_dir


@pytest.mark.slow
def test_after_a_server_has_ended_nobody_has_it_open(filled: Path) -> None:
    there = sorted(path.name for path in filled.iterdir())

    assert asked(filled, "status")["in_use"] is False
    up_to_date = asked(filled, "upgrade")
    assert up_to_date["from"] == up_to_date["to"]
    assert sorted(path.name for path in filled.iterdir()) == there


@pytest.mark.slow
def test_what_differs_is_listed_and_ends_with_one(filled: Path) -> None:
    first, second, _ = sorted((filled / "lake").glob("*/*/*/*.parquet"))
    kept = first.read_bytes(), second.read_bytes()
    first.unlink()
    second.write_bytes(b"PAR1")
    strange = (
        filled / "lake" / "x" / "y" / "z.parquet",
        filled / "uploads" / "u",
        filled / "trash" / "t" / "v",
    )
    for path in strange:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    (filled / "lake" / "instance").write_text("another\n")

    found = asked(filled, "check", code=1)
    told = HERE.type("db", "check", *options(filled, None))

    lake = filled / "lake"
    assert found["missing"] == [str(first.relative_to(lake))]
    assert found["other_size"] == [str(second.relative_to(lake))]
    assert found["unknown_folders"] == ["x/y"]
    assert found["unknown_uploads"] == ["u"]
    assert found["trash"] == ["t/v"]
    assert (found["same_instance"], found["agree"]) == (False, False)
    assert told.returncode == 1
    for said in (str(first.relative_to(lake)), "x/y", "t/v", "do not agree", "another database"):
        assert said in told.stdout
    first.write_bytes(kept[0])
    second.write_bytes(kept[1])


async def former(tmp_path: Path, place: Place) -> str | None:
    await make_former_tables(place, "0013")
    (tmp_path / "lake").mkdir(exist_ok=True)
    return place if isinstance(place, str) else None


async def test_a_former_store_is_upgraded(tmp_path: Path, empty_place: Place) -> None:
    url = await former(tmp_path, empty_place)

    before = await asyncio.to_thread(asked, tmp_path, "status", url)
    line = await asyncio.to_thread(refused, tmp_path, "check", url)
    upgraded = await asyncio.to_thread(asked, tmp_path, "upgrade", url)
    after = await asyncio.to_thread(asked, tmp_path, "status", url)

    assert before["revision"] == upgraded["from"] == "0013"
    assert "another version" in line
    assert before["newest_revision"] == upgraded["to"] == after["revision"] == after["newest_revision"]
    assert before["in_use"] is after["in_use"] is False


@pytest.mark.slow
async def test_a_server_with_postgresql_is_seen(tmp_path: Path, postgres: Postgres) -> None:
    async with postgres.database(with_tables=True) as url:

        def look() -> list[dict[str, object]]:
            with served(tmp_path, "--database-url", url):
                return [asked(tmp_path / "data", "status", url), asked(tmp_path / "data", "check", url)]

        status, check = await asyncio.to_thread(look)

    assert status["in_use"] is True
    assert check["agree"] is True


@pytest.mark.parametrize("command", ["status", "upgrade", "check"])
def test_a_store_that_cannot_be_read_is_one_sentence(tmp_path: Path, command: str) -> None:
    (tmp_path / "store.sqlite").write_text("no database\n" * 1000)
    assert "damaged" in refused(tmp_path, command)

    assert "is required" in refused_without_folder(command)
    line = refused(tmp_path, command, "postgresql://me:password@127.0.0.1:1/x")
    assert "See that it runs where --database-url says" in line
    assert "password" not in line


def test_a_lake_that_is_no_folder_is_one_sentence_with_a_way_out(
    tmp_path: Path, file_with_tables: Path
) -> None:
    (tmp_path / "store.sqlite").write_bytes(file_with_tables.read_bytes())
    (tmp_path / "lake").write_text("")

    line = refused(tmp_path, "status")

    assert "lake/instance: Not a directory. Move away what is no folder on the way there" in line


@pytest.mark.parametrize("command", ["status", "check"])
async def test_a_store_that_lacks_a_table_is_one_sentence_with_a_way_out(
    tmp_path: Path, place: Place, command: str
) -> None:
    database = Database(place)
    async with database.write() as connection:
        await connection.execute(text("ALTER TABLE instance RENAME TO gone"))
    await database.close()
    url = place if isinstance(place, str) else None

    line = await asyncio.to_thread(refused, tmp_path, command, url)

    assert "put a backup of it in its place" in line


def refused_without_folder(command: str) -> str:
    done = HERE.type("db", command)
    assert done.returncode == 2
    return done.stderr


def test_a_newer_store_is_shown_and_not_touched(tmp_path: Path, file_with_tables: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(file_with_tables.read_bytes())
    with closing(sqlite3.connect(tmp_path / "store.sqlite")) as store, store:
        store.execute("UPDATE alembic_version SET version_num = '9999'")

    assert asked(tmp_path, "status")["revision"] == "9999"
    assert "newer version" in refused(tmp_path, "upgrade")


def test_where_there_is_nothing_nothing_is_made(tmp_path: Path) -> None:
    for command in ("upgrade", "check"):
        assert "There is no store" in refused(tmp_path / "data", command)

    assert asked(tmp_path / "data", "status")["revision"] is None
    assert list(tmp_path.iterdir()) == []
