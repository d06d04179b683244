"""How DuckDB binds the sources of a plan: views over Parquet files, in the form that `expression.tables` describes.

Nested files are never read with `union_by_name`: where their structs differ, a projection of nested columns ends in an
internal error that takes the whole database with it (DuckDB 2.0). So every part is taken apart by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import duckdb

from profile_export.domain.catalog import batches as columns
from profile_export.domain.catalog.datasets import DatasetKind
from profile_export.domain.export.plan import (
    HIGHEST_KEY,
    LOWEST_KEY,
    ExportPlan,
    KeyRange,
    Source,
    SourcePart,
)
from profile_export.domain.schemas.types import (
    EVENT_ID,
    EVENT_TIME,
    SEGMENT_MEMBERSHIP,
    TEXT,
    TIMESTAMP,
    FieldPath,
    FieldType,
    ObjectType,
)
from profile_export.engines.duckdb.objects import maps_with_numbers, taken_apart, with_objects
from profile_export.engines.duckdb.spelling import name, text, type_name
from profile_export.engines.expression.tables import (
    EVENT,
    EVENTS,
    MEMBERSHIP,
    OTHERS,
    RECORDS,
    Part,
    Shape,
    without_empty,
)

_TABLES = {DatasetKind.RECORD: RECORDS, DatasetKind.EVENT: EVENTS}
_LINKS = (
    "STRUCT(namespace VARCHAR, id VARCHAR, authenticated_state VARCHAR, key_high BIGINT, key_low BIGINT)[]"
)
_SYSTEM = {
    "key_high": columns.KEY_HIGH,
    "key_low": columns.KEY_LOW,
    "batch_id": columns.BATCH_ID,
    "row": columns.ROW,
    "namespace": columns.NAMESPACE,
    "identity": columns.IDENTITY,
    "authenticated_state": columns.AUTHENTICATED_STATE,
}
_OF_OTHERS = ("key_high", "key_low", "batch_id", "namespace", "identity")
_EVENT_COLUMNS = (
    Part("event_id", (EVENT_ID,), TEXT),
    Part("event_time", (EVENT_TIME,), TIMESTAMP),
)
_MARKS = 2**16
"""A power of two, many times the identities that a policy may exclude."""
_GLOB = re.compile(r"([*?\[])")


def range_statements(key_range: KeyRange) -> tuple[str, ...]:
    """Bind the range that `in_range` means."""
    return tuple(
        f"SET VARIABLE {end} = CAST({key} AS BIGINT)"
        for end, key in (("lowest", key_range.low), ("highest", key_range.high))
    )


def excluded_statements(plan: ExportPlan) -> tuple[str, ...]:
    """Bind the identities that the plan excludes, which `bound_tables` means; nothing if it excludes none."""
    if not plan.excluded:
        return ()
    marked = {high % _MARKS for high, _ in plan.excluded}
    highs = ", ".join(str(high) for high, _ in plan.excluded)
    marks = "".join("1" if place in marked else "0" for place in range(_MARKS))
    keys = ", ".join(f"{{'high': {high}::BIGINT, 'low': {low}::BIGINT}}" for high, low in plan.excluded)
    bound = {
        "excluded_marks": f"'{marks}'::BIT",
        "excluded_highs": f"[{highs}]::BIGINT[]",
        "excluded": f"[{keys}]",
    }
    return tuple(f"SET VARIABLE {variable} = {value}" for variable, value in bound.items())


def _is_excluded(high: str, low: str) -> str:
    """Say whether a key is one of the bound ones.

    To compare a key with a thousand whole ones takes 12 µs, with a thousand halves 1 µs, to look at one bit next to
    nothing. So a bit tells most of those that are none apart, and a half nearly all that are left.
    """
    is_one = f"list_contains(getvariable('excluded'), {{'high': {high}, 'low': {low}}})"
    mark = f"get_bit(getvariable('excluded_marks'), ({high} & {_MARKS - 1})::INTEGER)"
    may_be_one = f"list_contains(getvariable('excluded_highs'), {high})"
    return f"CASE WHEN {mark} = 1 THEN CASE WHEN {may_be_one} THEN {is_one} ELSE false END ELSE false END"


def _links(plan: ExportPlan) -> str:
    """Select the links of a row that count: none to or from an excluded identity (S4); null if none is left."""
    links = f"CAST({name(columns.LINKS)} AS {_LINKS})"
    if not plan.excluded:
        return links
    own = _is_excluded(f"file.{name(columns.KEY_HIGH)}", f"file.{name(columns.KEY_LOW)}")
    counting = f"list_filter({links}, lambda link: NOT {_is_excluded('link.key_high', 'link.key_low')})"
    return f"CASE WHEN {own} THEN NULL ELSE nullif({counting}, CAST([] AS {_LINKS})) END"


def in_range(column: str) -> str:
    """Restrict rows to the bound range; folded to constants when a query is planned, so row groups are skipped."""
    return f"{column} BETWEEN getvariable('lowest') AND getvariable('highest')"


def scan(paths: Sequence[Path]) -> str:
    """Read Parquet files that have the same columns."""
    # DuckDB takes every path for a pattern.
    listed = ", ".join(text(_GLOB.sub(r"[\1]", str(path))) for path in paths)
    return f"read_parquet([{listed}], hive_partitioning = false)"


def bound_tables(plan: ExportPlan, shape: Shape, lake_root: Path) -> dict[str, str]:
    """Select all rows of each table of `expression.tables` that has any, without `profile_*`.

    What the plan excludes must be bound.
    """
    # Events of one instant and id are ordered by dataset id (S17).
    ranks = {source: rank for rank, source in enumerate(sorted(source.dataset_id for source in plan.sources))}
    found: dict[str, list[str]] = {}
    for source in plan.sources:
        table = _TABLES[source.kind] if source.takes_part else OTHERS
        for part in source.parts:
            paths = [lake_root / file.path for file in part.files if file.rows]
            if paths:
                columns_of = _columns(shape, source, ranks[source.dataset_id], part, _links(plan))
                selected = [f"{value} AS {name(column)}" for column, value in columns_of.items()]
                query = f"SELECT {', '.join(selected)} FROM {scan(paths)} AS file"
                if table == EVENTS:
                    query = _with_event(shape, query)
                found.setdefault(table, []).append(query)
    return {table: " UNION ALL ".join(queries) for table, queries in found.items()}


def _columns(shape: Shape, source: Source, rank: int, part: SourcePart, links: str) -> dict[str, str]:
    """Return the values of columns by their names; objects in parts. `links` is the value of that column."""
    known = _SYSTEM if source.takes_part else _OF_OTHERS
    selected = {alias: name(_SYSTEM[alias]) for alias in known}
    selected["links"] = links
    if not source.takes_part:
        return selected
    selected["dataset"] = f"{rank}::INTEGER"
    parts = (*shape.read_memberships, *shape.record_parts)
    if source.kind is DatasetKind.EVENT:
        parts = (*_EVENT_COLUMNS, *_memberships(shape), *shape.event_parts)
    elif shape.upserts:
        selected["upserts"] = f"{source.upserts}"
    return selected | {one.column: _value(one, part.fields) for one in parts}


def _memberships(shape: Shape) -> list[Part]:
    kind = shape.event_membership
    return [] if kind is None else [Part(MEMBERSHIP, (SEGMENT_MEMBERSHIP,), kind)]


def _with_event(shape: Shape, rows: str) -> str:
    """Put the parts of an event into its object."""
    if not shape.event_parts:
        return rows
    parts = {(EVENT, *part.path): part.column for part in shape.event_parts}
    rows, event = with_objects(rows, ObjectType({EVENT: shape.event_object}), parts)
    known = [*_SYSTEM, "links", "dataset", *(one.column for one in (*_EVENT_COLUMNS, *_memberships(shape)))]
    return f"SELECT {', '.join(known)}, {event[EVENT]} AS {EVENT} FROM ({rows})"


def in_place(rows: str, *, graph: str | None = None, moved: Sequence[Path] = ()) -> str:
    """Select of `rows` those that belong to the bound range, with the key of their profile.

    Args:
        rows: A query of `bound_tables`.
        graph: The table of identities whose profile has another key than they; None if there are none.
        moved: Files that have the rows of those identities.
    """
    stay = f"SELECT key_high AS profile_high, key_low AS profile_low, * FROM ({rows}) AS rows"
    stay += f" WHERE {in_range('key_high')}"
    if graph is not None:
        same = "moved.key_high = rows.key_high AND moved.key_low = rows.key_low"
        stay += f" AND NOT EXISTS (SELECT 1 FROM {graph} AS moved WHERE {same})"
    if not moved:
        return stay
    return f"{stay} UNION ALL SELECT * FROM {scan(moved)} WHERE {in_range('profile_high')}"


def in_leaves(shape: Shape, rows: str) -> str:
    """Take the parts of record rows apart if they are merged, since that is by leaf."""
    if not shape.merges or not shape.record_parts:
        return rows
    rows = taken_apart(rows, shape.record_parts, shape.merged_parts)
    if not shape.maps:
        return rows
    lists = (f"{maps_with_numbers(parts)} AS {column}" for column, parts in shape.maps.items())
    return f"SELECT *, {', '.join(lists)} FROM ({rows})"


def _value(part: Part, fields: ObjectType) -> str:
    """Select a part as the union schema types it; null where the files do not know it."""
    found = _find(part.path, fields)
    if found is None:
        return f"CAST(NULL AS {type_name(part.type)})"
    # Always cast: members of equal types may still differ in their order.
    value = "file." + ".".join(name(step) for step in part.path)
    return f"CAST({value} AS {type_name(part.type)})"


def _find(path: FieldPath, fields: FieldType) -> FieldType | None:
    kind: FieldType | None = fields
    for step in path:
        kind = kind.fields.get(step) if isinstance(kind, ObjectType) else None
    return kind and without_empty(kind)


_MOST_BUCKETS = 128
_BUCKET = "bucket"
_BYTES_PER_ROW_GROUP = 8 * 2**20


class MovedRows:
    """The rows that an identity graph moves to their profile, on disk, by table.

    In buckets by the key of the profile, and not in one sorted file: sorting takes more memory than there may be.

    Args:
        folder: Where to keep them; it must be there and hold nothing of the tables' names.
        ranges: In how many ranges they will be read; more buckets than that are of no use.
    """

    def __init__(self, folder: Path, ranges: int) -> None:
        self._folder = folder
        self._last = min(ranges, _MOST_BUCKETS) - 1
        self._width = (HIGHEST_KEY - LOWEST_KEY + 1) // (self._last + 1)

    def write(self, connection: duckdb.DuckDBPyConnection, table: str, rows: str, graph: Path) -> int:
        """Write those rows of a table's query that a graph moves; return how many."""
        bucket = f"least((found.profile_high::HUGEINT - {LOWEST_KEY}) // {self._width}, {self._last})"
        moving = (
            f"SELECT found.profile_high, found.profile_low, rows.*, {bucket} AS {_BUCKET} FROM ({rows}) AS rows"
            f" JOIN {scan([graph])} AS found"
            " ON found.key_high = rows.key_high AND found.key_low = rows.key_low"
        )
        ((copied, *_),) = connection.execute(
            f"COPY ({moving}) TO {text(str(self._folder / table))}"
            f" (FORMAT parquet, PARTITION_BY ({_BUCKET}), ROW_GROUP_SIZE_BYTES {_BYTES_PER_ROW_GROUP})"
        ).fetchall()
        return int(copied)

    def files(self, table: str, key_range: KeyRange) -> list[Path]:
        """Return the files that have all moved rows of a range, beside some of others."""
        buckets = range(self._bucket_of(key_range.low), self._bucket_of(key_range.high) + 1)
        folders = (self._folder / table / f"{_BUCKET}={bucket}" for bucket in buckets)
        return [file for folder in folders for file in sorted(folder.glob("*.parquet"))]

    def _bucket_of(self, key: int) -> int:
        return min((key - LOWEST_KEY) // self._width, self._last)
