"""Every list filtered and sorted, page by page: what the contract says of it, on the server's answers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from profile_export.v1 import batch_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1 import schema_service_pb2 as ss
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_NONE, IDENTITY_GRAPH_PDG
from tests.service.harness import SCHEMAS, Caller, refusal_of, replay, upload_messages

NAMES = ("b", "a", "B", "é", "a", "\U0001f600 z", "z")


class Lists:
    """A tenant that has several of everything, and what lists it."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.source = ""
        self.destinations: list[str] = []

    async def fill(self) -> None:
        caller = self.caller
        for name in NAMES:
            await caller.dataset("event", name=name)
        self.source = await caller.dataset("record", {"crmId": "CRM"}, name="source")
        await caller.update(self.source, description="newest change")
        for number in range(3):
            await caller.upload(self.source, f"good-{number}", [{"crmId": f"{number}"}])
        await caller.create_batch(self.source, "open")
        await caller.create_batch(self.source, "given-up")
        await caller.abort("given-up")
        await caller.revert("good-1")
        await caller.create_batch(self.source, "files")
        bad = b'{"crmId": "1"}\n{"crmId": true}\nnothing\n{"crmId": false}\n'
        for name in ("c", "a", "b"):
            messages = upload_messages(self.source, "files", bad, file_name=name, max_bad_records=3)
            await caller.datasets.UploadBatch(replay(messages), metadata=caller.metadata)
        await caller.complete("files")
        for name in ("b", "a", "z"):
            document = {
                "$id": f"https://example.com/{name}",
                "title": name,
                "type": "object",
                "meta:class": SCHEMAS["event" if name == "a" else "record"],
            }
            await caller.schema(document)
        await caller.policy(IDENTITY_GRAPH_PDG)
        await caller.policy(IDENTITY_GRAPH_NONE, [self.source])
        for number in range(3):
            union = await caller.dataset("union", name="union")
            self.destinations.append(union)
            job = await caller.job(union)
            if number != 1:
                await caller.finished(job.id)
            else:
                await caller.exports.CancelJob(es.CancelJobRequest(job_id=job.id), metadata=caller.metadata)
                await caller.finished(job.id)

    async def all_of(self, method: str, size: int = 2, /, **arguments: Any) -> list[Any]:
        """Read a list to its end, in pages of that size."""
        stubs: tuple[Any, ...] = (
            self.caller.datasets,
            self.caller.schemas,
            self.caller.profiles,
            self.caller.exports,
        )
        [call] = [getattr(stub, method) for stub in stubs if hasattr(stub, method)]
        module: Any = next(module for module in (ds, ss, ps, es) if hasattr(module, f"{method}Request"))
        found: list[Any] = []
        token = ""
        while True:
            request = getattr(module, f"{method}Request")(page_size=size, page_token=token, **arguments)
            answer = await call(request, metadata=self.caller.metadata)
            [items] = [
                getattr(answer, field.name)
                for field in answer.DESCRIPTOR.fields
                if field.name != "next_page_token"
            ]
            assert len(items) <= size
            found += items
            token = answer.next_page_token
            if not token:
                return found


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def lists(channel: grpc.aio.Channel) -> Lists:
    made = Lists(Caller(channel, "lists"))
    await made.fill()
    return made


def moment(stamp: Any) -> str:
    return f"{stamp.seconds:020}.{stamp.nanos:09}"


SORTED: list[tuple[str, str, Callable[[Any], Any]]] = [
    ("ListDatasets", "name", lambda one: (one.name.encode(), one.id)),
    ("ListDatasets", "create_time", lambda one: (moment(one.create_time), one.id)),
    ("ListDatasets", "update_time", lambda one: (moment(one.update_time), one.id)),
    ("ListBatches", "create_time", lambda one: (moment(one.create_time), one.id)),
    ("ListBatches", "ingest_time", lambda one: (moment(one.ingest_time), one.id)),
    ("ListSchemas", "create_time", lambda one: (moment(one.create_time), one.id)),
    ("ListSchemas", "id", lambda one: one.id.encode()),
    ("ListMergePolicies", "create_time", lambda one: (moment(one.create_time), one.id)),
    ("ListMergePolicies", "name", lambda one: (one.name.encode(), one.id.encode())),
    ("ListJobs", "create_time", lambda one: (moment(one.create_time), one.id)),
    ("ListJobs", "update_time", lambda one: (moment(one.update_time), one.id)),
]


@pytest.mark.parametrize(
    ("method", "field", "key"), SORTED, ids=lambda value: value if isinstance(value, str) else ""
)
@pytest.mark.parametrize("descending", [False, True])
async def test_a_list_is_sorted_over_all_its_pages(
    lists: Lists, method: str, field: str, key: Callable[[Any], Any], *, descending: bool
) -> None:
    whole = await lists.all_of(method, 1000)

    found = await lists.all_of(method, order_by=f"{field} desc" if descending else field)

    assert len(whole) > 2
    # By their ids: how far a mirror is may have changed from call to call.
    assert [one.id for one in found] == [one.id for one in sorted(whole, key=key, reverse=descending)]


