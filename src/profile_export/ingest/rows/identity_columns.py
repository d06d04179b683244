"""Whose the rows of a Parquet batch are, found for all of them at once.

Only batches in which nothing is amiss are understood. Any other is left to be looked at row by row, which knows the
rows and the words of every refusal.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from profile_export.domain.merging.identity import fold_namespace, key_digests, key_prefix
from profile_export.domain.schemas.learning import ValueRefusedError
from profile_export.domain.schemas.types import (
    IDENTITY_MAP_TYPE,
    ArrayType,
    FieldType,
    MapType,
    ObjectType,
    TypeConflictError,
)
from profile_export.ingest.rows.conform import Place, Refused, conform, entries_of, field_type
from profile_export.ingest.rows.identities import AUTHENTICATED_STATES, Claim
from profile_export.lake.data_files import LINK, arrow_type

_STATES = pa.array(AUTHENTICATED_STATES)
_ITEM = IDENTITY_MAP_TYPE.value.item if isinstance(IDENTITY_MAP_TYPE.value, ArrayType) else None


class DeclaredColumn(NamedTuple):
    """A declared identity field: what it holds as text, one value per row."""

    namespace: str
    claim: Claim
    ids: pa.Array


class Identified(NamedTuple):
    """The identities of a batch: its column `identityMap` and its system columns from the namespace on.

    `namespaces` are those of all mentions in their order, `rows` the row of each.
    """

    identity_map: pa.Array
    system: list[pa.Array]
    namespaces: pa.Array
    rows: pa.Array


class _Mentions(NamedTuple):
    """The `identities.Mention`s of several rows as columns; `stated` is a `LINK`, `digests` are its keys as bytes."""

    rows: pa.Array
    stated: pa.StructArray
    claims: pa.Array
    digests: list[bytes]


def identify(sent: pa.Array | None, declared: Sequence[DeclaredColumn], count: int) -> Identified | None:
    """Find what `identities.resolve` finds, for all rows of a batch.

    Args:
        sent: The column `identityMap` of the file, None if it has none.
        declared: The declared identity fields.
        count: How many rows there are.

    Returns:
        None if the batch must be looked at row by row.
    """
    stored = pa.nulls(count, arrow_type(IDENTITY_MAP_TYPE))
    parts = []
    if sent is not None and sent.null_count < count:
        checked = _stored_map(sent)
        mapped = None if checked is None else _in_map(checked)
        if checked is None or mapped is None:
            return None
        stored = checked
        parts.append(mapped)
    parts += [_in_field(field) for field in declared]
    mentions = _joined(parts)
    if mentions is None:
        return None
    apart = len({fold_namespace(field.namespace) for field in declared}) == len(declared)
    chosen = _declared_first(mentions, count) if apart and len(parts) == len(declared) else None
    chosen = chosen or _resolved(mentions, count)
    if chosen is None:
        return None
    primary, links, sizes = chosen
    offsets = pa.array(accumulate(sizes, initial=0), pa.int32())
    listed = pa.ListArray.from_arrays(
        offsets, mentions.stated.take(links), pa.list_(LINK), mask=pc.equal(pa.array(sizes, pa.int32()), 0)
    )
    namespaces = mentions.stated.field("namespace")
    return Identified(stored, [*mentions.stated.take(primary).flatten(), listed], namespaces, mentions.rows)


# --- Mentions ---


def _stored_map(sent: pa.Array) -> pa.Array | None:
    try:
        if not _holds_identities(field_type(sent.type, (), set())):
            return None
        refused: Refused = {}
        stored = conform(sent, IDENTITY_MAP_TYPE, Place((), refused))
    except (ValueRefusedError, TypeConflictError):
        return None
    return None if refused else stored


def _holds_identities(found: FieldType | None) -> bool:
    match found, _ITEM:
        case MapType(ArrayType(ObjectType(members))), ObjectType(known):
            return all(known.get(name) == member for name, member in members.items())
    return False


def _in_map(stored: pa.Array) -> _Mentions | None:
    """Return what a checked column mentions, ordered by row and namespace."""
    entries = entries_of(stored)
    rows = pc.list_parent_indices(entries).cast(pa.int64())
    keys, lists = entries.flatten().flatten()
    items = lists.flatten()
    inside = pc.list_parent_indices(lists)
    names = pc.unique(keys).to_pylist()
    if (
        any(not name or "\0" in name for name in names)
        or pc.any(pc.equal(pc.list_value_length(lists), 0)).as_py()
    ):
        return None
    rows, namespaces = rows.take(inside), keys.take(inside)
    if len(rows) > len(stored) - stored.null_count:  # some row has several
        order = pc.sort_indices(
            pa.table({"row": rows, "namespace": namespaces}),
            sort_keys=[("row", "ascending"), ("namespace", "ascending")],
        )
        rows, namespaces, items = rows.take(order), namespaces.take(order), items.take(order)
    ids, states, marked = items.flatten()
    known = pc.or_(states.is_null(), pc.is_in(states, value_set=_STATES))
    if ids.null_count or pc.any(pc.equal(ids, "")).as_py() or not pc.all(known).as_py():
        return None
    states = pc.if_else(pc.equal(states, "ambiguous"), pa.scalar(None, pa.string()), states)
    claims = pc.if_else(pc.fill_null(marked, False), int(Claim.MARKED), int(Claim.NONE)).cast(pa.int8())
    found = namespaces.dictionary_encode()
    prefixes = pa.array([key_prefix(name) for name in found.dictionary.to_pylist()], pa.binary())
    return _mentions(rows, namespaces, ids, states, claims, prefixes.take(found.indices))


def _in_field(field: DeclaredColumn) -> _Mentions:
    rows = pc.indices_nonzero(field.ids.is_valid()).cast(pa.int64())
    ids = field.ids.drop_null()
    return _mentions(
        rows,
        pa.repeat(field.namespace, len(ids)),
        ids,
        pa.nulls(len(ids), pa.string()),
        pa.repeat(pa.scalar(int(field.claim), pa.int8()), len(ids)),
        pa.scalar(key_prefix(field.namespace), pa.binary()),
    )


def _mentions(
    rows: pa.Array,
    namespaces: pa.Array,
    ids: pa.Array,
    states: pa.Array,
    claims: pa.Array,
    prefixes: pa.Array | pa.Scalar,
) -> _Mentions:
    digests = key_digests(pc.binary_join_element_wise(prefixes, ids.cast(pa.binary()), b"").to_pylist())
    halves = array("q", b"".join(digests))
    if sys.byteorder == "little":
        halves.byteswap()
    high, low = (
        pa.Array.from_buffers(pa.int64(), len(ids), [None, pa.py_buffer(halves[half::2])]) for half in (0, 1)
    )
    stated = pa.StructArray.from_arrays([namespaces, ids, states, high, low], fields=list(LINK))
    return _Mentions(rows, stated, claims, digests)


def _joined(parts: list[_Mentions]) -> _Mentions | None:
    """Return the mentions of all places, row by row; within a row in the order of the places."""
    if len(parts) < 2:  # noqa: PLR2004 - nothing to join
        return parts[0] if parts else None
    rows = pa.concat_arrays([part.rows for part in parts])
    order = pc.array_sort_indices(rows)  # stable
    digests = [digest for part in parts for digest in part.digests]
    return _Mentions(
        rows.take(order),
        pa.concat_arrays([part.stated for part in parts]).take(order),
        pa.concat_arrays([part.claims for part in parts]).take(order),
        [digests[index] for index in order.to_pylist()],
    )


# --- Which is whose ---

_Chosen = tuple[pa.Array, pa.Array, list[int]]
"""Per row the index of its primary mention; the indices of the links, and how many of them each row has."""


def _declared_first(mentions: _Mentions, count: int) -> _Chosen | None:
    """Choose among declared fields of different namespaces: no identity can stand in two of them."""
    is_primary = pc.equal(mentions.claims, int(Claim.DECLARED))
    primary = pc.indices_nonzero(is_primary)
    if len(primary) != count:
        return None
    links = pc.indices_nonzero(pc.invert(is_primary))
    sizes = [0] * count
    for row in mentions.rows.take(links).to_pylist():
        sizes[row] += 1
    return primary, links, sizes


def _resolved(mentions: _Mentions, count: int) -> _Chosen | None:
    """Choose row by row; None where that is not certain, or changes how an identity is told."""
    digests, claims = mentions.digests, mentions.claims.to_pylist()
    namespaces = mentions.stated.field("namespace").to_pylist()
    states = mentions.stated.field("authenticated_state").to_pylist()
    primary: list[int] = []
    links: list[int] = []
    sizes: list[int] = []
    at = 0
    for _, same_row in groupby(mentions.rows.to_pylist()):
        end = at + sum(1 for _ in same_row)
        found: dict[bytes, int] = {}
        strongest = int(Claim.NONE)
        chosen = -1
        while at < end:
            one = found.setdefault(digests[at], at)
            if one != at and (namespaces[one] != namespaces[at] or states[at] not in (None, states[one])):
                return None
            if claims[at] > strongest:
                strongest, chosen = claims[at], one
            elif claims[at] == Claim.MARKED and one != chosen:
                return None
            at += 1
        if chosen < 0:
            return None
        primary.append(chosen)
        sizes.append(len(found) - 1)
        links += [one for one in found.values() if one != chosen]
    if len(primary) != count:
        return None
    return pa.array(primary, pa.int64()), pa.array(links, pa.int64()), sizes
