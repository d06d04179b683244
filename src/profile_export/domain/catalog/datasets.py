"""Tenants, their datasets, the schemas that these follow, and the union of all schemas of one class (S11)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from hashlib import sha256

from profile_export.domain.catalog.allowances import check_declared_paths
from profile_export.domain.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from profile_export.domain.lists import ListFields, instant, truth, word
from profile_export.domain.schemas.learning import MAX_DEPTH, ValueRefusedError, check_name
from profile_export.domain.schemas.types import (
    EMPTY,
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    IDENTITY_MAP_TYPE,
    LARGE_LONG,
    LONG,
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIME_SERIES_EVENTS,
    TIMESTAMP,
    ArrayType,
    DecimalType,
    FieldPath,
    FieldType,
    GrowingObject,
    Holder,
    MapType,
    ObjectType,
    Scalar,
    TypeConflictError,
    leaves,
    nested,
    type_at,
    union_objects,
)

_TENANT_PART = re.compile(r"[A-Za-z0-9@_.-]{1,64}")
PROFILE_TAG = "unifiedProfile"
_UPSERTS = "isUpsert:true"
# As Adobe's Catalog writes them.
_OF_PROFILE_TAG = re.compile(r"(enabled|isUpsert):(true|false)|enabledAt:.+", re.DOTALL)
_ETAG_DIGITS = 24
_MOST_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Tenant:
    """Whose data it is. Nothing of one tenant is visible to another."""

    org: str = "default"
    sandbox: str = "prod"

    def __post_init__(self) -> None:
        for field, value in (("x-gw-ims-org-id", self.org), ("x-sandbox-name", self.sandbox)):
            if not _TENANT_PART.fullmatch(value):
                raise InvalidArgumentError.of_field(field, "must match [A-Za-z0-9@_.-]{1,64}.")


class DatasetKind(StrEnum):
    """What a dataset holds."""

    RECORD = "record"
    EVENT = "event"
    UNION = "union"
    """Merged profiles: written by export jobs only, and never a source (S11)."""


@dataclass(frozen=True, slots=True)
class IdentityField:
    """A field that holds an identity (S1)."""

    path: FieldPath
    namespace: str
    primary: bool = False


@dataclass(frozen=True, slots=True)
class FieldDeclaration:
    """A type that a dataset's owner says instead of having it learned."""

    path: FieldPath
    type: FieldType


@dataclass(frozen=True, slots=True)
class Schema:
    """What rows may hold: built in, or one version of a registered document.

    `kind` and `class_id` are None and empty for a component, which other documents name and no dataset can use.
    `document` is the text as registered, `rules` what rows are held to besides their types, a JSON Schema as text; both
    may be empty. `create_time` is None for what is built in.
    """

    id: str
    kind: DatasetKind | None
    fields: ObjectType
    class_id: str = ""
    title: str = ""
    version: int = 1
    document: str = ""
    rules: str = ""
    identity_fields: tuple[IdentityField, ...] = ()
    create_time: datetime | None = None


_XDM = "https://ns.adobe.com/xdm/context"
BUILT_IN_SCHEMAS = {
    schema.id: schema
    for schema in (
        Schema(
            f"{_XDM}/profile",
            DatasetKind.RECORD,
            ObjectType({IDENTITY_MAP: IDENTITY_MAP_TYPE, SEGMENT_MEMBERSHIP: SEGMENT_MEMBERSHIP_TYPE}),
            f"{_XDM}/profile",
            "XDM Individual Profile",
        ),
        Schema(
            f"{_XDM}/experienceevent",
            DatasetKind.EVENT,
            ObjectType({EVENT_ID: TEXT, EVENT_TIME: TIMESTAMP, IDENTITY_MAP: IDENTITY_MAP_TYPE}),
            f"{_XDM}/experienceevent",
            "XDM ExperienceEvent",
        ),
        Schema(
            f"{_XDM}/profile__union",
            DatasetKind.UNION,
            EMPTY,
            f"{_XDM}/profile",
            "XDM Individual Profile, union",
        ),
    )
}
PROFILE_CLASS = "_xdm.context.profile"
CLASSES = {PROFILE_CLASS: DatasetKind.RECORD, "_xdm.context.experienceevent": DatasetKind.EVENT}
"""The classes whose schemas a union schema merges, by the names that requests use."""


