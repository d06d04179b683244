"""Random source data and random exports of it.

Pools are small on purpose: identities meet, values tie, batches replace each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from profile_export.domain.catalog.datasets import BUILT_IN_SCHEMAS, DatasetKind
from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.export.plan import HIGHEST_KEY, LOWEST_KEY, KeyRange
from profile_export.domain.export.selection import (
    MembershipStatus,
    SegmentFilter,
    SegmentSelection,
    known_paths,
    select_fields,
)
from profile_export.domain.merging.identity import Identity, identity_key
from profile_export.domain.merging.merge import SourceRow, StatedIdentity
from profile_export.domain.merging.policy import IdentityGraph
from profile_export.domain.schemas.types import (
    BOOLEAN,
    DATE,
    DOUBLE,
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    LARGE_LONG,
    LONG,
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldType,
    MapType,
    ObjectType,
    Scalar,
    ScalarKind,
    union_objects,
)
from tests.builders import Part, at, events, records

_IDENTITY_PATHS = (
    IDENTITY_MAP,
    "identities",
    "identities.id",
    "identities.authenticatedState",
    "identities.primary",
    "identities.namespace.code",
    "identityMap.Email",
    "identityMap.crmid.primary",
)
_BEHIND_MAPS = (
    "consents.a",
    "consents.it's",
    "scores.a.value",
    "scores.b.by.who",
    "scores.b",
    "settings.channels.a",
    "settings.places.b.count",
    "rooms.a.b",
    "rooms.b",
    "segmentMembership.UPS",
    "segmentMembership.ups.s1.status",
)


@dataclass(frozen=True, slots=True)
class Export:
    """Source data and the options of `plan_of` and of the engine's run over it."""

    parts: tuple[Part, ...]
    options: Mapping[str, Any]
    ranges: tuple[KeyRange, ...]


# --- Fields ---

_PRICE = DecimalType(8, 2)
_NUMBERS = (LONG, DOUBLE)
_EXACT_NUMBERS = (_PRICE, DecimalType(25, 6), LONG, LARGE_LONG)
_LINE = ObjectType({"count": LONG, "unit": TEXT, "total": _PRICE})
_FIELDS: Mapping[str, FieldType] = {
    "name": TEXT,
    "points": LONG,
    "balance": _PRICE,
    "rates": MapType(_PRICE),
    "active": BOOLEAN,
    "birthday": DATE,
    "seen": TIMESTAMP,
    "person": ObjectType(
        {"name": ObjectType({"first": TEXT, "last": TEXT}), "age": LONG, "nicknames": ArrayType(TEXT)}
    ),
    "tags": ArrayType(TEXT),
    "grid": ArrayType(ArrayType(LONG)),
    "orders": ArrayType(
        ObjectType(
            {
                "sku": TEXT,
                "price": DOUBLE,
                "lines": ArrayType(_LINE),
                "shipping": ObjectType({"city": TEXT, "paid": BOOLEAN}),
            }
        )
    ),
    "consents": MapType(TEXT),
    "scores": MapType(ObjectType({"value": LONG, "notes": ArrayType(TEXT), "by": ObjectType({"who": TEXT})})),
    "settings": ObjectType({"channels": MapType(BOOLEAN), "places": MapType(ArrayType(_LINE))}),
    "rooms": MapType(MapType(LONG)),
    SEGMENT_MEMBERSHIP: SEGMENT_MEMBERSHIP_TYPE,
    # Names like those that an engine may use itself.
    "_id": TEXT,
    "place": TEXT,
    "fragments": LONG,
    "with.dot": TEXT,
    'quote"d': TEXT,
}


