"""What an export keeps: the fields that its request names (S23 to S25), and the profiles in its segments (S21)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from itertools import chain
from typing import Any

from profile_export.domain.catalog.batches import BATCH_ID, PROFILE_ID
from profile_export.domain.errors import FieldViolation, InvalidArgumentError
from profile_export.domain.merging.identity import fold_namespace
from profile_export.domain.schemas.types import (
    IDENTITY_MAP,
    IDENTITY_MEMBERS,
    TIME_SERIES_EVENTS,
    ArrayType,
    FieldPath,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
    Scalar,
    identity_item_type,
    identity_map_type,
)

UNKNOWN_FIELD = "UNKNOWN_FIELD"
MOST_MAPS_SQUARED = 100_000
"""How much paths through maps within maps may ask for. What is kept of each map says what is kept of all maps below."""

# The older layout of a profile had a list `identities`; the guide's examples still select from it (S25).
_IDENTITIES = "identities"
_ALIASES: Mapping[FieldPath, tuple[str, ...]] = {
    (_IDENTITIES,): IDENTITY_MEMBERS,
    (_IDENTITIES, "id"): ("id",),
    (_IDENTITIES, "authenticatedState"): ("authenticatedState",),
    (_IDENTITIES, "primary"): ("primary",),
    (_IDENTITIES, "namespace"): ("id",),
    (_IDENTITIES, "namespace", "code"): ("id",),
    (IDENTITY_MAP,): IDENTITY_MEMBERS,
}


@dataclass(frozen=True, slots=True)
class IdentitySelection:
    """What is kept of an `identityMap`: `members` of every item, and those under `namespaces` of items there (S25).

    Nothing at all means that there is no such column.
    """

    members: tuple[str, ...] = ()
    namespaces: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def any_members(self) -> tuple[str, ...]:
        """The members that some item may have, in their order."""
        return _ordered({*self.members, *chain.from_iterable(self.namespaces.values())})

    @property
    def type(self) -> MapType | None:
        """The type of the column; None if there is none."""
        whole = identity_map_type(self.any_members)
        if not self.namespaces:
            return whole if self.members else None
        keys = {
            namespace: ArrayType(identity_item_type(_ordered({*self.members, *members})))
            for namespace, members in self.namespaces.items()
        }
        others = ArrayType(identity_item_type(self.members)) if self.members else None
        return MapSelection(whole.value, keys, others)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept: a subtree of the union schema without `identityMap`, and what is kept of that map."""

    fields: ObjectType
    identities: IdentitySelection


@dataclass(frozen=True, slots=True)
class UnknownPath:
    """A field path that no source has, and the union schema that it was looked for in."""

    path: str
    schema: ObjectType

    def candidates(self) -> list[str]:
        """Return the paths that it may have been meant for: all that are known, also behind the keys that it names."""
        known = known_paths(self.schema)
        member: FieldType | None = self.schema
        names = _names(self.path)
        for depth, name in enumerate(names):
            while isinstance(member, ArrayType):
                member = member.item
            if isinstance(member, MapType):
                member = member.value
                known += _walk(member, ".".join(names[: depth + 1]) + ".")
            else:
                member = member.fields.get(name) if isinstance(member, ObjectType) else None
        return known


class UnknownFieldError(InvalidArgumentError):
    """A field of a request names a path that no source has. Who tells the caller adds the nearest known path."""

    def __init__(self, where: str, unknown: UnknownPath) -> None:
        description = f"no source has a field '{unknown.path}'."
        super().__init__(
            UNKNOWN_FIELD,
            f"{where}: {description}",
            metadata={"field": where, "path": unknown.path},
            violations=(FieldViolation(where, description),),
        )
        self.where, self.unknown = where, unknown

    def with_nearest(self, nearest: str) -> InvalidArgumentError:
        """Return the same refusal with the known path that is nearest."""
        path = self.unknown.path
        way_out = f"the nearest known path is '{nearest}'"
        if path in {BATCH_ID, PROFILE_ID}:
            way_out = "each exported row has it without being asked for"
        description = f"no source has a field '{path}'; {way_out}."
        return InvalidArgumentError.of_field(
            self.where, description, UNKNOWN_FIELD, path=path, nearest=nearest
        )


