"""What a small job costs, and what many batches before it do to that."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks import ours
from benchmarks.data import plain_sample
from benchmarks.report import Line, seconds
from benchmarks.server import Server
from profile_export.client import Client

PROFILES = 1000
_HOLD = "≤ 300 ms, going for 100"


async def measure_tiny(server: Server, folder: Path, *, jobs: int, batches: int) -> list[Line]:
    """Measure jobs of 1,000 profiles: on fresh datasets, after many batches written, and of many batches read."""
    path = folder / "tiny.jsonl"
    async with Client(server.address, sandbox="bench-tiny") as client:
        await ours.upload_lines(
            client, await ours.crm_dataset(client), write_lines(path, people(range(PROFILES)))
        )
        destination = await ours.destination(client)
        written = [(await ours.run_job(client, destination)).seconds for _ in range(max(batches, 2 * jobs))]
    async with Client(server.address, sandbox="bench-batches") as client:
        dataset, per_batch = await ours.crm_dataset(client), PROFILES // batches
        for first in range(0, PROFILES, per_batch):
            await ours.upload_lines(
                client, dataset, write_lines(path, people(range(first, first + per_batch)))
            )
        destination = await ours.destination(client)
        read = [(await ours.run_job(client, destination)).seconds for _ in range(max(3, jobs // 4))]
    what = f"after {len(written) - jobs:,} batches in its destination"
    return [
        Line(
            "tiny job: 1,000 profiles, fresh dataset, p50",
            seconds(statistics.median(written[:jobs])),
            hold=_HOLD,
        ),
        Line(f"  {what}, p50", seconds(statistics.median(written[-jobs:])), hold=_HOLD),
        Line(f"  its source in {batches:,} batches, p50", seconds(statistics.median(read)), hold="report"),
    ]


async def measure_lines(server: Server, folder: Path, rows: int) -> list[Line]:
    """Measure the upload of JSON lines: records of 31 fields."""
    source = plain_sample(rows).sources[0].uploads[0]
    records = pq.read_table(source.path).to_pylist(maps_as_pydicts="strict")
    path = write_lines(folder / "records.jsonl", records)
    async with Client(server.address, sandbox="bench-lines") as client:
        took = await ours.upload_lines(client, await ours.crm_dataset(client), path)
    return [Line("upload of JSON lines, 31 fields", f"{len(records) / took:,.0f} rows/s", hold="report")]


def people(numbers: Iterable[int]) -> list[dict[str, Any]]:
    """Return the records of some made-up people."""
    return [
        {
            "crmId": f"C-{number}",
            "person": {"name": {"firstName": f"Ada {number}", "lastName": "Lovelace"}},
            "homeAddress": {"city": "London", "postalCode": str(10_000 + number)},
            "loyalty": {"points": number},
        }
        for number in numbers
    ]


def write_lines(path: Path, records: Iterable[Any]) -> Path:
    """Write records as JSON lines."""
    with path.open("w") as lines:
        lines.writelines(json.dumps(record, default=_plain) + "\n" for record in records)
    return path


def _plain(value: object) -> object:
    match value:
        case date():  # and instants
            return value.isoformat()
        case Decimal():
            return float(value)
    raise TypeError(type(value))
