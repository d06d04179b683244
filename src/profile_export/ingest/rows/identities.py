"""Finds the identities of each row, which of them is its primary one (S3), and the namespaces that a file uses (S2)."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from enum import IntEnum
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from profile_export.domain.catalog.allowances import MOST_BATCH_SPELLINGS
from profile_export.domain.catalog.batches import NamespaceUse
from profile_export.domain.catalog.datasets import IdentityField
from profile_export.domain.errors import Reason
from profile_export.domain.merging.identity import (
    IdentityKey,
    fold_namespace,
    key_digests,
    key_of,
    key_prefix,
)
from profile_export.domain.schemas.learning import ValueRefusedError, check_value, teaches_nothing
from profile_export.domain.schemas.types import (
    BOOLEAN,
    IDENTITY_MAP,
    IDENTITY_MAP_TYPE,
    IDENTITY_MEMBERS,
    SEGMENT_MEMBERSHIP,
    TEXT,
    ArrayType,
    FieldPath,
    FieldType,
    MapType,
    ObjectType,
    TypeConflictError,
)
from profile_export.ingest.output import FileRefusedError
from profile_export.ingest.rows.conform import Place, Refused, conform, entries_of, field_type
from profile_export.lake.data_files import LINK, arrow_type

AUTHENTICATED_STATES = ("ambiguous", "authenticated", "loggedOut")
EMPTY_ID = "is an empty text, which is no identity"
NO_PRIMARY = (
    "has no primary identity: mark one in its identityMap, or create the dataset with the field that holds one "
    "declared as its primary identity"
)
_STATES = pa.array(AUTHENTICATED_STATES)
_ITEM = IDENTITY_MAP_TYPE.value.item if isinstance(IDENTITY_MAP_TYPE.value, ArrayType) else None


class Claim(IntEnum):
    """How strongly a place of a row claims that its identity is the primary one (S3); the greater claim wins."""

    NONE = 0
    DECLARED = 1
    """It stands in the declared primary field."""
    MARKED = 2
    """It is marked in the `identityMap`."""


class Mention(NamedTuple):
    """An identity in one place of a row; `state` is None where absent or `ambiguous` (S6)."""

    namespace: str
    id: str
    state: str | None
    claim: Claim


class Stated(NamedTuple):
    """An identity of a row as the system columns hold it."""

    namespace: str
    id: str
    state: str | None
    key_high: int
    key_low: int


class RowIdentities(NamedTuple):
    """The identities of one row, each once."""

    primary: Stated
    links: list[Stated]


def check_identity_map(value: object) -> tuple[dict[str, Any] | None, list[Mention]]:
    """Bring a record's `identityMap` into its stored form and list the identities in it.

    Args:
        value: The map as sent: namespaces to lists of items. Null members of an item count as absent.

    Returns:
        The map without empty namespaces, None if nothing is left, and its mentions, ordered by namespace in UTF-8.

    Raises:
        ValueRefusedError: An item is not an identity.
        TypeConflictError: Something in it has another JSON type.
    """
    if not isinstance(value, dict):
        if teaches_nothing(value):
            return None, []
        raise TypeConflictError((IDENTITY_MAP,), "map", _kind(value))
    kept: dict[str, Any] = {}
    mentions: list[Mention] = []
    for namespace in sorted(value):
        items = value[namespace]
        path = (IDENTITY_MAP, namespace)
        if not isinstance(items, list):
            if teaches_nothing(items):
                continue
            raise TypeConflictError(path, "array", _kind(items))
        if not items:
            continue
        _check_namespace(namespace)
        kept[namespace] = checked = [_item(item, (*path, "[]")) for item in items]
        for item in checked:
            state = item.get("authenticatedState")
            mentions.append(
                Mention(
                    namespace,
                    item["id"],
                    None if state == "ambiguous" else state,
                    Claim.MARKED if item.get("primary") else Claim.NONE,
                )
            )
    return {namespace: kept[namespace] for namespace in value if namespace in kept} or None, mentions


def claim_of(declared: IdentityField) -> Claim:
    """Return the claim of an identity that stands in a declared identity field."""
    return Claim.DECLARED if declared.primary else Claim.NONE


def identity_text(value: object, path: FieldPath) -> str | None:
    """Return an identity's id (S1): text as it is, an integer in decimal; None where it is absent.

    Raises:
        ValueRefusedError: It is empty, or neither text nor an integer.
    """
    if type(value) is str and value and value.isascii():  # most are
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if teaches_nothing(value):
        return None
    if not isinstance(value, str):
        raise _invalid(path, f"is {_kind(value)}, but an identity is text or an integer")
    if not value:
        raise _invalid(path, EMPTY_ID)
    check_value(value, TEXT, path, set())
    return value


def resolve(mentions: Sequence[Mention]) -> RowIdentities:
    """Find a row's identities, each once however its namespace is spelled, and its primary one (S3).

    An identity in several places has the first state that is not None, and the spelling of its namespace that is the
    smallest in UTF-8.

    Args:
        mentions: The identities of all places of the row; at most one is DECLARED.

    Raises:
        ValueRefusedError: There is no primary identity, or two are marked.
    """
    if len(mentions) == 1 and mentions[0].claim:  # most rows
        [(namespace, text, state, _)] = mentions
        return RowIdentities(Stated(namespace, text, state, *key_of(namespace, text)), [])
    found: dict[IdentityKey, Stated] = {}
    strongest = Claim.NONE
    chosen: IdentityKey | None = None
    for namespace, text, state, claim in mentions:
        one = key_of(namespace, text)
        known = found.get(one)
        if known is None:
            found[one] = Stated(namespace, text, state, *one)
        else:
            found[one] = known._replace(namespace=min(namespace, known.namespace), state=known.state or state)
        if claim > strongest:
            strongest, chosen = claim, one
        elif claim is Claim.MARKED and one != chosen:
            raise ValueRefusedError(
                (),
                f"has more than one primary identity, '{text}' of '{namespace}' among them",
                Reason.PRIMARY_IDENTITY_AMBIGUOUS,
            )
    if chosen is None:
        raise ValueRefusedError((), NO_PRIMARY, Reason.PRIMARY_IDENTITY_MISSING)
    return RowIdentities(found.pop(chosen), list(found.values()))


class NamespaceTally:
    """Collects the namespaces of a file (S2), whose rows are noted in their order."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, int]] = {}
        self._spellings: set[str] = set()

    def see(self, spelling: str, row: int) -> None:
        """Note that a row, by its `_row`, uses a namespace.

        Raises:
            FileRefusedError: There are more than any batch can have.
        """
        if spelling in self._spellings:
            return
        self._spellings.add(spelling)
        if len(self._spellings) > MOST_BATCH_SPELLINGS:
            raise FileRefusedError(
                f"The file names more than {MOST_BATCH_SPELLINGS:,} namespaces: send what differs from row to row as "
                "the id.",
                reason=Reason.TOO_MANY_NAMESPACES,
            )
        folded = fold_namespace(spelling)
        known, first_row = self._first.setdefault(folded, (spelling, row))
        if first_row == row and spelling < known:
            self._first[folded] = spelling, row

    def sent(self) -> NamespaceUse:
        """Return what was seen so far."""
        return NamespaceUse(
            tuple(spelling for spelling, _ in self._first.values()), frozenset(self._spellings)
        )