async def test_files_and_rejected_rows_are_sorted_by_name_either_way(lists: Lists) -> None:
    files = [one.name for one in await lists.all_of("ListBatchFiles", 1, batch_id="files")]
    backwards = [
        one.name for one in await lists.all_of("ListBatchFiles", 1, batch_id="files", order_by="name desc")
    ]
    rows = [
        [
            (one.file_name, one.row_number)
            for one in await lists.all_of("ListRejectedRows", 2, batch_id="files", **order)
        ]
        for order in ({}, {"order_by": "file_name"}, {"order_by": "file_name desc"})
    ]

    assert len(files) == 3
    assert (files, backwards) == (sorted(files), sorted(files, reverse=True))
    assert rows[0] == rows[1] == [(name, row) for name in "abc" for row in (2, 3, 4)]
    assert rows[2] == [(name, row) for name in "cba" for row in (2, 3, 4)]


async def of_datasets(lists: Lists, **arguments: Any) -> list[str]:
    return [one.name for one in await lists.all_of("ListDatasets", **arguments)]


async def test_datasets_are_filtered_by_what_they_are(lists: Lists) -> None:
    third = (await lists.all_of("ListDatasets", 1000))[2].create_time.ToJsonString()

    assert await of_datasets(lists, filter="kind = RECORD") == ["source"]
    assert await of_datasets(lists, filter="kind != DATASET_KIND_EVENT AND kind != UNION") == ["source"]
    assert await of_datasets(lists, filter='name = "a"', order_by="name desc") == ["a", "a"]
    assert await of_datasets(lists, filter='name > "b" AND kind = EVENT') == ["é", "\U0001f600 z", "z"]
    assert await of_datasets(lists, filter=f"create_time < {third}") == list(NAMES[:2])
    assert await of_datasets(lists, filter=f"create_time = {third}") == [NAMES[2]]
    assert await of_datasets(lists, filter=f'schema_id = "{SCHEMAS["union"]}"') == ["union"] * 3


async def test_batches_are_filtered_by_state_and_time(lists: Lists) -> None:
    async def found(**arguments: Any) -> list[str]:
        return [one.id for one in await lists.all_of("ListBatches", dataset_id=lists.source, **arguments)]

    whole = await found()
    batch: batch_pb2.Batch = await lists.caller.batch("good-2")
    ingested = batch.ingest_time.ToJsonString()

    assert whole == ["good-0", "good-2", "files"]
    assert await found(filter=f"ingest_time >= {ingested}") == ["good-2", "files"]
    assert await found(filter=f"ingest_time >= {ingested}", order_by="ingest_time desc") == [
        "files",
        "good-2",
    ]
    assert await found(filter="state = REVERTED") == ["good-1"]
    assert await found(filter="state = BATCH_STATE_LOADING") == ["open"]
    others = ["good-1", "open", "given-up"]
    assert await found(filter="state != SUCCEEDED", order_by="create_time") == others
    assert sorted(await found(filter="state != SUCCEEDED")) == sorted(others)
    assert sorted(await found(filter="state != EXPIRED")) == sorted([*whole, *others])
    assert set((await found(filter="state != EXPIRED", order_by="ingest_time"))[:2]) == {"open", "given-up"}
    assert await found(filter=f"state != SUCCEEDED AND ingest_time < {ingested}") == ["good-1"]


async def test_files_and_rejected_rows_are_filtered(lists: Lists) -> None:
    async def rows(text: str) -> list[tuple[str, int]]:
        found = await lists.all_of("ListRejectedRows", batch_id="files", filter=text)
        return [(one.file_name, one.row_number) for one in found]

    files = [one.name for one in await lists.all_of("ListBatchFiles", batch_id="files")]
    one_file = await lists.all_of("ListBatchFiles", batch_id="files", filter=f'name = "{files[1]}"')
    reasons = {one.reason for one in await lists.all_of("ListRejectedRows", batch_id="files")}

    assert [one.name for one in one_file] == [files[1]]
    assert await lists.all_of("ListBatchFiles", batch_id="files", filter=f'name > "{files[2]}"') == []
    assert await rows("file_name = b") == [("b", 2), ("b", 3), ("b", 4)]
    assert "JSON_INVALID" in reasons
    assert await rows("reason = JSON_INVALID AND file_name != b") == [("a", 3), ("c", 3)]
    assert await rows('path = "crmId"') == [(name, row) for name in "abc" for row in (2, 4)]


