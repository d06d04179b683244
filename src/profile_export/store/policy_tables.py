"""The tables of merge policies, under the rule of those in `tables`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Index, Integer, Table, Text, text

from profile_export.store.column_types import Instant, Json
from profile_export.store.tables import metadata

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
    Column("name", Text, nullable=False),
    Column("graph", Text, nullable=False),
    Column("attribute_merge", Text, nullable=False),
    Column("order", Json(tuple[str, ...]), nullable=False),
    Column("update_time", Instant, nullable=False),
)
