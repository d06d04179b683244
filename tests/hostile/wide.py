"""A tenant whose data is as wide as may be, and the calls that look at all of it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from google.protobuf.message import Message

from profile_export.v1 import dataset_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from tests.hostile.limits import Case, Choice
from tests.hostile.methods import Method
from tests.service.harness import SCHEMAS, Caller, export_spec, json_lines, upload_messages

PARTS, FIELDS_PER_PART = 4, 2_490
"""Of a dataset: the fields of a row, which has at most 100 kB, and how many such rows until it may grow no more."""
SEGMENTS = 500
MIB = 1024 * 1024
ODD = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:false"])}


@dataclass(frozen=True)
class Wide:
    """What has been made: ids of datasets, of a batch and of a job."""

    records: str
    events: str
    union: str
    odd: str
    batches: str
    exported: str
    job: int


@dataclass(frozen=True)
class Much:
    """How many of them there are to list."""

    datasets: int = 40
    batches: int = 100
    parts: int = PARTS
    jobs: int = 10
    bad_rows: int = 300


async def prepare(caller: Caller, much: Much) -> Wide:
    """Make datasets of 10,000 and of 3,000 fields, of many batches, of rows in many segments, and an export of it."""
    for number in range(much.datasets):
        fields = {f"d{number}_{field}": dataset_pb2.SCALAR_TYPE_LONG for field in range(100)}
        await caller.dataset("record", {"crmId": "CRM"}, declared=fields)
    batches = await caller.dataset("record", {"crmId": "CRM"})
    for number in range(much.batches):
        await caller.upload(batches, f"many-{number}", [{"crmId": f"C{number}"}])
    records = await caller.dataset("record", {"crmId": "CRM"})
    for part in range(much.parts):
        row = {f"w{number}": number for number in range(FIELDS_PER_PART)}
        await caller.upload(records, f"wide-{part}", [{"crmId": "C1", f"p{part}": row}])
    events = await caller.dataset("event", {"crmId": "CRM"})
    visits = [
        {
            "crmId": "C1",
            "_id": f"e{part}",
            "timestamp": "2026-03-01T00:00:00Z",
            **{f"v{part}_{number}": number for number in range(500)},
        }
        for part in range(6)
    ]
    await caller.upload(events, "visits-wide", visits)
    memberships = {
        f"s{number}": {"status": "realized", "lastQualificationTime": "2026-03-01T00:00:00Z"}
        for number in range(SEGMENTS)
    }
    await caller.upload(records, "members", [{"crmId": "C1", "segmentMembership": {"ups": memberships}}])
    bad = json_lines({"crmId": 1.5, "note": "x" * 20_000} for _ in range(much.bad_rows))
    await caller.send(records, "bad-wide", bad, max_bad_records=much.bad_rows)
    union = await caller.dataset("union")
    job = await caller.export(union, fields=[f"p0.w{field}" for field in range(300)])
    for number in range(much.jobs):
        await caller.job(union, fields=[f"p{number % much.parts}.w{field}" for field in range(300)])
    odd = await caller.dataset("record", {"crmId": "CRM"}, tags=ODD)
    return Wide(records, events, union, odd, batches, job.batch_id, job.id)


def awkward(wide: Wide, methods: dict[str, Method], choice: Choice) -> Iterator[Case]:
    """Yield the calls that look at all of it, that change it, and that bring what is expensive to take."""
    for name, request in _looks(wide):
        method = methods[type(request).__name__.removesuffix("Request")]
        if choice(method.name, name):
            yield Case(method, name, [request.SerializeToString()])
    for name, document in _DOCUMENTS.items():
        if choice("CreateSchema", name):
            request = ss.CreateSchemaRequest(document=document())
            yield Case(methods["CreateSchema"], name, [request.SerializeToString()])
    if choice("CreateSchema", "500 other documents"):
        yield Case(methods["CreateSchema"], "500 other documents", [_several().SerializeToString()])
    for name, (upload_format, content) in _FILES.items():
        if choice("UploadBatch", name):
            messages = upload_messages(wide.odd, "", content(), upload_format)
            yield Case(methods["UploadBatch"], name, [one.SerializeToString() for one in messages])


def _several() -> ss.CreateSchemaRequest:
    others = [json.dumps(_document(f"https://example.com/other/{number}")) for number in range(500)]
    refers = _document(
        "https://example.com/refers", allOf=[{"$ref": json.loads(one)["$id"]} for one in others]
    )
    return ss.CreateSchemaRequest(document=json.dumps(refers), referenced_documents=others)


def _looks(wide: Wide) -> Iterator[tuple[str, Message]]:
    most: dict[str, Any] = {"page_size": 1_000}
    everything = export_spec(wide.union, events=job_pb2.EventList())
    person: dict[str, Any] = {"identity": {"namespace": "CRM", "id": "C1"}}
    segments = [job_pb2.SegmentFilter(segment_id=f"s{number}") for number in range(SEGMENTS)]
    yield "all", ds.ListDatasetsRequest(**most)
    yield "10,000 fields", ds.GetDatasetRequest(dataset_id=wide.records)
    yield "of 10,000 fields", ds.UpdateDatasetRequest(dataset_id=wide.records, name="wide")
    yield "100 rows", ds.PreviewDatasetRequest(dataset_id=wide.records, row_count=100)
    yield "all", ds.ListBatchesRequest(dataset_id=wide.batches, **most)
    yield "all", ds.ListRejectedRowsRequest(batch_id="bad-wide", **most)
    yield "all", ds.ListBatchFilesRequest(batch_id=wide.exported, **most)
    yield "of many batches", ds.GetReceiptRequest(batch_id=wide.exported)
    yield "of many batches", ds.GetBatchRequest(batch_id=wide.exported)
    yield "wide", ds.RevertBatchRequest(batch_id="wide-3")
    yield "of many batches", ds.DeleteDatasetRequest(dataset_id=wide.batches)
    yield "all", ss.ListSchemasRequest(**most)
    yield "of records", ss.GetUnionSchemaRequest(schema_name="_xdm.context.profile")
    yield "of events", ss.GetUnionSchemaRequest(schema_name="_xdm.context.experienceevent")
    yield "all", ps.ListMergePoliciesRequest(**most)
    yield "10,000 fields", ps.GetProfileRequest(**person)
    yield "all", ps.ListProfileEventsRequest(**person, **most)
    yield "everything", es.EstimateJobRequest(spec=everything, sample_rows=100)
    yield "everything", es.CreateJobRequest(spec=everything)
    per_segment = export_spec(
        wide.union,
        policy="timestampOrdered-none-mp",
        filter=job_pb2.ExportFilter(segments=segments),
        segment_per_batch=True,
    )
    yield "a batch for each of 500 segments", es.CreateJobRequest(spec=per_segment)
    yield "all", es.ListJobsRequest(**most)
    yield "all", es.WatchJobsRequest()
    yield "all from the first on", es.WatchJobsRequest(after_revision=0)
    yield "from the first revision on", es.WatchJobRequest(job_id=wide.job, after_revision=0)


# --- Documents ---


def _document(schema_id: str, **others: Any) -> dict[str, Any]:
    return {"$id": schema_id, "type": "object", "meta:class": SCHEMAS["record"], "properties": {}, **others}


def _of(name: str, **properties: Any) -> str:
    return json.dumps(_document(f"https://example.com/{name}", properties=properties))


def _nested(levels: int) -> str:
    return (
        '{"$id": "https://example.com/deep", "properties": '
        + '{"a": {"type": "object", "properties": ' * levels
        + "{}"
        + "}}" * levels
        + "}"
    )


def _doubling() -> str:
    """A document of forty steps, each of which is the next one twice."""
    steps: dict[str, Any] = {
        f"d{step}": {"allOf": [{"$ref": f"#/definitions/d{step + 1}"}] * 2} for step in range(40)
    }
    steps["d40"] = {"properties": {"a": {"type": "string"}}}
    document = _document(
        "https://example.com/doubling", definitions=steps, allOf=[{"$ref": "#/definitions/d0"}]
    )
    return json.dumps(document)


_DOCUMENTS: dict[str, Callable[[], str]] = {
    "the last key over and over": lambda: (
        '{"$id": "https://example.com/keys", "properties": {' + ", ".join(['"z": {}'] * 110_000) + "}}"
    ),
    "10,000 properties": lambda: _of(
        "wide", **{f"p{number}": {"type": "integer"} for number in range(10_000)}
    ),
    "20,000 properties of none": lambda: _of("empty", **{f"e{number}": {} for number in range(20_000)}),
    "an enum of 900 nested arrays": lambda: (
        '{"$id": "https://example.com/enum", "enum": [' + "[" * 900 + "]" * 900 + "]}"
    ),
    "nested 20,000 deep": lambda: _nested(20_000),
    "nested 300 deep": lambda: _nested(300),
    "an enum of 100,000": lambda: _of(
        "enums", a={"type": "string", "enum": [str(number) for number in range(100_000)]}
    ),
    "a reference of thousands of digits": lambda: _of("digits", a={"$ref": "#/allOf/" + "9" * 50_000}),
    "a pattern that backtracks": lambda: _of(
        "pattern", a={"type": "string", "pattern": "^(a+)+(a|aa)+$" * 20}
    ),
    "10,000 patterns": lambda: _of(
        "patterns", a={"type": "string", "allOf": [{"pattern": "(a|b){9}"}] * 10_000}
    ),
    "a pattern that grows": lambda: _of(
        "growing", a={"type": "string", "pattern": "((a{1,99}){1,99}){1,99}"}
    ),
    "forty doublings": _doubling,
    "an exponent": lambda: _of("exponent", a={"type": "number", "multipleOf": 1e-300, "minimum": -1e308}),
    "a long text": lambda: _of("text", a={"type": "string", "title": "\0\u202e" * 80_000}),
}


# --- Files ---


def _parquet(columns: dict[str, pa.Array], **options: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def _one_long_list() -> bytes:
    zeros = pa.array(np.zeros(20_000_000, dtype=np.int8))
    return _parquet({"crmId": pa.array(["C1"]), "zeros": pa.ListArray.from_arrays([0, len(zeros)], zeros)})


def _large_dictionary() -> bytes:
    numbers = pa.array(np.zeros(100_000, dtype=np.int32))
    notes = pa.DictionaryArray.from_arrays(numbers, pa.array(["x" * 90_000]))
    return _parquet({"crmId": pa.array([f"C{number}" for number in range(100_000)]), "note": notes})


def _deep(levels: int) -> bytes:
    return b'{"crmId": "C1", "deep": ' + b'{"a": ' * levels + b"1" + b"}" * levels + b"}"


def _namespaces() -> bytes:
    return json_lines(
        {"identityMap": {f"n{number}": [{"id": "1", "primary": True}]}} for number in range(100_000)
    )


_LINES, _CSV, _PARQUET = ds.UPLOAD_FORMAT_JSON_LINES, ds.UPLOAD_FORMAT_CSV, ds.UPLOAD_FORMAT_PARQUET
_FILES: dict[str, tuple[ds.UploadFormat.ValueType, Callable[[], bytes]]] = {
    "a list of 20 million": (_PARQUET, _one_long_list),
    "a text of 90 kB in 100,000 rows": (_PARQUET, _large_dictionary),
    "100,000 namespaces": (_LINES, _namespaces),
    "2,000 columns of nothing": (
        _PARQUET,
        lambda: _parquet(
            {
                "crmId": pa.array(["C1"]),
                **{f"n{number}": pa.array([None], pa.int8()) for number in range(2_000)},
            }
        ),
    ),
    "3 MB in one line": (_LINES, lambda: b'{"crmId": "C1", "note": "' + b"x" * 3 * MIB + b'"}'),
    "nested 60 deep": (_LINES, lambda: b"\n".join([_deep(60)] * 5_000)),
    "nested 100,000 deep": (_LINES, lambda: _deep(100_000)),
    "9,000 fields a row": (
        _LINES,
        lambda: json_lines(
            {"crmId": f"C{row}", **{f"k{number}": 1 for number in range(9_000)}} for row in range(40)
        ),
    ),
    "fields without end": (
        _LINES,
        lambda: json_lines(
            {"crmId": "C1", **{f"g{row}_{number}": 1 for number in range(6_000)}} for row in range(40)
        ),
    ),
    "a million digits": (_LINES, lambda: b'{"crmId": "C1", "n": ' + b"9" * 1_000_000 + b"}"),
    "an array without end": (
        ds.UPLOAD_FORMAT_JSON_ARRAY,
        lambda: b"[" + b'{"crmId": "C1"},' * 200_000,
    ),
    "an array of arrays": (ds.UPLOAD_FORMAT_JSON_ARRAY, lambda: b"[" * 3 * MIB),
    "100,000 columns": (
        _CSV,
        lambda: b"crmId," + b",".join(b"c%d" % number for number in range(100_000)) + b"\nC1\n",
    ),
    "a quote that never ends": (_CSV, lambda: b'crmId,note\nC1,"' + b"x\n" * 1_500_000),
    "300,000 short rows": (_CSV, lambda: b"crmId\n" + b"".join(b"C%d\n" % row for row in range(300_000))),
}
