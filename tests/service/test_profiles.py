"""Looking people up: what is told is what an export writes, and what is refused says why."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import grpc
import pytest
import pytest_asyncio
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp

from profile_export.api.convert.values import plain
from profile_export.v1 import dataset_pb2, job_pb2, merge_policy_pb2, profile_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from profile_export.v1 import profile_service_pb2 as ps
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_NONE, IDENTITY_GRAPH_PDG
from tests.builders import read_export
from tests.service.harness import Caller, refusal_of

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
GRAPHS = (IDENTITY_GRAPH_NONE, IDENTITY_GRAPH_PDG)
BUILT_IN = "timestampOrdered-none-mp"
UPSERTS = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:true", "isUpsert:true"])}
DISABLED = {"unifiedProfile": dataset_pb2.TagValues(values=["enabled:false"])}
TEXT, LONG = dataset_pb2.SCALAR_TYPE_STRING, dataset_pb2.SCALAR_TYPE_LONG


def stamp(text: str) -> Timestamp:
    found = Timestamp()
    found.FromJsonString(text)
    return found


def of_map(value: dataset_pb2.ScalarType.ValueType) -> dataset_pb2.FieldType:
    return dataset_pb2.FieldType(map=dataset_pb2.MapType(value=dataset_pb2.FieldType(scalar=value)))


def decimal(precision: int, scale: int) -> dataset_pb2.FieldType:
    return dataset_pb2.FieldType(decimal=dataset_pb2.DecimalType(precision=precision, scale=scale))


class Known(NamedTuple):
    """A tenant with `sources`, for those who only look."""

    caller: Caller
    datasets: Mapping[str, str]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def known(channel: grpc.aio.Channel) -> Known:
    caller = Caller(channel, f"org-{secrets.token_hex(6)}")
    return Known(caller, await sources(caller))


def by_email(email: str, **others: Any) -> dict[str, Any]:
    """A row of a dataset without identity fields."""
    return {"identityMap": {"EMAIL": [{"id": email, "primary": True}]}, **others}


def visit(event_id: str, time: str, email: str = "ann@x.org", **others: Any) -> dict[str, Any]:
    return by_email(email, _id=event_id, timestamp=f"2026-01-01T{time}Z", **others)


def segment(status: str, day: int) -> dict[str, str]:
    return {"status": status, "lastQualificationTime": f"2026-01-{day:02}T00:00:00Z"}


async def sources(caller: Caller) -> dict[str, str]:
    """Datasets that know the same people differently; return their ids by name."""
    crm = await caller.dataset(
        "record",
        {"crmId": "CRM", "email": "Email"},
        tags=UPSERTS,
        declared={"consents": of_map(TEXT), "spent": LONG, "joined": dataset_pb2.SCALAR_TYPE_DATE},
    )
    shop = await caller.dataset("record", {"email": "email"}, declared={"spent": decimal(22, 2)})
    news, web, app = (
        await caller.dataset("record"),
        await caller.dataset("event"),
        await caller.dataset("event"),
    )
    await caller.upload(
        crm,
        "crm-1",
        [
            {
                "crmId": 1,
                "email": "ann@x.org",
                "name": {"first": "Ann"},
                "consents": {"mail": "y"},
                "spent": 7,
            },
            {"crmId": 2, "email": "bob@x.org", "name": {"first": "Bob", "last": "B"}, "joined": "2020-02-29"},
            {"crmId": 3, "name": {"first": "Cy"}, "tags": []},
        ],
    )
    await caller.upload(
        shop,
        "shop-1",
        [
            {"email": "ann@x.org", "name": {"last": "Adler"}, "spent": 2**60, "tags": ["a", None, "b"]},
            {"email": "dee@x.org", "name": {}, "orders": [{"sku": "1", "lines": [{}, {"n": 1}]}]},
        ],
    )
    device = {"ecid": [{"id": "7", "authenticatedState": "loggedOut"}]}
    ann = by_email("ann@x.org", segmentMembership={"ups": {"gold": segment("realized", 3)}})
    ann["identityMap"] |= device
    await caller.upload(news, "news-1", [ann, by_email("eve@x.org")])
    await caller.upload(
        crm,
        "crm-2",
        [
            {"crmId": "1", "consents": {"call": "n", "mail": None}, "name": {"first": "Anna"}},
            {"crmId": "1", "segmentMembership": {"UPS": {"gold": segment("exited", 5), "new": {}}}},
        ],
    )
    await caller.upload(shop, "shop-2", [{"email": "ann@x.org", "tags": []}])
    await caller.upload(
        web,
        "web-1",
        [
            visit("b", "10:00:00", page="home"),
            visit("a", "10:00:00", page="home", spent=2**60),
            visit("c", "09:00:00"),
            visit("only", "08:00:00", "fay@x.org"),
        ],
    )
    await caller.upload(web, "web-2", [visit("b", "11:00:00", page="again")])
    await caller.upload(app, "app-1", [visit("a", "10:00:00", screen={"name": "start"})])
    return {"crm": crm, "shop": shop, "news": news, "web": web, "app": app}


async def exported(caller: Caller, policy: str) -> list[dict[str, Any]]:
    """Export everybody with all events; return the rows as messages have them."""
    job = await caller.export(
        await caller.dataset("union"),
        policy=policy,
        events=job_pb2.EventList(),
        filter=job_pb2.ExportFilter(empty_profiles=True),
    )
    paths = [Path(unquote(urlsplit(file.location).path)) for file in await caller.files(job.batch_id)]
    return [
        plain(row)
        for path in paths
        for row in read_export(path.parent, [path.name], job.batch_id, with_ids=True)
    ]


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.slow
async def test_everybody_exported_is_looked_up_by_each_identity_and_told_the_same(
    known: Known, graph: merge_policy_pb2.IdentityGraph.ValueType
) -> None:
    # given people whom several datasets know, and an export of all of them
    caller = known.caller
    policy = await caller.policy(graph)
    rows = await exported(caller, policy)
    assert len(rows) == {IDENTITY_GRAPH_NONE: 7, IDENTITY_GRAPH_PDG: 6}[graph]

    # when each is looked up by each identity that finds it
    for row in rows:
        attached, own = row.pop("timeSeriesEvents", []), row.pop("_profile_id")
        items = [(namespace, item) for namespace, found in row["identityMap"].items() for item in found]
        for namespace, item in items:
            if graph == IDENTITY_GRAPH_NONE and not item.get("primary"):
                continue
            profile = await caller.profile(f"{namespace.swapcase()}:{item['id']}", policy)
            events = (await caller.events(f"{namespace}:{item['id']}", policy)).events

            # then values, identities and events are those of the row
            assert (MessageToDict(profile.values), profile.profile_id) == (row, own)
            assert [(one.namespace, one.id) for one in profile.identities] == sorted(
                (namespace, item["id"]) for namespace, item in items
            )
            assert profile.merge_policy == merge_policy_pb2.MergePolicyRef(id=policy, version=1)
            assert [MessageToDict(event.values) for event in events] == attached


async def test_a_profile_says_where_it_comes_from_and_how_new_it_is(known: Known) -> None:
    caller, made = known
    policy = await caller.policy(IDENTITY_GRAPH_PDG)

    ann, fay = await caller.profile("CRM:1", policy), await caller.profile("Email:fay@x.org")

    assert list(ann.dataset_ids) == sorted(made.values())
    assert ann.ingest_time == (await caller.batch("shop-2")).ingest_time
    assert list(fay.dataset_ids) == [made["web"]]
    assert fay.ingest_time == (await caller.batch("web-1")).ingest_time
    assert MessageToDict(fay.values) == {"identityMap": {"Email": [{"id": "fay@x.org", "primary": True}]}}
    assert fay.merge_policy == merge_policy_pb2.MergePolicyRef(id=BUILT_IN, version=1)


async def test_a_profile_says_on_request_whose_value_each_field_has(known: Known) -> None:
    caller, made = known
    policy = await caller.policy(IDENTITY_GRAPH_PDG)
    request = ps.GetProfileRequest(
        identity=profile_pb2.Identity(namespace="CRM", id="1"),
        fields=["name.first"],
        merge_policy=merge_policy_pb2.MergePolicyRef(id=policy),
        explain=True,
    )

    answer = await caller.profiles.GetProfile(request, metadata=caller.metadata)
    request.explain = False
    plain_answer = await caller.profiles.GetProfile(request, metadata=caller.metadata)

    [one] = answer.explanations
    assert (one.path, one.won.dataset_id, one.won.batch_id, one.won.value) == (
        "name.first",
        made["crm"],
        "crm-2",
        '"Anna"',
    )
    assert one.won.ingest_time == (await caller.batch("crm-2")).ingest_time
    assert (len(one.lost), answer.unexplained_fields) == (one.lost_count, 0)
    assert (answer.profile, list(plain_answer.explanations)) == (plain_answer.profile, [])


async def test_fields_choose_what_is_told_of_a_profile_and_of_events(known: Known) -> None:
    caller, made = known
    policy = await caller.policy(IDENTITY_GRAPH_PDG)

    profile = await caller.profile("CRM:1", policy, fields=["name.first", "consents.call", "spent"])
    events = (await caller.events("CRM:1", policy, fields=["page", "_id"])).events

    # Decimals are text, with the digits of their column.
    assert MessageToDict(profile.values) == {
        "name": {"first": "Anna"},
        "consents": {"call": "n"},
        "spent": "7.00",
    }
    same_time = {made["app"]: {"_id": "a"}, made["web"]: {"_id": "a", "page": "home"}}
    assert [MessageToDict(event.values) for event in events] == [
        {"_id": "c"},
        *(same_time[dataset_id] for dataset_id in sorted(same_time)),
        {"_id": "b", "page": "again"},
    ]


async def test_what_is_uploaded_reverted_and_switched_off_shows_at_once(caller: Caller) -> None:
    crm = await caller.dataset("record", {"crmId": "CRM", "email": "Email"})
    policy = await caller.policy(IDENTITY_GRAPH_PDG)
    await caller.upload(crm, "first", [{"crmId": "1", "name": "Ann"}])
    await caller.upload(crm, "second", [{"crmId": "1", "name": "Anna", "email": "a@x.org"}])

    linked = await caller.profile("Email:a@x.org", policy)
    await caller.revert("second")
    alone = await caller.profile("CRM:1", policy)
    gone = await refusal_of(caller.profile("Email:a@x.org", policy))
    await caller.update(crm, tags=ds.DatasetTags(entries=DISABLED))
    off = await refusal_of(caller.profile("CRM:1", policy))

    assert MessageToDict(linked.values)["name"] == "Anna"
    assert MessageToDict(alone.values)["name"] == "Ann"
    assert [one.namespace for one in alone.identities] == ["CRM"]
    assert gone.reason == off.reason == "PROFILE_NOT_FOUND"


# --- Adobe's published example ---

LOYALTY = {"loyaltyId": "5625458", "crmId": "112ca06e", "firstName": "Daniel", "city": "New York City"}
CRM = {"crmId": "112ca06e", "firstName": "Danny", "city": "Portland", "phone": "+1 503 555 0101"}


@pytest.mark.parametrize(
    ("graph", "order", "identity", "told"),
    [
        (IDENTITY_GRAPH_PDG, [], "CRM:112ca06e", ("Danny", "Portland", "+1 503 555 0101")),
        (
            IDENTITY_GRAPH_PDG,
            ["loyalty", "crm"],
            "CRM:112ca06e",
            ("Daniel", "New York City", "+1 503 555 0101"),
        ),
        (IDENTITY_GRAPH_NONE, ["loyalty"], "CRM:112ca06e", None),
        (IDENTITY_GRAPH_NONE, ["loyalty"], "Loyalty:5625458", ("Daniel", "New York City", None)),
    ],
)
async def test_the_published_example_is_told_as_published(
    caller: Caller,
    graph: merge_policy_pb2.IdentityGraph.ValueType,
    order: list[str],
    identity: str,
    told: tuple[str | None, ...] | None,
) -> None:
    # given the two records of the example, and an event
    made = {
        "loyalty": await caller.dataset("record", {"loyaltyId": "Loyalty", "crmId": "CRM"}),
        "crm": await caller.dataset("record", {"crmId": "CRM"}),
    }
    visits = await caller.dataset("event", {"loyaltyId": "Loyalty"})
    await caller.upload(made["loyalty"], "loyalty", [LOYALTY])
    await caller.upload(made["crm"], "crm", [CRM])
    event = {"_id": "e", "timestamp": "2026-01-01T10:00:00Z", "loyaltyId": LOYALTY["loyaltyId"]}
    await caller.upload(visits, "visits", [event])

    # when an identity is looked up under a policy of the example
    policy = await caller.policy(graph, [made[name] for name in order])
    if told is None:
        assert (await refusal_of(caller.profile(identity, policy))).reason == "PROFILE_NOT_FOUND"
        return
    values = MessageToDict((await caller.profile(identity, policy)).values)

    # then it is told as published, and the events are there though the order names records only
    assert (values["firstName"], values["city"], values.get("phone")) == told
    assert [event.id for event in (await caller.events(identity, policy)).events] == ["e"]


async def test_without_a_policy_the_default_one_is_taken(caller: Caller) -> None:
    await sources(caller)
    policy = await caller.policy(IDENTITY_GRAPH_PDG)
    before = await caller.profile("CRM:1")
    change = ps.UpdateMergePolicyRequest(merge_policy_id=policy, is_default=True)
    await caller.profiles.UpdateMergePolicy(change, metadata=caller.metadata)

    after = await caller.profile("CRM:1")

    assert before.merge_policy.id == BUILT_IN
    assert after.merge_policy.id == policy
    assert (len(before.identities), len(after.identities)) == (2, 3)


# --- Events ---


async def all_events(caller: Caller, identity: str, policy: str, **asked: Any) -> list[str]:
    """Read all pages of a list."""
    found: list[str] = []
    token = ""
    while True:
        page = await caller.events(identity, policy, page_token=token, **asked)
        assert len(page.events) <= asked["page_size"]
        found += [event.id for event in page.events]
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("page_size", [1, 2, 3, 4])
async def test_events_are_listed_page_by_page_in_both_orders(known: Known, page_size: int) -> None:
    caller = known.caller
    policy = await caller.policy(IDENTITY_GRAPH_PDG)

    oldest_first = await all_events(caller, "CRM:1", policy, page_size=page_size)
    latest_first = await all_events(caller, "CRM:1", policy, page_size=page_size, order_by="event_time desc")

    assert oldest_first == ["c", "a", "a", "b"]
    assert latest_first == oldest_first[::-1]


async def test_events_are_listed_by_time_dataset_id_and_ingest_time(known: Known) -> None:
    caller, made = known
    ingested = (await caller.batch("web-1")).ingest_time.ToJsonString()

    async def ids(**asked: Any) -> list[str]:
        return [event.id for event in (await caller.events("Email:ann@x.org", **asked)).events]

    ten, eleven = stamp("2026-01-01T10:00:00Z"), stamp("2026-01-01T11:00:00Z")
    assert await ids(start_time=ten) == ["a", "a", "b"]
    assert await ids(end_time=ten) == ["c"]
    assert await ids(start_time=ten, end_time=eleven) == ["a", "a"]
    assert await ids(filter=f"dataset_id = {made['app']}") == ["a"]
    assert await ids(filter='id != "a"') == ["c", "b"]
    assert await ids(filter=f'ingest_time <= "{ingested}" AND id > a') == ["c"]
    assert await ids(filter=f"dataset_id = {made['crm']}") == []


async def test_an_event_says_what_it_is_and_where_it_comes_from(known: Known) -> None:
    caller, made = known

    (event,) = (await caller.events("Email:ann@x.org", filter="id = b")).events

    assert (event.id, event.dataset_id) == ("b", made["web"])
    assert event.event_time == stamp("2026-01-01T11:00:00Z")
    assert event.ingest_time == (await caller.batch("web-2")).ingest_time


async def test_a_page_token_is_good_for_the_same_list_only(known: Known) -> None:
    caller = known.caller
    token = (await caller.events("Email:ann@x.org", page_size=1)).next_page_token

    for other in (
        caller.events("Email:fay@x.org", page_token=token),
        caller.events("Email:ann@x.org", page_token=token, fields=["page"]),
        caller.events("Email:ann@x.org", page_token=token, order_by="event_time desc"),
        caller.events("Email:ann@x.org", page_token=token, filter="id = a"),
        caller.events("Email:ann@x.org", page_token=token, end_time=stamp("2026-01-02T00:00:00Z")),
        caller.events("Email:ann@x.org", await caller.policy(IDENTITY_GRAPH_PDG), page_token=token),
    ):
        refusal = await refusal_of(other)
        assert (refusal.code, refusal.reason) == (INVALID, "PAGE_TOKEN_INVALID")
    assert len((await caller.events("Email:ann@x.org", page_token=token, page_size=9)).events) == 3


# --- Refusals ---

ANN = profile_pb2.Identity(namespace="Email", id="ann@x.org")
GetProfile, ListEvents = ps.GetProfileRequest, ps.ListProfileEventsRequest
NOBODY, LINKED = (
    profile_pb2.Identity(namespace=namespace, id=identity_id)
    for namespace, identity_id in (("CRM", "9"), ("ECID", "7"))
)
NO_POLICY = merge_policy_pb2.MergePolicyRef()
UNKNOWN_POLICY = merge_policy_pb2.MergePolicyRef(id="none")
UNKNOWN_VERSION = merge_policy_pb2.MergePolicyRef(id=BUILT_IN, version=2)


@pytest.mark.parametrize(
    ("request_", "code", "reason", "fields"),
    [
        (GetProfile(), INVALID, "FIELD_REQUIRED", ["identity"]),
        (
            GetProfile(identity=profile_pb2.Identity(id="1")),
            INVALID,
            "FIELD_REQUIRED",
            ["identity.namespace"],
        ),
        (
            GetProfile(identity=profile_pb2.Identity(namespace="CRM")),
            INVALID,
            "FIELD_REQUIRED",
            ["identity.id"],
        ),
        (GetProfile(identity=ANN, merge_policy=NO_POLICY), INVALID, "FIELD_REQUIRED", ["merge_policy.id"]),
        (GetProfile(identity=ANN, merge_policy=UNKNOWN_POLICY), NOT_FOUND, "MERGE_POLICY_NOT_FOUND", []),
        (GetProfile(identity=ANN, merge_policy=UNKNOWN_VERSION), NOT_FOUND, "MERGE_POLICY_NOT_FOUND", []),
        (GetProfile(identity=ANN, fields=["name", "nme"]), INVALID, "UNKNOWN_FIELD", ["fields[1]"]),
        (GetProfile(identity=ANN, fields=["timeSeriesEvents"]), INVALID, "FIELD_INVALID", ["fields[0]"]),
        (GetProfile(identity=NOBODY), NOT_FOUND, "PROFILE_NOT_FOUND", []),
        # Graph `none`: a linked identity finds nothing.
        (GetProfile(identity=LINKED), NOT_FOUND, "PROFILE_NOT_FOUND", []),
        (ListEvents(), INVALID, "FIELD_REQUIRED", ["identity"]),
        (ListEvents(identity=ANN, fields=["pge"]), INVALID, "UNKNOWN_FIELD", ["fields[0]"]),
        (ListEvents(identity=ANN, page_size=-1), INVALID, "FIELD_INVALID", ["page_size"]),
        (ListEvents(identity=ANN, page_token="x"), INVALID, "PAGE_TOKEN_INVALID", ["page_token"]),
        (ListEvents(identity=ANN, filter="size > 1"), INVALID, "FIELD_INVALID", ["filter"]),
        (ListEvents(identity=ANN, order_by="id"), INVALID, "FIELD_INVALID", ["order_by"]),
        (ListEvents(identity=NOBODY), NOT_FOUND, "PROFILE_NOT_FOUND", []),
        (ListEvents(identity=ANN, merge_policy=UNKNOWN_POLICY), NOT_FOUND, "MERGE_POLICY_NOT_FOUND", []),
        (
            ListEvents(identity=ANN, start_time=Timestamp(seconds=2), end_time=Timestamp(seconds=1)),
            INVALID,
            "TIME_WINDOW_INVALID",
            ["start_time"],
        ),
        (ListEvents(identity=ANN, end_time=Timestamp(seconds=2**60)), INVALID, "FIELD_INVALID", ["end_time"]),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else None,
)
async def test_a_look_up_is_refused_with_status_reason_and_field(
    known: Known, request_: Any, code: grpc.StatusCode, reason: str, fields: list[str]
) -> None:
    caller = known.caller
    method = (
        caller.profiles.GetProfile if isinstance(request_, GetProfile) else caller.profiles.ListProfileEvents
    )

    refusal = await refusal_of(method(request_, metadata=caller.metadata))

    assert (refusal.code, refusal.reason, refusal.fields) == (code, reason, fields)


async def test_an_unknown_field_is_told_with_the_nearest(known: Known) -> None:
    caller = known.caller

    refusal = await refusal_of(caller.profile("Email:ann@x.org", fields=["name.frst"]))

    assert refusal.metadata == {"field": "fields[0]", "path": "name.frst", "nearest": "name.first"}


async def test_whoever_has_too_many_identities_is_refused_as_an_export_leaves_them_out(
    caller: Caller,
) -> None:
    crm = await caller.dataset("record", {"crmId": "CRM", "email": "Email"})
    await caller.upload(crm, "crm", [{"crmId": number, "email": "info@x.org"} for number in range(50)])
    policy = await caller.policy(IDENTITY_GRAPH_PDG)

    refusal = await refusal_of(caller.profile("CRM:7", policy))
    export = await caller.export(await caller.dataset("union"), policy=policy)

    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "TOO_MANY_IDENTITIES")
    assert refusal.metadata == {"id": "CRM:7", "identities": "51"}
    assert refusal.subjects == ["CRM:7"]
    assert export.metrics.profiles_exported == 0
    assert len((await caller.profile("CRM:7")).identities) == 2


async def test_a_tenant_without_data_has_no_profile(caller: Caller) -> None:
    for policy in ("", await caller.policy(IDENTITY_GRAPH_PDG)):
        assert (await refusal_of(caller.profile("CRM:1", policy))).reason == "PROFILE_NOT_FOUND"
