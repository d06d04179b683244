"""What a job has done so far, added up from what its attempts have written down."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.job import JobMetrics, Pinned, Resolved
from profile_export.domain.plan import ExportCounts
from profile_export.processes.computing import compute_if
from profile_export.store.database import fetch_all
from profile_export.store.job_batches import files_of_job
from profile_export.store.job_tables import job_ranges, jobs

# Each range may count thousands of namespaces.
_MANY = 20


async def metrics_of(connection: AsyncConnection, row: Row[Any]) -> JobMetrics:
    """Add up what the job has recorded, over all its attempts."""
    by_batch = await files_of_job(connection, row.id)
    files = [file for of_batch in by_batch.values() for file in of_batch]
    ranges = await fetch_all(connection, select(job_ranges).where(job_ranges.c.job_id == row.id))
    [brought] = await fetch_all(connection, select(jobs.c.plan, jobs.c.resolved).where(jobs.c.id == row.id))
    sources = brought.plan.sources if brought.plan else ()
    return JobMetrics(
        counts=await compute_if(len(ranges) > _MANY, ExportCounts.total, [found.counts for found in ranges]),
        rows_written=sum(file.rows for file in files),
        bytes_written=sum(file.bytes for file in files),
        files_written=len(files),
        peak_memory_bytes=max((found.peak_memory_bytes for found in ranges), default=0),
        pinned=Pinned(
            sum(source.rows for source in sources),
            sum(source.bytes for source in sources),
            sum(len(part.files) for source in sources for part in source.parts),
        ),
        resolved=brought.resolved or Resolved(),
    )
