"""Receipts: written down with the batches they are about, in one transaction, and on the disk soon after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Text, insert, select, type_coerce, update
from sqlalchemy.ext.asyncio import AsyncConnection

from profile_export.domain.catalog.batches import BatchState, not_succeeded
from profile_export.domain.catalog.datasets import Tenant
from profile_export.domain.errors import NotFoundError
from profile_export.domain.export.plan import ExportPlan
from profile_export.domain.export.receipt import RECEIPT_FILE, FilledBatch, StoredReceipt, receipt_of
from profile_export.domain.job import Job
from profile_export.store.catalog.tenants import id_of
from profile_export.store.db.database import MOST_AT_ONCE, Store, fetch_first, slices, uninterruptible
from profile_export.store.db.tables import batches, receipts
from profile_export.store.files.batches import existing_batch, is_seen
from profile_export.store.jobs.rows import phases_of

_TAKEN_BACK = {BatchState.REVERTED, BatchState.EXPIRED}
# The JSON as it is stored, byte for byte, beside the value that it stands for.
_TEXT = type_coerce(receipts.c.receipt, Text).label("document")


@dataclass(frozen=True, slots=True)
class UnwrittenReceipt:
    """A receipt that is not on the disk yet: its JSON, and where in the lake it belongs."""

    batch_key: int
    path: str
    document: bytes


class Receipts(Store):
    """Receipts of all tenants."""

    @uninterruptible
    async def get(self, tenant: Tenant, batch_id: str) -> StoredReceipt:
        """Return the receipt of a batch that counts.

        Raises:
            NotFoundError: There is no such batch, or it has none: it was uploaded, or its job has not succeeded.
            FailedPreconditionError: It was taken back, and its receipt with it.
        """
        async with self.database.read() as connection:
            batch = await existing_batch(connection, id_of(tenant), batch_id)
            query = select(receipts.c.receipt, _TEXT).where(receipts.c.batch_key == batch.key)
            row = await fetch_first(connection, query)
        if row is None:
            raise NotFoundError.of("receipt", batch_id)
        if batch.state in _TAKEN_BACK:
            raise not_succeeded(batch_id, batch.state)
        return StoredReceipt(row.receipt, row.document.encode(), batch.folder)

    @uninterruptible
    async def unwritten(self) -> Sequence[UnwrittenReceipt]:
        """Return the receipts that are to be put on the disk: of batches that count, which is where they still lie."""
        query = (
            select(receipts.c.batch_key, batches.c.folder, _TEXT)
            .join(batches, batches.c.key == receipts.c.batch_key)
            .where(~receipts.c.written, batches.c.state == BatchState.SUCCEEDED, is_seen())
            .order_by(receipts.c.batch_key)
        )
        async with self.database.read() as connection:
            rows = (await connection.execute(query)).all()
        return [
            UnwrittenReceipt(row.batch_key, f"{row.folder}/{RECEIPT_FILE}", row.document.encode())
            for row in rows
        ]

    @uninterruptible
    async def note_written(self, batch_keys: Sequence[int]) -> None:
        """Note that receipts are on the disk."""
        for some in slices(batch_keys, MOST_AT_ONCE):
            async with self.database.write() as connection:
                query = update(receipts).where(receipts.c.batch_key.in_(some))
                await connection.execute(query.values(written=True))


async def add_receipts(
    connection: AsyncConnection, job: Job, plan: ExportPlan, filled: Sequence[tuple[Row[Any], FilledBatch]]
) -> None:
    """Write down the receipts of a job, in the transaction in which it succeeds.

    Args:
        connection: A writing transaction.
        job: As it is after that.
        plan: The one that it carried out.
        filled: The batches, by their rows.
    """
    phases = (await phases_of(connection, [job]))[job.id]
    rows = [
        {"batch_key": batch.key, "receipt": receipt_of(job, plan, phases, facts), "written": False}
        for batch, facts in filled
    ]
    await connection.execute(insert(receipts), rows)
