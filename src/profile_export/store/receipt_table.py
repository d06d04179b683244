"""The table of receipts, beside `tables`."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, ForeignKey, Table

from profile_export.domain.receipt import Receipt
from profile_export.store.column_types import Json
from profile_export.store.tables import metadata

# What proves an exported batch; written down with it, and put beside its files soon after.
receipts = Table(
    "receipts",
    metadata,
    Column("batch_key", ForeignKey("batches.key"), primary_key=True),
    Column("receipt", Json(Receipt, indent=2), nullable=False),
    # Whether it is on the disk.
    Column("written", Boolean, nullable=False, index=True),
)
