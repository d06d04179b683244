"""A change that is meant for a resource as it was changes nothing that others have changed since."""

from __future__ import annotations

import asyncio

import grpc

from profile_export.v1 import dataset_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_NONE, IDENTITY_GRAPH_PDG, MergePolicy
from tests.service.harness import Caller, Refusal, declarations, refusal_of

TAGS = ds.DatasetTags(entries={"a": dataset_pb2.TagValues(values=["1"])})


def assert_mismatch(refused: Refusal, present: str) -> None:
    assert (refused.code, refused.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert refused.metadata["etag"] == present
    assert refused.retry_seconds is None  # the same call will never do


async def update(caller: Caller, policy_id: str, **changes: object) -> MergePolicy:
    request = ps.UpdateMergePolicyRequest(merge_policy_id=policy_id, **changes)  # type: ignore[arg-type]
    return (await caller.profiles.UpdateMergePolicy(request, metadata=caller.metadata)).merge_policy


async def test_a_dataset_has_another_etag_after_each_change_of_its_own(caller: Caller) -> None:
    dataset_id = await caller.dataset("record", {"id": "CRM"})
    tags = [(await caller.get_dataset(dataset_id)).etag]
    changes: tuple[dict[str, object], ...] = (
        {"name": "new"},
        {"description": "new"},
        {"tags": TAGS},
        {"iceberg": dataset_pb2.IcebergSettings(enabled=True)},
        {"add_declared_fields": declarations({"age": dataset_pb2.SCALAR_TYPE_LONG})},
    )
    for change in changes:
        tags.append((await caller.update(dataset_id, etag=tags[-1], **change)).etag)
    await caller.upload(dataset_id, "b", [{"id": "1", "learned": "x"}])
    unchanged = await caller.update(dataset_id, name="new", etag=tags[-1])
    deleted = await caller.delete(dataset_id)
    back = await caller.undelete(dataset_id)

    assert all(tag.startswith('W/"') and tag.endswith('"') for tag in tags)
    assert len({*tags, deleted.etag}) == len(changes) + 2
    assert unchanged.etag == back.etag == tags[-1]


async def test_a_dataset_that_has_changed_is_neither_changed_nor_deleted_by_who_does_not_know(
    caller: Caller,
) -> None:
    dataset_id = await caller.dataset("record", {"id": "CRM"})
    old = (await caller.get_dataset(dataset_id)).etag
    present = (await caller.update(dataset_id, description="of somebody else")).etag
    delete = ds.DeleteDatasetRequest(dataset_id=dataset_id, etag=old)

    refusals = [
        await refusal_of(caller.update(dataset_id, name="mine", etag=old)),
        await refusal_of(caller.update(dataset_id, description="of somebody else", etag="made up")),
        await refusal_of(caller.datasets.DeleteDataset(delete, metadata=caller.metadata)),
    ]

    for refused in refusals:
        assert_mismatch(refused, present)
    assert (await caller.get_dataset(dataset_id)).name == "record"
    assert (await caller.update(dataset_id, name="mine")).name == "mine"


async def test_of_many_who_change_what_they_have_all_seen_one_does(caller: Caller) -> None:
    dataset_id = await caller.dataset("record", {"id": "CRM"})
    seen = (await caller.get_dataset(dataset_id)).etag

    done = await asyncio.gather(
        *(caller.update(dataset_id, name=f"{number}", etag=seen) for number in range(8)),
        return_exceptions=True,
    )

    [one] = [answer for answer in done if isinstance(answer, dataset_pb2.Dataset)]
    assert (await caller.get_dataset(dataset_id)) == one


async def test_a_policy_has_another_etag_after_each_change_also_of_the_default(caller: Caller) -> None:
    # given two policies, the second of which becomes the default
    one, other = await caller.policy(IDENTITY_GRAPH_NONE), await caller.policy(IDENTITY_GRAPH_NONE)
    first = await update(caller, one, is_default=True)
    changed = await update(caller, one, identity_graph=IDENTITY_GRAPH_PDG, etag=first.etag)
    await update(caller, other, is_default=True)

    # when it is changed by who has not seen that, and by who has
    refused = await refusal_of(update(caller, one, name="new", etag=changed.etag))
    delete = ps.DeleteMergePolicyRequest(merge_policy_id=one, etag=changed.etag)
    kept = await refusal_of(caller.profiles.DeleteMergePolicy(delete, metadata=caller.metadata))
    present = refused.metadata["etag"]
    renamed = await update(caller, one, name="new", etag=present)

    # then only the latter is done
    for refusal in (refused, kept):
        assert_mismatch(refusal, present)
    assert len({first.etag, changed.etag, present, renamed.etag}) == 4
    assert (renamed.name, renamed.version) == ("new", 3)
    delete.etag = renamed.etag
    await caller.profiles.DeleteMergePolicy(delete, metadata=caller.metadata)
