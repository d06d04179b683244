"""Identity resolution at some sizes, beside scipy's connected components on numbers that are ready."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.report import Line, megabytes
from profile_export.domain import columns
from profile_export.domain.catalog import DatasetKind
from profile_export.domain.plan import ExportPlan, PinnedBatch, PinnedFile, Source, SourcePart
from profile_export.domain.policy import IdentityGraph
from profile_export.domain.schema import EMPTY
from profile_export.domain.selection import IdentitySelection
from profile_export.engines.duckdb_session import DuckDbSession
from profile_export.engines.mapping import mapping_rows

_NEW_EDGES = 10_000
_ROWS_PER_GROUP = 100_000
_LINK = pa.struct(
    [
        ("namespace", pa.string()),
        ("id", pa.string()),
        ("authenticated_state", pa.string()),
        ("key_high", pa.int64()),
        ("key_low", pa.int64()),
    ]
)
Longs = npt.NDArray[np.int64]


def measure_graph(folder: Path, sizes: Sequence[int], memory_limit_mb: int) -> list[Line]:
    """Measure the resolution of graphs of so many edges, from files to the mapping, and what 10,000 more cost."""
    lines: list[Line] = []
    for size in sizes:
        place = folder / f"graph-{size}"
        edges = _edges(size)
        path = place / "first.parquet"
        _write(path, edges, "first")
        _write(place / "more.parquet", _edges(_NEW_EDGES, size), "more")
        whole, peak, profiles = _apart(_ours, place, ("first",), memory_limit_mb)
        extended, _, _ = _apart(_ours, place, ("first", "more"), memory_limit_mb)
        other, other_peak, components = _apart(_scipy, edges)
        same = "same components" if profiles == components else "!!! MISMATCH !!!"
        lines += [
            Line(f"graph of {size:,} edges: {profiles:,} profiles of several identities", same, hold="same"),
            Line.timed("  files to mapping / scipy on ready numbers", whole, other, "report"),
            Line.timed(
                f"  {_NEW_EDGES:,} more edges, with a kept graph / all anew", extended, whole, "report"
            ),
            Line("  peak memory of the process", megabytes(peak), megabytes(other_peak), hold="report"),
        ]
    return lines


def _edges(count: int, among: int = 0) -> Longs:
    """Pairs of numbered identities: most in small components, one in a hundred in a long chain."""
    dice = np.random.default_rng(count)
    people = among or count
    ones = dice.integers(0, people, count)
    others = people + (ones * 2654435761 % people) // 2 * 2 + dice.integers(0, 2, count)
    chain = np.arange(0, count, 100)
    ones[chain], others[chain] = 2 * people + chain, 2 * people + chain + 100
    return np.stack([ones, others])


def _keys(numbers: Longs) -> tuple[Longs, Longs]:
    """Spread numbers over the key space as hashes are."""
    mixed = numbers.astype(np.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return (mixed ^ (mixed >> np.uint64(31))).view(np.int64), numbers


def _write(path: Path, edges: Longs, batch: str) -> None:
    """Write a data file whose rows have one link each, sorted by identity key as ingestion does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (high, low), (other_high, other_low) = (_keys(side) for side in edges)
    order = np.argsort(high)
    count = len(order)
    empty = pa.nulls(count, pa.string())
    structs = pa.StructArray.from_arrays(
        [empty, empty, empty, pa.array(other_high[order]), pa.array(other_low[order])], fields=list(_LINK)
    )
    links = pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32)), structs)
    text = pa.repeat(pa.scalar("x"), count)
    system: dict[str, Any] = {
        columns.BATCH_ID: pa.repeat(pa.scalar(batch), count),
        columns.ROW: np.arange(count),
        columns.NAMESPACE: text,
        columns.IDENTITY: text,
        columns.AUTHENTICATED_STATE: empty,
        columns.KEY_HIGH: high[order],
        columns.KEY_LOW: low[order],
        columns.LINKS: links,
    }
    pq.write_table(pa.table(system), path, row_group_size=_ROWS_PER_GROUP)


def _apart(work: Callable[..., tuple[float, int]], *arguments: Any) -> tuple[float, int, int]:
    """Do a piece of work in a process of its own; return its seconds, its peak memory and what it found."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as child:
        seconds, found = child.submit(work, *arguments).result()
        return seconds, child.submit(_peak_bytes).result(), found


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _ours(place: Path, batches: Sequence[str], memory_limit_mb: int) -> tuple[float, int]:
    plan = _plan(place, batches)
    folder = place / "-".join(batches)
    session = DuckDbSession(plan, place, folder, {"memory_limit": f"{memory_limit_mb}MB"}, _ignore)
    begin = time.perf_counter()
    mapping = session.mapping()
    took = time.perf_counter() - begin
    session.close()
    found: set[int] = set()
    for _, profiles in mapping_rows(mapping) if mapping else ():
        found.update(np.unique(profiles["low"]).tolist())
    return took, len(found)


def _plan(place: Path, batches: Sequence[str]) -> ExportPlan:
    files = tuple(
        PinnedFile(path.name, pq.read_metadata(path).num_rows, path.stat().st_size)
        for path in (place / f"{batch}.parquet" for batch in batches)
    )
    plan = ExportPlan(
        "export",
        IdentityGraph.PDG,
        (Source("crm", DatasetKind.RECORD, (SourcePart(EMPTY, files),)),),
        tuple(PinnedBatch(batch, number, datetime.now(UTC)) for number, batch in enumerate(batches, 1)),
        {},
        {},
        EMPTY,
        EMPTY,
        EMPTY,
        IdentitySelection(),
        None,
    )
    return replace(plan, graph_folder="graphs")


def _scipy(edges: Longs) -> tuple[float, int]:
    size = int(edges.max()) + 1
    begin = time.perf_counter()
    pairs = (np.ones(edges.shape[1], dtype=np.int8), (edges[0], edges[1]))
    _, labels = connected_components(coo_array(pairs, shape=(size, size)), directed=False)
    took = time.perf_counter() - begin
    return took, int(np.count_nonzero(np.bincount(labels) > 1))


def _ignore(_done: int, _estimated: int) -> None:
    pass
