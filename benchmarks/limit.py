"""A job whose data is five times what its engine may hold in memory, beside the same job without a limit."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

import duckdb

from benchmarks import ours
from benchmarks.compare import differences
from benchmarks.report import Line, megabytes
from benchmarks.server import running
from profile_export.client import Client

_SOURCES = 3
_UNLIMITED_MB = 65_536
_DIGESTS = 56
"""Each row has so many MD5 sums as text, of 32 letters: about 900 bytes that do not compress any further."""


@dataclass(frozen=True)
class _Ran:
    job: ours.Finished
    files: list[Path]


async def measure_limit(folder: Path, *, threads: int, limit_mb: int, persons: int) -> list[Line]:
    """Measure the export of so many persons, known to three sources; `folder` must be empty."""
    sources = [_source(folder / f"source-{number}.parquet", number, persons) for number in range(_SOURCES)]
    async with (
        running(folder, threads, limit_mb) as server,
        Client(server.address, sandbox="limit") as client,
    ):
        source_bytes = 0
        for path in sources:
            dataset = await ours.crm_dataset(client)
            uploaded = await client.upload(dataset, path, ours.PARQUET)
            source_bytes += uploaded.batch.bytes
        destination = await ours.destination(client)
        try:
            limited = await _run(client, destination)
        except ours.JobFailedError as error:
            print(f"limit FAILED: {error}", file=sys.stderr)
            return [
                Line(f"data of {source_bytes / (limit_mb * 10**6):.1f} times {limit_mb} MB", "!!! FAILED !!!")
            ]
    async with (
        running(folder, threads, _UNLIMITED_MB) as server,
        Client(server.address, sandbox="limit") as client,
    ):
        free = await _run(client, destination)
    different = await asyncio.to_thread(differences, limited.files, free.files[0].parent)
    peaks = [one.job.job.metrics.peak_memory_bytes for one in (limited, free)]
    limit = limit_mb * 10**6
    rows = limited.job.job.metrics.rows_written
    return [
        Line(
            f"{rows:,} rows of {source_bytes / limit:.1f} times the memory limit of {limit_mb} MB",
            "!!! MISMATCH !!!" if different else "same rows",
            hold="same rows",
        ),
        Line.timed("  whole job / without a limit", limited.job.seconds, free.job.seconds, "report"),
        Line(
            "  peak memory / without a limit",
            megabytes(peaks[0]),
            megabytes(peaks[1]),
            hold="within the limit",
        ),
        Line(
            "  peak memory / the limit",
            megabytes(peaks[0]),
            megabytes(limit),
            f"{peaks[0] / limit:.2f}x",
            "≤ 1.1x",
        ),
    ]


def _source(path: Path, number: int, persons: int) -> Path:
    digests = ", ".join(f"md5(i || '-{number}-{index}')" for index in range(_DIGESTS))
    duckdb.execute(
        f"COPY (SELECT 'C-' || i AS crmId, i % 97 AS field_{number}, concat({digests}) AS note_{number}"
        f" FROM range({persons}) AS one(i)) TO '{path}' (FORMAT parquet, COMPRESSION zstd)"
    )
    return path


async def _run(client: Client, destination: str) -> _Ran:
    job = await ours.run_job(client, destination)
    return _Ran(job, [Path(file) for file in await ours.stored_files(client, job.job.batch_id)])