@st.composite
def _some_fields(draw: st.DrawFn, names: list[str]) -> dict[str, FieldType]:
    """Some of the fields, with some of their members and numbers of some type: what one upload might bring."""
    lacking = draw(st.sets(st.sampled_from(names), max_size=len(names) // 2))
    return {name: draw(_variant(_FIELDS[name])) for name in names if name not in lacking}


def _variant(kind: FieldType) -> st.SearchStrategy[FieldType]:
    match kind:
        case _ if kind == SEGMENT_MEMBERSHIP_TYPE:
            return st.just(kind)
        case ObjectType(fields):
            members = st.lists(st.sampled_from(sorted(fields)), unique=True, min_size=1)
            return members.flatmap(
                lambda names: st.fixed_dictionaries({name: _variant(fields[name]) for name in names})
            ).map(ObjectType)
        case ArrayType(item):
            return _variant(item).map(ArrayType)
        case MapType(value):
            return _variant(value).map(MapType)
        case Scalar(ScalarKind.LONG) | DecimalType():
            return st.sampled_from(_NUMBERS if kind == LONG else _EXACT_NUMBERS)
        case _:
            return st.just(kind)


# --- Values ---

_TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "a", "b", "é", "e\u0301", "🜚", "it's", 'say "so"', "null", "a\\b", "{}", "line\nbreak", "ß"]
    ),
    st.text(max_size=3),
)
_KEYS = st.sampled_from(["a", "b", "c", "A", "with.dot", "it's", "é", ""])
_SCALARS: Mapping[ScalarKind, st.SearchStrategy[Any]] = {
    ScalarKind.TEXT: _TEXTS,
    ScalarKind.BOOLEAN: st.booleans(),
    # Those that a double holds (S27).
    ScalarKind.LONG: st.one_of(st.integers(-3, 3), st.sampled_from([2**53, -(2**53)])),
    # Without negative zero, which equals zero: Parquet writers may keep one of the two for both.
    ScalarKind.DOUBLE: st.one_of(
        st.sampled_from([0.0, 0.1, -1.5, 1e300]),
        st.floats(allow_nan=False, width=32).map(lambda number: number + 0.0),
    ),
    ScalarKind.DATE: st.sampled_from([date(1969, 12, 31), date(2024, 2, 29), date(9999, 12, 31)]),
    ScalarKind.TIMESTAMP: st.sampled_from(
        [
            at(0),
            at(1),
            at(1 / 60_000),
            datetime(1900, 1, 1, tzinfo=UTC),
            datetime(2200, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
        ]
    ),
}


def _values(kind: FieldType) -> st.SearchStrategy[Any]:
    """Values of a type: absent, null, empty and half empty ones among them."""
    return st.one_of(_present(kind), _present(kind), st.none())


def _present(kind: FieldType) -> st.SearchStrategy[Any]:
    match kind:
        case ObjectType(fields):
            return st.fixed_dictionaries(
                {}, optional={name: _values(member) for name, member in fields.items()}
            )
        case ArrayType(item):
            return st.lists(_values(item), max_size=3)
        case MapType(value):
            return st.dictionaries(_KEYS, _values(value), max_size=3)
        case DecimalType(precision, scale):
            last = Decimal(1).scaleb(-scale)
            return st.sampled_from([last, Decimal("-2.50"), Decimal(10) ** (precision - scale) - last])
        case Scalar(ScalarKind.LONG, beyond_doubles=True):
            return st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63)])
        case Scalar(scalar):
            return _SCALARS[scalar]


_MEMBERSHIP = st.fixed_dictionaries(
    {
        "lastQualificationTime": st.sampled_from([at(0), at(1), None]),
        # Hardly ever the same, so that it shows which one of several has won.
        "validUntil": st.integers(0, 100_000).map(at),
    },
    optional={"status": st.sampled_from(["realized", "existing", "exited", None])},
)
_NOTHING: st.SearchStrategy[Any] = st.sampled_from([None, {}, {"status": None}])
_ENTRIES = st.one_of(_MEMBERSHIP, _MEMBERSHIP, _NOTHING)
_MEMBERSHIPS = st.dictionaries(
    st.sampled_from(["ups", "UPS", "Ups", "aam"]),
    st.one_of(st.dictionaries(st.sampled_from(["s1", "it's"]), _ENTRIES, min_size=1), st.none()),
    min_size=1,
    max_size=3,
)


