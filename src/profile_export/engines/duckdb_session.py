"""One attempt at a plan, run by DuckDB in this process."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
import ibis

from profile_export.domain import columns
from profile_export.domain.catalog import DatasetKind
from profile_export.domain.plan import ExportCounts, ExportPlan, KeyRange, WrittenFile
from profile_export.domain.policy import IdentityGraph
from profile_export.engines import inputs
from profile_export.engines.binding import (
    Binding,
    filled_parts,
    in_range,
    name,
    range_statements,
    scan,
    text,
    type_name,
)
from profile_export.engines.expression import export_expression, output_columns
from profile_export.engines.leaves import without_empty
from profile_export.engines.progress import ProgressMeter
from profile_export.engines.resolution import Keys, resolve, write_mapping
from profile_export.engines.results import RangeResult, ResolutionFacts
from profile_export.engines.shape import Shape, shape_of

BYTES_PER_FILE = 128 * 2**20
_COMPILED_SHAPES = 64
_compiled: OrderedDict[str, str] = OrderedDict()
_VIEWS = {DatasetKind.RECORD: inputs.RECORDS, DatasetKind.EVENT: inputs.EVENTS}
_MAPPING = "mapping"
_COUNTS = """
SELECT sum(fragments), sum(events), count(*), count(*) FILTER (WHERE NOT too_many AND NOT events_only),
    sum(attached) FILTER (WHERE NOT too_many AND NOT events_only), count(*) FILTER (WHERE too_many),
    sum(identities) FILTER (WHERE too_many), sum(fragments) FILTER (WHERE too_many), count(*) FILTER (WHERE events_only),
    count(*) FILTER (WHERE fragments > 1 AND NOT too_many)
