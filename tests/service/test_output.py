from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

from profile_export.domain.merging.identity import Identity, profile_id
from profile_export.v1 import batch_pb2, job_pb2, merge_policy_pb2, profile_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import export_service_pb2 as es
from profile_export.v1 import profile_service_pb2 as ps
from tests.service.harness import Caller, export_spec, refusal_of, types_of

Reader = Callable[[list[str]], list[dict[str, Any]]]


def by_duckdb(paths: list[str]) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        found = connection.execute(
            'SELECT crmId, person."name", tags, len("timeSeriesEvents") AS events,'
            ' map_keys("identityMap") AS namespaces FROM read_parquet(?) ORDER BY crmId',
            [paths],
        )
        names = [column[0] for column in found.description or []]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]


def by_polars(paths: list[str]) -> list[dict[str, Any]]:
    frame = pl.read_parquet(paths).sort("crmId")
    return [
        {
            "crmId": row["crmId"],
            "name": row["person"]["name"],
            "tags": row["tags"],
            "events": None if row["timeSeriesEvents"] is None else len(row["timeSeriesEvents"]),
            "namespaces": list(row["identityMap"]),
        }
        for row in frame.to_dicts()
    ]


def by_pyarrow(paths: list[str]) -> list[dict[str, Any]]:
    rows = pq.ParquetDataset(paths).read().sort_by("crmId").to_pylist()
    return [
        {
            "crmId": row["crmId"],
            "name": row["person"]["name"],
            "tags": row["tags"],
            "events": None if row["timeSeriesEvents"] is None else len(row["timeSeriesEvents"]),
            "namespaces": [key for key, _ in row["identityMap"]],
        }
        for row in rows
    ]


@pytest.mark.parametrize("read", [by_duckdb, by_polars, by_pyarrow])
async def test_the_output_reads_the_same_in_place_and_from_a_download(
    caller: Caller, tmp_path: Path, read: Reader
) -> None:
    source = await caller.dataset("record", {"crmId": "CRM"})
    events = await caller.dataset("event", {"crmId": "CRM"})
    out = await caller.dataset("union")
    rows = [
        {"crmId": str(number), "person": {"name": f"n{number}"}, "tags": ["a", "b"]} for number in range(3)
    ]
    await caller.upload(source, "rows", rows)
    await caller.upload(events, "events", [{"_id": "e", "timestamp": "2026-01-01T00:00:00Z", "crmId": "1"}])
    job = await caller.export(out, events=job_pb2.EventList())
    files = await caller.files(job.batch_id)

    in_place = read([unquote(urlsplit(file.location).path) for file in files])
    downloaded = []
    for file in files:
        data = await caller.download(job.batch_id, file.name)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
        (tmp_path / file.name).write_bytes(data)
        downloaded.append(str(tmp_path / file.name))

    assert in_place == [
        {"crmId": "0", "name": "n0", "tags": ["a", "b"], "events": None, "namespaces": ["CRM"]},
        {"crmId": "1", "name": "n1", "tags": ["a", "b"], "events": 1, "namespaces": ["CRM"]},
        {"crmId": "2", "name": "n2", "tags": ["a", "b"], "events": None, "namespaces": ["CRM"]},
    ]
    assert read(downloaded) == in_place


async def test_every_column_of_the_output_is_optional_and_says_its_batch(caller: Caller) -> None:
    source = await caller.dataset("record", {"crmId": "CRM"})
    await caller.upload(source, "rows", [{"crmId": "1"}])
    job = await caller.export(await caller.dataset("union"))
    [file] = await caller.files(job.batch_id)

    schema = pq.read_schema(unquote(urlsplit(file.location).path))

    assert all(field.nullable for field in schema)
    told = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
    assert told["profile-export.job-id"] == str(job.id)
    assert told["profile-export.batch-id"] == job.batch_id
    assert told["profile-export.policy-id"] == job.spec.merge_policy.id
    assert [row["_batch_id"] for row in await caller.rows(job.batch_id)] == [job.batch_id]


