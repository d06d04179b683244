"""Exports of data that others have published, against figures and rows that are computed here in another way."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from profile_export.v1 import job_pb2
from profile_export.v1.merge_policy_pb2 import IDENTITY_GRAPH_PDG
from tests.service.harness import Caller, Row, shared_folder

pytestmark = pytest.mark.asyncio(loop_scope="session")

CUSTOMERS = 23_570
PURCHASES = 69_659
TOTAL_PRICE = 2_500_315.63


def real(name: str) -> Path:
    path = shared_folder() / name
    if not path.exists():
        pytest.skip(f"the real data is not here: no {path.name} in a folder `shared` beside the checkout")
    return path


# --- CDNOW: 23,570 customers and what they bought in 1997 and 1998 ---


def purchases() -> list[tuple[str, str, datetime, float]]:
    """Every row as (`_id`, customer, day, price). Rows repeat, so that their number is what tells them apart."""
    with gzip.open(real("data/cdnow_transactions.txt.gz"), "rt") as lines:
        rows = [line.split() for line in lines][1:]
    return [
        (f"{number:05}", customer, datetime.strptime(day, "%Y%m%d").replace(tzinfo=UTC), float(price))
        for number, (customer, day, _, price) in enumerate(rows)
    ]


def purchase_event(number: str, customer: str, day: datetime, price: float) -> Row:
    return {
        "_id": number,
        "timestamp": day.isoformat(),
        "identityMap": {"CDNOW": [{"id": customer, "primary": True}]},
        "eventType": "commerce.purchases",
        "commerce": {"order": {"priceTotal": price}},
    }


@pytest.mark.slow
async def test_every_purchase_of_cdnow_is_in_its_customers_row_to_the_cent(caller: Caller) -> None:
    # given a profile record per customer, and every row of the file as an event
    bought = purchases()
    bought_by: dict[str, list[tuple[str, datetime, float]]] = defaultdict(list)
    for number, customer, day, price in bought:
        bought_by[customer].append((number, day, price))
    crm, web, out = [
        await caller.dataset("record", {"customerId": "CDNOW"}),
        await caller.dataset("event"),
        await caller.dataset("union"),
    ]
    await caller.upload(crm, "customers", ({"customerId": customer} for customer in bought_by))
    await caller.upload(web, "purchases", (purchase_event(*row) for row in bought))

    # when they are exported with their events
    job = await caller.export(out, events=job_pb2.EventList())

    # then each customer has one row with all their purchases in order, and the figures are the published ones
    rows = await caller.rows(job.batch_id)
    events = {row["customerId"]: row["timeSeriesEvents"] for row in rows}
    assert len(rows) == len(events) == CUSTOMERS
    assert {customer: [told(event) for event in listed] for customer, listed in events.items()} == {
        customer: sorted(listed, key=lambda row: (row[1], row[0])) for customer, listed in bought_by.items()
    }
    prices = [event["commerce"]["order"]["priceTotal"] for listed in events.values() for event in listed]
    assert len(prices) == PURCHASES
    assert round(sum(prices), 2) == TOTAL_PRICE
    await check_metrics(caller, job)


def told(event: Mapping[str, Any]) -> tuple[str, datetime, float]:
    return event["_id"], event["timestamp"], event["commerce"]["order"]["priceTotal"]


async def check_metrics(caller: Caller, job: job_pb2.ExportJob) -> None:
    metrics, files = job.metrics, await caller.files(job.batch_id)
    assert metrics.profiles_read == metrics.profiles_exported == metrics.rows_written == CUSTOMERS
    assert metrics.profiles_exported_by_namespace == {"CDNOW": CUSTOMERS}
    assert metrics.fragments_read == CUSTOMERS
    assert metrics.profiles_merged == 0
    assert metrics.events_read == metrics.events_exported == PURCHASES
    assert metrics.left_out == job_pb2.LeftOut()
    assert metrics.files_written == len(files)
    assert metrics.rows_written == sum(file.rows for file in files)
    assert metrics.bytes_written == sum(file.bytes for file in files)
    # The phases are one interval after the other, from creation to end.
    total = metrics.total_time.ToTimedelta()
    assert total == job.end_time.ToDatetime() - job.create_time.ToDatetime()
    assert sum((phase.time.ToTimedelta() for phase in metrics.phases), timedelta()) == total
    borders = [phase.start_time for phase in job.phases] + [job.end_time]
    assert borders == [job.create_time] + [phase.end_time for phase in job.phases]
    assert {phase.phase for phase in metrics.phases} >= {job_pb2.JOB_PHASE_RUN, job_pb2.JOB_PHASE_COMMIT}


# --- Adobe's sample profiles: 259 rows of a CSV, and 16 of them as nested records ---


def nested(row: Mapping[str, str]) -> Row:
    """A row of the CSV in the shape of the nested records, as comparing the 16 that are in both shows it."""
    return {
        "person": {
            "name": {"courtesyTitle": row["TITLE"], "firstName": row["F_NAME"], "lastName": row["L_NAME"]},
            "gender": row["GENDER"],
            "birthDayAndMonth": row["MONTH_AND_DATE"],
            "birthDate": row["DOB"],
            "birthYear": int(row["YOB"]),
        },
        "identityMap": {
            "CRMID": [{"id": row["ID1"]}],
            "ECID": [{"id": row["ID2"]}, {"id": row["ID4"]}],
            "LOYALTYID": [{"id": row["ID3"], "primary": True}],
        },
        "homePhone": {"number": row["PHONE"]},
        "personalEmail": {"address": row["EMAIL"]},
        "homeAddress": {
            "street1": row["STREET"],
            "city": row["CITY"],
            "stateProvince": row["STATE"],
            "country": row["COUNTRY"],
            "postalCode": row["ZIP"],
            "_schema": {"latitude": float(row["LAT"]), "longitude": float(row["LONG"])},
        },
    }


def crm_records() -> tuple[list[Row], list[Row]]:
    with real("adobe/crm/CRM_profiles.csv").open(encoding="utf-8-sig", newline="") as lines:
        rows = [nested(row) for row in csv.DictReader(lines)]
    records = json.loads(real("adobe/crm/CRM_profiles.json").read_text())
    assert (len(rows), len(records)) == (259, 16)
    return rows, records


def identities(row: Row) -> frozenset[tuple[str, str]]:
    return frozenset((name, item["id"]) for name, items in dict(row["identityMap"]).items() for item in items)


def known_by(record: Row) -> frozenset[tuple[str, str]]:
    """The identities of a record: those of its map, and the email, which both datasets declare as one."""
    return identities(record) | {("Email", record["personalEmail"]["address"])}


def loyalty_id(row: Row) -> str:
    (item,) = dict(row["identityMap"])["LOYALTYID"]
    return str(item["id"])


def attributes(row: Row) -> Row:
    return {name: row[name] for name in ("person", "homePhone", "personalEmail", "homeAddress")}


def components(records: Iterable[Row]) -> set[frozenset[tuple[str, str]]]:
    """Which identities are one person, by union-find."""
    parents: dict[tuple[str, str], tuple[str, str]] = {}

    def find(identity: tuple[str, str]) -> tuple[str, str]:
        while parents.setdefault(identity, identity) != identity:
            identity = parents[identity]
        return identity

    for record in records:
        first, *others = known_by(record)
        for other in others:
            parents[find(other)] = find(first)
    found = defaultdict(set)
    for identity in list(parents):
        found[find(identity)].add(identity)
    return {frozenset(members) for members in found.values()}


async def upload_both(caller: Caller, rows: list[Row], records: list[Row]) -> str:
    for name, lines in (("csv", rows), ("json", records)):
        source = await caller.dataset("record", {"personalEmail.address": "Email"}, name=name)
        await caller.upload(source, name, lines)
    return await caller.dataset("union")


async def test_the_graph_none_makes_one_row_per_loyalty_id_of_two_sources(caller: Caller) -> None:
    rows, records = crm_records()
    out = await upload_both(caller, rows, records)

    job = await caller.export(out)

    exported = {loyalty_id(row): row for row in await caller.rows(job.batch_id)}
    assert len(exported) == job.metrics.profiles_exported == job.metrics.rows_written == 259
    assert job.metrics.fragments_read == 259 + 16
    assert job.metrics.profiles_merged == 16
    # Every record has every field, so the one that came later wins: the nested ones.
    newest = {loyalty_id(record): record for record in [*rows, *records]}
    assert {key: attributes(row) for key, row in exported.items()} == {
        key: attributes(record) for key, record in newest.items()
    }
    assert {key: identities(row) for key, row in exported.items()} == {
        key: known_by(record) for key, record in newest.items()
    }
    ansteys = exported["2e3319208000765b-3811c00000000001"]
    assert ansteys["person"]["name"]["lastName"] == "Ansteys"
    assert ansteys["homeAddress"]["_schema"] == {
        "latitude": 35.2188655,
        "longitude": -80.8108888,  # the CSV has -80.8108885
    }
    assert {name: [item["id"] for item in items] for name, items in ansteys["identityMap"]} == {
        "CRMID": ["2eeb6532-82e1-0d58-8955-bf97de66a6f5"],
        "ECID": ["50829196174854544323574004005273946998", "65233136134594262632703695260919939885"],
        "Email": ["nansteysdk@spotify.com"],
        "LOYALTYID": ["2e3319208000765b-3811c00000000001"],
    }
    primary = [(name, item["primary"]) for name, items in ansteys["identityMap"] for item in items]
    assert [name for name, is_primary in primary if is_primary] == ["LOYALTYID"]


async def test_the_private_graph_makes_one_row_per_component_of_two_sources(caller: Caller) -> None:
    # given people who have several loyalty ids and share an email address
    rows, records = crm_records()
    out = await upload_both(caller, rows, records)
    people = components([*rows, *records])

    # when they are exported under the private graph
    job = await caller.export(out, policy=await caller.policy(IDENTITY_GRAPH_PDG))

    # then there is a row for each of them, with all their identities and what their newest record says
    exported = {identities(row): row for row in await caller.rows(job.batch_id)}
    assert len(people) == 215
    assert exported.keys() == people
    assert job.metrics.profiles_exported == job.metrics.rows_written == len(people)
    newest = {next(who for who in people if known_by(record) <= who): record for record in [*rows, *records]}
    assert {who: attributes(row) for who, row in exported.items()} == {
        who: attributes(record) for who, record in newest.items()
    }
