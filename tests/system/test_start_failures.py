"""Whatever keeps a process from starting is told in one sentence with a way out, and it ends with 2."""

from __future__ import annotations

import os
import resource
import socket
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import copyfile

import pytest

from tests.databases import Postgres
from tests.system.terminal import COMMAND, Terminal, environment

TERMINAL = Terminal("127.0.0.1:1", "")
PAGE = 4096


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory, file_with_tables: Path) -> Path:
    """A database of the present version."""
    folder = tmp_path_factory.mktemp("former")
    copyfile(file_with_tables, folder / "store.sqlite")
    with closing(sqlite3.connect(folder / "store.sqlite")) as store:
        store.execute("PRAGMA journal_mode=WAL")
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return folder / "store.sqlite"


def sentence(*words: str | Path) -> str:
    """Start what cannot start, and return what it says."""
    done = TERMINAL.type(*words)
    return told(done)


def told(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("profile-export: ")
    assert "Traceback" not in line
    assert line.endswith((".", ")."))
    return line


def serve(data_dir: Path, *options: str) -> str:
    return sentence("serve", "--data-dir", data_dir, "--grpc-address", "127.0.0.1:0", *options)


# --- The file ---


def bad_header(store: Path) -> None:
    overwrite(store, 0, b"no header of SQLite's")


def bad_page(store: Path) -> None:
    size = store.stat().st_size
    overwrite(store, PAGE, os.urandom(size - PAGE))


def bad_schema_page(store: Path) -> None:
    overwrite(store, 100, b"\xff" * (PAGE - 100))


def cut_in_a_page(store: Path) -> None:
    os.truncate(store, PAGE + 1000)


def cut_between_pages(store: Path) -> None:
    os.truncate(store, 3 * PAGE)


def text(store: Path) -> None:
    store.write_text("no database\n" * 1000)


def directory(store: Path) -> None:
    store.unlink()
    store.mkdir()


def wal_is_a_directory(store: Path) -> None:
    store.with_name("store.sqlite-wal").mkdir()


def newer(store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def without_a_table(store: Path) -> None:
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("DROP TABLE mirrored_batches")
        connection.execute("DROP TABLE mirrors")


def overwrite(store: Path, at: int, content: bytes) -> None:
    with store.open("r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize(
    ("damage", "say"),
    [
        (bad_header, "damaged"),
        (bad_page, "damaged"),
        (bad_schema_page, "damaged"),
        (cut_in_a_page, "damaged"),
        (cut_between_pages, "damaged"),
        (text, "damaged"),
        (directory, "cannot be opened"),
        (wal_is_a_directory, "store.sqlite"),
        (newer, "newer version"),
        (without_a_table, "lacks what its version has (no such table: mirrors): put a backup"),
    ],
)
def test_a_store_that_cannot_be_read(
    tmp_path: Path, former: Path, damage: Callable[[Path], None], say: str
) -> None:
    copyfile(former, tmp_path / "store.sqlite")
    damage(tmp_path / "store.sqlite")

    assert say in serve(tmp_path)


@pytest.mark.parametrize("name", ["store.sqlite-wal", "store.sqlite-shm"])
def test_rubbish_beside_the_store_does_no_harm_or_is_told(tmp_path: Path, former: Path, name: str) -> None:
    copyfile(former, tmp_path / "store.sqlite")
    (tmp_path / name).write_bytes(os.urandom(40_000))

    # A port that is taken ends the start after the store was opened.
    with taken_port() as port:
        line = sentence("serve", "--data-dir", tmp_path, "--grpc-address", f"127.0.0.1:{port}")

    assert "Cannot listen on" in line


@pytest.mark.slow
def test_a_store_that_another_program_holds(
    tmp_path: Path, former: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile(former, tmp_path / "store.sqlite")
    with closing(sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        line = serve(tmp_path)

    assert "another program has it locked" in line


# --- The folder ---


def a_file(data_dir: Path) -> None:
    data_dir.write_text("")


def a_broken_link(data_dir: Path) -> None:
    data_dir.symlink_to(data_dir.with_name("nowhere") / "at" / "all" / "\xff")
    data_dir.with_name("nowhere").write_text("")


def below_a_file(data_dir: Path) -> None:
    data_dir.parent.rmdir()
    data_dir.parent.write_text("")


def a_loop(data_dir: Path) -> None:
    data_dir.symlink_to(data_dir)


def a_lock_that_is_a_folder(data_dir: Path) -> None:
    (data_dir / "lock").mkdir(parents=True)


def a_lake_that_is_a_file(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "lake").write_text("")


def uploads_that_are_a_file(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "uploads").write_text("")


def a_trash_that_is_a_file(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "trash").write_text("")


def tables_that_are_a_broken_link(data_dir: Path) -> None:
    data_dir.mkdir()
    (data_dir / "iceberg").symlink_to("nowhere")


def an_instance_that_is_a_folder(data_dir: Path) -> None:
    (data_dir / "lake" / "instance" / "x").mkdir(parents=True)


@pytest.mark.parametrize(
    ("spoil", "way_out"),
    [
        (a_file, "name a folder with --data-dir"),
        (a_broken_link, "name a folder with --data-dir"),
        (below_a_file, "name a folder with --data-dir"),
        (a_loop, "--data-dir"),
        (a_lock_that_is_a_folder, "lock is no plain file: move away what is there"),
        (a_lake_that_is_a_file, "lake/instance: Not a directory. Move away what is no folder"),
        (uploads_that_are_a_file, "uploads: File exists. Move away what is no folder"),
        (a_trash_that_is_a_file, "trash: Not a directory. Move away what is no folder"),
        (tables_that_are_a_broken_link, "iceberg: Not a directory. Move away what is no folder"),
        (an_instance_that_is_a_folder, "--adopt-lake"),
    ],
)
def test_a_folder_that_cannot_be_used(tmp_path: Path, spoil: Callable[[Path], None], way_out: str) -> None:
    (tmp_path / "in").mkdir()
    data_dir = tmp_path / "in" / "data"
    spoil(data_dir)

    line = serve(data_dir)

    assert str(data_dir) in line
    assert way_out in line


def a_pipe(place: Path) -> None:
    os.mkfifo(place)


def a_link_to_a_device(place: Path) -> None:
    place.symlink_to(os.devnull)


def a_link_to_itself(place: Path) -> None:
    place.symlink_to(place)


def a_link_that_leads_nowhere(place: Path) -> None:
    place.symlink_to("nowhere")


@pytest.mark.parametrize("make", [a_pipe, a_link_to_a_device, a_link_to_itself, a_link_that_leads_nowhere])
@pytest.mark.parametrize(
    ("name", "say"),
    [
        ("store.sqlite", "cannot be opened: it is no plain file. Put the database, or a backup of it"),
        ("store.sqlite-wal", "cannot be opened: it is no plain file. Put the database, or a backup of it"),
        ("lock", "is no plain file: move away what is there"),
        ("lake.lock", "is no plain file: move away what is there"),
        ("lake/instance", "is no plain file: move away what is there"),
    ],
)
def test_what_has_to_be_a_plain_file_and_is_none(
    tmp_path: Path, name: str, say: str, make: Callable[[Path], None]
) -> None:
    (tmp_path / "lake").mkdir()
    make(tmp_path / name)

    line = serve(tmp_path)

    assert f"{tmp_path / name} {say}" in line
    assert not (tmp_path / "nowhere").exists()
    assert "--adopt-lake" not in line


@pytest.mark.parametrize("name", ["lock", "lake.lock"])
def test_a_link_in_the_place_of_a_lock_costs_nobody_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "letters").write_text("of somebody")
    (tmp_path / name).symlink_to("letters")

    assert "is no plain file" in serve(tmp_path)
    assert (tmp_path / "letters").read_text() == "of somebody"


@pytest.mark.parametrize("name", ["store.sqlite", "lock", "lake/instance"])
def test_a_question_about_the_database_waits_for_no_pipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "lake").mkdir()
    a_pipe(tmp_path / name)

    assert "is no plain file" in sentence("db", "status", "--data-dir", tmp_path)


@pytest.mark.slow
def test_a_disk_without_room(tmp_path: Path) -> None:
    """No file may grow beyond some kilobytes, which is what a full disk does to a database."""

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = subprocess.run(
        [*COMMAND, "serve", "--data-dir", str(tmp_path / "data"), "--grpc-address", "127.0.0.1:0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(),
        preexec_fn=no_room,
    )

    assert "disk" in told(done)


# --- The address, the variables ---


@contextmanager
def taken_port() -> Iterator[int]:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with taken_port() as port:
        line = sentence("serve", "--data-dir", tmp_path, "--grpc-address", f"127.0.0.1:{port}")

    assert f"127.0.0.1:{port}" in line


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--grpc-address", "no.such.host.invalid:1"),
        ("--grpc-address", "127.0.0.1:99999"),
        ("--workers", "many"),
        ("--trash-days", "0"),
        ("--log-level", "loud"),
        ("--database-url", "mysql://me:password@there/x"),
        ("--database-url", "postgresql://me:pass#word@there/x"),
    ],
)
def test_a_value_that_cannot_be_used(tmp_path: Path, option: str, value: str) -> None:
    line = sentence("serve", "--data-dir", tmp_path, "--insecure", option, value)

    assert option in line
    assert "password" not in line


# --- PostgreSQL ---


@pytest.mark.parametrize("command", ["serve", "worker"])
@pytest.mark.parametrize(
    ("url", "say"),
    [
        ("postgresql://me:password@127.0.0.1:1/x", "cannot be reached"),
        ("postgresql://me:password@no.such.host.invalid/x", "cannot be reached"),
        ("postgresql://me:password@127.0.0.1:1/x?sslmode=perhaps", "cannot be read"),
        ("postgresql://me:password@127.0.0.1:1,127.0.0.1:x/x", "cannot be read"),
    ],
)
@pytest.mark.slow
def test_a_database_that_is_not_there(tmp_path: Path, command: str, url: str, say: str) -> None:
    line = sentence(command, "--data-dir", tmp_path / "data", "--database-url", url)

    assert say in line
    assert "password" not in line


@pytest.mark.parametrize("option", ["sslrootcert", "sslcert", "sslkey", "sslcrl"])
def test_a_file_of_tls_that_cannot_be_read(tmp_path: Path, option: str) -> None:
    place = tmp_path / "file.pem"
    for make in (None, a_pipe, Path.mkdir):
        if make:
            make(place)
        url = f"postgresql://me:password@127.0.0.1:1/x?sslmode=verify-full&{option}={place}"
        line = sentence("worker", "--data-dir", tmp_path / "data", "--database-url", url)

        assert f"The file {place}, which {option} in --database-url names, cannot be read" in line
        assert "password" not in line
        if place.exists() and not place.is_dir():
            place.unlink()


def test_a_file_of_tls_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "file.pem").write_text("no certificate")
    url = f"postgresql://me:password@127.0.0.1:1/x?sslmode=verify-full&sslrootcert={tmp_path / 'file.pem'}"

    line = sentence("worker", "--data-dir", tmp_path / "data", "--database-url", url)

    assert "TLS fails with NO_CERTIFICATE_OR_CRL_FOUND" in line
    assert "sslrootcert" in line


@pytest.mark.slow
async def test_a_database_that_lets_nobody_in(tmp_path: Path, postgres: Postgres) -> None:
    there = postgres.url("postgres")
    joint = "&" if "?" in there else "?"
    for url, say in (
        (postgres.url("no_such_database"), 'database "no_such_database" does not exist'),
        (there.replace("postgres:@", "nobody:password@"), 'role "nobody" does not exist'),
        (f"{there}{joint}no_such_setting=1", "no_such_setting"),
    ):
        line = sentence("worker", "--data-dir", tmp_path / "data", "--database-url", url)

        assert say in line
        assert "password@" not in line


def test_the_rest_is_told_on_request(tmp_path: Path, former: Path) -> None:
    copyfile(former, tmp_path / "store.sqlite")
    bad_header(tmp_path / "store.sqlite")

    done = TERMINAL.type("serve", "--data-dir", tmp_path, "--log-level", "debug")

    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "damaged" in done.stderr.splitlines()[-1]