@pytest.mark.parametrize("graph", [merge_policy_pb2.IDENTITY_GRAPH_NONE, merge_policy_pb2.IDENTITY_GRAPH_PDG])
async def test_the_rows_of_a_file_are_in_the_order_of_their_profiles(
    caller: Caller, graph: merge_policy_pb2.IdentityGraph.ValueType
) -> None:
    crm = await caller.dataset("record", {"crmId": "CRM", "email": "Email"})
    shop = await caller.dataset("record", {"email": "Email"})
    people = [{"crmId": f"{number}", "email": f"{number}@x.org"} for number in range(3_000)]
    await caller.upload(crm, "crm", people)
    await caller.upload(shop, "shop", [{"email": one["email"], "city": "Oslo"} for one in people[::2]])

    job = await caller.export(await caller.dataset("union"), policy=await caller.policy(graph))

    for file in await caller.files(job.batch_id):
        table = pq.read_table(unquote(urlsplit(file.location).path), columns=["_profile_id"])
        ids = table["_profile_id"].to_pylist()
        assert len(ids) >= 3_000
        assert ids == sorted(set(ids))


async def test_rows_and_look_ups_of_one_person_have_one_id_while_the_identities_stay(caller: Caller) -> None:
    # given two people, one of whom two sources know under other identities
    crm = await caller.dataset("record", {"crmId": "CRM", "email": "Email"})
    shop = await caller.dataset("record", {"email": "Email"})
    out, other = await caller.dataset("union"), await caller.dataset("union")
    await caller.upload(crm, "crm-1", [{"crmId": "1", "email": "a@x.org"}, {"crmId": "2"}])
    await caller.upload(shop, "shop-1", [{"email": "a@x.org", "city": "Oslo"}])
    graph = await caller.policy(merge_policy_pb2.IDENTITY_GRAPH_PDG)

    async def ids(dataset: str, **options: Any) -> dict[str | None, str]:
        job = await caller.export(dataset, **options)
        return {row.get("crmId"): row["_profile_id"] for row in await caller.rows(job.batch_id)}

    # when they are exported, change, and are exported into another dataset with other fields
    first = await ids(out, policy=graph)
    await caller.upload(crm, "crm-2", [{"crmId": "1", "name": "Ann"}])
    await caller.upload(shop, "shop-2", [{"email": "a@x.org", "city": "Bergen"}, {"email": "new@x.org"}])
    second = await ids(other, policy=graph, fields=["crmId", "city"])
    alone = await ids(out)

    # then their ids are the same, as a look-up by any identity has them
    assert {crm_id: second[crm_id] for crm_id in first} == first
    assert len(set(second.values())) == 3
    for who, crm_id in (("CRM:1", "1"), ("Email:a@x.org", "1"), ("CRM:2", "2"), ("email:new@x.org", None)):
        assert (await caller.profile(who, graph)).profile_id == second[crm_id]
    # and with graph `none`, which has another person for each primary identity, the id is that identity's own
    assert alone["1"] == profile_id(Identity("CRM", "1")) == (await caller.profile("CRM:1")).profile_id
    assert first["1"] in {alone["1"], profile_id(Identity("Email", "a@x.org"))}


async def test_an_export_that_replaces_is_all_that_the_dataset_has_from_then_on(caller: Caller) -> None:
    source, out = await caller.dataset("record", {"crmId": "CRM"}), await caller.dataset("union")
    await caller.upload(source, "rows", [{"crmId": "1"}])
    first, second = await caller.export(out), await caller.export(out, mode=job_pb2.WRITE_MODE_APPEND)

    job = await caller.export(out, mode=job_pb2.WRITE_MODE_REPLACE)

    assert [one.spec.destination.mode for one in (first, second, job)] == [
        job_pb2.WRITE_MODE_APPEND,
        job_pb2.WRITE_MODE_APPEND,
        job_pb2.WRITE_MODE_REPLACE,
    ]
    assert await caller.visible_batches(out) == [job.batch_id]
    former = await caller.batch(second.batch_id)
    assert (former.state, former.replaced_by_job_id) == (batch_pb2.BATCH_STATE_REPLACED, job.id)
    asked = ds.GetReceiptRequest(batch_id=job.batch_id)
    receipt = (await caller.datasets.GetReceipt(asked, metadata=caller.metadata)).receipt
    assert list(receipt.replaced_batch_ids) == [first.batch_id, second.batch_id]
    assert list(job.notes) == [f"It has replaced 2 batches, the newest of them '{second.batch_id}'."]
    refused = await refusal_of(caller.create(export_spec(out, mode=7)))
    assert (refused.code.name, refused.fields) == ("INVALID_ARGUMENT", ["spec.destination.mode"])


