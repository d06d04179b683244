"""The table."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass

import duckdb
import pyarrow as pa

from profile_export.client import JobMetrics, JobPhase

_HEAD = ("what", "ours", "other", "ratio", "to hold")


@dataclass(frozen=True)
class Line:
    """A line of the table: two measurements, their ratio, and what DESIGN §9 wants of it."""

    what: str
    ours: str
    other: str = ""
    ratio: str = ""
    hold: str = ""

    @classmethod
    def timed(cls, what: str, ours: float, other: float, hold: str) -> Line:
        """Compare two durations in seconds."""
        return cls(what, seconds(ours), seconds(other), f"{ours / other:.2f}x", hold)


def seconds(value: float) -> str:
    """Write a duration."""
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1000:.0f} ms" if value >= 0.01 else f"{value * 1000:.1f} ms"


def percentile(values: Sequence[float], which: int) -> float:
    """Return the least of the values that so many per cent do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * which / 100) - 1)]


def megabytes(value: float) -> str:
    """Write a size."""
    return f"{value / 2**20:,.0f} MiB"


def machine() -> str:
    """Say what it ran on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, DuckDB {duckdb.__version__}, PyArrow {pa.__version__}"
    )


def phases(metrics: JobMetrics) -> tuple[str, float]:
    """Return where a job's time went, and which share of it the phases add up to."""
    spent = {JobPhase.Name(one.phase).removeprefix("JOB_PHASE_").lower(): one.time for one in metrics.phases}
    total = metrics.total_time.ToNanoseconds()
    shown = ", ".join(f"{name} {seconds(time.ToNanoseconds() / 1e9)}" for name, time in spent.items())
    return shown, sum(time.ToNanoseconds() for time in spent.values()) / total


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    rows = [_HEAD, *((line.what, line.ours, line.other, line.ratio, line.hold) for line in lines)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for number, row in enumerate(rows):
        cells = [
            f"{cell:<{width}}" if column in {0, len(_HEAD) - 1} else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("─" * width for width in widths))
