"""CSV that others have published: every row is in the data files as Python's reader sees it."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from profile_export.v1 import batch_pb2, job_pb2
from profile_export.v1 import dataset_service_pb2 as ds
from tests.service.harness import Caller
from tests.service.stored import as_sent, stored_rows

FILES = Path(__file__).parents[1] / "contract" / "data"
EVENTS, USERS = 31_106, 600
PEOPLE = 1_000


def text_of(name: str) -> str:
    return gzip.decompress((FILES / name).read_bytes()).decode()


@pytest.mark.slow
async def test_every_click_of_a_shop_is_an_event_of_its_user(caller: Caller) -> None:
    # given the clicks with a number as `_id`, and behind their times the offset that they lack, as PostgreSQL writes it
    lines = text_of("ecom_clickstream.csv.gz").splitlines()
    sent = "\n".join(["_id," + lines[0], *(f"{number},{line}" for number, line in enumerate(lines[1:], 1))])
    sent = re.sub(r"(:[0-9]{2}),", r"\1+00,", sent)
    read = list(csv.DictReader(io.StringIO(sent)))
    dataset_id = await caller.dataset("event", {"user_id": "Shop"})

    # when they are uploaded as CSV
    batch = (await caller.send(dataset_id, "b", sent.encode(), ds.UPLOAD_FORMAT_CSV)).batch

    # then each is there, at its time in UTC
    assert (batch.state, batch.rows) == (batch_pb2.BATCH_STATE_SUCCEEDED, EVENTS)
    assert len(read) == EVENTS
    assert await stored_rows(caller, "b") == [
        row | {"timestamp": datetime.fromisoformat(row["timestamp"]).isoformat()} for row in read
    ]

    # and an export has every user once with all of theirs
    job = await caller.export(
        await caller.dataset("union"),
        events=job_pb2.EventList(),
        filter=job_pb2.ExportFilter(empty_profiles=True),
    )
    rows = await caller.rows(job.batch_id)
    counts = {dict(row["identityMap"])["Shop"][0]["id"]: len(row["timeSeriesEvents"]) for row in rows}
    assert counts == Counter(row["user_id"] for row in read)
    assert len(rows) == len(counts) == USERS


async def test_every_person_of_febrl_is_a_record_without_the_blanks_around_its_cells(caller: Caller) -> None:
    # given people in a file with blanks behind its commas, in the header too
    sent = text_of("febrl_dataset1.csv.gz")
    header, *read = csv.reader(io.StringIO(sent))
    people = [
        {name.strip(): cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
        for cells in read
    ]
    dataset_id = await caller.dataset("record", {"rec_id": "FEBRL"})

    # when it is uploaded as CSV
    batch = (await caller.send(dataset_id, "b", sent.encode(), ds.UPLOAD_FORMAT_CSV)).batch

    # then each is there, without cells that were empty
    assert (batch.state, batch.rows) == (batch_pb2.BATCH_STATE_SUCCEEDED, PEOPLE)
    assert len(people) == len({person["rec_id"] for person in people}) == PEOPLE
    assert await stored_rows(caller, "b") == [as_sent(person) for person in people]
