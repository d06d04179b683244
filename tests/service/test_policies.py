"""Merge policies: what may be said of them, their versions, which one is the default, and what jobs have of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from typing import Any

import grpc
import pytest

from profile_export.v1 import dataset_pb2, job_pb2, merge_policy_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import profile_service_pb2 as ps
from tests.service.harness import Caller, Refusal, refusal_of

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
PRECONDITION, UNIMPLEMENTED = grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED
NONE, PDG = merge_policy_pb2.IDENTITY_GRAPH_NONE, merge_policy_pb2.IDENTITY_GRAPH_PDG
BUILT_IN = "timestampOrdered-none-mp"
APART = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:false"])}
Policy = merge_policy_pb2.MergePolicy
NULL = {"namespace": "Email", "id": "NULL"}


def by_time(*order: str) -> merge_policy_pb2.AttributeMerge:
    kind = merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_TIMESTAMP_ORDERED
    return merge_policy_pb2.AttributeMerge(type=kind, order=order)


def ranked(*order: str) -> merge_policy_pb2.AttributeMerge:
    kind = merge_policy_pb2.ATTRIBUTE_MERGE_TYPE_DATA_SET_PRECEDENCE
    return merge_policy_pb2.AttributeMerge(type=kind, order=order)


async def create(caller: Caller, **values: Any) -> Policy:
    asked: dict[str, Any] = {"name": "policy", "attribute_merge": by_time(), "identity_graph": NONE} | values
    request = ps.CreateMergePolicyRequest(**asked)
    return (await caller.profiles.CreateMergePolicy(request, metadata=caller.metadata)).merge_policy


async def get(caller: Caller, policy_id: str, version: int | None = None) -> Policy:
    request = ps.GetMergePolicyRequest(merge_policy_id=policy_id, version=version)
    return (await caller.profiles.GetMergePolicy(request, metadata=caller.metadata)).merge_policy


async def update(caller: Caller, policy_id: str, **changes: Any) -> Policy:
    request = ps.UpdateMergePolicyRequest(merge_policy_id=policy_id, **changes)
    return (await caller.profiles.UpdateMergePolicy(request, metadata=caller.metadata)).merge_policy


async def delete(caller: Caller, policy_id: str) -> None:
    request = ps.DeleteMergePolicyRequest(merge_policy_id=policy_id)
    await caller.profiles.DeleteMergePolicy(request, metadata=caller.metadata)


async def page(caller: Caller, **arguments: Any) -> ps.ListMergePoliciesResponse:
    request = ps.ListMergePoliciesRequest(**arguments)
    return await caller.profiles.ListMergePolicies(request, metadata=caller.metadata)


async def default_of(caller: Caller) -> str:
    """Return the one policy that is listed as the default."""
    [default] = [one.id for one in (await page(caller)).merge_policies if one.is_default]
    return default


def named(refusal: Refusal) -> tuple[grpc.StatusCode, str, list[str]]:
    return refusal.code, refusal.reason, refusal.fields


# --- Made and looked up ---


async def test_a_policy_is_what_was_said_of_it(caller: Caller) -> None:
    crm = await caller.dataset("record", {"id": "CRM"})
    web = await caller.dataset("event", {"id": "CRM"})

    made = await create(caller, name="Home", attribute_merge=ranked(web, crm), identity_graph=PDG)

    assert (made.version, made.name, made.schema_name) == (1, "Home", "_xdm.context.profile")
    assert (made.attribute_merge, made.identity_graph) == (ranked(web, crm), PDG)
    assert (made.is_default, made.built_in) == (False, False)
    assert made.create_time == made.update_time
    assert made.HasField("create_time")
    assert await get(caller, made.id) == made
    assert await get(caller, made.id, 1) == made


async def test_a_repetition_makes_another_policy(caller: Caller) -> None:
    first, second = await create(caller), await create(caller)

    assert first.id != second.id


async def test_the_built_in_policy_can_be_looked_up(caller: Caller) -> None:
    policy = await get(caller, BUILT_IN)

    assert policy == await get(caller, BUILT_IN, 1)
    assert (policy.version, policy.built_in, policy.is_default) == (1, True, True)
    assert (policy.attribute_merge, policy.identity_graph) == (by_time(), NONE)
    assert not policy.HasField("create_time")
    assert not policy.HasField("update_time")


@pytest.mark.parametrize(
    ("values", "field", "reason"),
    [
        ({"name": ""}, "name", "FIELD_REQUIRED"),
        ({"name": "x" * 256}, "name", "FIELD_TOO_LONG"),
        ({"attribute_merge": None}, "attribute_merge.type", "FIELD_REQUIRED"),
        ({"attribute_merge": {"type": 7}}, "attribute_merge.type", "FIELD_INVALID"),
        ({"identity_graph": 0}, "identity_graph", "FIELD_REQUIRED"),
        ({"identity_graph": 7}, "identity_graph", "FIELD_INVALID"),
        ({"schema_name": "_xdm.context.account"}, "schema_name", "FIELD_INVALID"),
        ({"excluded_identities": [NULL, {"id": "x"}]}, "excluded_identities[1].namespace", "FIELD_REQUIRED"),
        ({"excluded_identities": [{"namespace": "Email"}]}, "excluded_identities[0].id", "FIELD_REQUIRED"),
        ({"excluded_identities": [NULL] * 1_001}, "excluded_identities", "TOO_MANY_ITEMS"),
    ],
)
async def test_a_wrong_policy_is_refused_by_field(
    caller: Caller, values: dict[str, Any], field: str, reason: str
) -> None:
    refusal = await refusal_of(create(caller, **values))

    assert named(refusal) == (INVALID, reason, [field])
    assert len((await page(caller)).merge_policies) == 1


async def test_the_class_may_be_named(caller: Caller) -> None:
    assert (await create(caller, schema_name="_xdm.context.profile")).version == 1


async def test_what_is_not_there_is_not_found(caller: Caller) -> None:
    made = await create(caller)

    calls: list[Awaitable[object]] = [
        get(caller, "nowhere"),
        get(caller, made.id, 2),
        get(caller, made.id, 0),
        get(caller, BUILT_IN, 2),
        update(caller, "nowhere", name="x"),
        delete(caller, "nowhere"),
    ]
    refusals = [await refusal_of(call) for call in calls]

    assert {(refusal.code, refusal.reason) for refusal in refusals} == {(NOT_FOUND, "MERGE_POLICY_NOT_FOUND")}
    assert [refusal.metadata["id"] for refusal in refusals[:2]] == ["nowhere", f"{made.id}@2"]


async def test_a_call_that_names_no_policy_is_refused(caller: Caller) -> None:
    calls: list[Awaitable[object]] = [get(caller, ""), update(caller, "", name="x"), delete(caller, "")]
    refusals = [await refusal_of(call) for call in calls]

    assert [named(refusal) for refusal in refusals] == [(INVALID, "FIELD_REQUIRED", ["merge_policy_id"])] * 3


# --- Order ---


async def test_an_order_that_cannot_be_is_refused_by_its_place(caller: Caller) -> None:
    # given a source, and what is none
    crm = await caller.dataset("record", {"id": "CRM"})
    union = await caller.dataset("union")
    apart = await caller.dataset("record", {"id": "CRM"}, tags=APART)
    policy = await create(caller)

    # when they are ranked, or ranked in vain
    wrong = {
        "attribute_merge.order": [ranked(), by_time(crm)],
        "attribute_merge.order[1]": [ranked(crm, crm), ranked(crm, union), ranked(crm, apart)],
    }

    # then nothing is made or changed, and the place is named
    for field, rules in wrong.items():
        for rule in rules:
            made = await refusal_of(create(caller, attribute_merge=rule))
            changed = await refusal_of(update(caller, policy.id, attribute_merge=rule))
            assert named(made) == named(changed) == (INVALID, "ORDER_INVALID", [field])
    assert [one.id for one in (await page(caller)).merge_policies] == [BUILT_IN, policy.id]
    assert await get(caller, policy.id) == policy


async def test_an_order_names_datasets_of_the_tenant_that_are_there(caller: Caller, stranger: Caller) -> None:
    # given a dataset that is gone and one of somebody else
    gone = await caller.dataset("record", {"id": "CRM"})
    await caller.delete(gone)
    theirs = await stranger.dataset("record", {"id": "CRM"})
    policy = await create(caller)

    # when they are ranked
    calls = [create(caller, attribute_merge=ranked(one)) for one in ("nowhere", gone, theirs)]
    calls.append(update(caller, policy.id, attribute_merge=ranked(theirs)))
    refusals = [await refusal_of(call) for call in calls]

    # then they are not there
    assert {(refusal.code, refusal.reason) for refusal in refusals} == {(INVALID, "ORDER_INVALID")}
    assert {tuple(refusal.fields) for refusal in refusals} == {("attribute_merge.order[0]",)}
    assert all(one in refusal.message for one, refusal in zip([gone, theirs], refusals[1:3], strict=True))


async def test_an_order_stays_as_it_is_where_a_dataset_has_gone_since(caller: Caller) -> None:
    # given a policy that ranks what was a source once
    crm, shop = await caller.dataset("record", {"id": "CRM"}), await caller.dataset("record", {"id": "CRM"})
    made = await create(caller, attribute_merge=ranked(crm, shop))
    await caller.delete(crm)
    await caller.update(shop, tags=ds.DatasetTags(entries=APART))

    # when the rest changes, and when the same order is said again
    changed = await update(caller, made.id, name="new")
    again = await update(caller, made.id, attribute_merge=ranked(crm, shop))

    # then it stays, and another order of the same datasets is refused
    assert (changed.version, changed.attribute_merge) == (2, ranked(crm, shop))
    assert again == changed
    refusal = await refusal_of(update(caller, made.id, attribute_merge=ranked(shop)))
    assert named(refusal) == (INVALID, "ORDER_INVALID", ["attribute_merge.order[0]"])


# --- Changed ---


async def test_each_change_makes_a_version_and_those_before_stay(caller: Caller) -> None:
    # given a policy
    crm = await caller.dataset("record", {"id": "CRM"})
    first = await create(caller, name="old")

    # when it is changed step by step
    second = await update(caller, first.id, name="new")
    third = await update(caller, first.id, identity_graph=PDG)
    fourth = await update(caller, first.id, attribute_merge=ranked(crm))

    # then the rest stayed each time, and every version can be looked up
    assert [one.version for one in (second, third, fourth)] == [2, 3, 4]
    assert (second.name, second.identity_graph, second.attribute_merge) == ("new", NONE, by_time())
    assert (third.name, third.identity_graph, third.attribute_merge) == ("new", PDG, by_time())
    assert (fourth.name, fourth.identity_graph, fourth.attribute_merge) == ("new", PDG, ranked(crm))
    found = [await get(caller, first.id, version) for version in (1, 2, 3, 4)]
    assert found == [first, second, third, fourth]
    assert await get(caller, first.id) == fourth
    times = [one.update_time.ToNanoseconds() for one in found]
    assert times == sorted(times)
    assert {one.create_time.ToNanoseconds() for one in found} == {first.create_time.ToNanoseconds()}


async def test_the_list_of_excluded_identities_is_replaced_emptied_and_left_as_it_is(caller: Caller) -> None:
    # given a policy that excludes an identity, which is given in two spellings
    unknown = {"namespace": "Phone", "id": "unknown"}
    first = await create(caller, excluded_identities=[NULL, {"namespace": "EMAIL", "id": "NULL"}])

    # when the list is replaced and emptied, and something else is changed
    second = await update(caller, first.id, excluded_identities={"identities": [unknown, NULL]})
    third = await update(caller, first.id, name="other")
    again = await update(caller, first.id, excluded_identities={"identities": [NULL, unknown]})
    fourth = await update(caller, first.id, excluded_identities={})

    # then each identity is there once, in order, and what changes nothing makes no version
    def excluded(policy: Policy) -> list[dict[str, str]]:
        return [{"namespace": one.namespace, "id": one.id} for one in policy.excluded_identities]

    assert again == third
    assert [one.version for one in (first, second, third, fourth)] == [1, 2, 3, 4]
    assert [excluded(one) for one in (first, second, third, fourth)] == [[NULL], *[[NULL, unknown]] * 2, []]
    found = [await get(caller, first.id, version) for version in (1, 2, 3, 4)]
    assert found == [first, second, third, fourth]


async def test_a_change_that_changes_nothing_leaves_the_version(caller: Caller) -> None:
    crm = await caller.dataset("record", {"id": "CRM"})
    rule: dict[str, Any] = {"name": "new", "attribute_merge": ranked(crm), "identity_graph": PDG}
    changed = await update(caller, (await create(caller)).id, **rule)

    again = await update(caller, changed.id, **rule, is_default=False)

    assert again == changed
    assert again.version == 2


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({}, "name", "FIELD_REQUIRED"),
        ({"name": ""}, "name", "FIELD_REQUIRED"),
        ({"name": "x" * 256}, "name", "FIELD_TOO_LONG"),
        ({"attribute_merge": {}}, "attribute_merge.type", "FIELD_REQUIRED"),
        ({"attribute_merge": {"order": ["x"]}}, "attribute_merge.type", "FIELD_REQUIRED"),
        ({"attribute_merge": {"type": 7}}, "attribute_merge.type", "FIELD_INVALID"),
        ({"identity_graph": 7}, "identity_graph", "FIELD_INVALID"),
        (
            {"excluded_identities": {"identities": [{"namespace": "Email"}]}},
            "excluded_identities.identities[0].id",
            "FIELD_REQUIRED",
        ),
        (
            {"excluded_identities": {"identities": [NULL] * 1_001}},
            "excluded_identities.identities",
            "TOO_MANY_ITEMS",
        ),
    ],
)
async def test_a_wrong_change_is_refused_by_field(
    caller: Caller, changes: dict[str, Any], field: str, reason: str
) -> None:
    made = await create(caller)

    refusal = await refusal_of(update(caller, made.id, **changes))

    assert named(refusal) == (INVALID, reason, [field])
    assert await get(caller, made.id) == made


async def test_the_built_in_policy_is_neither_changed_nor_deleted(caller: Caller) -> None:
    calls = [update(caller, BUILT_IN, name="mine"), update(caller, BUILT_IN, is_default=True)]
    refusals = [await refusal_of(call) for call in (*calls, delete(caller, BUILT_IN))]

    for refusal in refusals:
        assert (refusal.code, refusal.reason) == (PRECONDITION, "MERGE_POLICY_BUILT_IN")
        assert (refusal.subjects, refusal.metadata) == ([BUILT_IN], {"id": BUILT_IN})


# --- Default ---


async def test_making_a_policy_the_default_takes_it_from_the_one_before(caller: Caller) -> None:
    # given a default
    old = await create(caller, name="old", is_default=True)
    assert old.is_default
    assert not (await get(caller, BUILT_IN)).is_default

    # when another policy becomes it, by being made and by being changed
    made = await create(caller, name="made", is_default=True)
    assert await default_of(caller) == made.id
    back = await update(caller, old.id, is_default=True)

    # then there is one, and no version has changed
    assert await default_of(caller) == old.id
    assert back == old
    assert await get(caller, made.id) == Policy(**fields_of(made) | {"is_default": False, "etag": '"1"'})


def fields_of(policy: Policy) -> dict[str, Any]:
    return {field.name: value for field, value in policy.ListFields()}


async def test_a_default_that_is_given_up_or_deleted_leaves_the_built_in_one(caller: Caller) -> None:
    first, second = await create(caller, is_default=True), await create(caller)

    given_up = await update(caller, first.id, is_default=False)
    assert (given_up.is_default, given_up.version) == (False, 1)
    assert await default_of(caller) == BUILT_IN

    await update(caller, second.id, is_default=True)
    await update(caller, first.id, is_default=False)
    assert await default_of(caller) == second.id

    await delete(caller, second.id)
    assert await default_of(caller) == BUILT_IN


async def test_of_many_that_become_the_default_at_once_one_is_it(caller: Caller) -> None:
    policies = [await create(caller) for _ in range(8)]

    await asyncio.gather(*(update(caller, one.id, is_default=True, name="new") for one in policies))

    assert await default_of(caller) in {one.id for one in policies}
    assert {one.version for one in (await page(caller)).merge_policies[1:]} == {2}


async def test_a_default_is_that_of_its_tenant(caller: Caller, stranger: Caller) -> None:
    mine, theirs = await create(caller, is_default=True), await create(stranger, is_default=True)

    await update(caller, mine.id, is_default=False)

    assert await default_of(caller) == BUILT_IN
    assert await default_of(stranger) == theirs.id


# --- Deleted ---


async def test_a_deleted_policy_is_gone_from_new_requests(caller: Caller) -> None:
    union = await caller.dataset("union")
    policy = await create(caller)
    await update(caller, policy.id, name="new")

    await delete(caller, policy.id)

    looked_up = [get(caller, policy.id), get(caller, policy.id, 1), update(caller, policy.id, name="x")]
    calls = [*looked_up, delete(caller, policy.id), caller.job(union, policy=policy.id)]
    refusals = [await refusal_of(call) for call in calls]
    assert {(refusal.code, refusal.reason) for refusal in refusals} == {(NOT_FOUND, "MERGE_POLICY_NOT_FOUND")}
    assert [one.id for one in (await page(caller)).merge_policies] == [BUILT_IN]


# --- Jobs ---


def used(job: job_pb2.ExportJob) -> tuple[str, int]:
    return job.spec.merge_policy.id, job.spec.merge_policy.version


async def test_a_job_keeps_the_version_it_was_created_with(caller: Caller) -> None:
    # given a job with the first version, and one that names it later
    union = await caller.dataset("union")
    policy = await create(caller)
    first = await caller.job(union, policy=policy.id)
    await update(caller, policy.id, identity_graph=PDG)
    second = await caller.job(union, policy=policy.id)
    third = await caller.job(union, policy=policy.id, policy_version=1)

    # when the policy goes on
    await update(caller, policy.id, name="new")

    # then each has its own
    ended = [await caller.finished(job.id) for job in (first, second, third)]
    assert [used(job) for job in ended] == [(policy.id, 1), (policy.id, 2), (policy.id, 1)]


async def test_a_job_whose_policy_is_deleted_ends_with_it(caller: Caller) -> None:
    # given two records that the policy makes one person
    source = await caller.dataset("record", {"id": "CRM", "mail": "Email"})
    await caller.upload(source, "b", [{"id": "1", "mail": "a"}, {"id": "2", "mail": "a"}])
    union = await caller.dataset("union")
    policy = await create(caller, identity_graph=PDG)

    # when the policy is deleted behind a job
    job = await caller.job(union, policy=policy.id, request_id="once")
    await delete(caller, policy.id)

    # then the job ends as its policy says, and is the same job for who asks again
    ended = await caller.finished(job.id)
    assert (ended.state, used(ended)) == (job_pb2.JOB_STATE_SUCCEEDED, (policy.id, 1))
    assert ended.metrics.profiles_exported == 1
    assert (await caller.job(union, policy=policy.id, request_id="once")).id == job.id


async def test_a_job_without_a_policy_has_the_default_or_the_built_in_one(caller: Caller) -> None:
    union = await caller.dataset("union")

    before = await caller.job(union)
    policy = await create(caller, is_default=True)
    first = await caller.job(union)
    await update(caller, policy.id, identity_graph=PDG)
    second = await caller.job(union)
    named_built_in = await caller.job(union, policy=BUILT_IN)
    await update(caller, policy.id, is_default=False)
    after = await caller.job(union)

    assert [used(job) for job in (before, first, second)] == [(BUILT_IN, 1), (policy.id, 1), (policy.id, 2)]
    assert [used(job) for job in (named_built_in, after)] == [(BUILT_IN, 1), (BUILT_IN, 1)]


async def test_an_export_has_the_values_of_the_dataset_named_earlier(caller: Caller) -> None:
    # given a source that wins by time, and a policy of which it is no part until it is named last
    crm, shop = await caller.dataset("record", {"id": "CRM"}), await caller.dataset("record", {"id": "CRM"})
    await caller.upload(crm, "crm", [{"id": "1", "name": "Ada"}])
    await caller.upload(shop, "shop", [{"id": "1", "name": "A.", "tier": "gold"}])
    union = await caller.dataset("union")
    policy = await create(caller, attribute_merge=ranked(crm))

    # when it is exported by time, by the first version and by the next one
    rows = [await exported(caller, union, policy="")]
    rows.append(await exported(caller, union, policy=policy.id))
    await update(caller, policy.id, attribute_merge=ranked(crm, shop))
    rows.append(await exported(caller, union, policy=policy.id))

    # then
    assert rows == [[("A.", "gold")], [("Ada", None)], [("Ada", "gold")]]


async def exported(caller: Caller, union: str, **spec: Any) -> Sequence[tuple[Any, Any]]:
    job = await caller.export(union, **spec)
    return [(row["name"], row.get("tier")) for row in await caller.rows(job.batch_id)]


# --- Listed ---


async def test_policies_are_listed_page_by_page_in_their_newest_versions(caller: Caller) -> None:
    # given policies, the first of which has changed
    made = [await create(caller, name=str(number)) for number in range(5)]
    await update(caller, made[0].id, name="new")

    # when they are listed while one that was shown goes
    first = await page(caller, page_size=3)
    await delete(caller, first.merge_policies[-1].id)
    second = await page(caller, page_size=3, page_token=first.next_page_token)
    third = await page(caller, page_size=1, page_token=(await page(caller, page_size=1)).next_page_token)

    # then each is there once, the built-in one first
    assert [one.id for one in first.merge_policies] == [BUILT_IN, made[0].id, made[1].id]
    assert [one.id for one in second.merge_policies] == [one.id for one in made[2:]]
    assert second.next_page_token == ""
    assert [(one.id, one.version, one.name) for one in third.merge_policies] == [(made[0].id, 2, "new")]


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        ({"page_size": -1}, (INVALID, "FIELD_INVALID", ["page_size"])),
        ({"page_token": "made up"}, (INVALID, "PAGE_TOKEN_INVALID", ["page_token"])),
        ({"filter": "is_default = perhaps"}, (INVALID, "FIELD_INVALID", ["filter"])),
        ({"order_by": "version"}, (INVALID, "FIELD_INVALID", ["order_by"])),
    ],
)
async def test_a_wrong_page_is_refused(
    caller: Caller, arguments: dict[str, Any], refused: tuple[Any, ...]
) -> None:
    assert named(await refusal_of(page(caller, **arguments))) == refused


async def test_a_token_of_another_list_is_refused(caller: Caller) -> None:
    for _ in range(2):
        await caller.dataset("union")
    request = ds.ListDatasetsRequest(page_size=1)
    listed = await caller.datasets.ListDatasets(request, metadata=caller.metadata)

    refusal = await refusal_of(page(caller, page_token=listed.next_page_token))

    assert named(refusal) == (INVALID, "PAGE_TOKEN_INVALID", ["page_token"])
