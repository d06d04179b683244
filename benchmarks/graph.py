"""What identity resolution costs beside no more than the components of a graph that is numbered and in memory.

The graph is random: about half of its identities are one component, the others make small ones.
"""

from __future__ import annotations

import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.process import Cost, cost_of, in_child
from benchmarks.report import Line, megabytes
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import ExportPlan, PinnedBatch, PinnedFile, Source, SourcePart
from profile_export.domain.export.selection import IdentitySelection
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import EMPTY
from profile_export.engines.duckdb.session import DuckDbSession
from profile_export.engines.identity.components import Components

_ROWS_PER_FILE = 1_000_000
_IDENTITIES_PER_EDGE = 1.3
_EDGES_AT_ONCE = 2**20
_MEMORY_LIMIT_MB = 1024
_KEY = "(hash({i}, {half})::HUGEINT - 9223372036854775808)::BIGINT"
_LAST = "more"


@dataclass(frozen=True)
class _Sample:
    """Edges as data files of one batch each, the last one with few, and as numbers."""

    lake: Path
    edges: int
    batches: tuple[tuple[str, int], ...]

    @property
    def numbers(self) -> Path:
        return self.lake / "numbers.parquet"


def measure_graph(folder: Path, *, edges: int, more: int, runs: int) -> list[Line]:
    """Measure resolution from files to the graph, its components alone, and its extension.

    Args:
        folder: For the files.
        edges: How many, apart from those of the extension.
        more: Edges of the extension.
        runs: Of each; the median counts.
    """
    print(f"graph: {edges:,} edges …", file=sys.stderr)
    lake = folder / f"graph-{edges}"
    in_child(partial(cost_of, partial(_make, lake, edges, more)))
    starts = range(0, edges, _ROWS_PER_FILE)
    sizes = [(f"b{start}", min(_ROWS_PER_FILE, edges - start)) for start in starts]
    sample = _Sample(lake, edges, (*sizes, (_LAST, more)))
    anew = _runs(partial(_resolved, sample, extended=False), runs)
    again = _runs(partial(_resolved, sample, extended=True), runs)
    alone, scipys = _runs(partial(_joined, sample), runs), _runs(partial(_by_scipy, sample), runs)
    shutil.rmtree(lake)
    what = f"graph of {edges:,} edges"
    return [
        Line.timed(
            f"{what}: files to graph / components of numbers by scipy", _time(anew), _time(scipys), "report"
        ),
        Line.timed("  components of numbers in chunks / by scipy", _time(alone), _time(scipys), "report"),
        Line.timed(
            f"  a kept graph extended by {more:,} edges / made anew", _time(again), _time(anew), "report"
        ),
        Line(
            f"  peak memory, files to graph, limit {_MEMORY_LIMIT_MB} MB / of scipy",
            megabytes(_peak(anew)),
            megabytes(_peak(scipys)),
            f"{_peak(anew) / _peak(scipys):.2f}x",
            "≤ the limit",
        ),
        Line("  peak memory of the extension", megabytes(_peak(again)), hold="≤ the limit"),
    ]


def _runs(work: Callable[[], Cost], runs: int) -> list[Cost]:
    return [in_child(work) for _ in range(runs)]


def _time(costs: Sequence[Cost]) -> float:
    return statistics.median(cost.seconds for cost in costs)


def _peak(costs: Sequence[Cost]) -> int:
    return max(cost.peak_bytes for cost in costs)


# --- In a process of their own ---


def _resolved(sample: _Sample, *, extended: bool) -> Cost:
    """Resolve all batches but the last; or do so first, and measure only what the last one takes."""
    graphs = "graphs/1" if extended else ""
    shutil.rmtree(sample.lake / "graphs", ignore_errors=True)
    first = partial(_graph, _plan(sample, sample.batches[:-1], graphs), sample.lake)
    if not extended:
        return cost_of(first)
    in_child(partial(cost_of, first))
    return cost_of(partial(_graph, _plan(sample, sample.batches, graphs), sample.lake))


