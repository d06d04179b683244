from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from pyiceberg.table import StaticTable

from profile_export.v1 import dataset_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import Caller


async def dataset(caller: Caller, dataset_id: str) -> dataset_pb2.Dataset:
    request = ds.GetDatasetRequest(dataset_id=dataset_id)
    return (await caller.datasets.GetDataset(request, metadata=caller.metadata)).dataset


def tenant_of(caller: Caller) -> str:
    """The namespace of the caller's tables."""
    org = dict(caller.metadata)["x-gw-ims-org-id"]
    return f"{org.replace('-', '_2d')}__prod"


async def followed(caller: Caller, dataset_id: str, batches: int) -> dataset_pb2.MirrorStatus:
    """Ask until the mirror holds so many batches; pytest's time-out ends a wait for nothing."""
    while True:
        status = (await dataset(caller, dataset_id)).mirror
        if status.mirrored_batches == batches and not status.pending_changes:
            return status


def plain(rows: list[dict[str, Any]], *, empty_is_none: bool = False) -> list[dict[str, Any]]:
    """Rows in one order, maps as dicts and without the fields that only other batches have.

    PyIceberg gives back a list or a map of objects that is null as an empty one: `empty_is_none` compares past that.
    """
    nothing: tuple[Any, ...] = (None, [], {}) if empty_is_none else (None,)

    def cleared(value: Any) -> Any:
        match value:
            case dict():
                members = ((name, cleared(member)) for name, member in value.items())
                return {name: member for name, member in members if member not in nothing}
            case [(str(), _), *_]:
                return cleared(dict(value))
            case list():
                return [cleared(item) for item in value]
        return value

    return sorted((cleared(row) for row in rows), key=lambda row: (row["_batch_id"], row["crmId"]))


async def test_an_exports_batch_appears_in_the_table_and_is_one_filter(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two exports of a destination, the second with more fields
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # or it warns that the other is not installed
    source = await caller.dataset("record", {"crmId": "CRM"})
    events = await caller.dataset("event", {"crmId": "CRM"})
    people = await caller.dataset("union")
    await caller.upload(source, "rows", [{"crmId": str(n), "person": {"name": f"n{n}"}} for n in range(3)])
    first = await caller.export(people)
    await caller.upload(source, "more", [{"crmId": "1", "person": {"age": 3}, "tags": ["a"]}])
    await caller.upload(events, "events", [{"_id": "e", "timestamp": "2026-01-01T00:00:00Z", "crmId": "1"}])
    second = await caller.export(people, events=job_pb2.EventList())

    # when the mirror has followed
    status = await followed(caller, people, 2)

    # then each batch is one filter, for PyIceberg and for Polars
    assert (status.enabled, status.table) == (True, f"{tenant_of(caller)}.d_{people}")
    assert (status.last_batch_id, status.error_message) == (second.batch_id, "")
    table = StaticTable.from_metadata(status.metadata_location)
    for batch_id in (first.batch_id, second.batch_id):
        written = await caller.rows(batch_id)
        assert len(written) == 3
        by_pyiceberg = table.scan(row_filter=f"_batch_id = '{batch_id}'").to_arrow()
        assert plain(by_pyiceberg.to_pylist(), empty_is_none=True) == plain(written, empty_is_none=True)
        by_polars = (
            pl.scan_iceberg(status.metadata_location).filter(pl.col("_batch_id") == batch_id).collect()
        )
        assert plain(by_polars.to_dicts()) == plain(written)
    held = [task.file.file_path for task in table.scan().plan_files()]
    in_place = [file.location for batch in (first, second) for file in await caller.files(batch.batch_id)]
    assert sorted(held) == sorted(in_place)


async def test_the_table_of_an_export_that_replaces_holds_it_alone_and_says_whose_it_is(
    caller: Caller,
) -> None:
    # given a mirrored export, and one that takes its place
    source, people = await caller.dataset("record", {"crmId": "CRM"}), await caller.dataset("union")
    await caller.upload(source, "rows", [{"crmId": "1"}, {"crmId": "2"}])
    former = await caller.export(people)
    await followed(caller, people, 1)
    job = await caller.export(people, mode=job_pb2.WRITE_MODE_REPLACE)

    # when the mirror has followed
    while (status := await followed(caller, people, 1)).last_batch_id != job.batch_id:
        pass

    # then the table holds the new one, and its tags both
    table = StaticTable.from_metadata(status.metadata_location)
    assert set(table.scan().to_arrow().column("_batch_id").to_pylist()) == {job.batch_id}
    for batch_id in (former.batch_id, job.batch_id):
        tagged = table.snapshot_by_name(f"batch-{batch_id}")
        assert tagged
        rows = table.scan(snapshot_id=tagged.snapshot_id).to_arrow()
        assert rows.column("_batch_id").to_pylist() == [batch_id] * 2
    told = {name: value for name, value in table.properties.items() if name.startswith("profile-export.")}
    assert told == {
        "profile-export.dataset-id": people,
        "profile-export.dataset-name": (await dataset(caller, people)).name,
        "profile-export.org": dict(caller.metadata)["x-gw-ims-org-id"],
        "profile-export.sandbox": "prod",
        "profile-export.last-batch-id": job.batch_id,
        "profile-export.last-job-id": str(job.id),
    }


async def test_a_source_is_mirrored_if_asked_and_an_export_is_not_if_asked_not_to(caller: Caller) -> None:
    on, off = dataset_pb2.IcebergSettings(enabled=True), dataset_pb2.IcebergSettings(enabled=False)
    source = await caller.dataset("record", {"crmId": "CRM"}, iceberg=on)
    quiet = await caller.dataset("record", {"crmId": "CRM"})
    people = await caller.dataset("union", iceberg=off)
    await caller.upload(source, "rows", [{"crmId": "1"}])
    await caller.export(people)

    status = await followed(caller, source, 1)

    assert status.last_batch_id == "rows"
    rows = StaticTable.from_metadata(status.metadata_location).scan().to_arrow()
    assert rows.column("_batch_id").to_pylist() == ["rows"]
    assert rows.column("_identity").to_pylist() == ["1"]
    assert not (await dataset(caller, quiet)).HasField("mirror")
    assert not (await dataset(caller, people)).HasField("mirror")


async def test_a_mirrored_dataset_without_batches_says_that_nothing_is_there_yet(caller: Caller) -> None:
    made = await dataset(caller, await caller.dataset("union"))

    assert made.mirror == dataset_pb2.MirrorStatus(enabled=True, table=f"{tenant_of(caller)}.d_{made.id}")