def select_fields(
    schema: ObjectType,
    paths: Sequence[str],
    request_field: str,
    spellings: Mapping[str, Mapping[str, str]] | None = None,
) -> Selection:
    """Resolve field paths against a union schema; no path means every field (S26).

    Args:
        schema: The union schema of the class, with `identityMap`.
        paths: Dotted paths; blanks around them do not count. Behind a map comes a key of it.
        request_field: Where the paths stand in the request, for messages: `spec.fields`.
        spellings: As `Snapshot` has them: a key that is a namespace is found without regard to case (S2). None takes
            keys as they are.

    Raises:
        UnknownFieldError: A path is unknown.
        InvalidArgumentError: A path is `timeSeriesEvents`, or paths lead through too many maps within maps.
    """
    attributes = ObjectType({name: member for name, member in schema.fields.items() if name != IDENTITY_MAP})
    if not paths:
        return Selection(attributes, IdentitySelection(IDENTITY_MEMBERS))
    wanted = _Wanted()
    members: set[str] = set()
    namespaces: dict[str, set[str]] = {}
    maps_squared = 0
    for index, text in enumerate(paths):
        path, maps = _resolved(schema, text, f"{request_field}[{index}]", spellings or {})
        maps_squared += maps**2
        if path in _ALIASES:
            members.update(_ALIASES[path])
        elif path[0] == IDENTITY_MAP:
            namespaces.setdefault(path[1], set()).update(path[2:] or IDENTITY_MEMBERS)
        else:
            wanted.add(path)
    if maps_squared > MOST_MAPS_SQUARED:
        raise InvalidArgumentError.of_field(
            request_field,
            f"lead through too many maps within maps: the squares of how many each path leads through add up to "
            f"{maps_squared:,}, and may to {MOST_MAPS_SQUARED:,}. Name fewer keys, or the map that they are in.",
            "TOO_MANY_ITEMS",
            limit=str(MOST_MAPS_SQUARED),
        )
    chosen = {namespace: _ordered(found) for namespace, found in namespaces.items()}
    return Selection(_Pruning().of_object(attributes, wanted), IdentitySelection(_ordered(members), chosen))


def _resolved(
    schema: ObjectType, text: str, where: str, spellings: Mapping[str, Mapping[str, str]]
) -> tuple[FieldPath, int]:
    """Return a path as it is known, or an alias, and how many maps it leads through; errors as `select_fields`."""
    path = _registered(_names(text), spellings)
    if path[0] == TIME_SERIES_EVENTS:
        raise InvalidArgumentError.of_field(
            where, "events are switched on and their fields chosen by 'event_list'."
        )
    return path, 0 if path in _ALIASES else _maps_on(schema, path, where)


def _names(text: str) -> FieldPath:
    return tuple(text.strip().split("."))


def _ordered(members: Collection[str]) -> tuple[str, ...]:
    return tuple(member for member in IDENTITY_MEMBERS if member in members)


def _registered(path: FieldPath, spellings: Mapping[str, Mapping[str, str]]) -> FieldPath:
    """Spell a namespace that a path goes to as it is registered."""
    if path[0] not in spellings or len(path) == 1:
        return path
    return (path[0], spellings[path[0]].get(fold_namespace(path[1]), path[1]), *path[2:])


def unknown_paths(schema: ObjectType, paths: Sequence[str], request_field: str) -> Sequence[UnknownPath]:
    """Return the paths that `select_fields` refuses as unknown; InvalidArgumentError if one is `timeSeriesEvents`."""
    unknown = []
    for index, path in enumerate(paths):
        try:
            _resolved(schema, path, f"{request_field}[{index}]", {})
        except UnknownFieldError:
            unknown.append(UnknownPath(path, schema))
    return unknown


def _maps_on(schema: ObjectType, path: FieldPath, where: str) -> int:
    """Return how many maps a path leads through.

    Raises:
        UnknownFieldError: It leads nowhere.
    """
    member: FieldType = schema
    maps = 0
    for name in path:
        while isinstance(member, ArrayType):
            member = member.item
        if isinstance(member, MapType):
            member = member.value
            maps += 1
            continue
        found = member.fields.get(name) if isinstance(member, ObjectType) else None
        if found is None:
            raise UnknownFieldError(where, UnknownPath(".".join(path), schema))
        member = found
    return maps


class _Wanted:
    """What paths name below a place, as a tree: `whole` says that one of them ends there.

    `not_by_key` is what is kept there if every entry of a map keeps what is wanted of any, once that has been found.
    """

    __slots__ = ("members", "not_by_key", "whole")

    def __init__(self) -> None:
        self.whole = False
        self.not_by_key: FieldType | None = None
        self.members: dict[str, _Wanted] = {}

    def add(self, path: FieldPath) -> None:
        """Add a path from here."""
        place = self
        for name in path:
            place = place.members.setdefault(name, _Wanted())
        place.whole = True

    @classmethod
    def of_all(cls, some: Collection[_Wanted]) -> _Wanted:
        """Return what any of them names."""
        if len(some) == 1:
            return next(iter(some))
        together = cls()
        below: dict[str, list[_Wanted]] = {}
        for one in some:
            together.whole |= one.whole
            for name, member in one.members.items():
                below.setdefault(name, []).append(member)
        together.members = {name: cls.of_all(found) for name, found in below.items()}
        return together


