"""Whether two sets of Parquet files hold the same rows, in whatever order.

Every leaf is hashed together with the row's `identityMap`, by which a row is known, and summed up. An object without a
value counts as null, a null in a map as absent, and the order of keys does not count (S13).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

_NOT_COMPARED = {"_batch_id", "_profile_id"}
"""Each side has ids of its own."""


@dataclass(frozen=True)
class Summary:
    """What a set of files holds: rows, distinct identity maps, and per leaf how many values and their hash."""

    rows: int
    distinct: int
    leaves: dict[str, tuple[int, int]]


def differences(ours: Sequence[Path], theirs: Path) -> list[str]:
    """Return what differs between files and those in a folder, in words; nothing if the rows are the same."""
    one, other = summary(ours), summary(sorted(theirs.rglob("*.parquet")))
    found = []
    if one.rows != other.rows:
        found.append(f"{one.rows:,} rows against {other.rows:,}")
    if not one.rows == one.distinct == other.distinct:
        found.append(f"{one.distinct:,} identity maps against {other.distinct:,}")
    for leaf in sorted({*one.leaves, *other.leaves}):
        mine, yours = one.leaves.get(leaf, (0, 0)), other.leaves.get(leaf, (0, 0))
        if mine != yours:
            found.append(f"{leaf} ({mine[0]:,} values against {yours[0]:,})")
    return found


def summary(files: Sequence[Path]) -> Summary:
    """Sum up the rows of some files of one schema."""
    listed = ", ".join(f"'{file}'" for file in files)
    leaves = dict(_leaves(pq.read_schema(files[0])))
    # MD5, since DuckDB's own hash gave one number to several long texts among 200,000.
    identity = _text(leaves["identityMap"][0], leaves["identityMap"][1], 0)
    hashed = [
        f"CASE WHEN {_filled(value, kind)} IS NOT NULL THEN hash(identity, {_filled(value, kind)}) END AS h{number}"
        for number, (value, kind) in enumerate(leaves.values())
    ]
    sums = [f"count(h{number}), coalesce(sum(h{number}::HUGEINT), 0)" for number in range(len(leaves))]
    query = (
        f"SELECT count(*), count(DISTINCT identity), {', '.join(sums)} FROM (SELECT identity, {', '.join(hashed)} FROM"
        f" (SELECT *, md5_number({identity}) AS identity FROM read_parquet([{listed}])))"
    )
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        (figures,) = connection.execute(query).fetchall()
    counts = dict(zip(leaves, zip(figures[2::2], figures[3::2], strict=True), strict=True))
    return Summary(figures[0], figures[1], {leaf: found for leaf, found in counts.items() if found[0]})


def _leaves(
    found: pa.Schema | pa.StructType, path: str = "", value: str = ""
) -> Iterator[tuple[str, tuple[str, pa.DataType]]]:
    for member in found:
        if member.name in _NOT_COMPARED:
            continue
        inside = f'{value}."{member.name}"' if value else f'"{member.name}"'
        if pa.types.is_struct(member.type):
            yield from _leaves(member.type, f"{path}{member.name}.", inside)
        else:
            yield f"{path}{member.name}", (inside, member.type)


def _filled(value: str, kind: pa.DataType) -> str:
    """Scalars hash as they are, so that their types count too; whatever is nested, as text."""
    return _text(value, kind, 0) if pa.types.is_nested(kind) else value


def _text(value: str, kind: pa.DataType, depth: int) -> str:
    """Write a value as text that is the same for equal values only; null where it has no value."""
    one = f"x{depth}"
    if pa.types.is_map(kind):
        entry = f"({one}.key || '=' || {_text(f'{one}.value', kind.item_type, depth + 1)})"
        written = f"list_transform(map_entries({value}), lambda {one}: {entry})"
        entries = f"list_filter({written}, lambda {one}: {one} IS NOT NULL)"
        return f"CASE WHEN len({entries}) > 0 THEN '{{' || array_to_string(list_sort({entries}), ',') || '}}' END"
    if pa.types.is_list(kind):
        item = f"coalesce({_text(one, kind.value_type, depth + 1)}, 'null')"
        return f"'[' || array_to_string(list_transform({value}, lambda {one}: {item}), ',') || ']'"
    if pa.types.is_struct(kind):
        named = [(member.name, _text(f'{value}."{member.name}"', member.type, depth)) for member in kind]
        members = ", ".join(f"'{name}:' || {text}" for name, text in sorted(named))
        return f"CASE WHEN coalesce({members}) IS NOT NULL THEN '(' || concat_ws(',', {members}) || ')' END"
    return f"'\"' || {value}::VARCHAR || '\"'"
