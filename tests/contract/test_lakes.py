"""What every lake does, whatever it keeps its files in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from profile_export.application.ports import Lake
from profile_export.lake.local import LocalLake
from tests.lakes import MemoryLake

BATCH = f"{'a' * 24}/{'b' * 24}"
KEY = f"{BATCH}/1/0-0.parquet"


@pytest.fixture(params=[LocalLake, MemoryLake])
def lake(request: pytest.FixtureRequest, tmp_path: Path) -> Lake:
    make: Callable[[Path], Lake] = request.param
    made = make(tmp_path / "data dir")
    made.open()
    return made


def stage(lake: Lake, key: str, content: bytes = b"rows") -> str:
    folder, _, name = key.rpartition("/")
    place = lake.staging(folder) / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return key


def publish(lake: Lake, key: str, content: bytes = b"rows") -> str:
    lake.publish([stage(lake, key, content)])
    return key


async def test_what_was_published_can_be_read_for_as_long_as_somebody_says_so(lake: Lake) -> None:
    publish(lake, KEY, b"here")

    async with lake.readable([KEY]), lake.readable([KEY]):
        assert (lake.root / KEY).read_bytes() == b"here"

    assert lake.size(KEY) == 4
    assert b"".join(lake.read(KEY, 1, 2)) == b"er"
    assert lake.location(KEY).endswith(KEY)


def test_a_file_that_is_not_there_has_no_size_and_cannot_be_published(lake: Lake) -> None:
    with pytest.raises(FileNotFoundError):
        lake.size(KEY)
    with pytest.raises(FileNotFoundError):
        lake.publish([KEY])


def test_a_folder_goes_with_what_is_staged_and_published_in_it(lake: Lake) -> None:
    publish(lake, KEY)
    stage(lake, f"{BATCH}/2/0-0.parquet")

    lake.remove(BATCH)

    assert not lake.exists(BATCH)
    with pytest.raises(FileNotFoundError):
        lake.size(KEY)
    lake.remove(BATCH)


def test_only_the_files_that_count_are_kept(lake: Lake) -> None:
    other = publish(lake, f"{'a' * 24}/{'c' * 24}/1/0-0.parquet")
    publish(lake, KEY)
    kept = publish(lake, f"{BATCH}/2/0-0.parquet")

    lake.keep_only(BATCH, [kept])

    assert (lake.size(kept), lake.size(other)) == (4, 4)
    with pytest.raises(FileNotFoundError):
        lake.size(KEY)


def test_a_small_file_replaces_what_was_there(lake: Lake) -> None:
    receipt = f"{BATCH}/receipt.json"
    lake.write(receipt, b"one")

    lake.write(receipt, b"another")

    assert lake.size(receipt) == 7


def test_bytes_of_uploads_are_there_until_they_are_forgotten(lake: Lake) -> None:
    for name in ("kept", "left"):
        lake.upload(name).write_bytes(b"so far")

    lake.forget_upload("left")
    lake.forget_upload("nowhere")

    assert list(lake.staged()) == ["kept"]
    assert (lake.received("kept"), lake.received("left")) == (6, 0)


def test_what_nobody_named_is_found_and_goes_to_the_trash(lake: Lake) -> None:
    publish(lake, KEY)
    lake.upload("strange").write_bytes(b"?")

    assert set(lake.datasets()) == {"a" * 24}
    assert list(lake.untouched(timedelta())) == [BATCH]
    assert list(lake.untouched(timedelta(hours=1))) == []
    assert list(lake.untouched_within(BATCH, timedelta())) == [f"{BATCH}/1"]
    assert list(lake.untouched_within(f"{BATCH}/*", timedelta())) == [KEY]
    lake.set_aside([BATCH], ["strange"])

    assert not lake.exists(BATCH)
    assert not lake.staged()
    # Some lakes note when it came there, others do not.
    assert sorted(path[path.index(KEY if KEY in path else "strange") :] for path in lake.trash()) == [
        KEY,
        "strange",
    ]
    assert list(lake.empty_trash(datetime.now(UTC), timedelta(days=1))) == []


def test_a_lake_says_whose_it_is(lake: Lake) -> None:
    assert lake.instance() is None

    lake.take()
    lake.become("installation")

    assert lake.instance() == "installation"
    assert lake.take_alone()
    lake.let_go()
