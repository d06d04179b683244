"""The types of fields: how they are learned from JSON, how they grow by union, and how a field path finds them.

The schema of a dataset is an `ObjectType`. Every field is optional. What counts as known, as a conflict and as a
leaf, say S12 to S14 and S23.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain, islice
from typing import Any

from profile_export.domain.errors import FailedPreconditionError, InvalidArgumentError


class ScalarKind(StrEnum):
    """The kinds of single values. The value is the word used for it on the wire and in messages."""

    TEXT = "string"
    BOOLEAN = "boolean"
    LONG = "long"
    DOUBLE = "double"
    DATE = "date"
    TIMESTAMP = "timestamp"
    """An instant in UTC with microseconds."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A single value.

    `beyond_doubles` says of a long whether any value of it that was accepted is one that no double holds (S27).
    """

    kind: ScalarKind
    beyond_doubles: bool = False

    def __str__(self) -> str:
        return self.kind.value


@dataclass(frozen=True, slots=True)
class DecimalType:
    """A decimal number with `precision` digits in all, `scale` of them behind the point; at most 38 digits."""

    precision: int
    scale: int

    def __str__(self) -> str:
        return f"decimal({self.precision},{self.scale})"


@dataclass(frozen=True, slots=True)
class ArrayType:
    """A list of items of one type, merged as a whole."""

    item: FieldType

    def __str__(self) -> str:
        return f"array<{self.item}>"


@dataclass(frozen=True, slots=True)
class MapType:
    """Text keys to values of one type, merged per key."""

    value: FieldType

    def kept(self, key: str) -> FieldType | None:  # noqa: ARG002 - what a selection needs
        """Return what is kept of the entry under a key; None if nothing is."""
        return self.value

    def __str__(self) -> str:
        return f"map<{self.value}>"


@dataclass(frozen=True, slots=True)
class MapSelection(MapType):
    """What an export keeps of a map: of the entry under each of `keys` what is said there, of all others `others`.

    `value` holds all of these; `others` None keeps none but those under `keys` (S23).
    """

    keys: Mapping[str, FieldType]
    others: FieldType | None = None

    def kept(self, key: str) -> FieldType | None:
        """Return what is kept of the entry under a key."""
        return self.keys.get(key, self.others)


@dataclass(frozen=True, slots=True)
class ObjectType:
    """Named fields, merged leaf by leaf. `fields` keeps the order in which they became known."""

    fields: Mapping[str, FieldType]

    def __str__(self) -> str:
        return "object"


FieldType = Scalar | DecimalType | ArrayType | MapSelection | MapType | ObjectType
FieldPath = tuple[str, ...]

TEXT = Scalar(ScalarKind.TEXT)
BOOLEAN = Scalar(ScalarKind.BOOLEAN)
LONG = Scalar(ScalarKind.LONG)
LARGE_LONG = Scalar(ScalarKind.LONG, beyond_doubles=True)
DOUBLE = Scalar(ScalarKind.DOUBLE)
DATE = Scalar(ScalarKind.DATE)
TIMESTAMP = Scalar(ScalarKind.TIMESTAMP)
EMPTY = ObjectType({})

MAX_DECIMAL_DIGITS = 38
LONG_DIGITS = 19
EXACT_IN_A_DOUBLE = 2**53

IDENTITY_MAP = "identityMap"
SEGMENT_MEMBERSHIP = "segmentMembership"
TIME_SERIES_EVENTS = "timeSeriesEvents"
EVENT_ID = "_id"
EVENT_TIME = "timestamp"

IDENTITY_MEMBERS = ("id", "authenticatedState", "primary")


def identity_item_type(members: Sequence[str]) -> ObjectType:
    """Return the type of an item of an `identityMap` that has these members."""
    types = {"id": TEXT, "authenticatedState": TEXT, "primary": BOOLEAN}
    return ObjectType({member: types[member] for member in members})


def identity_map_type(members: Sequence[str]) -> MapType:
    """Return the type of an `identityMap` whose items have these members."""
    return MapType(ArrayType(identity_item_type(members)))


# The XDM types of the two maps that every union schema carries (adobe/xdm identityitem and segmentmembership).
IDENTITY_MAP_TYPE = identity_map_type(IDENTITY_MEMBERS)
SEGMENT_MEMBERSHIP_TYPE = MapType(
    MapType(ObjectType({"lastQualificationTime": TIMESTAMP, "status": TEXT, "validUntil": TIMESTAMP}))
)


@dataclass(frozen=True, slots=True)
class Holder:
    """A dataset or schema that has a field, as conflicts name it; without a name by its id alone."""

    id: str
    name: str = ""

    def __str__(self) -> str:
        return f"'{self.name}' ({self.id})" if self.name else f"'{self.id}'"


class TypeConflictError(InvalidArgumentError):
    """Two types for one field that do not go together."""

    def __init__(
        self, path: FieldPath, known: FieldType | str, found: FieldType | str, complaint: str = ""
    ) -> None:
        dotted = dotted_path(path)
        loss = _loss(known, found)
        way_out = f" Send it as {known}, or in a field of another name." if loss else ""
        super().__init__(
            "NUMBER_NOT_EXACT" if (known, found) == (DOUBLE, LARGE_LONG) else "FIELD_TYPE_CONFLICT",
            f"The field '{dotted}' {complaint or f'is {found}, but it is known as {known}'}{loss}.{way_out}",
            metadata={"path": dotted, "type": str(found), "other_type": str(known)},
        )
        self.path, self.known, self.found = path, known, found
        self.facts = ""

    def as_precondition(self, way_out: str = "") -> FailedPreconditionError:
        """Return the same conflict where the request is right in itself, but not beside what there is.

        `way_out` takes the place of the one that `between` names, where what it says cannot be done.
        """
        message = f"{self.facts} {way_out}" if way_out and self.facts else self.message
        return FailedPreconditionError(self.reason, message, metadata=self.metadata)

    def between(self, newcomer: Holder, other: Holder) -> TypeConflictError:
        """Return the same conflict, naming who brings a type and who has the other."""
        conflict = TypeConflictError(self.path, self.known, self.found)
        loss = _loss(self.known, self.found)
        same = "Send the same type"
        if loss:
            exact = self.known if self.found == DOUBLE else self.found
            same = f"Create the dataset that has a double with the field declared as {exact}"
            if DOUBLE not in (self.known, self.found):
                same = "Declare it as text in both"
        types = f"is {self.found} in {newcomer}, but {self.known} in {other}"
        conflict.facts = f"The field '{dotted_path(self.path)}' {types}{loss}."
        conflict.message = (
            f"{conflict.facts} {same}, or create the dataset with the tag unifiedProfile: enabled:false."
        )
        conflict.args = (conflict.message,)
        conflict.metadata |= {"dataset_id": newcomer.id, "other_dataset_id": other.id}
        return conflict


def _loss(known: FieldType | str, found: FieldType | str) -> str:
    """Say which digits two types of numbers would cost each other (S27); empty where that is not what is wrong."""
    both = (known, found)
    if LARGE_LONG in both and DOUBLE in both:
        return ", and no double holds some of these integers"
    if not all(map(_is_number, both)) or (LONG in both and DOUBLE in both):
        return ""
    if DOUBLE in both:
        return ", whose digits no double keeps"
    return f", and both together have more than {MAX_DECIMAL_DIGITS} digits"


def _is_number(kind: FieldType | str) -> bool:
    return isinstance(kind, DecimalType) or kind in (LONG, LARGE_LONG, DOUBLE)


def differs_in_case(path: FieldPath, known: str) -> TypeConflictError:
    """Return the conflict of a field with one beside it, whose name is `known`."""
    complaint = f"differs from '{known}' beside it in case alone: write it as that, or choose another name"
    return TypeConflictError(path, f"'{known}'", f"'{path[-1]}'", complaint)


def dotted_path(path: FieldPath) -> str:
    """Write a field path as people do: `personalEmail.address`, with `[]` behind an array."""
    return ".".join(path).replace(".[]", "[]")


def union_types(known: FieldType, found: FieldType, path: FieldPath = ()) -> FieldType:
    """Return the type that holds every value of both.

    Objects grow field by field, and numbers widen where every value stays exact (S27): long to double while a double
    holds every one of them, long to decimal, decimals to more digits.

    Raises:
        TypeConflictError: No type holds both, or two names in one object differ in case alone (many engines,
            ours among them, cannot tell such names apart).
    """
    match known, found:
        case ObjectType(), ObjectType():
            return union_objects(known, found, path)
        case ArrayType(), ArrayType():
            item = union_types(known.item, found.item, (*path, "[]"))
            return known if item is known.item else ArrayType(item)
        case MapType(), MapType():
            value = union_types(known.value, found.value, (*path, "*"))
            return known if value is known.value else MapType(value)
        case _ if known == found:
            return known
    wider = _wider_number(known, found)
    if wider is None:
        raise TypeConflictError(path, known, found)
    return wider


def union_objects(known: ObjectType, found: ObjectType, path: FieldPath = ()) -> ObjectType:
    """Return the object type with the fields of both, errors as `union_types`; `known` if `found` adds nothing."""
    growing = GrowingObject(known, path)
    growing.add(found)
    return growing.type()


class GrowingObject:
    """An object type that takes in one after the other, each in the time that it takes to look through that one."""

    __slots__ = ("_fields", "_folded", "_known", "_path")

    def __init__(self, known: ObjectType, path: FieldPath = ()) -> None:
        self._known, self._path = known, path
        self._fields: dict[str, FieldType | GrowingObject] | None = None  # a copy, once something has grown
        self._folded: dict[str, str] | None = None

    def add(self, found: ObjectType) -> None:
        """Take in the fields of another type, errors as `union_types`; after one nothing may be added any more."""
        fields: Mapping[str, FieldType | GrowingObject] = self._fields or self._known.fields
        for name, kind in found.fields.items():
            known = fields.get(name)
            if known is kind:
                continue
            if known is None:
                self._check_name(name)
                joined: FieldType | GrowingObject = kind
            elif isinstance(kind, ObjectType) and isinstance(known, ObjectType | GrowingObject):
                joined = (
                    known if isinstance(known, GrowingObject) else GrowingObject(known, (*self._path, name))
                )
                joined.add(kind)
            else:
                there = known.type() if isinstance(known, GrowingObject) else known
                joined = union_types(there, kind, (*self._path, name))
            if joined is not known:
                fields = self._fields = self._fields or dict(self._known.fields)
                self._fields[name] = joined

    def _check_name(self, name: str) -> None:
        if self._folded is None:
            self._folded = {spelled.casefold(): spelled for spelled in self._known.fields}
        spelled = self._folded.setdefault(name.casefold(), name)
        if spelled != name:
            raise differs_in_case((*self._path, name), spelled)

    def at(self, path: FieldPath) -> FieldType | None:
        """Return the type of the field at a path, as `type_at` has it."""
        place = self
        for depth, name in enumerate(path):
            member = (place._fields or place._known.fields).get(name)
            if not isinstance(member, GrowingObject):
                return None if member is None else type_at(ObjectType({name: member}), path[depth:])
            place = member
        return place.type()

    def type(self) -> ObjectType:
        """Return what it is by now; what it began with if nothing was added."""
        if self._fields is None:
            return self._known
        fields = {
            name: member.type() if isinstance(member, GrowingObject) else member
            for name, member in self._fields.items()
        }
        grown = len(fields) > len(self._known.fields) or any(
            fields[name] is not member for name, member in self._known.fields.items()
        )
        return ObjectType(fields) if grown else self._known


def _wider_number(known: FieldType, found: FieldType) -> FieldType | None:
    match known, found:
        case DecimalType(), DecimalType():
            scale = max(known.scale, found.scale)
            precision = max(known.precision - known.scale, found.precision - found.scale) + scale
            return DecimalType(precision, scale) if precision <= MAX_DECIMAL_DIGITS else None
        case (DecimalType() as decimal, Scalar(ScalarKind.LONG)) | (
            Scalar(ScalarKind.LONG),
            DecimalType() as decimal,
        ):
            return _wider_number(decimal, DecimalType(LONG_DIGITS, 0))
        case Scalar(ScalarKind.LONG), Scalar(ScalarKind.LONG):
            return LARGE_LONG
        case (Scalar(ScalarKind.LONG) as long, Scalar(ScalarKind.DOUBLE)) | (
            Scalar(ScalarKind.DOUBLE),
            Scalar(ScalarKind.LONG) as long,
        ):
            return None if long.beyond_doubles else DOUBLE
    return None


def nested(path: FieldPath, kind: FieldType) -> ObjectType:
    """Return the object type that holds one field, at a path of at least one name."""
    *parents, name = path
    fields = ObjectType({name: kind})
    for parent in reversed(parents):
        fields = ObjectType({parent: fields})
    return fields


def leaves(schema: ObjectType, path: FieldPath = ()) -> Iterator[tuple[FieldPath, FieldType]]:
    """Walk the leaves of a schema, depth first: everything but objects is one (S12)."""
    for name, field_type in schema.fields.items():
        if isinstance(field_type, ObjectType):
            yield from leaves(field_type, (*path, name))
        else:
            yield (*path, name), field_type


def type_at(schema: ObjectType, path: FieldPath) -> FieldType | None:
    """Return the type of the field at a path, through arrays (`[]`) and maps (any key); None if it is not known."""
    member: FieldType | None = schema
    for name in path:
        match member:
            case ObjectType(fields):
                member = fields.get(name)
            case ArrayType(item):
                member = item
            case MapType(value):
                member = value
            case _:
                return None
    return member


def written(kind: FieldType) -> FieldType:
    """Return a type as a file has it: with whole maps, whatever is chosen of them."""
    match kind:
        case ObjectType(fields):
            return ObjectType({name: written(member) for name, member in fields.items()})
        case ArrayType(item):
            return ArrayType(written(item))
        case MapType(value):
            return MapType(written(value))
        case _:
            return kind


def to_json(field_type: FieldType) -> Any:
    """Write a type as plain JSON, order of fields included: a word for a scalar, one-key objects for the rest."""
    match field_type:
        case ObjectType(fields):
            return {"object": {name: to_json(member) for name, member in fields.items()}}
        case ArrayType(item):
            return {"array": to_json(item)}
        case MapSelection(value, keys, others):
            chosen = {key: to_json(kept) for key, kept in keys.items()}
            return {"map": to_json(value), "keys": chosen, "others": others and to_json(others)}
        case MapType(value):
            return {"map": to_json(value)}
        case DecimalType(precision, scale):
            return {"decimal": [precision, scale]}
        case scalar:
            return scalar.kind.value


def all_within(kind: FieldType) -> Iterator[FieldType]:
    """Walk a type and the types within it, at all depths."""
    waiting = [kind]
    while waiting:
        within = waiting.pop()
        yield within
        if isinstance(within, ObjectType):
            waiting += within.fields.values()
        elif isinstance(within, ArrayType):
            waiting.append(within.item)
        elif isinstance(within, MapType):
            waiting.append(within.value)


WIDE = 500
"""Each step over so many types takes a few milliseconds."""


def is_wide(schemas: Iterable[ObjectType]) -> bool:
    """Whether schemas hold more than `WIDE` types together, at any depth; the walk ends there."""
    kinds = chain.from_iterable(map(all_within, schemas))
    return any(True for _ in islice(kinds, WIDE, None))