class _Pruning:
    """Types cut down to what is wanted of them: a path that ends at one keeps all of it."""

    def __init__(self) -> None:
        # An object behind a map is pruned once for each key: its names are numbered once.
        self._places: dict[int, Mapping[str, int]] = {}

    def of(self, member: FieldType, wanted: _Wanted, *, by_key: bool = True) -> FieldType:
        """Cut any type down; without `by_key` every entry of a map keeps what is wanted of any."""
        if isinstance(member, ArrayType):
            return ArrayType(self.of(member.item, wanted, by_key=by_key))
        if by_key:
            return self._cut(member, wanted, by_key=True)
        # Each map above asks for it.
        if wanted.not_by_key is None:
            wanted.not_by_key = self._cut(member, wanted, by_key=False)
        return wanted.not_by_key

    def _cut(self, member: FieldType, wanted: _Wanted, *, by_key: bool) -> FieldType:
        if wanted.whole:
            return member
        if isinstance(member, MapType):
            # Not by key below: maps within maps would double what there is to cut at each of their levels.
            every = self.of(member.value, _Wanted.of_all(wanted.members.values()), by_key=False)
            if not by_key:
                return MapType(every)
            keys = {key: self.of(member.value, behind) for key, behind in wanted.members.items()}
            return MapSelection(every, keys)
        return self.of_object(member, wanted, by_key=by_key) if isinstance(member, ObjectType) else member

    def of_object(self, schema: ObjectType, wanted: _Wanted, *, by_key: bool = True) -> ObjectType:
        """Keep of an object the members that are wanted, in its own order."""
        places = self._places.get(id(schema))
        if places is None:
            places = self._places[id(schema)] = {name: place for place, name in enumerate(schema.fields)}
        names = sorted(wanted.members, key=places.__getitem__)
        return ObjectType(
            {name: self.of(schema.fields[name], wanted.members[name], by_key=by_key) for name in names}
        )


def known_paths(schema: ObjectType) -> list[str]:
    """Return every path that `fields` may name, objects as well as their members, through arrays."""
    return list(_walk(schema, ""))


def _walk(member: FieldType, prefix: str) -> Iterator[str]:
    while isinstance(member, ArrayType):
        member = member.item
    if isinstance(member, ObjectType):
        for name, field in member.fields.items():
            yield f"{prefix}{name}"
            if not isinstance(field, Scalar):
                yield from _walk(field, f"{prefix}{name}.")


# --- Segments: which memberships let a profile in (S21) ---

DEFAULT_NAMESPACE = "ups"


class MembershipStatus(StrEnum):
    """The `status` of an entry in `segmentMembership`; an entry without one counts as REALIZED (S15)."""

    REALIZED = "realized"
    EXISTING = "existing"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class SegmentFilter:
    """A segment, and the statuses by which a profile is in it. The namespace is found without regard to case."""

    segment_id: str
    namespace: str = DEFAULT_NAMESPACE
    statuses: tuple[MembershipStatus, ...] = (MembershipStatus.REALIZED, MembershipStatus.EXISTING)


@dataclass(frozen=True, slots=True)
class SegmentSelection:
    """A profile needs to be in one of `segments`, last qualified within [start, end).

    None for an end leaves it open; with any end an entry without a time is outside.
    """

    segments: tuple[SegmentFilter, ...]
    start_time: datetime | None = None
    end_time: datetime | None = None

    def registered(self, spellings: Mapping[str, str]) -> SegmentSelection:
        """Return the same with namespaces as registered, given by folded name; nobody is in an unregistered one."""
        found = (
            replace(one, namespace=spellings.get(fold_namespace(one.namespace), one.namespace))
            for one in self.segments
        )
        return replace(self, segments=tuple(found))

    def entries(self, memberships: Mapping[str, Any]) -> Mapping[int, Mapping[str, Any]]:
        """Return a profile's entries for the segments, by their position; `memberships` is merged and without nulls."""
        found = {}
        for position, one in enumerate(self.segments):
            entry = memberships.get(one.namespace, {}).get(one.segment_id)
            if entry is not None:
                found[position] = entry
        return found

    def admits(self, position: int, entry: Mapping[str, Any]) -> bool:
        """Say whether an entry for the segment at a position lets its profile in."""
        status = entry.get("status", MembershipStatus.REALIZED)
        if status not in self.segments[position].statuses:
            return False
        if self.start_time is None and self.end_time is None:
            return True
        time = entry.get("lastQualificationTime")
        return (
            time is not None
            and (self.start_time is None or self.start_time <= time)
            and (self.end_time is None or time < self.end_time)
        )


def check_segments(segments: Sequence[SegmentFilter], where: str) -> None:
    """Raise InvalidArgumentError, which names the entry below `where`, for a segment without an id or named twice."""
    seen: dict[tuple[str, str], int] = {}
    for index, one in enumerate(segments):
        if not one.segment_id:
            field = f"{where}[{index}].segment_id"
            raise InvalidArgumentError.of_field(field, "is required.", "FIELD_REQUIRED")
        key = (fold_namespace(one.namespace), one.segment_id)
        first = seen.setdefault(key, index)
        if first != index:
            raise InvalidArgumentError.of_field(
                f"{where}[{index}]",
                f"names the same segment as {where}[{first}]; give it all statuses there.",
            )
