"""The opponent's process: hand-written SQL on the files of the sources, or no more than reading and writing the bytes.

`python -m benchmarks.opponent TASK.json` prints one JSON object.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks import sql

Longs = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What to do: `batches` as `sql.BatchFiles` without paths; `output` is the job's, for the limit."""

    what: str
    batches: list[dict[str, Any]]
    leaves: list[str]
    event_leaves: list[str]
    linked: bool
    folder: str
    output: list[str]
    threads: int
    memory_limit: str

    def write(self, path: Path) -> None:
        """Write it for `main`."""
        path.write_text(json.dumps(asdict(self)))


def main() -> None:
    """Do one task."""
    task = Task(**json.loads(Path(sys.argv[1]).read_text()))
    wanted = sql.Wanted(task.leaves, task.event_leaves, linked=task.linked)
    batches = [
        sql.BatchFiles(**batch, paths=frozenset(_paths(pq.read_schema(batch["files"][0]))))
        for batch in task.batches
    ]
    folder = Path(task.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(config={"threads": task.threads, "memory_limit": task.memory_limit}) as connection:
        connection.execute("SET preserve_insertion_order = false")
        connection.execute("SET TimeZone = 'UTC'")
        measure: Callable[..., dict[str, float]] = {"export": _export, "limit": _limit}[task.what]
        before = time.process_time()
        steps = measure(connection, batches, wanted, task)
        cpu = time.process_time() - before
    sys.stdout.write(json.dumps({"steps": steps, "cpu_seconds": cpu, "peak_bytes": _peak_bytes()}) + "\n")


def _export(
    connection: duckdb.DuckDBPyConnection, batches: list[sql.BatchFiles], wanted: sql.Wanted, task: Task
) -> dict[str, float]:
    clock = _Clock()
    for statement in sql.sources(batches, wanted):
        connection.execute(statement)
    clock.lap("replaced")
    if wanted.linked:
        pairs = connection.execute(sql.links(batches)).fetchnumpy()
        moved = _moved(pairs)
        connection.register("found", moved)
        connection.execute("CREATE TEMP TABLE moved AS SELECT * FROM found")
        clock.lap("resolve")
    for statement in sql.export(wanted, task.folder):
        connection.execute(statement)
        clock.lap("written" if statement.startswith("COPY") else "prepared")
    return clock.laps


def _moved(pairs: dict[str, Longs]) -> pa.Table:
    """Find the components; a profile's key is the smallest of its component. Only keys that differ from it."""
    high = np.concatenate([pairs["high"], pairs["other_high"]])
    low = np.concatenate([pairs["low"], pairs["other_low"]])
    distinct, first, numbers = np.unique(high, return_index=True, return_inverse=True)
    assert (low[first][numbers] == low).all(), "two identities share 64 bits"
    edges, size = len(pairs["high"]), len(distinct)
    links = coo_array((np.ones(edges, np.int8), (numbers[:edges], numbers[edges:])), shape=(size, size))
    _, labels = connected_components(links, directed=False)
    _, smallest = np.unique(labels, return_index=True)
    profile = smallest[labels]
    moved = profile != np.arange(size)
    lows = low[first]
    return pa.table(
        {
            "key_high": distinct[moved],
            "key_low": lows[moved],
            "profile_high": distinct[profile[moved]],
            "profile_low": lows[profile[moved]],
        }
    )


def _limit(
    connection: duckdb.DuckDBPyConnection, batches: list[sql.BatchFiles], wanted: sql.Wanted, task: Task
) -> dict[str, float]:
    """Decode every column that is needed, and write the job's rows from memory."""
    files = ", ".join(f"'{file}'" for file in task.output)
    connection.execute(f"CREATE TEMP TABLE output AS FROM read_parquet([{files}])")
    views = [
        one
        for one in sql.sources(batches, wanted)
        if one.startswith("CREATE TEMP VIEW") and "current" not in one
    ]
    clock = _Clock()
    for view in views:
        connection.execute(view)
        kind = view.split()[3]
        names = [str(row[0]) for row in connection.execute(f"DESCRIBE {kind}").fetchall()]
        counted = ", ".join(f'count("{name}")' for name in names if wanted.linked or name != "links")
        connection.execute(f"SELECT {counted} FROM {kind}").fetchall()
    clock.lap("read")
    connection.execute(
        f"COPY output TO '{task.folder}' (FORMAT parquet, COMPRESSION zstd, FILE_SIZE_BYTES '128MB')"
    )
    clock.lap("write")
    return clock.laps


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _paths(found: pa.Schema | pa.StructType, parents: str = "") -> Iterator[str]:
    for member in found:
        yield parents + member.name
        if pa.types.is_struct(member.type):
            yield from _paths(member.type, f"{parents}{member.name}.")


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main()
