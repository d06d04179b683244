import asyncio
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from profile_export.domain.batch import RowError
from profile_export.ingest.ingestion import ingest
from profile_export.ingest.refusals import RowsRefusedError
from profile_export.lake.children import ChildDiedError, Children
from tests.contract.ingesting import CRM, Uploader


@pytest.fixture
def uploader(tmp_path: Path) -> Uploader:
    return Uploader(tmp_path)


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    started = Children(warm_for=ingest)
    yield started
    started.close()


async def test_an_upload_is_ingested_in_a_child_process(uploader: Uploader, children: Children) -> None:
    result = await children.run(ingest, uploader.task([{"crmId": "1"}], CRM))

    assert uploader.values(result) == [{"crmId": "1"}]


async def test_a_refusal_comes_back_whole(uploader: Uploader, children: Children) -> None:
    with pytest.raises(RowsRefusedError) as refused:
        await children.run(ingest, uploader.task([{"n": 1}, {"crmId": "1", "a": [1, "x"]}], CRM))

    assert [error.row for error in refused.value.rows] == [1, 2]
    assert refused.value.rows[1].message == "The field 'a[]' is string, but it is known as double."


async def test_a_child_that_dies_ends_its_task_and_not_the_pool(
    uploader: Uploader, children: Children
) -> None:
    sound = uploader.task([{"crmId": "1"}], CRM)
    blocked = replace(sound, source=uploader.folder / "pipe")
    os.mkfifo(blocked.source)
    await children.run(ingest, sound)
    before = set(multiprocessing.active_children())
    ingesting = asyncio.create_task(children.run(ingest, blocked))
    waiting = asyncio.create_task(children.run(ingest, sound))
    # Opening a pipe for writing waits until the child has it open for reading: then it is at work.
    writer = await asyncio.to_thread(blocked.source.open, "wb")

    for child in before:
        child.kill()

    with writer:
        for task in (ingesting, waiting):
            with pytest.raises(ChildDiedError, match="has ended"):
                await task
    assert uploader.values(await children.run(ingest, sound)) == [{"crmId": "1"}]
    assert before.isdisjoint(multiprocessing.active_children())


async def test_children_that_are_killed_end_in_the_middle_of_their_work(uploader: Uploader) -> None:
    killed = Children()
    blocked = replace(uploader.task([{"crmId": "1"}], CRM), source=uploader.folder / "pipe")
    os.mkfifo(blocked.source)
    others = set(multiprocessing.active_children())
    ingesting = asyncio.create_task(killed.run(ingest, blocked))
    with await asyncio.to_thread(blocked.source.open, "wb"):
        at_work = set(multiprocessing.active_children()) - others

        await asyncio.to_thread(killed.kill)

        with pytest.raises(ChildDiedError):
            await ingesting
    assert len(at_work) == 1
    assert not any(child.is_alive() for child in at_work)


async def test_a_child_stands_back_as_far_as_it_is_told() -> None:
    children = Children(niceness=7)

    assert await children.run(os.nice, 0) == os.nice(0) + 7
    children.close()


def test_a_refusal_survives_the_way_between_processes() -> None:
    error = RowsRefusedError((RowError(3, "JSON_INVALID", "The row is not JSON."),), 7)

    copy = pickle.loads(pickle.dumps(error))

    assert (copy.rows, copy.rejected_rows) == (error.rows, 7)
    assert str(copy) == "row 3: The row is not JSON."
