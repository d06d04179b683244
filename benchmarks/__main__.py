"""Run the benchmarks: `python -m benchmarks [--short] [--profiles N] [--runs N] [names…]`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bare import bare
from benchmarks.batches import measure_batches
from benchmarks.data import FOLDER
from benchmarks.exports import EXPORTS, Setting, measure
from benchmarks.feed import measure_feed
from benchmarks.get import measure_get
from benchmarks.graph import measure_graph
from benchmarks.held import holding
from benchmarks.idle import measure_idle
from benchmarks.ingestion import measure_ingestion
from benchmarks.jobs import measure_jobs
from benchmarks.limit import measure_limit
from benchmarks.program import ServerDiedError
from benchmarks.report import Line, machine, megabytes, seconds, show
from benchmarks.server import running
from benchmarks.shape import measure_shapes
from benchmarks.tiny import measure_lines, measure_tiny
from benchmarks.watch import measure_watch
from profile_export.client import ClientError

_SERVED = (*(export.name for export in EXPORTS), "tiny", "batches", "lines", "shape")
_NAMES = (
    *_SERVED,
    "jobs",
    "ingestion",
    "graph",
    "limit",
    "idle",
    "watch",
    "feed",
    "get",
)
_MEMORY_LIMIT_MB = 4096
_TIGHT_LIMIT_MB = 512
_MEGABYTE = 10**6


def main() -> int:
    """Measure, print the table, and say 1 only if the server died."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"any of {', '.join(_NAMES)}; none: all")
    parser.add_argument("--short", action="store_true", help="small sizes, a few minutes for all")
    parser.add_argument("--profiles", type=int, help="how many, 1,000,000 unless --short")
    parser.add_argument("--runs", type=int, help="of each export and its opponents; the median counts")
    options = parser.parse_args()
    if unknown := set(options.names) - set(_NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(_NAMES)}")
    names = options.names or _NAMES
    begin = time.monotonic()
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix="run-") as folder:
        setting = Setting(
            profiles=options.profiles or (10_000 if options.short else 1_000_000),
            runs=options.runs or (1 if options.short else 3),
            folder=Path(folder),
            threads=os.cpu_count() or 1,
            memory_limit_mb=_MEMORY_LIMIT_MB,
        )
        try:
            lines = _ingestion(setting, short=options.short) if "ingestion" in names else []
            lines += _graph(setting, short=options.short) if "graph" in names else []
            if "limit" in names:
                lines += asyncio.run(_limit(setting, short=options.short))
            if "jobs" in names:
                jobs, kills, workers = (12, 1, (4,)) if options.short else (100, 3, (1, 4))
                lines += asyncio.run(measure_jobs(setting.folder, jobs=jobs, kills=kills, workers=workers))
            lines += asyncio.run(_calls(names, setting.folder, short=options.short))
            lines += asyncio.run(_measure(names, setting, short=options.short))
        except (ServerDiedError, ClientError) as error:
            print(f"The server failed: {error}", file=sys.stderr)
            return 1
    print(f"\n{setting.profiles:,} profiles, {setting.runs} runs, medians; {machine()}\n")
    show(lines)
    print(f"\nTook {seconds(time.monotonic() - begin)}.")
    return 0


def _ingestion(setting: Setting, *, short: bool) -> list[Line]:
    rows, sizes = (4_000, (4, 16)) if short else (100_000, (100, 1_000))
    return measure_ingestion(
        setting.folder, rows=rows, runs=setting.runs, sizes=[size * _MEGABYTE for size in sizes]
    )


def _graph(setting: Setting, *, short: bool) -> list[Line]:
    sizes, more = ((20_000, 200_000), 1_000) if short else ((1_000_000, 10_000_000), 10_000)
    return [
        line
        for edges in sizes
        for line in measure_graph(setting.folder, edges=edges, more=more, runs=setting.runs)
    ]


async def _limit(setting: Setting, *, short: bool) -> list[Line]:
    place = setting.folder / "limit"
    place.mkdir()
    persons = 2_000 if short else 1_000_000
    return await measure_limit(place, threads=setting.threads, limit_mb=_TIGHT_LIMIT_MB, persons=persons)


async def _calls(names: Sequence[str], folder: Path, *, short: bool) -> list[Line]:
    """Measure calls and watches, beside servers that do less."""
    lines: list[Line] = []
    if not {"idle", "watch", "feed", "get"} & {*names}:
        return lines
    async with holding(folder / "calls") as held, bare(folder / "calls") as other:
        if "idle" in names:  # first: it wants fresh servers
            sizes = (100, 200) if short else (1_000, 5_000)
            lines += await measure_idle(held, other, sizes=sizes)
        if "watch" in names:
            watchers, moves = ([1, 10, 100], 3) if short else ([1, 100, 1_000], 20)
            lines += await measure_watch(held, other, sizes=watchers, moves=moves)
        if "feed" in names:
            changes, runs = (300, 3) if short else (5_000, 15)
            lines += await measure_feed(held, other, changes=changes, runs=runs)
        if "get" in names:
            calls, runs = (50, 2) if short else (320, 15)
            lines += await measure_get(held, other, calls=calls, runs=runs)
    return lines


async def _measure(names: Sequence[str], setting: Setting, *, short: bool) -> list[Line]:
    if not {*_SERVED} & {*names}:
        return []
    async with running(setting.folder, setting.threads, setting.memory_limit_mb) as server:
        lines = []
        if "tiny" in names:
            jobs, batches = (5, 50) if short else (20, 1000)
            lines += await measure_tiny(server, setting.folder, jobs=jobs, batches=batches)
        if "batches" in names:
            batches, rows = (60, 600) if short else (1000, 200_000)
            lines += await measure_batches(server, setting.folder, batches=batches, rows=rows)
        if "lines" in names:
            lines += await measure_lines(server, setting.folder, 4_000 if short else 50_000)
        if "shape" in names:
            lines += await measure_shapes(server, setting.folder, (1 if short else 10) * _MEGABYTE)
        lines += await measure(server, names, setting)
        server.check()
        return [
            *lines,
            Line("peak memory of the server's own process", megabytes(server.peak_bytes()), hold="report"),
        ]


if __name__ == "__main__":
    sys.exit(main())