async def test_job_receipt_and_estimate_name_the_identity_that_glues_strangers(caller: Caller) -> None:
    out, graph = await _strangers(caller)

    job = await caller.export(out, policy=graph)
    apart = await caller.export(out)
    asked = es.EstimateJobRequest(spec=export_spec(out, policy=graph))
    estimate = await caller.exports.EstimateJob(asked, metadata=caller.metadata)

    assert (job.metrics.profiles_exported, job.metrics.left_out.too_many_identities) == (1, 1)
    assert list(job.notes) == [
        "1 profile was left out for more than 50 identities.",
        (
            "The identity 'NULL' of the namespace 'Email' links most: it occurs with 60 others. If it is nobody's own,"
            " leave it out where it comes from, or add it to the policy's excluded_identities (`profile-export policies"
            f" update {graph} --exclude Email:NULL`)."
        ),
    ]
    receipt = ds.GetReceiptRequest(batch_id=job.batch_id)
    proven = (await caller.datasets.GetReceipt(receipt, metadata=caller.metadata)).receipt
    assert list(proven.notes) == list(estimate.notes) == list(job.notes)
    # Without a graph they are apart, and the job says what that leaves.
    assert apart.identity_graph == merge_policy_pb2.IDENTITY_GRAPH_NONE
    assert [note.split(":")[0] for note in apart.notes] == [
        "The graph of the merge policy is none, which links nobody, though 1 identity occurs with several primary ones"
    ]


async def _strangers(caller: Caller) -> tuple[str, str]:
    """Upload 60 people of one placeholder and one person; return a destination and a policy with a graph."""
    crm, out = (
        await caller.dataset("record", {"crmId": "CRM", "email": "Email"}),
        await caller.dataset("union"),
    )
    strangers = [{"crmId": str(number), "email": "NULL"} for number in range(60)]
    await caller.upload(crm, "rows", [*strangers, {"crmId": "ann", "email": "a@x.org"}])
    graph = await caller.policy(merge_policy_pb2.IDENTITY_GRAPH_PDG)
    return out, graph


async def test_an_excluded_identity_glues_nobody_in_exports_estimates_and_look_ups(caller: Caller) -> None:
    # given strangers who were exported as one, so that their graph is kept
    out, graph = await _strangers(caller)
    glued = await caller.export(out, policy=graph)

    # when the policy excludes what they share
    null = merge_policy_pb2.ExcludedIdentity(namespace="email", id="NULL")
    change = ps.UpdateMergePolicyRequest(
        merge_policy_id=graph,
        excluded_identities=merge_policy_pb2.ExcludedIdentities(identities=[null]),
    )
    await caller.profiles.UpdateMergePolicy(change, metadata=caller.metadata)
    freed = await caller.export(out, policy=graph)
    asked = es.EstimateJobRequest(spec=export_spec(out, policy=graph))
    estimate = await caller.exports.EstimateJob(asked, metadata=caller.metadata)
    stranger = await caller.profile("CRM:7", graph)
    unknown = await refusal_of(caller.profile("Email:NULL", graph))

    # then each is a profile of its own, and nothing is left to be said
    assert [job.metrics.profiles_exported for job in (glued, freed)] == [1, 61]
    assert [job.metrics.left_out.too_many_identities for job in (glued, freed)] == [1, 0]
    assert [job.excluded_identity_count for job in (glued, freed)] == [0, 1]
    assert estimate.profiles.value == 61
    assert list(freed.notes) == list(estimate.notes) == []
    assert [(one.namespace, one.id) for one in stranger.identities] == [("CRM", "7")]
    assert stranger.values["email"] == "NULL"
    assert unknown.reason == "PROFILE_NOT_FOUND"
    receipt = ds.GetReceiptRequest(batch_id=freed.batch_id)
    proven = (await caller.datasets.GetReceipt(receipt, metadata=caller.metadata)).receipt
    assert list(proven.merge_policy.excluded_identities) == [null]
    # and the version before links as it did
    former = await caller.export(out, policy=graph, policy_version=1)
    looked_up = ps.GetProfileRequest(
        identity=profile_pb2.Identity(namespace="CRM", id="7"),
        merge_policy=merge_policy_pb2.MergePolicyRef(id=graph, version=1),
    )
    refused = await refusal_of(caller.profiles.GetProfile(looked_up, metadata=caller.metadata))
    assert list(former.notes) == list(glued.notes)
    assert (refused.reason, refused.metadata["identities"]) == ("TOO_MANY_IDENTITIES", "61")