@st.composite
def _value(draw: st.DrawFn, fields: Mapping[str, FieldType]) -> dict[str, Any]:
    value = {}
    for name, kind in fields.items():
        if name == SEGMENT_MEMBERSHIP:
            value[name] = draw(st.one_of(_MEMBERSHIPS, _MEMBERSHIPS, st.none()))
        else:
            value[name] = draw(_values(kind))
    return value


# --- Identities ---

# Of one namespace: several spellings, and one that folds to another's only by the rules of Unicode.
_NAMESPACES = ("Email", "email", "EMAIL", "CRMID", "Straße", "STRASSE")
_IDS = ("1", "2", "A", "a", "it's é")


@st.composite
def _identities(draw: st.DrawFn, namespaces: Sequence[str], ids: Sequence[str]) -> list[StatedIdentity]:
    """The identities of one row, the primary one first, each once."""
    identities = st.builds(Identity, st.sampled_from(namespaces), st.sampled_from(ids))
    states = st.sampled_from([None, None, "authenticated", "loggedOut"])
    found = draw(st.lists(st.builds(StatedIdentity, identities, states), min_size=1, max_size=3))
    return list({identity_key(stated.identity): stated for stated in reversed(found)}.values())[::-1]


# --- Datasets ---


@dataclass(frozen=True, slots=True)
class _Scope:
    """What the data of an export may be about: how many datasets of a kind, their fields, their identities."""

    datasets: Mapping[DatasetKind, int]
    names: Mapping[DatasetKind, list[str]]
    identities: st.SearchStrategy[list[StatedIdentity]]


@st.composite
def _part(draw: st.DrawFn, scope: _Scope, dataset_id: str, kind: DatasetKind, batches: list[str]) -> Part:
    """Rows written with the same fields, from several batches, as a compacted file may hold them."""
    fields = draw(_some_fields(scope.names[kind]))
    rows = []
    for batch in batches:
        for number in range(draw(st.integers(1, 5))):
            primary, *links = draw(scope.identities)
            value = draw(_value(fields))
            if kind is DatasetKind.EVENT:
                value[EVENT_ID] = draw(st.sampled_from(["1", "2", "a", "é"]))
                value[EVENT_TIME] = draw(st.sampled_from([at(0), at(1), at(-1)]))
            rows.append(SourceRow(dataset_id, batch, number, primary, value, tuple(links)))
    build = events if kind is DatasetKind.EVENT else records
    return build(dataset_id, fields, *rows)


@st.composite
def _all_parts(draw: st.DrawFn, scope: _Scope) -> tuple[Part, ...]:
    """A few datasets of a few parts of a few batches, committed in any order."""
    planned = [
        (f"{kind}{index}", kind, draw(st.integers(1, 2)))
        for kind, count in scope.datasets.items()
        for index in range(count)
        for _ in range(draw(st.integers(1, 2)))
    ]
    upserting = draw(
        _upserting(sorted({dataset for dataset, kind, _ in planned if kind is DatasetKind.RECORD}))
    )
    numbers = iter(draw(st.permutations(range(sum(batches for _, _, batches in planned)))))
    parts = [
        draw(_part(scope, dataset_id, kind, [f"batch-{next(numbers):02}" for _ in range(batches)]))
        for dataset_id, kind, batches in planned
    ]
    return tuple(replace(part, upserts=part.dataset_id in upserting) for part in parts)


def _upserting(datasets: list[str]) -> st.SearchStrategy[set[str]]:
    """Some of the record datasets, often none: exports without any have an expression of their own."""
    if not datasets:
        return st.just(set())
    return st.one_of(st.just(set()), st.sets(st.sampled_from(datasets), min_size=1))


