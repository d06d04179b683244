"""How far the Iceberg mirrors are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Row, func, select

from profile_export.domain.batch import BatchState
from profile_export.domain.mirror import MirrorStatus
from profile_export.store.database import Database, whole
from profile_export.store.mirrors import to_take_out
from profile_export.store.tables import batches, datasets, mirrored_batches, mirrors


class MirrorStatuses:
    """How far the mirrors of all tenants' datasets are."""

    def __init__(self, database: Database) -> None:
        self.database = database

    @whole
    async def of(self, dataset_ids: Collection[str]) -> Mapping[str, MirrorStatus]:
        """Return how far the mirrors of these datasets are; those that are not mirrored and never were are left out."""
        counts = batches.c.state == BatchState.SUCCEEDED.value
        in_table = (batches.c.dataset_id == datasets.c.id) & (
            batches.c.number <= func.coalesce(mirrors.c.number, 0)
        )
        lacking = (batches.c.dataset_id == datasets.c.id) & (
            batches.c.number > func.coalesce(mirrors.c.number, 0)
        )
        last = select(batches.c.id).where(in_table & counts).order_by(batches.c.number.desc()).limit(1)
        query = (
            select(
                datasets.c.id,
                datasets.c.iceberg,
                mirrors,
                select(func.count())
                .select_from(mirrored_batches.join(batches))
                .where(in_table & mirrored_batches.c.removed_at.is_(None))
                .scalar_subquery()
                .label("held"),
                select(func.count())
                .select_from(batches)
                .where(lacking & counts)
                .scalar_subquery()
                .label("to_add"),
                select(func.count()).where(*to_take_out()).scalar_subquery().label("to_remove"),
                last.scalar_subquery().label("last_batch_id"),
            )
            .select_from(datasets.outerjoin(mirrors))
            .where(datasets.c.id.in_(dataset_ids), datasets.c.iceberg | mirrors.c.dataset_id.is_not(None))
        )
        async with self.database.read() as connection:
            return {row.id: _status(row) for row in await connection.execute(query)}


def _status(row: Row[Any]) -> MirrorStatus:
    return MirrorStatus(
        enabled=row.iceberg,
        metadata_location=row.metadata_location or "",
        mirrored_batches=row.held,
        pending_changes=row.to_add + row.to_remove,
        last_batch_id=row.last_batch_id or "",
        mirror_time=row.mirror_time,
        error_message=row.error_message or "",
    )