async def test_a_job_without_any_source_succeeds_with_an_empty_batch(caller: Caller) -> None:
    job = await caller.export(await caller.dataset("union"))

    assert job.metrics.profiles_exported == 0
    assert list(await caller.files(job.batch_id)) == []


async def test_fields_choose_columns_and_events_have_fields_of_their_own(caller: Caller) -> None:
    source = await caller.dataset("record", {"crmId": "CRM"})
    events = await caller.dataset("event", {"crmId": "CRM"})
    await caller.upload(source, "rows", [{"crmId": "1", "person": {"name": "n", "age": 4}, "city": "Oslo"}])
    event = {"_id": "e", "timestamp": "2026-01-01T00:00:00Z", "crmId": "1", "web": {"page": "/", "ms": 3}}
    await caller.upload(events, "events", [event])

    job = await caller.export(
        await caller.dataset("union"),
        fields=["identities.id", "person.name"],
        events=job_pb2.EventList(fields=["web.page"]),
    )

    [row] = await caller.rows(job.batch_id)
    del row["_batch_id"], row["_profile_id"]
    assert row == {
        "identityMap": [("CRM", [{"id": "1"}])],
        "person": {"name": "n"},
        "timeSeriesEvents": [{"web": {"page": "/"}}],
    }


async def test_s18_adjacent_windows_of_ingest_time_neither_lose_nor_repeat_an_event(caller: Caller) -> None:
    source = await caller.dataset("record", {"crmId": "CRM"})
    events = await caller.dataset("event", {"crmId": "CRM"})
    out = await caller.dataset("union")
    await caller.upload(source, "rows", [{"crmId": "1"}])
    batches = [
        await caller.upload(
            events, f"b{number}", [{"_id": str(number), "timestamp": "2026-01-01T00:00:00Z", "crmId": "1"}]
        )
        for number in range(3)
    ]
    middle = batches[1].ingest_time

    early = await caller.export(
        out, events=job_pb2.EventList(filter=job_pb2.EventFilter(to_ingest_time=middle))
    )
    late = await caller.export(
        out, events=job_pb2.EventList(filter=job_pb2.EventFilter(from_ingest_time=middle))
    )

    [before], [after] = await caller.rows(early.batch_id), await caller.rows(late.batch_id)
    assert [event["_id"] for event in before["timeSeriesEvents"]] == ["0", "1"]
    assert [event["_id"] for event in after["timeSeriesEvents"]] == ["2"]


async def test_a_destination_lists_the_fields_of_all_that_was_exported_to_it(caller: Caller) -> None:
    source, union = await caller.dataset("record", {"id": "CRM"}), await caller.dataset("union")
    await caller.upload(source, "b", [{"id": "1", "name": {"first": "Ann"}, "age": 40}])
    empty = await caller.get_dataset(union)

    await caller.export(union, fields=["name"])
    first = types_of((await caller.get_dataset(union)).fields)
    await caller.export(union, fields=["identityMap", "age"])
    second = types_of((await caller.get_dataset(union)).fields)

    assert list(empty.fields) == []
    assert first == {"name": {"first": "string"}}
    assert second == {
        "age": "double",
        "identityMap": {"*": [{"authenticatedState": "string", "id": "string", "primary": "boolean"}]},
        "name": {"first": "string"},
    }
