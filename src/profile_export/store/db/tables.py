"""The tables. A change here needs a migration beside it; a test compares the two."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

from profile_export.domain.catalog.batches import BatchState, IngestedFile, Reading, RowError, UploadState
from profile_export.domain.catalog.datasets import DatasetKind, FieldDeclaration, IdentityField
from profile_export.domain.export.plan import ExportCounts, ExportPlan
from profile_export.domain.export.receipt import Receipt
from profile_export.domain.export.request import BoundRequest
from profile_export.domain.job import (
    FINAL_STATES,
    Cancellation,
    JobError,
    JobMetrics,
    JobState,
    Phase,
    Progress,
    Resolved,
)
from profile_export.domain.merging.identity import Identity
from profile_export.domain.merging.policy import AttributeMerge, IdentityGraph
from profile_export.domain.schemas.types import ObjectType
from profile_export.store.db.columns import Instant, Json, Span, Word

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
# SQLite counts up by itself only where the key is spelled INTEGER.
Serial = BigInteger().with_variant(Integer, "sqlite")
# What is listed in its order: by code points, as SQLite has it, and not as PostgreSQL's database was made for.
_Ordered = Text().with_variant(Text(collation="C"), "postgresql")

# One row, from the first start on: which installation this is, and what signs what it hands out.
instance = Table(
    "instance",
    metadata,
    Column("id", Text, primary_key=True),
    Column("token_key", LargeBinary, nullable=False),
)

LOADING = text("state = 'loading' AND job_id IS NULL")
"""Tells batches that are being uploaded; in these words only, or the index of the few among all is not used."""

tenants = Table(
    "tenants",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("org", Text, nullable=False),
    Column("sandbox", Text, nullable=False),
    # The last batch number and ingest time given out: both grow within the tenant (S8).
    Column("last_batch_number", BigInteger, nullable=False, default=0),
    Column("last_ingest_time", Instant),
    # Counts the changes of its jobs: what a watch of all of them resumes by. Those up to the second one are not kept.
    Column("job_revision", BigInteger, nullable=False, default=0, server_default="0"),
    Column("forgotten_job_revision", BigInteger, nullable=False, default=0, server_default="0"),
    # Counts the changes of what its datasets know, which of them are sources, and its schemas: what was judged beside
    # these at one still holds there.
    Column("schema_revision", BigInteger, nullable=False, default=0, server_default="0"),
    # Counts claims over all tenants: when it was this one's turn last; the one with the lowest is next.
    Column("last_claim", BigInteger, nullable=False, default=0, server_default="0", index=True),
    UniqueConstraint("org", "sandbox"),
)

namespaces = Table(
    "namespaces",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    # `identity` or `segment`: the two are registered apart (S2).
    Column("kind", Text, primary_key=True),
    Column("folded", Text, primary_key=True),
    Column("registered", Text, nullable=False),
)

# Every spelling that any committed row holds, so that a plan can bind those that differ from the registered one.
namespace_spellings = Table(
    "namespace_spellings",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("spelling", Text, primary_key=True),
    Column("folded", Text, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("name", _Ordered, nullable=False),
    Column("description", Text, nullable=False),
    Column("schema_id", _Ordered, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("kind", Word(DatasetKind), nullable=False),
    Column("tags", Json(Mapping[str, tuple[str, ...]]), nullable=False),
    Column("identity_fields", Json(tuple[IdentityField, ...]), nullable=False),
    Column("declared_fields", Json(tuple[FieldDeclaration, ...]), nullable=False, server_default="[]"),
    Column("fields", Json(ObjectType), nullable=False),
    # Whether its batches are repeated into an Iceberg table.
    Column("iceberg", Boolean, nullable=False),
    # How long a batch counts from its ingest time on; null: for ever.
    Column("batch_retention", Span),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    # A deleted dataset keeps its row, since jobs and batches name it.
    Column("delete_time", Instant),
    # Until when it can be brought back; null: it is not deleted, or gone for good.
    Column("purge_time", Instant, index=True),
    Column("request_id", Text),
    # The request id that it had when it was deleted: another dataset may take it meanwhile.
    Column("former_request_id", Text),
    # What was asked for under the request id, to tell a repetition from another request.
    Column("request_digest", Text),
    UniqueConstraint("tenant_id", "request_id"),
    Index(None, "tenant_id", "create_time", "id"),
    # What is there of a tenant is counted without reading it: fields may be many.
    Index(None, "tenant_id", "delete_time"),
)

batches = Table(
    "batches",
    metadata,
    Column("key", Serial, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("id", Text, nullable=False),
    Column("dataset_id", ForeignKey("datasets.id"), nullable=False),
    Column("state", Word(BatchState), nullable=False),
    Column("number", BigInteger),
    Column("ingest_time", Instant),
    Column("create_time", Instant, nullable=False),
    Column("end_time", Instant),
    Column("rows", BigInteger, nullable=False, default=0),
    Column("bytes", BigInteger, nullable=False, default=0),
    Column("file_count", Integer, nullable=False, default=0),
    Column("job_id", BigInteger, index=True),
    # Whether CreateBatch made it, so that it counts when it is completed and not with its first file.
    Column("several_files", Boolean, nullable=False, default=False, server_default=false()),
    Column("state_reason", Text, nullable=False, default="", server_default=""),
    # When retention has expired it.
    Column("expire_time", Instant),
    # The job that has replaced it.
    Column("replaced_by", BigInteger),
    # A generated name: neither a tenant's nor a caller's words ever form a path.
    Column("folder", Text, nullable=False),
    Column("request_id", Text),
    Column("request_digest", Text),
    # The compacted file that holds a copy of its rows; null while there is none.
    Column("compaction_key", BigInteger),
    # Of uploads: the last sign of life, within some minutes, and the bytes as sent that may be kept until it counts.
    Column("active_time", Instant),
    Column("staged_bytes", BigInteger, nullable=False, default=0, server_default="0"),
    UniqueConstraint("tenant_id", "id"),
    UniqueConstraint("tenant_id", "request_id"),
    Index(None, "dataset_id", "state", "compaction_key"),
    Index(None, "compaction_key", "state"),
    Index(None, "dataset_id", "number"),
    Index(None, "dataset_id", "state", "ingest_time"),
    Index(None, "tenant_id", "create_time", "key"),
    Index("ix_batches_loading", "tenant_id", "active_time", sqlite_where=LOADING, postgresql_where=LOADING),
)

# The uploaded files of a batch, each from before its first byte.
uploads = Table(
    "uploads",
    metadata,
    Column("key", Serial, primary_key=True),
    Column("batch_key", ForeignKey("batches.key"), nullable=False),
    Column("file_name", _Ordered, nullable=False),
    Column("format", Text, nullable=False),
    Column("max_bad_records", BigInteger, nullable=False, default=0),
    Column("state", Word(UploadState), nullable=False),
    # A generated name, under which the bytes as sent are kept until the batch counts.
    Column("staged_as", Text, nullable=False),
    # How many bytes may be kept there.
    Column("staged_bytes", BigInteger, nullable=False, default=0, server_default="0"),
    Column("byte_count", BigInteger),
    Column("sha256", Text),
    # Where ingestion has put its files and the rows it refused; empty before that.
    Column("folder", Text, nullable=False, default=""),
    Column("rejected_rows", BigInteger, nullable=False, default=0),
    Column("errors", Json(tuple[RowError, ...]), nullable=False, default=()),
    Column("reading", Json(Reading), nullable=False, default=Reading(), server_default="{}"),
    Column("null_count", BigInteger, nullable=False, default=0, server_default="0"),
    Column("notes", Json(tuple[str, ...]), nullable=False, default=(), server_default="[]"),
    # What ingestion made of a complete file of a batch that is not complete yet; its rows and fields also apart, for
    # the file that comes next.
    Column("facts", Json(IngestedFile)),
    Column("rows", BigInteger, nullable=False, default=0, server_default="0"),
    Column("field_set_id", ForeignKey("field_sets.id")),
    UniqueConstraint("batch_key", "file_name"),
)

# Every version of every registered document.
schemas = Table(
    "schemas",
    metadata,
    Column("tenant_id", ForeignKey("tenants.id"), primary_key=True),
    Column("id", _Ordered, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("title", Text, nullable=False),
    Column("kind", Word(DatasetKind)),
    Column("class_id", _Ordered, nullable=False),
    Column("document", Text, nullable=False),
    Column("fields", Json(ObjectType), nullable=False),
    Column("rules", Text, nullable=False),
    Column("identity_fields", Json(tuple[IdentityField, ...]), nullable=False),
    Column("create_time", Instant, nullable=False),
)

# The fields that files were written with, each different set of a dataset once.
field_sets = Table(
    "field_sets",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("dataset_id", ForeignKey("datasets.id"), nullable=False),
    Column("digest", Text, nullable=False),
    Column("fields", Json(ObjectType), nullable=False),
    UniqueConstraint("dataset_id", "digest"),
)

# A file counts if its batch has succeeded; an export's are recorded with their range before that.
files = Table(
    "files",
    metadata,
    Column("key", Serial, primary_key=True),
    Column("batch_key", ForeignKey("batches.key"), nullable=False),
    Column("name", _Ordered, nullable=False),
    Column("path", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("field_set_id", ForeignKey("field_sets.id")),
    UniqueConstraint("batch_key", "name"),
)

# A copy of the rows of several batches in one file. It counts while all of them have succeeded.
compactions = Table(
    "compactions",
    metadata,
    Column("key", Serial, primary_key=True),
    Column("dataset_id", ForeignKey("datasets.id"), nullable=False, index=True),
    Column("field_set_id", ForeignKey("field_sets.id"), nullable=False),
    Column("folder", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("rows", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    sqlite_autoincrement=True,  # a key that a batch may still have is never given twice
)

# Folders that a merge writes its file into, each from before its first byte until a compacted file names it.
merges = Table(
    "merges",
    metadata,
    Column("folder", Text, primary_key=True),
    Column("start_time", Instant, nullable=False),
)

# Folders that nothing needs any more, but for who may still be reading them.
dropped_folders = Table(
    "drops",
    metadata,
    Column("folder", Text, primary_key=True),
    Column("drop_time", Instant, nullable=False),
    # Of a folder in which an attempt at an export has written: its batch, whose files stay.
    Column("batch_key", BigInteger),
)

# How far the Iceberg table of a dataset is; no row: nobody has begun one.
mirrors = Table(
    "mirrors",
    metadata,
    Column("dataset_id", ForeignKey("datasets.id"), primary_key=True),
    # The table holds every batch that counts up to this number, if it still stands at this snapshot.
    Column("number", BigInteger, nullable=False, default=0),
    Column("snapshot_id", BigInteger),
    # Which table the sequence numbers of `mirrored_batches` are of.
    Column("table_uuid", Text),
    Column("metadata_location", Text, nullable=False, default=""),
    Column("mirror_time", Instant),
    # When to look whether the table still stands there, and which snapshots expire; null: with the first change.
    Column("check_time", Instant),
    # The dataset is gone, and the table is to go.
    Column("drop_asked", Boolean, nullable=False, default=False),
    Column("error_message", Text, nullable=False, default=""),
    Column("failures", Integer, nullable=False, default=0),
    Column("not_before", Instant),
    # The right to change the table; null: nobody has it.
    Column("holder", Text),
    Column("expire_time", Instant),
)

# The batches whose files a snapshot of the table may name: written before they are added to it, gone when no kept
# snapshot can name them any more.
mirrored_batches = Table(
    "mirrored_batches",
    metadata,
    Column("batch_key", ForeignKey("batches.key"), primary_key=True),
    Column("dataset_id", ForeignKey("mirrors.dataset_id"), nullable=False, index=True),
    # The newest snapshot's sequence number when the batch had been taken out: older ones name it. Null: it is in.
    Column("removed_at", BigInteger),
)


jobs = Table(
    "jobs",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("bound", Json(BoundRequest), nullable=False),
    Column("request_id", Text),
    Column("request_digest", Text),
    Column("destination_id", ForeignKey("datasets.id"), nullable=False),
    Column("batch_id", Text, nullable=False),
    # One per segment, if each has a batch of its own; then `batch_id` is empty.
    Column("segment_batches", Json(tuple[str, ...]), nullable=False, server_default="[]"),
    Column("state", Word(JobState), nullable=False),
    # Counts the job's moves from 1: optimistic lock, fence and watch cursor in one.
    Column("revision", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("create_time", Instant, nullable=False),
    Column("update_time", Instant, nullable=False),
    Column("end_time", Instant, index=True),
    Column("not_before", Instant),
    # When its run time is used up; null: it has no limit.
    Column("deadline", Instant),
    Column("cancellation", Json(Cancellation)),
    Column("errors", Json(tuple[JobError, ...]), nullable=False),
    Column("metrics", Json(JobMetrics), nullable=False),
    Column("notes", Json(tuple[str, ...]), nullable=False),
    # Pinned by the first attempt, the same for every other.
    Column("plan", Json(ExportPlan)),
    # What finding out who is one person took, of the last attempt that did; null before that.
    Column("resolved", Json(Resolved)),
    UniqueConstraint("tenant_id", "request_id"),
    Index(None, "tenant_id", "id"),
    # All that claims and timeouts decide by: a job's request may be long, and thousands may wait.
    Index(None, "state", "tenant_id", "id", "not_before", "deadline"),
    sqlite_autoincrement=True,  # an id is never given twice
)

UNFINISHED = jobs.c.state.in_([state for state in JobState if state not in FINAL_STATES])
"""Tells jobs that have not ended; it names their states one by one, so that an index finds the few among all."""

job_transitions = Table(
    "job_transitions",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("revision", BigInteger, primary_key=True),
    Column("from_state", Word(JobState)),
    Column("to_state", Word(JobState), nullable=False),
    Column("time", Instant, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("metrics", Json(JobMetrics), nullable=False),
    # The tenant's revision that it made; null: older than watches of all jobs.
    Column("tenant_id", ForeignKey("tenants.id")),
    Column("tenant_revision", BigInteger),
    Index(None, "tenant_id", "tenant_revision", unique=True),
)

job_stamps = Table(
    "job_stamps",
    metadata,
    Column("key", Serial, primary_key=True),
    Column("job_id", ForeignKey("jobs.id"), nullable=False, index=True),
    Column("attempt", Integer, nullable=False),
    Column("phase", Word(Phase), nullable=False),
    Column("time", Instant, nullable=False),
)

# The right to move a job, apart from the job so that a heartbeat and a move never overwrite each other.
leases = Table(
    "leases",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("worker", Text, nullable=False),
    Column("expire_time", Instant, nullable=False),
    Column("progress", Json(Progress)),
    # The rank of `progress`, which never falls.
    Column("progress_rank", BigInteger, nullable=False, default=0, server_default="0"),
)

job_ranges = Table(
    "job_ranges",
    metadata,
    Column("job_id", ForeignKey("jobs.id"), primary_key=True),
    Column("range_index", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("counts", Json(ExportCounts), nullable=False),
    Column("peak_memory_bytes", BigInteger, nullable=False),
)

# What is left of a job that retention has removed, for a while: that it has expired, and when.
expired_jobs = Table(
    "expired_jobs",
    metadata,
    Column("job_id", BigInteger, primary_key=True, autoincrement=False),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("expire_time", Instant, nullable=False, index=True),
    # The tenant's revision that its removal made, and what a watch of all jobs asks of a job; null: older than those.
    Column("tenant_revision", BigInteger),
    Column("state", Word(JobState)),
    Column("destination_id", Text),
    Column("create_time", Instant),
    Index(None, "tenant_id", "tenant_revision", unique=True),
)


# Policies that can be named. Jobs keep the version that they have by value, so a deleted policy leaves nothing here.
merge_policies = Table(
    "merge_policies",
    metadata,
    Column("id", Text, primary_key=True),
    Column("tenant_id", ForeignKey("tenants.id"), nullable=False),
    Column("schema_name", Text, nullable=False),
    Column("newest_version", Integer, nullable=False),
    # No part of a version: what makes one policy the default takes it from another one, which stays as it is.
    Column("is_default", Boolean, nullable=False),
    Column("create_time", Instant, nullable=False),
    Index(None, "tenant_id", "create_time", "id"),
    Index(
        "uq_merge_policies_default",
        "tenant_id",
        "schema_name",
        unique=True,
        sqlite_where=text("is_default"),
        postgresql_where=text("is_default"),
    ),
)

merge_policy_versions = Table(
    "merge_policy_versions",
    metadata,
    Column("policy_id", ForeignKey("merge_policies.id"), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("name", _Ordered, nullable=False),
    Column("graph", Word(IdentityGraph), nullable=False),
    Column("attribute_merge", Word(AttributeMerge), nullable=False),
    Column("order", Json(tuple[str, ...]), nullable=False),
    Column("update_time", Instant, nullable=False),
    Column("excluded_identities", Json(tuple[Identity, ...]), nullable=False),
)


# What proves an exported batch; written down with it, and put beside its files soon after.
receipts = Table(
    "receipts",
    metadata,
    Column("batch_key", ForeignKey("batches.key"), primary_key=True),
    Column("receipt", Json(Receipt, indent=2), nullable=False),
    # Whether it is on the disk.
    Column("written", Boolean, nullable=False, index=True),
)
