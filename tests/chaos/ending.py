"""What is there when the fire is out: read once, for the checker to judge."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import pyarrow.parquet as pq
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.client import Client, ExportJob
from profile_export.domain.catalog.batches import DataFile
from profile_export.domain.job import Job, JobState, Phase, Stamp, Transition
from profile_export.store.db.tables import (
    batches,
    compactions,
    dropped_folders,
    files,
    job_ranges,
    job_stamps,
    job_transitions,
    jobs,
    leases,
)
from profile_export.store.jobs.jobs import job_from
from tests.chaos.load import Told
from tests.chaos.sources import COLUMNS, Row
from tests.chaos.view import View

GRAPHS = "graphs"


@dataclass(frozen=True)
class StoredJob:
    """A job as the store has it, with its log, its stamps and its batches in their order."""

    job: Job
    transitions: Sequence[Transition]
    stamps: Sequence[Stamp]
    batches: Sequence[str]


@dataclass(frozen=True)
class StoredBatch:
    id: str
    dataset_id: str
    state: str
    folder: str
    job_id: int | None
    files: Sequence[DataFile]


@dataclass(frozen=True)
class FencedWrite:
    """What a process noted of a write under a fence: when it began, and `accepted` or the error's name."""

    doing: str
    job: int
    attempt: int
    worker: str
    began: float
    outcome: str


@dataclass(frozen=True)
class Ending:
    """All that is judged. `listed` and `visible` are what a server says, `rows` what is in visible batches.

    `lake` are the paths of all files in the lake, `damaged` those that are not what the store says of them.
    """

    told: Sequence[Told]
    jobs: Mapping[int, StoredJob]
    batches: Mapping[str, StoredBatch]
    listed: Mapping[int, ExportJob]
    visible: Sequence[str]
    rows: Mapping[str, Counter[Row]]
    lake: frozenset[str]
    damaged: Sequence[str]
    copies: frozenset[str]
    dropped: frozenset[str]
    left: Mapping[str, int]
    writes: Sequence[FencedWrite] = field(default_factory=list)


async def read_listed(client: Client, destination: str) -> tuple[Mapping[int, ExportJob], Sequence[str]]:
    """Ask a server for all jobs and for the visible batches."""
    listed = {job.id: job for job in await client.list_jobs(limit=100_000)}
    return listed, [batch.id for batch in await client.list_batches(destination)]


async def read_ending(
    view: View,
    data_dir: Path,
    told: Sequence[Told],
    listed: Mapping[int, ExportJob],
    visible: Sequence[str],
    journal: Path,
) -> Ending:
    async with view.engine.begin() as connection:
        stored = await _jobs(connection)
        found = await _batches(connection)
        left = {
            table.name: (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (leases, job_ranges)
        }
        copies = frozenset((await connection.execute(select(compactions.c.path))).scalars())
        dropped = frozenset((await connection.execute(select(dropped_folders.c.folder))).scalars())
    lake = data_dir / "lake"
    damaged = [file.path for batch in found.values() for file in batch.files if not _is_whole(lake, file)]
    return Ending(
        told=told,
        jobs=stored,
        batches=found,
        listed=listed,
        visible=visible,
        rows={one: _rows(lake, found[one]) for one in visible if one in found and not damaged},
        lake=frozenset(
            str(path.relative_to(lake))
            for path in lake.rglob("*")
            if path.is_file() and path.relative_to(lake).parts[0] not in {GRAPHS, "instance"}
        ),
        damaged=damaged,
        copies=copies,
        dropped=dropped,
        left=left,
        writes=_writes(journal),
    )


async def _jobs(connection: AsyncConnection) -> Mapping[int, StoredJob]:
    log: dict[int, list[Transition]] = defaultdict(list)
    for row in await connection.execute(select(job_transitions).order_by(job_transitions.c.revision)):
        before = JobState(row.from_state) if row.from_state else None
        entry = Transition(
            row.revision, before, JobState(row.to_state), row.time, row.attempt, row.reason, row.metrics
        )
        log[row.job_id].append(entry)
    stamps: dict[int, list[Stamp]] = defaultdict(list)
    for row in await connection.execute(select(job_stamps).order_by(job_stamps.c.key)):
        stamps[row.job_id].append(Stamp(row.attempt, Phase(row.phase), row.time))
    found = {}
    for row in (await connection.execute(select(jobs))).all():
        job = job_from(row)
        found[job.id] = StoredJob(job, log[job.id], stamps[job.id], job.segment_batches or (job.batch_id,))
    return found


async def _batches(connection: AsyncConnection) -> Mapping[str, StoredBatch]:
    named: dict[int, list[DataFile]] = defaultdict(list)
    for row in await connection.execute(select(files)):
        named[row.batch_key].append(DataFile(row.name, row.path, row.rows, row.bytes, row.sha256))
    return {
        row.id: StoredBatch(row.id, row.dataset_id, row.state, row.folder, row.job_id, named[row.key])
        for row in await connection.execute(select(batches))
    }


def _writes(journal: Path) -> list[FencedWrite]:
    return [FencedWrite(**json.loads(line)) for line in journal.read_text().splitlines()]


def _is_whole(lake: Path, file: DataFile) -> bool:
    path = lake / file.path
    if not path.exists():
        return False
    content = path.read_bytes()
    said = (file.bytes, file.sha256, file.rows)
    return (len(content), sha256(content).hexdigest(), pq.read_metadata(path).num_rows) == said


def _rows(lake: Path, batch: StoredBatch) -> Counter[Row]:
    rows: Counter[Row] = Counter()
    for file in batch.files:
        read = pq.read_table(lake / file.path)
        columns = [
            read[name].to_pylist() if name in read.column_names else [None] * len(read) for name in COLUMNS
        ]
        rows.update(zip(*columns, strict=True))
    return rows
