"""One attempt at a plan, run by DuckDB in this process, and how far it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Event, Thread
from typing import Any

import duckdb

from profile_export.domain.export.plan import (
    HIGHEST_KEY,
    LOWEST_KEY,
    ExportPlan,
    KeyRange,
    RangeResult,
    ResolutionFacts,
)
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.engines.duckdb.graphs import (
    Links,
    MovedRows,
    half_of_memory,
    links_in_files,
    links_in_tables,
    mapping_of,
)
from profile_export.engines.duckdb.output import Output, compiled
from profile_export.engines.duckdb.sources import (
    Binding,
    in_place,
    in_range,
    range_statements,
    scan,
)
from profile_export.engines.expression import tables
from profile_export.engines.expression.shape import Shape, shape_of
from profile_export.engines.identity.graph import MappingFacts, Space

_POLL_SECONDS = 0.2


class ProgressMeter:
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
    def measuring(self, rows: int) -> Iterator[None]:
        """Report while the body runs queries, which do about the work of so many rows."""
        finished = Event()
        watcher = Thread(target=self._watch, args=(rows, finished), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            finished.set()
            watcher.join()
        self._done = min(self._rows, self._done + rows)
        self._reach(self._done)

    def _watch(self, rows: int, finished: Event) -> None:
        while not finished.wait(_POLL_SECONDS):
            # -1 until the query has begun.
            reached = round(max(0.0, self._connection.query_progress()) / 100 * rows)
            self._reach(min(self._rows, self._done + reached))

    def _reach(self, done: int) -> None:
        """Report what is more than before: a query may have been given up and done again in parts."""
        if done > self._reported:
            self._reported = done
            self._report(done, self._rows)


_ROWS_READ_AT_ONCE = 100_000
_FEW_ROWS, _FEWEST_ROWS = 4_096, 16
"""A slice of a few rows takes its memory for what each thread reads at once; one of the fewest cannot be halved."""
_ALL = "all_{}"
_MAPPING = "mapping"


class DuckDbSession:
    """An open database for one attempt. Not for several threads."""

    def __init__(
        self,
        plan: ExportPlan,
        lake_root: Path,
        folder: Path,
        settings: dict[str, str | int],
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
        self._output = Output(self._connection, plan, folder, segment_folders)
        self._meter = ProgressMeter(self._connection, plan.rows, report)
        ((self._threads,),) = self._connection.execute("SELECT current_setting('threads')").fetchall()
        self._widest = HIGHEST_KEY - LOWEST_KEY + 1
        self._shape: Shape | None = None
        self._tables: tuple[str, ...] = ()
        self._mapping: tuple[Path, MappingFacts] | None = None
        self._moved: MovedRows | None = None

    def close(self) -> None:
        """Give everything back."""
        self._connection.close()

    def mapping(self) -> Path | None:
        """Return the file that says which identities of the plan's batches have a profile of another key (`mapping`).

        None where every identity is a profile of its own. Found once, and without moving a row.
        """
        if self._mapping is None and self._plan.graph is IdentityGraph.PDG and self._links.at_most():
            folder = self._folder / "resolution"
            folder.mkdir()
            with half_of_memory(self._connection) as half:
                self._mapping = mapping_of(self._plan, self._links, self._root, Space(half, folder))
        return self._mapping and self._mapping[0]

    def resolve(self) -> ResolutionFacts:
        """Find out who is one person, where the graph asks for it, and bind the sources accordingly.

        Leaves `resolution/` in the folder: the mapping, and the rows that move for it.
        """
        facts = ResolutionFacts()
        with self._meter.measuring(self._plan.rows // 2):
            self.mapping()
        if self._mapping is not None:
            mapping, found = self._mapping
            moved = self._move(mapping)
            facts = ResolutionFacts(found.identities, found.components, found.moved, moved)
        self._bind(shape_of(self._plan, linked=self._links.at_most() > 0))
        self._meter.begin()
        return facts

    def run(self, key_range: KeyRange) -> RangeResult:
        """Export one range of profiles into files of its own."""
        if self._shape is None:
            self.resolve()
        shape = self._shape
        if shape is None or not self._tables:
            return RangeResult()
        self._merge(shape, key_range)
        counts = self._output.count()
        with self._meter.measuring(self._quarter(key_range)):
            files = self._output.write(shape, key_range.index) if counts.profiles_exported else ()
        self._connection.execute("DROP TABLE profiles")
        return RangeResult(files, counts)

    def _move(self, mapping: Path) -> int:
        """Bring the rows of identities to their profiles; return how many."""
        self._connection.execute(
            f"CREATE TEMP VIEW {_MAPPING} AS SELECT * FROM {scan([mapping])} WHERE {in_range('key_high')}"
        )
        self._moved = MovedRows(mapping.parent, len(self._plan.ranges()))
        rows = 0
        for table, query in self._flattened.items():
            with self._meter.measuring(self._plan.rows // 2 // len(self._flattened)):
                rows += self._moved.write(self._connection, table, query, mapping)
        return rows

    # --- Merging ---

    def _merge(self, shape: Shape, key_range: KeyRange) -> None:
        """Fill the table `profiles`: at once, or in slices where memory is too small for all of the range.

        How much memory a slice takes depends on values that nobody has looked at before. So it is tried, and a slice
        that does not fit is halved, as are those that come after it; what is merged already may wait on the disk.
        """
        self._connection.execute("DROP TABLE IF EXISTS profiles")
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
                if rows <= _FEWEST_ROWS:
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
        quarter = self._quarter(key_slice)
        if shape.linked:
            with self._meter.measuring(quarter):
                self._materialise(key_slice)
        with self._meter.measuring(self._plan.rows_in(key_slice) - quarter * (2 if shape.linked else 1)):
            self._connection.execute(f"{into} {compiled(shape)}")
        if shape.linked:
            for table in self._tables:
                self._connection.execute(f"DROP TABLE {table}")

    def _quarter(self, key_range: KeyRange) -> int:
        """About what it costs to materialise a range, and to write it, in rows: what is merged only is not done."""
        return self._plan.rows_in(key_range) // 4

    # --- Binding ---

    @cached_property
    def _flattened(self) -> dict[str, str]:
        """Return queries of all rows, by the tables that they belong to.

        Few rows are read into memory at once: opening their files again wherever the expression mentions them takes
        longer than everything else together.
        """
        shape = shape_of(self._plan, linked=False)
        queries = Binding(self._plan, shape, self._root).tables()
        if self._is_small:
            for table, query in queries.items():
                self._connection.execute(f"CREATE TEMP TABLE {_ALL.format(table)} AS {query}")
                queries[table] = f"FROM {_ALL.format(table)}"
        return queries

    @cached_property
    def _links(self) -> Links:
        """The links of all rows that say who is one person."""
        by_graph = self._plan.graph is IdentityGraph.PDG
        if self._is_small:
            linking = [table for table in self._flattened if by_graph or table != tables.OTHERS]
            return links_in_tables(self._connection, [_ALL.format(table) for table in linking])
        sources = [source for source in self._plan.sources if by_graph or source.takes_part]
        return links_in_files(self._connection, sources, self._root)

    def _bind(self, shape: Shape) -> None:
        plan = self._plan
        self._table(
            tables.BATCHES,
            "batch_id VARCHAR, first_place BIGINT, attached BOOLEAN, newer BOOLEAN",
            tables.bound_batches(plan),
        )
        if plan.segments:
            self._table(
                tables.SEGMENTS,
                "position BIGINT, namespace VARCHAR, segment_id VARCHAR, statuses VARCHAR[],"
                " start_time TIMESTAMPTZ, end_time TIMESTAMPTZ",
                tables.bound_segments(plan.segments),
            )
        for table, spellings in (
            (tables.NAMESPACES, plan.namespaces),
            (tables.SEGMENT_NAMESPACES, plan.segment_namespaces),
        ):
            if spellings:
                self._table(table, "sent VARCHAR, registered VARCHAR", spellings.items())
        if not shape.linked:
            for table, rows in self._flattened.items():
                self._connection.execute(f"CREATE TEMP VIEW {table} AS {in_place(rows)}")
        self._shape, self._tables = shape, tuple(self._flattened)

    def _materialise(self, key_slice: KeyRange) -> None:
        """Keep the rows of the bound slice: with links, the expression mentions them up to 23 times.

        Without links, it is faster to read the few columns that each of fewer mentions needs.
        """
        mapping = _MAPPING if self._moved else None
        for table, rows in self._flattened.items():
            moved = self._moved.files(table, key_slice) if self._moved else ()
            self._connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {table} AS {in_place(rows, mapping=mapping, moved=moved)}"
            )

    def _table(self, table: str, schema: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._connection.execute(f"CREATE TEMP TABLE {table} ({schema})")
        # Whole columns: a statement per row would take longer than a small export if there are many batches.
        held = [list(column) for column in zip(*rows, strict=True)]
        if held:
            marks = ", ".join("unnest(?)" for _ in held)
            self._connection.execute(f"INSERT INTO {table} SELECT {marks}", held)
