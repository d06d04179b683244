"""The exports at full size, each against hand-written SQL and against no more than reading and writing the bytes."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.compare import differences
from benchmarks.data import Sample, linked_sample, plain_sample
from benchmarks.leaves import NARROW_PATHS, WIDE
from benchmarks.opponent import Task
from benchmarks.report import Line, megabytes, phases, seconds
from benchmarks.server import Server
from profile_export.client import Client, DatasetKind, Events

_GOING_FOR = "report; going for 2x"


@dataclass(frozen=True)
class Export:
    """An export to measure."""

    name: str
    what: str
    sample: Callable[[int], Sample]
    leaves: tuple[str, ...]
    event_leaves: tuple[str, ...] = ()
    linked: bool = False
    ordered: bool = False
    memory_to_hold: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """The `fields` of the request."""
        return ("identityMap", *self.leaves)


EXPORTS = (
    Export("merge9", "9 fields", plain_sample, NARROW_PATHS),
    Export(
        "merge31", "31 fields", plain_sample, tuple(leaf.path for leaf in WIDE), memory_to_hold="≤ 1024 MiB"
    ),
    Export("order9", "9 fields, dataSetPrecedence", plain_sample, NARROW_PATHS, ordered=True),
    Export(
        "order31",
        "31 fields, dataSetPrecedence",
        plain_sample,
        tuple(leaf.path for leaf in WIDE),
        ordered=True,
        memory_to_hold="≤ 1024 MiB",
    ),
    Export(
        "linked",
        "graph, segments, events",
        linked_sample,
        (*NARROW_PATHS, "segmentMembership"),
        (
            "_id",
            "timestamp",
            "eventType",
            "commerce.order.priceTotal",
            "commerce.order.currencyCode",
            "web.webPageDetails.name",
            "productListItems",
        ),
        linked=True,
    ),
)


@dataclass(frozen=True)
class Setting:
    """How much to measure, where, and what both sides may use."""

    profiles: int
    runs: int
    folder: Path
    threads: int
    memory_limit_mb: int


class OpponentFailedError(Exception):
    """The opponent's process failed."""


@dataclass(frozen=True)
class _Measured:
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    steps: dict[str, float]


async def measure(server: Server, names: Sequence[str], setting: Setting) -> list[Line]:
    """Measure the exports of these names."""
    lines: list[Line] = []
    loaded: dict[str, ours.Loaded] = {}
    for export in EXPORTS:
        if export.name not in names:
            continue
        sample = export.sample(setting.profiles)
        async with Client(server.address, sandbox=f"bench-{sample.name}") as client:
            if sample.name not in loaded:
                print(f"uploading {sample.rows:,} rows of the sample '{sample.name}' …", file=sys.stderr)
                loaded[sample.name] = await ours.load(client, sample)
                lines.append(_upload_line(sample, loaded[sample.name]))
            try:
                lines += await _measure_export(client, server, export, loaded[sample.name], setting)
            except (ours.JobFailedError, OpponentFailedError) as error:
                server.check()
                lines.append(Line(f"{export.name}: {export.what}", "!!! FAILED !!!"))
                print(f"{export.name} FAILED: {error}", file=sys.stderr)
    return lines


async def _measure_export(
    client: Client, server: Server, export: Export, loaded: ours.Loaded, setting: Setting
) -> list[Line]:
    order = _order(loaded) if export.ordered else ()
    policy = await ours.policy(client, linking=export.linked, order=order)
    events = Events(fields=export.event_leaves) if export.event_leaves else None
    task = await _task(client, export, loaded, setting)
    jobs: list[ours.Finished] = []
    cpu: list[float] = []
    opponents: list[_Measured] = []
    limits: list[_Measured] = []
    for number in range(setting.runs):
        print(f"{export.name}: run {number + 1} of {setting.runs} …", file=sys.stderr)
        before = server.cpu_seconds()
        job = await ours.run_job(client, loaded.destination, export.fields, policy, events)
        cpu.append(server.cpu_seconds() - before)
        jobs.append(job)
        opponents.append(await _run(task, setting.folder))
        output = list(await ours.stored_files(client, job.job.batch_id))
        limit = replace(task, what="limit", output=output, folder=f"{task.folder}-limit")
        limits.append(await _run(limit, setting.folder))
    written = await ours.stored_files(client, jobs[-1].job.batch_id)
    different = await asyncio.to_thread(differences, [Path(file) for file in written], Path(task.folder))
    return _lines(export, jobs, cpu, opponents, limits, different)


