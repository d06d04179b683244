"""Which fields an export keeps: field paths of a request become a subtree of the union schema (S23 to S25)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.identity import fold_namespace
from profile_export.domain.schema import (
    IDENTITY_MAP,
    IDENTITY_MEMBERS,
    TIME_SERIES_EVENTS,
    ArrayType,
    FieldPath,
    FieldType,
    MapSelection,
    MapType,
    ObjectType,
    identity_item_type,
    identity_map_type,
)

UNKNOWN_FIELD = "UNKNOWN_FIELD"

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

# Of an unknown path that is so much longer than any known one, only the beginning is compared: it is no slip of the
# pen, and comparing takes time by its length.
_MOST_SURPLUS = 50


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
        wanted = {*self.members, *(member for members in self.namespaces.values() for member in members)}
        return tuple(member for member in IDENTITY_MEMBERS if member in wanted)

    @property
    def type(self) -> MapType | None:
        """The type of the column; None if there is none."""
        whole = identity_map_type(self.any_members)
        if not self.namespaces:
            return whole if self.members else None
        keys = {
            namespace: ArrayType(
                identity_item_type([name for name in IDENTITY_MEMBERS if name in {*self.members, *members}])
            )
            for namespace, members in self.namespaces.items()
        }
        others = ArrayType(identity_item_type(self.members)) if self.members else None
        return MapSelection(whole.value, keys, others)


@dataclass(frozen=True, slots=True)
class Selection:
    """What is kept: a subtree of the union schema without `identityMap`, and what is kept of that map."""

    fields: ObjectType
    identities: IdentitySelection


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
        InvalidArgumentError: A path is unknown (with the nearest known one) or is `timeSeriesEvents`.
    """
    attributes = ObjectType({name: member for name, member in schema.fields.items() if name != IDENTITY_MAP})
    if not paths:
        return Selection(attributes, IdentitySelection(IDENTITY_MEMBERS))
    wanted: list[FieldPath] = []
    members: set[str] = set()
    namespaces: dict[str, set[str]] = {}
    for index, text in enumerate(paths):
        path = _resolved(schema, text, f"{request_field}[{index}]", spellings or {})
        if path in _ALIASES:
            members.update(_ALIASES[path])
        elif path[0] == IDENTITY_MAP:
            namespaces.setdefault(path[1], set()).update(path[2:] or IDENTITY_MEMBERS)
        else:
            wanted.append(path)
    chosen = {namespace: _ordered(found) for namespace, found in namespaces.items()}
    return Selection(_prune_object(attributes, wanted), IdentitySelection(_ordered(members), chosen))


def _resolved(
    schema: ObjectType, text: str, where: str, spellings: Mapping[str, Mapping[str, str]]
) -> FieldPath:
    """Return a path as it is known, or an alias.

    Raises:
        InvalidArgumentError: As `select_fields`.
    """
    path = _registered(tuple(text.strip().split(".")), spellings)
    if path[0] == TIME_SERIES_EVENTS:
        raise InvalidArgumentError.of_field(
            where, "events are switched on and their fields chosen by 'event_list'."
        )
    if path not in _ALIASES:
        _check_path(schema, path, where)
    return path


def _ordered(members: Collection[str]) -> tuple[str, ...]:
    return tuple(member for member in IDENTITY_MEMBERS if member in members)


def _registered(path: FieldPath, spellings: Mapping[str, Mapping[str, str]]) -> FieldPath:
    """Spell a namespace that a path goes to as it is registered."""
    if path[0] not in spellings or len(path) == 1:
        return path
    return (path[0], spellings[path[0]].get(fold_namespace(path[1]), path[1]), *path[2:])


@dataclass(frozen=True, slots=True)
class UnknownPath:
    """A field path that no source has, and the nearest one that some has."""

    path: str
    nearest: str


def unknown_paths(schema: ObjectType, paths: Sequence[str], request_field: str) -> Sequence[UnknownPath]:
    """Return the paths that `select_fields` would refuse as unknown.

    Raises:
        InvalidArgumentError: A path is wrong in another way.
    """
    unknown = []
    for index, path in enumerate(paths):
        try:
            _resolved(schema, path, f"{request_field}[{index}]", {})
        except InvalidArgumentError as error:
            if error.reason != UNKNOWN_FIELD:
                raise
            unknown.append(UnknownPath(path, error.metadata["nearest"]))
    return unknown


def _check_path(schema: ObjectType, path: FieldPath, where: str) -> None:
    text = ".".join(path)
    member: FieldType = schema
    known = known_paths(schema)
    for depth, name in enumerate(path):
        while isinstance(member, ArrayType):
            member = member.item
        if isinstance(member, MapType):
            member = member.value
            known += _walk(member, ".".join(path[: depth + 1]) + ".")
            continue
        found = member.fields.get(name) if isinstance(member, ObjectType) else None
        if found is None:
            nearest = _nearest(text, known)
            raise InvalidArgumentError.of_field(
                where,
                f"no source has a field '{text}'; the nearest known path is '{nearest}'.",
                reason=UNKNOWN_FIELD,
                path=text,
                nearest=nearest,
            )
        member = found


def _prune(member: FieldType, wanted: Sequence[FieldPath]) -> FieldType:
    """Keep of a type what the paths name: a path that ends here keeps all of it."""
    if isinstance(member, ArrayType):
        return ArrayType(_prune(member.item, wanted))
    if () in wanted:
        return member
    if isinstance(member, MapType):
        return _prune_map(member, wanted)
    return _prune_object(member, wanted) if isinstance(member, ObjectType) else member


def _prune_object(schema: ObjectType, wanted: Sequence[FieldPath]) -> ObjectType:
    return ObjectType(
        {
            name: _prune(field, [path[1:] for path in wanted if path[0] == name])
            for name, field in schema.fields.items()
            if any(path[0] == name for path in wanted)
        }
    )


def _prune_map(whole: MapType, wanted: Sequence[FieldPath]) -> MapSelection:
    """Keep of a map the keys that paths go to, each with what the paths behind it name."""
    behind: dict[str, list[FieldPath]] = {}
    for key, *rest in wanted:
        behind.setdefault(key, []).append(tuple(rest))
    every = [path for paths in behind.values() for path in paths]
    return MapSelection(
        _prune(whole.value, every), {key: _prune(whole.value, paths) for key, paths in behind.items()}
    )


def known_paths(schema: ObjectType) -> list[str]:
    """Return every path that `fields` may name, objects as well as their members, through arrays."""
    return list(_walk(schema, ""))


def _walk(member: FieldType, prefix: str) -> Iterator[str]:
    if isinstance(member, ArrayType):
        yield from _walk(member.item, prefix)
    elif isinstance(member, ObjectType):
        for name, field in member.fields.items():
            yield f"{prefix}{name}"
            yield from _walk(field, f"{prefix}{name}.")


def _nearest(text: str, known: Sequence[str]) -> str:
    compared = text[: max(map(len, known)) + _MOST_SURPLUS]
    return min(known, key=lambda path: (_edit_distance(compared, path), path.encode()))


def _edit_distance(one: str, other: str) -> int:
    """Count the characters to insert, delete or replace (Levenshtein)."""
    row = list(range(len(other) + 1))
    for index, character in enumerate(one, start=1):
        diagonal, row[0] = row[0], index
        for column, candidate in enumerate(other, start=1):
            diagonal, row[column] = (
                row[column],
                min(row[column] + 1, row[column - 1] + 1, diagonal + (character != candidate)),
            )
    return row[-1]