FROM profiles"""
_BY_NAMESPACE = """
SELECT found, count(*) FROM (
    SELECT namespace AS found FROM profiles WHERE namespace IS NOT NULL AND NOT too_many AND NOT events_only
    UNION ALL
    SELECT unnest(namespaces) FROM profiles WHERE NOT too_many AND NOT events_only
) GROUP BY found ORDER BY found"""


class DuckDbSession:
    """An open database for one attempt. Not for several threads."""

    def __init__(
        self,
        plan: ExportPlan,
        lake_root: Path,
        folder: Path,
        settings: dict[str, str | int],
        report: Callable[[int, int], None],
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._plan, self._root, self._folder = plan, lake_root, folder
        self._connection = duckdb.connect(
            ":memory:",
            config={
                **settings,
                "temp_directory": str(folder / "spill"),
                "preserve_insertion_order": False,
            },
        )
        self._connection.execute("SET parquet_metadata_cache = true")
        self._meter = ProgressMeter(self._connection, sum(source.rows for source in plan.sources), report)
        self._shape: Shape | None = None

    def close(self) -> None:
        """Give everything back."""
        self._connection.close()

    def resolve(self) -> ResolutionFacts:
        """Find out who is one person, where the graph asks for it, and bind the sources accordingly.

        Leaves `resolution/` in the folder: which identity belongs to which profile, and the rows that move for it.
        """
        facts, linked, moved = ResolutionFacts(), False, {}
        if self._plan.graph is IdentityGraph.NONE:
            linked = self._any_link()
        else:
            facts, linked, moved = self._resolve_links()
        self._bind(shape_of(self._plan, linked=linked), moved)
        return facts

    def run(self, key_range: KeyRange) -> RangeResult:
        """Export one range of profiles into files of its own."""
        if self._shape is None:
            self.resolve()
        shape = self._shape
        if shape is None or not (shape.has_records or shape.has_events):
            return RangeResult()
        for statement in range_statements(key_range):
            self._connection.execute(statement)
        with self._meter.measuring(self._rows_in(key_range)):
            self._connection.execute(f"CREATE OR REPLACE TEMP TABLE profiles AS {compiled(shape)}")
        counts = self._counts()
        files = self._write(shape, key_range.index) if counts.profiles_exported else ()
        self._connection.execute("DROP TABLE profiles")
        return RangeResult(files, counts)

    # --- Binding ---

    def _bind(self, shape: Shape, moved: dict[DatasetKind, Path]) -> None:
        plan, bound = self._plan, Binding(self._plan, shape, self._root)
        self._table(
            inputs.BATCHES,
            "batch_id VARCHAR, first_place BIGINT, attached BOOLEAN",
            inputs.bound_batches(plan),
        )
        for table, spellings in (
            (inputs.NAMESPACES, plan.namespaces),
            (inputs.SEGMENT_NAMESPACES, plan.segment_namespaces),
        ):
            if spellings:
                self._table(table, "sent VARCHAR, registered VARCHAR", spellings.items())
        self._connection.execute(f"SET VARIABLE batch_id = {text(plan.batch_id)}")
        for kind in shape.kinds:
            view = bound.view(kind, mapping=_MAPPING if moved else None, moved=moved.get(kind))
            self._connection.execute(f"CREATE TEMP VIEW {_VIEWS[kind]} AS {view}")
        self._shape = shape

    def _table(self, table: str, schema: str, rows: Iterable[tuple[Any, ...]]) -> None:
        self._connection.execute(f"CREATE TEMP TABLE {table} ({schema})")
        values = list(rows)
        if values:
            marks = ", ".join("?" for _ in values[0])
            self._connection.executemany(f"INSERT INTO {table} VALUES ({marks})", values)

    def _rows_in(self, key_range: KeyRange) -> int:
        share = (key_range.high - key_range.low + 1) / 2**64
        return round(sum(source.rows for source in self._plan.sources) * share)

    # --- Resolution ---

    def _links(self, selected: str) -> str:
        bound = Binding(self._plan, shape_of(self._plan, linked=False), self._root)
        parts = [part for source in self._plan.sources for part in filled_parts(source)]
        return " UNION ALL ".join(
            f"SELECT {selected} FROM {scan(bound.paths(part))} WHERE {name(columns.LINKS)} IS NOT NULL"
            for part in parts
        )

    def _any_link(self) -> bool:
        links = self._links("1")
        return bool(links) and self._connection.execute(f"{links} LIMIT 1").fetchone() is not None

    def _resolve_links(self) -> tuple[ResolutionFacts, bool, dict[DatasetKind, Path]]:
        links = self._links(f"{columns.KEY_HIGH}, {columns.KEY_LOW}, unnest({columns.LINKS}) AS link")
        if not links:
            return ResolutionFacts(), False, {}
        pairs = self._connection.execute(
            f"SELECT {columns.KEY_HIGH} AS high, {columns.KEY_LOW} AS low, link.key_high AS other_high,"
            f" link.key_low AS other_low FROM ({links})"
        ).fetchnumpy()
        if not len(pairs["high"]):
            return ResolutionFacts(), False, {}
        found = resolve(Keys(pairs["high"], pairs["low"]), Keys(pairs["other_high"], pairs["other_low"]))
        mapping = self._folder / "resolution" / "mapping.parquet"
        mapping.parent.mkdir()
        write_mapping(found, mapping)
        moved, rows = self._shuffle(mapping)
        return ResolutionFacts(found.linked, found.components, len(found.identities), rows), True, moved

    def _shuffle(self, mapping: Path) -> tuple[dict[DatasetKind, Path], int]:
        """Write the rows of identities whose profile has another key by the key of their profile."""
        self._connection.execute(
            f"CREATE TEMP VIEW {_MAPPING} AS SELECT * FROM {scan([mapping])} WHERE {in_range('key_high')}"
        )
        shape = shape_of(self._plan, linked=True)
        bound = Binding(self._plan, shape, self._root)
        moved, rows = {}, 0
        for kind in shape.kinds:
            path = mapping.with_name(f"{_VIEWS[kind]}.parquet")
            query = (
                f"SELECT found.profile_high, found.profile_low, rows.* FROM ({bound.rows(kind)}) AS rows"
                f" JOIN {scan([mapping])} AS found"
                " ON found.key_high = rows.key_high AND found.key_low = rows.key_low ORDER BY 1, 2"
            )
            copied = self._connection.execute(
                f"COPY ({query}) TO {text(str(path))} (FORMAT parquet)"
            ).fetchall()
            rows += copied[0][0]
            moved[kind] = path
        return moved, rows

    # --- Output ---

    def _counts(self) -> ExportCounts:
        (figures,) = self._connection.execute(_COUNTS).fetchall()
        names = dict(self._connection.execute(_BY_NAMESPACE).fetchall())
        return ExportCounts(*(int(figure or 0) for figure in figures), by_namespace=names)

    def _write(self, shape: Shape, index: int) -> tuple[WrittenFile, ...]:
        outgoing = self._folder / f"range-{index}"
        out = [f"{column} AS {name(field)}" for field, column in output_columns(shape).items()]
        # DuckDB marks columns it knows to be without nulls as required, and readers take that for the table's schema:
        # a row of nulls, which no file gets, and a condition it cannot see through keep all of them optional.
        out.append(
            f"CASE WHEN profile_high IS NOT NULL THEN getvariable('batch_id') END AS {name(columns.BATCH_ID)}"
        )
        self._connection.execute("INSERT INTO profiles (fragments) VALUES (NULL)")
        query = f"SELECT {', '.join(out)} FROM profiles WHERE NOT too_many AND NOT events_only"
        written = self._connection.execute(
            f"COPY ({query}) TO {text(str(outgoing))}"
            f" (FORMAT parquet, COMPRESSION zstd, FILE_SIZE_BYTES {BYTES_PER_FILE}, RETURN_STATS)"
        ).fetchall()
        files = []
        for number, (path, rows, size, *_) in enumerate(sorted(written)):
            final = self._folder / f"{index}-{number}.parquet"
            Path(path).rename(final)
            files.append(WrittenFile(final.name, rows, size, _digest_on_disk(final)))
        outgoing.rmdir()
        return tuple(files)


def _digest_on_disk(path: Path) -> str:
    """Return a file's SHA-256 once the file is safe on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def compiled(shape: Shape) -> str:
    """Compile the expression of a shape, or remember it: the text of a usual one takes longer than a small export."""
    known = _compiled.pop(shape.key, None)
    _compiled[shape.key] = known or str(ibis.to_sql(export_expression(shape), dialect="duckdb", pretty=False))
    if len(_compiled) > _COMPILED_SHAPES:
        _compiled.popitem(last=False)
    return _compiled[shape.key]