def _graph(plan: ExportPlan, lake: Path) -> None:
    scratch = lake / "attempt"
    session = DuckDbSession(plan, lake, scratch, {"memory_limit": f"{_MEMORY_LIMIT_MB}MB"}, lambda *_: None)
    session.identity_graph()
    session.close()
    shutil.rmtree(scratch)


def _joined(sample: _Sample) -> Cost:
    numbers, size = _numbers(sample)

    def join() -> None:
        components = Components(size)
        for start in range(0, len(numbers), _EDGES_AT_ONCE):
            components.join(numbers[start : start + _EDGES_AT_ONCE])

    return cost_of(join)


def _by_scipy(sample: _Sample) -> Cost:
    numbers, size = _numbers(sample)

    def find() -> None:
        pairs = (np.ones(len(numbers), dtype=np.int8), (numbers[:, 0], numbers[:, 1]))
        connected_components(coo_array(pairs, shape=(size, size)), directed=False)

    return cost_of(find)


def _numbers(sample: _Sample) -> tuple[npt.NDArray[np.int32], int]:
    ends = pq.read_table(sample.numbers)
    return np.column_stack([column.to_numpy() for column in ends.columns]), round(
        sample.edges * _IDENTITIES_PER_EDGE
    )


# --- The files ---


def _plan(sample: _Sample, batches: Sequence[tuple[str, int]], graph_folder: str) -> ExportPlan:
    files = tuple(
        PinnedFile(f"{batch}.parquet", rows, (sample.lake / f"{batch}.parquet").stat().st_size)
        for batch, rows in batches
    )
    return ExportPlan(
        batch_id="export",
        graph=IdentityGraph.PDG,
        sources=(Source("crm", DatasetKind.RECORD, (SourcePart(EMPTY, files),)),),
        batches=tuple(
            PinnedBatch(batch, number, datetime(2024, 1, 1, tzinfo=UTC))
            for number, (batch, _) in enumerate(batches, start=1)
        ),
        namespaces={},
        segment_namespaces={},
        record_fields=EMPTY,
        event_fields=EMPTY,
        fields=EMPTY,
        identities=IdentitySelection(),
        events=None,
        graph_folder=graph_folder,
    )


def _make(lake: Path, edges: int, more: int) -> None:
    """Write the data files as ingestion does, sorted by key, and the numbers."""
    lake.mkdir()
    identities = round(edges * _IDENTITIES_PER_EDGE)
    ends = f"(hash(j, 3) % {identities})::INTEGER AS one, (hash(j, 4) % {identities})::INTEGER AS other"
    parts = [(start, min(edges, start + _ROWS_PER_FILE)) for start in range(0, edges, _ROWS_PER_FILE)]
    batches = {f"b{first}": (first, end) for first, end in parts} | {_LAST: (edges, edges + more)}
    with duckdb.connect(config={"temp_directory": str(lake / "spill")}) as connection:
        for batch, (first, end) in batches.items():
            connection.execute(f"""
                COPY (
                    SELECT '{batch}' AS _batch_id, j - {first} AS _row, 'Email' AS _namespace,
                        'user' || one || '@example.com' AS _identity, NULL::VARCHAR AS _authenticated_state,
                        {_KEY.format(i="one", half=1)} AS _key_high, {_KEY.format(i="one", half=2)} AS _key_low,
                        [{{namespace: 'Email', id: 'user' || other || '@example.com',
                            authenticated_state: NULL::VARCHAR, key_high: {_KEY.format(i="other", half=1)},
                            key_low: {_KEY.format(i="other", half=2)}}}] AS _links
                    FROM (SELECT j, {ends} FROM range({first}, {end}) AS numbers(j))
                    ORDER BY _key_high, _key_low, _row
                ) TO '{lake / batch}.parquet' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 65536)""")
        connection.execute(
            f"COPY (SELECT {ends} FROM range({edges}) AS numbers(j)) TO '{lake}/numbers.parquet' (FORMAT parquet)"
        )