async def test_schemas_are_filtered_built_in_ones_too(lists: Lists) -> None:
    async def found(text: str, **arguments: Any) -> list[str]:
        return [one.id for one in await lists.all_of("ListSchemas", 1, filter=text, **arguments)]

    registered = [f"https://example.com/{name}" for name in "baz"]
    second = (await lists.all_of("ListSchemas", 1000, filter="built_in = false"))[
        1
    ].create_time.ToJsonString()

    assert await found("built_in = true") == sorted(SCHEMAS.values())
    assert await found("built_in != true") == registered
    assert await found("kind = EVENT") == [SCHEMAS["event"], registered[1]]
    assert await found(f'class_id = "{SCHEMAS["event"]}"', order_by="id desc") == [
        SCHEMAS["event"],
        registered[1],
    ]
    assert await found(f"create_time >= {second}") == registered[1:]
    assert await found(f"create_time != {second}") == [registered[0], registered[2]]


async def test_policies_are_filtered_the_built_in_one_too(lists: Lists) -> None:
    whole = await lists.all_of("ListMergePolicies", 1000)

    async def found(text: str) -> list[int]:
        return [whole.index(one) for one in await lists.all_of("ListMergePolicies", 1, filter=text)]

    assert await found("is_default = true") == [0]
    assert await found("is_default = false") == [1, 2]
    assert await found("identity_graph = NONE") == [0, 2]
    assert await found("attribute_merge.type = DATA_SET_PRECEDENCE") == [2]
    assert await found("attribute_merge.type != ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE") == [0, 1]
    assert await found("name = policy AND identity_graph = IDENTITY_GRAPH_PDG") == [1]


async def test_jobs_are_filtered_by_state_destination_and_time(lists: Lists) -> None:
    async def found(text: str, **arguments: Any) -> list[int]:
        return [one.id for one in await lists.all_of("ListJobs", 1, filter=text, **arguments)]

    whole: list[job_pb2.ExportJob] = await lists.all_of("ListJobs", 1000)
    third, second, first = (job.id for job in whole)
    cancelled = [job.id for job in whole if job.state == job_pb2.JOB_STATE_CANCELLED]
    middle = whole[1].create_time.ToJsonString()

    assert await found("state = CANCELLED") == cancelled
    assert await found("state != JOB_STATE_CANCELLED") == [job.id for job in whole if job.id not in cancelled]
    assert await found(f"dataset_id = {lists.destinations[0]}") == [first]
    assert await found(f"create_time >= {middle}") == [third, second]
    assert await found(f"create_time <= {middle}", order_by="create_time") == [first, second]
    assert await found(f"update_time < {whole[0].create_time.ToJsonString()}") == [second, first]


@pytest.mark.parametrize(
    ("method", "arguments", "field"),
    [
        ("ListDatasets", {"filter": "size > 1"}, "filter"),
        ("ListDatasets", {"filter": "kind > RECORD"}, "filter"),
        ("ListDatasets", {"order_by": "kind"}, "order_by"),
        ("ListBatches", {"filter": "state = DONE"}, "filter"),
        ("ListBatches", {"order_by": "create_time asc"}, "order_by"),
        ("ListBatchFiles", {"batch_id": "files", "filter": "name"}, "filter"),
        ("ListRejectedRows", {"batch_id": "files", "order_by": "row_number"}, "order_by"),
        ("ListSchemas", {"filter": "create_time > yesterday"}, "filter"),
        ("ListMergePolicies", {"filter": "is_default = yes"}, "filter"),
        ("ListJobs", {"order_by": "create_time, id"}, "order_by"),
    ],
)
async def test_what_a_list_cannot_be_filtered_or_sorted_by_is_refused(
    lists: Lists, method: str, arguments: dict[str, str], field: str
) -> None:
    refused = await refusal_of(lists.all_of(method, 2, **arguments))

    assert (refused.code, refused.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert refused.fields == [field]


async def test_a_name_that_changes_between_two_pages_costs_no_other_its_place(
    channel: grpc.aio.Channel,
) -> None:
    """What exists throughout, under the same name, is neither repeated nor skipped."""
    caller = Caller(channel, "renames")
    made = [await caller.dataset("event", name=name) for name in "abcd"]
    request = ds.ListDatasetsRequest(page_size=2, order_by="name")
    first = await caller.datasets.ListDatasets(request, metadata=caller.metadata)
    await caller.update(made[1], name="z")
    await caller.delete(made[0])

    request.page_token = first.next_page_token
    second = await caller.datasets.ListDatasets(request, metadata=caller.metadata)

    def named(page: ds.ListDatasetsResponse) -> list[str]:
        return [dataset.name for dataset in page.datasets]

    assert (named(first), named(second)) == (["a", "b"], ["c", "d"])