# --- Exports ---


@st.composite
def exports(draw: st.DrawFn) -> Export:
    """Any source data, and any export that a plan can hold."""
    of_events = [name for name in _FIELDS if name != EVENT_ID]
    # Few fields for all, so that sources compete for them.
    names = {
        DatasetKind.RECORD: draw(_few([SEGMENT_MEMBERSHIP, "scores", "person", *_FIELDS])),
        DatasetKind.EVENT: draw(_few(of_events)),
    }
    datasets = {DatasetKind.RECORD: draw(st.integers(0, 3)), DatasetKind.EVENT: draw(st.integers(0, 2))}
    parts = draw(_all_parts(_Scope(datasets, names, _identities(_NAMESPACES, _IDS))))
    options = draw(_options(parts)) | {"fields": draw(_paths(parts, DatasetKind.RECORD))}
    if draw(st.sampled_from([True, True, False])):
        options |= {"event_fields": draw(_paths(parts, DatasetKind.EVENT)), "window": draw(_windows())}
    return Export(parts, options, draw(_key_ranges(parts)))


@st.composite
def exports_of_segments(draw: st.DrawFn) -> Export:
    """Memberships of a few profiles in many sources: their times tie, are missing, and one name has many spellings."""
    names = {DatasetKind.RECORD: [SEGMENT_MEMBERSHIP]}
    scope = _Scope({DatasetKind.RECORD: 3}, names, _identities(_NAMESPACES[:2], _IDS[:2]))
    parts = draw(_all_parts(scope))
    fields = draw(
        st.sampled_from([[SEGMENT_MEMBERSHIP], [IDENTITY_MAP], ["segmentMembership.ups.s1.status"]])
    )
    chosen = draw(_chosen_segments()) if draw(st.sampled_from([True, True, False])) else {}
    return Export(parts, draw(_options(parts)) | {"fields": fields} | chosen, draw(_key_ranges(parts)))


@st.composite
def exports_of_upserts(draw: st.DrawFn) -> Export:
    """Many records of a few profiles, most in datasets that upsert: other records come between those of a fragment."""
    names = {
        DatasetKind.RECORD: draw(_few(["name", "person", "tags", "consents", "scores", SEGMENT_MEMBERSHIP]))
    }
    scope = _Scope(
        {DatasetKind.RECORD: 3, DatasetKind.EVENT: draw(st.integers(0, 1))},
        names | {DatasetKind.EVENT: ["name"]},
        _identities(_NAMESPACES[:2], _IDS[:2]),
    )
    parts = draw(_all_parts(scope))
    patching = draw(st.sampled_from([{"record0", "record1"}, {"record0", "record1", "record2"}]))
    parts = tuple(replace(part, upserts=part.dataset_id in patching) for part in parts)
    options = draw(_options(parts)) | {"fields": draw(_paths(parts, DatasetKind.RECORD))}
    return Export(parts, options, draw(_key_ranges(parts)))


@st.composite
def exports_of_events(draw: st.DrawFn) -> Export:
    """Events of a few profiles in many sources: their times and ids tie."""
    names = {DatasetKind.RECORD: ["name"], DatasetKind.EVENT: ["name"]}
    datasets = {DatasetKind.RECORD: 1, DatasetKind.EVENT: 2}
    parts = draw(_all_parts(_Scope(datasets, names, _identities(_NAMESPACES[:2], _IDS[:2]))))
    paths = draw(st.sampled_from([[], ["name"], ["identityMap", "_id"]]))
    options = draw(_options(parts)) | {"event_fields": paths, "window": draw(_windows())}
    return Export(parts, options, draw(_key_ranges(parts)))


