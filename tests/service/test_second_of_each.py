"""The server with another lake and another engine than it comes with: what it does is the same."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pyarrow.parquet as pq
import pytest

from profile_export.app import Application
from profile_export.application.ports import Engine, Lake
from profile_export.config import load
from profile_export.domain.catalog.batches import MERGED_FROM
from profile_export.v1 import dataset_service_pb2 as ds
from tests.lakes import MemoryLake
from tests.reference_engine import ReferenceEngine
from tests.service.conftest import settings_for
from tests.service.harness import Caller

SOURCE = {"crmId": "CRM"}


@asynccontextmanager
async def serving(
    data_dir: Path, engine: Engine | None = None, lake: Lake | None = None
) -> AsyncIterator[Caller]:
    settings = {**settings_for(data_dir), "download_grace_seconds": "0"}
    server = Application(load(settings, {}), engine, lake)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield Caller(channel, "org")
    await server.stop()


async def downloaded(caller: Caller, batch_id: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for file in await caller.files(batch_id):
        content = await caller.download(batch_id, file.name)
        rows += pq.read_table(io.BytesIO(content), columns=["crmId", "name"]).to_pylist()
    return sorted(rows, key=lambda row: str(row["crmId"]))


def person(number: int, name: str) -> dict[str, str]:
    return {"crmId": f"C{number}", "name": name}


@pytest.mark.slow
async def test_another_engine_exports_the_same_rows(tmp_path: Path) -> None:
    found = []
    for name, engine in (("own", None), ("reference", ReferenceEngine())):
        async with serving(tmp_path / name, engine) as caller:
            source, destination = await caller.dataset("record", SOURCE), await caller.dataset("union")
            await caller.upload(source, "old", [person(1, "old"), person(2, "two")])
            await caller.upload(source, "new", [person(1, "new"), {"crmId": "C3"}])
            job = await caller.export(destination, fields=["crmId", "name"])
            counts = job.metrics
            found.append(
                (
                    await downloaded(caller, job.batch_id),
                    counts.profiles_read,
                    counts.profiles_exported,
                    dict(counts.profiles_exported_by_namespace),
                )
            )

    assert found[0] == found[1]
    assert found[0][0] == [person(1, "new"), person(2, "two"), {"crmId": "C3", "name": None}]


@pytest.mark.slow
@pytest.mark.timeout(300)  # the sweeper looks every few seconds
async def test_another_lake_takes_uploads_and_exports_and_is_compacted_mirrored_and_swept(
    tmp_path: Path,
) -> None:
    lake = MemoryLake(tmp_path)
    async with serving(tmp_path, lake=lake) as caller:
        source, destination = await caller.dataset("record", SOURCE), await caller.dataset("union")
        # given as many small batches as are merged, one of which has a row that is none
        for number in range(MERGED_FROM):
            await caller.upload(source, f"b{number}", [person(number, "old"), person(100 + number, "some")])
        await caller.send(source, "last", b'{"crmId": "C0", "name": "new"}\nno json\n', max_bad_records=1)

        # when they are merged into a file more
        def data_files() -> list[str]:
            return [key for key in lake.files if key.startswith(f"{source}/") and "rejected" not in key]

        while len(data_files()) <= MERGED_FROM + 1:
            await caller.get_dataset(source)

        # then what is exported, looked up, looked into and listed is all of it
        job = await caller.export(destination, fields=["crmId", "name"])
        rows = await downloaded(caller, job.batch_id)
        assert len(rows) == 2 * MERGED_FROM
        assert rows[0] == person(0, "new")
        assert (await caller.profile("CRM:C0")).values["name"] == "new"
        assert [row.row_number for row in (await caller.rejected("last")).rows] == [2]
        preview = ds.PreviewDatasetRequest(dataset_id=destination, row_count=3)
        assert len((await caller.datasets.PreviewDataset(preview, metadata=caller.metadata)).rows) == 3
        # and the table follows
        while (await caller.get_dataset(destination)).mirror.mirrored_batches != 1:
            pass
        # and what is taken back leaves the lake
        before = data_files()
        await caller.revert("last")
        while data_files() == before:
            await caller.get_dataset(source)
    assert [path for path in lake.root.rglob("*.parquet") if "graphs" not in path.parts] == []
