"""The engine within a child process: one attempt after the other, run by DuckDB, and how its errors are told.

A process of its own, so that running out of memory or crashing ends an attempt and not the server.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import duckdb
import ibis.expr.types as ir
from ibis.backends.sql.datatypes import DuckDBType

from profile_export.domain.export.plan import (
    HIGHEST_KEY,
    LOWEST_KEY,
    EngineProgress,
    ExportPlan,
    IdentityFindings,
    KeyRange,
    LinkingIdentity,
    RangeResult,
    ResolutionFacts,
    strongest_link,
)
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.engines.duckdb.engine import Close, Failed, FindGraph, Open, Resolve, Run
from profile_export.engines.duckdb.identity_findings import links_most, shared_identities, spelled_apart
from profile_export.engines.duckdb.output import FEWEST_ROWS, Output
from profile_export.engines.duckdb.query import compiled, output_columns
from profile_export.engines.duckdb.sources import (
    MovedRows,
    bound_tables,
    excluded_statements,
    in_leaves,
    in_place,
    in_range,
    range_statements,
    scan,
)
from profile_export.engines.duckdb.trimming import make_trims
from profile_export.engines.expression import tables
from profile_export.engines.expression.tables import Shape, shape_of
from profile_export.engines.identity.graph import GraphFacts, key_records
from profile_export.engines.identity.links import (
    Batches,
    DamagedFileError,
    LinkedPlace,
    LinkedRows,
    Links,
    Pairs,
    links_in_files,
)
from profile_export.engines.identity.resolution import Space, graph_of

_POLL_SECONDS = 0.2


class _ProgressMeter:
    """Turns the progress of DuckDB's queries into source rows done, which never falls."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, rows: int, report: Callable[[int, int], None]
    ) -> None:
        # Without a progress bar there is no progress, and nobody wants to see it printed.
        connection.execute("SET enable_progress_bar = true")
        connection.execute("SET enable_progress_bar_print = false")
        self._connection, self._rows, self._report = connection, rows, report
        self.begin()

    def begin(self) -> None:
        """Begin a phase: nothing of its rows is done."""
        self._done = self._reported = 0

    @contextmanager
    def measuring(self, rows: int, share: Callable[[], float] | None = None) -> Iterator[None]:
        """Report while the body does about the work of so many rows; `share` says how far it is where no query runs."""
        finished = Event()
        watcher = Thread(target=self._watch, args=(rows, share or self._share, finished), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
        self._done = min(self._rows, self._done + rows)
        self._reach(self._done)

    def _watch(self, rows: int, share: Callable[[], float], finished: Event) -> None:
        while not finished.wait(_POLL_SECONDS):
            self._reach(min(self._rows, self._done + round(share() * rows)))

    def _share(self) -> float:
        # -1 until the query has begun.
        return max(0.0, self._connection.query_progress()) / 100

    def _reach(self, done: int) -> None:
        """Report what is more than before: a query may have been given up and done again in parts."""
        if done > self._reported:
            self._reported = done
            self._report(done, self._rows)


_ROWS_READ_AT_ONCE = 100_000
_FEW_ROWS = 4_096
"""From so many down, memory goes to what each thread reads at once."""
_PAIRS_AT_ONCE = 250_000
_ALL = "all_{}"
_GRAPH = "identity_graph"


class DuckDbSession:
    """An open database for one attempt. Not for several threads."""

    def __init__(
        self,
        plan: ExportPlan,
        lake_root: Path,
        folder: Path,
        settings: Mapping[str, str | int],
        report: Callable[[int, int], None],
        segment_folders: Sequence[Path] = (),
    ) -> None:
        for place in (folder, *segment_folders):
            place.mkdir(parents=True, exist_ok=True)
        self._plan, self._root, self._folder = plan, lake_root, folder
        self._is_small = plan.rows <= _ROWS_READ_AT_ONCE and len(plan.ranges()) == 1
        self._connection = duckdb.connect(
            ":memory:",
            config={
                **settings,
                "temp_directory": str(folder / "spill"),
                "preserve_insertion_order": False,
            },
        )
        self._connection.execute("SET parquet_metadata_cache = true")
        # It repeats nested columns: objects of 30 levels took seconds to plan, those of 60 all memory.
        self._connection.execute("SET disabled_optimizers = 'partial_aggregate_pushdown'")
        for statement in excluded_statements(plan):
            self._connection.execute(statement)
        self._memory = _memory_of(self._connection)
        self._output = Output(self._connection, plan, folder, segment_folders, self._memory)
        self._meter = _ProgressMeter(self._connection, plan.rows, report)
        ((self._threads,),) = self._connection.execute("SELECT current_setting('threads')").fetchall()
        self._widest = HIGHEST_KEY - LOWEST_KEY + 1
        self._shape: Shape | None = None
        self._graph: tuple[Path, GraphFacts] | None = None
        self._moved: MovedRows | None = None
        self._links_most: LinkingIdentity | None = None

    def close(self) -> None:
        """Give everything back."""
        self._connection.close()

    def identity_graph(self) -> Path | None:
        """Return the file that says which identities of the plan's batches have a profile of another key.

        None where every identity is a profile of its own. Found once, and without moving a row.
        """
        if self._graph is None and self._plan.graph is IdentityGraph.PDG and self._links.at_most():
            folder = self._folder / "resolution"
            folder.mkdir()
            half = self._memory // 2
            with self._limited_to(half):
                self._graph = graph_of(self._plan, self._links, self._root, Space(half, folder))
        return self._graph and self._graph[0]

    @contextmanager
    def _limited_to(self, memory: int) -> Iterator[None]:
        """Leave the database so much memory, in bytes, while this lasts: it holds what small plans read at once."""
        self._connection.execute(f"SET memory_limit = '{memory}B'")
        try:
            yield
        finally:
            self._connection.execute(f"SET memory_limit = '{self._memory}B'")

    def resolve(self) -> ResolutionFacts:
        """Find out who is one person, where the graph asks for it, and bind the sources accordingly.

        Leaves `resolution/` in the folder: the graph, and the rows that move for it.
        """
        facts, links = ResolutionFacts(), self._links
        with self._meter.measuring(self._plan.rows // 2, lambda: links.share_read):
            self.identity_graph()
        if self._graph is not None:
            graph, found = self._graph
            moved = self._move(graph)
            facts = ResolutionFacts(found.identities, found.components, found.moved, moved)
        self._bind(shape_of(self._plan, linked=links.at_most() > 0))
        self._meter.begin()
        return replace(facts, findings=self._findings(facts.identities))

    def _findings(self, linked: int) -> IdentityFindings:
        tables, rows = self._flattened, self._plan.rows
        apart = self._plan.graph is IdentityGraph.NONE and self._links.at_most() > 0
        shared = shared_identities(self._connection, tables, rows) if apart else 0
        return IdentityFindings(linked, shared, spelled_apart(self._connection, tables, rows))

    def run(self, key_range: KeyRange) -> RangeResult:
        """Export one range of profiles into files of its own."""
        if self._shape is None:
            self.resolve()
        shape = self._shape
        if shape is None or not self._flattened:
            return RangeResult()
        self._merge(shape, key_range)
        counts = replace(self._output.count(), links_most=self._links_most)
        with self._meter.measuring(self._progress_share(key_range)):
            files = self._output.write(shape, key_range) if counts.profiles_exported else ()
        self._connection.execute("DROP TABLE profiles")
        return RangeResult(files, counts)

    def _move(self, graph: Path) -> int:
        """Bring the rows of identities to their profiles; return how many."""
        self._connection.execute(
            f"CREATE TEMP VIEW {_GRAPH} AS SELECT * FROM {scan([graph])} WHERE {in_range('key_high')}"
        )
        self._moved = MovedRows(graph.parent, len(self._plan.ranges()))
        rows = 0
        for table, query in self._flattened.items():
            with self._meter.measuring(self._plan.rows // 2 // len(self._flattened)):
                rows += self._moved.write(self._connection, table, query, graph)
        return rows

    # --- Merging ---

    def _merge(self, shape: Shape, key_range: KeyRange) -> None:
        """Fill the table `profiles`: at once, or in slices where memory is too small for all of the range.

        How much memory a slice takes depends on values that nobody has looked at before. So it is tried, and a slice
        that does not fit is halved, as are those that come after it; what is merged already may wait on the disk.
        """
        self._connection.execute("DROP TABLE IF EXISTS profiles")
        self._links_most = None
        into, waiting = "CREATE TEMP TABLE profiles AS", [key_range]
        while waiting:
            key_slice = waiting.pop()
            if key_slice.width > self._widest:
                waiting += reversed(key_slice.halves())
                continue
            try:
                self._merge_slice(shape, key_slice, into)
                into = "INSERT INTO profiles"
            except duckdb.OutOfMemoryException:
                rows = self._plan.rows_in(key_slice)
                if rows <= FEWEST_ROWS:
                    raise
                if rows <= _FEW_ROWS and self._threads > 1:
                    self._threads = 1
                    self._connection.execute("SET threads = 1")
                else:
                    self._widest = key_slice.width - 1
                waiting.append(key_slice)

    def _merge_slice(self, shape: Shape, key_slice: KeyRange, into: str) -> None:
        for statement in range_statements(key_slice):
            self._connection.execute(statement)
        share = self._progress_share(key_slice)
        materialises = self._materialises(shape)
        if materialises:
            with self._meter.measuring(share):
                self._materialise(shape, key_slice)
        with self._meter.measuring(self._plan.rows_in(key_slice) - share * (2 if materialises else 1)):
            self._connection.execute(f"{into} {compiled(shape)}")
        if shape.linked:
            if shape.graph is IdentityGraph.PDG:
                found = links_most(self._connection, self._flattened, respelled=shape.respelled)
                self._links_most = strongest_link((self._links_most, found))
            for table in self._flattened:
                self._connection.execute(f"DROP TABLE {table}")

    def _progress_share(self, key_range: KeyRange) -> int:
        """Return how many of a range's rows the progress counts for materialising it, and as many for writing it.

        The rest is counted while the range is merged.
        """
        return self._plan.rows_in(key_range) // 4

    # --- Binding ---

    @cached_property
    def _flattened(self) -> dict[str, str]:
        """Return queries of all rows, by the tables that they belong to.

        Few rows are read into memory at once: opening their files again wherever the expression mentions them takes
        longer than everything else together.
        """
        shape = shape_of(self._plan, linked=False)
        queries = bound_tables(self._plan, shape, self._root)
        if self._is_small:
            for table, query in queries.items():
                self._connection.execute(f"CREATE TEMP TABLE {_ALL.format(table)} AS {query}")
                queries[table] = f"FROM {_ALL.format(table)}"
        return queries

    @cached_property
    def _links(self) -> Links:
        """The links of all rows that say who is one person."""
        by_graph = self._plan.graph is IdentityGraph.PDG
        if not self._is_small:
            sources = (source for source in self._plan.sources if by_graph or source.takes_part)
            return links_in_files(sources, self._root, self._plan.excluded)
        held = [_ALL.format(table) for table in self._flattened if by_graph or table != tables.OTHERS]
        return Links(self._links_in(table) for table in held)

    def _links_in(self, table: str) -> LinkedPlace:
        ((links,),) = self._connection.execute(f"SELECT coalesce(sum(len(links)), 0) FROM {table}").fetchall()
        return LinkedPlace([LinkedRows(int(links))], partial(self._pairs_in, table))

    def _pairs_in(self, table: str, _rows: object, batches: Batches) -> Iterator[Pairs]:
        wanted = "" if batches is None else "AND batch_id IN (SELECT unnest($batches))"
        # As a relation: what a statement gives would be held as a whole first.
        found = self._connection.sql(
            "SELECT high, low, link.key_high, link.key_low FROM ("
            "SELECT key_high AS high, key_low AS low, unnest(links) AS link"
            f" FROM {table} WHERE links IS NOT NULL {wanted})",
            params=None if batches is None else {"batches": sorted(batches)},
        )
        for some in found.to_arrow_reader(_PAIRS_AT_ONCE):
            high, low, other_high, other_low = (column.to_numpy() for column in some.columns)
            yield key_records(high, low), key_records(other_high, other_low)

    def _bind(self, shape: Shape) -> None:
        plan = self._plan
        self._table(tables.batches_table(), tables.bound_batches(plan))
        if plan.segments:
            self._table(tables.segments_table(), tables.bound_segments(plan.segments))
        for table, spellings in (
            (tables.NAMESPACES, plan.namespaces),
            (tables.SEGMENT_NAMESPACES, plan.segment_namespaces),
        ):
            if spellings:
                self._table(tables.spellings_table(table), spellings.items())
        if not self._materialises(shape):
            for table, rows in self._flattened.items():
                self._bind_rows("CREATE TEMP VIEW", shape, table, in_place(rows))
        make_trims(self._connection, output_columns(shape))
        self._shape = shape

    def _materialises(self, shape: Shape) -> bool:
        """Whether the rows of a slice are kept: with links, the expression mentions them up to 23 times.

        Without links, it is faster to read the few columns that each of fewer mentions needs, but where few rows are
        held anyway, or where there are more leaves than are merged at once: to take thousands of leaves out of their
        objects at each mention costs more than everything else.
        """
        return shape.linked or (shape.merges and (self._is_small or len(shape.stand_ins) > 1))

    def _materialise(self, shape: Shape, key_slice: KeyRange) -> None:
        graph = _GRAPH if self._moved else None
        for table, rows in self._flattened.items():
            moved = self._moved.files(table, key_slice) if self._moved else ()
            found = in_place(rows, graph=graph, moved=moved)
            self._bind_rows("CREATE OR REPLACE TEMP TABLE", shape, table, found)

    def _bind_rows(self, create: str, shape: Shape, table: str, rows: str) -> None:
        if table == tables.RECORDS:
            rows = in_leaves(shape, rows)
        self._connection.execute(f"{create} {table} AS {rows}")

    def _table(self, unbound: ir.Table, rows: Iterable[tuple[Any, ...]]) -> None:
        table = unbound.get_name()
        types = ", ".join(f"{name} {DuckDBType.to_string(kind)}" for name, kind in unbound.schema().items())
        self._connection.execute(f"CREATE TEMP TABLE {table} ({types})")
        # Whole columns: a statement per row would take longer than a small export if there are many batches.
        held = [list(column) for column in zip(*rows, strict=True)]
        if held:
            marks = ", ".join("unnest(?)" for _ in held)
            self._connection.execute(f"INSERT INTO {table} SELECT {marks}", held)


EngineError = duckdb.Error | DamagedFileError | OSError | MemoryError
_NO_SPACE = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_WRAPPED = '{"exception_type"'
"""So begins the JSON in which DuckDB passes an error on from another thread, within the text of an error."""
_SPILL_LIMIT = "max_temp_directory_size"
"""DuckDB takes no more of the disk than was free at the start, and calls it memory when that is used up."""


def failed(error: EngineError, sources: Collection[str]) -> Failed:
    """Say what an error is.

    Args:
        error: Of DuckDB, of a data file, of the system, or of Python's memory.
        sources: The files that the plan reads, as it names them.
    """
    first, _, more = str(error).partition("\n")
    sentence = _unwrapped(first).rstrip(".") + "."
    died = isinstance(error, MemoryError | duckdb.OutOfMemoryException)
    if any(said in sentence for said in _NO_SPACE) or _SPILL_LIMIT in more:
        return Failed(
            "DISK_FULL",
            f"The disk is full: {sentence} Free some of it, then export again.",
            retryable=True,
            died=died,
        )
    if died:
        return Failed(
            "OUT_OF_MEMORY",
            f"The engine ran out of memory: {sentence} Give it more, or let fewer jobs run at once.",
            retryable=True,
            died=True,
        )
    if isinstance(error, duckdb.InternalException | duckdb.FatalException):
        return Failed("ENGINE_CRASHED", f"The engine broke: {sentence}", retryable=True, died=True)
    of_files = isinstance(error, duckdb.IOException | OSError)
    if any(path in sentence for path in sources):
        return Failed(
            "SOURCE_UNREADABLE",
            f"A source file cannot be read: {sentence} Restore it, or revert its batch and upload that again.",
            retryable=of_files,
        )
    if of_files:
        return Failed(
            "ENGINE_IO",
            f"A file could not be read or written: {sentence} See to the disk, and to who may write there; then export "
            "again.",
            retryable=True,
        )
    return Failed("ENGINE_QUERY", f"A query failed: {sentence}", retryable=False)


def _unwrapped(sentence: str) -> str:
    kind, wrapped, inner = sentence.partition(_WRAPPED)
    if not wrapped:
        return sentence
    kind, _, _ = kind.partition(": ")
    return f"{kind}: {json.loads(wrapped + inner)['exception_message']}"


_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
_RESET_PEAK = "5"


class HostedEngine:
    """The guest of a child (`processes.messages.Guest`) that carries attempts out."""

    def __init__(self, _task: object, say: Callable[[object], None]) -> None:
        """Begin; `say` takes an `EngineProgress` now and then."""
        self._say = say
        self._session: DuckDbSession | None = None
        self._sources: frozenset[str] = frozenset()

    def answer(self, request: Any) -> Any:
        """Answer a request of `engine`, with `Failed` where that fails."""
        try:
            return self._answer(request)
        except (duckdb.Error, DamagedFileError, OSError, MemoryError) as error:
            return failed(error, self._sources)

    def close(self) -> None:
        """End the attempt, if there is one."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def _answer(self, request: Any) -> Any:
        session = self._session
        match request:
            case Open():
                _reset_peak_memory()
                self._sources = frozenset(request.plan.paths)
                self._session = DuckDbSession(
                    request.plan,
                    request.lake_root,
                    request.folder,
                    request.settings,
                    lambda done, estimated: self._say(EngineProgress(done, estimated)),
                    request.segment_folders,
                )
                return None
            case Resolve() if session is not None:
                return replace(session.resolve(), peak_memory_bytes=_peak_memory())
            case FindGraph() if session is not None:
                return session.identity_graph()
            case Run(key_range) if session is not None:
                return replace(session.run(key_range), peak_memory_bytes=_peak_memory())
            case Close():
                return self.close()
        message = f"unexpected request: {request!r}"
        raise RuntimeError(message)


def _memory_of(connection: duckdb.DuckDBPyConnection) -> int:
    """Return how many bytes a database may use."""
    ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    number, unit = limit.split(" ")
    return int(float(number) * 1024 ** _UNITS.index(unit))


def _peak_memory() -> int:
    """Return the most memory this process has held since the attempt began, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _reset_peak_memory() -> None:
    """Forget the peak of earlier attempts, where the system can."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists() and os.access(reset, os.W_OK):
        reset.write_text(_RESET_PEAK)
