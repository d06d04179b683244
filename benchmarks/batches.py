"""What many small batches cost: their uploads, the exports that read them, and their compaction."""

from __future__ import annotations

import asyncio
import sqlite3
import statistics
import time
from contextlib import closing
from pathlib import Path

from benchmarks import ours
from benchmarks.report import Line, seconds
from benchmarks.server import Server
from benchmarks.tiny import people, write_lines
from profile_export.client import Client

_FEW = 10
_UPLOADERS = 8
_EXPORTS = 5
_STILL_SECONDS = 5.0


async def measure_batches(server: Server, folder: Path, *, batches: int, rows: int) -> list[Line]:
    """Measure the same rows in ten batches and in many, and several uploaders at once."""
    await _upload(server, folder, "bench-few", batches=_FEW, rows=rows)
    many, uploads = await _upload(server, folder, "bench-many", batches=batches, rows=rows)
    uploaded = time.monotonic()
    first = await _exports(server)
    settled, files = await _settled(server, many)
    then = await _exports(server)
    span = min(50, batches // 3)
    early, late = statistics.median(uploads[5 : 5 + span]), statistics.median(uploads[-span:])
    what = f"export of {rows:,} rows in {batches:,} batches against {_FEW}"
    return [
        Line.timed(f"{what}: as the last one ends, p50", *first, "report"),
        Line.timed(f"  compacted into {files} files, p50", *then, "1x"),
        Line("  compacted so far after the last batch", seconds(max(0.0, settled - uploaded)), hold="report"),
        Line.timed(f"upload of batch {batches:,} of a dataset against the tenth", late, early, "1x"),
        await _measure_uploaders(server, folder, rows),
    ]


async def _upload(
    server: Server, folder: Path, sandbox: str, *, batches: int, rows: int
) -> tuple[str, list[float]]:
    """Return the dataset, and how long each batch took."""
    path, per_batch = folder / f"{sandbox}.jsonl", rows // batches
    async with Client(server.address, sandbox=sandbox) as client:
        dataset_id, took = await ours.crm_dataset(client), []
        for first in range(0, rows, per_batch):
            write_lines(path, people(range(first, first + per_batch)))
            took.append(await ours.upload_lines(client, dataset_id, path))
    return dataset_id, took


async def _exports(server: Server) -> tuple[float, float]:
    """Export many batches and few, in turns; return the medians."""
    took: dict[str, list[float]] = {"bench-many": [], "bench-few": []}
    for _ in range(_EXPORTS):
        for sandbox, found in took.items():
            async with Client(server.address, sandbox=sandbox) as client:
                found.append((await ours.run_job(client, await ours.destination(client))).seconds)
    return statistics.median(took["bench-many"]), statistics.median(took["bench-few"])


async def _settled(server: Server, dataset_id: str) -> tuple[float, int]:
    """Wait until nothing is being compacted; return when it was over, and how many files an export opens."""
    last, since = -1, time.monotonic()
    while time.monotonic() < since + _STILL_SECONDS:
        if (found := _files(server.data_dir, dataset_id)) != last:
            last, since = found, time.monotonic()
        await asyncio.sleep(0.2)  # compaction tells nobody when it rests; its files do
    return since, last


def _files(data_dir: Path, dataset_id: str) -> int:
    # Which files an export opens is nobody's business but the store's.
    query = (
        "SELECT count(*) FROM (SELECT key FROM batches WHERE dataset_id = :id AND compaction_key IS NULL"
        " UNION ALL SELECT key FROM compactions WHERE dataset_id = :id)"
    )
    with closing(sqlite3.connect(f"file:{data_dir / 'store.sqlite'}?mode=ro", uri=True)) as store:
        count: int = store.execute(query, {"id": dataset_id}).fetchone()[0]
    return count


async def _measure_uploaders(server: Server, folder: Path, rows: int) -> Line:
    """Compare uploaders to one dataset, all at once, with one that uploads the same files one by one."""
    paths = [
        write_lines(folder / f"part-{number}.jsonl", people(range(number * rows, (number + 1) * rows)))
        for number in range(_UPLOADERS)
    ]
    async with Client(server.address, sandbox="bench-uploaders") as client:
        alone, shared = await ours.crm_dataset(client), await ours.crm_dataset(client)
        one = sum([await ours.upload_lines(client, alone, path) for path in paths])
        begin = time.monotonic()
        await asyncio.gather(*(ours.upload_lines(client, shared, path) for path in paths))
        all_at_once = time.monotonic() - begin
    total = rows * _UPLOADERS
    return Line(
        f"{_UPLOADERS} uploaders of {rows:,} rows at once to one dataset, against one",
        f"{total / all_at_once:,.0f} rows/s",
        f"{total / one:,.0f} rows/s",
        f"{one / all_at_once:.2f}x",
        "report",
    )
