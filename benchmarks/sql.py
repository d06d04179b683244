"""The export as somebody writes it who knows the data: DuckDB SQL for exactly these sources, with all their semantics.

What of DESIGN §6 it need not say, because this data has none: entries of maps that are null, namespaces in several
spellings, segments in several namespaces, sources whose fields have different types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.leaves import columns

_SCORES, _SEGMENTS = "scores", "segmentMembership"
_KINDS = {"records": False, "events": True}


@dataclass(frozen=True)
class BatchFiles:
    """A source batch: its number, which orders its rows among all others, its files, and the paths that they hold."""

    dataset: int
    number: int
    files: Sequence[str]
    paths: frozenset[str]
    is_event: bool


@dataclass(frozen=True)
class Wanted:
    """What is exported: leaf paths, among them `scores` and `segmentMembership`, and leaf paths of events."""

    leaves: Sequence[str]
    event_leaves: Sequence[str] = ()
    linked: bool = False


def sources(batches: Sequence[BatchFiles], wanted: Wanted) -> list[str]:
    """Name the rows `records` and `events`, and find those that a later one replaces (S9, S16)."""
    statements = []
    for kind, is_event in _KINDS.items():
        own = [batch for batch in batches if batch.is_event is is_event]
        if not own:
            continue
        leaves = wanted.event_leaves if is_event else wanted.leaves
        rows = " UNION ALL ".join(_rows(batch, leaves) for batch in own)
        same = "dataset, key_high, key_low" + (", event_id" if is_event else "")
        matched = " AND ".join(f"{kind}.{name} = newer.{name}" for name in same.split(", "))
        latest = f"SELECT {same}, max(place) AS latest FROM {kind} GROUP BY {same} HAVING count(*) > 1"
        current = f"SELECT * FROM {kind} ANTI JOIN latest_{kind} AS newer ON {matched} AND {kind}.place < newer.latest"
        statements.append(f"CREATE TEMP VIEW {kind} AS {rows}")
        statements.append(f"CREATE TEMP TABLE latest_{kind} AS {latest}")
        statements.append(f"CREATE TEMP VIEW current_{kind} AS {current}")
    return statements


def links(batches: Sequence[BatchFiles]) -> str:
    """Select the pairs of identities that stand on one row, replaced or not (S4)."""
    files = [file for batch in batches for file in batch.files]
    return " UNION ALL ".join(
        f"SELECT _key_high AS high, _key_low AS low, link.key_high AS other_high, link.key_low AS other_low FROM"
        f" (SELECT _key_high, _key_low, unnest(_links) AS link FROM '{file}' WHERE _links IS NOT NULL)"
        for file in files
    )


def export(wanted: Wanted, folder: str) -> list[str]:
    """Merge all profiles and write them; with `linked`, a table `moved` (key to profile key) must be there."""
    return _linked_export(wanted, folder) if wanted.linked else _plain_export(wanted, folder)


_ABOUT = "lower(lpad(hex(owner_high), 16, '0') || lpad(hex(owner_low), 16, '0')) AS _profile_id, 'batch' AS _batch_id"


def _plain_export(wanted: Wanted, folder: str) -> list[str]:
    owned = "(SELECT *, key_high AS owner_high, key_low AS owner_low FROM current_records)"
    joins, maps = _maps(wanted, owned)
    lone = _lone_map(
        "any_value(namespace)", "any_value(identity)", "arg_max(state, place) FILTER (state IS NOT NULL)"
    )
    select = [f"{lone} AS identity_map", *_merged(wanted)]
    merged = f"SELECT owner_high, owner_low, {', '.join(select)} FROM {owned} GROUP BY owner_high, owner_low"
    out = ["identity_map AS identityMap", *columns(_output(wanted))]
    return [
        *maps,
        _written(f"SELECT {', '.join(out)}, {_ABOUT} FROM ({merged}) AS merged {joins}", folder),
    ]


def _linked_export(wanted: Wanted, folder: str) -> list[str]:
    owned = {
        kind: f"CREATE TEMP VIEW owned_{kind} AS SELECT rows.*, coalesce(profile_high, key_high) AS owner_high,"
        f" coalesce(profile_low, key_low) AS owner_low FROM {kind} AS rows LEFT JOIN moved USING (key_high, key_low)"
        for kind in ("records", "events", "current_records", "current_events")
    }
    joins, maps = _maps(wanted, "owned_current_records")
    merged = (
        f"SELECT owner_high, owner_low, {', '.join(_merged(wanted))} FROM owned_current_records GROUP BY ALL"
    )
    series = columns({path: _column(path) for path in wanted.event_leaves})
    packed = ", ".join(f"{name} := {value}" for value, _, name in (one.rpartition(" AS ") for one in series))
    sortable = (
        f"struct_pack(t := event_time, i := event_id, d := dataset, p := place, e := struct_pack({packed}))"
    )
    timeline = (
        "CREATE TEMP VIEW timeline AS SELECT owner_high, owner_low,"
        f" list_transform(list_sort(list({sortable})), lambda item: item.e) AS series"
        " FROM owned_current_events GROUP BY ALL"
    )
    # Everybody has identities here, so their map is made one way for all.
    out = [
        "identity_map AS identityMap",
        *columns(_output(wanted)),
        "series AS timeSeriesEvents",
        _ABOUT,
    ]
    final = (
        f"SELECT {', '.join(out)} FROM ({merged}) AS merged {joins}"
        " JOIN people USING (owner_high, owner_low) LEFT JOIN timeline USING (owner_high, owner_low)"
        " WHERE identities <= 50"
    )
    return [*owned.values(), *_people(), *maps, timeline, _written(final, folder)]


def _people() -> list[str]:
    """All identities of each profile, current or not; states only from what is current, records before events (S6)."""
    entries = []
    for kind, rank in (("records", 2**62), ("events", 0)):
        newer = f"latest_{kind}"
        same = "dataset, key_high, key_low" + (", event_id" if kind == "events" else "")
        rows = f"(SELECT * FROM owned_{kind} LEFT JOIN {newer} USING ({same}))"
        state = "CASE WHEN latest IS NULL OR place = latest THEN {} END"
        linked = f"SELECT * EXCLUDE links, unnest(links) AS link FROM {rows} WHERE links IS NOT NULL"
        entries.append(
            f"SELECT owner_high, owner_low, key_high, key_low, namespace, identity, {state.format('state')} AS state,"
            f" place + {rank} AS strength, true AS is_primary FROM {rows}"
        )
        entries.append(
            f"SELECT owner_high, owner_low, link.key_high, link.key_low, link.namespace, link.id,"
            f" {state.format('link.authenticated_state')}, place + {rank}, false FROM ({linked})"
        )
    known = (
        "SELECT owner_high, owner_low, key_high, key_low, any_value(namespace) AS namespace, any_value(identity) AS id,"
        " arg_max(state, strength) FILTER (state IS NOT NULL) AS state,"
        " nullif(bool_or(is_primary), false) AS is_primary"
        f" FROM ({' UNION ALL '.join(entries)}) GROUP BY owner_high, owner_low, key_high, key_low"
    )
    spaces = (
        "SELECT owner_high, owner_low, namespace, count(*) AS size, list_sort(list("
        'struct_pack(id := id, authenticatedState := state, "primary" := is_primary))) AS items'
        f" FROM ({known}) GROUP BY owner_high, owner_low, namespace"
    )
    people = (
        "SELECT owner_high, owner_low, sum(size) AS identities, map(list(namespace), list(items)) AS identity_map"
        f" FROM ({spaces}) GROUP BY owner_high, owner_low"
    )
    return [f"CREATE TEMP TABLE people AS {people}"]


def _rows(batch: BatchFiles, leaves: Sequence[str]) -> str:
    files = ", ".join(f"'{file}'" for file in batch.files)
    values = [f"{_quoted(path) if path in batch.paths else 'NULL'} AS {_column(path)}" for path in leaves]
    extra = ["_id AS event_id", '"timestamp" AS event_time'] if batch.is_event else []
    selected = [
        f"{batch.dataset} AS dataset",
        "_key_high AS key_high",
        "_key_low AS key_low",
        f"{batch.number}::BIGINT * 4294967296 + _row AS place",
        "_namespace AS namespace",
        "_identity AS identity",
        "_authenticated_state AS state",
        "_links AS links",
        *extra,
        *values,
    ]
    return f"SELECT {', '.join(selected)} FROM read_parquet([{files}])"


def _merged(wanted: Wanted) -> list[str]:
    return [
        f"arg_max({_column(path)}, place) FILTER ({_column(path)} IS NOT NULL) AS {_column(path)}"
        for path in wanted.leaves
        if path not in {_SCORES, _SEGMENTS}
    ]


def _maps(wanted: Wanted, owned: str) -> tuple[str, list[str]]:
    """Merge maps per key (S14) and memberships by their newest qualification (S15)."""
    made = []
    if _SCORES in wanted.leaves:
        newest = _newest_entries(f"map_entries({_column(_SCORES)})", owned, "place")
        made.append(
            "CREATE TEMP TABLE scores AS SELECT owner_high, owner_low, map_from_entries(list((k, v))) AS merged_scores"
            f" FROM ({newest}) GROUP BY owner_high, owner_low"
        )
    if _SEGMENTS in wanted.leaves:
        qualified = "coalesce(one.value.lastQualificationTime, '-infinity'::TIMESTAMPTZ)"
        order = f"struct_pack(t := {qualified}, p := place)"
        newest = _newest_entries(f"map_entries({_column(_SEGMENTS)}['ups'])", owned, order)
        made.append(
            "CREATE TEMP TABLE segments AS SELECT owner_high, owner_low,"
            " MAP {'ups': map_from_entries(list((k, v)))} AS merged_segmentMembership"
            f" FROM ({newest}) GROUP BY owner_high, owner_low"
        )
    joins = [f"LEFT JOIN {table} USING (owner_high, owner_low)" for table in ("scores", "segments")]
    used = [join for join, path in zip(joins, (_SCORES, _SEGMENTS), strict=True) if path in wanted.leaves]
    return " ".join(used), made


def _newest_entries(entries: str, owned: str, order: str) -> str:
    unnested = f"SELECT owner_high, owner_low, place, unnest({entries}) AS one FROM {owned}"
    return (
        f"SELECT owner_high, owner_low, one.key AS k, arg_max(one.value, {order}) AS v FROM ({unnested})"
        " GROUP BY owner_high, owner_low, k"
    )


def _output(wanted: Wanted) -> dict[str, str]:
    maps = {_SCORES, _SEGMENTS}
    return {path: f"merged_{path}" if path in maps else _column(path) for path in wanted.leaves}


def _lone_map(namespace: str, identity: str, state: str) -> str:
    item = f'struct_pack(id := {identity}, authenticatedState := {state}, "primary" := true)'
    return f"MAP {{{namespace}: [{item}]}}"


def _written(query: str, folder: str) -> str:
    return f"COPY ({query}) TO '{folder}' (FORMAT parquet, COMPRESSION zstd, FILE_SIZE_BYTES '128MB')"


def _column(path: str) -> str:
    return "v_" + path.replace(".", "_")


def _quoted(path: str) -> str:
    return ".".join(f'"{name}"' for name in path.split("."))
