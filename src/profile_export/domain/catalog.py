"""Tenants, datasets, batches and data files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from profile_export.domain.errors import InvalidArgumentError
from profile_export.domain.learning import MAX_DEPTH, ValueRefusedError, check_name
from profile_export.domain.schema import (
    EMPTY,
    EVENT_ID,
    EVENT_TIME,
    IDENTITY_MAP,
    IDENTITY_MAP_TYPE,
    SEGMENT_MEMBERSHIP,
    SEGMENT_MEMBERSHIP_TYPE,
    TEXT,
    TIMESTAMP,
    FieldPath,
    ObjectType,
    union_objects,
)

_TENANT_PART = re.compile(r"[A-Za-z0-9@_.-]{1,64}")
_BATCH_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
PROFILE_TAG = "unifiedProfile"


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
class BuiltInSchema:
    """A schema that is there without being registered."""

    id: str
    kind: DatasetKind
    fields: ObjectType


_XDM = "https://ns.adobe.com/xdm/context"
BUILT_IN_SCHEMAS = {
    schema.id: schema
    for schema in (
        BuiltInSchema(
            f"{_XDM}/profile",
            DatasetKind.RECORD,
            ObjectType({IDENTITY_MAP: IDENTITY_MAP_TYPE, SEGMENT_MEMBERSHIP: SEGMENT_MEMBERSHIP_TYPE}),
        ),
        BuiltInSchema(
            f"{_XDM}/experienceevent",
            DatasetKind.EVENT,
            ObjectType({EVENT_ID: TEXT, EVENT_TIME: TIMESTAMP, IDENTITY_MAP: IDENTITY_MAP_TYPE}),
        ),
        BuiltInSchema(f"{_XDM}/profile__union", DatasetKind.UNION, EMPTY),
    )
}
PROFILE_CLASS = "_xdm.context.profile"


@dataclass(frozen=True, slots=True)
class SchemaRef:
    """Which schema a dataset follows; `content_type` may be empty."""

    id: str
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class IdentityField:
    """A field of the dataset that holds an identity (S1): always text there."""

    path: tuple[str, ...]
    namespace: str
    primary: bool = False


@dataclass(frozen=True, slots=True)
class Dataset:
    """A named table. `fields` is its schema as known so far, declared and built-in fields included."""

    id: str
    name: str
    description: str
    schema: SchemaRef
    kind: DatasetKind
    tags: Mapping[str, tuple[str, ...]]
    identity_fields: tuple[IdentityField, ...]
    fields: ObjectType
    create_time: datetime
    update_time: datetime

    @property
    def is_source(self) -> bool:
        """Whether exports read it (S11)."""
        return self.kind is not DatasetKind.UNION and "enabled:false" not in self.tags.get(PROFILE_TAG, ())

    @property
    def upserts(self) -> bool:
        """Whether a record patches the older ones of its identity instead of replacing them (S9); events never do."""
        return self.kind is DatasetKind.RECORD and "isUpsert:true" in self.tags.get(PROFILE_TAG, ())


def initial_fields(schema: BuiltInSchema, identity_fields: tuple[IdentityField, ...]) -> ObjectType:
    """Return the fields of a new dataset: the schema's, and the declared identity fields as text.

    Raises:
        TypeConflictError: A declared path contradicts the schema.
    """
    fields = schema.fields
    for declared in identity_fields:
        *parents, name = declared.path
        nested = ObjectType({name: TEXT})
        for parent in reversed(parents):
            nested = ObjectType({parent: nested})
        fields = union_objects(fields, nested)
    return fields


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
        _check_identity_path(declared.path, f"{field}.path")
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


def _check_identity_path(path: FieldPath, field: str) -> None:
    """Hold a declared path to what ingestion asks of any field: once it is known, nobody looks at its names again."""
    if not path or not all(path) or len(path) > MAX_DEPTH:
        raise InvalidArgumentError.of_field(
            field, f"must be a dotted field path such as 'crm.id', of at most {MAX_DEPTH} names."
        )
    try:
        for depth, name in enumerate(path):
            check_name(name, {}, path[:depth])
    except ValueRefusedError as refused:
        raise InvalidArgumentError.of_field(field, refused.reason) from None


class BatchState(StrEnum):
    """Where a batch stands."""

    LOADING = "loading"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABORTED = "aborted"
    REVERTED = "reverted"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class RowError:
    """Why a batch was refused: the row (from 1, None for the file as a whole) and the reason, in words."""

    row: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Batch:
    """An atomic set of files added to a dataset, visible whole or not at all.

    `number`, `ingest_time` and the counts are None or 0 until it has succeeded; `sha256` and `byte_count` are those
    of the upload as sent, None for an export's batch; `job_id` is None for an upload.
    """

    id: str
    dataset_id: str
    state: BatchState
    create_time: datetime
    end_time: datetime | None = None
    number: int | None = None
    ingest_time: datetime | None = None
    rows: int = 0
    bytes: int = 0
    file_count: int = 0
    format: str = ""
    file_name: str = ""
    sha256: str | None = None
    byte_count: int | None = None
    job_id: int | None = None
    errors: tuple[RowError, ...] = ()


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file. `path` is relative to the lake's root; `sha256` is in hex."""

    name: str
    path: str
    rows: int
    bytes: int
    sha256: str


def check_batch_id(batch_id: str) -> None:
    """Refuse a batch id that is not of the agreed form.

    Raises:
        InvalidArgumentError: It does not match `[A-Za-z0-9_-]{1,64}`.
    """
    if not _BATCH_ID.fullmatch(batch_id):
        raise InvalidArgumentError.of_field("start.batch_id", "must match [A-Za-z0-9_-]{1,64}.")


def check_file_name(file_name: str) -> None:
    """Refuse a file name that is not of the agreed form.

    Raises:
        InvalidArgumentError: It does not match `[A-Za-z0-9_.-]{1,128}`.
    """
    if not _FILE_NAME.fullmatch(file_name):
        raise InvalidArgumentError.of_field("start.file_name", "must match [A-Za-z0-9_.-]{1,128}.")
