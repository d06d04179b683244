from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from profile_export.lake.local import CHUNK_BYTES, LocalLake


@pytest.fixture
def lake(tmp_path: Path) -> LocalLake:
    made = LocalLake(tmp_path / "data dir")
    made.open()
    return made


def put(lake: LocalLake, path: str, content: bytes = b"rows") -> str:
    file = lake.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return path


def found(lake: LocalLake) -> set[str]:
    return {str(path.relative_to(lake.root)) for path in lake.root.rglob("*")}


def test_a_location_is_the_uri_of_the_file(lake: LocalLake) -> None:
    path = put(lake, "d/b/1/0-0.parquet", b"here")

    location = urlsplit(lake.location(path))

    assert location.scheme == "file"
    assert Path(unquote(location.path)).read_bytes() == b"here"


@pytest.mark.parametrize(("offset", "length"), [(0, 2 * CHUNK_BYTES + 5), (7, CHUNK_BYTES + 1), (3, 0)])
def test_a_stretch_is_read_in_chunks(lake: LocalLake, offset: int, length: int) -> None:
    content = bytes(range(251)) * 10_000
    path = put(lake, "d/b/0-0.parquet", content)

    chunks = list(lake.read(path, offset, length))

    assert b"".join(chunks) == content[offset : offset + length]
    assert all(len(chunk) <= CHUNK_BYTES for chunk in chunks)


def test_only_the_files_that_count_are_kept_and_empty_folders_go(lake: LocalLake) -> None:
    kept = put(lake, "d/b/2/0-0.parquet")
    put(lake, "d/b/1/0-0.parquet")
    put(lake, "d/b/2/resolution/graph.parquet")
    other = put(lake, "d/other/1/0-0.parquet")

    lake.keep_only("d/b", [kept])

    assert found(lake) == {"d", "d/b", "d/b/2", kept, "d/other", "d/other/1", other}


def test_folders_are_found_by_how_long_nothing_was_written_in_them(lake: LocalLake) -> None:
    old = put(lake, "d/old/1/0-0.parquet")
    put(lake, "d/new/1/0-0.parquet")
    put(lake, "graphs/7/0.parquet")
    hours_ago = time.time() - 7_200
    for place in (lake.root / old, *(lake.root / old).parents):
        if place.is_relative_to(lake.root):
            os.utime(place, (hours_ago, hours_ago))

    assert lake.untouched(timedelta(hours=1)) == ["d/old"]
    assert set(lake.untouched(timedelta(0))) == {"d/old", "d/new"}


def test_bytes_of_uploads_are_there_until_they_are_forgotten(lake: LocalLake) -> None:
    for name in ("kept", "left"):
        lake.upload(name).write_bytes(b"so far")

    lake.forget_upload("left")

    assert lake.staged() == ["kept"]
    assert (lake.received("kept"), lake.received("left")) == (6, 0)


def test_the_names_of_a_folder_can_be_made_to_last(lake: LocalLake) -> None:
    path = put(lake, "d/b/1/0-0.parquet")

    lake.publish([path])

    assert (lake.root / path).exists()
    with pytest.raises(FileNotFoundError):
        lake.publish(["d/b/2/0-0.parquet"])


def test_removing_and_forgetting_what_is_not_there_is_nothing(lake: LocalLake) -> None:
    lake.remove("d/nowhere")
    lake.forget_upload("nowhere")

    assert found(lake) == set()


def test_a_small_file_is_written_whole_and_replaces_what_was_there(lake: LocalLake) -> None:
    lake.write("d/b/receipt.json", b"first")
    put(lake, "d/b/receipt.json.part", b"what a killed writer has left, longer than all else")

    lake.write("d/b/receipt.json", b"second")

    assert (lake.root / "d/b/receipt.json").read_bytes() == b"second"
    assert found(lake) == {"d", "d/b", "d/b/receipt.json"}


def test_several_that_write_the_same_file_at_once_leave_it_whole_and_nothing_else(lake: LocalLake) -> None:
    with ThreadPoolExecutor(8) as writers:
        written = [writers.submit(lake.write, "d/b/receipt.json", b"the same") for _ in range(200)]

    assert [one.result() for one in written] == [None] * 200
    assert found(lake) == {"d", "d/b", "d/b/receipt.json"}
    assert (lake.root / "d/b/receipt.json").read_bytes() == b"the same"
