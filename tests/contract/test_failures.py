"""What DuckDB and the system say when something is wrong, as an engine tells it: real errors, each made here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import PinnedFile, Source, SourcePart
from profile_export.domain.schemas.types import EMPTY
from profile_export.engines.duckdb.session import EngineError, failed
from profile_export.engines.identity.links import DamagedFileError, Links, links_in_files

SOURCE = "crm/b/0.parquet"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
PROCESS_IO = Path("/proc/self/io")
LINKED = (
    "'b' AS _batch_id, range AS _key_high, range AS _key_low, [{key_high: range, key_low: range}] AS _links"
)
NOISE = "SELECT range AS a, md5(range::VARCHAR) AS b FROM range(200_000)"


def error_of(query: str, **settings: str | int) -> EngineError:
    connection = duckdb.connect(config={"threads": 1, **settings})
    with pytest.raises(duckdb.Error) as caught:
        connection.execute(query).fetchall()
    return caught.value


def told(error: EngineError) -> tuple[str, bool, bool]:
    said = failed(error, {SOURCE})
    return said.code, said.retryable, said.died


def read(path: Path) -> EngineError:
    return error_of(f"SELECT * FROM read_parquet(['{path}'])")


def links_in(path: Path) -> Links:
    source = Source("crm", DatasetKind.RECORD, (SourcePart(EMPTY, (PinnedFile(str(path), 1, 1),)),))
    return links_in_files([source], path.parent)


def links_of(path: Path) -> EngineError:
    try:
        pairs = list(links_in(path).pairs())
    except (DamagedFileError, OSError) as error:
        return error
    pytest.fail(f"it was read: {pairs}")


def made(folder: Path, content: bytes) -> Path:
    path = folder / SOURCE
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


@needs_full
def test_a_disk_without_room_for_the_output_may_have_some_later() -> None:
    error = error_of(f"COPY ({NOISE}) TO '{FULL}' (FORMAT parquet)")

    assert told(error) == ("DISK_FULL", True, False)


def test_a_disk_without_room_for_what_is_spilled_is_not_told_as_memory(tmp_path: Path) -> None:
    error = error_of(
        f"{NOISE} ORDER BY b",
        memory_limit="10MB",
        temp_directory=str(tmp_path),
        max_temp_directory_size="1MB",
    )

    assert told(error) == ("DISK_FULL", True, True)


@needs_full
def test_a_disk_that_the_system_calls_full_is_full() -> None:
    with (
        pytest.raises(OSError, match="No space left") as caught,
        FULL.open("wb", buffering=0) as full,
    ):
        full.write(b"x")

    assert told(caught.value) == ("DISK_FULL", True, False)


@pytest.mark.parametrize(
    "error",
    [
        lambda: error_of(f"SELECT list(b) FROM ({NOISE})", memory_limit="5MB", temp_directory=""),
        lambda: MemoryError("no more"),
    ],
)
def test_too_little_memory_is_told_with_the_way_out_and_ends_the_process(
    error: Callable[[], EngineError],
) -> None:
    said = failed(error(), {SOURCE})

    assert (said.code, said.retryable, said.died) == ("OUT_OF_MEMORY", True, True)
    assert said.message.endswith("Give it more, or let fewer jobs run at once.")


@pytest.mark.parametrize("by", [read, links_of])
@pytest.mark.parametrize("content", [b"", b"no such thing, whatever it is"])
def test_a_source_that_is_no_parquet_is_named_and_stays_so(
    tmp_path: Path, content: bytes, by: Callable[[Path], EngineError]
) -> None:
    said = failed(by(made(tmp_path, content)), {SOURCE})

    assert (said.code, said.retryable, said.died) == ("SOURCE_UNREADABLE", False, False)
    assert SOURCE in said.message
    assert said.message.count("\n") == 0


def linked(folder: Path, select: str = LINKED, options: str = "") -> Path:
    path = made(folder, b"")
    duckdb.execute(f"COPY (SELECT {select} FROM range(10_000)) TO '{path}' (FORMAT parquet {options})")
    return path


@pytest.mark.parametrize("lost", ["_batch_id", "_key_high", "_key_low", "_links"])
def test_a_source_without_one_of_our_columns_is_named_and_stays_so(tmp_path: Path, lost: str) -> None:
    assert told(links_of(linked(tmp_path, LINKED.replace(lost, "other")))) == (
        "SOURCE_UNREADABLE",
        False,
        False,
    )


def test_a_source_with_a_row_without_a_key_is_named_and_stays_so(tmp_path: Path) -> None:
    path = linked(tmp_path, LINKED.replace("range AS _key_low", "nullif(range, 7) AS _key_low"))

    assert told(links_of(path)) == ("SOURCE_UNREADABLE", False, False)


@pytest.mark.skipif(not PROCESS_IO.exists(), reason="this system does not count what a process reads")
def test_links_of_a_wide_file_in_many_pieces_are_read_once(tmp_path: Path) -> None:
    """A footer says something of each column of each piece: here it is nearly all of the file."""
    wide = ", ".join(f"NULL::INTEGER AS field{number}" for number in range(1_000))
    path = linked(tmp_path, f"{LINKED}, {wide}", ", ROW_GROUP_SIZE 2_048")
    links = links_in(path)

    before = read_bytes()
    pairs = sum(len(keys) for keys, _ in links.pairs())

    assert pairs == links.at_most() == 10_000
    assert read_bytes() - before < 2 * path.stat().st_size


def read_bytes() -> int:
    name, number = PROCESS_IO.read_text().splitlines()[0].split()
    assert name == "rchar:"
    return int(number)


def test_a_source_whose_pages_are_garbled_is_named_and_stays_so(tmp_path: Path) -> None:
    path = linked(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])

    assert told(links_of(path)) == ("SOURCE_UNREADABLE", False, False)


@pytest.mark.parametrize("by", [read, links_of])
def test_a_source_that_is_missing_may_come_back(tmp_path: Path, by: Callable[[Path], EngineError]) -> None:
    assert told(by(tmp_path / SOURCE)) == ("SOURCE_UNREADABLE", True, False)


def test_another_file_is_not_blamed_on_a_source(tmp_path: Path) -> None:
    assert told(read(tmp_path / "staged.parquet")) == ("ENGINE_IO", True, False)


def test_a_query_that_is_wrong_stays_wrong() -> None:
    assert told(error_of("SELECT nothing")) == ("ENGINE_QUERY", False, False)


def test_an_engine_that_is_broken_ends_its_process() -> None:
    assert told(duckdb.InternalException("broken")) == ("ENGINE_CRASHED", True, True)