def _lines(
    export: Export,
    jobs: Sequence[ours.Finished],
    cpu: Sequence[float],
    opponents: Sequence[_Measured],
    limits: Sequence[_Measured],
    different: Sequence[str],
) -> list[Line]:
    metrics = jobs[-1].job.metrics
    took = statistics.median(one.seconds for one in jobs)
    sql = statistics.median(one.seconds for one in opponents)
    limit = statistics.median(one.seconds for one in limits)
    peak = max(one.job.metrics.peak_memory_bytes for one in jobs)
    sql_peak = max(one.peak_bytes for one in opponents)
    spent, share = phases(metrics)
    for name, measured in (("hand-written SQL", opponents[-1]), ("bytes", limits[-1])):
        steps = ", ".join(f"{step} {seconds(time)}" for step, time in measured.steps.items())
        print(f"{export.name}: {name}: {steps}", file=sys.stderr)
    print(f"{export.name}: phases: {spent}", file=sys.stderr)
    if different:
        print(f"{export.name}: MISMATCH with the SQL: " + "; ".join(different), file=sys.stderr)
    facts = f"{metrics.profiles_exported:,} profiles of {metrics.fragments_read:,} fragments"
    if export.event_leaves:
        facts += f", {metrics.events_exported:,} events"
    verdict = "!!! MISMATCH !!!" if different else "same rows"
    return [
        Line(f"{export.name}: {export.what}: {facts}", verdict, hold="same rows"),
        Line.timed("  whole job / hand-written SQL", took, sql, "≤ 1.25x"),
        Line.timed("  whole job / reading and writing the bytes", took, limit, _GOING_FOR),
        Line.timed(
            "  processor time of the job / of the SQL",
            statistics.median(cpu),
            statistics.median(one.cpu_seconds for one in opponents),
            "report",
        ),
        Line(
            "  peak memory of the engine / of the SQL",
            megabytes(peak),
            megabytes(sql_peak),
            f"{peak / sql_peak:.2f}x",
            export.memory_to_hold,
        ),
        Line("  phases / total time", f"{share:.1%}", hold="100.0%"),
    ]


def _upload_line(sample: Sample, loaded: ours.Loaded) -> Line:
    return Line(
        f"upload of Parquet, sample '{sample.name}'",
        f"{loaded.rows / loaded.seconds:,.0f} rows/s",
        hold="report",
    )


async def _task(client: Client, export: Export, loaded: ours.Loaded, setting: Setting) -> Task:
    # Events of one instant and id are ordered by dataset id (S17).
    ranks = {dataset: rank for rank, dataset in enumerate(sorted(dataset.id for dataset in loaded.datasets))}
    stored = [
        (dataset, batch)
        for dataset in loaded.datasets
        for batch in await ours.stored_batches(client, dataset.id)
    ]
    order = _order(loaded)
    if export.ordered:
        # What stands later wins, so a stronger dataset's batches get the greater numbers.
        stored.sort(key=lambda one: (-order.index(one[0].id), one[1].number))
        stored = [(dataset, replace(batch, number=index)) for index, (dataset, batch) in enumerate(stored, 1)]
    batches: list[dict[str, Any]] = [
        {
            "dataset": ranks[dataset.id],
            "number": batch.number,
            "files": batch.files,
            "is_event": dataset.kind == DatasetKind.DATASET_KIND_EVENT,
        }
        for dataset, batch in stored
    ]
    return Task(
        what="export",
        batches=batches,
        leaves=list(export.leaves),
        event_leaves=list(export.event_leaves),
        linked=export.linked,
        folder=str(setting.folder / f"{export.name}-sql"),
        output=[],
        threads=setting.threads,
        memory_limit=f"{setting.memory_limit_mb}MB",
    )


def _order(loaded: ours.Loaded) -> list[str]:
    """Rank the datasets otherwise than by time: the one that was uploaded first is the strongest."""
    return [dataset.id for dataset in loaded.datasets]


async def _run(task: Task, folder: Path) -> _Measured:
    path = folder / "task.json"
    task.write(path)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "benchmarks.opponent",
        str(path),
        cwd=Path(__file__).parents[1],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    answer, complaint = await process.communicate()
    if process.returncode:
        raise OpponentFailedError(complaint.decode(errors="replace").strip()[-2000:])
    found = json.loads(answer)
    return _Measured(sum(found["steps"].values()), found["cpu_seconds"], found["peak_bytes"], found["steps"])
