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
from profile_export.engines.identity.links import DamagedFileError, links_in_files

SOURCE = "crm/b/0.parquet"
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no device that is always full")
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


def links_of(path: Path) -> EngineError:
    source = Source("crm", DatasetKind.RECORD, (SourcePart(EMPTY, (PinnedFile(str(path), 1, 1),)),))
    try:
        pairs = list(links_in_files([source], path.parent).pairs())
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


def test_a_source_whose_pages_are_garbled_is_named_and_stays_so(tmp_path: Path) -> None:
    path = made(tmp_path, b"")
    duckdb.execute(
        "COPY (SELECT 'b' AS _batch_id, range AS _key_high, range AS _key_low,"
        f" [{{key_high: range, key_low: range}}] AS _links FROM range(1000)) TO '{path}' (FORMAT parquet)"
    )
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