@dataclass(frozen=True, slots=True)
class SchemaRef:
    """Which schema a dataset follows; `content_type` may be empty."""

    id: str
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named table.

    `fields` is its schema as known so far, declared and built-in fields included; `iceberg` whether its batches are
    mirrored; `batch_retention` how long each counts from its ingest time on, None for ever. `delete_time` is None
    unless it is deleted. Until `purge_time` it can be brought back; None: it is there, or gone for good.
    """

    id: str
    name: str
    description: str
    schema: SchemaRef
    kind: DatasetKind
    tags: Mapping[str, tuple[str, ...]]
    identity_fields: tuple[IdentityField, ...]
    declared_fields: tuple[FieldDeclaration, ...]
    fields: ObjectType
    create_time: datetime
    update_time: datetime
    iceberg: bool = False
    batch_retention: timedelta | None = None
    delete_time: datetime | None = None
    purge_time: datetime | None = None

    @property
    def etag(self) -> str:
        """What is another one after each change but what batches and schemas teach, as HTTP writes a weak one."""
        changed = f"{self.id} {self.update_time.isoformat()} {self.delete_time}"
        return f'W/"{sha256(changed.encode()).hexdigest()[:_ETAG_DIGITS]}"'

    @property
    def is_source(self) -> bool:
        """Whether exports read it (S11)."""
        return is_source(self.kind, self.tags)

    @property
    def upserts(self) -> bool:
        """Whether a record patches the older ones of its identity instead of replacing them (S9)."""
        return _UPSERTS in self.tags.get(PROFILE_TAG, ())


_KINDS = word({kind.name: kind for kind in DatasetKind}, "DATASET_KIND_")
DATASET_LIST = ListFields(
    {"name": str, "kind": _KINDS, "schema_id": str, "create_time": instant},
    ("create_time", "update_time", "name"),
)
SCHEMA_LIST = ListFields(
    {"kind": _KINDS, "class_id": str, "built_in": truth, "create_time": instant}, ("create_time", "id")
)


@dataclass(frozen=True, slots=True)
class NewDataset:
    """What a caller says of a dataset; `schema` is built in or registered, `iceberg` None means as its kind has it.

    `batch_retention` None means for ever.
    """

    name: str
    description: str
    schema: SchemaRef
    tags: Mapping[str, tuple[str, ...]]
    identity_fields: tuple[IdentityField, ...]
    declared_fields: tuple[FieldDeclaration, ...] = ()
    iceberg: bool | None = None
    batch_retention: timedelta | None = None


@dataclass(frozen=True, slots=True)
class DatasetChange:
    """What a caller changes of a dataset; None stays as it is, declared fields come on top of those it has.

    A `batch_retention` of zero means for ever.
    """

    name: str | None = None
    description: str | None = None
    tags: Mapping[str, tuple[str, ...]] | None = None
    declared_fields: tuple[FieldDeclaration, ...] = ()
    iceberg: bool | None = None
    batch_retention: timedelta | None = None


def is_source(kind: DatasetKind, tags: Mapping[str, tuple[str, ...]]) -> bool:
    """Say whether exports read a dataset of that kind and those tags (S11)."""
    return kind is not DatasetKind.UNION and "enabled:false" not in tags.get(PROFILE_TAG, ())


def initial_fields(
    schema: Schema, identity_fields: Sequence[IdentityField], declared_fields: Sequence[FieldDeclaration] = ()
) -> ObjectType:
    """Return the fields of a new dataset: the schema's, the declared ones, and identity fields as text (S1).

    Raises:
        TypeConflictError: A declared path contradicts the schema or another one, or holds no identity there.
    """
    fields = GrowingObject(schema.fields)
    for declared in declared_fields:
        fields.add(nested(declared.path, declared.type))
    for identity in identity_fields:
        kind = LONG if fields.at(identity.path) == LONG else TEXT
        fields.add(nested(identity.path, kind))
    return fields.type()


def with_declared(fields: ObjectType, declared_fields: Sequence[FieldDeclaration]) -> ObjectType:
    """Return the fields of a dataset with further declared types.

    Raises:
        TypeConflictError: A declared type is not as wide as what is known.
    """
    grown = GrowingObject(fields)
    for declared in declared_fields:
        wanted = nested(declared.path, declared.type)
        grown.add(wanted)
        # A union takes the wider of both: a narrower declaration would be accepted and ignored.
        for path, kind in leaves(wanted):
            known = grown.at(path)
            if isinstance(kind, Scalar | DecimalType) and known not in {
                kind,
                LARGE_LONG if kind == LONG else kind,
            }:
                raise TypeConflictError(path, known or "", kind)
    return grown.type()


def check_tags(kind: DatasetKind, tags: Mapping[str, tuple[str, ...]]) -> None:
    """Raise InvalidArgumentError if a tag has not the effect that its words promise.

    That is one that nearly says what `unifiedProfile` may say, or a dataset without records that is to upsert them.
    """
    for value in tags.get(PROFILE_TAG, ()):
        if not _OF_PROFILE_TAG.fullmatch(value):
            raise InvalidArgumentError.of_field(
                f"tags.{PROFILE_TAG}",
                f"cannot be {value[:_MOST_SHOWN]!r}: write enabled:true, enabled:false, isUpsert:true, isUpsert:false, "
                "or enabledAt: and a time.",
            )
    if _UPSERTS in tags.get(PROFILE_TAG, ()) and kind is not DatasetKind.RECORD:
        raise InvalidArgumentError.of_field(
            f"tags.{PROFILE_TAG}", f"'{_UPSERTS}' makes records patch, and this dataset holds none."
        )


def usable_kind(schema: Schema) -> DatasetKind:
    """Return what a dataset of the schema holds; InvalidArgumentError if it is only a component of others."""
    if schema.kind is None:
        raise InvalidArgumentError.of_field(
            "schema_ref.id", f"'{schema.id}' is a component of other schemas, and extends no class itself."
        )
    return schema.kind


def check_declared_fields(kind: DatasetKind, declared_fields: Sequence[FieldDeclaration], where: str) -> None:
    """Refuse declarations that cannot work; `where` is the field of the request that holds them.

    Raises:
        InvalidArgumentError: On a union dataset, or a path or a name in a type cannot be.
        TooManyError: They name more fields than a dataset knows.
    """
    if declared_fields and kind is DatasetKind.UNION:
        raise InvalidArgumentError.of_field(
            where, "a union dataset holds exported profiles and declares none."
        )
    check_declared_paths(declared.path for declared in declared_fields)
    for index, declared in enumerate(declared_fields):
        _check_field_path(declared.path, f"{where}[{index}].path")
        _check_names(declared.type, declared.path, f"{where}[{index}].type")


def _check_names(kind: FieldType, path: FieldPath, where: str) -> None:
    match kind:
        case ObjectType(fields):
            if fields and len(path) >= MAX_DEPTH:
                raise _too_deep(where)
            for name, member in fields.items():
                _check_name(name, path, where)
                _check_names(member, (*path, name), where)
        case ArrayType(inner) | MapType(inner):
            if len(path) > MAX_DEPTH:
                raise _too_deep(where)
            _check_names(inner, (*path, "[]"), where)


def _too_deep(where: str) -> InvalidArgumentError:
    told = f"is nested deeper than {MAX_DEPTH} levels, those of its path included"
    return InvalidArgumentError.of_field(where, f"{told}: shorten the path, or declare less within.")


def check_identity_fields(kind: DatasetKind, identity_fields: tuple[IdentityField, ...]) -> None:
    """Refuse declared identity fields that cannot work.

    Raises:
        InvalidArgumentError: On a union dataset, a path or namespace that cannot be, a path twice, or two primaries.
    """
    if identity_fields and kind is DatasetKind.UNION:
        raise InvalidArgumentError.of_field(
            "identity_fields", "a union dataset holds exported profiles and declares none."
        )
    seen: set[tuple[str, ...]] = set()
    for index, declared in enumerate(identity_fields):
        field = f"identity_fields[{index}]"
        _check_field_path(declared.path, f"{field}.path")
        # A key is computed of namespace, NUL and id: with a NUL inside, two identities could share one.
        if not declared.namespace or "\0" in declared.namespace:
            raise InvalidArgumentError.of_field(
                f"{field}.namespace", "must name a namespace such as 'Email'."
            )
        if declared.path in seen:
            raise InvalidArgumentError.of_field(f"{field}.path", "is declared twice.")
        seen.add(declared.path)
    if sum(declared.primary for declared in identity_fields) > 1:
        raise InvalidArgumentError.of_field("identity_fields", "at most one may be primary.")


def _check_field_path(path: FieldPath, field: str) -> None:
    """Hold a path to what ingestion asks of any field: once it is known, nobody looks at its names again."""
    if not path or not all(path) or len(path) > MAX_DEPTH:
        raise InvalidArgumentError.of_field(
            field, f"must be a dotted field path such as 'crm.id', of at most {MAX_DEPTH} names."
        )
    for depth, name in enumerate(path):
        _check_name(name, path[:depth], field)


def _check_name(name: str, path: FieldPath, field: str) -> None:
    try:
        check_name(name, {}, path, {})
    except ValueRefusedError as refused:
        raise InvalidArgumentError.of_field(field, refused.reason) from None


# --- Deletion ---


def check_undeletable(dataset: Dataset, now: datetime) -> None:
    """Refuse to bring a dataset back that is not deleted, or gone for good.

    Raises:
        AlreadyExistsError: It is there.
        NotFoundError: The time in which it could be brought back is over.
    """
    if dataset.delete_time is None:
        raise AlreadyExistsError(
            "DATASET_NOT_DELETED",
            f"The dataset '{dataset.id}' is not deleted: nothing is left to do.",
            metadata={"id": dataset.id},
        )
    if dataset.purge_time is None or dataset.purge_time <= now:
        when = _moment(dataset.delete_time)
        raise NotFoundError(
            "EXPIRED",
            f"The dataset '{dataset.id}' was deleted at {when} and is gone for good. Make a new one.",
            metadata={"id": dataset.id, "delete_time": when},
        )


def missing_dataset(
    dataset_id: str, delete_time: datetime | None, purge_time: datetime | None
) -> NotFoundError:
    """Return the refusal of a dataset that is not there; the times are those of one that can be brought back."""
    missing = NotFoundError.of("dataset", dataset_id)
    if delete_time is None or purge_time is None:
        return missing
    times = {"delete_time": _moment(delete_time), "purge_time": _moment(purge_time)}
    return NotFoundError(
        missing.reason,
        f"The dataset '{dataset_id}' was deleted at {times['delete_time']}. UndeleteDataset brings it back until "
        f"{times['purge_time']}.",
        metadata=missing.metadata | times,
    )


def missing_batch(batch_id: str, dataset: Dataset | None) -> NotFoundError:
    """Return the refusal of a batch that is not there; `dataset` is a deleted one that brings it back."""
    missing = NotFoundError.of("batch", batch_id)
    if dataset is None:
        return missing
    gone = missing_dataset(dataset.id, dataset.delete_time, dataset.purge_time)
    more = {name: value for name, value in gone.metadata.items() if name != "id"}
    return NotFoundError(
        missing.reason,
        f"The batch '{batch_id}' is not there. {gone.message}",
        metadata=missing.metadata | {"dataset_id": dataset.id} | more,
    )


def _moment(time: datetime) -> str:
    return time.isoformat(timespec="seconds").replace("+00:00", "Z")


# --- Retention ---

REMEMBERED = timedelta(days=30)
"""How long the service can tell an expired job from a job that never was."""
LEAST_RETENTION = timedelta(hours=1)
MOST_RETENTION = timedelta(days=36_500)


def check_batch_retention(kept_for: timedelta, field: str) -> None:
    """Raise InvalidArgumentError if a retention is negative, under an hour or over a hundred years; 0 is for ever."""
    if kept_for and not LEAST_RETENTION <= kept_for <= MOST_RETENTION:
        raise InvalidArgumentError.of_field(
            field, f"must be 0, which is for ever, or between 1 hour and {MOST_RETENTION.days:,} days."
        )


def batch_expiry_reason(kept_for: timedelta) -> str:
    """Say why a batch has expired."""
    return f"Expired: its dataset keeps batches for {_in_words(kept_for)}."


def upload_expiry_reason(kept_for: timedelta) -> str:
    """Say why a batch was given up that was being uploaded."""
    return f"Given up: nothing was sent for {_in_words(kept_for)}. Upload it again."


def expired_job(job_id: int, expire_time: datetime) -> NotFoundError:
    """Return the refusal of a job that retention has removed."""
    when = _moment(expire_time)
    return NotFoundError(
        "EXPIRED",
        f"The job {job_id} has expired: it was removed at {when}. What it has exported stays, with the receipt.",
        metadata={"id": str(job_id), "expire_time": when},
    )


def _in_words(time: timedelta) -> str:
    for unit, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1))):
        count, rest = divmod(time, length)
        if count and not rest:
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    return f"{time.total_seconds():,.0f} seconds"


# --- Union schemas, and versions of a schema ---


def union_by_kind(sources: Sequence[Dataset]) -> Mapping[DatasetKind, ObjectType]:
    """Return the union schemas of record and event datasets.

    Raises:
        TypeConflictError: Two datasets contradict each other; it names both.
    """
    unions: dict[DatasetKind, GrowingObject] = {
        schema.kind: GrowingObject(schema.fields)
        for schema in BUILT_IN_SCHEMAS.values()
        if schema.kind in {DatasetKind.RECORD, DatasetKind.EVENT}
    }
    earlier: list[Dataset] = []
    for dataset in sources:
        try:
            unions[dataset.kind].add(dataset.fields)
        except TypeConflictError as conflict:
            raise conflict.between(_named(dataset), _who_knows(earlier, dataset)) from None
        earlier.append(dataset)
    return {kind: union.type() for kind, union in unions.items()}


def _who_knows(earlier: Sequence[Dataset], dataset: Dataset) -> Holder:
    """Name the first dataset that the newcomer contradicts; the built-in schema if there is none."""
    for other in earlier:
        if other.kind is dataset.kind:
            try:
                union_objects(other.fields, dataset.fields)
            except TypeConflictError:
                return _named(other)
    return Holder(dataset.schema.id)


def _named(dataset: Dataset) -> Holder:
    return Holder(dataset.id, dataset.name)


def union_schema(sources: Sequence[Dataset], kind: DatasetKind) -> ObjectType:
    """Return the union schema of a class as people see it, errors as `union_by_kind`; records have their events."""
    unions = union_by_kind(sources)
    if kind is not DatasetKind.RECORD:
        return unions[kind]
    events = {TIME_SERIES_EVENTS: ArrayType(unions[DatasetKind.EVENT])}
    return ObjectType({**unions[DatasetKind.RECORD].fields, **events})


def next_version(known: Schema | None, read: Schema) -> Schema | None:
    """Return the version that a document becomes; None if its newest version is the same.

    It has what is built in of its class, which may also be a document under the id of the class itself.

    Raises:
        AlreadyExistsError: The id is that of the built-in union schema, which merges what others say.
        TypeConflictError: It narrows a type, changes a kind or leaves out a field of the version before.
    """
    if read.class_id:
        read = replace(read, fields=union_objects(BUILT_IN_SCHEMAS[read.class_id].fields, read.fields))
    if known is None:
        return read
    if known.kind is DatasetKind.UNION:
        raise AlreadyExistsError(
            "SCHEMA_BUILT_IN",
            f"'{read.id}' is built in and merges the schemas of its class; register under another $id.",
            metadata={"id": read.id},
        )
    newer = replace(read, version=known.version, create_time=known.create_time)
    if newer == known:
        return None
    _check_only_wider(known.fields, read.fields)
    return replace(newer, version=known.version + 1)


def _check_only_wider(known: ObjectType, found: ObjectType) -> None:
    for path, kind in leaves(union_objects(known, found)):
        if type_at(known, path) is not None and type_at(found, path) != kind:
            raise TypeConflictError(path, kind, type_at(found, path) or "left out")


def check_beside(sources: Sequence[Dataset], schema: Schema) -> None:
    """Raise TypeConflictError if a schema contradicts one of the tenant's sources, and name that."""
    for dataset in sources:
        if dataset.kind is schema.kind:
            try:
                union_objects(dataset.fields, schema.fields)
            except TypeConflictError as conflict:
                raise conflict.between(Holder(schema.id), _named(dataset)) from None