def _few(names: Sequence[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(names), unique=True, min_size=1, max_size=5)


@st.composite
def _options(draw: st.DrawFn, parts: tuple[Part, ...]) -> dict[str, Any]:
    """What a request and its policy say beside fields and events; most say little."""
    datasets = sorted({part.dataset_id for part in parts})
    order = st.lists(st.sampled_from([*datasets, "gone"]), unique=True, min_size=1)
    excluded = st.lists(
        st.builds(Identity, st.sampled_from(_NAMESPACES), st.sampled_from(_IDS)), min_size=1, max_size=4
    )
    options = {
        "graph": draw(st.sampled_from(IdentityGraph)),
        "empty_profiles": draw(st.booleans()),
        "order": draw(st.one_of(st.none(), order)),
        "excluded": draw(st.one_of(st.just([]), st.just([]), excluded)),
        "newer_than": draw(
            st.one_of(st.none(), st.none(), st.sampled_from([at(minutes) for minutes in range(6)]))
        ),
    }
    return options | (draw(_chosen_segments()) if draw(st.sampled_from([False, False, True])) else {})


@st.composite
def _chosen_segments(draw: st.DrawFn) -> dict[str, Any]:
    """Some segments, known or not, and perhaps a batch for each of them."""
    statuses = st.lists(st.sampled_from(MembershipStatus), unique=True, min_size=1).map(tuple)
    segment = st.builds(
        SegmentFilter,
        st.sampled_from(["s1", "it's", "unknown"]),
        st.sampled_from(["ups", "UPS", "aam", "x"]),
        statuses,
    )
    segments = draw(
        st.lists(
            segment, unique_by=lambda one: (one.namespace.casefold(), one.segment_id), min_size=1, max_size=3
        )
    )
    selection = SegmentSelection(tuple(segments), *draw(_windows()))
    batches = tuple(f"export-{position}" for position in range(len(segments)))
    return {"segments": selection, "segment_batches": draw(st.sampled_from([(), batches]))}


def _windows() -> st.SearchStrategy[tuple[datetime | None, datetime | None]]:
    """Windows of ingest time, most of them open at an end: batches are committed one a minute."""
    instants = st.sampled_from([at(minutes) for minutes in range(6)])
    return st.one_of(
        st.just((None, None)),
        st.tuples(st.none(), instants),
        st.tuples(instants, st.none()),
        st.tuples(instants, instants).map(lambda ends: (min(ends), max(ends))),
    )


def _paths(parts: tuple[Part, ...], kind: DatasetKind) -> st.SearchStrategy[list[str]]:
    union = next(schema.fields for schema in BUILT_IN_SCHEMAS.values() if schema.kind is kind)
    for part in parts:
        if part.kind is kind:
            union = union_objects(union, part.fields)
    # A dotted name cannot be told from a path, so no request can name it.
    known = [path for path in known_paths(union) if path != IDENTITY_MAP and not path.startswith("with.dot")]
    behind_maps = [path for path in _BEHIND_MAPS if _is_known(path, union)]
    return st.one_of(
        st.just([]), st.lists(st.sampled_from([*known, *_IDENTITY_PATHS, *behind_maps]), max_size=4)
    )


def _is_known(path: str, union: ObjectType) -> bool:
    try:
        select_fields(union, [path], "spec.fields")
    except InvalidArgumentError:
        return False
    return True


@st.composite
def _key_ranges(draw: st.DrawFn, parts: tuple[Part, ...]) -> tuple[KeyRange, ...]:
    """Cuts of all keys into ranges, some of them exactly at a key."""
    keys = sorted({identity_key(row.primary.identity)[0] for part in parts for row in part.rows})
    cuts = st.integers(LOWEST_KEY + 1, HIGHEST_KEY)
    starts = sorted(draw(st.sets(st.one_of(cuts, st.sampled_from(keys)) if keys else cuts, max_size=2)))
    return tuple(
        KeyRange(index, low, high)
        for index, (low, high) in enumerate(
            zip([LOWEST_KEY, *starts], [*(start - 1 for start in starts), HIGHEST_KEY], strict=True)
        )
    )