def _item(item: object, path: FieldPath) -> dict[str, Any]:
    if not isinstance(item, dict) and teaches_nothing(item):
        item = {}
    if not isinstance(item, dict):
        raise TypeConflictError(path, "object", _kind(item))
    kept: Mapping[str, Any] = {name: member for name, member in item.items() if not teaches_nothing(member)}
    identity_id = identity_text(kept.get("id"), (*path, "id"))
    if identity_id is None:
        raise _invalid(path, "has no id")
    for name, member in kept.items():
        inside = (*path, name)
        if name not in IDENTITY_MEMBERS:
            raise _invalid(inside, f"is unknown: an identity has {', '.join(IDENTITY_MEMBERS)}")
        if name == "primary" and not isinstance(member, bool):
            raise TypeConflictError(inside, BOOLEAN, _kind(member))
        if name == "authenticatedState" and member not in AUTHENTICATED_STATES:
            raise _invalid(
                inside, f"must be one of {', '.join(AUTHENTICATED_STATES)}, not {str(member)[:40]!r}"
            )
    return {**kept, "id": identity_id}


@lru_cache(1024)  # what is sound is remembered; an exception is not
def _check_namespace(namespace: str) -> None:
    # A key is computed of namespace, NUL and id: with a NUL inside, two identities could share one.
    if not namespace or "\0" in namespace:
        raise _invalid((IDENTITY_MAP, namespace), "has an empty namespace or one with a NUL character")
    check_value(namespace, TEXT, (IDENTITY_MAP, ascii(namespace)), set())


def check_segment_namespaces(namespaces: Iterable[str]) -> None:
    """Refuse a namespace that not every store can keep; they are map keys that have been checked.

    Raises:
        ValueRefusedError: One has a NUL character.
    """
    for namespace in namespaces:
        if "\0" in namespace:
            raise segment_namespace_refused(namespace)


def segment_namespace_refused(namespace: str) -> ValueRefusedError:
    """Return the refusal of a namespace with a NUL character."""
    return ValueRefusedError((SEGMENT_MEMBERSHIP, ascii(namespace)), "has a NUL character in its namespace")


def _invalid(path: FieldPath, complaint: str) -> ValueRefusedError:
    return ValueRefusedError(path, complaint, Reason.IDENTITY_INVALID)


_KINDS = {
    str: "string",
    bool: "boolean",
    dict: "object",
    list: "array",
    int: "double",
    float: "double",
    Decimal: "a decimal with a fraction",
}


def _kind(value: object) -> str:
    return _KINDS.get(type(value), type(value).__name__)


class DeclaredColumn(NamedTuple):
    """A declared identity field: its ids as text, one per row, null where it has none."""

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
    """The `Mention`s of several rows as columns; `stated` is a `LINK`, `digests` are its keys as bytes."""

    rows: pa.Array
    stated: pa.StructArray
    claims: pa.Array
    digests: list[bytes]


def identify(sent: pa.Array | None, declared: Sequence[DeclaredColumn], count: int) -> Identified | None:
    """Find what `resolve` finds, for all rows of a Parquet batch at once.

    It takes only batches of which no row is refused. The caller reads any other row by row, which finds the row and the
    reason of each refusal.

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
    """Return the identities in a checked `identityMap`, ordered by row and namespace; None if one must be refused."""
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
    """Return the mentions of all parts, ordered by row, and within a row in the order of the parts."""
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


# --- Primary identities and links ---

_Chosen = tuple[pa.Array, pa.Array, list[int]]
"""Per row the index of its primary mention; the indices of the links, and how many of them each row has."""


def _declared_first(mentions: _Mentions, count: int) -> _Chosen | None:
    """Choose primaries and links where all places are declared fields of different namespaces, so no identity has two.

    None where a row has no primary identity.
    """
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
    """Choose primaries and links row by row.

    None where a row has no or two primary identities, or an identity has different spellings or states in its places.
    """
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
