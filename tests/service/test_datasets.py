"""Datasets: what may be declared, changed and deleted, and a look at their rows."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

from profile_export.v1 import dataset_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import SCHEMAS, Caller, declarations, json_lines, refusal_of, types_of

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
LONG, DOUBLE = dataset_pb2.SCALAR_TYPE_LONG, dataset_pb2.SCALAR_TYPE_DOUBLE
TEXT, DATE = dataset_pb2.SCALAR_TYPE_STRING, dataset_pb2.SCALAR_TYPE_DATE
TIMESTAMP = dataset_pb2.SCALAR_TYPE_TIMESTAMP
APART = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:false"])}


def decimal(precision: int, scale: int) -> dataset_pb2.FieldType:
    return dataset_pb2.FieldType(decimal=dataset_pb2.DecimalType(precision=precision, scale=scale))


async def preview(caller: Caller, dataset_id: str, count: int = 0) -> list[dict[str, Any]]:
    request = ds.PreviewDatasetRequest(dataset_id=dataset_id, row_count=count)
    answer = await caller.datasets.PreviewDataset(request, metadata=caller.metadata)
    return [MessageToDict(row) for row in answer.rows]


# --- Declared fields ---


async def test_declared_types_are_kept_shown_and_used(caller: Caller) -> None:
    # given a dataset that says what JSON alone cannot
    types = {"born": DATE, "seen": TIMESTAMP, "visits": LONG, "spent": decimal(12, 2)}
    source = await caller.dataset("record", {"id": "CRM"}, declared=types)

    # when rows arrive
    row = {"id": "1", "born": "1990-01-31", "seen": "2026-01-31T10:00:00+01:00", "visits": 9007199254740993}
    await caller.send(source, "b", json_lines([row])[:-2] + b', "spent": 12.34}\n')

    # then they are stored as declared
    dataset = await caller.get_dataset(source)
    [stored] = await caller.rows("b")
    assert types_of(dataset.fields)["spent"] == "decimal(12,2)"
    assert [declared.path for declared in dataset.declared_fields] == list(types)
    assert str(stored["born"]) == "1990-01-31"
    assert stored["seen"] == datetime.fromisoformat("2026-01-31T09:00:00+00:00")
    assert stored["visits"] == 9007199254740993
    assert str(stored["spent"]) == "12.34"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"declared": {"a": dataset_pb2.FieldType()}}, "declared_fields[0].type"),
        ({"declared": {"a": decimal(39, 0)}}, "declared_fields[0].type.decimal"),
        ({"declared": {"a": decimal(3, 4)}}, "declared_fields[0].type.decimal"),
        ({"declared": {"_row": TEXT}}, "declared_fields[0].path"),
        ({"declared": {"a..b": TEXT}}, "declared_fields[0].path"),
        ({"description": "x" * 10_001}, "description"),
        ({"name": ""}, "name"),
    ],
)
async def test_a_wrong_dataset_is_refused_by_field(
    caller: Caller, values: dict[str, Any], field: str
) -> None:
    refusal = await refusal_of(caller.dataset("record", {"id": "CRM"}, **values))

    assert refusal.code is INVALID
    assert refusal.fields == [field]


async def test_a_name_twice_in_a_declared_object_is_refused(caller: Caller) -> None:
    member = dataset_pb2.Field(name="a", type=dataset_pb2.FieldType(scalar=TEXT))
    twice = dataset_pb2.FieldType(object=dataset_pb2.ObjectType(fields=[member, member]))

    refusal = await refusal_of(caller.dataset("record", {"id": "CRM"}, declared={"o": twice}))

    assert (refusal.code, refusal.fields) == (INVALID, ["declared_fields[0].type"])


async def test_nested_declarations_come_back_as_they_were_made(caller: Caller) -> None:
    field = dataset_pb2.FieldType(scalar=DATE)
    item = dataset_pb2.FieldType(
        object=dataset_pb2.ObjectType(fields=[dataset_pb2.Field(name="day", type=field)])
    )
    array = dataset_pb2.FieldType(array=dataset_pb2.ArrayType(item=item))
    wanted = dataset_pb2.FieldType(map=dataset_pb2.MapType(value=array))

    source = await caller.dataset("record", {"id": "CRM"}, declared={"visits": wanted})

    dataset = await caller.get_dataset(source)
    assert dataset.declared_fields[0].type == wanted
    assert types_of(dataset.fields)["visits"] == {"*": [{"day": "date"}]}


async def test_a_declared_type_that_contradicts_another_source_is_refused(caller: Caller) -> None:
    other = await caller.dataset("record", {"id": "CRM"}, declared={"age": TEXT})

    refusal = await refusal_of(caller.dataset("record", {"id": "CRM"}, declared={"age": LONG}))
    apart = await caller.dataset("record", {"id": "CRM"}, declared={"age": LONG}, tags=APART)

    assert (refusal.code, refusal.reason) == (INVALID, "FIELD_TYPE_CONFLICT")
    assert refusal.metadata["path"] == "age"
    assert refusal.metadata["other_dataset_id"] == other
    assert (refusal.metadata["type"], refusal.metadata["other_type"]) == ("long", "string")
    assert "enabled:false" in refusal.message
    assert types_of((await caller.get_dataset(apart)).fields)["age"] == "long"


async def test_the_content_type_of_a_schema_is_filled_in(caller: Caller) -> None:
    dataset = await caller.get_dataset(await caller.dataset("union"))

    assert dataset.schema_ref.id == SCHEMAS["union"]
    assert dataset.schema_ref.content_type == "application/vnd.adobe.xed+json;version=1"


async def test_an_unknown_schema_is_not_found(caller: Caller) -> None:
    refusal = await refusal_of(caller.dataset("https://example.com/nowhere", {"id": "CRM"}))

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.NOT_FOUND, "SCHEMA_NOT_FOUND")


# --- Changed ---


async def test_what_is_given_changes_and_the_rest_stays(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"}, name="old", description="first")
    before = await caller.get_dataset(source)

    tags = ds.DatasetTags(entries={"team": dataset_pb2.TagValues(values=["a", "b"])})
    changed = await caller.update(source, name="new", tags=tags)
    again = await caller.update(source, name="new", tags=tags)
    emptied = await caller.update(source, description="", tags=ds.DatasetTags())

    assert (changed.name, changed.description) == ("new", "first")
    assert list(changed.tags["team"].values) == ["a", "b"]
    assert changed.update_time.ToNanoseconds() > before.update_time.ToNanoseconds()
    assert again == changed
    assert (emptied.description, dict(emptied.tags)) == ("", {})


async def test_an_upload_does_not_change_the_update_time(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "b", [{"id": "1", "new": True}])

    dataset = await caller.get_dataset(source)

    assert dataset.update_time == dataset.create_time
    assert types_of(dataset.fields)["new"] == "boolean"


async def test_a_dataset_says_what_counts_of_it(caller: Caller) -> None:
    # given two datasets, one with three batches of which one is taken back
    source, empty = [await caller.dataset("record", {"id": "CRM"}) for _ in range(2)]
    first, last, gone = [
        await caller.upload(source, f"b{number}", [{"id": f"{row}"} for row in range(number)])
        for number in (1, 2, 3)
    ]
    await caller.revert(gone.id)

    # when they are looked up and listed
    looked_up = await caller.get_dataset(source)
    listed = await caller.datasets.ListDatasets(ds.ListDatasetsRequest(), metadata=caller.metadata)

    # then each has the rows and bytes of the batches that count, and the time of the newest
    assert (looked_up.rows, looked_up.bytes) == (3, first.bytes + last.bytes)
    assert looked_up.last_ingest_time == last.ingest_time
    assert [(one.id, one.rows, one.HasField("last_ingest_time")) for one in listed.datasets] == [
        (source, 3, True),
        (empty, 0, False),
    ]


async def test_declared_types_may_be_added_and_widened_but_not_narrowed(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"}, declared={"a": LONG})

    widened = await caller.update(source, add_declared_fields=declarations({"a": DOUBLE, "b": DATE}))
    refusal = await refusal_of(caller.update(source, add_declared_fields=declarations({"a": LONG})))

    fields = types_of(widened.fields)
    assert (fields["a"], fields["b"]) == ("double", "date")
    assert types_of(declared_as_fields(widened)) == {"a": "double", "b": "date"}
    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert (refusal.metadata["path"], refusal.metadata["type"]) == ("a", "long")


def declared_as_fields(dataset: dataset_pb2.Dataset) -> list[dataset_pb2.Field]:
    return [dataset_pb2.Field(name=one.path, type=one.type) for one in dataset.declared_fields]


async def test_a_learned_field_cannot_become_another_kind(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "b", [{"id": "1", "born": "1990-01-31"}])

    refusal = await refusal_of(caller.update(source, add_declared_fields=declarations({"born": DATE})))

    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert (refusal.metadata["type"], refusal.metadata["other_type"]) == ("date", "string")


async def test_switching_a_dataset_on_brings_its_conflicts_to_light(caller: Caller) -> None:
    await caller.upload(await caller.dataset("record", {"id": "CRM"}), "b", [{"id": "1", "age": 40}])
    apart = await caller.dataset("record", {"id": "CRM"}, tags=APART)
    await caller.upload(apart, "c", [{"id": "1", "age": "40"}])

    refusal = await refusal_of(caller.update(apart, tags=ds.DatasetTags()))
    renamed = await caller.update(apart, name="still apart")

    assert (refusal.code, refusal.reason) == (PRECONDITION, "FIELD_TYPE_CONFLICT")
    assert refusal.metadata["dataset_id"] == apart
    assert refusal.message.endswith(
        ". Declare the same type, or keep one of the two out of exports with the tag unifiedProfile: enabled:false."
    )
    assert list(renamed.tags["unifiedProfile"].values) == ["enabled:false"]


async def test_a_change_of_nothing_is_refused(caller: Caller) -> None:
    refusal = await refusal_of(caller.update(await caller.dataset("union")))

    assert (refusal.code, refusal.reason) == (INVALID, "FIELD_REQUIRED")


async def test_an_empty_name_is_refused(caller: Caller) -> None:
    refusal = await refusal_of(caller.update(await caller.dataset("union"), name=""))

    assert (refusal.code, refusal.reason, refusal.fields) == (INVALID, "FIELD_REQUIRED", ["name"])


# --- Deleted ---


async def test_a_deleted_dataset_is_gone_with_its_batches(caller: Caller) -> None:
    # given two sources
    kept = await caller.dataset("record", {"id": "CRM"})
    gone = await caller.dataset("record", {"id": "CRM"}, request_id="r")
    await caller.upload(kept, "kept", [{"id": "1"}])
    await caller.upload(gone, "gone", [{"id": "2", "age": 40}])

    # when one is deleted
    await caller.delete(gone)

    # then nothing of it is there
    job = await caller.export(await caller.dataset("union"))
    assert [row["id"] for row in await caller.rows(job.batch_id)] == ["1"]
    calls = [caller.visible_batches(gone), caller.delete(gone), caller.update(gone, name="x")]
    of_batch = [caller.batch("gone"), caller.files("gone"), caller.revert("gone")]
    refusals = [await refusal_of(call) for call in (*calls, *of_batch)]
    assert {refusal.code for refusal in refusals} == {grpc.StatusCode.NOT_FOUND}
    assert [refusal.reason for refusal in refusals] == ["DATASET_NOT_FOUND"] * 3 + ["BATCH_NOT_FOUND"] * 3
    listed = await caller.datasets.ListBatches(ds.ListBatchesRequest(), metadata=caller.metadata)
    assert [batch.id for batch in listed.batches] == ["kept", job.batch_id]
    # its types bind nobody any more, and its request id is free
    other = await caller.dataset("record", {"id": "CRM"}, request_id="r")
    assert other != gone
    await caller.upload(other, "other", [{"id": "3", "age": "forty"}])


async def test_a_deleted_dataset_says_until_when_it_can_be_brought_back_and_is_brought_back(
    caller: Caller,
) -> None:
    # given a dataset with a batch and an unfinished upload, and an export of it
    source, union = await caller.dataset("record", {"id": "CRM"}), await caller.dataset("union")
    await caller.upload(source, "whole", [{"id": "1", "name": "Ada"}])
    await caller.create_batch(source, "begun")
    await caller.send(source, "begun", json_lines([{"id": "2", "name": "Ben"}]))
    before, [file] = await caller.get_dataset(source), await caller.files("whole")

    # when it is deleted, looked at, and brought back
    deleted = await caller.delete(source)
    seen = await caller.get_dataset(source)
    listed = [
        [one.id for one in (await caller.datasets.ListDatasets(request, metadata=caller.metadata)).datasets]
        for request in (ds.ListDatasetsRequest(), ds.ListDatasetsRequest(show_deleted=True))
    ]
    refused = await refusal_of(caller.upload(source, "late", [{"id": "3"}]))
    without = await caller.rows((await caller.export(union)).batch_id)
    back = await caller.undelete(source)
    again = await refusal_of(caller.undelete(source))

    # then all of it is as it was, the upload goes on, and each was told what to do
    assert deleted == seen
    assert deleted.purge_time.ToDatetime() - deleted.delete_time.ToDatetime() == timedelta(hours=1)
    assert listed == [[union], [source, union]]
    assert (refused.code, refused.reason) == (grpc.StatusCode.NOT_FOUND, "DATASET_NOT_FOUND")
    assert "UndeleteDataset" in refused.message
    assert without == []
    assert back == before
    assert (again.code, again.reason) == (grpc.StatusCode.ALREADY_EXISTS, "DATASET_NOT_DELETED")
    content = await caller.download("whole", file.name)
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    await caller.complete("begun")
    rows = await caller.rows((await caller.export(union)).batch_id)
    assert sorted(row["name"] for row in rows) == ["Ada", "Ben"]


# --- Looked at ---


async def test_a_preview_shows_rows_of_the_newest_batches_first(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"}, declared={"big": LONG, "day": DATE})
    await caller.upload(source, "old", [{"id": str(number)} for number in range(3)])
    newest = {
        "id": "9",
        "big": 9007199254740993,
        "day": "2026-01-31",
        "address": {"city": "Oslo"},
        "tags": ["a", None],
        "segmentMembership": {"ups": {"s": {"status": "realized", "validUntil": "2026-01-01T00:00:00Z"}}},
    }
    await caller.upload(source, "new", [newest])

    rows = await preview(caller, source, 3)

    assert len(rows) == 3
    assert rows[0] == {**newest, "big": "9007199254740993"}
    assert {row["id"] for row in rows[1:]} < {"0", "1", "2"}


async def test_a_preview_of_nothing_is_empty_and_a_wrong_one_is_refused(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})

    assert await preview(caller, source) == []
    assert (await refusal_of(preview(caller, source, -1))).fields == ["row_count"]


async def test_a_preview_of_large_rows_fits_into_one_message(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    await caller.upload(source, "b", [{"id": str(number), "text": "x" * 90_000} for number in range(60)])

    rows = await preview(caller, source, 60)

    assert 20 < len(rows) < 30


# --- Mirrored ---


async def test_an_update_switches_the_mirror_on_and_off(caller: Caller) -> None:
    source = await caller.dataset("record", {"id": "CRM"})
    never = await caller.get_dataset(source)

    on = await caller.update(source, iceberg=dataset_pb2.IcebergSettings(enabled=True))
    off = await caller.update(source, iceberg=dataset_pb2.IcebergSettings(enabled=False))

    assert not never.HasField("mirror")
    assert on.mirror.enabled
    assert not off.mirror.enabled
    assert (await caller.get_dataset(await caller.dataset("union"))).mirror.enabled
